//! A task's sequences as token files: made once, then mapped, so that a task of a million rows opens at once.
//!
//! A folder named after everything it was made from holds, for each split, `NAME.bin` (a token file, a row being a document)
//! and `NAME.rows` (for each row the end of its ids and its label, 8 bytes each, little-endian), and `meta.json`.

use super::layout::{segments, Layout};
use super::leaks::{same_text, same_words};
use super::rows::{read, text_files, Skipped, TextRow, Want};
use super::{Example, TaskSpec};
use crate::config::{Config, OnError, OnOverlap};
use crate::data::once::made_once;
use crate::data::token_file::{Origin, TokenFile, TokenWriter};
use crate::data::tokenizer::Tokenizer;
use crate::data::DataError;
use crate::digest::{file_sha256, hex, sha256};
use crate::durable::verify;
use crate::native::mapped::MappedFile;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Raised when the same files would be prepared differently.
const FORMAT: u32 = 3;
/// Rows tokenized side by side: memory is that of so many.
const CHUNK: usize = 1024;
/// Bytes of `NAME.rows` a row.
const ENTRY: usize = 16;

/// What a task is prepared with, beside its files.
pub struct Settings<'a> {
    pub cache_dir: &'a Path,
    pub layout: Layout,
    pub on_error: OnError,
    pub on_overlap: OnOverlap,
}

impl<'a> Settings<'a> {
    /// `config` has the model that reads the task.
    pub fn new(config: &'a Config, tokenizer: &Tokenizer) -> Self {
        let data = &config.data;
        let layout = Layout {
            special: tokenizer.special,
            length: data.sequence_length as usize,
            truncation: data.truncation,
            segments: segments(&config.model, tokenizer).is_some(),
        };
        Self { cache_dir: &data.cache_dir, layout, on_error: data.on_error, on_overlap: data.on_overlap }
    }
}

/// What is known of a split.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SplitMeta {
    pub name: String,
    /// Of its file; of several, of their hashes.
    pub sha256: String,
    pub rows: usize,
    pub tokens: u64,
    /// Rows that were cut to the length.
    pub truncated: usize,
    /// Rows without any text.
    pub without_text: usize,
    /// Rows whose text stood in the split before.
    pub repeated: usize,
    /// Training rows whose text stands in a scored split, and the first of them.
    pub overlap: usize,
    pub overlap_first: Option<String>,
    pub skipped: Skipped,
}

#[derive(Serialize, Deserialize)]
struct Meta {
    splits: Vec<SplitMeta>,
}

/// The rows of a split, mapped.
pub struct Rows {
    pub meta: SplitMeta,
    tokens: TokenFile,
    index: MappedFile,
    count: usize,
}

impl Rows {
    fn open(folder: &Path, meta: SplitMeta, origin: &Origin) -> Result<Self, DataError> {
        let path = folder.join(format!("{}.rows", meta.name));
        let tokens = TokenFile::open(&folder.join(format!("{}.bin", meta.name)), origin, 0)?;
        let index = MappedFile::open(&path).map_err(DataError::io(&path))?;
        let rows = Self { count: meta.rows, meta, tokens, index };
        if rows.index.len() != rows.count * ENTRY
            || (0..rows.count).any(|i| rows.start(i) > rows.end(i))
            || rows.start(rows.count) != rows.tokens.len()
        {
            return Err(DataError::Shard { path, message: "does not fit its token file".into() });
        }
        Ok(rows)
    }

    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The first `count` rows only.
    pub fn truncate(&mut self, count: usize) {
        self.count = self.count.min(count);
    }

    fn word(&self, at: usize) -> u64 {
        self.index[at..at + 8].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
    }

    fn end(&self, row: usize) -> usize {
        self.word(row * ENTRY) as usize
    }

    fn start(&self, row: usize) -> usize {
        if row == 0 {
            0
        } else {
            self.end(row - 1)
        }
    }

    /// Tokens of a row.
    pub fn length(&self, row: usize) -> usize {
        self.end(row) - self.start(row)
    }

    pub fn lengths(&self) -> Vec<u32> {
        (0..self.count).map(|row| self.length(row) as u32).collect()
    }

    pub fn label(&self, row: usize) -> f64 {
        f64::from_bits(self.word(row * ENTRY + 8))
    }

    pub fn labels(&self) -> Vec<f64> {
        (0..self.count).map(|row| self.label(row)).collect()
    }

    pub fn example(&self, row: usize) -> Example {
        Example { id: row, ids: (self.start(row)..self.end(row)).map(|i| self.tokens.id(i)).collect(), label: self.label(row) }
    }
}

/// All labelled splits of a task.
pub struct Prepared {
    pub folder: PathBuf,
    pub train: Rows,
    /// As many as the task has scored splits, in their order.
    pub scored: Vec<Rows>,
}

