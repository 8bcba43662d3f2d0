//! Servers that misbehave: HTTP by a script of acts, HTTPS with a certificate of its own, and a proxy.

use rustls::pki_types::{pem::PemObject, CertificateDer, PrivateKeyDer};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the server does with one request.
#[derive(Clone)]
pub enum Act {
    /// The file; the rest of it where Range asks for that, and If-Range does not name another version.
    Serve { etag: &'static str, body: Vec<u8> },
    /// As `Serve`, but the connection ends after so many bytes of the body.
    Cut { after: usize, etag: &'static str, body: Vec<u8> },
    /// As `Cut`, but the connection stays open and silent.
    Stall { after: usize, body: Vec<u8> },
    /// A byte every tenth of a second, for ever.
    Trickle { body: Vec<u8> },
    /// The whole file, whatever was asked for.
    IgnoreRange { body: Vec<u8> },
    /// The rest of the file, whatever If-Range says.
    IgnoreIfRange { body: Vec<u8> },
    /// These bytes, as they are.
    Raw(Vec<u8>),
}

pub fn status(line: &str, headers: &str) -> Act {
    Act::Raw(format!("HTTP/1.1 {line}\r\nContent-Length: 0\r\nConnection: close\r\n{headers}\r\n").into_bytes())
}

pub fn redirect(to: &str) -> Act {
    status("302 Found", &format!("Location: {to}\r\n"))
}

#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub range: Option<String>,
    pub if_range: Option<String>,
    pub authorization: Option<String>,
}

/// A server on a port of its own; the last act is repeated.
pub struct Server {
    pub port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn new(acts: &[Act]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let acts: Arc<Mutex<VecDeque<Act>>> = Arc::new(Mutex::new(acts.iter().cloned().collect()));
        let seen = requests.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, acts) = (seen.clone(), acts.clone());
                // A client that went away is no fault of the server.
                std::thread::spawn(move || answer(stream.unwrap(), &seen, &acts).ok());
            }
        });
        Self { port, requests }
    }

    pub fn base(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn answer(stream: TcpStream, seen: &Mutex<Vec<Request>>, acts: &Mutex<VecDeque<Act>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap()?;
    let mut request = Request { path: first.split(' ').nth(1).unwrap().into(), range: None, if_range: None, authorization: None };
    for line in lines {
        let line = line?;
        match line.split_once(": ") {
            None => break,
            Some((name, value)) if name.eq_ignore_ascii_case("range") => request.range = Some(value.into()),
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => request.authorization = Some(value.into()),
            Some((name, value)) if name.eq_ignore_ascii_case("if-range") => request.if_range = Some(value.into()),
            _ => {}
        }
    }
    let act = {
        let mut acts = acts.lock().unwrap();
        // The act is taken before the request is shown, so that a waiting test sees both.
        let act = if acts.len() > 1 { acts.pop_front().unwrap() } else { acts[0].clone() };
        seen.lock().unwrap().push(request.clone());
        act
    };
    let start = request.range.as_deref().map(|r| r.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse::<usize>().unwrap());
    let current = |etag: &str| request.if_range.as_deref().is_none_or(|asked| asked == etag);
    match act {
        Act::Serve { etag, body } => send(stream, etag, &body, start.filter(|_| current(etag)), body.len()).map(drop),
        Act::Cut { after, etag, body } => send(stream, etag, &body, start.filter(|_| current(etag)), after).map(drop),
        Act::IgnoreRange { body } => send(stream, "\"v\"", &body, None, body.len()).map(drop),
        Act::IgnoreIfRange { body } => send(stream, "\"v\"", &body, start, body.len()).map(drop),
        Act::Stall { after, body } => {
            let _open = send(stream, "\"v\"", &body, start, after)?;
            std::thread::sleep(Duration::from_secs(60));
            Ok(())
        }
        Act::Trickle { body } => {
            let mut stream = send(stream, "\"v\"", &body, None, 0)?;
            for byte in body {
                stream.write_all(&[byte])?;
                std::thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        }
        Act::Raw(bytes) => (&stream).write_all(&bytes),
    }
}

/// The body from `start` on, but at most `most` bytes of it.
fn send(mut stream: TcpStream, etag: &str, body: &[u8], start: Option<usize>, most: usize) -> std::io::Result<TcpStream> {
    let (line, range) = match start {
        Some(start) => ("206 Partial Content", format!("Content-Range: bytes {start}-{}/{}\r\n", body.len() - 1, body.len())),
        None => ("200 OK", String::new()),
    };
    let rest = &body[start.unwrap_or(0)..];
    write!(stream, "HTTP/1.1 {line}\r\nContent-Length: {}\r\nETag: {etag}\r\n{range}Connection: close\r\n\r\n", rest.len())?;
    stream.write_all(&rest[..most.min(rest.len())])?;
    stream.flush()?;
    Ok(stream)
}

/// A server called localhost whose certificate is of an authority of its own; it gives everybody `body`.
pub fn tls_server(body: Vec<u8>) -> u16 {
    let fixture = |name: &str| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name);
    let certificate = CertificateDer::from_pem_file(fixture("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(fixture("server.key")).unwrap();
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, stream.unwrap());
            let mut head = Vec::new();
            let mut byte = [0];
            // A client that does not like the certificate goes away here.
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
                head.push(byte[0]);
            }
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).and_then(|()| stream.write_all(&body));
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    port
}

/// A proxy that opens tunnels, and counts them.
pub fn proxy() -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let tunnels: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = tunnels.clone();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
            let first = lines.next().unwrap().unwrap();
            lines.find(|line| line.as_ref().unwrap().is_empty());
            seen.lock().unwrap().push(first.clone());
            let mut server = TcpStream::connect(first.split(' ').nth(1).unwrap()).unwrap();
            client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
            let (mut up, mut down) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut up, &mut down));
            std::thread::spawn(move || std::io::copy(&mut server, &mut client));
        }
    });
    (port, tunnels)
}
