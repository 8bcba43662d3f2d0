//! Corpus to token files, once: a folder named after everything it was made from, written aside and renamed.

use super::corpus::{documents, files, is_held_out, no_text, Document};
use super::token_file::{TokenFile, TokenWriter};
use super::tokenizer::Tokenizer;
use super::DataError;
use crate::config::Data;
use crate::digest::{file_sha256, hex};
use crate::durable::{publish, seal, verify, SealError, MANIFEST};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Raised when the same input would be prepared differently.
const FORMAT: u32 = 3;
/// What stands in a prepared folder, beside its manifest.
const FILES: [&str; 4] = ["tokenizer.json", "train.bin", "validation.bin", "meta.json"];
/// Documents encoded side by side; memory is that of one such batch.
const BATCH: usize = 64;

/// What a prepared folder says of itself (`meta.json`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Meta {
    pub format: u32,
    pub tokenizer_sha256: String,
    pub train_sha256: String,
    pub validation_sha256: String,
    pub vocab_size: usize,
    pub train: SplitCounts,
    pub validation: SplitCounts,
    /// How often each id stands in the training part: the unigram model that a trained one is held against.
    pub train_token_counts: Vec<u64>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct SplitCounts {
    pub documents: u64,
    pub tokens: u64,
    pub bytes: u64,
}

/// A prepared corpus, opened.
pub struct Prepared {
    pub folder: PathBuf,
    pub meta: Meta,
    pub tokenizer: Tokenizer,
    pub train: TokenFile,
    pub validation: TokenFile,
}

/// Prepares the corpus of `data`, or opens what was prepared from the same files with the same settings.
/// `tokenizer` is a checkpoint's, to be used instead of the config's.
pub fn prepare(data: &Data, tokenizer: Option<&Path>) -> Result<Prepared, DataError> {
    let paths = data.corpus.as_ref().map(|c| c.paths()).unwrap_or_default();
    let files = files(&paths)?;
    let folder = data.cache_dir.join(format!("corpus-{}", &fingerprint(data, tokenizer, &files)?[..16]));
    if !folder.join(MANIFEST).exists() {
        write(data, tokenizer, &files, &folder, &paths)?;
    }
    open(&folder)
}

/// Opens a prepared folder, after every byte of it has been checked against its manifest.
pub fn open(folder: &Path) -> Result<Prepared, DataError> {
    verify(folder, &FILES, FORMAT..=FORMAT).map_err(|error| match error {
        SealError::Read { path, source } => DataError::Io { path, source },
        SealError::Broken { path, message } => DataError::Shard { path, message },
    })?;
    let path = folder.join("meta.json");
    let text = std::fs::read_to_string(&path).map_err(DataError::io(&path))?;
    let meta: Meta =
        serde_json::from_str(&text).map_err(|e| DataError::Shard { path: folder.into(), message: format!("meta.json: {e}") })?;
    let tokenizer = Tokenizer::load(&folder.join("tokenizer.json"))?;
    let open = |name: &str| TokenFile::open(&folder.join(name), tokenizer.vocab_size());
    let (train, validation) = (open("train.bin")?, open("validation.bin")?);
    Ok(Prepared { folder: folder.into(), meta, tokenizer, train, validation })
}

/// Changes with any setting, the tokenizer, or a file's name, size or time of change.
fn fingerprint(data: &Data, tokenizer: Option<&Path>, files: &[(String, PathBuf)]) -> Result<String, DataError> {
    let mut hash = Sha256::new();
    hash.update(format!("{FORMAT} {} {} {} {}\n", data.document, data.tokenizer, data.vocab_size, data.validation_fraction));
    let own = Path::new(&data.tokenizer);
    if let Some(path) = tokenizer.or_else(|| is_path(&data.tokenizer).then_some(own)) {
        hash.update(std::fs::read(path).map_err(DataError::io(path))?);
    }
    for (id, path) in files {
        let meta = std::fs::metadata(path).map_err(DataError::io(path))?;
        let changed = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |t| t.as_nanos());
        let full = path.canonicalize().unwrap_or_else(|_| path.clone());
        hash.update(format!("{id}\0{}\0{}\0{changed}\n", full.display(), meta.len()));
    }
    Ok(hex(&hash.finalize()))
}

fn is_path(tokenizer: &str) -> bool {
    !matches!(tokenizer, "byte_bpe" | "bytes")
}

