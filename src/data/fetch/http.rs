//! One file over HTTP(S): resumed, retried, and whole or absent.
//!
//! What arrives is written to `FILE.part`; an interrupted download goes on there (`Range`, with `If-Range` where the server
//! names a version of the file). `FILE` itself appears only when its size and SHA-256 are the expected ones.

use super::FetchError;
use crate::digest::file_sha256;
use crate::durable;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::tls::{parse_pem, PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body, Error};

const REDIRECTS: u32 = 10;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A connection that brings less than this in the stall time is given up: one byte now and then is no progress.
const TRICKLE: u64 = 1024;
/// An attempt that brought this much starts the count of failures anew.
const PROGRESS: u64 = 1 << 20;
/// PEM file of the certificates to trust instead of Mozilla's, as curl and OpenSSL know it.
const CERTIFICATES: &str = "SSL_CERT_FILE";

/// A file that is known in advance.
#[derive(Clone, Debug)]
pub struct Remote {
    pub url: String,
    pub bytes: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
}

/// When to give up.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Failures in a row, at least 1.
    pub attempts: u32,
    /// Time without data after which a connection is broken off.
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { attempts: 5, stall: Duration::from_secs(30) }
    }
}

/// What happens during a download.
pub enum Event<'a> {
    /// Bytes of the file that are here, of how many.
    At(u64, u64),
    /// An attempt failed; the next one begins after the pause.
    Retry { reason: &'a str, pause: Duration },
}

/// A client with its time limits. Proxies come from the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`).
pub struct Client {
    agent: Agent,
    patience: Patience,
}

/// Why an attempt failed.
enum Failure {
    /// Worth another attempt, after this pause if the server named one.
    Passing(String, Option<Duration>),
    Final(FetchError),
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        Self::Final(error)
    }
}

impl Client {
    pub fn new(patience: Patience) -> Result<Self, FetchError> {
        let limit = Some(patience.stall);
        let mut tls = TlsConfig::builder();
        if let Some(path) = std::env::var_os(CERTIFICATES).filter(|path| !path.is_empty()) {
            tls = tls.root_certs(certificates(Path::new(&path))?);
        }
        let config = Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            .max_redirects(REDIRECTS)
            .user_agent(concat!("linformer/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(limit)
            .timeout_connect(limit)
            .timeout_send_request(limit)
            .timeout_recv_response(limit)
            .timeout_per_read(limit)
            .build();
        Ok(Self { agent: config.into(), patience })
    }

    /// Makes `to` the remote file. A `to` that is already that file costs nothing but its check.
    pub fn download(&self, remote: &Remote, to: &Path, watch: &mut dyn FnMut(Event)) -> Result<(), FetchError> {
        if to.exists() && differs(to, remote)?.is_none() {
            return Ok(());
        }
        let part = Part::of(to);
        // A file that keeps changing would make progress for ever: starting over counts by itself.
        let (mut failures, mut fresh_starts) = (0, 0);
        loop {
            let before = part.bytes();
            let (reason, wait) = match self.attempt(remote, &part, watch) {
                Ok(()) => return part.publish(to),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(reason, wait)) => (reason, wait),
            };
            let now = part.bytes();
            failures = if now >= before + PROGRESS { 1 } else { failures + 1 };
            fresh_starts += u32::from(now < before);
            let failures = failures.max(fresh_starts);
            if failures >= self.patience.attempts {
                let kept = match now {
                    0 => String::new(),
                    bytes => format!("; {bytes} of {} bytes are kept, run the same command again to go on", remote.bytes),
                };
                return Err(remote.error(format!("{reason} (attempt {failures} of {}){kept}", self.patience.attempts)));
            }
            let pause = wait.unwrap_or(FIRST_PAUSE * 2u32.pow(failures.min(10) - 1)).min(LONGEST_PAUSE);
            watch(Event::Retry { reason: &reason, pause });
            std::thread::sleep(pause);
        }
    }

    /// Makes `part` the whole and right file, with one request at most.
    fn attempt(&self, remote: &Remote, part: &Part, watch: &mut dyn FnMut(Event)) -> Result<(), Failure> {
        let from_one_answer = part.bytes() != remote.bytes && self.request(remote, part, watch)?;
        let Some(found) = differs(&part.path, remote)? else { return Ok(()) };
        part.discard()?;
        if !from_one_answer {
            // They do not fit together: the file was changed between two attempts.
            return Err(Failure::Passing("the pieces of several attempts do not make the expected file; starting over".into(), None));
        }
        let short = |sha256: &str| sha256.get(..16).unwrap_or_default().to_string();
        let message = format!(
            "its SHA-256 is {}..., expected {}...: the file there is not the one this program knows; nothing was kept; try a mirror with --base",
            short(&found),
            short(&remote.sha256)
        );
        Err(remote.error(message).into())
    }

    /// One request; the rest of the file goes to the end of `part`. Gives whether the whole file came with it.
    fn request(&self, remote: &Remote, part: &Part, watch: &mut dyn FnMut(Event)) -> Result<bool, Failure> {
        if part.bytes() > remote.bytes {
            part.discard()?;
        }
        let offset = part.bytes();
        let mut request = self.agent.get(&remote.url).header("Accept-Encoding", "identity");
        if offset > 0 {
            request = request.header("Range", format!("bytes={offset}-"));
            if let Some(version) = part.version(&remote.shown()) {
                request = request.header("If-Range", version);
            }
        }
        let response = request.call().map_err(|error| remote.failure(error))?;
        let resumed = answer(remote, part, offset, &response)?;
        if !resumed {
            part.begin(&remote.shown(), version(response.headers()))?;
        }
        self.copy(remote, part, response.into_body(), if resumed { offset } else { 0 }, watch)?;
        Ok(!resumed)
    }

    fn copy(&self, remote: &Remote, part: &Part, body: Body, offset: u64, watch: &mut dyn FnMut(Event)) -> Result<(), Failure> {
        let io = FetchError::io(&part.path);
        let mut file = OpenOptions::new().append(true).open(&part.path).map_err(io)?;
        let (mut body, mut at, mut buffer) = (body.into_reader(), offset, vec![0; 1 << 16]);
        let (mut window, mut in_window) = (Instant::now(), 0);
        watch(Event::At(at, remote.bytes));
        loop {
            let count = body.read(&mut buffer).map_err(|e| Failure::Passing(reading(e, at, remote), None))?;
            if count == 0 {
                break;
            }
            at += count as u64;
            if at > remote.bytes {
                part.discard()?;
                return Err(remote
                    .error(format!(
                        "more than the expected {} bytes came; the file there is another one; try a mirror with --base",
                        remote.bytes
                    ))
                    .into());
            }
            file.write_all(&buffer[..count]).map_err(FetchError::io(&part.path))?;
            watch(Event::At(at, remote.bytes));
            in_window += count as u64;
            if window.elapsed() >= self.patience.stall {
                if in_window < TRICKLE && at < remote.bytes {
                    return Err(Failure::Passing(stalled(at, remote), None));
                }
                (window, in_window) = (Instant::now(), 0);
            }
        }
        if at < remote.bytes {
            return Err(Failure::Passing(format!("the connection ended at {at} of {} bytes", remote.bytes), None));
        }
        Ok(())
    }
}

impl Remote {
    fn error(&self, message: String) -> FetchError {
        FetchError::Download { url: self.shown(), message }
    }

