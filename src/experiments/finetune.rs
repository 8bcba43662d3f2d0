//! Fine-tuning on a task with labelled sentences or pairs (paper, section 5.2, Table 2).

use super::classifier::{Classifier, Half, Scores};
use super::parent::Parent;
use super::setup::{self, Job};
use super::{Finished, Start};
use crate::config::{Config, Origins, TaskChoice};
use crate::data::batch::TaskBatch;
use crate::data::buckets::{BatchRule, Buckets};
use crate::data::loader::Batches;
use crate::data::tasks::leaks::{in_corpus, Leaks};
use crate::data::tasks::prepared::{prepare, Prepared, Rows, Settings, SplitMeta};
use crate::data::tasks::TaskSpec;
use crate::data::tokenizer::{Kind as TokenizerKind, Tokenizer};
use crate::eval::majority_share;
use crate::log::{jsonl, Record};
use crate::model::size::forward_flops_per_token;
use crate::model::weights::Select;
use crate::model::{Parameters, Pass};
use crate::native::NativeError;
use crate::train::interrupt::Interrupt;
use crate::train::trainer::{BatchSize, Evaluation};
use crate::train::{LossSum, Outcome, Task};
use anyhow::{bail, Result};
use serde_json::{json, Map, Value};
use std::ops::Range;

/// The metric on the half of the rows that chooses the best checkpoint, and on the other half (`data.dev_halves`).
const CHOSEN_ON: &str = "chosen_on";
const REPORTED_ON: &str = "reported_on";

/// A classification or regression task.
pub struct Finetune {
    spec: TaskSpec,
    data: TaskData,
    scored: Vec<Rows>,
    classifier: Classifier,
    label_smoothing: f64,
    /// One half of the rows chooses the best checkpoint, the other is reported.
    dev_halves: bool,
    /// Scored texts in the pretraining corpus, where both are at hand.
    leaks: Option<Leaks>,
}

/// Training rows and the batches that they make.
pub struct TaskData {
    rows: Rows,
    buckets: Buckets,
    pad: u32,
}

impl TaskData {
    fn new(rows: Rows, config: &Config, pad: u32) -> Self {
        let train = &config.train;
        let rule = train.batch_tokens.map_or(BatchRule::Sequences(train.batch_size), BatchRule::Tokens);
        Self { buckets: Buckets::new(train.seed, rows.lengths(), rule, config.data.bucket_batches), rows, pad }
    }
}

impl Batches for TaskData {
    type Batch = TaskBatch;

    fn batch(&self, step: u64) -> TaskBatch {
        TaskBatch::new(self.buckets.rows(step).into_iter().map(|row| self.rows.example(row)).collect(), self.pad)
    }
}

impl Task for Finetune {
    type Batch = TaskBatch;
    type Data = TaskData;

    fn data(&self) -> &TaskData {
        &self.data
    }

    fn size(&self, batch: &TaskBatch) -> BatchSize {
        BatchSize { sequences: batch.examples.len(), length: batch.length(), tokens: batch.tokens(), targets: batch.examples.len() }
    }

    fn loss(&self, batch: &TaskBatch, rows: Range<usize>, pass: &Pass) -> Result<LossSum, NativeError> {
        let (logits, labels) = self.classifier.forward(batch, rows, pass)?;
        Ok(LossSum(self.classifier.loss_sum(&logits, &labels, self.label_smoothing)))
    }

    /// Every row of every scored split once; the first metric of the first split is the score.
    fn evaluate(&self, interrupt: &Interrupt) -> Result<Option<Evaluation>, NativeError> {
        let (mut values, mut parts, mut score) = (Vec::new(), Vec::new(), None);
        for (i, (split, rows)) in self.spec.scored.iter().zip(&self.scored).enumerate() {
            let Some(scores) = self.classifier.score(rows, &self.spec.metrics, interrupt)? else { return Ok(None) };
            if i == 0 {
                values.push(("loss", scores.loss));
                values.extend(scores.constant.then_some(("constant_prediction", 1.0)));
                score = scores.metrics.first().and_then(|(_, value)| *value);
                if self.dev_halves {
                    let metric = self.spec.metrics[0];
                    score = scores.on(Half::Choosing, metric);
                    let halves = [(CHOSEN_ON, score), (REPORTED_ON, scores.on(Half::Reported, metric))];
                    values.extend(halves.into_iter().filter_map(|(name, value)| Some((name, value?))));
                }
            }
            values.extend(scores.metrics.iter().filter_map(|(metric, value)| Some((metric.name_on(&split.name), (*value)?))));
            parts.push(text(&split.name, &scores));
        }
        Ok(Some(Evaluation { record: Record { step: 0, split: "task", values }, score, text: parts.join("; ") }))
    }

