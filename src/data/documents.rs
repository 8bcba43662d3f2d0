//! Documents from the files of a corpus, one after the other: how text is parted, what is left out, and how much of it.
//!
//! Memory is that of one document, and of 16 bytes for each when duplicates are left out.

use super::corpus::{is_key_held_out, CorpusFile};
use super::readers::lines::Lines;
use super::readers::{self, by_name, Options, MAX_RECORD_BYTES};
use super::DataError;
use crate::config::{Data, DocumentRule, Normalization, OnError};
use crate::random::hash_name;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::path::Path;
use unicode_normalization::{is_nfc, UnicodeNormalization};

/// A piece of text that stands for itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The file's id, with `#number` where a file has several.
    pub id: String,
    pub text: String,
    /// Decides whether it is held out.
    pub key: u64,
}

impl Document {
    pub fn is_held_out(&self, fraction: f64) -> bool {
        is_key_held_out(self.key, fraction)
    }

    /// Whether it is in a sample of this share, whatever is held out.
    pub fn is_sampled(&self, share: f64) -> bool {
        is_key_held_out(self.key.rotate_left(32) ^ 0x5bd1_e995, share)
    }
}

/// What was found and what was left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    pub files: u64,
    /// Documents that were kept.
    pub documents: u64,
    /// Left out: no text but white space.
    pub empty: u64,
    /// Left out: shorter than `data.min_document_characters`.
    pub short: u64,
    /// Left out: the same text stood there before.
    pub duplicates: u64,
    /// Left out because `data.on_error` is `skip`; the first few with their places.
    pub invalid: u64,
    pub first_invalid: Vec<String>,
}

impl Counts {
    /// What was left out, as words; empty if nothing was.
    pub fn dropped(&self) -> String {
        let parts = [(self.empty, "empty"), (self.short, "too short"), (self.duplicates, "duplicates"), (self.invalid, "invalid")];
        let named = parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
        named.collect::<Vec<_>>().join(", ")
    }
}

/// How many places of invalid records are kept.
const PLACES: usize = 5;

/// The documents of a corpus in the order of its files.
pub struct Documents<'a> {
    data: &'a Data,
    files: std::slice::Iter<'a, CorpusFile>,
    current: Option<Box<dyn Iterator<Item = Result<Document, DataError>> + Send>>,
    seen: HashSet<u128>,
    pub counts: Counts,
}

/// Every document that `data` wants.
pub fn documents<'a>(files: &'a [CorpusFile], data: &'a Data) -> Documents<'a> {
    Documents { data, files: files.iter(), current: None, seen: HashSet::new(), counts: Counts::default() }
}

impl Documents<'_> {
    fn keep(&mut self, mut document: Document) -> Option<Document> {
        if document.text.trim().is_empty() {
            self.counts.empty += 1;
            return None;
        }
        if self.data.normalization == Normalization::Nfc && !is_nfc(&document.text) {
            document.text = document.text.nfc().collect();
        }
        let least = self.data.min_document_characters;
        if least > 0 && document.text.chars().take(least).count() < least {
            self.counts.short += 1;
            return None;
        }
        let hash = content_hash(document.text.trim());
        if self.data.deduplicate && !self.seen.insert(hash) {
            self.counts.duplicates += 1;
            return None;
        }
        if document.id.contains('#') {
            document.key = hash as u64;
        }
        self.counts.documents += 1;
        Some(document)
    }

    fn open(&self, file: &CorpusFile) -> Result<Box<dyn Iterator<Item = Result<Document, DataError>> + Send>, DataError> {
        let is_table = by_name(&file.path).0.is_some_and(|format| format.is_table());
        match (is_table, self.data.document) {
            (true, _) => Ok(Box::new(records(file, &self.data.text_column)?)),
            (false, DocumentRule::Record) => Err(DataError::Corpus {
                path: file.path.clone(),
                source: std::io::Error::other("a text file has no records (data.document is record)"),
            }),
            (false, rule) => Ok(Box::new(TextDocuments::open(file, rule, MAX_RECORD_BYTES)?)),
        }
    }
}

