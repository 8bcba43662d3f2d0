//! A fine-tuned model at work: predictions for files, GLUE's submission files, and scores of a split.

use super::classifier::{Classifier, Output};
use super::parent::Parent;
use super::setup::device;
use super::texts::{Texts, CHUNK};
use crate::config::load::{self, usage};
use crate::config::{Config, OnError, Origins, TaskChoice};
use crate::data::tasks::prepared::{prepare, sequences, Prepared, Rows, Settings};
use crate::data::tasks::rows::{read, Skipped, TextRow, Want};
use crate::data::tasks::{row, Split, TaskSpec};
use crate::data::tokenizer::Tokenizer;
use crate::data::DataError;
use crate::distributed::World;
use crate::durable;
use crate::model::weights::Select;
use crate::model::Parameters;
use crate::train::interrupt::Interrupt;
use anyhow::{bail, Context, Result};
use serde_json::{json, Map, Value};
use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};

const STS_B_LARGEST: f64 = 5.0;

/// How predictions are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Tsv,
    Jsonl,
}

/// A run's best model with its task.
pub struct Model {
    config: Config,
    spec: TaskSpec,
    tokenizer: Tokenizer,
    classifier: Classifier,
    checkpoint: PathBuf,
}

impl Model {
    /// Opens a fine-tuning run (its best checkpoint) or one of its checkpoints; `config` is the run's.
    pub fn open(run: &Path, mut config: Config, origins: &Origins) -> Result<Self> {
        let Some(choice) = config.data.task.clone() else {
            bail!("{}: a pretraining run, expected one that was fine-tuned on a task", run.display())
        };
        let parent = Parent::open(run)?;
        let device = device(&config, origins, &World::default())?;
        let spec = TaskSpec::find(&choice, &config.data.task_dir)?;
        let tokenizer = Tokenizer::load(&parent.tokenizer)?;
        config.model = parent.model.clone();
        config.model.validate(origins, config.data.sequence_length)?;
        let mut parameters = Parameters::uninitialised(device);
        let classifier = Classifier::new(&mut parameters, &config, spec.outputs(), &tokenizer);
        parent.load(&parameters, Select::All)?;
        Ok(Self { checkpoint: parent.place().into(), config, spec, tokenizer, classifier })
    }

    fn outputs(&self, rows: &[TextRow]) -> Result<Vec<Output>> {
        let layout = Settings::new(&self.config, &self.tokenizer).layout;
        let sequences = sequences(rows, &self.tokenizer, layout)?.into_iter().map(|(ids, _)| ids).collect();
        Ok(self.classifier.predict(sequences)?)
    }

    /// The columns and the header that files for this task have, for texts from `path`.
    pub fn texts(&self, path: &Path) -> Texts {
        // The text column of CoLA's files without a header is that of its test file here.
        let TaskSpec { text, text_pair, header, .. } = self.spec.clone();
        Texts { path: path.into(), format: None, text, text_pair, header }
    }

    /// Predictions for texts, in their order.
    pub fn predict(&self, texts: &Texts, format: Format, out: &mut impl Write) -> Result<()> {
        if format == Format::Tsv {
            let columns = if self.spec.is_regression() { "index\tvalue\n" } else { "index\tlabel\tprobability\n" };
            out.write_all(columns.as_bytes())?;
            out.flush()?;
        }
        texts.chunks(|mut rows| {
            for row in &mut rows {
                row.text = self.spec.clean(&row.text);
                row.text_pair = row.text_pair.as_deref().map(|text| self.spec.clean(text));
            }
            let outputs = self.outputs(&rows)?;
            let text: String = rows.iter().zip(&outputs).map(|(row, output)| self.line(&row.index, output, format)).collect();
            out.write_all(text.as_bytes())?;
            Ok(out.flush()?)
        })
    }

    /// Calls `found` with every row of `files`, and once more with none at the end.
    fn each(&self, spec: &TaskSpec, files: &[PathBuf], found: &mut impl FnMut(Option<TextRow>, bool) -> Result<()>) -> Result<()> {
        let mut failed = None;
        // A row left out would shift the others of a submission.
        let read = read(spec, files, Want::TextsOnly, OnError::Stop, &mut Skipped::default(), &mut |row| {
            found(Some(row), false).map_err(|error| {
                failed = Some(error);
                DataError::Task(String::new())
            })
        });
        match (read, failed) {
            (_, Some(error)) => Err(error),
            (Err(error), None) => Err(error.into()),
            (Ok(()), None) => found(None, true),
        }
    }

