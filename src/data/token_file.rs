//! The token file: a 128-byte header, then ids as u16 or u32, little-endian; documents end with the separator id.
//!
//! | bytes | header |
//! |---|---|
//! | 0..8 | magic `LINFTOK2` |
//! | 8..12, 12..16 | bytes per id, number of the shard |
//! | 16..24, 24..32, 32..40, 40..48 | vocabulary, ids, documents, largest id |
//! | 48..80 | SHA-256 of the tokenizer (`tokenizer.json`) |
//! | 80..112 | SHA-256 of the ids as they stand in the file |
//! | 112..120 | first 8 bytes of the SHA-256 of the settings that the corpus was prepared with |
//! | 120..128 | first 8 bytes of the SHA-256 of the bytes before |
//!
//! Opening a file checks all of it but the ids' hash, at a cost that does not grow; [`TokenFile::verify`] reads the ids.

use super::DataError;
use crate::native::mapped::MappedFile;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"LINFTOK2";
const HEADER: usize = 128;

/// What a token file belongs to.
#[derive(Clone, Debug, PartialEq)]
pub struct Origin {
    pub vocab_size: usize,
    pub tokenizer_sha256: [u8; 32],
    pub settings: [u8; 8],
}

/// Counts of a file or of several.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    pub tokens: u64,
    pub documents: u64,
    pub largest: u64,
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.documents += other.documents;
        self.largest = self.largest.max(other.largest);
    }
}

/// Writes ids document by document; the header is completed by [`TokenWriter::finish`].
pub struct TokenWriter {
    path: PathBuf,
    out: BufWriter<File>,
    origin: Origin,
    shard: u32,
    width: usize,
    totals: Totals,
    hash: Sha256,
    bytes: Vec<u8>,
}

impl TokenWriter {
    pub fn create(path: &Path, origin: &Origin, shard: u32) -> Result<Self, DataError> {
        let file = File::create(path).map_err(DataError::io(path))?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(&[0; HEADER]).map_err(DataError::io(path))?;
        let width = if origin.vocab_size <= 1 << 16 { 2 } else { 4 };
        let (hash, bytes, totals) = (Sha256::new(), Vec::new(), Totals::default());
        Ok(Self { path: path.into(), out, origin: origin.clone(), shard, width, totals, hash, bytes })
    }

    pub fn tokens(&self) -> u64 {
        self.totals.tokens
    }

    /// One document's ids; the last is the separator.
    pub fn document(&mut self, ids: &[u32]) -> Result<(), DataError> {
        self.bytes.clear();
        ids.iter().for_each(|id| self.bytes.extend_from_slice(&id.to_le_bytes()[..self.width]));
        self.hash.update(&self.bytes);
        self.out.write_all(&self.bytes).map_err(DataError::io(&self.path))?;
        self.totals.tokens += ids.len() as u64;
        self.totals.documents += 1;
        self.totals.largest = self.totals.largest.max(ids.iter().copied().max().unwrap_or(0).into());
        Ok(())
    }

    /// Completes and syncs the file.
    pub fn finish(mut self) -> Result<Totals, DataError> {
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(MAGIC);
        [self.width as u32, self.shard].iter().for_each(|n| header.extend_from_slice(&n.to_le_bytes()));
        let numbers = [self.origin.vocab_size as u64, self.totals.tokens, self.totals.documents, self.totals.largest];
        numbers.iter().for_each(|n| header.extend_from_slice(&n.to_le_bytes()));
        header.extend_from_slice(&self.origin.tokenizer_sha256);
        header.extend_from_slice(&self.hash.finalize());
        header.extend_from_slice(&self.origin.settings);
        let checksum = Sha256::digest(&header);
        header.extend_from_slice(&checksum[..8]);
        let result = self
            .out
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.out.write_all(&header))
            .and_then(|()| self.out.flush())
            .and_then(|()| self.out.get_ref().sync_all());
        result.map_err(DataError::io(&self.path))?;
        Ok(self.totals)
    }
}

/// A token file, mapped and checked.
pub struct TokenFile {
    path: PathBuf,
    map: MappedFile,
    width: usize,
    pub totals: Totals,
}