    /// The address without a name and a password in it: those are for the server alone.
    pub fn shown(&self) -> String {
        let Some((scheme, rest)) = self.url.split_once("://") else { return self.url.clone() };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        format!("{scheme}://{}/{path}", host.rsplit('@').next().unwrap_or(host))
    }

    /// A request that got no answer.
    fn failure(&self, error: Error) -> Failure {
        let text = error.to_string();
        let refused = |message: String| Failure::Final(self.error(message));
        match error {
            Error::TooManyRedirects => refused(format!("more than {REDIRECTS} redirects, perhaps in a circle; try a mirror with --base")),
            Error::BadUri(_) | Error::Http(_) | Error::InvalidProxyUrl => {
                refused(format!("{text}; is the address (--base, LINFORMER_DATA_BASE) or the proxy (HTTPS_PROXY) right?"))
            }
            _ if text.contains("certificate") => {
                refused(format!("{text}; behind a proxy that signs for others, name its certificate file in {CERTIFICATES}"))
            }
            Error::HostNotFound => {
                Failure::Passing("the host was not found; is there a network, or a proxy to name in HTTPS_PROXY?".into(), None)
            }
            Error::Timeout(_) => Failure::Passing("no answer in time".into(), None),
            _ => Failure::Passing(text, None),
        }
    }
}

/// What the answer means: true for the rest of the file from `offset` on, false for the file from its start.
fn answer(remote: &Remote, part: &Part, offset: u64, response: &Response<Body>) -> Result<bool, Failure> {
    let (status, headers) = (response.status(), response.headers());
    match status {
        StatusCode::OK => {
            if let Some(length) = header(headers, "content-length").and_then(|length| length.parse::<u64>().ok()) {
                expect_size(remote, length, headers)?;
            }
            Ok(false)
        }
        StatusCode::PARTIAL_CONTENT if offset > 0 => {
            let (start, total) = header(headers, "content-range").and_then(content_range).unwrap_or((u64::MAX, None));
            if let Some(total) = total {
                expect_size(remote, total, headers)?;
            }
            if start != offset {
                part.discard()?;
                return Err(Failure::Passing("the server sent another part of the file than was asked for; starting over".into(), None));
            }
            Ok(true)
        }
        StatusCode::RANGE_NOT_SATISFIABLE => {
            part.discard()?;
            Err(Failure::Passing("the server has no more of the file; starting over".into(), None))
        }
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
            Err(Failure::Passing(format!("the server answered {status}"), retry_after(headers)))
        }
        _ if status.is_server_error() => Err(Failure::Passing(format!("the server answered {status}"), retry_after(headers))),
        _ => Err(remote.error(format!("the server answered {status}; the file may have moved: try a mirror with --base")).into()),
    }
}