    fn line(&self, index: &str, output: &Output, format: Format) -> String {
        let value = self.classifier.value(output);
        if self.spec.is_regression() {
            return match format {
                Format::Tsv => format!("{index}\t{value}\n"),
                Format::Jsonl => format!("{}\n", json!({"index": index, "value": value})),
            };
        }
        let (label, probability) = match value.is_nan() {
            true => ("undefined", f64::NAN),
            false => (self.spec.labels[value as usize].as_str(), output[value as usize]),
        };
        match format {
            Format::Tsv => format!("{index}\t{label}\t{probability:.6}\n"),
            Format::Jsonl => {
                let all: Map<String, Value> = self.spec.labels.iter().cloned().zip(output.iter().map(|p| json!(p))).collect();
                format!("{}\n", json!({"index": index, "label": label, "probability": probability, "probabilities": all}))
            }
        }
    }

    /// Writes the files that GLUE's server takes for the task's test splits, or for those of `task`; gives their paths.
    pub fn submit(&self, task: Option<&str>, folder: &Path) -> Result<Vec<PathBuf>> {
        let other = task.map(|task| self.other_task(task)).transpose()?;
        let spec = other.as_ref().unwrap_or(&self.spec);
        if spec.tests.is_empty() {
            bail!("{} has no test split; give a file, or data.task.test", spec.name);
        }
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        spec.tests.iter().map(|split| self.submission(spec, split, folder)).collect()
    }

    /// A task by its name, or described in a config file; this model's answers must mean something there.
    fn other_task(&self, task: &str) -> Result<TaskSpec> {
        let choice = match task.ends_with(".json") {
            true => {
                let (config, origins) = load::load(Path::new(task), &[])?;
                config.data.task.ok_or_else(|| origins.error("data.task", "is not set, expected a task to evaluate"))?
            }
            false => TaskChoice::Named(row(task)?.name.into()),
        };
        let spec = TaskSpec::find(&choice, &self.config.data.task_dir)?;
        if spec.labels != self.spec.labels || spec.text_pair.is_some() != self.spec.text_pair.is_some() {
            bail!("task {}: its labels or texts are not those of {}, which this model was trained on", spec.name, self.spec.name);
        }
        Ok(spec)
    }

    fn submission(&self, spec: &TaskSpec, split: &Split, folder: &Path) -> Result<PathBuf> {
        let mut text = String::from("index\tprediction\n");
        let mut waiting: Vec<TextRow> = Vec::new();
        self.each(spec, &split.files, &mut |row, last| {
            waiting.extend(row);
            if waiting.len() >= CHUNK || last {
                for (row, output) in waiting.iter().zip(self.outputs(&waiting)?) {
                    let _ = writeln!(text, "{}\t{}", row.index, self.prediction(&output)?);
                }
                waiting.clear();
            }
            Ok(())
        })?;
        let path = folder.join(&split.submission);
        durable::replace(&path, text.as_bytes()).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// As GLUE's server wants it: the label's name, or a number.
    fn prediction(&self, output: &Output) -> Result<String> {
        let value = self.classifier.value(output);
        if value.is_nan() {
            bail!("{}: the model's output is not a number", self.checkpoint.display());
        }
        Ok(match self.spec.is_regression() {
            true if self.spec.name == "stsb" => format!("{:.3}", value.clamp(0.0, STS_B_LARGEST)),
            true => value.to_string(),
            false => self.spec.labels[value as usize].clone(),
        })
    }

    /// Metrics of the scored splits, or of the training rows, of its task or of another one, as JSON. None: broken off.
    pub fn evaluate(&self, task: Option<&str>, train: bool, interrupt: &Interrupt) -> Result<Option<Value>> {
        let other = task.map(|task| self.other_task(task)).transpose()?;
        let spec = other.as_ref().unwrap_or(&self.spec);
        let is_empty = if train { spec.train.is_empty() } else { spec.scored.iter().all(|split| split.files.is_empty()) };
        if is_empty {
            let message = "comes without rows to score; name a task, or give a config that says data.task";
            return Err(usage(format!("{}: the model {message}", self.checkpoint.display())).into());
        }
        let Prepared { train: train_rows, scored, .. } = prepare(spec, &self.tokenizer, &Settings::new(&self.config, &self.tokenizer))?;
        let splits: Vec<&Rows> = if train { vec![&train_rows] } else { scored.iter().collect() };
        let mut report = Map::new();
        for rows in splits {
            let Some(scores) = self.classifier.score(rows, &spec.metrics, interrupt)? else { return Ok(None) };
            let undefined: Vec<&str> = scores.metrics.iter().filter(|(_, v)| v.is_none()).map(|(m, _)| m.name()).collect();
            let mut split = Map::from_iter([("rows".to_string(), json!(rows.len())), ("loss".into(), json!(scores.loss))]);
            split.extend(scores.metrics.iter().map(|(metric, value)| (metric.name().to_string(), json!(value))));
            split.insert("undefined".into(), json!(undefined));
            split.insert("constant_prediction".into(), json!(scores.constant));
            split.insert("data".into(), json!(rows.meta));
            report.insert(rows.meta.name.clone(), Value::Object(split));
        }
        Ok(Some(json!({"task": spec.name, "checkpoint": self.checkpoint, "splits": report})))
    }
}
