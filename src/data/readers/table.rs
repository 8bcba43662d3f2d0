//! JSON lines, CSV with quotes, and TSV without.

use super::super::DataError;
use super::lines::{self, Lines};
use super::source;
use super::{Options, Row, Rows};
use csv::{ByteRecord, ReaderBuilder};
use serde_json::{Map, Value};
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

/// One JSON object a line. Blank lines are passed over.
pub fn jsonl(path: &Path, options: &Options) -> Result<Rows, DataError> {
    let path: Arc<Path> = path.into();
    let mut known: Arc<[String]> = Arc::new([]);
    let lines = Lines::open(&path, options.max_record)?.filter(|l| !matches!(l, Ok(l) if l.text.trim().is_empty()));
    let records = lines.map(move |line| {
        let line = line?;
        let bad = |message: String| DataError::Row { path: path.to_path_buf(), line: line.number as usize, message };
        let object: Map<String, Value> =
            serde_json::from_str(&line.text).map_err(|e| bad(format!("not a JSON object: {}", without_position(&e))))?;
        if !object.keys().eq(known.iter()) {
            known = object.keys().cloned().collect();
        }
        let values = object.into_iter().map(|(_, value)| cell(value)).collect();
        Ok(Row { path: path.clone(), line: line.number, columns: known.clone(), values })
    });
    Ok(Rows { columns: None, records: Box::new(records) })
}

fn cell(value: Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    }
}

/// Every record is one line, and that is named already.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    format!("{} at column {}", text.trim_end_matches(&place), error.column())
}

/// Tab-separated, one row a line. Blank lines are passed over, but not those of a file of one column: there they are rows.
pub fn tsv(path: &Path, options: &Options) -> Result<Rows, DataError> {
    let path: Arc<Path> = path.into();
    let is_blank = |l: &Result<lines::Line, DataError>| matches!(l, Ok(l) if l.text.is_empty());
    let mut lines = Lines::open(&path, options.max_record)?.skip_while(is_blank).peekable();
    let first = match lines.peek() {
        Some(Ok(line)) => line.text.split('\t').map(str::to_string).collect(),
        Some(Err(_)) => return Err(lines.next().and_then(Result::err).unwrap_or_else(|| empty(&path))),
        None => return Err(empty(&path)),
    };
    if options.header {
        lines.next();
    }
    let columns = names(first, options.header);
    let shared = columns.clone();
    let is_single = columns.len() == 1;
    let records = lines.filter(move |l| is_single || !is_blank(l)).map(move |line| {
        let line = line?;
        let fields = line.text.split('\t').map(str::to_string).collect();
        row(&path, line.number, &shared, fields)
    });
    Ok(Rows { columns: Some(columns), records: Box::new(records) })
}

/// Comma-separated with quotes; a field in quotes may hold commas, quotes (doubled) and line breaks. Blank lines as in [`tsv`].
pub fn csv(path: &Path, options: &Options) -> Result<Rows, DataError> {
    let mut reader = Csv::open(path, options.max_record)?;
    let (line, first) = match reader.next() {
        Some(first) => first?,
        None => return Err(empty(path)),
    };
    let columns = names(first.clone(), options.header);
    reader.blank_lines_are_rows = columns.len() == 1;
    let kept = (!options.header).then_some(Ok((line, first)));
    let (path, shared): (Arc<Path>, _) = (path.into(), columns.clone());
    let records = kept.into_iter().chain(reader).map(move |record| {
        let (line, fields) = record?;
        row(&path, line, &shared, fields)
    });
    Ok(Rows { columns: Some(columns), records: Box::new(records) })
}

fn names(first: Vec<String>, header: bool) -> Arc<[String]> {
    match header {
        true => first.into(),
        false => (0..first.len()).map(|i| i.to_string()).collect(),
    }
}

fn empty(path: &Path) -> DataError {
    DataError::Row { path: path.into(), line: 1, message: "the file is empty, expected a line with the names of the columns".into() }
}

fn row(path: &Arc<Path>, line: u64, columns: &Arc<[String]>, fields: Vec<String>) -> Result<Row, DataError> {
    if fields.len() != columns.len() {
        let message = format!("{} fields, expected {} ({})", fields.len(), columns.len(), columns.join(", "));
        return Err(DataError::Row { path: path.to_path_buf(), line: line as usize, message });
    }
    Ok(Row { path: path.clone(), line, columns: columns.clone(), values: fields.into_iter().map(Some).collect() })
}

/// Records of a CSV file with the line that each begins on.
struct Csv {
    path: Arc<Path>,
    reader: csv::Reader<Plain>,
    record: ByteRecord,
    budget: Arc<AtomicUsize>,
    limit: usize,
    finished: bool,
    /// Of a file of one column.
    blank_lines_are_rows: bool,
    /// The line after the last record that was given.
    next_line: u64,
    /// From there to here lines are blank.
    blank_until: u64,
    /// The record behind them.
    waiting: Option<(u64, Vec<String>)>,
}

impl Csv {
    fn open(path: &Path, limit: usize) -> Result<Self, DataError> {
        let budget = Arc::new(AtomicUsize::new(limit));
        let input = BufReader::with_capacity(1 << 16, source::open(path)?.bytes);
        let plain = Plain { input, left: budget.clone(), return_held: false, last: b'\n', quotes: Quotes::default() };
        let reader = ReaderBuilder::new().has_headers(false).flexible(true).from_reader(plain);
        let record = ByteRecord::new();
        Ok(Self {
            path: path.into(),
            reader,
            record,
            budget,
            limit,
            finished: false,
            blank_lines_are_rows: false,
            next_line: 1,
            blank_until: 0,
            waiting: None,
        })
    }