impl Iterator for Documents<'_> {
    type Item = Result<Document, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some(current) = &mut self.current else {
                let file = self.files.next()?;
                self.counts.files += 1;
                match self.open(file) {
                    Ok(documents) => self.current = Some(documents),
                    Err(error) => return Some(Err(error)),
                }
                continue;
            };
            match current.next() {
                None => self.current = None,
                Some(Ok(document)) => {
                    if let Some(document) = self.keep(document) {
                        return Some(Ok(document));
                    }
                }
                Some(Err(error)) if error.is_record() && self.data.on_error == OnError::Skip => {
                    self.counts.invalid += 1;
                    if self.counts.first_invalid.len() < PLACES {
                        self.counts.first_invalid.push(error.to_string());
                    }
                }
                Some(Err(error)) => return Some(Err(error)),
            }
        }
    }
}

fn content_hash(text: &str) -> u128 {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().take(16).fold(0, |hash, byte| hash << 8 | u128::from(*byte))
}

/// One document a record.
fn records(file: &CorpusFile, column: &str) -> Result<impl Iterator<Item = Result<Document, DataError>> + Send, DataError> {
    let rows = readers::open(&file.path, &Options::columns(&[column]))?;
    let (id, column) = (file.id.clone(), column.to_string());
    Ok(rows.map(move |row| {
        let row = row?;
        let is_null = row.get(&column).is_none() && row.columns.contains(&column);
        let text = if is_null { "" } else { row.require(&column)? };
        Ok(Document { id: format!("{id}#{}", row.line), text: text.to_string(), key: 0 })
    }))
}

/// The documents of a text file.
struct TextDocuments {
    id: String,
    rule: DocumentRule,
    lines: Lines,
    limit: usize,
    text: String,
    /// First line of the document that is being collected.
    first: u64,
    /// Why it will be refused.
    error: Option<DataError>,
    /// The line before the next one is blank, or there is none.
    after_blank: bool,
    number: u64,
    finished: bool,
}

impl TextDocuments {
    fn open(file: &CorpusFile, rule: DocumentRule, limit: usize) -> Result<Self, DataError> {
        let lines = Lines::open(&file.path, limit)?;
        let id = file.id.clone();
        Ok(Self { id, rule, lines, limit, text: String::new(), first: 1, error: None, after_blank: true, number: 0, finished: false })
    }

    /// What was collected, if it is a document.
    fn take(&mut self) -> Option<Result<Document, DataError>> {
        let mut text = std::mem::take(&mut self.text);
        if let Some(error) = self.error.take() {
            return Some(Err(error));
        }
        if self.rule == DocumentRule::File {
            return Some(Ok(Document { key: hash_name(&self.id), id: self.id.clone(), text }));
        }
        if text.trim().is_empty() {
            return None;
        }
        text.truncate(text.trim_end_matches('\n').len());
        self.number += 1;
        Some(Ok(Document { id: format!("{}#{}", self.id, self.number), text, key: 0 }))
    }

    fn add(&mut self, line: &str, ended: bool, path: &Path, number: u64) {
        if self.text.is_empty() {
            self.first = number;
        }
        if self.error.is_none() && self.text.len() + line.len() > self.limit {
            let message =
                format!("a document of more than {} MiB begins here; part the text by data.document (blank_line, line)", self.limit >> 20);
            self.error = Some(DataError::Row { path: path.into(), line: self.first as usize, message });
        }
        if self.error.is_some() {
            self.text.clear();
            return;
        }
        self.text.push_str(line);
        if ended {
            self.text.push('\n');
        }
    }

