//! What every run needs before its first step: device, resolved model, weights to start from, folder, log.

use super::Start;
use crate::config::validate::parse_device;
use crate::config::{AttentionKind, Config, Model, Origins};
use crate::data::tokenizer::Tokenizer;
use crate::log::{progress::Progress, Log};
use crate::model::weights::Select;
use crate::model::Parameters;
use crate::native::runtime;
use crate::train::checkpoint::{Checkpoint, State};
use crate::train::optimizer::Optimizer;
use crate::train::run::{environment, read_config, Resume, RunFolder};
use anyhow::{bail, Context, Result};
use serde_json::{json, Value};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Keys of a checkpoint's model that a later run may set anew: they change no weight.
const FREE_KEYS: [&str; 6] = [
    "model.hidden_dropout_prob",
    "model.attention_probs_dropout_prob",
    "model.classifier_dropout",
    "model.attention.order",
    "model.attention.backend",
    "model.max_position_embeddings",
];

/// The device of a config, with libtorch told how many threads to use.
pub fn device(config: &Config, origins: &Origins) -> Result<Device> {
    if config.run.threads > 0 {
        tch::set_num_threads(i32::try_from(config.run.threads).unwrap_or(i32::MAX));
    }
    let device = parse_device(&config.run.device).unwrap_or(Device::Cpu);
    if let Device::Cuda(index) = device {
        let reason = runtime::load_cuda().err();
        let count = tch::Cuda::device_count();
        if count <= index as i64 {
            let why = reason.map(|r| format!(" ({r})")).unwrap_or_default();
            return Err(origins
                .error(
                    "run.device",
                    format!(
                        "found {}, but libtorch sees {count} CUDA devices{why}; use run.device=cpu, or see linformer doctor",
                        config.run.device
                    ),
                )
                .into());
        }
    }
    Ok(device)
}

/// The run that `run.init_from` names: its model, tokenizer and newest weights.
pub struct Origin {
    pub run: PathBuf,
    pub model: Model,
    pub tokenizer: PathBuf,
    pub checkpoint: Checkpoint,
}

impl Origin {
    /// None if the config does not start from another run.
    pub fn find(config: &Config) -> Result<Option<Self>> {
        let Some(run) = &config.run.init_from else { return Ok(None) };
        let key = "run.init_from";
        let model = read_config(run).with_context(|| format!("{key}: not the folder of a run"))?.model;
        let (checkpoint, damaged) = Checkpoint::latest(&run.join("checkpoints"));
        let Some(checkpoint) = checkpoint else {
            let why = damaged.first().map(|d| format!("; {d}")).unwrap_or_default();
            bail!("{key}: {}: no valid checkpoint{why}", run.display());
        };
        Ok(Some(Self { run: run.clone(), model, tokenizer: run.join("tokenizer.json"), checkpoint }))
    }

    /// The checkpoint's model with the keys that may differ taken from `config`; another difference is an error.
    pub fn merge_model(&self, config: &Model, origins: &Origins) -> Result<Model> {
        let mut merged = serde_json::to_value(&self.model)?;
        let ours = serde_json::to_value(config)?;
        for key in leaves(&ours, "model") {
            let pointer = format!("/{}", key.trim_start_matches("model.").replace('.', "/"));
            let (theirs, value) =
                (merged.pointer(&pointer).cloned().unwrap_or_default(), ours.pointer(&pointer).cloned().unwrap_or_default());
            if theirs == value || !origins.sets(&key) || key == "model.max_position_embeddings" {
                continue;
            }
            if !FREE_KEYS.contains(&key.as_str()) {
                return Err(origins
                    .error(
                        &key,
                        format!("found {value}, but {} has {theirs}: a model's shape comes from its checkpoint", self.run.display()),
                    )
                    .into());
            }
            if let Some(slot) = merged.pointer_mut(&pointer) {
                *slot = value;
            }
        }
        Ok(serde_json::from_value(merged)?)
    }

    /// Copies its weights; returns how many tensors were taken.
    pub fn load(&self, parameters: &Parameters, select: Select) -> Result<usize> {
        let taken = self.checkpoint.weights().and_then(|file| file.load_into(parameters, select));
        taken.with_context(|| format!("run.init_from: {}", self.run.display()))
    }
}

fn leaves(value: &Value, prefix: &str) -> Vec<String> {
    match value {
        Value::Object(object) => object.iter().flat_map(|(name, inner)| leaves(inner, &format!("{prefix}.{name}"))).collect(),
        _ => vec![prefix.to_string()],
    }
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

/// A run that is ready to train.
pub struct Ready {
    pub folder: RunFolder,
    pub log: Log,
    pub optimizer: Optimizer,
    pub state: State,
    pub peak_flops: f64,
}

/// Opens the run's folder (or resumes it), loads its checkpoint, and starts its log.
pub fn prepare_run(config: &Config, start: &Start, parameters: &Parameters, tokenizer: &Tokenizer, total_steps: u64) -> Result<Ready> {
    let path = run_dir(config, &start.name);
    let folder = RunFolder::open(&path, config, &start.resume)?;
    let mut optimizer = Optimizer::new(parameters, &config.train);
    let mut state = State::default();
    if let Some(checkpoint) = &folder.checkpoint {
        checkpoint.weights()?.load_into(parameters, Select::All)?;
        optimizer.load(&checkpoint.optimizer()?)?;
        state = checkpoint.state.clone();
    }
    folder.write_text("tokenizer.json", &tokenizer.to_json()?)?;
    let peak_flops = measure_peak(parameters.device(), crate::train::trainer::kind_of(config.train.precision));
    folder.write("environment.json", &environment(&config.run.device, peak_flops / 1e12))?;
    let progress = Progress::new(&start.name, state.step, total_steps);
    folder.damaged.iter().for_each(|text| progress.warn(&format!("passed over a checkpoint: {text}")));
    if state.step > 0 {
        progress.note(&format!("goes on after step {}", state.step));
    }
    let log = Log::open(&folder.path, state.step, progress);
    Ok(Ready { folder, log, optimizer, state, peak_flops })
}

/// `run.dir`, or `runs/NAME`.
pub fn run_dir(config: &Config, name: &str) -> PathBuf {
    config.run.dir.clone().unwrap_or_else(|| Path::new("runs").join(name))
}

/// Whether `--resume auto` finds nothing left to do.
pub fn is_done(dir: &Path, resume: &Resume, total_steps: u64) -> Option<Value> {
    let summary = crate::train::run::read_summary(dir).filter(|_| *resume == Resume::Auto)?;
    (summary["total_steps"].as_u64() == Some(total_steps)).then_some(summary)
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
