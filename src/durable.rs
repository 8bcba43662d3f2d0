//! Files and folders that are whole or absent, whatever happens while they are written.
//!
//! A file is replaced by one that was written beside it, synced and renamed. A folder is filled under another name, sealed
//! with a manifest of its files (written last), and renamed; it counts only if the manifest's sizes and hashes agree.

use crate::digest::{file_sha256, sha256};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// The seal of a folder.
pub const MANIFEST: &str = "manifest.json";

/// Why a sealed folder was refused.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}: {message}")]
    Broken { path: PathBuf, message: String },
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: u32,
    files: Vec<Entry>,
    /// Of the lines above; the first checkpoints had none.
    #[serde(default)]
    sha256: Option<String>,
}

impl Manifest {
    fn digest(&self) -> String {
        let lines: Vec<String> = self.files.iter().map(|e| format!("{} {} {}\n", e.name, e.bytes, e.sha256)).collect();
        sha256(format!("{}\n{}", self.format, lines.concat()).as_bytes())
    }
}

#[derive(Serialize, Deserialize)]
struct Entry {
    name: String,
    bytes: u64,
    sha256: String,
}

/// Writes a file beside `path` and puts it in its place.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    let aside = path.with_file_name(name);
    let write = || {
        let mut file = File::create(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        publish(&aside, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&aside)))
}

/// Gives what stands at `aside` its last name, for good.
pub fn publish(aside: &Path, target: &Path) -> io::Result<()> {
    fs::rename(aside, target)?;
    sync_folder(target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Syncs the folder's files, describes them in its manifest, and syncs that. An error comes with the file it is about.
pub fn seal(folder: &Path, names: &[&str], format: u32) -> Result<(), (PathBuf, io::Error)> {
    let entry = |name: &&str| {
        let path = folder.join(name);
        let describe = || {
            File::open(&path)?.sync_all()?;
            let (bytes, sha256) = file_sha256(&path)?;
            Ok(Entry { name: name.to_string(), bytes, sha256 })
        };
        describe().map_err(|e: io::Error| (path.clone(), e))
    };
    let files = names.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
    let mut manifest = Manifest { format, files, sha256: None };
    manifest.sha256 = Some(manifest.digest());
    let path = folder.join(MANIFEST);
    let write = || {
        let mut file = File::create(&path)?;
        file.write_all(serde_json::to_string_pretty(&manifest)?.as_bytes())?;
        file.sync_all()?;
        sync_folder(folder)
    };
    write().map_err(|e| (path.clone(), e))
}

/// Checks a sealed folder's files and gives its format, which must be one of `formats`.
pub fn verify(folder: &Path, names: &[&str], formats: RangeInclusive<u32>) -> Result<u32, SealError> {
    let broken = |message: String| SealError::Broken { path: folder.into(), message };
    let path = folder.join(MANIFEST);
    let text = fs::read_to_string(&path).map_err(|source| match source.kind() {
        io::ErrorKind::InvalidData => broken(format!("{MANIFEST} is damaged (not UTF-8)")),
        _ => SealError::Read { path, source },
    })?;
    let manifest: Manifest = serde_json::from_str(&text).map_err(|e| broken(format!("{MANIFEST} is damaged ({e})")))?;
    if manifest.sha256.as_ref().map_or(manifest.format > 1, |sha256| *sha256 != manifest.digest()) {
        return Err(broken(format!("{MANIFEST} is damaged (its own SHA-256 is another)")));
    }
    if !formats.contains(&manifest.format) {
        let (first, last) = formats.into_inner();
        return Err(broken(format!("{MANIFEST}: format {}, this program reads {first} to {last}", manifest.format)));
    }
    for name in names {
        let entry = manifest.files.iter().find(|e| e.name == *name).ok_or_else(|| broken(format!("{MANIFEST} does not name {name}")))?;
        let path = folder.join(name);
        let (bytes, sha256) = file_sha256(&path).map_err(|source| SealError::Read { path, source })?;
        if bytes != entry.bytes || sha256 != entry.sha256 {
            let expected: String = entry.sha256.chars().take(12).collect();
            return Err(broken(format!("{name} is damaged ({bytes} bytes, expected {} with SHA-256 {expected}...)", entry.bytes)));
        }
    }
    Ok(manifest.format)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_a_sealed_folder_is_noticed_and_the_file_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.bin"), [7u8; 40]).unwrap();
        fs::write(folder.path().join("b.json"), "{\"x\": 1}").unwrap();
        seal(folder.path(), &["a.bin", "b.json"], 2).unwrap();
        assert_eq!(verify(folder.path(), &["a.bin", "b.json"], 1..=2).unwrap(), 2);
        assert!(verify(folder.path(), &["c"], 1..=2).unwrap_err().to_string().contains("does not name c"));
        let mut flips = 0;
        for name in ["a.bin", "b.json", MANIFEST] {
            let path = folder.path().join(name);
            let good = fs::read(&path).unwrap();
            for (at, bit) in (0..good.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
                let mut bytes = good.clone();
                bytes[at] ^= 1 << bit;
                fs::write(&path, &bytes).unwrap();
                let error = verify(folder.path(), &["a.bin", "b.json"], 1..=2).err().map(|e| e.to_string());
                let named = error.as_ref().is_some_and(|e| e.contains(name) || (name == MANIFEST && !e.is_empty()));
                assert!(named, "{name} byte {at} bit {bit}: {error:?}");
                flips += 1;
            }
            fs::write(&path, &good).unwrap();
        }
        assert!(flips > 2000);
    }
}
