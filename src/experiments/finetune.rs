//! Fine-tuning on a task with labelled sentences or pairs (paper, section 5.2, Table 2).

use super::setup::{self, Origin};
use super::{Finished, Start};
use crate::config::{Config, Origins};
use crate::data::batch::TaskBatch;
use crate::data::order::EpochOrder;
use crate::data::tasks::{Example, TaskSpec};
use crate::data::tokenizer::Tokenizer;
use crate::eval::majority_share;
use crate::log::Record;
use crate::model::size::forward_flops_per_token;
use crate::model::weights::Select;
use crate::model::{ClassificationHead, Encoder, Input, Parameters, Pass};
use crate::native::NativeError;
use crate::train::loss::{cross_entropy_sum, squared_error_sum};
use crate::train::trainer::{kind_of, BatchSize, Evaluation, Session};
use crate::train::{train, LossSum, Outcome, Task};
use anyhow::{bail, Result};
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
        BatchSize { sequences: batch.examples.len(), tokens: batch.tokens(), targets: batch.examples.len() }
    }

    fn loss(&self, batch: &TaskBatch, rows: Range<usize>, pass: &Pass) -> Result<LossSum, NativeError> {
        let (logits, labels) = self.logits(batch, rows, pass)?;
        Ok(LossSum(self.loss_sum(&logits, &labels, self.label_smoothing)))
    }

    /// Every row once, sorted by length; predictions meet their labels by the row's id.
    fn evaluate(&self) -> Result<Evaluation, NativeError> {
        let _guard = tch::no_grad_guard();
        let pass = Pass::evaluation(self.kind);
        let mut by_length: Vec<&Example> = self.dev.iter().collect();
        by_length.sort_by_key(|e| e.ids.len());
        let mut predicted = vec![0.0; self.dev.len()];
        let mut sum = 0.0;
        for chunk in by_length.chunks(EVALUATION_BATCH) {
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
        let values = [("loss", Some(sum / truth.len().max(1) as f64)), (name, score)];
        let values = values.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        Ok(Evaluation { record: Record { step: 0, split: "task", values }, score, text })
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
    let origin = Origin::find(&config)?;
    if let Some(origin) = &origin {
        config.model = origin.merge_model(&config.model, origins)?;
    }
    let tokenizer = tokenizer(&config, origins, origin.as_ref())?;
    setup::resolve_model(&mut config, origins, &tokenizer)?;
    let length = config.data.sequence_length as usize;
    let mut train_rows = spec.examples(&spec.train, &tokenizer, length)?;
    if config.data.max_train_examples > 0 {
        train_rows.truncate(config.data.max_train_examples);
    }
    let dev = spec.examples(&spec.dev, &tokenizer, length)?;
    let total_steps = total_steps(&config, train_rows.len());
    if let Some(summary) = setup::is_done(&setup::run_dir(&config, &start.name), &start.resume, total_steps) {
        return Ok(Finished::Done(summary));
    }

    let mut parameters = Parameters::new(config.train.seed, device);
    let encoder = Encoder::new(&mut parameters, &config.model);
    let head = ClassificationHead::new(&mut parameters, &config.model, spec.outputs());
    if let Some(origin) = origin.as_ref().filter(|_| config.run.init_weights) {
        origin.load(&parameters, Select::Encoder)?;
    }
    let order = EpochOrder::new(config.train.seed, train_rows.len());
    let task = Finetune {
        spec,
        train: train_rows,
        dev,
        encoder,
        head,
        pad: tokenizer.special.pad,
        kind: kind_of(config.train.precision),
        device,
        order,
        batch_size: config.train.batch_size,
        label_smoothing: config.train.label_smoothing,
    };
    let mut ready = setup::prepare_run(&config, &start, &parameters, &tokenizer, total_steps)?;
    let session = Session {
        config: &config.train,
        total_steps,
        parameters: &parameters,
        optimizer: ready.optimizer,
        state: ready.state,
        checkpoints: &ready.folder.checkpoints(),
        log: &mut ready.log,
        interrupt: &start.interrupt,
        flops_per_token: 3.0 * forward_flops_per_token(&config.model, config.data.sequence_length, 0.0),
        peak_flops: ready.peak_flops,
    };
    let outcome = train(&task, session)?;
    ready.log.progress.finish();
    if outcome.interrupted {
        return Ok(Finished::Interrupted);
    }
    let summary = summary(&start.name, &config, &task, &parameters, &outcome, total_steps);
    ready.folder.write("summary.json", &summary)?;
    Ok(Finished::Done(summary))
}

/// The checkpoint's tokenizer, or one that stands by itself.
fn tokenizer(config: &Config, origins: &Origins, origin: Option<&Origin>) -> Result<Tokenizer> {
    Ok(match (origin, config.data.tokenizer.as_str()) {
        (Some(origin), _) => Tokenizer::load(&origin.tokenizer)?,
        (None, "bytes") => Tokenizer::bytes()?,
        (None, "byte_bpe") => {
            return Err(origins
                .error("data.tokenizer", "found byte_bpe, which is trained on a corpus; a fine-tuning run takes its tokenizer from run.init_from, or give bytes or a tokenizer.json")
                .into())
        }
        (None, path) => Tokenizer::load(Path::new(path))?,
    })
}

fn total_steps(config: &Config, rows: usize) -> u64 {
    match config.train.max_epochs {
        Some(epochs) => ((epochs * rows as f64 / config.train.batch_size as f64).ceil() as u64).max(1),
        None => config.train.max_steps,
    }
}

fn summary(name: &str, config: &Config, task: &Finetune, parameters: &Parameters, outcome: &Outcome, total_steps: u64) -> Value {
    let truth: Vec<f64> = task.dev.iter().map(|e| e.label).collect();
    let best = outcome.state.best.filter(|(score, _)| *score != f64::MIN);
    json!({
        "kind": "finetune",
        "name": name,
        "model": setup::model_summary(&config.model, parameters),
        "task": task.spec.name,
        "metric": task.spec.metric.name(),
        "value": best.map(|(score, _)| score),
        "best_step": best.map(|(_, step)| step),
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
