//! What every run needs before its first step: device, resolved model, weights to start from, folder, log.

use super::parent::Parent;
use super::runs::flatten;
use super::{Finished, Start};
use crate::config::precision::is_bf16_fast;
use crate::config::validate::parse_device;
use crate::config::{AttentionKind, Backend, Config, Model, Origins, Precision};
use crate::data::tokenizer::Tokenizer;
use crate::digest::{file_sha256, sha256};
use crate::distributed::{gpu, World};
use crate::log::progress::{thousands, Progress};
use crate::log::{tensorboard::About, Log};
use crate::model::memory::Memory;
use crate::model::weights::{Select, WeightsFile};
use crate::model::Parameters;
use crate::native::distributed::host_name;
use crate::native::runtime;
use crate::train::optimizer::Optimizer;
use crate::train::profile::Profiler;
use crate::train::ranks::{compare_weights, Ranks};
use crate::train::run::{environment, is_setting, RunFolder};
use crate::train::saver::{check_room, estimate, Saver};
use crate::train::state::State;
use crate::train::trainer::{keep, kind_of, Session};
use crate::train::{train, Outcome, Task};
use anyhow::{bail, Context, Result};
use serde_json::{json, Value};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// The device of a config for this rank, with libtorch told how many threads to use.
pub fn device(config: &Config, origins: &Origins, world: &World) -> Result<Device> {
    runtime::use_threads(config.run.threads);
    let Some(Device::Cuda(wanted)) = parse_device(&config.run.device) else { return Ok(Device::Cpu) };
    let (visible, reason) = runtime::visible_gpus();
    let index = gpu_of(&config.run.device, wanted, world, visible, reason).map_err(|message| origins.error("run.device", message))?;
    world.join_gpus(index)?;
    Ok(Device::Cuda(index))
}

/// Of a process by itself: the GPU that is wanted, if it is visible. `key` is the device's.
pub fn only_gpu(key: &str, found: &str, wanted: usize, visible: usize, reason: Option<String>) -> Result<usize, String> {
    let why = reason.map(|r| format!(" ({r})")).unwrap_or_default();
    let missing = || format!("found {found}, but libtorch sees {visible} CUDA devices{why}; use {key}=cpu, or see linformer doctor");
    (wanted < visible).then_some(wanted).ok_or_else(missing)
}

/// Which of the visible GPUs this process takes.
fn gpu_of(found: &str, wanted: usize, world: &World, visible: usize, reason: Option<String>) -> Result<usize, String> {
    if world.is_single() {
        return only_gpu("run.device", found, wanted, visible, reason);
    }
    let why = reason.map(|r| format!(" ({r})")).unwrap_or_default();
    if found != "cuda" {
        return Err(format!("found {found}, but of several ranks each takes the GPU of its number on its machine: use run.device=cuda"));
    }
    gpu::choose(world.local_rank(), visible).ok_or_else(|| {
        format!(
            "found cuda, but rank {} is the {}. rank on {}, where libtorch sees {visible} CUDA devices{why}; start at most one rank a GPU, or use run.device=cpu",
            world.rank(),
            world.local_rank() + 1,
            host_name()
        )
    })
}

/// Fills in what the tokenizer and the sequence length decide, and checks the whole.
pub fn resolve_model(config: &mut Config, origins: &Origins, tokenizer: &Tokenizer) -> Result<()> {
    let have = tokenizer.vocab_size() as i64;
    let model = &mut config.model;
    match model.vocab_size {
        Some(size) if size < have => {
            return Err(origins.error("model.vocab_size", format!("found {size}, but the tokenizer's largest id needs {have} rows")).into())
        }
        Some(_) => {}
        None => model.vocab_size = Some(have),
    }
    model.pad_token_id = i64::from(tokenizer.special.pad);
    model.max_position_embeddings.get_or_insert(config.data.sequence_length + model.pad_token_id + 1);
    config.model.validate(origins, config.data.sequence_length)?;
    Ok(())
}

/// What a run reads, as hashes: a resumed run must read the same.
pub fn inputs(config: &Config, tokenizer: &Tokenizer, data: Value, parent: Option<&Parent>) -> Result<Value> {
    let weights = parent.map(Parent::sha256).transpose()?;
    let mut inputs = json!({"tokenizer": sha256(tokenizer.identity()?.as_bytes()), "data": data, "init_from": weights});
    if let Some(path) = &config.run.projections_from {
        inputs["projections_from"] = file_sha256(path).with_context(|| format!("run.projections_from: {}", path.display()))?.1.into();
    }
    Ok(inputs)
}