/// One process at a time: another that wants the same waits, and finds it made.
fn write(data: &Data, tokenizer: Option<&Path>, files: &[(String, PathBuf)], folder: &Path, paths: &[PathBuf]) -> Result<(), DataError> {
    let (aside, lock) = (folder.with_extension("tmp"), folder.with_extension("lock"));
    std::fs::create_dir_all(&data.cache_dir).map_err(DataError::io(&data.cache_dir))?;
    let held = File::create(&lock).map_err(DataError::io(&lock))?;
    held.lock().map_err(DataError::io(&lock))?;
    if folder.join(MANIFEST).exists() {
        return Ok(());
    }
    let result = write_into(data, tokenizer, files, &aside, paths).and_then(|()| {
        seal(&aside, &FILES, FORMAT).map_err(|(path, source)| DataError::Io { path, source })?;
        publish(&aside, folder).map_err(DataError::io(folder))
    });
    if result.is_err() {
        let _ = std::fs::remove_dir_all(&aside);
    }
    result
}

fn write_into(
    data: &Data,
    tokenizer: Option<&Path>,
    files: &[(String, PathBuf)],
    aside: &Path,
    paths: &[PathBuf],
) -> Result<(), DataError> {
    let _ = std::fs::remove_dir_all(aside);
    std::fs::create_dir_all(aside).map_err(DataError::io(aside))?;
    let tokenizer = make_tokenizer(data, tokenizer, files)?;
    let json = tokenizer.to_json()?;
    let save = |name: &str, text: &str| std::fs::write(aside.join(name), text).map_err(DataError::io(aside.join(name)));
    save("tokenizer.json", &json)?;
    let vocab_size = tokenizer.vocab_size();
    let mut writers =
        [TokenWriter::create(&aside.join("train.bin"), vocab_size)?, TokenWriter::create(&aside.join("validation.bin"), vocab_size)?];
    let mut bytes = [0u64; 2];
    let mut counts = vec![0u64; vocab_size];
    let mut all = documents(files, data.document).peekable();
    if all.peek().is_none() {
        return Err(no_text(paths));
    }
    while all.peek().is_some() {
        let batch: Vec<Document> = all.by_ref().take(BATCH).collect::<Result<_, _>>()?;
        let splits: Vec<usize> = batch.iter().map(|d| usize::from(is_held_out(&d.id, data.validation_fraction))).collect();
        splits.iter().zip(&batch).for_each(|(split, d)| bytes[*split] += d.text.len() as u64);
        let encoded = tokenizer.encode_all(batch.into_iter().map(|d| d.text).collect())?;
        for (ids, split) in encoded.iter().zip(&splits) {
            writers[*split].document(ids, tokenizer.special.sep)?;
            if *split == 0 {
                ids.iter().for_each(|id| counts[*id as usize] += 1);
            }
        }
    }
    let [train, validation] = writers;
    let ((train_tokens, train_documents), (tokens, documents)) = (train.finish()?, validation.finish()?);
    let sha256_of = |name: &str| file_sha256(&aside.join(name)).map(|(_, sha256)| sha256).map_err(DataError::io(aside.join(name)));
    let meta = Meta {
        format: FORMAT,
        tokenizer_sha256: hex(&Sha256::digest(json.as_bytes())),
        train_sha256: sha256_of("train.bin")?,
        validation_sha256: sha256_of("validation.bin")?,
        vocab_size,
        train: SplitCounts { documents: train_documents, tokens: train_tokens, bytes: bytes[0] },
        validation: SplitCounts { documents, tokens, bytes: bytes[1] },
        train_token_counts: counts,
    };
    save("meta.json", &serde_json::to_string_pretty(&meta).unwrap_or_default())
}

/// Trained on the training part alone.
fn make_tokenizer(data: &Data, given: Option<&Path>, files: &[(String, PathBuf)]) -> Result<Tokenizer, DataError> {
    if let Some(path) = given {
        return Tokenizer::load(path);
    }
    match data.tokenizer.as_str() {
        "bytes" => Tokenizer::bytes(),
        "byte_bpe" => {
            let training = documents(files, data.document).filter(|d| !matches!(d, Ok(d) if is_held_out(&d.id, data.validation_fraction)));
            let texts: Vec<String> = training.map(|d| Ok(d?.text)).collect::<Result<_, DataError>>()?;
            Tokenizer::train_byte_bpe(&texts, data.vocab_size)
        }
        path => Tokenizer::load(Path::new(path)),
    }
}
