//! Corpus to token files, once: a folder named after everything it was made from, written aside and renamed.
//!
//! One thread reads documents, all cores encode them batch by batch, and ids are written in the order of the documents: the
//! files are the same whatever the number of threads, and memory is that of a few batches however large the corpus is.

use super::corpus::{files, no_text, CorpusFile};
use super::documents::{documents, Counts, Document};
use super::once::made_once;
use super::token_file::{Origin, Totals};
use super::tokenizer::{pieces, Kind, Tokenizer};
use super::tokens::{lines_name, shard_name, SplitWriter, Tokens, SHARD_TOKENS};
use super::DataError;
use crate::config::{Data, Sampling};
use crate::digest::hex;
use crate::durable::verify;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::time::UNIX_EPOCH;

/// Raised when the same input would be prepared differently.
const FORMAT: u32 = 4;
const SPLITS: [&str; 2] = ["train", "validation"];
/// A prepared folder of up to this many bytes is read and compared with its hashes whenever it is opened; of a larger one the
/// headers are checked, and the rest by `linformer data verify`.
const VERIFIED_AT_OPEN: u64 = 1 << 30;
/// Text encoded side by side.
const BATCH_BYTES: usize = 1 << 20;
/// Text encoded at once by one core.
const PIECE_BYTES: usize = 1 << 14;

/// What a prepared folder says of itself (`meta.json`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Meta {
    pub format: u32,
    pub settings_sha256: String,
    pub tokenizer_sha256: String,
    pub train_sha256: String,
    pub validation_sha256: String,
    pub vocab_size: usize,
    pub found: Counts,
    /// Whether the lengths of lines were kept (`data.sampling` other than `packed`).
    pub lines: bool,
    pub train: SplitCounts,
    pub validation: SplitCounts,
    /// How often each id stands in the training part: the unigram model that a trained one is held against.
    pub train_token_counts: Vec<u64>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct SplitCounts {
    pub shards: usize,
    pub documents: u64,
    pub tokens: u64,
    pub bytes: u64,
}

/// A prepared corpus, opened.
pub struct Prepared {
    pub folder: PathBuf,
    pub meta: Meta,
    pub tokenizer: Tokenizer,
    pub train: Tokens,
    pub validation: Tokens,
}

/// Prepares the corpus of `data`, or opens what was prepared from the same files with the same settings.
/// `tokenizer` is a checkpoint's, to be used instead of the config's.
pub fn prepare(data: &Data, tokenizer: Option<&Path>) -> Result<Prepared, DataError> {
    let job = Job::new(data, tokenizer)?;
    made_once(&job.folder, FORMAT, |aside| Ok(job.write_into(aside)?.file_names()))?;
    open(&job.folder)
}

/// The folder that [`prepare`] would open or make.
pub fn prepared_folder(data: &Data, tokenizer: Option<&Path>) -> Result<PathBuf, DataError> {
    Ok(Job::new(data, tokenizer)?.folder)
}

/// Opens a prepared folder: sizes, headers and small files are always checked, all bytes if there are few enough.
pub fn open(folder: &Path) -> Result<Prepared, DataError> {
    open_checked(folder, VERIFIED_AT_OPEN)
}

/// Opens a prepared folder and compares every byte with its hashes.
pub fn open_verified(folder: &Path) -> Result<Prepared, DataError> {
    open_checked(folder, u64::MAX)
}

fn open_checked(folder: &Path, verified: u64) -> Result<Prepared, DataError> {
    let check = |names: &[String]| {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        verify(folder, &names, FORMAT..=FORMAT).map_err(DataError::from)
    };
    check(&["tokenizer.json", "meta.json"].map(str::to_string))?;
    let path = folder.join("meta.json");
    let text = std::fs::read_to_string(&path).map_err(DataError::io(&path))?;
    let damaged = |message: String| DataError::Shard { path: folder.into(), message: format!("meta.json: {message}") };
    let meta: Meta = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
    let names = meta.file_names();
    let size = |name: &String| folder.join(name).metadata().map_or(0, |m| m.len());
    if names.iter().map(size).sum::<u64>() <= verified {
        check(&names)?;
    }
    let path = folder.join("tokenizer.json");
    let json = std::fs::read(&path).map_err(DataError::io(&path))?;
    let tokenizer = Tokenizer::load(&path)?;
    let settings = unhex(&meta.settings_sha256).ok_or_else(|| damaged("settings_sha256 is not a hash".into()))?;
    let origin = origin(&tokenizer, &json, &settings);
    let split = |name: &str, counts: &SplitCounts| Tokens::open(folder, name, &origin, counts.shards, meta.lines);
    let (train, validation) = (split(SPLITS[0], &meta.train)?, split(SPLITS[1], &meta.validation)?);
    Ok(Prepared { folder: folder.into(), meta, tokenizer, train, validation })
}