    fn keeps_best(&self) -> bool {
        true
    }
}

/// The scores of a split in words.
fn text(split: &str, scores: &Scores) -> String {
    let value = |value: &Option<f64>| value.map_or("undefined".to_string(), |v| format!("{v:.4}"));
    let metrics: Vec<String> = scores.metrics.iter().map(|(metric, v)| format!("{} {}", metric.name_on(split), value(v))).collect();
    let constant = if scores.constant { " (one and the same prediction for every row)" } else { "" };
    metrics.join(", ") + constant
}

/// The task of a config with its labels known, written back into the config.
pub fn task_of(config: &mut Config) -> Result<TaskSpec> {
    let Some(choice) = config.data.task.clone() else { bail!("data.task is not set") };
    let spec = TaskSpec::find(&choice, &config.data.task_dir)?;
    if let Some(TaskChoice::Own(task)) = &mut config.data.task {
        task.labels.clone_from(&spec.labels);
    }
    if spec.train.is_empty() {
        bail!("data.task: {} has no training rows; fine-tune mnli, then linformer predict RUN --task {}", spec.name, spec.name);
    }
    Ok(spec)
}

/// Fine-tunes one model.
pub fn run(mut config: Config, origins: &Origins, start: Start) -> Result<Finished> {
    let device = setup::device(&config, origins, &start.world)?;
    let spec = task_of(&mut config)?;
    let parent = Parent::find(&config)?;
    if let Some(parent) = &parent {
        config.model = parent.merge_model(&config.model, origins)?;
    }
    let tokenizer = tokenizer(&config, origins, parent.as_ref())?;
    setup::resolve_model(&mut config, origins, &tokenizer)?;
    let settings = Settings::new(&config, &tokenizer);
    let prepared = start.world.first_then_others("prepared", || anyhow::Ok(prepare(&spec, &tokenizer, &settings)?))?;
    let Prepared { mut train, scored, .. } = prepared;
    if config.data.max_train_examples > 0 {
        train.truncate(config.data.max_train_examples);
    }
    let hashes: Map<String, Value> = [&train].into_iter().chain(&scored).map(|r| (r.meta.name.clone(), json!(r.meta.sha256))).collect();
    let mut warnings: Vec<String> = [&train].into_iter().chain(&scored).flat_map(|rows| warnings(&rows.meta)).collect();
    let data = TaskData::new(train, &config, tokenizer.special.pad);
    let total_steps = total_steps(&config, origins, &data)?;
    let inputs = setup::inputs(&config, &tokenizer, Value::Object(hashes), parent.as_ref())?;
    let folder = setup::open_folder(&config, &start, &inputs, total_steps)?;
    if let Some(summary) = folder.done {
        return Ok(Finished::Done(summary));
    }

    let mut parameters = Parameters::new(config.train.seed, device);
    let classifier = Classifier::new(&mut parameters, &config, spec.outputs(), &tokenizer).among(&start.world);
    if let Some(parent) = parent.as_ref().filter(|_| config.run.init_weights) {
        parent.load(&parameters, Select::Encoder)?;
    }
    setup::load_projections(&config, &parameters)?;
    let leaks = leaks(&spec, parent.as_ref())?;
    if let Some(Leaks { found, texts, first: Some(first) }) = &leaks {
        warnings.push(format!("{found} of {texts} scored texts stand in the corpus of run.init_from, the first is \"{first}\""));
    }
    let task = Finetune {
        leaks,
        spec,
        data,
        scored,
        classifier,
        label_smoothing: config.train.label_smoothing,
        dev_halves: config.data.dev_halves,
    };
    let job = Job {
        config: &config,
        start: &start,
        folder,
        task: &task,
        parameters: &parameters,
        tokenizer: &tokenizer,
        warnings,
        total_steps,
        flops_per_token: {
            let n = config.data.sequence_length;
            forward_flops_per_token(&config.model, n, 0.0, task.classifier.share_made(n))
        },
    };
    job.run(|outcome, _| Ok(summary(&start.name, &config, &task, &parameters, outcome, total_steps)))
}

/// Scored texts in the corpus that the parent was pretrained on.
fn leaks(spec: &TaskSpec, parent: Option<&Parent>) -> Result<Option<Leaks>> {
    let data = parent.and_then(|p| p.config().ok()).map(|config| config.data).filter(|data| data.corpus.is_some());
    Ok(data.map(|data| in_corpus(spec, &data)).transpose()?.flatten())
}

