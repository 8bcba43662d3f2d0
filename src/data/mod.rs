//! Text to batches: plain integers all the way; only [`batch`] makes tensors.
//!
//! [`readers`] reads files of every kind as a stream, [`corpus`] lists those of a corpus, [`documents`](mod@documents) makes documents of them,
//! [`tokenizer`] turns text into ids, [`token_file`] and [`tokens`] are the token files, [`prepare`](mod@prepare) makes them
//! from a corpus once (`once`), [`masking`] and [`pretraining`] draw masked sequences from them in the [`order`] of an epoch; [`tasks`] is the table of
//! fine-tuning tasks, [`derive`](mod@derive) makes two of them from a corpus, [`buckets`] says which of their rows make a batch;
//! [`loader`] makes batches in the background.

pub mod batch;
pub mod buckets;
pub mod catalogue;
pub mod corpus;
pub mod derive;
pub mod documents;
pub mod fetch;
pub mod listops;
pub mod loader;
pub mod masking;
mod once;
pub mod order;
pub mod prepare;
pub mod pretraining;
pub mod readers;
pub mod tasks;
pub mod token_file;
pub mod tokenizer;
pub mod tokens;

use crate::durable::SealError;
use std::path::PathBuf;

/// Why data was refused; always one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error(
        "{path}: line {line}: not UTF-8 at byte {offset}; convert the file (for example with iconv -t UTF-8), or set data.on_error to skip"
    )]
    InvalidUtf8 { path: PathBuf, line: usize, offset: usize },
    #[error("{path}: line {line}: a NUL byte at byte {offset}; is this a text file?")]
    NulByte { path: PathBuf, line: usize, offset: usize },
    #[error("{path}: damaged or cut off ({what}: {message}); fetch or write it again")]
    Damaged { path: PathBuf, what: String, message: String },
    #[error("{path}: line {line}: a quote opens here and is never closed; close it, or double it (\"\") where it is part of the text")]
    Unclosed { path: PathBuf, line: usize },
    #[error("{path}: line {line}: {message}")]
    TooLong { path: PathBuf, line: usize, message: String },
    #[error("data.cache_dir: {path}: {source}; prepared corpora and tasks are written there: give a folder that can be written")]
    Cache { path: PathBuf, source: std::io::Error },
    #[error("data.corpus: {path}: {source}; expected a file, a folder or a glob (paths are relative to the working directory)")]
    Corpus { path: PathBuf, source: std::io::Error },
    #[error("data.corpus: {paths}: no text in it{dropped}; files are those that end in {}", readers::ENDINGS)]
    NoText { paths: String, dropped: String },
    #[error("{what}: {found} sequences of {length} tokens, expected at least {expected}; {remedy}")]
    TooSmall { what: String, found: usize, length: i64, expected: usize, remedy: &'static str },
    #[error("{path}: {message}")]
    Tokenizer { path: String, message: String },
    #[error("{path}: {message}; delete it and it will be made again")]
    Shard { path: PathBuf, message: String },
    #[error("{path}: line {line}: {message}")]
    Row { path: PathBuf, line: usize, message: String },
    #[error("{0}")]
    Task(String),
}

impl From<SealError> for DataError {
    fn from(error: SealError) -> Self {
        match error {
            SealError::Read { path, source } => Self::Io { path, source },
            SealError::Broken { path, message } => Self::Shard { path, message },
        }
    }
}

impl DataError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// Whether the error is about one record, so that the ones behind it can still be read.
    pub fn is_record(&self) -> bool {
        matches!(self, Self::InvalidUtf8 { .. } | Self::NulByte { .. } | Self::Row { .. })
    }
}

/// A text file, checked: UTF-8 without NUL; a byte-order mark at its start is dropped.
pub(crate) fn read_text(path: &std::path::Path) -> Result<String, DataError> {
    let bytes = std::fs::read(path).map_err(DataError::io(path))?;
    let line = |offset: usize| 1 + bytes[..offset].iter().filter(|b| **b == b'\n').count();
    if let Some(offset) = bytes.iter().position(|b| *b == 0) {
        return Err(DataError::NulByte { path: path.into(), line: line(offset), offset });
    }
    let text = std::str::from_utf8(&bytes).map_err(|e| e.valid_up_to());
    let text = text.map_err(|offset| DataError::InvalidUtf8 { path: path.into(), line: line(offset), offset })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text).to_string())
}