/// Prepares a task, or opens what was prepared from the same files with the same settings.
pub fn prepare(spec: &TaskSpec, tokenizer: &Tokenizer, settings: &Settings) -> Result<Prepared, DataError> {
    let origin = origin(tokenizer)?;
    let tokenizer_id = hex(&origin.tokenizer_sha256);
    let fingerprint = fingerprint(spec, &tokenizer_id, settings)?;
    let folder = settings.cache_dir.join(format!("task-{}-{}-{}", slug(&spec.name), &tokenizer_id[..4], &fingerprint[..12]));
    made_once(&folder, FORMAT, |aside| {
        write_into(spec, tokenizer, &origin, settings, aside)?;
        Ok(file_names(spec))
    })?;
    open(spec, &folder, &origin)
}

/// Rows of another tokenizer are refused.
fn origin(tokenizer: &Tokenizer) -> Result<Origin, DataError> {
    let tokenizer_sha256 = Sha256::digest(tokenizer.identity()?.as_bytes()).into();
    Ok(Origin { vocab_size: tokenizer.vocab_size(), tokenizer_sha256, settings: [0; 8] })
}

fn open(spec: &TaskSpec, folder: &Path, origin: &Origin) -> Result<Prepared, DataError> {
    let names = file_names(spec);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    verify(folder, &names, FORMAT..=FORMAT)?;
    let path = folder.join("meta.json");
    let text = std::fs::read_to_string(&path).map_err(DataError::io(&path))?;
    let meta: Meta = serde_json::from_str(&text).map_err(|e| DataError::Shard { path, message: e.to_string() })?;
    let mut rows = meta.splits.into_iter().map(|split| Rows::open(folder, split, origin)).collect::<Result<Vec<_>, _>>()?;
    match rows.pop() {
        Some(train) => Ok(Prepared { folder: folder.into(), train, scored: rows }),
        None => Err(DataError::Shard { path: folder.into(), message: "meta.json names no splits".into() }),
    }
}

/// Scored splits first: the training rows are held against them. Names and files of each.
fn splits(spec: &TaskSpec) -> Vec<(String, &[PathBuf])> {
    let scored = spec.scored.iter().map(|s| (if s.name.is_empty() { "dev".into() } else { format!("dev_{}", s.name) }, s.files.as_slice()));
    scored.chain([("train".to_string(), spec.train.as_slice())]).collect()
}

fn file_names(spec: &TaskSpec) -> Vec<String> {
    let files = splits(spec).into_iter().flat_map(|(name, _)| [format!("{name}.bin"), format!("{name}.rows")]);
    files.chain(["meta.json".to_string()]).collect()
}

fn slug(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).take(32).collect()
}

/// Changes with any setting, the tokenizer, or a file's name, size or time of change.
fn fingerprint(spec: &TaskSpec, tokenizer_id: &str, settings: &Settings) -> Result<String, DataError> {
    let mut hash = Sha256::new();
    hash.update(format!("{FORMAT} {tokenizer_id} {:?} {} {}\n", settings.layout, settings.on_error, settings.on_overlap));
    let TaskSpec { text, headless_text, text_pair, label, labels, header, html_breaks, .. } = spec;
    hash.update(format!("{text:?} {headless_text:?} {text_pair:?} {label:?} {labels:?} {header} {html_breaks}\n"));
    for (name, files) in splits(spec) {
        hash.update(format!("{name}\n"));
        for path in all_files(spec, files)? {
            let meta = std::fs::metadata(&path).map_err(|source| missing(spec, &path, source))?;
            let changed = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |t| t.as_nanos());
            let full = path.canonicalize().unwrap_or_else(|_| path.clone());
            hash.update(format!("{}\0{}\0{changed}\n", full.display(), meta.len()));
        }
    }
    Ok(hex(&hash.finalize()))
}

fn missing(spec: &TaskSpec, path: &Path, source: std::io::Error) -> DataError {
    if source.kind() == std::io::ErrorKind::NotFound && super::TASKS.iter().any(|row| row.name == spec.name) {
        return DataError::Task(format!(
            "{}: no such file; set data.task_dir to the folder that holds the task's (as downloaded, or Hugging Face's parquet or JSON lines)",
            path.display()
        ));
    }
    DataError::Io { path: path.into(), source }
}

/// Files, and what is in a folder of labels.
fn all_files(spec: &TaskSpec, files: &[PathBuf]) -> Result<Vec<PathBuf>, DataError> {
    let mut all = Vec::new();
    for path in files {
        if path.is_dir() {
            for label in &spec.labels {
                all.extend(text_files(&path.join(label))?);
            }
        } else {
            all.push(path.clone());
        }
    }
    Ok(all)
}

fn checksum(spec: &TaskSpec, files: &[PathBuf]) -> Result<String, DataError> {
    let hashes = all_files(spec, files)?
        .iter()
        .map(|path| Ok(file_sha256(path).map_err(DataError::io(path))?.1))
        .collect::<Result<Vec<_>, DataError>>()?;
    Ok(match hashes.as_slice() {
        [one] => one.clone(),
        many => sha256(many.join("\n").as_bytes()),
    })
}

