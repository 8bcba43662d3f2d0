//! The ids of one split: token files that follow each other, and the lengths of their lines where those were kept.

use super::token_file::{Origin, TokenFile, TokenWriter, Totals};
use super::DataError;
use crate::native::mapped::MappedFile;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// A shard is closed after the document with which it reaches this many ids.
pub const SHARD_TOKENS: u64 = 1 << 26;
/// Set in the length of a line that ends its document.
const LAST: u32 = 1 << 31;

pub fn shard_name(split: &str, shard: usize) -> String {
    format!("{split}-{shard:05}.bin")
}

pub fn lines_name(split: &str) -> String {
    format!("{split}.lines")
}

/// Writes a split, shard after shard.
pub struct SplitWriter {
    folder: PathBuf,
    split: &'static str,
    origin: Origin,
    shard_tokens: u64,
    current: TokenWriter,
    pub shards: usize,
    totals: Totals,
    lines: Option<BufWriter<File>>,
}

impl SplitWriter {
    /// `lines`: whether the lengths of lines are kept.
    pub fn create(folder: &Path, split: &'static str, origin: &Origin, shard_tokens: u64, lines: bool) -> Result<Self, DataError> {
        let current = TokenWriter::create(&folder.join(shard_name(split, 0)), origin, 0)?;
        let path = folder.join(lines_name(split));
        let lines = lines.then(|| File::create(&path).map(BufWriter::new).map_err(DataError::io(&path))).transpose()?;
        let totals = Totals::default();
        Ok(Self { folder: folder.into(), split, origin: origin.clone(), shard_tokens, current, shards: 1, totals, lines })
    }

    /// One document: its ids line by line (any pieces, if lines are not kept), and the separator behind them.
    pub fn document(&mut self, pieces: &[Vec<u32>], separator: u32) -> Result<(), DataError> {
        if self.current.tokens() >= self.shard_tokens {
            let next = TokenWriter::create(&self.folder.join(shard_name(self.split, self.shards)), &self.origin, self.shards as u32)?;
            self.close(next)?;
            self.shards += 1;
        }
        let ids: Vec<u32> = pieces.iter().flatten().copied().chain([separator]).collect();
        self.current.document(&ids)?;
        if let Some(out) = &mut self.lines {
            let mut lengths: Vec<u32> = pieces.iter().map(|p| p.len() as u32).filter(|length| *length > 0).collect();
            match lengths.last_mut() {
                Some(last) => *last = (*last + 1) | LAST,
                None => lengths.push(1 | LAST),
            }
            let written = lengths.iter().try_for_each(|length| out.write_all(&length.to_le_bytes()));
            written.map_err(DataError::io(self.folder.join(lines_name(self.split))))?;
        }
        Ok(())
    }

    fn close(&mut self, next: TokenWriter) -> Result<(), DataError> {
        self.totals += std::mem::replace(&mut self.current, next).finish()?;
        Ok(())
    }

    /// Closes the last shard; gives how many there are, and what is in them.
    pub fn finish(mut self) -> Result<(usize, Totals), DataError> {
        if let Some(out) = &mut self.lines {
            out.flush().map_err(DataError::io(self.folder.join(lines_name(self.split))))?;
        }
        self.totals += self.current.finish()?;
        Ok((self.shards, self.totals))
    }
}

/// A line's place among the ids of a split. The last line of a document holds the separator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LineSpan {
    pub start: usize,
    pub length: usize,
    pub ends_document: bool,
}

/// A split, mapped.
pub struct Tokens {
    shards: Vec<TokenFile>,
    /// Index of each shard's first id, and of the end.
    starts: Vec<usize>,
    pub documents: u64,
    lines: Option<MappedFile>,
}

impl Tokens {
    pub fn open(folder: &Path, split: &str, origin: &Origin, shards: usize, lines: bool) -> Result<Self, DataError> {
        let open = |i: usize| TokenFile::open(&folder.join(shard_name(split, i)), origin, i as u32);
        let shards: Vec<TokenFile> = (0..shards).map(open).collect::<Result<_, _>>()?;
        let mut starts = vec![0];
        shards.iter().for_each(|s| starts.push(starts[starts.len() - 1] + s.len()));
        let documents = shards.iter().map(|s| s.totals.documents).sum();
        let path = folder.join(lines_name(split));
        let mapped = match lines && starts[shards.len()] > 0 {
            true => Some(MappedFile::open(&path).map_err(DataError::io(&path))?),
            false => None,
        };
        let tokens = Self { shards, starts, documents, lines: mapped };
        let covered: usize = tokens.lines().map(|l| l.length).sum();
        if tokens.lines.is_some() && covered != tokens.len() {
            let message = format!("its lines have {covered} ids, the shards {}", tokens.len());
            return Err(DataError::Shard { path, message });
        }
        Ok(tokens)
    }

    /// Reads every id and compares the hashes.
    pub fn verify(&self) -> Result<(), DataError> {
        self.shards.iter().try_for_each(TokenFile::verify)
    }

    /// A hash of all ids.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        self.shards.iter().for_each(|s| hash.update(s.sha256()));
        crate::digest::hex(&hash.finalize())
    }

    pub fn len(&self) -> usize {
        self.starts[self.shards.len()]
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ids `start..start + count`, across shards.
    pub fn ids(&self, start: usize, count: usize) -> impl Iterator<Item = u32> + '_ {
        let mut shard = self.starts.partition_point(|s| *s <= start).saturating_sub(1);
        (start..start + count).map(move |index| {
            while index >= self.starts[shard + 1] {
                shard += 1;
            }
            self.shards[shard].id(index - self.starts[shard])
        })
    }

    /// Every line in order; none if their lengths were not kept.
    pub fn lines(&self) -> impl Iterator<Item = LineSpan> + '_ {
        let bytes: &[u8] = self.lines.as_deref().unwrap_or_default();
        bytes.chunks_exact(4).scan(0, |start, bytes| {
            let stored = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            let line = LineSpan { start: *start, length: (stored & !LAST) as usize, ends_document: stored & LAST != 0 };
            *start += line.length;
            Some(line)
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_bounded_and_read_as_one() {
        let folder = tempfile::tempdir().unwrap();
        let origin = Origin { vocab_size: 1000, tokenizer_sha256: [0; 32], settings: [0; 8] };
        let mut writer = SplitWriter::create(folder.path(), "train", &origin, 10, true).unwrap();
        let document = |d: u32| vec![vec![10 * d, 10 * d + 1], vec![], vec![10 * d + 2]];
        (1..20).for_each(|d| writer.document(&document(d), 2).unwrap());
        let (shards, totals) = writer.finish().unwrap();
        assert_eq!((shards, totals.tokens, totals.documents), (7, 76, 19));
        let tokens = Tokens::open(folder.path(), "train", &origin, shards, true).unwrap();
        tokens.verify().unwrap();
        let expected: Vec<u32> = (1..20).flat_map(|d| [10 * d, 10 * d + 1, 10 * d + 2, 2]).collect();
        assert_eq!(tokens.ids(0, 76).collect::<Vec<_>>(), expected);
        assert_eq!(tokens.ids(11, 30).collect::<Vec<_>>(), expected[11..41]);
        let lines: Vec<_> = tokens.lines().collect();
        assert_eq!(lines.len(), 38);
        assert_eq!(lines[1], LineSpan { start: 2, length: 2, ends_document: true });
        std::fs::remove_file(folder.path().join("train-00003.bin")).unwrap();
        let message = Tokens::open(folder.path(), "train", &origin, shards, true).err().unwrap().to_string();
        assert!(message.contains("train-00003.bin"), "{message}");
    }
}