/// Copies E and F from `run.projections_from`, if it is set.
pub fn load_projections(config: &Config, parameters: &Parameters) -> Result<()> {
    let Some(path) = &config.run.projections_from else { return Ok(()) };
    let taken = WeightsFile::open(path).and_then(|file| file.load_projections(parameters)).context("run.projections_from")?;
    if taken == 0 {
        bail!("run.projections_from: the model has no matrices E and F to start from it");
    }
    Ok(())
}

/// Makes or opens the run's folder.
pub fn open_folder(config: &Config, start: &Start, inputs: &Value, total_steps: u64) -> Result<RunFolder> {
    let (world, path) = (&start.world, run_dir(config, &start.name));
    world.agree("config", &what_all_share(config))?;
    world.agree("inputs", inputs)?;
    if !world.is_first() {
        return Ok(RunFolder::follow(&path, &world.from_first(Value::Null)?)?);
    }
    let folder = RunFolder::open(&path, config, inputs, total_steps, &start.resume)?;
    world.from_first(folder.found())?;
    Ok(folder)
}

/// The config without what may differ between machines.
fn what_all_share(config: &Config) -> Value {
    let mut config = config.clone();
    config.run.device = config.run.device.split(':').next().unwrap_or_default().into();
    config.run.threads = 0;
    config.run.dir = None;
    config.data.cache_dir = PathBuf::new();
    serde_json::to_value(config).unwrap_or_default()
}

/// A run whose model stands: all that is left is to train it.
pub struct Job<'a, T: Task> {
    pub config: &'a Config,
    pub start: &'a Start,
    pub folder: RunFolder,
    pub task: &'a T,
    pub parameters: &'a Parameters,
    pub tokenizer: &'a Tokenizer,
    /// What the data had that the user should know; said at the start.
    pub warnings: Vec<String>,
    pub total_steps: u64,
    /// Of a forward pass.
    pub flops_per_token: f64,
}

impl<T: Task> Job<'_, T> {
    /// Goes on from the folder's checkpoint if it has one, trains, and writes what `summary` makes of the outcome.
    pub fn run(self, summary: impl FnOnce(&Outcome, &Progress) -> Result<Value>) -> Result<Finished> {
        let (folder, parameters) = (&self.folder, self.parameters);
        let mut optimizer = Optimizer::new(parameters, &self.config.train);
        let mut state = State::default();
        let world = &self.start.world;
        if let Some(checkpoint) = &folder.checkpoint {
            if world.is_first() {
                checkpoint.weights()?.load_into(parameters, Select::All)?;
                optimizer.load(&checkpoint.optimizer()?)?;
            }
            world.broadcast(parameters.iter().map(|p| &p.tensor))?;
            world.broadcast(optimizer.state().into_iter().map(|(_, tensor)| tensor))?;
            state = checkpoint.state.clone();
        }
        compare_weights(world, parameters, "before the first step")?;
        let ranks = Ranks::new(world, &self.config.run.ranks, parameters);
        let keep = keep(&self.config.train);
        let crowded = if world.is_first() { check_room(&folder.path, estimate(parameters, &optimizer), keep)? } else { None };
        if let Some(shard) = &ranks.shard {
            optimizer.keep_only(|weight| shard.owns(world.rank(), weight));
        }
        folder.write_text("tokenizer.json", &self.tokenizer.to_json()?)?;
        if let Some(declared) = self.tokenizer.declaration()? {
            folder.write("special_tokens_map.json", &declared)?;
        }
        let peak_flops = measure_peak(parameters.device(), kind_of(self.config.train.precision));
        let mut machine = environment(&self.config.run.device, peak_flops / 1e12);
        machine["ranks"] = world.size().into();
        folder.write("environment.json", &machine)?;
        let progress = if world.is_first() { Progress::new(&self.start.name, state.step, self.total_steps) } else { Progress::silent() };
        if !world.is_single() {
            progress.note(&format!("{} ranks", world.size()));
        }
        if self.config.train.precision == Precision::Bf16 && !is_bf16_fast(&self.config.run.device) {
            progress
                .warn("train.precision is bf16, which this processor has no instructions for: fp32 is many times faster; use auto or fp32");
        }
        crowded.iter().chain(&self.warnings).for_each(|text| progress.warn(text));
        folder.damaged.iter().for_each(|text| progress.warn(&format!("passed over a checkpoint: {text}")));
        if state.step > 0 {
            progress.note(&format!("goes on after step {}", state.step));
        }
        let mut log = if world.is_first() {
            let about = about(&self.start.name, self.config, parameters)?;
            Log::open(&folder.path, state.step, progress, &about, self.config.train.histogram_every > 0)
        } else {
            Log::silent()
        };
        let interrupt = self.start.interrupt.clone().limited(self.config.train.max_hours);
        interrupt.wait_for_checkpoint();
        let profiler = (self.start.profile > 0).then(|| Profiler::new(self.start.profile, state.step, self.total_steps));
        let session = Session {
            config: &self.config.train,
            total_steps: self.total_steps,
            parameters,
            optimizer,
            state,
            folder,
            ranks,
            saver: if world.is_first() { Saver::new(&folder.checkpoints(), keep) } else { Saver::idle() },
            log: &mut log,
            interrupt: &interrupt,
            flops_per_token: 3.0 * self.flops_per_token,
            peak_flops,
            profiler,
        };
        if self.config.model.backend == Backend::Fused {
            parameters.make_copies(kind_of(self.config.train.precision))?;
        }
        // What was read and prepared before is no part of training's peak.
        let _ = runtime::start_peak_of(Device::Cpu);
        let outcome = train(self.task, session).inspect_err(|_| log.end(false))?;
        log.progress.finish();
        if outcome.interrupted {
            return Ok(Finished::Interrupted);
        }
        self.tell_memory(&log.progress);
        let summary = summary(&outcome, &log.progress)?;
        // The summary says that the run is done and nothing is left to add: it comes last.
        log.end(true);
        folder.write("summary.json", &summary)?;
        Ok(Finished::Done(summary))
    }

    /// The peak that was measured, beside the one that `info` computes.
    fn tell_memory(&self, progress: &Progress) {
        let (Some(measured), Device::Cpu) = (runtime::peak_bytes(), self.parameters.device()) else { return };
        let computed = Memory::of_training(self.config, &self.config.model).peak(&self.config.train);
        let mebibytes = |bytes: f64| thousands(bytes / 1048576.0);
        progress.note(&format!("peak memory {} MiB, computed {} MiB", mebibytes(measured as f64), mebibytes(computed)));
    }
}

