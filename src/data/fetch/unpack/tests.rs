//! Archives of every hostile kind: refused with the entry named, or unpacked without harm.

use super::*;
use crate::random::{Purpose, Stream};
use flate2::{write::GzEncoder, Compression};
use std::io::{Cursor, Write};
use zip::{write::FileOptions, ZipWriter};

const ALL: Wanted = Wanted { root: "", only: &[] };

/// A tar entry with exactly this name, whatever it is.
fn tar_entry(tar: &mut Vec<u8>, name: &[u8], kind: EntryType, content: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_mode(0o777);
    header.set_size(content.len() as u64);
    if kind == EntryType::Symlink || kind == EntryType::Link {
        header.set_link_name("/etc/passwd").unwrap();
    }
    header.set_cksum();
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

fn gz(mut tar: Vec<u8>) -> Vec<u8> {
    tar.extend_from_slice(&[0; 1024]);
    let mut gz = GzEncoder::new(Vec::new(), Compression::default());
    gz.write_all(&tar).unwrap();
    gz.finish().unwrap()
}

fn tar_of(entries: &[(&[u8], EntryType, &[u8])]) -> Vec<u8> {
    let mut tar = Vec::new();
    entries.iter().for_each(|(name, kind, content)| tar_entry(&mut tar, name, *kind, content));
    gz(tar)
}

fn zip_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in entries {
        zip.start_file(*name, FileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn refused(ending: &str, bytes: &[u8]) -> String {
    let lab = tempfile::tempdir().unwrap();
    fs::create_dir(lab.path().join("in")).unwrap();
    let archive = lab.path().join(format!("a{ending}"));
    fs::write(&archive, bytes).unwrap();
    let error = unpack(&archive, ALL, &lab.path().join("in/out"), Limits::default()).unwrap_err().to_string();
    assert_eq!(names(lab.path()), [format!("a{ending}"), "in".into()], "{error}");
    assert!(error.ends_with("; nothing was unpacked") && !error.contains('\n'), "{error}");
    error
}

/// Everything below a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let entry = entry.unwrap();
            names.push(entry.path().strip_prefix(folder).unwrap().to_string_lossy().into_owned());
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            }
        }
    }
    names.sort();
    names
}

#[test]
fn only_what_is_wanted_is_unpacked_without_the_modes_of_the_archive() {
    use std::os::unix::fs::PermissionsExt;
    let entries: [(&[u8], EntryType, &[u8]); 4] = [
        (b"./top/", EntryType::Directory, b""),
        (b"./top/a.txt", EntryType::Regular, b"A"),
        (b"./top/sub/b.txt", EntryType::Regular, b"BB"),
        (b"other/c.txt", EntryType::Regular, b"C"),
    ];
    let zip = zip_of(&[("top/a.txt", b"A"), ("top/sub/b.txt", b"BB"), ("other/Icon\r", b"C")]);
    for (ending, bytes) in [(".tar.gz", tar_of(&entries)), (".tgz", tar_of(&entries)), (".zip", zip.clone()), (".whl", zip)] {
        let lab = tempfile::tempdir().unwrap();
        let (archive, out) = (lab.path().join(format!("a{ending}")), lab.path().join("out"));
        fs::write(&archive, &bytes).unwrap();
        assert_eq!(unpack(&archive, Wanted { root: "top", only: &[] }, &out, Limits::default()).unwrap(), 2);
        assert_eq!(names(&out), ["a.txt", "sub", "sub/b.txt"]);
        assert_eq!(fs::read(out.join("sub/b.txt")).unwrap(), b"BB");
        assert_eq!(fs::metadata(out.join("a.txt")).unwrap().permissions().mode() & 0o022, 0, "writable by others");
        // A folder that is there already is no place to unpack into.
        assert!(unpack(&archive, ALL, &out, Limits::default()).is_err());
        assert_eq!(names(&out).len(), 3);
        fs::remove_dir_all(&out).unwrap();
        assert_eq!(unpack(&archive, Wanted { root: "top", only: &["sub/b.txt"] }, &out, Limits::default()).unwrap(), 1);
        fs::remove_dir_all(&out).unwrap();
        let error = unpack(&archive, Wanted { root: "top", only: &["a.txt", "z.txt"] }, &out, Limits::default()).unwrap_err();
        assert!(error.to_string().contains("no file top/z.txt in it") && !out.exists(), "{error}");
    }
}