    fn read(&mut self) -> Result<Option<(u64, Vec<String>)>, DataError> {
        self.budget.store(self.limit, Ordering::Relaxed);
        let before = self.reader.position().line();
        let bad = |line: u64, message: String| DataError::Row { path: self.path.to_path_buf(), line: line as usize, message };
        match self.reader.read_byte_record(&mut self.record) {
            Ok(false) => Ok(None),
            Ok(true) => {
                // The crate counts blank lines before a record to the record; its end is exact.
                let inside = memchr::memchr_iter(b'\n', self.record.as_slice()).count() as u64;
                let line = self.reader.position().line() - 1 - inside;
                let field = |(i, bytes): (usize, &[u8])| match std::str::from_utf8(bytes) {
                    Ok(text) if text.contains('\0') => Err(bad(line, format!("field {} holds a NUL byte", i + 1))),
                    Ok(text) => Ok(text.to_string()),
                    Err(e) => Err(bad(line, format!("field {} is not UTF-8 at its byte {}", i + 1, e.valid_up_to()))),
                };
                Ok(Some((line, self.record.iter().enumerate().map(field).collect::<Result<_, _>>()?)))
            }
            Err(error) => {
                self.finished = true;
                Err(match error.into_kind() {
                    csv::ErrorKind::Io(e) if e.kind() == io::ErrorKind::FileTooLarge => {
                        let message = format!("{} (a quote that is never closed?)", lines::too_long(self.limit));
                        DataError::TooLong { path: self.path.to_path_buf(), line: before as usize, message }
                    }
                    csv::ErrorKind::Io(e) => match e.get_ref().and_then(|e| e.downcast_ref::<Unclosed>()) {
                        Some(unclosed) => DataError::Unclosed { path: self.path.to_path_buf(), line: unclosed.0 },
                        None => source::damaged(&self.path, e),
                    },
                    other => bad(before, format!("{other:?}")),
                })
            }
        }
    }
}

impl Iterator for Csv {
    type Item = Result<(u64, Vec<String>), DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.next_line < self.blank_until {
                self.next_line += 1;
                return Some(Ok((self.next_line - 1, vec![String::new()])));
            }
            if let Some(record) = self.waiting.take() {
                self.next_line = self.reader.position().line();
                return Some(Ok(record));
            }
            if self.finished {
                return None;
            }
            let record = match self.read() {
                Err(error) => {
                    self.next_line = self.reader.position().line();
                    return Some(Err(error));
                }
                Ok(record) => record,
            };
            self.finished |= record.is_none();
            if self.blank_lines_are_rows {
                self.blank_until = record.as_ref().map_or_else(|| self.reader.position().line(), |(line, _)| *line);
            }
            self.waiting = record;
        }
    }
}

/// Bytes with `\n` for `\r\n`, ending with `\n`, of which one record may take only so many: a quote that is never closed
/// would take in the whole file.
struct Plain {
    input: BufReader<Box<dyn Read + Send>>,
    left: Arc<AtomicUsize>,
    /// A `\r` was read, and what follows it not yet.
    return_held: bool,
    last: u8,
    quotes: Quotes,
}

/// Where a quote is open, by the rules of the crate: it opens at the beginning of a field only, and a doubled one closes nothing.
#[derive(Default)]
struct Quotes {
    state: Quoting,
    /// Line breaks so far.
    lines: usize,
    /// The line on which the last quote opened.
    opened: usize,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Quoting {
    #[default]
    FieldBegins,
    InField,
    InQuotes,
    QuoteInQuotes,
}

impl Quotes {
    fn follow(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.state = match (self.state, byte) {
                (Quoting::InQuotes, b'"') => Quoting::QuoteInQuotes,
                (Quoting::InQuotes, _) => Quoting::InQuotes,
                (_, b',' | b'\n' | b'\r') => Quoting::FieldBegins,
                (Quoting::QuoteInQuotes, b'"') => Quoting::InQuotes,
                (Quoting::FieldBegins, b'"') => {
                    self.opened = self.lines + 1;
                    Quoting::InQuotes
                }
                _ => Quoting::InField,
            };
            self.lines += usize::from(*byte == b'\n');
        }
    }
}

/// At the end of the file a quote is open, since this line.
#[derive(Debug, thiserror::Error)]
#[error("a quote that opens on line {0} is never closed")]
struct Unclosed(usize);

impl Read for Plain {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.copy(out)?;
        self.quotes.follow(&out[..count]);
        if count == 0 && self.quotes.state == Quoting::InQuotes {
            return Err(io::Error::new(io::ErrorKind::InvalidData, Unclosed(self.quotes.opened)));
        }
        let left = self.left.load(Ordering::Relaxed);
        if count > left {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.left.store(left - count, Ordering::Relaxed);
        self.last = if count > 0 { out[count - 1] } else { self.last };
        Ok(count)
    }
}

impl Plain {
    fn copy(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let bytes = self.input.fill_buf()?;
            if self.return_held && bytes.first() == Some(&b'\r') {
                // `\r\r\n`, as a file has it that was written as text twice.
                self.input.consume(1);
                continue;
            }
            if self.return_held && bytes.first() != Some(&b'\n') {
                self.return_held = false;
                out[0] = b'\r';
                return Ok(1);
            }
            self.return_held = false;
            if bytes.is_empty() {
                out[0] = b'\n';
                return Ok(usize::from(self.last != b'\n' && self.last != b'\r'));
            }
            let room = bytes.len().min(out.len());
            let count = memchr::memchr(b'\r', &bytes[..room]).unwrap_or(room);
            if count > 0 {
                out[..count].copy_from_slice(&bytes[..count]);
                self.input.consume(count);
                return Ok(count);
            }
            self.input.consume(1);
            self.return_held = true;
        }
    }
}
