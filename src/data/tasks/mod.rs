//! Fine-tuning tasks: [`table`] has those known by name, [`rows`] reads their files, [`layout`] makes sequences of the texts,
//! [`prepared`] keeps these as token files that open at once, and [`leaks`] looks for scored texts in what was read before.
//!
//! GLUE's TSV has no quoting: a `"` is a character, and rows are lines.

pub mod layout;
pub mod leaks;
pub mod prepared;
pub mod rows;
pub mod table;

use super::readers::{self, by_name, Format};
use super::DataError;
use crate::config::validate::is_label;
use crate::config::{OwnTask, TaskChoice};
use crate::eval::Metric;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
pub use table::TASKS;
use table::{SplitRow, TaskRow};

/// Labels that a task can have when they are read from its files: more are a wrong column.
const MOST_LABELS: usize = 1000;

/// A task with its files found.
#[derive(Clone, Debug)]
pub struct TaskSpec {
    pub name: String,
    /// Empty: it is not trained on.
    pub train: Vec<PathBuf>,
    pub scored: Vec<Split>,
    pub tests: Vec<Split>,
    pub text: String,
    /// The column of the text where labelled files have no header and test files have one.
    pub headless_text: Option<String>,
    pub text_pair: Option<String>,
    pub label: String,
    /// Empty: a regression.
    pub labels: Vec<String>,
    /// Whether the files may hold the number of a label instead of its name.
    pub numbered_labels: bool,
    /// The first is the score.
    pub metrics: Vec<Metric>,
    pub header: bool,
    /// Column of test rows that a submission repeats.
    pub index: Option<String>,
    pub html_breaks: bool,
}

/// Files that are scored or predicted together.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// Empty if the task has one of its kind.
    pub name: String,
    pub files: Vec<PathBuf>,
    /// What GLUE's server calls the file of its predictions.
    pub submission: String,
}

impl TaskSpec {
    /// The task that a config names or describes.
    pub fn find(choice: &TaskChoice, task_dir: &Path) -> Result<Self, DataError> {
        match choice {
            TaskChoice::Own(task) => Self::own(task),
            TaskChoice::Named(name) => Self::named(row(name)?, task_dir),
        }
    }

    fn named(row: &TaskRow, task_dir: &Path) -> Result<Self, DataError> {
        let folder = task_dir.join(row.folder);
        let first = row.scored.first().or(row.tests.first());
        let hub = first.is_some_and(|split| official(&folder, split.stem).is_none() && !hub_files(&folder, split.hub_stem).is_empty());
        let files = |stem: &str, hub_stem: &str| match hub {
            true => hub_files(&folder, hub_stem),
            // A file that is missing is named when it is opened.
            false => vec![official(&folder, stem).unwrap_or_else(|| folder.join(format!("{stem}.tsv")))],
        };
        let splits = |rows: &[SplitRow]| -> Vec<Split> {
            let split = |s: &SplitRow| Split { name: s.name.into(), files: files(s.stem, s.hub_stem), submission: s.submission.into() };
            rows.iter().map(split).collect()
        };
        let texts = if hub { row.hub_texts } else { row.texts };
        Ok(Self {
            name: row.name.into(),
            train: if row.train.is_empty() { Vec::new() } else { files(row.train, row.train) },
            scored: splits(row.scored),
            tests: splits(row.tests),
            text: if row.header { texts[0] } else { row.hub_texts[0] }.into(),
            headless_text: (!row.header && !hub).then(|| texts[0].to_string()),
            text_pair: texts.get(1).map(|t| t.to_string()),
            label: if hub { "label" } else { row.label }.into(),
            labels: row.labels.iter().map(|l| l.to_string()).collect(),
            numbered_labels: hub,
            metrics: row.metrics.to_vec(),
            header: true,
            index: Some(if hub { "idx" } else { "index" }.into()),
            html_breaks: row.html_breaks,
        })
    }

    fn own(task: &OwnTask) -> Result<Self, DataError> {
        let metric =
            |name: &str| name.parse::<Metric>().map_err(|()| DataError::Task(format!("data.task.metric: no metric is named \"{name}\"")));
        let names = std::iter::once(task.metric_name()).chain(task.more_metrics.iter().map(String::as_str));
        let split = |files: Vec<PathBuf>| Split { name: String::new(), files, submission: format!("{}.tsv", task.name) };
        let mut spec = Self {
            name: task.name.clone(),
            train: task.train.paths(),
            scored: vec![split(task.dev.paths())],
            tests: task.test.iter().map(|files| split(files.paths())).collect(),
            text: task.text.clone(),
            headless_text: None,
            text_pair: task.text_pair.clone(),
            label: task.label.clone(),
            labels: task.labels.clone(),
            numbered_labels: false,
            metrics: names.map(metric).collect::<Result<_, _>>()?,
            header: task.header,
            index: Some("index".into()),
            html_breaks: task.html_breaks,
        };
        if !task.is_regression() && spec.labels.is_empty() {
            spec.labels = spec.discover_labels()?;
        }
        if spec.labels.len() != 2 && spec.metrics.contains(&Metric::F1) {
            return Err(DataError::Task(format!("data.task.metric: found f1 with {} labels, expected 2", spec.labels.len())));
        }
        Ok(spec)
    }

