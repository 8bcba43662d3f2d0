//! Archives of strangers: zip and tar.gz, unpacked into a new folder and nowhere else.
//!
//! Every entry is looked at, wanted or not, and one bad entry refuses the whole archive: a name that is absolute, leads
//! upwards, is not UTF-8 or appears twice; a link, device or anything that is neither file nor folder; more entries or
//! bytes than the limits allow. Modes and owners in the archive are ignored, and no file is ever overwritten or followed.

use super::FetchError;
use flate2::read::GzDecoder;
use std::cell::Cell;
use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tar::EntryType;
use zip::ZipArchive;

/// Where an archive stops being plausible.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub entries: usize,
    /// Bytes that come out, together.
    pub bytes: u64,
    /// Bytes out for each byte of the archive (text reaches about 10, a bomb 1,000), from `small` on.
    pub ratio: u64,
    pub small: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 200_000, bytes: 4 << 30, ratio: 100, small: 1 << 20 }
    }
}

/// Bytes of names and headers before one entry of a tar.
const HEADERS: u64 = 1 << 16;

/// What of an archive is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Only what stands below this folder; its name is taken off. Empty: everything.
    pub root: &'a str,
    /// The files that are unpacked, all of which must be there; empty: all.
    pub only: &'a [&'a str],
}

/// Unpacks into `into`, which must not exist yet and does not exist after an error. Gives the number of files.
///
/// The kind is told by the name: `.zip` and `.whl` (a wheel is a zip), `.tar.gz` and `.tgz`.
pub fn unpack(archive: &Path, wanted: Wanted, into: &Path, limits: Limits) -> Result<usize, FetchError> {
    fs::create_dir(into).map_err(FetchError::io(into))?;
    open(archive, wanted, into, limits).inspect_err(|_| drop(fs::remove_dir_all(into)))
}

fn open(archive: &Path, wanted: Wanted, into: &Path, limits: Limits) -> Result<usize, FetchError> {
    let file = File::open(archive).map_err(FetchError::io(archive))?;
    let size = file.metadata().map_err(FetchError::io(archive))?.len();
    let most = limits.bytes.min(size.saturating_mul(limits.ratio).max(limits.small));
    let meter = Meter::new(most);
    let mut unpacker = Unpacker { archive, wanted, into, limits, entries: 0, files: 0, seen: HashSet::new() };
    let name = archive.to_string_lossy();
    if name.ends_with(".zip") || name.ends_with(".whl") {
        unpacker.zip(file, &meter)?;
    } else {
        unpacker.tar_gz(file, &meter)?;
    }
    for name in wanted.only {
        if !into.join(name).is_file() {
            return Err(unpacker.error(format!("no file {} in it", Path::new(wanted.root).join(name).display())));
        }
    }
    match unpacker.files {
        0 => Err(unpacker.error(format!("no file below {} in it", if wanted.root.is_empty() { "/" } else { wanted.root }))),
        files => Ok(files),
    }
}

/// What an entry says that it is.
enum Kind {
    File,
    Folder,
    Other(&'static str),
}

struct Unpacker<'a> {
    archive: &'a Path,
    wanted: Wanted<'a>,
    into: &'a Path,
    limits: Limits,
    entries: usize,
    files: usize,
    seen: HashSet<PathBuf>,
}