fn expect_size(remote: &Remote, found: u64, headers: &HeaderMap) -> Result<(), Failure> {
    if found == remote.bytes {
        return Ok(());
    }
    let page = match header(headers, "content-type") {
        Some(kind) if kind.starts_with("text/html") => " (a web page: does a proxy or a login stand between?)",
        _ => "",
    };
    let message = format!("the file there has {found} bytes, expected {}{page}; try a mirror with --base", remote.bytes);
    Err(remote.error(message).into())
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// `bytes 100-199/1000` -> 100 and 1000; `*` for the total is none.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.trim().parse().ok()?, total.trim().parse().ok()))
}

/// Seconds only; a date is not worth a parser here.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    header(headers, "retry-after")?.parse().ok().map(Duration::from_secs)
}

/// What `If-Range` may name: a strong ETag, or the date.
fn version(headers: &HeaderMap) -> Option<String> {
    let strong = header(headers, "etag").filter(|tag| tag.starts_with('"'));
    strong.or_else(|| header(headers, "last-modified")).map(str::to_string)
}

fn reading(error: std::io::Error, at: u64, remote: &Remote) -> String {
    let timeout = error.kind() == std::io::ErrorKind::TimedOut
        || error.get_ref().and_then(|e| e.downcast_ref::<Error>()).is_some_and(|e| matches!(e, Error::Timeout(_)));
    if timeout {
        return stalled(at, remote);
    }
    format!("the connection broke at {at} of {} bytes ({error})", remote.bytes)
}

fn stalled(at: u64, remote: &Remote) -> String {
    format!("the transfer stalled at {at} of {} bytes", remote.bytes)
}

/// The SHA-256 of a file that is not the expected one; none where it is.
fn differs(path: &Path, remote: &Remote) -> Result<Option<String>, FetchError> {
    let (bytes, sha256) = file_sha256(path).map_err(FetchError::io(path))?;
    Ok(((bytes, sha256.as_str()) != (remote.bytes, remote.sha256.as_str())).then_some(sha256))
}

fn certificates(path: &Path) -> Result<RootCerts, FetchError> {
    let pem = fs::read(path).map_err(FetchError::io(path))?;
    let all: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    match all.len() {
        0 => Err(FetchError::Content { path: path.into(), message: format!("no certificate in PEM form; {CERTIFICATES} names this file") }),
        _ => Ok(RootCerts::Specific(Arc::new(all))),
    }
}

/// The unfinished file, and beside it whose version of the file it is.
struct Part {
    path: PathBuf,
    about: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct About {
    url: String,
    version: Option<String>,
}

impl Part {
    fn of(target: &Path) -> Self {
        let beside = |ending: &str| {
            let mut name = target.file_name().unwrap_or_default().to_os_string();
            name.push(ending);
            target.with_file_name(name)
        };
        Self { path: beside(".part"), about: beside(".part.json") }
    }

    fn bytes(&self) -> u64 {
        fs::metadata(&self.path).map(|m| m.len()).unwrap_or(0)
    }

    /// An empty file for this version.
    fn begin(&self, url: &str, version: Option<String>) -> Result<(), FetchError> {
        File::create(&self.path).map_err(FetchError::io(&self.path))?;
        let about = About { url: url.into(), version };
        let text = serde_json::to_vec(&about).unwrap_or_default();
        durable::replace(&self.about, &text).map_err(FetchError::io(&self.about))
    }

    /// The version at this address that the file is a part of.
    fn version(&self, url: &str) -> Option<String> {
        let about: About = serde_json::from_slice(&fs::read(&self.about).ok()?).ok()?;
        about.version.filter(|_| about.url == url)
    }

    fn discard(&self) -> Result<(), FetchError> {
        for path in [&self.path, &self.about] {
            match fs::remove_file(path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(FetchError::io(path)(e)),
                _ => {}
            }
        }
        Ok(())
    }

    fn publish(&self, to: &Path) -> Result<(), FetchError> {
        let publish = || {
            File::open(&self.path)?.sync_all()?;
            durable::publish(&self.path, to)
        };
        publish().map_err(FetchError::io(to))?;
        self.discard()
    }
}
