//! What there is to learn from: one row a corpus, task, tokenizer or encoder, with its home, licence, size and checksum.
//!
//! Sizes and SHA-256 of the GLUE, MRPC and IMDB files are those that Hugging Face `datasets` recorded for the same
//! addresses (`dataset_infos.json`); those of WikiText are the Git LFS ids of the pinned revision; those of the packages were
//! measured on downloads of 2026-11-25. A file that is not exactly this is refused.

mod rows;

pub use rows::CATALOGUE;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

type Text = Cow<'static, str>;

/// One row.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub name: Text,
    pub kind: Kind,
    pub about: Text,
    pub licence: Text,
    /// A page for people.
    pub home: Text,
    /// Where it goes below the data folder.
    pub folder: Text,
    /// What names it in a config, below that folder.
    pub config: Text,
    /// The files to bring; none for what lies in the repository.
    #[serde(default)]
    pub files: Cow<'static, [Origin]>,
    pub arrange: Arrange,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Corpus,
    Task,
    Tokenizer,
    Encoder,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Corpus => "corpus",
            Self::Task => "task",
            Self::Tokenizer => "tokenizer",
            Self::Encoder => "encoder",
        }
    }
}

/// A file that is fetched.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    pub from: From,
    pub bytes: u64,
    /// Lower-case hexadecimal.
    pub sha256: Text,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum From {
    Url(Text),
    /// A wheel: package, version.
    Pip(Text, Text),
    /// A tarball: package, version.
    Npm(Text, Text),
}

/// What becomes of the files.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Arrange {
    /// Nothing is fetched: it is in the repository.
    Embedded,
    /// Nothing is fetched: `data derive` makes it from the embedded corpus.
    Derived,
    /// Made by `linformer data listops`.
    Generated,
    /// Each file under the name at its place in this list.
    Place(Cow<'static, [Text]>),
    /// The one file is an archive: what stands below `root`, or only these files of it.
    Unpack { root: Text, only: Cow<'static, [Text]> },
    /// GLUE's train, dev and test of the MRPC from Microsoft's two files and the ids of the dev rows.
    Mrpc,
    /// TSVs from the CSV of the package.
    MovieReviews,
    /// Plain text from word/tag.
    Brown,
    /// `vocab.json` and `merges.txt` under the names that readers know.
    Gpt2Tokenizer,
    /// JSONL with title, text and topic.
    WikiSummaries,
}

impl Entry {
    /// Bytes that are fetched.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }

    /// Where its files come from, shortly.
    pub fn source(&self) -> String {
        match self.files.first().map(|f| &f.from) {
            None if matches!(self.arrange, Arrange::Derived) => "data derive".into(),
            None if matches!(self.arrange, Arrange::Generated) => "data listops".into(),
            None => "in the repository".into(),
            Some(From::Url(url)) => url.split('/').nth(2).unwrap_or(url).into(),
            Some(From::Pip(package, version)) => format!("PyPI {package} {version}"),
            Some(From::Npm(package, version)) => format!("npm {package} {version}"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_row_is_whole_and_no_two_share_a_place() {
        let names: HashSet<&str> = CATALOGUE.iter().map(|e| &*e.name).collect();
        let folders: HashSet<&str> = CATALOGUE.iter().map(|e| &*e.folder).collect();
        assert_eq!((names.len(), folders.len()), (CATALOGUE.len(), CATALOGUE.len()));
        for entry in &CATALOGUE {
            for file in entry.files.iter() {
                assert!(
                    file.sha256.len() == 64 && file.sha256.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)),
                    "{}",
                    entry.name
                );
                assert!(file.bytes > 0 && !matches!(&file.from, From::Url(url) if !url.starts_with("https://")), "{}", entry.name);
            }
            match &entry.arrange {
                Arrange::Embedded | Arrange::Derived | Arrange::Generated => assert!(entry.files.is_empty()),
                Arrange::Place(names) => assert_eq!(names.len(), entry.files.len(), "{}", entry.name),
                Arrange::Mrpc => assert_eq!(entry.files.len(), 3),
                _ => assert_eq!(entry.files.len(), 1, "{}", entry.name),
            }
            // A row survives its own JSON: an own catalogue has the same form.
            let json = serde_json::to_string(entry).unwrap();
            assert_eq!(serde_json::to_string(&serde_json::from_str::<Entry>(&json).unwrap()).unwrap(), json);
        }
    }

    #[test]
    fn every_task_known_by_name_has_a_row_and_lands_where_it_is_read() {
        for task in &crate::data::tasks::TASKS {
            let entry = CATALOGUE.iter().find(|e| e.name == task.name).unwrap_or_else(|| panic!("{} has no row", task.name));
            let folder = entry.folder.strip_prefix("glue/").unwrap_or(&entry.folder);
            assert_eq!(folder, task.folder, "{}", task.name);
        }
    }

    #[test]
    fn the_documentation_has_every_name_and_checksum() {
        let text = include_str!("../../docs/fetching.md");
        for entry in &CATALOGUE {
            assert!(text.contains(&format!("| `{}` |", entry.name)), "docs/fetching.md: no row for {}", entry.name);
            let missing = entry.files.iter().find(|f| !text.contains(&*f.sha256));
            assert!(missing.is_none(), "docs/fetching.md: {}: no checksum {:?}", entry.name, missing.map(|f| &f.sha256));
        }
    }
}
