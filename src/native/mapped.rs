//! A file mapped read-only.

use std::fs::File;
use std::io;
use std::path::Path;

/// A read-only memory map of a whole file; derefs to its bytes.
pub struct MappedFile(memmap2::Mmap);

impl MappedFile {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the project writes such files under a temporary name and renames them, and never changes one in
        // place. Truncating one by hand while it is mapped would end the process.
        Ok(Self(unsafe { memmap2::Mmap::map(&file)? }))
    }
}

impl std::ops::Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
