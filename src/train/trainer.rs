//! The training loop, for pretraining and fine-tuning alike.

use super::checkpoint::{self, Best, CheckpointError, State, Window};
use super::interrupt::Interrupt;
use super::optimizer::{Gradients, Optimizer};
use super::schedule::Schedule;
use crate::config::{Precision, Train};
use crate::log::{progress::thousands, Log, Record};
use crate::model::{Parameters, Pass};
use crate::native::panics::catch;
use crate::native::NativeError;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;
use tch::{Kind, Tensor};

/// What is learned: batches, their loss, and how well it is learned.
pub trait Task {
    type Batch;

    /// The whole batch of a step (from 1), a function of (seed, step) alone.
    fn batch(&self, step: u64) -> Self::Batch;

    fn size(&self, batch: &Self::Batch) -> BatchSize;

    /// The loss summed over the targets of some sequences of the batch.
    fn loss(&self, batch: &Self::Batch, sequences: Range<usize>, pass: &Pass) -> Result<LossSum, NativeError>;

    fn evaluate(&self) -> Result<Evaluation, NativeError>;

    /// Whether the best evaluation's weights are to be kept: a checkpoint is made at each improvement.
    fn keeps_best(&self) -> bool;
}

/// What a batch holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchSize {
    pub sequences: usize,
    /// Real tokens.
    pub tokens: usize,
    /// Predictions asked for: what the loss is divided by.
    pub targets: usize,
}

/// A sum over targets, with its graph.
pub struct LossSum(pub Tensor);

/// One evaluation.
#[derive(Clone, Debug)]
pub struct Evaluation {
    pub record: Record,
    /// Higher is better; None: the metric is not defined on what was predicted.
    pub score: Option<f64>,
    pub text: String,
}

/// What the loop works on.
pub struct Session<'a> {
    pub config: &'a Train,
    pub total_steps: u64,
    pub parameters: &'a Parameters,
    pub optimizer: Optimizer,
    pub state: State,
    pub checkpoints: &'a Path,
    pub log: &'a mut Log,
    pub interrupt: &'a Interrupt,
    /// Products of forward and backward pass, for MFU.
    pub flops_per_token: f64,
    /// What the device reaches on one large product, in FLOP/s.
    pub peak_flops: f64,
}

/// How training ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub state: State,
    pub interrupted: bool,
    /// The last evaluation.
    pub last: Option<Evaluation>,
}

