//! Documents from text files: which there are, what each says, and which are held out.

use super::{read_text, DataError};
use crate::config::DocumentRule;
use crate::random::hash_name;
use std::path::{Path, PathBuf};

/// A piece of text that stands for itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Path below the corpus folder (with `#number` for a part of a file): stable when the corpus moves or grows.
    pub id: String,
    pub text: String,
}

/// Text files of a corpus with their ids, sorted by id.
pub fn files(paths: &[PathBuf]) -> Result<Vec<(String, PathBuf)>, DataError> {
    let mut found = Vec::new();
    for path in paths {
        let meta = std::fs::metadata(path).map_err(|source| DataError::Corpus { path: path.clone(), source })?;
        if meta.is_dir() {
            walk(path, "", &mut found)?;
        } else {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            found.push((name, path.clone()));
        }
    }
    found.sort();
    if found.is_empty() {
        return Err(no_text(paths));
    }
    Ok(found)
}

/// Every document with some text, file by file.
pub fn documents(files: &[(String, PathBuf)], rule: DocumentRule) -> impl Iterator<Item = Result<Document, DataError>> + '_ {
    files.iter().flat_map(move |(id, path)| match read_text(path) {
        Ok(text) => split(id, text, rule).into_iter().map(Ok).collect::<Vec<_>>(),
        Err(error) => vec![Err(error)],
    })
}

/// Whether a document is held out: a function of its id alone.
pub fn is_held_out(id: &str, fraction: f64) -> bool {
    // FNV's high bits move little between short names; a multiplication by an odd constant spreads them.
    let spread = hash_name(id).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11;
    (spread as f64 / (1u64 << 53) as f64) < fraction
}

pub(super) fn no_text(paths: &[PathBuf]) -> DataError {
    DataError::NoText { paths: paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ") }
}

fn walk(folder: &Path, prefix: &str, found: &mut Vec<(String, PathBuf)>) -> Result<(), DataError> {
    for entry in std::fs::read_dir(folder).map_err(DataError::io(folder))? {
        let path = entry.map_err(DataError::io(folder))?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let id = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        if path.is_dir() {
            walk(&path, &id, found)?;
        } else if path.extension().is_some_and(|e| e == "txt") {
            found.push((id, path));
        }
    }
    Ok(())
}

fn split(id: &str, text: String, rule: DocumentRule) -> Vec<Document> {
    let parts: Vec<String> = match rule {
        DocumentRule::File => vec![text],
        DocumentRule::Line => text.lines().map(str::to_string).collect(),
        DocumentRule::BlankLine => {
            let lines: Vec<&str> = text.lines().collect();
            lines.split(|line| line.trim().is_empty()).map(|block| block.join("\n")).collect()
        }
    };
    let whole = rule == DocumentRule::File;
    let named = parts.into_iter().enumerate().map(|(i, text)| Document { id: if whole { id.into() } else { format!("{id}#{i}") }, text });
    named.filter(|d| !d.text.trim().is_empty()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn corpus(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        folder
    }

    fn read(folder: &tempfile::TempDir, rule: DocumentRule) -> Result<Vec<Document>, DataError> {
        documents(&files(&[folder.path().to_path_buf()])?, rule).collect()
    }

    #[test]
    fn folders_are_walked_in_the_order_of_ids_and_a_bom_is_dropped() {
        let folder = corpus(&[("b/2.txt", b"two"), ("a.txt", b"\xef\xbb\xbfone"), ("skipped.md", b"x"), ("empty.txt", b"\n")]);
        let documents = read(&folder, DocumentRule::File).unwrap();
        assert_eq!(documents, [Document { id: "a.txt".into(), text: "one".into() }, Document { id: "b/2.txt".into(), text: "two".into() }]);
    }

    #[test]
    fn blank_lines_and_lines_part_documents() {
        let folder = corpus(&[("a.txt", b"one\ntwo\n\n\nthree\n")]);
        let texts = |rule| read(&folder, rule).unwrap().into_iter().map(|d| (d.id, d.text)).collect::<Vec<_>>();
        assert_eq!(texts(DocumentRule::BlankLine), [("a.txt#0".into(), "one\ntwo".to_string()), ("a.txt#2".into(), "three".into())]);
        assert_eq!(texts(DocumentRule::Line).len(), 3);
    }

    #[test]
    fn bad_bytes_are_named_with_their_place() {
        let message = |bytes: &[u8]| read(&corpus(&[("x.txt", bytes)]), DocumentRule::File).unwrap_err().to_string();
        assert!(message(b"abc\xffdef").contains("x.txt: not UTF-8 at byte 3"));
        assert!(message(b"abcd\0ef").contains("x.txt: a NUL byte at byte 4"));
    }

    #[test]
    fn the_held_out_share_is_the_fraction_and_does_not_move_when_documents_come() {
        let held: Vec<bool> = (0..10_000).map(|i| is_held_out(&format!("austen/emma/{i:02}.txt"), 0.1)).collect();
        let share = held.iter().filter(|h| **h).count() as f64 / held.len() as f64;
        assert!((share - 0.1).abs() < 5.0 * (0.09f64 / 10_000.0).sqrt(), "{share}");
    }
}