/// What a user should know of a split's rows.
fn warnings(meta: &SplitMeta) -> Vec<String> {
    let mut found = Vec::new();
    let name = &meta.name;
    if meta.skipped.rows > 0 {
        found.push(format!(
            "{name}: {} rows were skipped (data.on_error), the first: {}",
            meta.skipped.rows,
            meta.skipped.first.join("; ")
        ));
    }
    if meta.overlap > 0 {
        let text = meta.overlap_first.as_deref().unwrap_or_default();
        found.push(format!("{name}: {} rows stand in a scored split too (data.on_overlap), the first is \"{text}\"", meta.overlap));
    }
    if meta.without_text > 0 {
        found.push(format!("{name}: {} rows have no text", meta.without_text));
    }
    found
}

/// The checkpoint's tokenizer, or one that stands by itself.
pub fn tokenizer(config: &Config, origins: &Origins, parent: Option<&Parent>) -> Result<Tokenizer> {
    Ok(match (parent, config.data.tokenizer.as_str()) {
        (Some(parent), _) => Tokenizer::load(&parent.tokenizer)?,
        (None, name) if TokenizerKind::by_name(name).is_some() => {
            return Err(origins
                .error("data.tokenizer", format!("found {name}, which is trained on a corpus; a fine-tuning run takes its tokenizer from run.init_from, or give bytes or a tokenizer's path"))
                .into())
        }
        (None, name) => Tokenizer::named(name)?,
    })
}

/// `max_steps`, or as many as `max_epochs` come to.
fn total_steps(config: &Config, origins: &Origins, data: &TaskData) -> Result<u64> {
    let Some(epochs) = config.train.max_epochs else { return Ok(config.train.max_steps) };
    let total = data.buckets.steps(epochs);
    let warmup = config.train.warmup_steps;
    if warmup > total {
        let message = format!("found {warmup}, but {epochs} epochs of {} rows are {total} steps; expected fewer", data.rows.len());
        return Err(origins.error("train.warmup_steps", message).into());
    }
    Ok(total)
}

fn summary(name: &str, config: &Config, task: &Finetune, parameters: &Parameters, outcome: &Outcome, total_steps: u64) -> Value {
    let truth = task.scored.first().map(Rows::labels).unwrap_or_default();
    let lines = jsonl::read(&setup::run_dir(config, name).join("metrics.jsonl")).unwrap_or_default();
    // The checkpoint that stands for the run, whether or not its score is defined.
    let chosen = outcome.state.best();
    let evaluated = chosen.and_then(|b| scores_at(&lines, b.step));
    let best = chosen.filter(|b| b.score.is_some());
    let scores = best.and(evaluated.as_ref());
    let reported = scores.map(|s| s[REPORTED_ON].clone());
    let splits: Map<String, Value> =
        [&task.data.rows].into_iter().chain(&task.scored).map(|r| (r.meta.name.clone(), json!(r.meta))).collect();
    json!({
        "kind": "finetune",
        "name": name,
        "model": setup::model_summary(&config.model, parameters),
        "task": task.spec.name,
        "metric": task.spec.metrics[0].name_on(&task.spec.scored[0].name),
        "value": best.and_then(|b| b.score),
        "best_step": best.map(|b| b.step),
        "scores": scores,
        // The value is of the half that chose; this half chose nothing.
        "reported_value": reported,
        // Null: it was not logged.
        "constant_prediction": evaluated.as_ref().map(|s| s["constant_prediction"].as_f64() == Some(1.0)),
        "majority": if task.spec.is_regression() { None } else { majority_share(&truth) },
        "train_rows": task.data.rows.len(),
        "dev_rows": truth.len(),
        "data": splits,
        "pretraining_overlap": task.leaks,
        "init_from": config.run.init_from,
        "init_weights": config.run.init_from.is_some() && config.run.init_weights,
        "seed": config.train.seed,
        "steps": outcome.state.step,
        "total_steps": total_steps,
        "tokens": outcome.state.tokens,
        "seconds": outcome.state.seconds,
        "tokens_per_second": setup::tokens_per_second(&outcome.state),
        "precision": config.train.precision,
    })
}

/// Every value of the evaluation after a step.
fn scores_at(lines: &[Map<String, Value>], step: u64) -> Option<Value> {
    let line = lines.iter().find(|line| line["split"] == "task" && line["step"] == step)?;
    let values = line.iter().filter(|(name, _)| !["step", "split", "time", "tokens"].contains(&name.as_str()));
    Some(Value::Object(values.map(|(name, value)| (name.clone(), value.clone())).collect()))
}
