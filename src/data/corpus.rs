//! The files of a corpus: from paths, folders and globs to a sorted list with stable names.

use super::readers::by_name;
use super::DataError;
use crate::random::hash_name;
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

/// A file of a corpus.
#[derive(Clone, Debug, PartialEq)]
pub struct CorpusFile {
    /// Path below the folder that was given, or the file's name: stable when the corpus moves or grows.
    pub id: String,
    pub path: PathBuf,
}

/// The files behind some paths, sorted by id, each once. A path that is a file is taken whatever its ending; of folders
/// those are taken whose ending is known, hidden ones not.
pub fn files(paths: &[PathBuf]) -> Result<Vec<CorpusFile>, DataError> {
    let mut found = Vec::new();
    for path in paths {
        match std::fs::metadata(path) {
            Ok(_) => add(path, &name_of(path), &mut found)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_glob(path) => glob(path, &mut found)?,
            Err(source) => return Err(DataError::Corpus { path: path.clone(), source }),
        }
    }
    found.sort_by(|a, b| (&a.id, &a.path).cmp(&(&b.id, &b.path)));
    let mut seen = HashSet::new();
    found.retain(|file| seen.insert(file.path.canonicalize().unwrap_or_else(|_| file.path.clone())));
    match found.is_empty() {
        true => Err(no_text(paths, String::new())),
        false => Ok(found),
    }
}

/// Whether a document is held out: a function of its key alone.
pub fn is_held_out(id: &str, fraction: f64) -> bool {
    is_key_held_out(hash_name(id), fraction)
}

/// The same of a key that is a hash already.
pub fn is_key_held_out(key: u64, fraction: f64) -> bool {
    // FNV's high bits move little between short names; a multiplication by an odd constant spreads them.
    let spread = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11;
    (spread as f64 / (1u64 << 53) as f64) < fraction
}

pub(super) fn no_text(paths: &[PathBuf], dropped: String) -> DataError {
    DataError::NoText { paths: paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "), dropped }
}

fn is_glob(path: &Path) -> bool {
    path.to_string_lossy().contains(['*', '?', '['])
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

fn glob(pattern: &Path, found: &mut Vec<CorpusFile>) -> Result<(), DataError> {
    let corpus = |source| DataError::Corpus { path: pattern.into(), source };
    let options = glob::MatchOptions { require_literal_separator: true, require_literal_leading_dot: true, case_sensitive: true };
    let matches = glob::glob_with(&pattern.to_string_lossy(), options)
        .map_err(|e| corpus(io::Error::new(io::ErrorKind::InvalidInput, format!("not a glob: {e}"))))?;
    // Ids begin behind the last folder without a wildcard.
    let fixed: PathBuf = pattern.iter().take_while(|part| !is_glob(Path::new(part))).collect();
    let before = found.len();
    for path in matches {
        let path = path.map_err(|e| corpus(e.into()))?;
        let id = path.strip_prefix(&fixed).unwrap_or(&path).to_string_lossy().into_owned();
        add(&path, &id, found)?;
    }
    match found.len() == before {
        true => Err(corpus(io::Error::new(io::ErrorKind::NotFound, "nothing matches"))),
        false => Ok(()),
    }
}

/// A file under its id, or all below a folder that was given.
fn add(path: &Path, id: &str, found: &mut Vec<CorpusFile>) -> Result<(), DataError> {
    if path.is_dir() {
        return walk(path, "", &mut Vec::new(), found);
    }
    found.push(CorpusFile { id: id.into(), path: path.into() });
    Ok(())
}

/// `above`: the folders on the way here, so that a link to one of them is no circle.
fn walk(folder: &Path, prefix: &str, above: &mut Vec<PathBuf>, found: &mut Vec<CorpusFile>) -> Result<(), DataError> {
    let identity = folder.canonicalize().map_err(DataError::io(folder))?;
    if above.contains(&identity) {
        return Ok(());
    }
    above.push(identity);
    for entry in std::fs::read_dir(folder).map_err(DataError::io(folder))? {
        let path = entry.map_err(DataError::io(folder))?.path();
        let name = name_of(&path);
        let id = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
        if name.starts_with('.') {
            continue;
        } else if path.is_dir() {
            walk(&path, &id, above, found)?;
        } else if by_name(&path).0.is_some() {
            found.push(CorpusFile { id, path });
        }
    }
    above.pop();
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        folder
    }

    fn ids(paths: &[PathBuf]) -> Vec<String> {
        files(paths).unwrap().into_iter().map(|f| f.id).collect()
    }

    #[test]
    fn folders_files_and_globs_give_sorted_ids_and_no_file_twice() {
        let folder = folder(&["b/2.txt", "a.txt", "c.jsonl.gz", "d.parquet", "notes.md", ".hidden.txt", ".git/x.txt", "wiki.tokens"]);
        let at = |name: &str| folder.path().join(name);
        let all = ["a.txt", "b/2.txt", "c.jsonl.gz", "d.parquet"];
        assert_eq!(ids(&[folder.path().into()]), all);
        assert_eq!(ids(&[folder.path().into(), at("a.txt"), at("b")]).len(), 4, "a file stands there twice");
        assert_eq!(ids(&[at("wiki.tokens")]), ["wiki.tokens"]);
        assert_eq!(ids(&[at("*.txt")]), ["a.txt"]);
        assert_eq!(ids(&[at("**/*.txt")]), ["a.txt", "b/2.txt"]);
        assert_eq!(ids(&[at("?.[tj]*")]), ["a.txt", "c.jsonl.gz"]);
        let message = files(&[at("*.csv")]).unwrap_err().to_string();
        assert!(message.contains("*.csv: nothing matches"), "{message}");
        std::os::unix::fs::symlink(folder.path(), at("b/circle")).unwrap();
        assert_eq!(ids(&[folder.path().into()]), all, "a link to a folder above");
    }

    #[test]
    fn the_held_out_share_is_the_fraction_and_does_not_move_when_documents_come() {
        let held: Vec<bool> = (0..10_000).map(|i| is_held_out(&format!("austen/emma/{i:02}.txt"), 0.1)).collect();
        let share = held.iter().filter(|h| **h).count() as f64 / held.len() as f64;
        assert!((share - 0.1).abs() < 5.0 * (0.09f64 / 10_000.0).sqrt(), "{share}");
    }
}
