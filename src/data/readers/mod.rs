//! Records of table files as a stream: JSON lines, CSV, TSV and parquet, the first three compressed or not.
//!
//! [`open`] gives [`Rows`], an iterator; memory is that of one record (parquet: one page a column), however long the file.
//! A record that is malformed is an `Err` of its own and the iterator goes on behind it: the caller decides whether to stop
//! or to count it ([`DataError::is_record`]). After an error of the file itself (cut off, unreadable) it ends.
//!
//! Lines of plain text are in [`lines`].

pub mod lines;
mod parquet;
mod parquet_pages;
pub mod source;
mod table;

use super::DataError;
pub use source::{by_name, Compression, Format, ENDINGS};
use std::path::Path;
use std::sync::Arc;

/// The longest record that is taken into memory.
pub const MAX_RECORD_BYTES: usize = 256 << 20;

/// How a table is read.
#[derive(Clone, Debug)]
pub struct Options {
    /// None: by the ending of the file's name.
    pub format: Option<Format>,
    /// CSV and TSV: whether the first line names the columns. Without a header they are called "0", "1", and so on.
    pub header: bool,
    /// Columns that have to be there; of a parquet file only these are read. Empty: all, none of them required.
    pub columns: Vec<String>,
    /// Longest record, in bytes.
    pub max_record: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { format: None, header: true, columns: Vec::new(), max_record: MAX_RECORD_BYTES }
    }
}

impl Options {
    /// All defaults, but these columns.
    pub fn columns(columns: &[&str]) -> Self {
        Self { columns: columns.iter().map(|c| c.to_string()).collect(), ..Self::default() }
    }
}

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub path: Arc<Path>,
    /// Line of the file on which the record begins, from 1; of parquet the record's number, from 1.
    pub line: u64,
    pub columns: Arc<[String]>,
    /// One a column. None: null, or an empty cell of parquet. Numbers and booleans as their text, nested JSON as JSON.
    pub values: Vec<Option<String>>,
}

impl Row {
    /// The value of a column, if the record has it.
    pub fn get(&self, column: &str) -> Option<&str> {
        let at = self.columns.iter().position(|c| c == column)?;
        self.values[at].as_deref()
    }

    /// The value of a column that has to be there.
    pub fn require(&self, column: &str) -> Result<&str, DataError> {
        let missing = || match self.columns.iter().any(|c| c == column) {
            true => self.error(format!("column \"{column}\" is null")),
            false => self.error(no_column(column, &self.columns)),
        };
        self.get(column).ok_or_else(missing)
    }

    /// An error about this record.
    pub fn error(&self, message: impl Into<String>) -> DataError {
        DataError::Row { path: self.path.to_path_buf(), line: self.line as usize, message: message.into() }
    }
}

/// The records of a file in order.
pub struct Rows {
    /// Names of the columns; of JSON lines not known beforehand: every record has its own.
    pub columns: Option<Arc<[String]>>,
    records: Box<dyn Iterator<Item = Result<Row, DataError>> + Send>,
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows").field("columns", &self.columns).finish_non_exhaustive()
    }
}

impl Iterator for Rows {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.records.next()
    }
}

/// Opens a table file.
pub fn open(path: &Path, options: &Options) -> Result<Rows, DataError> {
    let format = options.format.or(by_name(path).0);
    let rows = match format {
        Some(Format::Jsonl) => table::jsonl(path, options),
        Some(Format::Csv) => table::csv(path, options),
        Some(Format::Tsv) => table::tsv(path, options),
        Some(Format::Parquet) => parquet::open(path, options),
        Some(Format::Text) | None => {
            Err(DataError::Row { path: path.into(), line: 1, message: format!("not a table; expected one of {ENDINGS}") })
        }
    }?;
    if let Some(columns) = &rows.columns {
        if let Some(missing) = options.columns.iter().find(|c| !columns.contains(c)) {
            return Err(DataError::Row { path: path.into(), line: 1, message: no_column(missing, columns) });
        }
    }
    Ok(rows)
}

fn no_column(column: &str, columns: &[String]) -> String {
    format!("no column \"{column}\"; the columns are {}", columns.join(", "))
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod properties;
