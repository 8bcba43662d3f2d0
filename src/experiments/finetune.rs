//! Fine-tuning on a task with labelled sentences or pairs (paper, section 5.2, Table 2).

use super::setup::{self, Job, Parent};
use super::{Finished, Start};
use crate::config::{Config, Origins};
use crate::data::batch::TaskBatch;
use crate::data::order::EpochOrder;
use crate::data::tasks::{Example, TaskSpec};
use crate::data::tokenizer::{Kind as TokenizerKind, Tokenizer};
use crate::digest::file_sha256;
use crate::eval::majority_share;
use crate::log::Record;
use crate::model::loss::{cross_entropy_sum, squared_error_sum};
use crate::model::size::forward_flops_per_token;
use crate::model::weights::Select;
use crate::model::{ClassificationHead, Encoder, Input, Parameters, Pass};
use crate::native::NativeError;
use crate::train::interrupt::Interrupt;
use crate::train::trainer::{kind_of, BatchSize, Evaluation};
use crate::train::{LossSum, Outcome, Task};
use anyhow::{bail, Context, Result};
use serde_json::{json, Value};
use std::ops::Range;
use std::path::Path;
use tch::{Device, Kind, Tensor};

const EVALUATION_BATCH: usize = 64;

/// A classification or regression task.
pub struct Finetune {
    spec: TaskSpec,
    train: Vec<Example>,
    dev: Vec<Example>,
    encoder: Encoder,
    head: ClassificationHead,
    pad: u32,
    kind: Kind,
    device: Device,
    order: EpochOrder,
    batch_size: usize,
    label_smoothing: f64,
}

impl Finetune {
    fn logits(&self, batch: &TaskBatch, rows: Range<usize>, pass: &Pass) -> Result<(Tensor, Tensor), NativeError> {
        let tensors = batch.tensors(rows, self.spec.is_regression(), self.device);
        let hidden = self.encoder.forward(&Input { ids: tensors.ids, attention_mask: Some(tensors.attention_mask) }, pass)?;
        Ok((self.head.forward(&hidden, pass)?, tensors.labels))
    }

    fn loss_sum(&self, logits: &Tensor, labels: &Tensor, smoothing: f64) -> Tensor {
        if self.spec.is_regression() {
            squared_error_sum(logits, labels)
        } else {
            cross_entropy_sum(logits, labels, smoothing)
        }
    }

    fn predictions(&self, logits: &Tensor) -> Vec<f64> {
        let values = if self.spec.is_regression() { logits.squeeze_dim(1) } else { logits.argmax(-1, false) };
        let values = values.to_kind(Kind::Double).to_device(Device::Cpu);
        (0..values.size()[0]).map(|i| values.double_value(&[i])).collect()
    }
}

impl Task for Finetune {
    type Batch = TaskBatch;

    /// Rows in the order of their epoch; a batch may reach into the next epoch.
    fn batch(&self, step: u64) -> TaskBatch {
        let first = (step - 1) * self.batch_size as u64;
        let samples = first..first + self.batch_size as u64;
        let examples = samples.map(|sample| self.train[self.order.item(sample)].clone()).collect();
        TaskBatch::new(examples, self.pad)
    }

    fn size(&self, batch: &TaskBatch) -> BatchSize {
        BatchSize { sequences: batch.examples.len(), length: batch.length(), tokens: batch.tokens(), targets: batch.examples.len() }
    }

    fn loss(&self, batch: &TaskBatch, rows: Range<usize>, pass: &Pass) -> Result<LossSum, NativeError> {
        let (logits, labels) = self.logits(batch, rows, pass)?;
        Ok(LossSum(self.loss_sum(&logits, &labels, self.label_smoothing)))
    }

    /// Every row once, sorted by length; predictions meet their labels by the row's id.
    fn evaluate(&self, interrupt: &Interrupt) -> Result<Option<Evaluation>, NativeError> {
        let _guard = tch::no_grad_guard();
        let pass = Pass::evaluation(self.kind);
        let mut by_length: Vec<&Example> = self.dev.iter().collect();
        by_length.sort_by_key(|e| e.ids.len());
        let mut predicted = vec![0.0; self.dev.len()];
        let mut sum = 0.0;
        for chunk in by_length.chunks(EVALUATION_BATCH) {
            if interrupt.is_set() {
                return Ok(None);
            }
            let batch = TaskBatch::new(chunk.iter().map(|e| (*e).clone()).collect(), self.pad);
            let (logits, labels) = self.logits(&batch, 0..chunk.len(), &pass)?;
            sum += self.loss_sum(&logits, &labels, 0.0).double_value(&[]);
            chunk.iter().zip(self.predictions(&logits)).for_each(|(example, value)| predicted[example.id] = value);
        }
        let truth: Vec<f64> = self.dev.iter().map(|e| e.label).collect();
        let score = self.spec.metric.compute(&predicted, &truth);
        let name = self.spec.metric.name();
        let constant = predicted.iter().all(|p| *p == predicted[0]);
        let mut text = match score {
            Some(score) => format!("{name} {score:.4}"),
            None => format!("{name} undefined"),
        };
        if constant {
            text += " (one and the same prediction for every row)";
        }
        let values = [("loss", Some(sum / truth.len().max(1) as f64)), (name, score), ("constant_prediction", constant.then_some(1.0))];
        let values = values.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        Ok(Some(Evaluation { record: Record { step: 0, split: "task", values }, score, text }))
    }

