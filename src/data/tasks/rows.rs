//! Rows of task files as text: tables of every kind, and folders with one folder of `.txt` files a label.

use super::super::readers::{self, by_name, Format, Options};
use super::super::{read_text, DataError};
use super::TaskSpec;
use crate::config::OnError;
use std::path::{Path, PathBuf};

/// One example as text.
#[derive(Clone, Debug, PartialEq)]
pub struct TextRow {
    /// What the file calls it (its column `index`), else its number from 0.
    pub index: String,
    pub text: String,
    pub text_pair: Option<String>,
    /// The class, or the number of a regression; None where labels were not asked for.
    pub label: Option<f64>,
}

/// Rows that could not be used: how many, and the first of them in words.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Skipped {
    pub rows: u64,
    pub first: Vec<String>,
}

/// So many skipped rows are named.
const NAMED: usize = 10;

impl Skipped {
    /// Gives the error back if it is to stop everything.
    pub fn take(&mut self, error: DataError, on_error: OnError) -> Result<(), DataError> {
        if on_error == OnError::Stop || !error.is_record() {
            return Err(match error {
                DataError::Row { path, line, message } => {
                    DataError::Row { path, line, message: format!("{message}; correct it, or set data.on_error to skip") }
                }
                other => other,
            });
        }
        self.rows += 1;
        if self.first.len() < NAMED {
            self.first.push(error.to_string());
        }
        Ok(())
    }
}

/// What is read of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    Labelled,
    TextsOnly,
}

/// Calls `found` for every row of `files` in order. A row that cannot be used is skipped or ends the reading.
pub fn read(
    spec: &TaskSpec,
    files: &[PathBuf],
    want: Want,
    on_error: OnError,
    skipped: &mut Skipped,
    found: &mut impl FnMut(TextRow) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let mut number = 0;
    for path in files {
        let mut each = |row: Result<TextRow, DataError>| match row {
            Ok(mut row) => {
                row.index = if row.index.is_empty() { number.to_string() } else { row.index };
                number += 1;
                found(row)
            }
            Err(error) => skipped.take(error, on_error),
        };
        match path.is_dir() {
            true => folder(spec, path, &mut each)?,
            false => table(spec, path, want, &mut each)?,
        }
    }
    Ok(())
}

/// How a file is read: an ending that says nothing stands for TSV.
pub fn options(path: &Path, header: bool, columns: &[&str]) -> Options {
    let format = by_name(path).0.filter(|f| f.is_table()).unwrap_or(Format::Tsv);
    Options { format: Some(format), header, ..Options::columns(columns) }
}

fn table(
    spec: &TaskSpec,
    path: &Path,
    want: Want,
    each: &mut impl FnMut(Result<TextRow, DataError>) -> Result<(), DataError>,
) -> Result<(), DataError> {
    // GLUE's CoLA has a header in its test file alone.
    let official_test = spec.headless_text.is_some() && want == Want::TextsOnly;
    let (header, text) = match &spec.headless_text {
        Some(column) if !official_test => (false, column.as_str()),
        _ => (spec.header, spec.text.as_str()),
    };
    let pair = spec.text_pair.as_deref();
    let columns: Vec<&str> = [Some(text), pair, (want == Want::Labelled).then_some(spec.label.as_str())].into_iter().flatten().collect();
    let is_parquet = by_name(path).0 == Some(Format::Parquet);
    let has_index = want == Want::TextsOnly && spec.index.is_some() && !is_parquet;
    for row in readers::open(path, &options(path, header, &columns))? {
        let text_row = row.and_then(|row| {
            let label = match want {
                Want::TextsOnly => None,
                Want::Labelled => Some(spec.label_of(row.require(&spec.label)?).map_err(|message| row.error(message))?),
            };
            let index = spec.index.as_deref().filter(|_| has_index).and_then(|column| row.get(column)).unwrap_or_default();
            Ok(TextRow {
                index: index.to_string(),
                text: spec.clean(row.require(text)?),
                text_pair: pair.map(|column| row.require(column).map(|text| spec.clean(text))).transpose()?,
                label,
            })
        });
        each(text_row)?;
    }
    Ok(())
}

/// `FOLDER/LABEL/*.txt`, label by label and file by file in the order of their names' numbers.
fn folder(
    spec: &TaskSpec,
    path: &Path,
    each: &mut impl FnMut(Result<TextRow, DataError>) -> Result<(), DataError>,
) -> Result<(), DataError> {
    for (class, label) in spec.labels.iter().enumerate() {
        for file in text_files(&path.join(label))? {
            let row = read_text(&file).map(|text| TextRow {
                index: String::new(),
                text: spec.clean(&text),
                text_pair: None,
                label: Some(class as f64),
            });
            each(row)?;
        }
    }
    Ok(())
}

/// The `.txt` files of a folder; `10_7.txt` comes after `9_8.txt`.
pub fn text_files(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(DataError::io(folder))? {
        let path = entry.map_err(DataError::io(folder))?.path();
        if path.extension().is_some_and(|e| e == "txt") {
            files.push(path);
        }
    }
    let number = |path: &PathBuf| {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let digits: String = name.chars().take_while(char::is_ascii_digit).collect();
        (digits.parse::<u64>().unwrap_or(u64::MAX), name)
    };
    files.sort_by_cached_key(number);
    Ok(files)
}