#[test]
fn hostile_names_are_refused_and_named() {
    let bad: [(&str, &str); 8] = [
        ("../evil.txt", "leads out"),
        ("a/../../evil.txt", "leads out"),
        ("a/..", "leads out"),
        ("/tmp/evil.txt", "absolute"),
        ("C:/evil.txt", "absolute"),
        ("..\\evil.txt", "backslash"),
        ("a\0b", "NUL"),
        ("./", "without a name"),
    ];
    for (name, reason) in bad {
        // A name in a tar header ends at the first NUL; one with a slash at its end is a folder in a zip.
        if !name.contains('\0') {
            let error =
                refused(".tar.gz", &tar_of(&[(b"good.txt", EntryType::Regular, b"x"), (name.as_bytes(), EntryType::Regular, b"x")]));
            assert!(error.contains(&format!("entry {name:?}")) && error.contains(reason), "{name}: {error}");
        }
        if name != "./" {
            let error = refused(".zip", &zip_of(&[("good.txt", b"x"), (name, b"x")]));
            assert!(error.contains(&format!("entry {name:?}")) && error.contains(reason), "{name}: {error}");
        }
    }
}

#[test]
fn names_that_are_not_utf8_are_refused() {
    let error = refused(".tar.gz", &tar_of(&[(b"caf\xe9.txt", EntryType::Regular, b"x")]));
    assert!(error.contains("entry \"caf\u{fffd}.txt\": the name is not UTF-8"), "{error}");
    let mut zip = zip_of(&[("caf#.txt", b"x")]);
    for at in 0..zip.len() - 8 {
        if &zip[at..at + 8] == b"caf#.txt" {
            zip[at + 3] = 0xe9;
        }
    }
    let error = refused(".zip", &zip);
    assert!(error.contains("the name is not UTF-8"), "{error}");
}

#[test]
fn links_devices_and_doubles_are_refused() {
    for (kind, reason) in [
        (EntryType::Symlink, "symbolic link"),
        (EntryType::Link, "hard link"),
        (EntryType::Char, "device"),
        (EntryType::Block, "device"),
        (EntryType::Fifo, "device"),
        (EntryType::new(b'V'), "neither a file nor a folder"),
    ] {
        let error = refused(".tar.gz", &tar_of(&[(b"good.txt", EntryType::Regular, b"x"), (b"bad", kind, b"")]));
        assert!(error.contains("entry \"bad\"") && error.contains(reason), "{error}");
    }
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    zip.add_symlink("bad", "/etc/passwd", FileOptions::default()).unwrap();
    let error = refused(".zip", &zip.finish().unwrap().into_inner());
    assert!(error.contains("entry \"bad\": a symbolic link"), "{error}");

    let error = refused(".tar.gz", &tar_of(&[(b"a/b", EntryType::Regular, b"x"), (b"./a//b", EntryType::Regular, b"y")]));
    assert!(error.contains("entry \"./a//b\": the name appears twice"), "{error}");
    let error = refused(".zip", &zip_of(&[("a", b"x"), ("a", b"y")]));
    assert!(error.contains("entry \"a\": the name appears twice"), "{error}");
    // A file where another entry needs a folder.
    let error = refused(".tar.gz", &tar_of(&[(b"a", EntryType::Regular, b"x"), (b"a/b", EntryType::Regular, b"y")]));
    assert!(error.contains("entry \"a/b\""), "{error}");
}

#[test]
fn bombs_are_refused_before_they_fill_the_disk() {
    let zeros = vec![0; 8 << 20];
    for (ending, bytes) in [(".zip", zip_of(&[("zeros", &zeros)])), (".tar.gz", tar_of(&[(b"zeros", EntryType::Regular, &zeros)]))] {
        let error = refused(ending, &bytes);
        assert!(error.contains("entry \"zeros\"") && error.contains("bytes come out of it"), "{error}");
    }
    // What is not wanted has to go through the decompressor of a tar.gz as well.
    let hidden = tar_of(&[(b"x/good", EntryType::Regular, b"x"), (b"zeros", EntryType::Regular, &zeros)]);
    let lab = tempfile::tempdir().unwrap();
    fs::write(lab.path().join("a.tgz"), hidden).unwrap();
    let error = unpack(&lab.path().join("a.tgz"), Wanted { root: "x", only: &[] }, &lab.path().join("out"), Limits::default()).unwrap_err();
    assert!(error.to_string().contains("bytes come out of it"), "{error}");

    // A name that is a bomb: the reader would hold it in memory.
    let error =
        refused(".tgz", &tar_of(&[(b"././@LongLink", EntryType::GNULongName, &zeros[..200_000]), (b"a", EntryType::Regular, b"x")]));
    assert!(error.contains("a name or header of more than 65536 bytes"), "{error}");
    let long = [b"b/".repeat(100).as_slice(), b"end\0"].concat();
    let (lab, archive) =
        (tempfile::tempdir().unwrap(), tar_of(&[(b"././@LongLink", EntryType::GNULongName, &long), (b"a", EntryType::Regular, b"x")]));
    fs::write(lab.path().join("a.tgz"), archive).unwrap();
    assert_eq!(unpack(&lab.path().join("a.tgz"), ALL, &lab.path().join("out"), Limits::default()).unwrap(), 1);

    let many: Vec<String> = (0..30).map(|i| i.to_string()).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|name| (name.as_str(), &b""[..])).collect();
    let lab = tempfile::tempdir().unwrap();
    fs::write(lab.path().join("a.zip"), zip_of(&many)).unwrap();
    let limits = Limits { entries: 20, ..Limits::default() };
    let error = unpack(&lab.path().join("a.zip"), ALL, &lab.path().join("out"), limits).unwrap_err();
    assert!(error.to_string().contains("more than 20 entries"), "{error}");
}