/// Why training ended early. The weights are those before the failed step, and the last checkpoint stands.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error("step {step}: the {what} is not finite ({value}); the weights were not touched. First bad gradient: {parameter}. Try a lower train.learning_rate, a longer train.warmup_steps or train.clip_grad_norm")]
    NotFinite { step: u64, what: &'static str, value: f64, parameter: String },
    #[error("step {step}, {sequences} sequences: {source}")]
    Step { step: u64, sequences: usize, source: NativeError },
    #[error("evaluation after step {step}: {source}")]
    Evaluation { step: u64, source: NativeError },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// Trains from `session.state` to `total_steps`, or until an interrupt or the end of patience.
pub fn train<T: Task>(task: &T, mut session: Session) -> Result<Outcome, TrainError> {
    let schedule = Schedule::new(session.config, session.total_steps);
    let mut last = None;
    while session.state.step < session.total_steps && !session.is_out_of_patience() {
        let step = session.state.step + 1;
        let started = Instant::now();
        let batch = task.batch(step);
        session.state.window.waited += started.elapsed().as_secs_f64();

        let lr = schedule.at(step);
        let size = task.size(&batch);
        let (loss, norm) = session.step(task, &batch, size, step, lr)?;

        session.state.step = step;
        session.state.tokens += size.tokens as u64;
        session.state.seconds += started.elapsed().as_secs_f64();
        session.state.window.add(loss, size, started.elapsed().as_secs_f64());
        session.log.progress.step(step);

        let is_last = step == session.total_steps;
        if due(step, session.config.log_every) || is_last {
            session.report(lr, norm);
        }
        let mut improved = false;
        if due(step, session.config.eval_every) || is_last {
            let evaluation = catch(|| task.evaluate()).map_err(|source| TrainError::Evaluation { step, source })?;
            improved = session.evaluated(&evaluation);
            last = Some(evaluation);
        }
        let interrupted = session.interrupt.is_set() && !is_last;
        let ends = is_last || interrupted || session.is_out_of_patience();
        if ends || due(step, session.config.checkpoint_every) || (improved && task.keeps_best()) {
            session.log.sync();
            let state = &session.state;
            checkpoint::save(session.checkpoints, session.parameters, &session.optimizer, state, session.config.keep_checkpoints)?;
        }
        if interrupted {
            return Ok(Outcome { state: session.state, interrupted, last });
        }
    }
    Ok(Outcome { state: session.state, interrupted: false, last })
}

fn due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

impl Session<'_> {
    /// Forward, backward, checks, update. Gives the mean loss over the batch's targets and the gradient norm.
    fn step<T: Task>(&mut self, task: &T, batch: &T::Batch, size: BatchSize, step: u64, lr: f64) -> Result<(f64, f64), TrainError> {
        let failed = |source| TrainError::Step { step, sequences: size.sequences, source };
        let loss = catch(|| self.backward(task, batch, size, step)).map_err(failed)?;
        let Gradients { norm, first_bad } = self.optimizer.gradients().map_err(failed)?;
        let not_finite = |what, value| {
            let parameter = first_bad.clone().unwrap_or_else(|| "none".into());
            Err(TrainError::NotFinite { step, what, value, parameter })
        };
        if !loss.is_finite() {
            return not_finite("loss", loss);
        }
        if !norm.is_finite() {
            return not_finite("gradient norm", norm);
        }
        self.optimizer.step(lr, norm).map_err(failed)?;
        self.parameters.zero_grad();
        Ok((loss, norm))
    }

    /// Adds up the gradients of all micro-batches, each loss divided by the targets of the *whole* batch: unequal
    /// micro-batches weigh as they would in one big batch.
    fn backward<T: Task>(&self, task: &T, batch: &T::Batch, size: BatchSize, step: u64) -> Result<f64, NativeError> {
        let kind = kind_of(self.config.precision);
        let pieces = self.config.batch_size.div_ceil(self.config.micro_batch());
        let micro = size.sequences.div_ceil(pieces).max(1);
        let mut total = Tensor::zeros([], (Kind::Float, self.parameters.device()));
        for first in (0..size.sequences).step_by(micro) {
            let pass = Pass::training(kind, self.config.seed, step, first as i64);
            let sequences = first..(first + micro).min(size.sequences);
            let LossSum(sum) = task.loss(batch, sequences, &pass)?;
            let loss = sum / size.targets.max(1) as f64;
            loss.backward();
            total += loss.detach();
        }
        Ok(total.double_value(&[]))
    }

    fn is_out_of_patience(&self) -> bool {
        let patience = self.config.early_stopping_patience;
        patience > 0 && self.state.evaluations_since_best >= patience
    }

    fn report(&mut self, lr: f64, norm: f64) {
        let window = std::mem::take(&mut self.state.window);
        let loss = window.loss / window.targets.max(1) as f64;
        let speed = window.tokens as f64 / window.seconds;
        let record = Record {
            step: self.state.step,
            split: "train",
            values: vec![
                ("tokens", self.state.tokens as f64),
                ("loss", loss),
                ("perplexity", loss.exp()),
                ("lr", lr),
                ("grad_norm", norm),
                ("tokens_per_second", speed),
                ("mfu", speed * self.flops_per_token / self.peak_flops),
                ("data_wait", window.waited / window.seconds),
            ],
        };
        self.log.record(&record);
        self.log.progress.report(self.state.step, &format!("loss {loss:.3}, {} tokens/s", thousands(speed)));
    }

    /// Logs an evaluation and says whether it is the best so far.
    fn evaluated(&mut self, evaluation: &Evaluation) -> bool {
        let mut record = evaluation.record.clone();
        record.step = self.state.step;
        record.values.insert(0, ("tokens", self.state.tokens as f64));
        self.log.record(&record);
        self.log.progress.note(&format!("step {}: {}", self.state.step, evaluation.text));
        // An undefined score never counts as an improvement, but the first evaluation has to be kept whatever it says.
        let score = evaluation.score.filter(|s| s.is_finite());
        let improved = match (score, self.state.best) {
            (_, None) => true,
            (Some(score), Some(best)) => best.score.is_none_or(|b| score > b),
            (None, Some(_)) => false,
        };
        if improved {
            self.state.best = Some(Best { score, step: self.state.step });
            self.state.evaluations_since_best = 0;
        } else {
            self.state.evaluations_since_best += 1;
        }
        improved
    }
}

/// The tensor kind of a precision.
pub fn kind_of(precision: Precision) -> Kind {
    match precision {
        Precision::Fp32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
    }
}

impl Window {
    fn add(&mut self, loss: f64, size: BatchSize, seconds: f64) {
        self.loss += loss * size.targets as f64;
        self.targets += size.targets as u64;
        self.tokens += size.tokens as u64;
        self.seconds += seconds;
    }
}
