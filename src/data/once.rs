//! Folders of a cache, made once.

use super::DataError;
use crate::durable::{publish, seal, MANIFEST};
use std::fs::File;
use std::path::Path;

/// Makes a folder if it is not there: `write` fills one aside and gives the names of its files, which is then sealed and renamed. One
/// process at a time: another that wants the same waits, and finds it made.
pub fn made_once(folder: &Path, format: u32, write: impl FnOnce(&Path) -> Result<Vec<String>, DataError>) -> Result<(), DataError> {
    if folder.join(MANIFEST).exists() {
        return Ok(());
    }
    let cache = folder.parent().unwrap_or(Path::new("."));
    let of_cache = |source| DataError::Cache { path: cache.into(), source };
    let (aside, lock) = (folder.with_extension("tmp"), folder.with_extension("lock"));
    std::fs::create_dir_all(cache).map_err(of_cache)?;
    let held = File::create(&lock).map_err(of_cache)?;
    held.lock().map_err(DataError::io(&lock))?;
    if folder.join(MANIFEST).exists() {
        return Ok(());
    }
    let _ = std::fs::remove_dir_all(&aside);
    std::fs::create_dir_all(&aside).map_err(of_cache)?;
    let result = write(&aside).and_then(|names| {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        seal(&aside, &names, format).map_err(|(path, source)| DataError::Io { path, source })?;
        publish(&aside, folder).map_err(DataError::io(folder))
    });
    if result.is_err() {
        let _ = std::fs::remove_dir_all(&aside);
    }
    result
}
