//! The training loop, for pretraining and fine-tuning alike.

use super::checkpoint::CheckpointError;
use super::health::{Incident, NotFinite};
use super::histograms::histograms;
use super::interrupt::Interrupt;
use super::optimizer::{Gradients, Optimizer};
use super::profile::{Profile, Profiler};
use super::ranks::{Ranks, Step};
use super::run::{RunError, RunFolder};
use super::saver::{Keep, Saver};
use super::schedule::Schedule;
use super::shard::Shard;
use super::state::{Rank, State, Window};
use crate::config::{Precision, Train};
use crate::data::loader::{self, Batches, Loader};
use crate::log::{progress::thousands, Log, Record};
use crate::model::watch::Watch;
use crate::model::{Parameters, Pass};
use crate::native::panics::catch;
use crate::native::profile::{span, Part};
use crate::native::runtime;
use crate::native::NativeError;
use serde::Serialize;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;
use tch::{Kind, Tensor};

/// What is learned: batches, their loss, and how well it is learned.
pub trait Task {
    /// Plain data: it is written to a file when a run ends on it.
    type Batch: Serialize + Send;
    type Data: Batches<Batch = Self::Batch>;

    /// Where the batches of the steps come from.
    fn data(&self) -> &Self::Data;

    fn size(&self, batch: &Self::Batch) -> BatchSize;

    /// The loss summed over the targets of some sequences of the batch.
    fn loss(&self, batch: &Self::Batch, sequences: Range<usize>, pass: &Pass) -> Result<LossSum, NativeError>;

    /// None if `interrupt` was set before the end.
    fn evaluate(&self, interrupt: &Interrupt) -> Result<Option<Evaluation>, NativeError>;

    /// Whether the best evaluations' weights are to be kept: a checkpoint is made at each.
    fn keeps_best(&self) -> bool;
}

/// What a batch holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchSize {
    pub sequences: usize,
    /// Positions of a sequence, padding included.
    pub length: usize,
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
    pub ranks: Ranks<'a>,
    pub optimizer: Optimizer,
    pub state: State,
    pub folder: &'a RunFolder,
    pub saver: Saver,
    pub log: &'a mut Log,
    pub interrupt: &'a Interrupt,
    /// Products of forward and backward pass, for MFU.
    pub flops_per_token: f64,
    /// What the device reaches on one large product, in FLOP/s.
    pub peak_flops: f64,
    /// Looks at some steps.
    pub profiler: Option<Profiler>,
}

/// How training ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub state: State,
    pub interrupted: bool,
    /// The last evaluation.
    pub last: Option<Evaluation>,
}

/// Why training ended early. The last checkpoint stands.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error("step {step}: {bad}; {times} in a row were skipped and the weights were not touched. A checkpoint was written, and the batch to {batch} (see linformer replay). Try a lower train.learning_rate, a longer train.warmup_steps or train.clip_grad_norm")]
    NotFinite { step: u64, times: u64, bad: NotFinite, batch: PathBuf },
    #[error("step {step}, batch [{sequences}, {length}]: {source}")]
    Step { step: u64, sequences: usize, length: usize, source: NativeError },
    #[error("evaluation after step {step}: {source}")]
    Evaluation { step: u64, source: NativeError },
    #[error("profiling step {step}: {source}")]
    Profile { step: u64, source: NativeError },
    #[error("gathering the optimizer's state after step {step}: {source}")]
    Gather { step: u64, source: NativeError },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Trains from `session.state` to `total_steps`, or until an interrupt or the end of patience.
pub fn train<T: Task>(task: &T, session: Session) -> Result<Outcome, TrainError> {
    let steps = session.state.step + 1..=session.total_steps;
    loader::with(task.data(), steps, |batches| train_on(task, batches, session))
}

fn train_on<T: Task>(task: &T, batches: &Loader<T::Data>, mut session: Session) -> Result<Outcome, TrainError> {
    let schedule = Schedule::new(session.config, session.total_steps);
    let mut last = None;
    let mut saved = (session.state.step > 0 && !session.state.evaluation_pending).then_some(session.state.step);
    loop {
        let mut keep = false;
        if session.state.evaluation_pending {
            if let Some((evaluation, rank)) = session.evaluate(task)? {
                keep = rank == Rank::Kept && task.keeps_best();
                last = Some(evaluation);
            }
        }
        let step = session.state.step;
        let done = !session.state.evaluation_pending && (step >= session.total_steps || session.is_out_of_patience());
        let interrupted = !done && session.ranks.is_stopped(session.interrupt.is_set());
        let wanted = done || interrupted || keep || due(step, session.config.checkpoint_every);
        if wanted && saved != Some(step) {
            session.save()?;
            saved = Some(step);
        }
        if done || interrupted {
            session.saved()?;
            return Ok(Outcome { state: session.state, interrupted, last });
        }
        session.advance(task, batches, &schedule)?;
    }
}