#[test]
fn archives_that_are_cut_off_anywhere_are_refused() {
    let text: Vec<u8> = (0..3000u32).flat_map(|i| i.to_string().into_bytes()).collect();
    let tar = tar_of(&[(b"a", EntryType::Regular, &text), (b"b", EntryType::Regular, &text)]);
    let zip = zip_of(&[("a", &text), ("b", &text)]);
    for (ending, whole) in [(".tar.gz", tar), (".zip", zip)] {
        for share in 0..20 {
            refused(ending, &whole[..whole.len() * share / 20]);
        }
        refused(ending, &whole[..whole.len() - 1]);
        // One bit of the content changed: both formats carry checksums.
        let mut flipped = whole.clone();
        flipped[whole.len() / 3] ^= 1;
        refused(ending, &flipped);
    }
}

#[test]
fn archives_with_any_byte_changed_do_no_harm() {
    let text: Vec<u8> = (0..200u32).flat_map(|i| i.to_string().into_bytes()).collect();
    let tar = tar_of(&[(b"top/a", EntryType::Regular, &text), (b"top/b", EntryType::Regular, b"b")]);
    for (ending, whole) in [(".tar.gz", tar), (".zip", zip_of(&[("top/a", &text), ("top/b", b"b")]))] {
        let lab = tempfile::tempdir().unwrap();
        fs::create_dir(lab.path().join("in")).unwrap();
        let archive = lab.path().join(format!("a{ending}"));
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&archive, bytes).unwrap();
            let result = unpack(&archive, ALL, &lab.path().join("in/out"), Limits::default());
            assert_eq!(lab.path().join("in/out").exists(), result.is_ok());
            let outside = names(lab.path()).into_iter().find(|name| !(name.starts_with("in") || name.starts_with("a.")));
            assert_eq!(outside, None, "{ending} byte {at}");
            let _ = fs::remove_dir_all(lab.path().join("in/out"));
        }
    }
}

/// Random archives of names that mean harm: whatever happens, nothing outside the folder, and no link inside it.
#[test]
fn no_random_archive_writes_outside_its_folder() {
    let parts = ["..", ".", "", "a", "b", "/", "\\", "C:", "ü", "...", " ", "~", "$HOME", "%2e%2e"];
    let kinds = [EntryType::Regular, EntryType::Regular, EntryType::Regular, EntryType::Directory, EntryType::Symlink, EntryType::Link];
    let (mut accepted, mut refused) = (0, 0);
    for case in 0..200 {
        let mut draws = Stream::new(7, Purpose::Derivation, case).draws();
        let mut pick = |n: usize| draws.below(n as u64) as usize;
        let entries: Vec<(String, EntryType)> = (0..1 + pick(3))
            .map(|_| ((0..1 + pick(4)).map(|_| parts[pick(parts.len())]).collect::<Vec<_>>().join("/"), kinds[pick(kinds.len())]))
            .collect();
        let tar: Vec<(&[u8], EntryType, &[u8])> = entries.iter().map(|(name, kind)| (name.as_bytes(), *kind, &b""[..])).collect();
        let zip: Vec<(&str, &[u8])> = entries.iter().map(|(name, _)| (name.as_str(), &b"x"[..])).collect();
        for (ending, bytes) in [(".tar.gz", tar_of(&tar)), (".zip", zip_of(&zip))] {
            let lab = tempfile::tempdir().unwrap();
            fs::create_dir(lab.path().join("in")).unwrap();
            let archive = lab.path().join(format!("a{ending}"));
            fs::write(&archive, bytes).unwrap();
            match unpack(&archive, ALL, &lab.path().join("in/out"), Limits::default()) {
                Ok(_) => accepted += 1,
                Err(_) => refused += 1,
            }
            for name in names(lab.path()) {
                let inside = name == "in" || name.starts_with("in/out") || name == format!("a{ending}");
                let link = fs::symlink_metadata(lab.path().join(&name)).unwrap().file_type().is_symlink();
                assert!(inside && !link, "{name} from {entries:?}");
            }
        }
    }
    assert!(accepted > 20 && refused > 150, "{accepted} accepted, {refused} refused");
}
