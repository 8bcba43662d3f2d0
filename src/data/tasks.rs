//! Fine-tuning tasks: one row each, their TSV files, and examples as ids.
//!
//! GLUE's TSV has no quoting: a `"` is a character, and rows are lines.

use super::tokenizer::Tokenizer;
use super::{read_text, DataError};
use crate::config::{OwnTask, TaskChoice};
use crate::eval::Metric;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct TaskRow {
    pub name: &'static str,
    /// Folder below `data.task_dir`, with `train.tsv` and `dev.tsv`.
    pub folder: &'static str,
    pub text: &'static str,
    pub text_pair: Option<&'static str>,
    pub label: &'static str,
    /// Class names in the official order of their ids.
    pub labels: &'static [&'static str],
    pub metric: Metric,
    pub about: &'static str,
}

const fn single(name: &'static str, folder: &'static str, labels: &'static [&'static str], about: &'static str) -> TaskRow {
    TaskRow { name, folder, text: "sentence", text_pair: None, label: "label", labels, metric: Metric::Accuracy, about }
}

const fn pair(
    name: &'static str,
    folder: &'static str,
    texts: [&'static str; 2],
    labels: &'static [&'static str],
    about: &'static str,
) -> TaskRow {
    TaskRow { name, folder, text: texts[0], text_pair: Some(texts[1]), label: "label", labels, metric: Metric::Accuracy, about }
}

/// Every task known by name. A new task is a new row.
pub const TASKS: [TaskRow; 5] = [
    single("period", "period", super::derive::PERIODS, "embedded: when was this passage of an address to Congress spoken?"),
    pair(
        "which_novel",
        "which_novel",
        ["sentence1", "sentence2"],
        super::derive::WHICH,
        "embedded: which of two passages is from a novel, the other being from an address?",
    ),
    single("sst2", "SST-2", &["0", "1"], "GLUE: sentiment of a sentence"),
    pair("rte", "RTE", ["sentence1", "sentence2"], &["entailment", "not_entailment"], "GLUE: textual entailment"),
    pair("qnli", "QNLI", ["question", "sentence"], &["entailment", "not_entailment"], "GLUE: does the sentence answer the question?"),
];

/// A task with its files found.
#[derive(Clone, Debug)]
pub struct TaskSpec {
    pub name: String,
    pub train: PathBuf,
    pub dev: PathBuf,
    pub text: String,
    pub text_pair: Option<String>,
    pub label: String,
    /// Empty: a regression.
    pub labels: Vec<String>,
    pub metric: Metric,
}

impl TaskSpec {
    /// The task that a config names or describes.
    pub fn find(choice: &TaskChoice, task_dir: &Path) -> Result<Self, DataError> {
        match choice {
            TaskChoice::Own(task) => Self::own(task),
            TaskChoice::Named(name) => {
                let row = TASKS.iter().find(|row| row.name == name).ok_or_else(|| {
                    let known = TASKS.map(|row| row.name).join(", ");
                    DataError::Task(format!(
                        "data.task: no task is named \"{name}\"; known are {known}, or describe your own (README, \"Add a task\")"
                    ))
                })?;
                let folder = task_dir.join(row.folder);
                Ok(Self {
                    name: row.name.into(),
                    train: folder.join("train.tsv"),
                    dev: folder.join("dev.tsv"),
                    text: row.text.into(),
                    text_pair: row.text_pair.map(str::to_string),
                    label: row.label.into(),
                    labels: row.labels.iter().map(|l| l.to_string()).collect(),
                    metric: row.metric,
                })
            }
        }
    }

    fn own(task: &OwnTask) -> Result<Self, DataError> {
        let metric = task
            .metric_name()
            .parse()
            .map_err(|()| DataError::Task(format!("data.task.metric: no metric is named \"{}\"", task.metric)))?;
        Ok(Self {
            name: task.name.clone(),
            train: task.train.clone(),
            dev: task.dev.clone(),
            text: task.text.clone(),
            text_pair: task.text_pair.clone(),
            label: task.label.clone(),
            labels: task.labels.clone(),
            metric,
        })
    }

    pub fn is_regression(&self) -> bool {
        self.labels.is_empty()
    }

    /// Numbers that the head puts out.
    pub fn outputs(&self) -> i64 {
        self.labels.len().max(1) as i64
    }

    /// Examples of a file, cut to `length` tokens.
    pub fn examples(&self, path: &Path, tokenizer: &Tokenizer, length: usize) -> Result<Vec<Example>, DataError> {
        let rows = read_tsv(path, self)?;
        let texts: Vec<String> = rows.iter().map(|r| r.text.clone()).collect();
        let pairs: Option<Vec<String>> = rows.iter().map(|r| r.text_pair.clone()).collect();
        let first = tokenizer.encode_all(texts)?;
        let second = pairs.map(|pairs| tokenizer.encode_all(pairs)).transpose()?;
        let example = |(i, row): (usize, &Row)| Example {
            id: i,
            ids: layout(tokenizer, &first[i], second.as_ref().map(|s| s[i].as_slice()), length),
            label: row.label,
        };
        Ok(rows.iter().enumerate().map(example).collect())
    }
}

/// A labelled sequence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// Its row in the file, from 0.
    pub id: usize,
    pub ids: Vec<u32>,
    /// The class, or the number of a regression.
    pub label: f64,
}