    fn keeps_best(&self) -> bool {
        true
    }
}

/// Fine-tunes one model.
pub fn run(mut config: Config, origins: &Origins, start: Start) -> Result<Finished> {
    let Some(choice) = config.data.task.clone() else { bail!("data.task is not set") };
    let device = setup::device(&config, origins)?;
    let spec = TaskSpec::find(&choice, &config.data.task_dir)?;
    let parent = Parent::find(&config)?;
    if let Some(parent) = &parent {
        config.model = parent.merge_model(&config.model, origins)?;
    }
    let tokenizer = tokenizer(&config, origins, parent.as_ref())?;
    setup::resolve_model(&mut config, origins, &tokenizer)?;
    let length = config.data.sequence_length as usize;
    let mut train_rows = spec.examples(&spec.train, &tokenizer, length)?;
    if config.data.max_train_examples > 0 {
        train_rows.truncate(config.data.max_train_examples);
    }
    let dev = spec.examples(&spec.dev, &tokenizer, length)?;
    let total_steps = total_steps(&config, origins, train_rows.len())?;
    let hash = |path: &Path| Ok::<_, anyhow::Error>(file_sha256(path).with_context(|| path.display().to_string())?.1);
    let inputs = setup::inputs(&tokenizer, json!({"train": hash(&spec.train)?, "dev": hash(&spec.dev)?}), parent.as_ref())?;
    let folder = setup::open_folder(&config, &start, &inputs, total_steps)?;
    if let Some(summary) = folder.done {
        return Ok(Finished::Done(summary));
    }

    let mut parameters = Parameters::new(config.train.seed, device);
    let encoder = Encoder::new(&mut parameters, &config.model);
    let head = ClassificationHead::new(&mut parameters, &config.model, spec.outputs());
    if let Some(parent) = parent.as_ref().filter(|_| config.run.init_weights) {
        parent.load(&parameters, Select::Encoder)?;
    }
    let task = Finetune {
        order: EpochOrder::new(config.train.seed, train_rows.len()),
        spec,
        train: train_rows,
        dev,
        encoder,
        head,
        pad: tokenizer.special.pad,
        kind: kind_of(config.train.precision),
        device,
        batch_size: config.train.batch_size,
        label_smoothing: config.train.label_smoothing,
    };
    let job = Job {
        config: &config,
        start: &start,
        folder,
        task: &task,
        parameters: &parameters,
        tokenizer: &tokenizer,
        total_steps,
        flops_per_token: forward_flops_per_token(&config.model, config.data.sequence_length, 0.0),
    };
    job.run(|outcome, _| Ok(summary(&start.name, &config, &task, &parameters, outcome, total_steps)))
}

/// The checkpoint's tokenizer, or one that stands by itself.
fn tokenizer(config: &Config, origins: &Origins, parent: Option<&Parent>) -> Result<Tokenizer> {
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
fn total_steps(config: &Config, origins: &Origins, rows: usize) -> Result<u64> {
    let Some(epochs) = config.train.max_epochs else { return Ok(config.train.max_steps) };
    let total = ((epochs * rows as f64 / config.train.batch_size as f64).ceil() as u64).max(1);
    let warmup = config.train.warmup_steps;
    if warmup > total {
        let message = format!("found {warmup}, but {epochs} epochs of {rows} rows are {total} steps; expected fewer");
        return Err(origins.error("train.warmup_steps", message).into());
    }
    Ok(total)
}

fn summary(name: &str, config: &Config, task: &Finetune, parameters: &Parameters, outcome: &Outcome, total_steps: u64) -> Value {
    let truth: Vec<f64> = task.dev.iter().map(|e| e.label).collect();
    let best = outcome.state.best().filter(|b| b.score.is_some());
    json!({
        "kind": "finetune",
        "name": name,
        "model": setup::model_summary(&config.model, parameters),
        "task": task.spec.name,
        "metric": task.spec.metric.name(),
        "value": best.and_then(|b| b.score),
        "best_step": best.map(|b| b.step),
        "constant_prediction": outcome.last.as_ref().and_then(|e| e.record.get("constant_prediction")) == Some(1.0),
        "majority": if task.spec.is_regression() { None } else { majority_share(&truth) },
        "train_rows": task.train.len(),
        "dev_rows": task.dev.len(),
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