    /// Takes in a line; gives the document that ends before it or with it.
    fn line(&mut self, line: readers::lines::Line) -> Option<Result<Document, DataError>> {
        let path = self.lines.path().to_path_buf();
        let blank = line.text.trim().is_empty();
        let begins = match self.rule {
            DocumentRule::BlankLine => blank,
            DocumentRule::Wikitext => self.after_blank && is_title(&line.text),
            DocumentRule::Line => true,
            DocumentRule::File | DocumentRule::Record => false,
        };
        let ready = if begins { self.take() } else { None };
        if !(blank && self.rule == DocumentRule::BlankLine) {
            self.add(&line.text, line.ended, &path, line.number);
        }
        self.after_blank = blank;
        ready
    }
}

impl Iterator for TextDocuments {
    type Item = Result<Document, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.finished {
            let ready = match self.lines.next() {
                Some(Ok(line)) => self.line(line),
                Some(Err(error)) if error.is_record() => {
                    let before = if self.rule == DocumentRule::Line { self.take() } else { None };
                    self.error.get_or_insert(error);
                    self.text.clear();
                    self.after_blank = false;
                    before
                }
                Some(Err(error)) => {
                    self.finished = true;
                    Some(Err(error))
                }
                None => {
                    self.finished = true;
                    self.take()
                }
            };
            if ready.is_some() {
                return ready;
            }
        }
        None
    }
}

