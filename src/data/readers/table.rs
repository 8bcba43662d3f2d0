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

/// Tab-separated, one row a line. Blank lines are passed over.
pub fn tsv(path: &Path, options: &Options) -> Result<Rows, DataError> {
    let path: Arc<Path> = path.into();
    let mut lines = Lines::open(&path, options.max_record)?.filter(|l| !matches!(l, Ok(l) if l.text.is_empty())).peekable();
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
    let records = lines.map(move |line| {
        let line = line?;
        let fields = line.text.split('\t').map(str::to_string).collect();
        row(&path, line.number, &shared, fields)
    });
    Ok(Rows { columns: Some(columns), records: Box::new(records) })
}

/// Comma-separated with quotes; a field in quotes may hold commas, quotes (doubled) and line breaks.
pub fn csv(path: &Path, options: &Options) -> Result<Rows, DataError> {
    let mut reader = Csv::open(path, options.max_record)?;
    let (line, first) = match reader.next() {
        Some(first) => first?,
        None => return Err(empty(path)),
    };
    let columns = names(first.clone(), options.header);
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
}

impl Csv {
    fn open(path: &Path, limit: usize) -> Result<Self, DataError> {
        let budget = Arc::new(AtomicUsize::new(limit));
        let input = BufReader::with_capacity(1 << 16, source::open(path)?.bytes);
        let plain = Plain { input, left: budget.clone(), return_held: false, last: b'\n' };
        let reader = ReaderBuilder::new().has_headers(false).flexible(true).from_reader(plain);
        Ok(Self { path: path.into(), reader, record: ByteRecord::new(), budget, limit, finished: false })
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
                        bad(before, format!("{} (a quote that is never closed?)", lines::too_long(self.limit)))
                    }
                    csv::ErrorKind::Io(e) => source::damaged(&self.path, e),
                    other => bad(before, format!("{other:?}")),
                })
            }
        }
    }
}

impl Iterator for Csv {
    type Item = Result<(u64, Vec<String>), DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let record = self.read().transpose();
        self.finished |= record.is_none();
        record
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
}

impl Read for Plain {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.copy(out)?;
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
            if self.return_held && bytes.first() != Some(&b'\n') {
                self.return_held = false;
                out[0] = b'\r';
                return Ok(1);
            }
            self.return_held = false;
            if bytes.is_empty() {
                out[0] = b'\n';
                return Ok(usize::from(self.last != b'\n'));
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
