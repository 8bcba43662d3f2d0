//! Scored texts that a model has read before: in the training rows, or in the text it was pretrained on.

use super::rows::{read, Skipped, TextRow, Want};
use super::TaskSpec;
use crate::config::{Data, OnError};
use crate::data::corpus::files;
use crate::data::documents::documents;
use crate::data::DataError;
use crate::random::{combine, hash_name};
use serde::Serialize;
use std::collections::{HashMap, HashSet, VecDeque};

/// Words that have to follow one another in both: shorter runs are chance.
const RUN: usize = 8;
/// Tokenized text sets these apart from the words, plain text does not.
const MARKS: &str = ".,;:!?'\"`\u{2018}\u{2019}\u{201c}\u{201d}-\u{2013}\u{2014}";
/// A larger corpus is not looked through at the start of a fine-tuning run.
const LARGEST: u64 = 256 << 20;

/// What the corpus has of the scored texts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Leaks {
    /// Texts of the scored splits that are long enough to be looked for.
    pub texts: usize,
    /// Those whose first eight words stand in the corpus one after the other.
    pub found: usize,
    pub first: Option<String>,
}

/// Looks for the task's scored texts in the training documents of a corpus; those that were held out taught nothing.
/// None: it is gone or too large.
pub fn in_corpus(spec: &TaskSpec, data: &Data) -> Result<Option<Leaks>, DataError> {
    let paths = data.corpus.as_ref().map(|corpus| corpus.paths()).unwrap_or_default();
    let Ok(files) = files(&paths) else { return Ok(None) };
    let bytes: u64 = files.iter().filter_map(|file| std::fs::metadata(&file.path).ok()).map(|meta| meta.len()).sum();
    if bytes > LARGEST {
        return Ok(None);
    }
    let mut wanted = Wanted::default();
    for split in &spec.scored {
        read(spec, &split.files, Want::Labelled, OnError::Skip, &mut Skipped::default(), &mut |row| {
            [Some(row.text), row.text_pair].into_iter().flatten().for_each(|text| wanted.add(&text));
            Ok(())
        })?;
    }
    for document in documents(&files, data).map_while(Result::ok).filter(|d| !d.is_held_out(data.validation_fraction)) {
        let mut run = VecDeque::new();
        words(&document.text).for_each(|word| wanted.see(&mut run, word));
    }
    Ok(Some(wanted.leaks()))
}

#[derive(Default)]
struct Wanted {
    /// Texts by their first words.
    texts: HashMap<u64, String>,
    found: HashSet<u64>,
    first: Option<String>,
}

impl Wanted {
    fn add(&mut self, text: &str) {
        let start: VecDeque<u64> = words(text).take(RUN).collect();
        if start.len() == RUN {
            self.texts.entry(hash(&start)).or_insert_with(|| text.chars().take(80).collect());
        }
    }

    fn see(&mut self, run: &mut VecDeque<u64>, word: u64) {
        run.push_back(word);
        if run.len() > RUN {
            run.pop_front();
        }
        if run.len() == RUN {
            let hash = hash(run);
            if let Some(text) = self.texts.get(&hash).filter(|_| self.found.insert(hash)) {
                self.first.get_or_insert_with(|| text.clone());
            }
        }
    }

    fn leaks(self) -> Leaks {
        Leaks { texts: self.texts.len(), found: self.found.len(), first: self.first }
    }
}

fn hash(words: &VecDeque<u64>) -> u64 {
    words.iter().fold(0, |hash, word| combine(hash, *word))
}

/// Hashes of the words of a text: runs of letters and digits, whatever their case. Tokenized and plain text agree.
fn words(text: &str) -> impl Iterator<Item = u64> + '_ {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(|word| hash_name(&word.to_lowercase()))
}

/// Equal for rows that differ in case and white space alone.
pub fn same_text(row: &TextRow) -> u64 {
    row_hash(row, |text| text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase())
}

/// Equal for rows of the same words, however they were tokenized: nor do the marks of a sentence and the kind of brackets
/// count. (731 sentences of SST-2's development rows stand so in Rotten Tomatoes, 394 letter by letter.)
pub fn same_words(row: &TextRow) -> u64 {
    row_hash(row, |text| {
        let text = text.to_lowercase();
        let mut kept = String::with_capacity(text.len());
        let mut dropped = false;
        for c in text.chars() {
            if c.is_whitespace() || MARKS.contains(c) {
                dropped = true;
                continue;
            }
            // "1 2" is not "12".
            if std::mem::take(&mut dropped) && c.is_numeric() && kept.ends_with(char::is_numeric) {
                kept.push(' ');
            }
            kept.push(match c {
                '[' | '{' => '(',
                ']' | '}' => ')',
                c => c,
            });
        }
        // A row of nothing but marks is told by them.
        if kept.is_empty() {
            text
        } else {
            kept
        }
    })
}

fn row_hash(row: &TextRow, normal: impl Fn(&str) -> String) -> u64 {
    match &row.text_pair {
        None => hash_name(&normal(&row.text)),
        Some(pair) => hash_name(&format!("{}\0{}", normal(&row.text), normal(pair))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::{OneOrMany, TaskChoice};
    use serde_json::json;
    use std::path::Path;

    #[test]
    fn a_scored_text_is_found_across_lines_whatever_its_case_and_marks() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(path("corpus/deep")).unwrap();
        std::fs::write(path("corpus/a.txt"), "Nothing here.\n").unwrap();
        std::fs::write(path("corpus/deep/b.txt"), "He wrote: \"It's a charming, and\noften affecting journey of four\" friends.\n")
            .unwrap();
        std::fs::write(path("dev.tsv"), "text\tlabel\nit 's a charming and often affecting journey\t1\nit 's too short\t0\nan entirely new text that nobody has read before\t0\n").unwrap();
        let own = json!({"name": "mine", "train": "none", "dev": path("dev.tsv"), "text": "text", "label": "label", "labels": ["0", "1"]});
        let spec = TaskSpec::find(&TaskChoice::Own(serde_json::from_value(own).unwrap()), Path::new("")).unwrap();
        let corpus = |name: &str| Data { corpus: Some(OneOrMany::One(path(name))), validation_fraction: 0.0, ..Data::default() };
        let leaks = in_corpus(&spec, &corpus("corpus")).unwrap().unwrap();
        assert_eq!((leaks.texts, leaks.found, leaks.first.as_deref()), (2, 1, Some("it 's a charming and often affecting journey")));
        assert_eq!(in_corpus(&spec, &corpus("gone")).unwrap(), None);
        // What was held out taught nothing.
        let held_out = Data { validation_fraction: 1.0, ..corpus("corpus") };
        assert_eq!(in_corpus(&spec, &held_out).unwrap().unwrap().found, 0);
    }

    #[test]
    fn the_same_words_are_found_however_they_were_tokenized() {
        let row = |text: &str| same_words(&TextRow { index: String::new(), text: text.into(), text_pair: None, label: None });
        for (a, b) in [
            ("we root for ( clara and paul ) , though it 's close to pity . ", "We root for [clara and paul], though it's close to pity."),
            ("a `` big bad love '' ", "a \"big bad love\""),
        ] {
            assert_eq!(row(a), row(b), "{a}");
        }
        for (a, b) in [("1 2", "12"), ("[MAX 1 [MIN 2 3 ] ]", "[MAX 1 [MIN 2 ] 3 ]"), ("?", "!")] {
            assert_ne!(row(a), row(b), "{a}");
        }
    }
}