/// What TensorBoard says of a run beside its curves: its settings, its config, and a card of its model.
fn about(name: &str, config: &Config, parameters: &Parameters) -> Result<About> {
    let resolved = serde_json::to_value(config)?;
    let mut settings = flatten(&resolved);
    settings.retain(|key, _| is_setting(key));
    if config.model.attention.kind == AttentionKind::Full {
        // A k that nothing uses would look like one.
        settings.retain(|key, _| !key.starts_with("model.attention.") || key == "model.attention.kind" || key == "model.attention.backend");
    }
    let card: String = flatten(&model_summary(&config.model, parameters))
        .into_iter()
        .map(|(key, value)| format!("| {key} | {} |\n", value.as_str().map_or_else(|| value.to_string(), str::to_string)))
        .collect();
    let what = if config.data.task.is_some() { "fine-tuned on a task" } else { "masked language model" };
    let card = format!("**{name}**: {what}, by linformer {}\n\n| | |\n|---|---|\n{card}", env!("CARGO_PKG_VERSION"));
    let json = format!("```json\n{}\n```", serde_json::to_string_pretty(&resolved)?);
    Ok(About { settings, texts: vec![("text/model_card".into(), card), ("text/config".into(), json)] })
}

/// `run.dir`, or `runs/NAME`.
pub fn run_dir(config: &Config, name: &str) -> PathBuf {
    config.run.dir.clone().unwrap_or_else(|| Path::new("runs").join(name))
}

/// What a report needs to know of a model.
pub fn model_summary(model: &Model, parameters: &Parameters) -> Value {
    let attention = &model.attention;
    let linformer = attention.kind == AttentionKind::Linformer;
    json!({
        "attention": attention.kind,
        "k": if linformer { json!(attention.k.summary()) } else { Value::Null },
        "sharing": if linformer { json!(attention.sharing) } else { Value::Null },
        "projection": if linformer { json!(attention.projection) } else { Value::Null },
        "projection_init": if linformer { json!(attention.init) } else { Value::Null },
        "n": model.sequence_length(),
        "layers": model.num_hidden_layers,
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocabulary(),
        "parameters": parameters.count(),
    })
}

/// What the device reaches on one large square product in this arithmetic, in FLOP/s: the denominator of MFU.
pub fn measure_peak(device: Device, kind: Kind) -> f64 {
    let _guard = tch::no_grad_guard();
    let n: i64 = if device == Device::Cpu { 1024 } else { 8192 };
    let a = Tensor::ones([n, n], (kind, device));
    let time = || {
        let start = Instant::now();
        let out = a.matmul(&a);
        // Waits for a GPU.
        let _ = out.double_value(&[0, 0]);
        start.elapsed().as_secs_f64()
    };
    let best = (0..6).map(|_| time()).fold(f64::INFINITY, f64::min);
    2.0 * (n as f64).powi(3) / best
}

/// Seconds as the run's state counts them, to tokens per second.
pub fn tokens_per_second(state: &State) -> f64 {
    if state.seconds > 0.0 {
        state.tokens as f64 / state.seconds
    } else {
        0.0
    }
}
