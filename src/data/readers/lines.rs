//! Lines of a text file, checked: UTF-8 without NUL, and no longer than a limit. Memory is that of one line.

use super::super::DataError;
use super::source::{self, Source};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// A line without its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// From 1.
    pub number: u64,
    pub text: String,
    /// Whether a line break followed (`\n` or `\r\n`); the last line may have none.
    pub ended: bool,
}

/// The lines of a file. A line that is not valid text is an error of its own, and reading goes on behind it.
pub struct Lines {
    path: PathBuf,
    input: BufReader<Box<dyn Read + Send>>,
    number: u64,
    /// Of the next line, in the decompressed file.
    offset: u64,
    limit: usize,
    finished: bool,
}

impl Lines {
    pub fn open(path: &Path, limit: usize) -> Result<Self, DataError> {
        let Source { bytes, skipped } = source::open(path)?;
        let input = BufReader::with_capacity(1 << 16, bytes);
        Ok(Self { path: path.into(), input, number: 0, offset: skipped, limit, finished: false })
    }

    fn read(&mut self) -> Result<Option<Line>, DataError> {
        let mut bytes = Vec::new();
        let read = self.input.by_ref().take(self.limit as u64 + 1).read_until(b'\n', &mut bytes);
        let count = read.map_err(|e| self.end(source::damaged(&self.path, e)))?;
        if count == 0 {
            return Ok(None);
        }
        let (number, offset) = (self.number + 1, self.offset);
        (self.number, self.offset) = (number, offset + count as u64);
        if count > self.limit {
            return Err(self.end(DataError::Row { path: self.path.clone(), line: number as usize, message: too_long(self.limit) }));
        }
        let ended = bytes.last() == Some(&b'\n');
        if ended {
            bytes.pop();
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        }
        Ok(Some(Line { number, text: text(bytes, &self.path, number, offset)?, ended }))
    }

    fn end(&mut self, error: DataError) -> DataError {
        self.finished = true;
        error
    }
}

impl Iterator for Lines {
    type Item = Result<Line, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let line = self.read().transpose();
        self.finished |= line.is_none();
        line
    }
}

pub(super) fn too_long(limit: usize) -> String {
    format!("longer than {} MiB; is this the right format?", limit >> 20)
}

/// Checked bytes of a record that begins at `offset` on line `line`.
pub(super) fn text(bytes: Vec<u8>, path: &Path, line: u64, offset: u64) -> Result<String, DataError> {
    if let Some(at) = memchr::memchr(0, &bytes) {
        return Err(DataError::NulByte { path: path.into(), line: line as usize, offset: offset as usize + at });
    }
    String::from_utf8(bytes).map_err(|e| {
        let offset = offset as usize + e.utf8_error().valid_up_to();
        DataError::InvalidUtf8 { path: path.into(), line: line as usize, offset }
    })
}
