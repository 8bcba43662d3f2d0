//! Pages of a parquet column, refused if they claim more than their bytes can hold.
//!
//! The crate believes what a page's header says: sizes, lengths of statistics, counts of dictionary entries. In a damaged
//! file these ask for gigabytes, and memory that cannot be had ends the process. So a header is walked here first
//! (Thrift's compact protocol, [`parquet.thrift`](https://github.com/apache/parquet-format)), and what follows stays in
//! proportion to the bytes that are there.

use bytes::Bytes;
use parquet::basic::{Compression, Encoding};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;
use std::fs::File;
use std::io::{BufReader, Read};
use std::sync::Arc;

/// Structures inside a page header; the deepest of the format is three.
const DEPTH: usize = 8;

/// The pages of a column chunk; `deepest` is the column's highest definition level.
pub fn pages(file: &File, chunk: &ColumnChunkMetaData, rows: usize) -> Result<Box<dyn PageReader>> {
    let source = Checked { file: file.try_clone()?, expansion: expansion(chunk.compression())? };
    let inner = SerializedPageReader::new(Arc::new(source), chunk, rows, None)?;
    Ok(Box::new(CheckedPages { inner, has_levels: chunk.column_descr().max_def_level() > 0 }))
}

/// The most bytes that one compressed byte can become.
fn expansion(codec: Compression) -> Result<u64> {
    match codec {
        Compression::UNCOMPRESSED => Ok(1),
        // A copy of 64 bytes takes two or three.
        Compression::SNAPPY => Ok(32),
        Compression::GZIP(_) => Ok(1032),
        // A block of 128 KiB of one byte takes four.
        Compression::ZSTD(_) => Ok(32 << 10),
        other => Err(damaged(format!("compression {other} is not read; write the file with snappy, gzip, zstd or none"))),
    }
}

fn damaged(message: String) -> ParquetError {
    ParquetError::General(message)
}

/// The file, with each page header looked through before the crate reads it.
struct Checked {
    file: File,
    expansion: u64,
}

impl Length for Checked {
    fn len(&self) -> u64 {
        self.file.len()
    }
}

impl ChunkReader for Checked {
    type T = BufReader<File>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        let there = self.len().saturating_sub(start);
        let mut header = Header { from: self.file.get_read(start)?.take(there), sizes: [0; 2] };
        header.structure(0)?;
        let [plain, packed] = header.sizes;
        if packed > header.from.limit() {
            return Err(damaged(format!("a page of {packed} bytes is said to begin {there} bytes before the file's end")));
        }
        // A few bytes of frame around nothing are allowed for.
        if plain > (packed + 64).saturating_mul(self.expansion) {
            return Err(damaged(format!("a page of {packed} bytes cannot hold the {plain} that its header says")));
        }
        self.file.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let there = self.len().saturating_sub(start);
        if length as u64 > there {
            return Err(damaged(format!("{length} bytes are said to follow where the file has {there}")));
        }
        self.file.get_bytes(start, length)
    }
}

/// A page header as it is walked: every length in it is held against the bytes that are left.
struct Header {
    from: std::io::Take<BufReader<File>>,
    /// Its fields 2 and 3: bytes of the page before and after compression.
    sizes: [u64; 2],
}

