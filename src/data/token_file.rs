//! The token file: a 64-byte header, then ids as u16 or u32, little-endian; documents end with the separator id.
//!
//! Header: magic `LINFTOK1`, bytes per id (u32), reserved (u32), vocabulary (u64), ids (u64), documents (u64), zeros.

use super::DataError;
use crate::native::mapped::MappedFile;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"LINFTOK1";
const HEADER: usize = 64;

/// Writes ids document by document; the header is completed by [`TokenWriter::finish`].
pub struct TokenWriter {
    path: PathBuf,
    out: BufWriter<File>,
    width: usize,
    vocab_size: usize,
    tokens: u64,
    documents: u64,
}

impl TokenWriter {
    pub fn create(path: &Path, vocab_size: usize) -> Result<Self, DataError> {
        let file = File::create(path).map_err(DataError::io(path))?;
        let width = if vocab_size <= 1 << 16 { 2 } else { 4 };
        let mut writer =
            Self { path: path.into(), out: BufWriter::with_capacity(1 << 20, file), width, vocab_size, tokens: 0, documents: 0 };
        writer.out.write_all(&[0; HEADER]).map_err(DataError::io(path))?;
        Ok(writer)
    }

    /// One document's ids and the separator behind them.
    pub fn document(&mut self, ids: &[u32], separator: u32) -> Result<(), DataError> {
        for id in ids.iter().chain([&separator]) {
            self.out.write_all(&id.to_le_bytes()[..self.width]).map_err(DataError::io(&self.path))?;
        }
        self.tokens += ids.len() as u64 + 1;
        self.documents += 1;
        Ok(())
    }

    /// Completes and syncs the file; gives (ids, documents).
    pub fn finish(mut self) -> Result<(u64, u64), DataError> {
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&(self.width as u32).to_le_bytes());
        header.extend_from_slice(&0u32.to_le_bytes());
        [self.vocab_size as u64, self.tokens, self.documents].iter().for_each(|n| header.extend_from_slice(&n.to_le_bytes()));
        let result = self
            .out
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.out.write_all(&header))
            .and_then(|()| self.out.flush())
            .and_then(|()| self.out.get_ref().sync_all());
        result.map_err(DataError::io(&self.path))?;
        Ok((self.tokens, self.documents))
    }
}

/// A token file, mapped and checked.
pub struct TokenFile {
    map: MappedFile,
    width: usize,
    tokens: usize,
    pub documents: u64,
}

impl TokenFile {
    /// Opens a file whose ids must be below `vocab_size`.
    pub fn open(path: &Path, vocab_size: usize) -> Result<Self, DataError> {
        let map = MappedFile::open(path).map_err(DataError::io(path))?;
        let bad = |message: String| DataError::Shard { path: path.into(), message };
        if map.len() < HEADER || &map[..8] != MAGIC {
            return Err(bad("not a token file".into()));
        }
        let u64_at = |at: usize| map[at..at + 8].iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
        let (width, tokens, documents) = (map[8] as usize, u64_at(24) as usize, u64_at(32));
        let expected = tokens.checked_mul(width).and_then(|n| n.checked_add(HEADER));
        if !(width == 2 || width == 4) || expected != Some(map.len()) {
            return Err(bad(format!("{} bytes, but its header says {tokens} ids of {width} bytes", map.len())));
        }
        let file = Self { map, width, tokens, documents };
        match (0..tokens).map(|i| file.id(i)).max() {
            Some(largest) if largest as usize >= vocab_size => Err(bad(format!("holds id {largest}, but the tokenizer has {vocab_size}"))),
            _ => Ok(file),
        }
    }

    pub fn len(&self) -> usize {
        self.tokens
    }

    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    fn id(&self, index: usize) -> u32 {
        let at = HEADER + index * self.width;
        self.map[at..at + self.width].iter().rev().fold(0, |n, b| n << 8 | u32::from(*b))
    }

    /// Ids `start..start + count`.
    pub fn ids(&self, start: usize, count: usize) -> impl Iterator<Item = u32> + '_ {
        (start..start + count).map(|i| self.id(i))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn write(path: &Path, vocab_size: usize) {
        let mut writer = TokenWriter::create(path, vocab_size).unwrap();
        writer.document(&[5, 6, 300], 2).unwrap();
        writer.document(&[7], 2).unwrap();
        assert_eq!(writer.finish().unwrap(), (6, 2));
    }

    #[test]
    fn ids_come_back_in_both_widths() {
        let folder = tempfile::tempdir().unwrap();
        for vocab_size in [400, 100_000] {
            let path = folder.path().join("t.bin");
            write(&path, vocab_size);
            let file = TokenFile::open(&path, vocab_size).unwrap();
            assert_eq!(file.ids(0, 6).collect::<Vec<_>>(), [5, 6, 300, 2, 7, 2]);
            assert_eq!((file.len(), file.documents), (6, 2));
        }
    }

    #[test]
    fn damage_and_foreign_ids_are_seen_at_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.bin");
        write(&path, 400);
        let message = |path: &Path, vocab| TokenFile::open(path, vocab).err().unwrap().to_string();
        assert!(message(&path, 300).contains("holds id 300, but the tokenizer has 300"));
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
        assert!(message(&path, 400).contains("header says 6 ids"));
        std::fs::write(&path, b"short").unwrap();
        assert!(message(&path, 400).contains("not a token file"));
    }
}
