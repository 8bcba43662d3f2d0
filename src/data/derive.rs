//! Two tasks derived from the embedded text, deterministically, so that fine-tuning can be shown without a download.
//!
//! - `period`: a passage of a State of the Union address; when was it spoken?
//! - `which_novel`: two passages, one from a novel and one from an address; which is the novel's?
//!
//! Passages are runs of words of one document. Held-out documents (the same as in pretraining) give the development rows,
//! the others the training rows: no text of a development row is seen in pretraining or training.

use super::corpus::files;
use super::documents::{documents, Document};
use super::DataError;
use crate::config::{Data, DocumentRule};
use crate::durable::replace;
use crate::random::{hash_name, Purpose, Stream};
use std::fmt::Write as _;
use std::path::Path;

/// Classes of `which_novel`: the place of the passage from a novel.
pub const WHICH: &[&str] = &["first", "second"];
/// Classes of `period`: addresses before the Civil War, up to the New Deal, and since.
pub const PERIODS: &[&str] = &["1790-1860", "1861-1932", "1933-2026"];
const LAST_YEARS: [u32; 2] = [1860, 1932];

/// How much is derived.
#[derive(Clone, Copy, Debug)]
pub struct Amounts {
    pub train_rows: usize,
    pub dev_rows: usize,
    /// Words of a single passage; a pair has half as many each.
    pub words: usize,
}

/// Writes `period/{train,dev}.tsv` and `which_novel/{train,dev}.tsv` below `out`; gives what was written.
///
/// Corpus and held-out share are the pretraining's own, so that its validation documents are the tasks' development documents.
pub fn derive(data: &Data, amounts: Amounts, out: &Path) -> Result<Vec<String>, DataError> {
    if data.document != DocumentRule::File {
        return Err(DataError::Task(format!("data.document: found {}, expected file: the tasks are split by files", data.document)));
    }
    let corpus = data.corpus.as_ref().map(|c| c.paths()).unwrap_or_default();
    let files = files(&corpus)?;
    let all: Vec<Document> = documents(&files, data).collect::<Result<_, _>>()?;
    let mut written = Vec::new();
    for (split, rows) in [("train", amounts.train_rows), ("dev", amounts.dev_rows)] {
        let part: Vec<&Document> = all.iter().filter(|d| d.is_held_out(data.validation_fraction) == (split == "dev")).collect();
        for (task, text) in
            [("period", period_rows(&part, rows, amounts.words)), ("which_novel", pair_rows(&part, rows, amounts.words / 2))]
        {
            let text = text.ok_or_else(|| {
                DataError::Task(format!("too little text for the {split} rows of {task}: it needs addresses named sotu/YEAR-... and other documents, both among those {}", if split == "dev" { "held out" } else { "not held out" }))
            })?;
            let path = out.join(task).join(format!("{split}.tsv"));
            let folder = out.join(task);
            std::fs::create_dir_all(&folder).map_err(DataError::io(&folder))?;
            replace(&path, text.as_bytes()).map_err(DataError::io(&path))?;
            written.push(format!("{}: {} rows", path.display(), text.lines().count() - 1));
        }
    }
    Ok(written)
}

/// `sotu/1862-Lincoln-1.txt` -> 1862.
fn year(id: &str) -> Option<u32> {
    id.strip_prefix("sotu/")?.get(..4)?.parse().ok()
}

fn period(year: u32) -> &'static str {
    PERIODS[LAST_YEARS.iter().filter(|last| year > **last).count()]
}

/// The document's words in runs of `words`, without the rest at its end.
fn passages(document: &Document, words: usize) -> Vec<String> {
    let all: Vec<&str> = document.text.split_whitespace().collect();
    all.chunks_exact(words.max(1)).map(|chunk| chunk.join(" ")).collect()
}

/// At most `rows` passages, as many as can be of each class, in an order that mixes documents.
fn period_rows(documents: &[&Document], rows: usize, words: usize) -> Option<String> {
    let mut classes: [Vec<(u64, String)>; 3] = Default::default();
    for document in documents {
        let Some(year) = year(&document.id) else { continue };
        let class = PERIODS.iter().position(|p| *p == period(year)).unwrap_or(0);
        let keyed = passages(document, words).into_iter().enumerate().map(|(i, text)| (order_key(&document.id, i), text));
        classes[class].extend(keyed);
    }
    let mut chosen: Vec<(u64, &str, &str)> = Vec::new();
    for (class, passages) in classes.iter_mut().enumerate() {
        passages.sort();
        chosen.extend(passages.iter().take(rows.div_ceil(PERIODS.len())).map(|(key, text)| (*key, PERIODS[class], text.as_str())));
    }
    chosen.sort();
    let mut out = String::from("sentence\tlabel\n");
    for (_, label, text) in &chosen {
        let _ = writeln!(out, "{text}\t{label}");
    }
    (chosen.len() > 1).then_some(out)
}

/// `rows` pairs of a passage from a novel and one from an address, in either order. Each passage is used at most once.
fn pair_rows(documents: &[&Document], rows: usize, words: usize) -> Option<String> {
    let mut sources: [Vec<(u64, String)>; 2] = Default::default();
    for document in documents {
        let source = usize::from(year(&document.id).is_some());
        let keyed = passages(document, words).into_iter().enumerate().map(|(i, text)| (order_key(&document.id, i), text));
        sources[source].extend(keyed);
    }
    sources.iter_mut().for_each(|s| s.sort());
    let [novels, addresses] = &sources;
    let mut out = String::from("sentence1\tsentence2\tlabel\n");
    let mut draws = Stream::new(0, Purpose::Derivation, rows as u64).draws();
    for ((_, novel), (_, address)) in novels.iter().zip(addresses).take(rows) {
        let novel_is_first = draws.below(2) == 0;
        let (a, b) = if novel_is_first { (novel, address) } else { (address, novel) };
        let _ = writeln!(out, "{a}\t{b}\t{}", WHICH[usize::from(!novel_is_first)]);
    }
    (out.lines().count() > 2).then_some(out)
}

/// Mixes documents: a hash of where a passage stands.
fn order_key(id: &str, index: usize) -> u64 {
    Stream::new(0, Purpose::Derivation, hash_name(id)).block(index as u64).iter().fold(0, |key, word| key << 32 | u64::from(*word))
}