impl Unpacker<'_> {
    fn zip(&mut self, file: File, meter: &Meter) -> Result<(), FetchError> {
        let mut zip = ZipArchive::new(file).map_err(|e| self.error(format!("no whole zip archive ({e})")))?;
        for index in 0..zip.len() {
            let (raw, kind) = {
                let entry = zip.by_index_raw(index).map_err(|e| self.error(format!("entry {index}: {e}")))?;
                (entry.name_raw().to_vec(), zip_kind(entry.is_dir(), entry.unix_mode()))
            };
            let Some(path) = self.admit(&raw, kind)? else { continue };
            let entry = zip.by_index(index).map_err(|e| self.refuse(&raw, &e.to_string()))?;
            let size = entry.size();
            self.write(&raw, &path, size, &mut meter.on(entry))?;
        }
        Ok(())
    }

    fn tar_gz(&mut self, file: File, meter: &Meter) -> Result<(), FetchError> {
        let mut tar = tar::Archive::new(meter.on(GzDecoder::new(io::BufReader::new(file))));
        let mut last = String::from("its start");
        let broken = |at: &str, e: io::Error| format!("no whole tar.gz archive: after {at}: {e}");
        let mut entries = tar.entries().map_err(|e| self.error(broken(&last, e)))?;
        let mut unread = 0;
        loop {
            // Long names and other headers are held in memory by the reader.
            meter.allow(unread + HEADERS);
            let Some(entry) = entries.next() else { break };
            let mut entry = entry.map_err(|e| self.error(broken(&last, e)))?;
            meter.allow(u64::MAX);
            let raw = entry.path_bytes().into_owned();
            last = format!("entry {}", shown(&raw));
            let kind = entry.header().entry_type();
            unread = entry.size().min(u64::MAX / 2);
            if kind == EntryType::XGlobalHeader {
                continue;
            }
            if let Some(path) = self.admit(&raw, tar_kind(kind))? {
                self.write(&raw, &path, unread, &mut entry)?;
                unread = 0;
            }
        }
        meter.allow(u64::MAX);
        // The checksum of gzip stands at its end.
        io::copy(&mut tar.into_inner(), &mut io::sink()).map_err(|e| self.error(broken(&last, e)))?;
        Ok(())
    }

    /// Looks at an entry; gives where it goes, or none where there is nothing to write.
    fn admit(&mut self, raw: &[u8], kind: Kind) -> Result<Option<PathBuf>, FetchError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(self.refuse(raw, &format!("more than {} entries", self.limits.entries)));
        }
        let name = safe(raw).map_err(|reason| self.refuse(raw, reason))?;
        match kind {
            Kind::Other(what) => return Err(self.refuse(raw, what)),
            Kind::Folder => return Ok(None),
            Kind::File if name.as_os_str().is_empty() => return Err(self.refuse(raw, "a file without a name")),
            Kind::File => {}
        }
        if !self.seen.insert(name.clone()) {
            return Err(self.refuse(raw, "the name appears twice"));
        }
        let Ok(below) = name.strip_prefix(self.wanted.root) else { return Ok(None) };
        let wanted = self.wanted.only.is_empty() || self.wanted.only.iter().any(|name| Path::new(name) == below);
        Ok(wanted.then(|| self.into.join(below)))
    }

    fn write(&mut self, raw: &[u8], path: &Path, size: u64, content: &mut dyn Read) -> Result<(), FetchError> {
        let mut write = || {
            fs::create_dir_all(path.parent().unwrap_or(self.into))?;
            let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
            io::copy(content, &mut file)
        };
        let written = write().map_err(|e| self.refuse(raw, &e.to_string()))?;
        if written != size {
            return Err(self.refuse(raw, &format!("{written} bytes, expected {size}: the archive is cut off")));
        }
        self.files += 1;
        Ok(())
    }

    fn refuse(&self, raw: &[u8], reason: &str) -> FetchError {
        self.error(format!("entry {}: {reason}", shown(raw)))
    }

    fn error(&self, message: String) -> FetchError {
        FetchError::Content { path: self.archive.into(), message: format!("{message}; nothing was unpacked") }
    }
}

/// A name on one line, without control characters, and not for ever.
fn shown(raw: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(raw).chars().take(200).collect();
    format!("{text:?}")
}

/// The path below a folder that an entry's name means.
fn safe(raw: &[u8]) -> Result<PathBuf, &'static str> {
    let text = std::str::from_utf8(raw).map_err(|_| "the name is not UTF-8")?;
    let drive = |text: &str| text.as_bytes().get(1) == Some(&b':') && text.as_bytes()[0].is_ascii_alphabetic();
    if text.starts_with('/') || drive(text) {
        return Err("an absolute path");
    }
    if text.contains(['\0', '\\']) {
        return Err("a NUL or a backslash in the name");
    }
    let mut path = PathBuf::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err("the path leads out of the folder"),
            _ => path.push(part),
        }
    }
    Ok(path)
}

fn zip_kind(folder: bool, mode: Option<u32>) -> Kind {
    match mode.unwrap_or(0) & 0o170000 {
        0o120000 => Kind::Other("a symbolic link"),
        0 | 0o100000 | 0o040000 if folder => Kind::Folder,
        0 | 0o100000 => Kind::File,
        _ => Kind::Other("neither a file nor a folder"),
    }
}

fn tar_kind(kind: EntryType) -> Kind {
    match kind {
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Folder,
        EntryType::Symlink => Kind::Other("a symbolic link"),
        EntryType::Link => Kind::Other("a hard link"),
        EntryType::Char | EntryType::Block | EntryType::Fifo => Kind::Other("a device"),
        _ => Kind::Other("neither a file nor a folder"),
    }
}

/// Counts what comes out of all readers of an archive, and ends with an error at the limit.
#[derive(Clone)]
struct Meter {
    out: Rc<Cell<u64>>,
    /// A nearer limit for the time being.
    now: Rc<Cell<u64>>,
    most: u64,
}

impl Meter {
    fn new(most: u64) -> Self {
        Self { out: Rc::default(), now: Rc::new(Cell::new(u64::MAX)), most }
    }

    fn on<R: Read>(&self, inner: R) -> Metered<R> {
        Metered { inner, meter: self.clone() }
    }

    /// From here on at most so many bytes more, until it is called again.
    fn allow(&self, bytes: u64) {
        self.now.set(self.out.get().saturating_add(bytes));
    }
}

struct Metered<R> {
    inner: R,
    meter: Meter,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let out = self.meter.out.get() + count as u64;
        self.meter.out.set(out);
        if out > self.meter.most {
            return Err(io::Error::other(format!("more than {} bytes come out of it, which is not plausible", self.meter.most)));
        }
        if out > self.meter.now.get() {
            return Err(io::Error::other(format!("a name or header of more than {HEADERS} bytes")));
        }
        Ok(count)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