impl TokenFile {
    /// Opens a file that has to come from `origin`, as its part `shard`.
    pub fn open(path: &Path, origin: &Origin, shard: u32) -> Result<Self, DataError> {
        let map = MappedFile::open(path).map_err(DataError::io(path))?;
        let bad = |message: String| DataError::Shard { path: path.into(), message };
        if map.len() < HEADER || &map[..8] != MAGIC {
            return Err(bad("not a token file".into()));
        }
        let number = |at: usize, bytes: usize| map[at..at + bytes].iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
        if Sha256::digest(&map[..HEADER - 8])[..8] != map[HEADER - 8..HEADER] {
            return Err(bad("its header is damaged".into()));
        }
        let (width, own_shard) = (number(8, 4) as usize, number(12, 4));
        let totals = Totals { tokens: number(24, 8), documents: number(32, 8), largest: number(40, 8) };
        let expected = (totals.tokens as usize).checked_mul(width).and_then(|n| n.checked_add(HEADER));
        if !(width == 2 || width == 4) || expected != Some(map.len()) {
            return Err(bad(format!("{} bytes, but its header says {} ids of {width} bytes", map.len(), totals.tokens)));
        }
        if map[48..80] != origin.tokenizer_sha256 {
            return Err(bad("made with another tokenizer than the one beside it".into()));
        }
        if map[112..120] != origin.settings || own_shard != u64::from(shard) {
            return Err(bad("belongs to another corpus".into()));
        }
        if totals.tokens > 0 && totals.largest as usize >= origin.vocab_size {
            return Err(bad(format!("holds id {}, but the tokenizer has {}", totals.largest, origin.vocab_size)));
        }
        Ok(Self { path: path.into(), map, width, totals })
    }

    /// Reads every id and compares their hash with the header's.
    pub fn verify(&self) -> Result<(), DataError> {
        match Sha256::digest(&self.map[HEADER..])[..] == self.map[80..112] {
            true => Ok(()),
            false => Err(DataError::Shard { path: self.path.clone(), message: "is damaged (its ids have another SHA-256)".into() }),
        }
    }

    /// SHA-256 of the ids, as the header says.
    pub fn sha256(&self) -> &[u8] {
        &self.map[80..112]
    }

    pub fn len(&self) -> usize {
        self.totals.tokens as usize
    }

    pub fn is_empty(&self) -> bool {
        self.totals.tokens == 0
    }

    pub fn id(&self, index: usize) -> u32 {
        let at = HEADER + index * self.width;
        self.map[at..at + self.width].iter().rev().fold(0, |n, b| n << 8 | u32::from(*b))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn origin(vocab_size: usize) -> Origin {
        Origin { vocab_size, tokenizer_sha256: [7; 32], settings: [1; 8] }
    }

    fn write(path: &Path, vocab_size: usize) {
        let mut writer = TokenWriter::create(path, &origin(vocab_size), 3).unwrap();
        writer.document(&[5, 6, 300, 2]).unwrap();
        writer.document(&[7, 2]).unwrap();
        assert_eq!(writer.finish().unwrap(), Totals { tokens: 6, documents: 2, largest: 300 });
    }

    #[test]
    fn ids_come_back_in_both_widths() {
        let folder = tempfile::tempdir().unwrap();
        for vocab_size in [400, 100_000] {
            let path = folder.path().join("t.bin");
            write(&path, vocab_size);
            let file = TokenFile::open(&path, &origin(vocab_size), 3).unwrap();
            file.verify().unwrap();
            assert_eq!((0..6).map(|i| file.id(i)).collect::<Vec<_>>(), [5, 6, 300, 2, 7, 2]);
            assert_eq!((file.len(), file.totals.documents), (6, 2));
        }
    }

    #[test]
    fn a_file_of_another_corpus_tokenizer_or_place_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.bin");
        write(&path, 400);
        let message = |origin: &Origin, shard| TokenFile::open(&path, origin, shard).err().unwrap().to_string();
        assert!(message(&origin(300), 3).contains("holds id 300, but the tokenizer has 300"));
        assert!(message(&Origin { tokenizer_sha256: [8; 32], ..origin(400) }, 3).contains("another tokenizer"));
        assert!(message(&Origin { settings: [8; 8], ..origin(400) }, 3).contains("another corpus"));
        assert!(message(&origin(400), 2).contains("another corpus"));
    }

    /// Case 39: whatever byte changes, it is seen before an id is used.
    #[test]
    fn every_changed_byte_and_every_cut_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.bin");
        write(&path, 400);
        let bytes = std::fs::read(&path).unwrap();
        let opened = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            TokenFile::open(&path, &origin(400), 3).and_then(|file| file.verify())
        };
        opened(&bytes).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let message = opened(&changed).unwrap_err().to_string();
            assert!(message.contains("t.bin: "), "byte {at}: {message}");
            if at > 0 {
                opened(&bytes[..at]).unwrap_err();
            }
        }
    }
}
