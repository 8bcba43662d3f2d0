//! SHA-256 of files and texts, in lower-case hexadecimal.

use sha2::{Digest, Sha256};
use std::fs::File;
use std::io;
use std::path::Path;

/// Length and hash of a file.
pub fn file_sha256(path: &Path) -> io::Result<(u64, String)> {
    let mut hash = Sha256::new();
    let bytes = io::copy(&mut File::open(path)?, &mut hash)?;
    Ok((bytes, hex(&hash.finalize())))
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
