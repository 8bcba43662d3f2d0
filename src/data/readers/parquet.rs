//! Parquet: the columns that are asked for, page by page.

use super::super::DataError;
use super::{no_column, parquet_pages, Options, Row, Rows};
use crate::native::panics::silently;
use parquet::basic::Type as Physical;
use parquet::column::reader::{get_column_reader, ColumnReader, ColumnReaderImpl};
use parquet::data_type::DataType;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use std::collections::VecDeque;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// The bytes of a value; None if it is null.
type Cell = Option<Vec<u8>>;

/// Records decoded at once.
const BATCH: usize = 256;

pub fn open(path: &Path, options: &Options) -> Result<Rows, DataError> {
    let path: Arc<Path> = path.into();
    let file = File::open(&path).map_err(DataError::io(&*path))?;
    let metadata = guarded(&path, || ParquetMetaDataReader::new().parse_and_finish(&file))?;
    let schema = metadata.file_metadata().schema_descr_ptr();
    let found = (0..schema.num_columns()).map(|i| (i, schema.column(i))).filter(|(_, column)| {
        let wanted = options.columns.is_empty() || options.columns.contains(&column.path().string());
        wanted && column.max_rep_level() == 0 && !matches!(column.physical_type(), Physical::INT96 | Physical::FIXED_LEN_BYTE_ARRAY)
    });
    let (indices, names): (Vec<usize>, Vec<String>) = found.map(|(i, column)| (i, column.path().string())).unzip();
    if let Some(missing) = options.columns.iter().find(|c| !names.contains(c)) {
        let all: Vec<String> = (0..schema.num_columns()).map(|i| schema.column(i).path().string()).collect();
        let message = match all.contains(missing) {
            true => format!("column \"{missing}\" is a list or of a type that is not text or a number"),
            false => no_column(missing, &all),
        };
        return Err(DataError::Row { path: path.to_path_buf(), line: 1, message });
    }
    let columns: Arc<[String]> = names.into();
    let table = Table {
        path,
        file,
        metadata,
        indices,
        columns: columns.clone(),
        next_group: 0,
        open: Vec::new(),
        ready: VecDeque::new(),
        record: 0,
        left: 0,
        finished: false,
    };
    Ok(Rows { columns: Some(columns), records: Box::new(table) })
}

struct Table {
    path: Arc<Path>,
    file: File,
    metadata: ParquetMetaData,
    indices: Vec<usize>,
    columns: Arc<[String]>,
    next_group: usize,
    /// Readers of the row group that is being read.
    open: Vec<(ColumnReader, i16)>,
    ready: VecDeque<Vec<Cell>>,
    record: u64,
    /// Records of the row group that are still to come.
    left: usize,
    finished: bool,
}

impl Table {
    /// Decodes the next records; none are ready behind the last.
    fn fill(&mut self) -> Result<(), DataError> {
        while self.left == 0 {
            if self.next_group == self.metadata.num_row_groups() {
                return Ok(());
            }
            let (file, group, indices) = (&self.file, self.metadata.row_group(self.next_group), &self.indices);
            let rows = group.num_rows().max(0) as usize;
            let (left, open) = guarded(&self.path, || {
                let column = |i: &usize| {
                    let chunk = group.column(*i);
                    let description = chunk.column_descr_ptr();
                    let depth = description.max_def_level();
                    Ok((get_column_reader(description, parquet_pages::pages(file, chunk, rows)?), depth))
                };
                Ok((rows, indices.iter().map(column).collect::<Result<Vec<_>, ParquetError>>()?))
            })?;
            (self.left, self.open) = (left, open);
            self.next_group += 1;
        }
        let (count, open) = (self.left.min(BATCH), &mut self.open);
        let cells =
            guarded(&self.path, || open.iter_mut().map(|(column, depth)| cells(column, *depth, count)).collect::<Result<Vec<_>, _>>())?;
        self.left -= count;
        let mut cells: Vec<_> = cells.into_iter().map(Vec::into_iter).collect();
        self.ready.extend((0..count).map(|_| cells.iter_mut().map(|column| column.next().flatten()).collect::<Vec<_>>()));
        Ok(())
    }

    fn row(&mut self, cells: Vec<Cell>) -> Result<Row, DataError> {
        self.record += 1;
        let text = |(cell, column): (Cell, &String)| match cell.map(String::from_utf8).transpose() {
            Ok(Some(text)) if text.contains('\0') => Err(format!("column \"{column}\" holds a NUL character")),
            Ok(text) => Ok(text),
            Err(e) => Err(format!("column \"{column}\" is not UTF-8 at byte {}", e.utf8_error().valid_up_to())),
        };
        let values = cells.into_iter().zip(self.columns.iter()).map(text).collect::<Result<Vec<_>, _>>();
        let bad = |message| DataError::Row { path: self.path.to_path_buf(), line: self.record as usize, message };
        Ok(Row { path: self.path.clone(), line: self.record, columns: self.columns.clone(), values: values.map_err(bad)? })
    }
}

impl Iterator for Table {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ready.is_empty() && !self.finished {
            if let Err(error) = self.fill() {
                self.finished = true;
                return Some(Err(error));
            }
        }
        let cells = self.ready.pop_front()?;
        Some(self.row(cells))
    }
}

/// `count` cells of a column.
fn cells(column: &mut ColumnReader, depth: i16, count: usize) -> Result<Vec<Cell>, ParquetError> {
    match column {
        ColumnReader::BoolColumnReader(c) => typed(c, depth, count, |v| v.to_string().into()),
        ColumnReader::Int32ColumnReader(c) => typed(c, depth, count, |v| v.to_string().into()),
        ColumnReader::Int64ColumnReader(c) => typed(c, depth, count, |v| v.to_string().into()),
        ColumnReader::FloatColumnReader(c) => typed(c, depth, count, |v| v.to_string().into()),
        ColumnReader::DoubleColumnReader(c) => typed(c, depth, count, |v| v.to_string().into()),
        ColumnReader::ByteArrayColumnReader(c) => typed(c, depth, count, |v| v.data().to_vec()),
        ColumnReader::Int96ColumnReader(_) | ColumnReader::FixedLenByteArrayColumnReader(_) => {
            Err(ParquetError::General("a type that is neither text nor a number".into()))
        }
    }
}

fn typed<T: DataType>(
    column: &mut ColumnReaderImpl<T>,
    depth: i16,
    count: usize,
    bytes: impl Fn(T::T) -> Vec<u8>,
) -> Result<Vec<Cell>, ParquetError> {
    let mut cells = Vec::with_capacity(count);
    while cells.len() < count {
        let (mut values, mut levels) = (Vec::new(), Vec::new());
        let (records, _, _) = column.read_records(count - cells.len(), (depth > 0).then_some(&mut levels), None, &mut values)?;
        if records == 0 {
            return Err(ParquetError::General("a column has fewer values than the file says".into()));
        }
        let mut values = values.into_iter();
        for at in 0..records {
            let there = levels.get(at).is_none_or(|level| *level == depth);
            cells.push(if there { values.next().map(&bytes) } else { None });
        }
    }
    Ok(cells)
}

/// Errors of the crate, and its panics on files that are not what they say, as errors of the file.
fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, DataError> {
    let damaged = |message: String| DataError::Damaged { path: path.into(), what: "parquet".into(), message };
    match silently(read) {
        Ok(result) => result.map_err(|e| damaged(e.to_string().lines().next().unwrap_or_default().to_string())),
        Err(panic) => Err(damaged(panic)),
    }
}