impl Meta {
    /// Everything in the folder but its manifest.
    fn file_names(&self) -> Vec<String> {
        let mut names = vec!["tokenizer.json".to_string(), "meta.json".to_string()];
        for (split, counts) in SPLITS.iter().zip([&self.train, &self.validation]) {
            names.extend((0..counts.shards).map(|shard| shard_name(split, shard)));
            names.extend(self.lines.then(|| lines_name(split)));
        }
        names
    }
}

fn origin(tokenizer: &Tokenizer, json: &[u8], settings: &[u8; 32]) -> Origin {
    let mut first = [0; 8];
    first.copy_from_slice(&settings[..8]);
    Origin { vocab_size: tokenizer.vocab_size(), tokenizer_sha256: Sha256::digest(json).into(), settings: first }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let bytes: Option<Vec<u8>> = (0..32).map(|i| u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()).collect();
    bytes?.try_into().ok()
}

/// One preparation: what is read, how, and where it goes.
struct Job<'a> {
    data: &'a Data,
    /// The tokenizer's file or folder, if it is not made here.
    tokenizer: Option<&'a Path>,
    paths: Vec<PathBuf>,
    files: Vec<CorpusFile>,
    settings: [u8; 32],
    folder: PathBuf,
}

impl<'a> Job<'a> {
    fn new(data: &'a Data, tokenizer: Option<&'a Path>) -> Result<Self, DataError> {
        let own = (Kind::by_name(&data.tokenizer).is_none() && data.tokenizer != "bytes").then(|| Path::new(&data.tokenizer));
        let tokenizer = tokenizer.or(own);
        let paths = data.corpus.as_ref().map(|c| c.paths()).unwrap_or_default();
        let files = files(&paths)?;
        let settings = fingerprint(data, tokenizer, &files)?;
        let folder = data.cache_dir.join(format!("corpus-{}", &hex(&settings)[..16]));
        Ok(Self { data, tokenizer, paths, files, settings, folder })
    }

    fn write_into(&self, aside: &Path) -> Result<Meta, DataError> {
        let tokenizer = self.make_tokenizer()?;
        let json = tokenizer.to_json()?;
        let save = |name: &str, text: &str| std::fs::write(aside.join(name), text).map_err(DataError::io(aside.join(name)));
        save("tokenizer.json", &json)?;
        if let Some(declared) = tokenizer.declaration()? {
            save("special_tokens_map.json", &declared.to_string())?;
        }
        let origin = origin(&tokenizer, json.as_bytes(), &self.settings);
        let lines = self.data.sampling != Sampling::Packed;
        let create = |split| SplitWriter::create(aside, split, &origin, SHARD_TOKENS, lines);
        let mut output = Output {
            tokenizer: &tokenizer,
            lines,
            writers: [create(SPLITS[0])?, create(SPLITS[1])?],
            bytes: [0; 2],
            counts: vec![0; tokenizer.vocab_size()],
        };
        let found = self.encode(&mut output)?;
        if found.documents == 0 {
            return Err(no_text(&self.paths, if found.dropped().is_empty() { String::new() } else { format!(" ({})", found.dropped()) }));
        }
        let Output { writers: [train, validation], bytes, counts, .. } = output;
        let split =
            |(shards, totals): (usize, Totals), bytes| SplitCounts { shards, documents: totals.documents, tokens: totals.tokens, bytes };
        let (train, validation) = (split(train.finish()?, bytes[0]), split(validation.finish()?, bytes[1]));
        let sha256 = |name, counts: &SplitCounts| Tokens::open(aside, name, &origin, counts.shards, false).map(|tokens| tokens.sha256());
        let meta = Meta {
            format: FORMAT,
            settings_sha256: hex(&self.settings),
            tokenizer_sha256: hex(&origin.tokenizer_sha256),
            train_sha256: sha256(SPLITS[0], &train)?,
            validation_sha256: sha256(SPLITS[1], &validation)?,
            vocab_size: tokenizer.vocab_size(),
            found,
            lines,
            train,
            validation,
            train_token_counts: counts,
        };
        save("meta.json", &serde_json::to_string_pretty(&meta).unwrap_or_default())?;
        Ok(meta)
    }

    /// Reads in a thread of its own while batches are encoded here.
    fn encode(&self, output: &mut Output) -> Result<Counts, DataError> {
        let (sender, receiver) = sync_channel::<Result<Vec<Document>, DataError>>(2);
        std::thread::scope(move |scope| {
            let reader = scope.spawn(move || {
                let mut all = documents(&self.files, self.data);
                loop {
                    let batch = next_batch(&mut all);
                    let ends = batch.as_ref().map_or(true, |b| b.is_empty());
                    // Nobody receives any more when encoding has failed.
                    if sender.send(batch).is_err() || ends {
                        return all.counts;
                    }
                }
            });
            while let Ok(batch) = receiver.recv() {
                let batch = batch?;
                if batch.is_empty() {
                    break;
                }
                output.add(&batch, self.data.validation_fraction)?;
            }
            drop(receiver);
            reader.join().map_err(|_| DataError::Task("the thread that reads the corpus has failed".into()))
        })
    }