/// RoBERTa's layout: first A separator, or first A separator separator B separator; the longer text is cut first.
fn layout(tokenizer: &Tokenizer, a: &[u32], b: Option<&[u32]>, length: usize) -> Vec<u32> {
    let special = tokenizer.special;
    match b {
        None => {
            let a = &a[..a.len().min(length - 2)];
            [&[special.cls], a, &[special.sep]].concat()
        }
        Some(b) => {
            let (keep_a, keep_b) = longest_first(a.len(), b.len(), length - 4);
            [&[special.cls], &a[..keep_a], &[special.sep; 2], &b[..keep_b], &[special.sep]].concat()
        }
    }
}

/// How much of two texts stays when tokens are taken from the longer until `room` is enough.
fn longest_first(a: usize, b: usize, room: usize) -> (usize, usize) {
    let half = room / 2;
    match (a + b <= room, a <= half, b <= half) {
        (true, _, _) => (a, b),
        (_, true, _) => (a, room - a),
        (_, _, true) => (room - b, b),
        _ => (room - half, half),
    }
}

struct Row {
    text: String,
    text_pair: Option<String>,
    label: f64,
}

fn read_tsv(path: &Path, spec: &TaskSpec) -> Result<Vec<Row>, DataError> {
    let text = read_text(path)?;
    let mut lines = text.lines().enumerate().map(|(i, line)| (i + 1, line.strip_suffix('\r').unwrap_or(line)));
    let bad = |line: usize, message: String| DataError::Row { path: path.into(), line, message };
    let header: Vec<&str> = lines.next().map(|(_, line)| line.split('\t').collect()).unwrap_or_default();
    let column = |name: &str| {
        header.iter().position(|h| *h == name).ok_or_else(|| bad(1, format!("no column \"{name}\"; the header has {}", header.join(", "))))
    };
    let (text_at, label_at) = (column(&spec.text)?, column(&spec.label)?);
    let pair_at = spec.text_pair.as_deref().map(column).transpose()?;
    let mut rows = Vec::new();
    for (line, content) in lines.filter(|(_, content)| !content.is_empty()) {
        let fields: Vec<&str> = content.split('\t').collect();
        if fields.len() != header.len() {
            return Err(bad(line, format!("{} fields, expected {} as in the header", fields.len(), header.len())));
        }
        let label = label_of(fields[label_at], spec).map_err(|message| bad(line, message))?;
        rows.push(Row { text: fields[text_at].into(), text_pair: pair_at.map(|at| fields[at].into()), label });
    }
    if rows.is_empty() {
        return Err(DataError::Task(format!("{}: no rows below the header", path.display())));
    }
    Ok(rows)
}

fn label_of(text: &str, spec: &TaskSpec) -> Result<f64, String> {
    if spec.is_regression() {
        return text.parse::<f64>().ok().filter(|v| v.is_finite()).ok_or_else(|| format!("label \"{text}\", expected a number"));
    }
    let class = spec.labels.iter().position(|label| label == text);
    class.map(|c| c as f64).ok_or_else(|| format!("label \"{text}\", expected one of {}", spec.labels.join(", ")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn spec(pair: bool, labels: &[&str]) -> TaskSpec {
        TaskSpec {
            name: "t".into(),
            train: "".into(),
            dev: "".into(),
            text: "a".into(),
            text_pair: pair.then(|| "b".into()),
            label: "label".into(),
            labels: labels.iter().map(|l| l.to_string()).collect(),
            metric: Metric::Accuracy,
        }
    }

    fn examples(text: &str, spec: &TaskSpec, length: usize) -> Result<Vec<Example>, DataError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.tsv");
        std::fs::write(&path, text).unwrap();
        spec.examples(&path, &Tokenizer::bytes().unwrap(), length)
    }

    #[test]
    fn quotes_are_characters_and_blank_lines_are_skipped() {
        let rows = examples("a\tlabel\n\"x\tno\ny \"z\tyes\n\n", &spec(false, &["no", "yes"]), 16).unwrap();
        assert_eq!(rows.iter().map(|e| e.label).collect::<Vec<_>>(), [0.0, 1.0]);
        assert_eq!(rows[0].ids.len(), 4);
    }

    #[test]
    fn rows_that_do_not_fit_are_named_by_line() {
        let message = |text: &str| examples(text, &spec(true, &["0", "1"]), 16).unwrap_err().to_string();
        assert!(message("a\tb\tlabel\nx\ty\t1\nx\t1\n").contains("t.tsv: line 3: 2 fields, expected 3"));
        assert!(message("a\tb\tlabel\nx\ty\tmaybe\n").contains("line 2: label \"maybe\", expected one of 0, 1"));
        assert!(message("a\tlabel\nx\t1\n").contains("line 1: no column \"b\""));
    }

    #[test]
    fn a_regression_reads_numbers() {
        let rows = examples("a\tlabel\nx\t3.25\n", &spec(false, &[]), 16).unwrap();
        assert_eq!(rows[0].label, 3.25);
    }

    #[test]
    fn pairs_are_cut_longest_first() {
        assert_eq!(longest_first(3, 20, 12), (3, 9));
        assert_eq!(longest_first(20, 3, 12), (9, 3));
        assert_eq!(longest_first(20, 20, 13), (7, 6));
        assert_eq!(longest_first(3, 4, 12), (3, 4));
        let rows = examples("a\tb\tlabel\nxy\tabcdefghijklmnop\t1\n", &spec(true, &["0", "1"]), 12).unwrap();
        let special = Tokenizer::bytes().unwrap().special;
        assert_eq!(rows[0].ids.len(), 12);
        assert_eq!(rows[0].ids[3..5], [special.sep; 2]);
    }
}
