//! Texts to work on, as a user has them: rows of a table file, lines, or standard input; a chunk at a time.

use crate::data::readers::lines::Lines;
use crate::data::readers::{self, by_name, Format, Options};
use crate::data::tasks::rows::TextRow;
use anyhow::{anyhow, Result};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{sync_channel, Receiver};

/// Rows worked on together: memory is that of so many, twice.
pub const CHUNK: usize = 1024;
/// Longest line.
const MAX_LINE: usize = 256 << 20;
const STANDARD_INPUT: &str = "/dev/stdin";

/// How the input is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum InputFormat {
    /// A text a line; of a pair both, with a tab between them
    Lines,
    /// Tab-separated with a header, without quoting
    Tsv,
    /// Comma-separated with a header and quotes
    Csv,
    /// A JSON object a line
    Jsonl,
}

/// Where texts come from.
#[derive(Clone, Debug)]
pub struct Texts {
    /// A file, or `-` for standard input.
    pub path: PathBuf,
    /// None: by the ending of the file's name; lines if it says nothing.
    pub format: Option<InputFormat>,
    /// Column of the text in a table.
    pub text: String,
    pub text_pair: Option<String>,
    /// Whether CSV and TSV have a header.
    pub header: bool,
}

type Rows = Box<dyn Iterator<Item = Result<TextRow>> + Send>;

impl Texts {
    /// Calls `found` with the rows in their order, some at a time. Of a file so many that memory stays bounded and batches
    /// are the same at every run; of standard input what is there, so that somebody who types gets an answer to each line.
    pub fn chunks(&self, mut found: impl FnMut(Vec<TextRow>) -> Result<()>) -> Result<()> {
        let rows = self.open()?;
        let (sender, receiver) = sync_channel(CHUNK);
        // Reads ahead; ends at an error, or when nobody takes the rows any more.
        std::thread::spawn(move || {
            for row in rows {
                let last = row.is_err();
                if sender.send(row).is_err() || last {
                    break;
                }
            }
        });
        let waits = !self.is_stream();
        loop {
            let (rows, error) = next_chunk(&receiver, waits);
            let ended = rows.is_empty();
            if !ended {
                found(rows)?;
            }
            match error {
                Some(error) => return Err(error),
                None if ended => return Ok(()),
                None => {}
            }
        }
    }

    /// The format, told or found out.
    fn format(&self) -> InputFormat {
        let by_ending = || match by_name(&self.path).0 {
            Some(Format::Tsv) => InputFormat::Tsv,
            Some(Format::Csv) => InputFormat::Csv,
            Some(Format::Jsonl) => InputFormat::Jsonl,
            _ => InputFormat::Lines,
        };
        self.format.unwrap_or_else(by_ending)
    }

    fn is_standard_input(&self) -> bool {
        self.path == Path::new("-")
    }

    /// Whether rows come when somebody writes them.
    fn is_stream(&self) -> bool {
        self.is_standard_input() && !std::fs::metadata(STANDARD_INPUT).is_ok_and(|meta| meta.is_file())
    }

    fn open(&self) -> Result<Rows> {
        let path = if self.is_standard_input() { Path::new(STANDARD_INPUT) } else { &self.path };
        let is_parquet = self.format.is_none() && by_name(&self.path).0 == Some(Format::Parquet);
        let format = match self.format() {
            _ if is_parquet => Format::Parquet,
            InputFormat::Lines => return self.lines(path),
            InputFormat::Tsv => Format::Tsv,
            InputFormat::Csv => Format::Csv,
            InputFormat::Jsonl => Format::Jsonl,
        };
        let columns: Vec<&str> = std::iter::once(self.text.as_str()).chain(self.text_pair.as_deref()).collect();
        let rows = readers::open(path, &Options { format: Some(format), header: self.header, ..Options::columns(&columns) })?;
        let (text, text_pair) = (self.text.clone(), self.text_pair.clone());
        Ok(Box::new(rows.enumerate().map(move |(number, row)| {
            let row = row?;
            let pair = text_pair.as_deref().map(|column| row.require(column).map(str::to_string)).transpose()?;
            Ok(TextRow { index: number.to_string(), text: row.require(&text)?.into(), text_pair: pair, label: None })
        })))
    }

    fn lines(&self, path: &Path) -> Result<Rows> {
        let (is_pair, name) = (self.text_pair.is_some(), path.display().to_string());
        Ok(Box::new(Lines::open(path, MAX_LINE)?.enumerate().map(move |(number, line)| {
            let line = line?;
            let (text, text_pair) = match (is_pair, line.text.split_once('\t')) {
                (false, _) => (line.text, None),
                (true, Some((a, b))) => (a.to_string(), Some(b.to_string())),
                (true, None) => return Err(anyhow!("{name}: line {}: one text, expected two with a tab between them", line.number)),
            };
            Ok(TextRow { index: number.to_string(), text, text_pair, label: None })
        })))
    }
}

/// Rows until the chunk is full or, if it does not wait, none is ready; and the error that came behind them.
fn next_chunk(receiver: &Receiver<Result<TextRow>>, waits: bool) -> (Vec<TextRow>, Option<anyhow::Error>) {
    let mut rows = Vec::new();
    while rows.len() < CHUNK {
        let next = match waits || rows.is_empty() {
            true => receiver.recv().ok(),
            false => receiver.try_recv().ok(),
        };
        match next {
            Some(Ok(row)) => rows.push(row),
            Some(Err(error)) => return (rows, Some(error)),
            None => break,
        }
    }
    (rows, None)
}