impl Header {
    fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        self.from.read_exact(&mut byte).map_err(|_| damaged("a page header is cut off".into()))?;
        Ok(byte[0])
    }

    fn varint(&mut self) -> Result<u64> {
        varint(|| self.byte())?.ok_or_else(|| damaged("a page header holds a number of more than 64 bits".into()))
    }

    fn skip(&mut self, bytes: u64) -> Result<()> {
        if bytes > self.from.limit() {
            return Err(damaged(format!("a page header speaks of {bytes} bytes, {} are left of the file", self.from.limit())));
        }
        std::io::copy(&mut (&mut self.from).take(bytes), &mut std::io::sink())?;
        Ok(())
    }

    fn structure(&mut self, depth: usize) -> Result<()> {
        let mut field = 0i64;
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Ok(());
            }
            field = match head >> 4 {
                0 => unzigzag(self.varint()?),
                step => field.saturating_add(i64::from(step)),
            };
            match (depth, field, head & 0xf) {
                (0, 2 | 3, 5) => {
                    let size = unzigzag(self.varint()?);
                    let size = u64::try_from(size).map_err(|_| damaged(format!("a page of {size} bytes")))?;
                    self.sizes[(field - 2) as usize] = size;
                }
                // True and false are the type itself.
                (_, _, 1 | 2) => {}
                (_, _, kind) => self.value(kind, depth)?,
            }
        }
    }

    fn value(&mut self, kind: u8, depth: usize) -> Result<()> {
        match kind {
            1..=3 => self.skip(1),
            4..=6 => self.varint().map(drop),
            7 => self.skip(8),
            8 => {
                let length = self.varint()?;
                self.skip(length)
            }
            12 if depth < DEPTH => self.structure(depth + 1),
            // The format has no lists, sets or maps in a page header.
            _ => Err(damaged(format!("a page header holds a value of type {kind}"))),
        }
    }
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// The crate's pages, with the counts inside them held against their bytes.
struct CheckedPages {
    inner: SerializedPageReader<Checked>,
    has_levels: bool,
}

impl CheckedPages {
    fn check(&self, page: &Page) -> Result<()> {
        let (encoding, bytes, values) = (page.encoding(), page.buffer(), page.num_values() as usize);
        match (page, encoding) {
            // Every entry of a dictionary takes a byte at least.
            (Page::DictionaryPage { .. }, _) if values > bytes.len() => {
                Err(damaged(format!("a dictionary of {values} entries in {} bytes", bytes.len())))
            }
            // The crate makes room for all lengths of such a page at once.
            (Page::DataPage { .. } | Page::DataPageV2 { .. }, Encoding::DELTA_LENGTH_BYTE_ARRAY | Encoding::DELTA_BYTE_ARRAY) => {
                let counted = delta_count(self.values(page));
                match counted.filter(|count| *count <= values as u64 && *count / 1024 <= bytes.len() as u64) {
                    Some(_) => Ok(()),
                    None => Err(damaged(format!("a page of {values} values in {} bytes says that it holds {counted:?}", bytes.len()))),
                }
            }
            _ => Ok(()),
        }
    }

    /// The bytes behind the definition levels. Columns that are read here have no repetition levels.
    fn values<'a>(&self, page: &'a Page) -> &'a [u8] {
        let bytes = page.buffer();
        let levels = match page {
            Page::DataPageV2 { def_levels_byte_len, rep_levels_byte_len, .. } => {
                *def_levels_byte_len as usize + *rep_levels_byte_len as usize
            }
            _ if self.has_levels => match bytes.first_chunk::<4>() {
                Some(length) => (u32::from_le_bytes(*length) as usize).saturating_add(4),
                None => usize::MAX,
            },
            _ => 0,
        };
        bytes.get(levels..).unwrap_or_default()
    }
}

/// The count of values in the header of a delta encoding: block size, miniblocks, count, first value.
fn delta_count(bytes: &[u8]) -> Option<u64> {
    let mut bytes = bytes.iter();
    let mut number = || varint(|| bytes.next().copied().ok_or(())).ok().flatten();
    let (_block, _miniblocks) = (number()?, number()?);
    number()
}

/// Seven bits a byte, the lowest first, the eighth set if more follow; None: more than 64 bits.
fn varint<E>(mut next: impl FnMut() -> std::result::Result<u8, E>) -> std::result::Result<Option<u64>, E> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = next()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

impl PageReader for CheckedPages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.inner.get_next_page()?;
        page.iter().try_for_each(|page| self.check(page))?;
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.inner.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.inner.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.inner.at_record_boundary()
    }
}

impl Iterator for CheckedPages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}