    /// The labels of the training rows, sorted. Rows that cannot be read are left to whoever reads them in full.
    fn discover_labels(&self) -> Result<Vec<String>, DataError> {
        let mut labels = BTreeSet::new();
        for path in &self.train {
            if path.is_dir() {
                for label in folders(path)? {
                    check_label(&label).map_err(|message| DataError::Task(format!("{}: {message}", path.display())))?;
                    labels.insert(label);
                }
                continue;
            }
            for row in readers::open(path, &rows::options(path, self.header, &[&self.label]))?.flatten() {
                let Some(label) = row.get(&self.label).filter(|label| !label.is_empty()) else { continue };
                check_label(label).map_err(|message| row.error(message))?;
                labels.insert(label.to_string());
                if labels.len() > MOST_LABELS {
                    let message = format!("column \"{}\" has more than {MOST_LABELS} different labels, expected fewer; for numbers set data.task.kind to regression", self.label);
                    return Err(DataError::Row { path: path.clone(), line: 1, message });
                }
            }
        }
        if labels.len() < 2 {
            let found = labels.into_iter().collect::<Vec<_>>().join(", ");
            return Err(DataError::Task(format!(
                "data.task.label: the training rows have {}, expected two labels or more",
                if found.is_empty() { "no label".into() } else { format!("one label, \"{found}\"") }
            )));
        }
        Ok(labels.into_iter().collect())
    }

    pub fn is_regression(&self) -> bool {
        self.labels.is_empty()
    }

    /// Numbers that the head puts out.
    pub fn outputs(&self) -> i64 {
        self.labels.len().max(1) as i64
    }

    /// The class of a label, or the number of a regression.
    pub fn label_of(&self, text: &str) -> Result<f64, String> {
        if self.is_regression() {
            return text.trim().parse::<f64>().ok().filter(|v| v.is_finite()).ok_or_else(|| format!("label {text:?}, expected a number"));
        }
        let by_name = self.labels.iter().position(|label| label == text);
        let by_number = || text.parse::<usize>().ok().filter(|class| self.numbered_labels && *class < self.labels.len());
        let class = by_name.or_else(by_number).map(|c| c as f64);
        class.ok_or_else(|| {
            let found = if text.is_empty() { "an empty label".into() } else { format!("label {text:?}") };
            format!("{found}, expected one of {}", self.labels.join(", "))
        })
    }

    /// A text as it is tokenized.
    pub fn clean(&self, text: &str) -> String {
        match self.html_breaks {
            true => text.replace("<br />", "\n").replace("<br/>", "\n").replace("<br>", "\n"),
            false => text.to_string(),
        }
    }
}

/// The row of a task's name.
pub fn row(name: &str) -> Result<&'static TaskRow, DataError> {
    TASKS.iter().find(|row| row.name == name).ok_or_else(|| {
        let known = TASKS.map(|row| row.name).join(", ");
        DataError::Task(format!("data.task: no task is named \"{name}\"; known are {known}, or describe your own (docs/tasks.md)"))
    })
}

/// `STEM.tsv`, or the folder STEM.
fn official(folder: &Path, stem: &str) -> Option<PathBuf> {
    [folder.join(format!("{stem}.tsv")), folder.join(stem)].into_iter().find(|path| path.exists())
}

/// Hugging Face's files of a split: `STEM.jsonl`, `STEM.parquet`, `STEM-00000-of-00002.parquet`.
fn hub_files(folder: &Path, stem: &str) -> Vec<PathBuf> {
    let belongs = |path: &PathBuf| {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let rest = name.strip_prefix(stem).is_some_and(|rest| rest.starts_with('.') || rest.starts_with('-'));
        rest && matches!(by_name(path).0, Some(Format::Jsonl | Format::Parquet))
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let mut files: Vec<PathBuf> = entries.filter(belongs).collect();
    files.sort();
    files
}

/// A label that is found in the data goes into the run's config, whose rule it has to keep.
fn check_label(label: &str) -> Result<(), String> {
    let message = || format!("label {label:?}, expected text on one line without tabs; correct it, or list the labels in data.task.labels");
    is_label(label).then_some(()).ok_or_else(message)
}

fn folders(path: &Path) -> Result<Vec<String>, DataError> {
    let entries = std::fs::read_dir(path).map_err(DataError::io(path))?.flatten();
    Ok(entries.filter(|e| e.path().is_dir()).map(|e| e.file_name().to_string_lossy().into_owned()).collect())
}

/// A labelled sequence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// Its row in the split, from 0.
    pub id: usize,
    pub ids: Vec<u32>,
    /// The class, or the number of a regression.
    pub label: f64,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