fn due(step: u64, every: u64) -> bool {
    every > 0 && step > 0 && step.is_multiple_of(every)
}

/// What became of a step.
enum Update {
    Made { loss: f64, norm: f64 },
    Skipped(NotFinite),
}

impl Session<'_> {
    /// One step with its bookkeeping.
    fn advance<T: Task>(&mut self, task: &T, batches: &Loader<T::Data>, schedule: &Schedule) -> Result<(), TrainError> {
        let step = self.state.step + 1;
        self.ranks.world.at_step(step);
        let profiled = |source| TrainError::Profile { step, source };
        self.profiler.as_ref().map_or(Ok(()), |profiler| profiler.before(step)).map_err(profiled)?;
        let whole = span(Part::Rest);
        let started = Instant::now();
        let wait = span(Part::DataWait);
        let batch = batches.take(step);
        drop(wait);
        self.state.window.waited += started.elapsed().as_secs_f64();

        let lr = schedule.at(step);
        let size = task.size(&batch);
        let update = self.step(task, &batch, size, step, lr)?;

        self.state.step = step;
        self.state.tokens += size.tokens as u64;
        let seconds = started.elapsed().as_secs_f64();
        self.state.seconds += seconds;
        self.state.window.seconds += seconds;
        self.state.window.tokens += size.tokens as u64;
        self.state.window.positions += (size.sequences * size.length) as u64;
        self.log.progress.step(step);
        let norm = match update {
            Update::Made { loss, norm } => {
                self.made(loss, norm, size);
                norm
            }
            Update::Skipped(bad) => {
                self.skipped(bad, &batch)?;
                f64::NAN
            }
        };
        let is_last = step == self.total_steps;
        if due(step, self.config.log_every) || is_last {
            self.report(lr, norm);
        }
        self.state.evaluation_pending = due(step, self.config.eval_every) || is_last;
        drop(whole);
        if let Some(profile) = self.profiler.as_ref().map_or(Ok(None), |profiler| profiler.after(step)).map_err(profiled)? {
            self.tell_profile(&profile)?;
        }
        let unsynced = self.saver.check()?;
        unsynced.iter().for_each(|error| self.log.unsynced(error));
        Ok(())
    }

    /// Forward, backward, checks, update. Loss and gradients that are not finite never reach weights or optimizer.
    fn step<T: Task>(&mut self, task: &T, batch: &T::Batch, size: BatchSize, step: u64, lr: f64) -> Result<Update, TrainError> {
        let failed = |source| TrainError::Step { step, sequences: size.sequences, length: size.length, source };
        let part = catch(|| self.backward(task, batch, size, step)).map_err(failed)?;
        let Step { loss, times } = self.ranks.after_backward(part, self.interrupt.is_set()).map_err(failed)?;
        self.state.window.communication += times.busy;
        self.state.window.exposed_communication += times.exposed;
        let Gradients { norm, first_bad } = {
            let _span = span(Part::GradientNorm);
            self.optimizer.gradients().map_err(failed)?
        };
        if loss.is_finite() && norm.is_finite() {
            if due(step, self.config.histogram_every) {
                self.log.histograms(step, &histograms(self.parameters));
            }
            let optimizer = span(Part::Optimizer);
            self.optimizer.step(lr, norm).map_err(failed)?;
            self.ranks.saw_norm(norm);
            self.ranks.after_update(self.parameters).map_err(failed)?;
            self.parameters.forget_gradients().map_err(failed)?;
            drop(optimizer);
            self.ranks.compare(self.parameters, step).map_err(failed)?;
            return Ok(Update::Made { loss, norm });
        }
        self.parameters.forget_gradients().map_err(failed)?;
        let module = catch(|| self.first_bad_module(task, batch, size, step)).map_err(failed)?;
        let module = self.ranks.first_said(module).map_err(failed)?;
        let (what, value, beyond) = if loss.is_finite() {
            let weight = first_bad.unwrap_or_else(|| "none: their sum overflows".into());
            ("gradient norm", norm, format!("the gradient of {weight}"))
        } else {
            ("loss", loss, "the loss itself".into())
        };
        Ok(Update::Skipped(NotFinite { what, value, place: module.unwrap_or(beyond) }))
    }

    /// Adds up the gradients of all micro-batches, each loss divided by the targets of the *whole* batch: unequal
    /// micro-batches weigh as they would in one big batch. The last backward pass sums them over the ranks. The loss is of this
    /// rank's micro-batches.
    fn backward<T: Task>(&self, task: &T, batch: &T::Batch, size: BatchSize, step: u64) -> Result<f64, NativeError> {
        let mut total = Tensor::zeros([], (Kind::Float, self.parameters.device()));
        let pieces = self.ranks.micro_batches(self.config, size.sequences);
        for (i, sequences) in pieces.iter().enumerate() {
            let LossSum(sum) = task.loss(batch, sequences.clone(), &self.pass(step, sequences))?;
            let loss = sum / size.targets.max(1) as f64;
            if i + 1 == pieces.len() {
                self.ranks.before_last(self.parameters, Some(&loss))?;
            }
            let _span = span(Part::Autograd);
            loss.backward();
            total += loss.detach();
        }
        if pieces.is_empty() {
            self.ranks.before_last(self.parameters, None)?;
        }
        Ok(total.double_value(&[]))
    }

    /// The same forward passes once more, with every module looked at.
    fn first_bad_module<T: Task>(&self, task: &T, batch: &T::Batch, size: BatchSize, step: u64) -> Result<Option<String>, NativeError> {
        let _guard = tch::no_grad_guard();
        let watch = Watch::default();
        for sequences in self.ranks.micro_batches(self.config, size.sequences) {
            task.loss(batch, sequences.clone(), &self.pass(step, &sequences).watched(&watch))?;
        }
        Ok(watch.first_bad().map(|seen| seen.module))
    }

    fn pass(&self, step: u64, sequences: &Range<usize>) -> Pass<'static> {
        let pass = Pass::training(kind_of(self.config.precision), self.config.seed, step, sequences.start as i64);
        pass.recomputing(self.config.recompute)
    }

    fn made(&mut self, loss: f64, norm: f64, size: BatchSize) {
        let window = &mut self.state.window;
        window.loss += loss * size.targets as f64;
        window.targets += size.targets as u64;
        window.largest_norm = window.largest_norm.max(norm);
        if let Some(ratio) = self.state.health.made(norm) {
            window.spikes += 1;
            self.log.progress.warn(&format!("step {}: gradient norm {norm:.3}, {ratio:.1} times the usual", self.state.step));
        }
    }

    /// Counts a skipped step; after too many in a row the run ends with a checkpoint and the batch on the disk.
    fn skipped(&mut self, bad: NotFinite, batch: &impl Serialize) -> Result<(), TrainError> {
        let step = self.state.step;
        self.state.health.skip();
        self.state.window.skipped += 1;
        let times = self.state.health.skipped_in_a_row;
        self.log.progress.warn(&format!("step {step}: {bad}; the step was skipped"));
        if times < self.config.max_skipped_steps {
            return Ok(());
        }
        // What is due after this step is still due when the run goes on.
        self.state.evaluation_pending = due(step, self.config.eval_every) || step == self.total_steps;
        self.save()?;
        self.saved()?;
        let file = Incident::file_name(step);
        let batch = serde_json::to_value(batch).unwrap_or_default();
        let incident = Incident { step, what: bad.what.into(), place: bad.place.clone(), batch };
        self.folder.write(&file, &serde_json::to_value(incident).unwrap_or_default())?;
        Err(TrainError::NotFinite { step, times, bad, batch: self.folder.path.join(file) })
    }

    /// Starts to write a checkpoint.
    fn save(&mut self) -> Result<(), TrainError> {
        let started = Instant::now();
        let step = self.state.step;
        let gather = |shard: &Shard| shard.gather(self.ranks.world, self.parameters, self.config, &self.optimizer);
        let whole = self.ranks.shard.as_ref().map(gather).transpose().map_err(|source| TrainError::Gather { step, source })?.flatten();
        let optimizer = whole.as_ref().unwrap_or(&self.optimizer);
        let unsynced = self.saver.save(self.parameters, optimizer, &self.state, self.log.files())?;
        self.state.window.stalled += started.elapsed().as_secs_f64();
        unsynced.iter().for_each(|error| self.log.unsynced(error));
        Ok(())
    }

    /// Waits until the last checkpoint is on the disk.
    fn saved(&mut self) -> Result<(), TrainError> {
        let unsynced = self.saver.wait()?;
        unsynced.iter().for_each(|error| self.log.unsynced(error));
        Ok(())
    }

    /// Of the first rank.
    fn tell_profile(&mut self, profile: &Profile) -> Result<(), TrainError> {
        self.folder.write("profile.json", &profile.json())?;
        self.folder.write_text("trace.json", &profile.trace())?;
        self.log.progress.note(&format!("profile of a step; for chrome://tracing: {}", self.folder.path.join("trace.json").display()));
        profile.text().lines().for_each(|line| self.log.progress.note(line));
        Ok(())
    }

    fn is_out_of_patience(&self) -> bool {
        let patience = self.config.early_stopping_patience;
        patience > 0 && self.state.evaluations_since_best >= patience
    }

    fn report(&mut self, lr: f64, norm: f64) {
        let window = std::mem::take(&mut self.state.window);
        let loss = window.loss / window.targets as f64;
        let speed = window.tokens as f64 / window.seconds;
        let mut record = Record {
            step: self.state.step,
            split: "train",
            values: vec![
                ("tokens", self.state.tokens as f64),
                ("loss", loss),
                ("perplexity", loss.exp()),
                ("lr", lr),
                ("grad_norm", norm),
                ("grad_norm_max", window.largest_norm),
                ("grad_norm_spikes", window.spikes as f64),
                ("skipped_steps", window.skipped as f64),
                ("tokens_per_second", speed),
                ("mfu", speed * self.flops_per_token / (self.peak_flops * self.ranks.world.size() as f64)),
                ("data_wait", window.waited / window.seconds),
                ("padding", (1.0 - window.tokens as f64 / window.positions as f64).max(0.0)),
                ("checkpoint_stall", window.stalled / (window.seconds + window.stalled)),
            ],
        };
        record.values.extend(runtime::peak_bytes().map(|bytes| ("peak_memory", bytes as f64)));
        record.values.extend(self.communication(&window));
        self.log.record(&record);
        self.log.progress.report(self.state.step, &format!("loss {loss:.3}, {} tokens/s", thousands(speed)));
    }

    /// Shares of the time, if there are several ranks: gradients on the way, of that not hidden behind the backward pass. Between
    /// GPUs it is not timed.
    fn communication(&self, window: &Window) -> Vec<(&'static str, f64)> {
        if self.ranks.world.is_single() || window.communication == 0.0 {
            return Vec::new();
        }
        let share = |seconds: f64| seconds / window.seconds;
        let hidden = (1.0 - window.exposed_communication / window.communication).max(0.0);
        vec![
            ("communication", share(window.communication)),
            ("communication_exposed", share(window.exposed_communication)),
            ("communication_overlap", hidden),
        ]
    }

    /// Makes the evaluation that is pending, and logs it. None: it was broken off and stays pending.
    fn evaluate<T: Task>(&mut self, task: &T) -> Result<Option<(Evaluation, Rank)>, TrainError> {
        let step = self.state.step;
        let evaluation = catch(|| task.evaluate(self.interrupt)).map_err(|source| TrainError::Evaluation { step, source })?;
        let Some(evaluation) = evaluation else {
            self.ranks.stop();
            return Ok(None);
        };
        let mut record = evaluation.record.clone();
        record.step = step;
        record.values.insert(0, ("tokens", self.state.tokens as f64));
        self.log.record(&record);
        self.log.progress.note(&format!("step {step}: {}", evaluation.text));
        self.state.evaluation_pending = false;
        let rank = self.state.evaluated(evaluation.score, self.config.keep_best_checkpoints);
        Ok(Some((evaluation, rank)))
    }
}

/// Which checkpoints a config keeps.
pub fn keep(config: &Train) -> Keep {
    Keep { newest: config.keep_checkpoints, best: config.keep_best_checkpoints }
}

/// The tensor kind of a precision.
pub fn kind_of(precision: Precision) -> Kind {
    match precision {
        Precision::Bf16 => Kind::BFloat16,
        // A config that was loaded has no `auto` any more.
        Precision::Fp32 | Precision::Auto => Kind::Float,
    }
}