    /// Trained on the training part alone.
    fn make_tokenizer(&self) -> Result<Tokenizer, DataError> {
        match (self.tokenizer, Kind::by_name(&self.data.tokenizer)) {
            (Some(path), _) => Tokenizer::load(path),
            (None, None) => Tokenizer::bytes(),
            (None, Some(kind)) => Tokenizer::train(kind, self.sample(), self.data.vocab_size),
        }
    }

    /// Training documents up to the wanted amount of text, chosen by their hash if the corpus is larger.
    fn sample(&self) -> impl Iterator<Item = Result<String, DataError>> + '_ {
        let limit = self.data.tokenizer_sample_mib << 20;
        let size: u64 = self.files.iter().map(|f| f.path.metadata().map_or(0, |m| m.len())).sum();
        let share = limit as f64 / size.max(1) as f64;
        let mut taken = 0;
        let training = documents(&self.files, self.data).filter(move |document| match document {
            Ok(d) => !d.is_held_out(self.data.validation_fraction) && (share >= 1.0 || d.is_sampled(share)),
            Err(_) => true,
        });
        training.map(|d| Ok(d?.text)).take_while(move |text| {
            let goes_on = taken < limit;
            taken += text.as_ref().map_or(0, |t| t.len() as u64);
            goes_on
        })
    }
}

/// Documents with about [`BATCH_BYTES`] of text; none at the end.
fn next_batch(all: &mut impl Iterator<Item = Result<Document, DataError>>) -> Result<Vec<Document>, DataError> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while bytes < BATCH_BYTES {
        let Some(document) = all.next().transpose()? else { break };
        bytes += document.text.len();
        batch.push(document);
    }
    Ok(batch)
}

/// Where encoded documents go.
struct Output<'a> {
    tokenizer: &'a Tokenizer,
    lines: bool,
    /// Training and validation.
    writers: [SplitWriter; 2],
    bytes: [u64; 2],
    /// Of each id, in training.
    counts: Vec<u64>,
}

impl Output<'_> {
    fn add(&mut self, batch: &[Document], validation_fraction: f64) -> Result<(), DataError> {
        let mut parts: Vec<(usize, &str)> = Vec::new();
        for (i, document) in batch.iter().enumerate() {
            match self.lines {
                true => document.text.split_inclusive('\n').for_each(|line| parts.extend(pieces(line, PIECE_BYTES).map(|p| (i, p)))),
                false => parts.extend(pieces(&document.text, PIECE_BYTES).map(|p| (i, p))),
            }
        }
        let encoded: Vec<Vec<u32>> = parts.par_iter().map(|(_, piece)| self.tokenizer.encode(piece)).collect::<Result<_, _>>()?;
        let mut from = 0;
        for (i, document) in batch.iter().enumerate() {
            let to = from + parts[from..].partition_point(|(document, _)| *document == i);
            let split = usize::from(document.is_held_out(validation_fraction));
            self.writers[split].document(&encoded[from..to], self.tokenizer.special.sep)?;
            self.bytes[split] += document.text.len() as u64;
            if split == 0 {
                encoded[from..to].iter().flatten().for_each(|id| self.counts[*id as usize] += 1);
            }
            from = to;
        }
        Ok(())
    }
}

/// Changes with any setting, the tokenizer, or a file's name, size or time of change.
fn fingerprint(data: &Data, tokenizer: Option<&Path>, files: &[CorpusFile]) -> Result<[u8; 32], DataError> {
    let mut hash = Sha256::new();
    hash.update(format!("{FORMAT} {} {} {} {}\n", data.document, data.tokenizer, data.vocab_size, data.validation_fraction));
    let (least, sample) = (data.min_document_characters, data.tokenizer_sample_mib);
    hash.update(format!("{} {} {least} {} {} {sample}\n", data.text_column, data.deduplicate, data.normalization, data.on_error));
    hash.update(format!("lines {}\n", data.sampling != Sampling::Packed));
    if let Some(path) = tokenizer {
        hash.update(Tokenizer::load(path)?.identity()?);
    }
    for CorpusFile { id, path } in files {
        let meta = std::fs::metadata(path).map_err(DataError::io(path))?;
        let changed = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |t| t.as_nanos());
        let full = path.canonicalize().unwrap_or_else(|_| path.clone());
        hash.update(format!("{id}\0{}\0{}\0{changed}\n", full.display(), meta.len()));
    }
    Ok(hash.finalize().into())
}