/// ` = Robert Boulter = `, not ` = = Career = = `.
fn is_title(line: &str) -> bool {
    let inner = line.trim().strip_prefix("= ").and_then(|l| l.strip_suffix(" ="));
    inner.is_some_and(|title| !title.trim().is_empty() && !title.starts_with('=') && !title.ends_with('='))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::data::corpus::files;

    fn corpus(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        folder
    }

    fn read(folder: &tempfile::TempDir, change: impl Fn(&mut Data)) -> (Vec<(String, String)>, Vec<String>, Counts) {
        let mut data = Data::default();
        change(&mut data);
        let files = files(&[folder.path().to_path_buf()]).unwrap();
        let mut all = documents(&files, &data);
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for document in all.by_ref() {
            match document {
                Ok(document) => good.push((document.id, document.text)),
                Err(error) => bad.push(error.to_string()),
            }
        }
        (good, bad, all.counts)
    }

    fn texts(folder: &tempfile::TempDir, change: impl Fn(&mut Data)) -> Vec<String> {
        read(folder, change).0.into_iter().map(|d| d.1).collect()
    }

    #[test]
    fn each_rule_parts_a_text_in_its_way() {
        let folder = corpus(&[("a.txt", b"\xef\xbb\xbfone\r\ntwo\n\n\nthree\n")]);
        let by = |rule| texts(&folder, |d| d.document = rule);
        assert_eq!(by(DocumentRule::File), ["one\ntwo\n\n\nthree\n"]);
        assert_eq!(by(DocumentRule::Line), ["one", "two", "three"]);
        assert_eq!(by(DocumentRule::BlankLine), ["one\ntwo", "three"]);
        assert!(read(&folder, |d| d.document = DocumentRule::Record).1[0].contains("a text file has no records"));
    }

    #[test]
    fn wikitext_articles_begin_with_a_title_of_the_first_level() {
        let text = b" \n = First = \n \n Text . \n \n = = Part = = \n \n More = text = \n = no title = \n \n = Second = \n \n End . \n";
        let parts = texts(&corpus(&[("w.txt", text)]), |d| d.document = DocumentRule::Wikitext);
        assert_eq!(parts.len(), 2, "{parts:?}");
        assert!(parts[0].contains("= = Part = =") && parts[0].contains("no title") && parts[1].starts_with(" = Second = "));
    }

    #[test]
    fn records_are_documents_and_nulls_are_empty() {
        let folder = corpus(&[
            ("a.jsonl", b"{\"text\": \"one\"}\n{\"text\": null}\n"),
            ("b.csv", b"id,text\n1,\"two, and\"\n2,\n"),
            ("c.tsv", b"text\tid\n\"three\t3\n"),
        ]);
        let (good, bad, counts) = read(&folder, |_| ());
        let expected = [("a.jsonl#1", "one"), ("b.csv#2", "two, and"), ("c.tsv#2", "\"three")];
        assert_eq!(good, expected.map(|(a, b)| (a.to_string(), b.to_string())));
        assert_eq!((bad.len(), counts.files, counts.documents, counts.empty), (0, 3, 3, 2));
        let (_, bad, _) = read(&folder, |d| d.text_column = "body".into());
        assert!(bad[0].contains("a.jsonl: line 1: no column \"body\"; the columns are text"), "{bad:?}");
    }

    #[test]
    fn filters_count_what_they_leave_out() {
        let folder = corpus(&[("a.txt", "caf\u{e9} au lait\n\ncafe\u{301} au lait\n\nshort\n\ncaf\u{e9} au lait\n".as_bytes())]);
        let (good, _, counts) = read(&folder, |d| {
            d.document = DocumentRule::BlankLine;
            d.deduplicate = true;
            d.min_document_characters = 8;
            d.normalization = Normalization::Nfc;
        });
        assert_eq!(good.len(), 1);
        assert_eq!((counts.documents, counts.duplicates, counts.short), (1, 2, 1));
        assert_eq!(counts.dropped(), "1 too short, 2 duplicates");
    }

    #[test]
    fn a_bad_record_stops_with_its_place_or_is_counted() {
        let folder =
            corpus(&[("a.txt", b"one\n\ncaf\xe9\nmore\n\nthree\n"), ("b.jsonl", b"{\"text\": \"x\"}\nnot json\n{\"text\": \"y\"}")]);
        let (_, bad, _) = read(&folder, |d| d.document = DocumentRule::BlankLine);
        assert!(bad[0].contains("a.txt: line 3: not UTF-8 at byte 8"), "{bad:?}");
        let skip = |d: &mut Data| {
            d.document = DocumentRule::BlankLine;
            d.on_error = OnError::Skip;
        };
        let (good, bad, counts) = read(&folder, skip);
        assert_eq!((good.len(), bad.len(), counts.invalid), (4, 0, 2));
        assert!(counts.first_invalid[1].contains("b.jsonl: line 2: not a JSON object"), "{counts:?}");
        let by_line = texts(&folder, |d| {
            d.document = DocumentRule::Line;
            d.on_error = OnError::Skip;
        });
        assert_eq!(by_line, ["one", "more", "three", "x", "y"]);
    }

    #[test]
    fn a_document_longer_than_the_limit_is_refused_or_left_out() {
        let folder = corpus(&[("a.txt", format!("{}\nsmall\n", "long\n".repeat(100)).as_bytes())]);
        let file = &files(&[folder.path().to_path_buf()]).unwrap()[0];
        let parts: Vec<_> = TextDocuments::open(file, DocumentRule::BlankLine, 200).unwrap().collect();
        assert!(parts[0].as_ref().unwrap_err().to_string().contains("a.txt: line 1: a document of more than"));
        assert_eq!(parts[1].as_ref().unwrap().text, "small");
        assert_eq!(parts.len(), 2);
    }

    /// Where a document stands does not matter, so that a corpus can grow, be sharded anew or be sorted.
    #[test]
    fn parts_are_held_out_by_their_text() {
        let lines: Vec<String> = (0..500).map(|i| format!("This is line number {i}.")).collect();
        let held = |text: String, name: &str| {
            let folder = corpus(&[(name, text.as_bytes())]);
            let data = Data { document: DocumentRule::Line, ..Data::default() };
            let files = files(&[folder.path().to_path_buf()]).unwrap();
            let held = documents(&files, &data).map(Result::unwrap).filter(|d| d.is_held_out(0.1)).map(|d| d.text.trim().to_string());
            held.collect::<HashSet<String>>()
        };
        let before = held(lines.join("\n"), "a.txt");
        let after = held(lines.iter().rev().map(|l| format!("new before {l}\n{l}\n")).collect(), "other.txt");
        assert!(before.len() > 20 && before.is_subset(&after), "{} {}", before.len(), after.len());
    }
}
