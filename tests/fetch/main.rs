//! `data fetch` against a real server that misbehaves, and against hostile archives: whole or absent, whatever happens.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;
mod crash;
mod packages;
mod server;

use common::{snapshot, Lab, Ran};
use serde_json::{json, Value};
use server::{proxy, redirect, status, tls_server, Act, Server};
use std::io::{Cursor, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use zip::{write::FileOptions, ZipWriter};

/// A zip of `toy/train.tsv` that does not compress, so that it has some length.
fn toy_zip() -> Vec<u8> {
    let mut state = 1u64;
    let noise: String = (0..300_000)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            char::from(b'a' + (state >> 33) as u8 % 26)
        })
        .collect();
    zip_of(&[("toy/train.tsv", format!("sentence\tlabel\n{noise}\t1\n").as_bytes()), ("toy/dev.tsv", b"sentence\tlabel\nx\t1\n")])
}

fn zip_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in entries {
        zip.start_file(*name, FileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn row(file: &str, body: &[u8]) -> Value {
    json!({
        "name": "toy", "kind": "task", "about": "a toy", "licence": "none", "home": "here", "folder": "tasks/toy", "config": "data.task=toy",
        "files": [{"from": {"url": format!("https://example.invalid/some/path/{file}")}, "bytes": body.len(), "sha256": linformer::digest::sha256(body)}],
        "arrange": {"unpack": {"root": "toy", "only": []}}
    })
}

/// A folder with a catalogue of one row, whose file is expected to be `body`.
struct Fetching {
    lab: Lab,
    server: Server,
}

impl Fetching {
    fn new(body: &[u8], acts: &[Act]) -> Self {
        let fetching = Self { lab: Lab::new(), server: Server::new(acts) };
        fetching.lab.write("catalogue.json", json!([row("toy.zip", body)]).to_string());
        fetching
    }

    fn command(&self, more: &[&str]) -> Command {
        let base = self.server.base();
        let args = ["data", "fetch", "toy", "--to", "data", "--catalogue", "catalogue.json", "--base", &base];
        self.lab.command(&[&args, more].concat())
    }

    fn run(&self, more: &[&str]) -> Ran {
        common::ran(self.command(more).output().unwrap())
    }

    /// It works, and what was made is whole.
    fn works(&self, more: &[&str]) -> Ran {
        let ran = self.run(more);
        assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
        assert!(ran.stdout.starts_with("toy: fetched: data/tasks/toy; data.task=toy"), "{}", ran.stdout);
        assert_eq!(self.lab.read("data/tasks/toy/dev.tsv"), "sentence\tlabel\nx\t1\n");
        assert_eq!(self.lab.read("data/tasks/toy/train.tsv").len(), 300_018);
        // Nothing else is left, and nothing is writable by others.
        let files = snapshot(&self.lab.path("data"));
        assert_eq!(files.len(), 3, "{:?}", files.iter().map(|(path, _)| path).collect::<Vec<_>>());
        for (path, _) in files {
            let modes = [&path, path.parent().unwrap()].map(|p| p.metadata().unwrap().permissions().mode());
            assert!(modes.iter().all(|mode| mode & 0o002 == 0) && modes[0] & 0o111 == 0, "{}: {modes:?}", path.display());
        }
        ran
    }

    /// It fails with one line, and the target is absent.
    fn fails(&self, more: &[&str]) -> String {
        let ran = self.run(more);
        assert_eq!(ran.code, 1, "{}{}", ran.stdout, ran.stderr);
        assert!(!self.lab.path("data/tasks/toy").exists());
        assert_eq!(ran.stdout, "");
        ran.stderr.lines().last().unwrap().to_string()
    }
}

fn serve(body: &[u8]) -> Act {
    Act::Serve { etag: "\"v\"", body: body.into() }
}

fn cut(after: usize, body: &[u8]) -> Act {
    Act::Cut { after, etag: "\"v\"", body: body.into() }
}

#[test]
fn a_fetch_is_whole_and_a_second_one_asks_nobody() {
    let zip = toy_zip();
    let fetching = Fetching::new(&zip, &[serve(&zip)]);
    let listed =
        |ran: Ran| ran.stdout.lines().find(|l| l.starts_with("toy")).unwrap().split_whitespace().map(str::to_string).collect::<Vec<_>>();
    let list = ["data", "list", "--to", "data", "--catalogue", "catalogue.json"];
    assert_eq!(listed(fetching.lab.ok(&list))[4], "no");
    fetching.works(&[]);
    assert_eq!(fetching.server.requests().iter().map(|r| r.path.as_str()).collect::<Vec<_>>(), ["/some/path/toy.zip"]);
    let before = snapshot(&fetching.lab.path("data"));
    let again = fetching.run(&[]);
    assert!(again.code == 0 && again.stdout.starts_with("toy: is here already: data/tasks/toy"), "{}{}", again.stdout, again.stderr);
    assert_eq!((fetching.server.requests().len(), snapshot(&fetching.lab.path("data"))), (1, before));
    assert_eq!(listed(fetching.lab.ok(&list))[4], "yes");
    // What data list prints as JSON is itself a catalogue.
    fetching.lab.write("again.json", fetching.lab.ok(&[&list[..], &["--json"]].concat()).stdout);
    assert_eq!(listed(fetching.lab.ok(&["data", "list", "--catalogue", "again.json", "--to", "data"]))[4], "yes");

    // A file that was changed is neither taken for the fetched one nor overwritten.
    fetching.lab.write("data/tasks/toy/dev.tsv", "mine");
    let changed = fetching.run(&[]);
    assert!(changed.code == 1 && changed.stderr.contains("data/tasks/toy: files were changed"), "{}", changed.stderr);
    assert_eq!(fetching.lab.read("data/tasks/toy/dev.tsv"), "mine");
    assert_eq!(listed(fetching.lab.ok(&list))[4], "changed");
}

#[test]
fn a_folder_of_ones_own_is_not_touched() {
    let zip = toy_zip();
    let fetching = Fetching::new(&zip, &[serve(&zip)]);
    fetching.lab.write("data/tasks/toy/train.tsv", "mine");
    let ran = fetching.run(&[]);
    assert!(ran.code == 1 && ran.stderr.contains("it is here, but data fetch did not make it; move it away"), "{}", ran.stderr);
    assert_eq!((fetching.lab.read("data/tasks/toy/train.tsv").as_str(), fetching.server.requests().len()), ("mine", 0));
}

#[test]
fn a_cut_connection_is_taken_up_where_it_ended() {
    let zip = toy_zip();
    let fetching = Fetching::new(&zip, &[cut(70_000, &zip), cut(50_000, &zip), serve(&zip)]);
    let ran = fetching.works(&[]);
    assert!(ran.stderr.contains("trying again in"), "{}", ran.stderr);
    let asked: Vec<_> = fetching.server.requests().into_iter().map(|r| (r.range, r.if_range)).collect();
    let resumed = |at: &str| (Some(format!("bytes={at}-")), Some("\"v\"".to_string()));
    assert_eq!(asked, [(None, None), resumed("70000"), resumed("120000")]);
}

#[test]
fn a_fetch_that_gave_up_goes_on_in_the_next_process() {
    let zip = toy_zip();
    let fetching = Fetching::new(&zip, &[cut(70_000, &zip), serve(&zip)]);
    let error = fetching.fails(&["--attempts", "1"]);
    assert!(error.contains("/some/path/toy.zip: ") && error.contains(&format!("70000 of {} bytes are kept", zip.len())), "{error}");
    let listed = fetching.lab.ok(&["data", "list", "toy", "--catalogue", "catalogue.json"]).stdout;
    assert!(listed.contains("here     begun"), "{listed}");
    fetching.works(&[]);
    assert_eq!(fetching.server.requests()[1].range.as_deref(), Some("bytes=70000-"));
}

#[test]
fn killed_in_the_middle_it_leaves_nothing_half_and_goes_on_later() {
    let zip = toy_zip();
    let fetching = Fetching::new(&zip, &[Act::Stall { after: 90_000, body: zip.clone() }, serve(&zip)]);
    let mut child = fetching.command(&[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let part = fetching.lab.path("data/tasks/.toy.fetch/files/0/toy.zip.part");
    wait_for(|| part.metadata().is_ok_and(|m| m.len() == 90_000));
    // A second fetch of the same says so, and does not write into the first one's file.
    let second = fetching.run(&[]);
    assert!(second.code == 1 && second.stderr.contains("another process is fetching toy"), "{}", second.stderr);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!fetching.lab.path("data/tasks/toy").exists());
    fetching.works(&[]);
    assert_eq!(fetching.server.requests()[1].range.as_deref(), Some("bytes=90000-"));
}

fn wait_for(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "it did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_stalled_connection_is_broken_off() {
    let zip = toy_zip();
    let stall = |after| Act::Stall { after, body: zip.clone() };
    let silent = Act::Trickle { body: zip.clone() };
    let fetching = Fetching::new(&zip, &[stall(40_000), silent, serve(&zip)]);
    let ran = fetching.works(&["--timeout", "1"]);
    assert!(ran.stderr.contains("the transfer stalled at 40000 of"), "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("stalled").count(), 2, "a trickle is no progress: {}", ran.stderr);
}

#[test]
fn a_server_that_knows_no_ranges_sends_the_whole_file_again() {
    let zip = toy_zip();
    let fetching = Fetching::new(&zip, &[cut(70_000, &zip), Act::IgnoreRange { body: zip.clone() }]);
    fetching.works(&[]);
}

#[test]
fn a_file_that_changes_between_two_attempts_is_never_pieced_together() {
    let (zip, old) = (toy_zip(), vec![7; toy_zip().len()]);
    let before = Act::Cut { after: 70_000, etag: "\"old\"", body: old.clone() };
    // A server that keeps to If-Range sends the new file from its start ...
    let fetching = Fetching::new(&zip, &[before.clone(), serve(&zip)]);
    fetching.works(&[]);
    assert_eq!(fetching.server.requests()[1].if_range.as_deref(), Some("\"old\""));
    // ... one that does not is found out by the checksum, and asked again.
    let fetching = Fetching::new(&zip, &[before, Act::IgnoreIfRange { body: zip.clone() }]);
    let ran = fetching.works(&[]);
    assert!(ran.stderr.contains("do not make the expected file; starting over"), "{}", ran.stderr);
    let asked: Vec<_> = fetching.server.requests().into_iter().map(|r| r.range).collect();
    assert_eq!(asked, [None, Some("bytes=70000-".into()), None]);
}

#[test]
fn odd_answers_to_a_range_start_over() {
    let zip = toy_zip();
    let other = format!("HTTP/1.1 206 Partial Content\r\nContent-Length: 4\r\nContent-Range: bytes 5-8/{}\r\n\r\nabcd", zip.len());
    for odd in [status("416 Range Not Satisfiable", ""), Act::Raw(other.into_bytes())] {
        let fetching = Fetching::new(&zip, &[cut(70_000, &zip), odd, serve(&zip)]);
        fetching.works(&[]);
        assert_eq!(fetching.server.requests()[2].range, None);
    }
}

#[test]
fn wrong_bytes_and_wrong_lengths_are_refused_at_once() {
    let zip = toy_zip();
    let mut wrong = zip.clone();
    wrong[1000] ^= 1;
    let page = b"<html>please log in</html>";
    let page =
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{}", page.len(), String::from_utf8_lossy(page));
    // Without a length the end of the connection is the end of the file.
    let endless = [b"HTTP/1.1 200 OK\r\n\r\n".as_slice(), &zip, b"and more"].concat();
    for (act, reason) in [
        (serve(&wrong), "its SHA-256 is"),
        (serve(&zip[..5000]), "the file there has 5000 bytes, expected"),
        (serve(&[&zip[..], b"more"].concat()), "bytes, expected"),
        (Act::Raw(page.into_bytes()), "a web page: does a proxy or a login stand between?"),
        (Act::Raw(endless), "more than the expected"),
        (status("404 Not Found", ""), "the server answered 404 Not Found; the file may have moved: try a mirror with --base"),
        (status("403 Forbidden", ""), "the server answered 403 Forbidden"),
    ] {
        let fetching = Fetching::new(&zip, &[act]);
        let error = fetching.fails(&[]);
        assert!(error.contains("/some/path/toy.zip: ") && error.contains(reason), "{reason}: {error}");
        assert_eq!(fetching.server.requests().len(), 1, "{reason}: asked again");
        let kept = snapshot(&fetching.lab.path("data"));
        assert!(kept.iter().all(|(path, _)| path.file_name().unwrap() == "lock"), "{reason}: {kept:?}");
    }
}

#[test]
fn a_server_in_trouble_is_asked_again_and_in_the_end_given_up() {
    let zip = toy_zip();
    let error = status("500 Internal Server Error", "");
    let wait = |line| status(line, "Retry-After: 0\r\n");
    let (nothing, garbage) = (Act::Raw(Vec::new()), Act::Raw(b"garbage\r\n\r\n".to_vec()));
    let acts = [error.clone(), nothing, garbage, wait("503 Service Unavailable"), wait("429 Too Many Requests"), serve(&zip)];
    let fetching = Fetching::new(&zip, &acts);
    fetching.works(&["--attempts", "6"]);
    assert_eq!(fetching.server.requests().len(), 6);
    let fetching = Fetching::new(&zip, &[error]);
    let error = fetching.fails(&["--attempts", "2"]);
    assert!(error.contains("the server answered 500 Internal Server Error (attempt 2 of 2)"), "{error}");
    assert_eq!(fetching.server.requests().len(), 2);
}

#[test]
fn nobody_at_the_address_is_one_clear_line() {
    let zip = toy_zip();
    let mut fetching = Fetching::new(&zip, &[serve(&zip)]);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    fetching.server.port = closed;
    let error = fetching.fails(&["--attempts", "2"]);
    assert!(error.contains(&format!("http://127.0.0.1:{closed}/some/path/toy.zip: ")) && error.contains("(attempt 2 of 2)"), "{error}");
}

#[test]
fn redirects_are_followed_but_not_in_a_circle() {
    let zip = toy_zip();
    let fetching = Fetching::new(&zip, &[redirect("/elsewhere"), cut(70_000, &zip), redirect("/elsewhere"), serve(&zip)]);
    fetching.works(&[]);
    let asked: Vec<_> = fetching.server.requests().into_iter().map(|r| (r.path, r.range)).collect();
    assert_eq!(asked[3], ("/elsewhere".into(), Some("bytes=70000-".into())));
    let fetching = Fetching::new(&zip, &[redirect("/some/path/toy.zip")]);
    let error = fetching.fails(&[]);
    assert!(error.contains("more than 10 redirects, perhaps in a circle"), "{error}");
    assert_eq!(fetching.server.requests().len(), 11);
}

#[test]
fn a_hostile_archive_is_refused_with_the_entry_named() {
    let zeros = vec![0; 4 << 20];
    type Entries<'a> = &'a [(&'a str, &'a [u8])];
    let bad: [(Entries, &str); 5] = [
        (&[("toy/a", b"x"), ("../../evil", b"x")], "entry \"../../evil\": the path leads out of the folder"),
        (&[("toy/a", b"x"), ("/tmp/evil", b"x")], "entry \"/tmp/evil\": an absolute path"),
        (&[("toy/a", b"x"), ("toy/a", b"y")], "entry \"toy/a\": the name appears twice"),
        (&[("toy/zeros", &zeros)], "entry \"toy/zeros\": more than"),
        (&[("other/a", b"x")], "no file below toy in it"),
    ];
    for (entries, reason) in bad {
        let zip = zip_of(entries);
        let fetching = Fetching::new(&zip, &[serve(&zip)]);
        let error = fetching.fails(&[]);
        assert!(error.contains(reason) && error.ends_with("nothing was unpacked"), "{error}");
        let written = snapshot(fetching.lab.path("data").parent().unwrap());
        assert!(!written.iter().any(|(path, _)| path.ends_with("evil") || path.ends_with("a")), "{reason}");
    }
}

#[test]
fn what_cannot_be_fetched_is_said_before_anybody_is_asked() {
    let zip = toy_zip();
    let fetching = Fetching::new(&zip, &[serve(&zip)]);
    let lab = &fetching.lab;
    let says = |args: &[&str], reason: &str| {
        let ran = lab.run(args);
        assert!(ran.code != 0 && ran.stderr.contains(reason) && ran.stderr.trim_end().lines().count() == 1, "{args:?}: {}", ran.stderr);
    };
    says(&["data", "fetch", "sst"], "sst: nothing of this name can be fetched; did you mean sst2?");
    says(&["data", "fetch", "embedded", "--to", "data"], "it is part of the repository");
    says(&["data", "fetch", "rte", "--base", "/srv/mirror"], "--base /srv/mirror: expected an address such as https://");
    for (change, reason) in [
        (("folder", json!("../out")), "found the path \"../out\""),
        (("folder", json!("/out")), "found the path \"/out\""),
        (("arrange", json!({"place": ["../x"]})), "found the path \"../x\""),
        (("arrange", json!({"place": ["a", "b"]})), "1 files, expected 2"),
        (("licences", json!("x")), "unknown field `licences`"),
        (("files", json!([{"from": {"pip": ["--index-url=http://x", "1"]}, "bytes": 1, "sha256": "00"}])), "found the package"),
        (("files", json!([{"from": {"npm": ["toy", "1"]}, "bytes": 1, "sha256": "0F"}])), "found the SHA-256 \"0F\""),
        (("files", json!([{"from": {"npm": ["a b;c", "1"]}, "bytes": 1, "sha256": "00"}])), "found the package"),
    ] {
        let mut row = row("toy.zip", &zip);
        row[change.0] = change.1;
        lab.write("bad.json", json!([row]).to_string());
        says(&["data", "fetch", "toy", "--catalogue", "bad.json"], reason);
    }
    assert!(fetching.server.requests().is_empty());
    // The mirror can also be named by the environment.
    let mut command = lab.command(&["data", "fetch", "toy", "--catalogue", "catalogue.json"]);
    assert!(command.env("LINFORMER_DATA_BASE", fetching.server.base()).status().unwrap().success());
    assert_eq!(fetching.server.requests().len(), 1);
}

#[test]
fn https_asks_for_a_certificate_that_is_trusted_and_goes_through_a_proxy() {
    let zip = toy_zip();
    let fetching = Fetching::new(&zip, &[serve(&zip)]);
    let port = tls_server(zip.clone());
    let authority = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tls/ca.pem");
    let fetch = |host: &str, variables: &[(&str, &str)]| {
        let base = format!("https://{host}:{port}");
        let mut command = fetching.lab.command(&["data", "fetch", "toy", "--catalogue", "catalogue.json", "--base", &base]);
        common::ran(command.envs(variables.iter().copied()).output().unwrap())
    };
    let trusted = ("SSL_CERT_FILE", authority);
    for (host, variables, reason) in [
        ("localhost", &[][..], "behind a proxy that signs for others, name its certificate file in SSL_CERT_FILE"),
        ("127.0.0.1", &[trusted], "certificate"),
        ("localhost", &[("SSL_CERT_FILE", "catalogue.json")], "catalogue.json: no certificate in PEM form"),
        ("localhost", &[("SSL_CERT_FILE", "nowhere.pem")], "nowhere.pem: No such file"),
    ] {
        let ran = fetch(host, variables);
        assert!(ran.code == 1 && ran.stderr.contains(reason) && ran.stderr.lines().count() == 1, "{host}: {}", ran.stderr);
    }
    let (proxy_port, tunnels) = proxy();
    let proxy = format!("http://127.0.0.1:{proxy_port}");
    let ran = fetch("localhost", &[trusted, ("HTTPS_PROXY", &proxy)]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(*tunnels.lock().unwrap(), [format!("CONNECT localhost:{port} HTTP/1.1")]);
    std::fs::remove_dir_all(fetching.lab.path("data")).unwrap();
    // NO_PROXY, and a proxy where nobody is: only a direct connection can work.
    let ran = fetch("localhost", &[trusted, ("HTTPS_PROXY", "http://127.0.0.1:1"), ("NO_PROXY", "localhost")]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

#[test]
fn several_files_and_a_tar_are_laid_out() {
    let lab = Lab::new();
    let parts: [&[u8]; 3] = [b"one", b"two", b"three"];
    let tar = {
        let gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut tar = tar::Builder::new(gz);
        for name in ["aclImdb/train/pos/0_9.txt", "aclImdb/test/neg/1_2.txt", "aclImdb/README"] {
            let mut header = tar::Header::new_gnu();
            header.set_size(4);
            header.set_mode(0o100777);
            tar.append_data(&mut header, name, &b"text"[..]).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap()
    };
    let mut placed = row("x", parts[0]);
    placed["files"] = parts.map(|part| row("part", part)["files"][0].clone()).to_vec().into();
    placed["arrange"] = json!({"place": ["train/0.parquet", "train/1.parquet", "test/0.parquet"]});
    let mut reviews = row("aclImdb_v1.tar.gz", &tar);
    reviews["name"] = "reviews".into();
    reviews["folder"] = "glue/aclImdb".into();
    reviews["arrange"] = json!({"unpack": {"root": "aclImdb", "only": []}});
    lab.write("catalogue.json", json!([placed, reviews]).to_string());
    // What stops one does not stop the next; the three files stand for the second try.
    let server = Server::new(&[serve(parts[0]), serve(parts[1]), status("404 Not Found", ""), serve(&tar), serve(parts[2])]);
    let base = server.base();
    let fetch = ["data", "fetch", "toy", "reviews", "--catalogue", "catalogue.json", "--base", &base];
    let ran = lab.run(&fetch);
    assert!(ran.code == 1 && ran.stdout.starts_with("reviews: fetched"), "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("toy: http") && ran.stderr.ends_with("1 of 2 were not fetched: toy\n"), "{}", ran.stderr);
    let ran = lab.ok(&fetch);
    assert!(ran.stdout.starts_with("toy: fetched") && ran.stdout.contains("reviews: is here already"), "{}", ran.stdout);
    assert_eq!(server.requests().len(), 5);
    assert_eq!(["train/0", "train/1", "test/0"].map(|name| lab.read(&format!("data/tasks/toy/{name}.parquet"))), ["one", "two", "three"]);
    assert_eq!(lab.read("data/glue/aclImdb/train/pos/0_9.txt"), "text");
    let mode = lab.path("data/glue/aclImdb/README").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o113, 0, "{mode:o}: the mode of the archive");
}

#[test]
fn a_password_for_the_mirror_is_shown_and_written_nowhere() {
    let zip = toy_zip();
    let fetching = Fetching::new(&zip, &[cut(70_000, &zip), status("404 Not Found", ""), serve(&zip)]);
    let base = format!("http://me:secret@127.0.0.1:{}/", fetching.server.port);
    let command = ["data", "fetch", "toy", "--to", "data", "--catalogue", "catalogue.json", "--base", &base];
    let secret = |ran: &Ran| {
        let files = snapshot(&fetching.lab.path("data"));
        ran.stderr.contains("secret")
            || ran.stdout.contains("secret")
            || files.iter().any(|(_, bytes)| String::from_utf8_lossy(bytes).contains("secret"))
    };
    let ran = fetching.lab.run(&command);
    assert!(ran.code == 1 && ran.stderr.contains("404 Not Found") && !secret(&ran), "{}", ran.stderr);
    let ran = fetching.lab.ok(&command);
    assert!(ran.stdout.starts_with("toy: fetched") && !secret(&ran), "{}", ran.stdout);
    let asked = fetching.server.requests();
    assert_eq!((asked.len(), asked[2].range.as_deref(), asked[2].if_range.as_deref()), (3, Some("bytes=70000-"), Some("\"v\"")));
    assert!(asked.iter().all(|r| r.authorization.as_deref() == Some("Basic bWU6c2VjcmV0")), "{asked:?}");
}

/// A file that is another one at every request, and always long enough to look like progress.
#[test]
fn a_file_that_keeps_changing_is_given_up() {
    let (expected, other) = (vec![1u8; 3 << 20], vec![2u8; 3 << 20]);
    let part = |after| Act::Cut { after, etag: "\"v\"", body: other.clone() };
    let rest = Act::IgnoreIfRange { body: expected.clone() };
    let acts: Vec<Act> = (0..9).flat_map(|_| [part(2 << 20), rest.clone()]).collect();
    let fetching = Fetching::new(&expected, &acts);
    let error = fetching.fails(&["--attempts", "3"]);
    assert!(error.contains("do not make the expected file") && error.contains("(attempt 3 of 3)"), "{error}");
    assert_eq!(fetching.server.requests().len(), 6);
}

/// On a terminal there is a bar; tests without one see none.
#[test]
fn a_terminal_gets_a_bar() {
    let zip = toy_zip();
    let fetching = Fetching::new(&zip, &[cut(70_000, &zip), serve(&zip)]);
    let program = env!("CARGO_BIN_EXE_linformer");
    let line = format!("{program} data fetch toy --to data --catalogue catalogue.json --base {}", fetching.server.base());
    let ran = common::ran(
        Command::new("script").args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").current_dir(fetching.lab.path("")).output().unwrap(),
    );
    assert!(ran.code == 0 && ran.stdout.contains("KiB/s") && ran.stdout.contains("toy: fetched"), "{}", ran.stdout);
    let plain = Fetching::new(&zip, &[cut(70_000, &zip), serve(&zip)]).works(&[]);
    assert!(plain.stderr.lines().count() == 1 && !plain.stderr.contains("KiB"), "{}", plain.stderr);
}
