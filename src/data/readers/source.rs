//! A file's bytes: decompressed by the ending of its name, one buffer at a time, without a byte-order mark.

use super::super::DataError;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::path::Path;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
    Bzip2,
    Xz,
}

/// What the records of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Plain text: documents are made of its lines.
    Text,
    /// One JSON object a line.
    Jsonl,
    /// Comma-separated with quotes (RFC 4180) and a header.
    Csv,
    /// Tab-separated without quoting: a `"` is a character, a row is a line (GLUE).
    Tsv,
    /// Apache Parquet, as Hugging Face stores datasets.
    Parquet,
}

impl Format {
    /// Whether the file holds records with columns.
    pub fn is_table(self) -> bool {
        self != Self::Text
    }
}

/// Endings of the files that are read when a folder is given.
pub const ENDINGS: &str = ".txt, .jsonl, .csv, .tsv (each also .gz, .zst, .bz2, .xz), .parquet";

/// XZ dictionaries larger than this are refused (`xz -9` has 64 MiB).
const XZ_MEMORY_KIB: u32 = 256 << 10;
const BUFFER: usize = 1 << 17;
/// The byte-order mark of UTF-8.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// Format and compression by the ending of a name; no format if the ending is none of [`ENDINGS`].
pub fn by_name(path: &Path) -> (Option<Format>, Compression) {
    let name = path.file_name().map(|n| n.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let compressions = [(".gz", Compression::Gzip), (".zst", Compression::Zstd), (".bz2", Compression::Bzip2), (".xz", Compression::Xz)];
    let packed = compressions.iter().find_map(|(ending, compression)| Some((name.strip_suffix(ending)?, *compression)));
    let (stem, compression) = packed.unwrap_or((&name, Compression::None));
    let formats = [(".txt", Format::Text), (".jsonl", Format::Jsonl), (".csv", Format::Csv), (".tsv", Format::Tsv)];
    let format = match (stem.ends_with(".parquet"), compression) {
        // Parquet compresses by itself, and has to be read from its end.
        (true, Compression::None) => Some(Format::Parquet),
        (true, _) => None,
        _ => formats.iter().find_map(|(ending, format)| stem.ends_with(ending).then_some(*format)),
    };
    (format, compression)
}

/// Bytes of a text file and how many were dropped at its start (a byte-order mark).
pub struct Source {
    pub bytes: Box<dyn Read + Send>,
    pub skipped: u64,
}

/// Opens a file; what is read from it is decompressed.
pub fn open(path: &Path) -> Result<Source, DataError> {
    let file = File::open(path).map_err(DataError::io(path))?;
    if file.metadata().map_err(DataError::io(path))?.is_dir() {
        return Err(DataError::io(path)(io::Error::other("is a folder, expected a file")));
    }
    let file = BufReader::with_capacity(BUFFER, file);
    let bytes: Box<dyn Read + Send> = match by_name(path).1 {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(file).map_err(DataError::io(path))?),
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(file)),
        Compression::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(file, true, XZ_MEMORY_KIB)),
    };
    without_mark(bytes).map_err(|e| damaged(path, e))
}

fn without_mark(mut bytes: Box<dyn Read + Send>) -> io::Result<Source> {
    let mut start = Vec::with_capacity(3);
    // A byte at a time: who types one letter and Enter is not kept waiting for a third byte.
    while start.len() < MARK.len() && MARK.starts_with(&start) && bytes.by_ref().take(1).read_to_end(&mut start)? == 1 {}
    let skipped = if start == MARK { 3 } else { 0 };
    start.drain(..skipped);
    Ok(Source { bytes: Box::new(Cursor::new(start).chain(bytes)), skipped: skipped as u64 })
}

/// An error met while reading, with what it means for a compressed file.
pub fn damaged(path: &Path, source: io::Error) -> DataError {
    match by_name(path).1 {
        Compression::None => DataError::Io { path: path.into(), source },
        compression => {
            DataError::Damaged { path: path.into(), what: format!("{compression:?}").to_lowercase(), message: source.to_string() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ending_decides() {
        let by = |name: &str| by_name(Path::new(name));
        assert_eq!(by("a/B.TXT.gz"), (Some(Format::Text), Compression::Gzip));
        assert_eq!(by("x.tsv.xz"), (Some(Format::Tsv), Compression::Xz));
        assert_eq!(by("x.parquet"), (Some(Format::Parquet), Compression::None));
        assert_eq!(by("x.parquet.gz").0, None);
        assert_eq!(by("wiki.valid.tokens"), (None, Compression::None));
    }
}