fn write_into(spec: &TaskSpec, tokenizer: &Tokenizer, origin: &Origin, settings: &Settings, aside: &Path) -> Result<(), DataError> {
    let mut scored = HashSet::new();
    let mut metas = Vec::new();
    for (name, files) in splits(spec) {
        let is_train = name == "train";
        let mut writer = SplitWriter::create(aside, name, tokenizer, origin, settings.layout)?;
        writer.meta.sha256 = checksum(spec, files)?;
        let mut skipped = Skipped::default();
        let (mut seen, mut first) = (HashSet::new(), None);
        read(spec, files, Want::Labelled, settings.on_error, &mut skipped, &mut |row| {
            writer.meta.repeated += usize::from(!seen.insert(same_text(&row)));
            let words = same_words(&row);
            if !is_train {
                scored.insert(words);
            } else if scored.contains(&words) {
                writer.meta.overlap += 1;
                first.get_or_insert_with(|| row.text.chars().take(80).collect::<String>());
                if settings.on_overlap == OnOverlap::Drop {
                    return Ok(());
                }
            }
            writer.push(row)
        })?;
        let mut meta = writer.finish()?;
        meta.overlap_first = first;
        meta.skipped = skipped;
        if meta.rows == 0 {
            let files = files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", ");
            return Err(DataError::Task(format!("{files}: no rows to use, expected one or more below the header")));
        }
        if is_train && settings.on_overlap == OnOverlap::Stop && meta.overlap > 0 {
            let text = meta.overlap_first.unwrap_or_default();
            return Err(DataError::Task(format!("data.on_overlap: {} training rows stand in a scored split too, the first is \"{text}\"; set it to drop to leave them out, or to warn", meta.overlap)));
        }
        metas.push(meta);
    }
    let path = aside.join("meta.json");
    let text = serde_json::to_string_pretty(&Meta { splits: metas }).unwrap_or_default();
    std::fs::write(&path, text).map_err(DataError::io(&path))
}

struct SplitWriter<'a> {
    meta: SplitMeta,
    tokens: TokenWriter,
    rows: BufWriter<File>,
    path: PathBuf,
    tokenizer: &'a Tokenizer,
    layout: Layout,
    waiting: Vec<TextRow>,
}

impl<'a> SplitWriter<'a> {
    fn create(folder: &Path, name: String, tokenizer: &'a Tokenizer, origin: &Origin, layout: Layout) -> Result<Self, DataError> {
        let path = folder.join(format!("{name}.rows"));
        let tokens = TokenWriter::create(&folder.join(format!("{name}.bin")), origin, 0)?;
        let rows = BufWriter::new(File::create(&path).map_err(DataError::io(&path))?);
        Ok(Self { meta: SplitMeta { name, ..SplitMeta::default() }, tokens, rows, path, tokenizer, layout, waiting: Vec::new() })
    }

    fn push(&mut self, row: TextRow) -> Result<(), DataError> {
        self.meta.without_text += usize::from(row.text.trim().is_empty() && row.text_pair.as_ref().is_none_or(|t| t.trim().is_empty()));
        self.waiting.push(row);
        if self.waiting.len() < CHUNK {
            return Ok(());
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<(), DataError> {
        let rows = std::mem::take(&mut self.waiting);
        for ((ids, cut), label) in sequences(&rows, self.tokenizer, self.layout)?.into_iter().zip(rows.iter().map(|r| r.label)) {
            // A sequence ends with the separator, as a document of a token file does.
            self.tokens.document(&ids)?;
            self.meta.rows += 1;
            self.meta.tokens += ids.len() as u64;
            self.meta.truncated += usize::from(cut);
            let mut entry = self.meta.tokens.to_le_bytes().to_vec();
            entry.extend(label.unwrap_or(f64::NAN).to_le_bytes());
            self.rows.write_all(&entry).map_err(DataError::io(&self.path))?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<SplitMeta, DataError> {
        self.flush()?;
        self.rows.flush().map_err(DataError::io(&self.path))?;
        self.tokens.finish()?;
        Ok(self.meta)
    }
}

/// The sequences of some rows, and whether each was cut.
pub fn sequences(rows: &[TextRow], tokenizer: &Tokenizer, layout: Layout) -> Result<Vec<(Vec<u32>, bool)>, DataError> {
    let first = tokenizer.encode_all(rows.iter().map(|r| r.text.clone()).collect())?;
    let pairs: Option<Vec<String>> = rows.iter().map(|r| r.text_pair.clone()).collect();
    let second = pairs.map(|pairs| tokenizer.encode_all(pairs)).transpose()?;
    Ok(first.iter().enumerate().map(|(i, a)| layout.sequence(a, second.as_ref().map(|s| s[i].as_slice()))).collect())
}
