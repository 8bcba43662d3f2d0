//! The model that others start from or that is put to work: a run, one of its checkpoints, a model folder, or a checkpoint of
//! `transformers` as it lies there.

use crate::config::load::{usage, Raw};
use crate::config::precision::prefer_fast;
use crate::config::{Config, Data, Model, Origins};
use crate::data::prepare::{open, prepare, prepared_folder, Prepared};
use crate::data::tokenizer::Tokenizer;
use crate::digest::{file_sha256, sha256};
use crate::exchange::import::{self, From, Imported, Request};
use crate::exchange::source::{read_json, Source};
use crate::model::weights::Select;
use crate::model::Parameters;
use crate::train::checkpoint::{step_name, Checkpoint};
use crate::train::run::{is_checkpoint, read_config, read_summary, run_of};
use anyhow::{bail, Context, Result};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Keys of a checkpoint's model that a later run may set anew: they change no weight.
const FREE_KEYS: [&str; 7] = [
    "model.backend",
    "model.hidden_dropout_prob",
    "model.attention_probs_dropout_prob",
    "model.classifier_dropout",
    "model.attention.order",
    "model.attention.padding",
    "model.attention.backend",
];

/// A model with its tokenizer and its weights.
pub struct Parent {
    /// The folder of the run, or of the Hugging Face checkpoint.
    pub run: PathBuf,
    pub model: Model,
    /// A file, or a folder that holds one.
    pub tokenizer: PathBuf,
    weights: Weights,
}

enum Weights {
    Checkpoint(Box<Checkpoint>),
    HuggingFace(Box<Imported>),
}

/// Whether a folder is what `save_pretrained` or `linformer export` wrote, not a run.
pub fn is_hugging_face(folder: &Path) -> bool {
    !is_checkpoint(folder) && folder.join("config.json").exists() && Source::is_in(folder)
}

/// The config of the run behind a model's path, with some keys set anew; of a Hugging Face checkpoint the config of the run
/// that it would be before its first step.
pub fn config_of(model: &Path, overrides: &[String]) -> Result<(Config, Origins)> {
    let run = run_of(model);
    let file = run.join("config.json");
    if !file.exists() {
        bail!(
            "{}: no such model; expected the folder of a run, of one of its checkpoints, or of a Hugging Face checkpoint",
            model.display()
        );
    }
    let mut raw = Raw::default();
    if !is_hugging_face(run) {
        raw = Raw::read(&file)?;
    } else if let Value::Object(config) = serde_json::to_value(import::described(run)?)? {
        raw.merge(config, &file.display().to_string());
    }
    prefer_fast(&mut raw);
    if let Some(key) = overrides.iter().find(|text| text.starts_with("model.") || text.starts_with("model=")) {
        return Err(usage(format!("{key}: the model comes as it was trained, expected keys of data, train or run")).into());
    }
    overrides.iter().try_for_each(|text| raw.apply(text))?;
    Ok(raw.into_config()?)
}

impl Parent {
    /// None if the config does not start from another run.
    pub fn find(config: &Config) -> Result<Option<Self>> {
        config.run.init_from.as_deref().map(|path| Self::open(path).context("run.init_from")).transpose()
    }

    /// The tokenizer of `run.init_from`, which a run of this config uses instead of its own; None if it does not start from
    /// another run.
    pub fn tokenizer_of(config: &Config) -> Result<Option<PathBuf>> {
        Ok(Self::find(config)?.map(|parent| parent.tokenizer))
    }

    /// A run's folder or one of its checkpoints, or a Hugging Face checkpoint; the run stands for its best checkpoint if it was
    /// a fine-tuning run, else for its newest.
    pub fn open(path: &Path) -> Result<Self> {
        let run = run_of(path).to_path_buf();
        if is_hugging_face(&run) {
            let request =
                Request { source: run.clone(), from: From::HuggingFace, tokenizer: None, num_attention_heads: None, linformer: None };
            let imported = Box::new(import::import(&request, &mut |_| {})?);
            return Ok(Self { tokenizer: run.clone(), run, model: imported.model.clone(), weights: Weights::HuggingFace(imported) });
        }
        let theirs = read_config(&run).context("expected the folder of a run or of one of its checkpoints")?;
        let checkpoint = match is_checkpoint(path) {
            true => Checkpoint::open(path)?,
            false => choose(&run, theirs.data.task.is_some())?,
        };
        Ok(Self { tokenizer: run.join("tokenizer.json"), run, model: theirs.model, weights: Weights::Checkpoint(Box::new(checkpoint)) })
    }

    /// Its run's config.
    pub fn config(&self) -> Result<Config> {
        Ok(match &self.weights {
            Weights::Checkpoint(_) => read_config(&self.run)?,
            Weights::HuggingFace(imported) => imported.config(&import::name_of(&self.run)),
        })
    }

    /// The checkpoint of a run; None of a Hugging Face one.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        match &self.weights {
            Weights::Checkpoint(checkpoint) => Some(checkpoint.as_ref()),
            Weights::HuggingFace(_) => None,
        }
    }

    /// The folder that holds the weights.
    pub fn place(&self) -> &Path {
        self.checkpoint().map_or(&self.run, |checkpoint| &checkpoint.folder)
    }

    /// The checkpoint's model with the keys that may differ taken from `config`; another difference is an error.
    pub fn merge_model(&self, config: &Model, origins: &Origins) -> Result<Model> {
        let mut merged = serde_json::to_value(&self.model)?;
        let ours = serde_json::to_value(config)?;
        for key in leaves(&ours, "model") {
            let pointer = format!("/{}", key.trim_start_matches("model.").replace('.', "/"));
            let (theirs, value) =
                (merged.pointer(&pointer).cloned().unwrap_or_default(), ours.pointer(&pointer).cloned().unwrap_or_default());
            if theirs == value || !origins.sets(&key) {
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

    /// Whether its weights have a masked-LM head: those of a fine-tuned run, or of an encoder alone that was imported, do not.
    pub fn has_masked_lm_head(&self) -> Result<bool> {
        const BIAS: &str = "lm_head.bias";
        Ok(match &self.weights {
            Weights::Checkpoint(checkpoint) => checkpoint.weights()?.shapes()?.contains_key(BIAS),
            Weights::HuggingFace(imported) => imported.parameters.get(BIAS).is_some(),
        })
    }

    /// Copies its weights.
    pub fn load(&self, parameters: &Parameters, select: Select) -> Result<()> {
        let taken = match &self.weights {
            Weights::Checkpoint(checkpoint) => checkpoint.weights().and_then(|file| file.load_into(parameters, select)),
            Weights::HuggingFace(imported) => imported.parameters.copy_into(parameters, select, &self.run),
        };
        taken.map(|_| ()).with_context(|| format!("run.init_from: {}", self.run.display()))
    }

    /// A hash of the weights that a run starts from.
    pub fn sha256(&self) -> Result<String> {
        let of = |path: &Path| Ok::<_, anyhow::Error>(file_sha256(path).with_context(|| path.display().to_string())?.1);
        match &self.weights {
            Weights::Checkpoint(checkpoint) => of(&checkpoint.folder.join("manifest.json")),
            Weights::HuggingFace(_) => {
                let hashes = Source::open(&self.run)?.paths().map(of).collect::<Result<Vec<_>>>()?;
                Ok(sha256(hashes.join("\n").as_bytes()))
            }
        }
    }
}

/// A run's best checkpoint if `wants_best`, else its newest. Those that are damaged are named on stderr and passed over.
fn choose(run: &Path, wants_best: bool) -> Result<Checkpoint> {
    let checkpoints = run.join("checkpoints");
    let (newest, mut damaged) = Checkpoint::latest(&checkpoints);
    let Some(newest) = newest else {
        let why: String = damaged.iter().map(|text| format!("; {text}")).collect();
        bail!("{}: no valid checkpoint{why}", run.display());
    };
    // The newest that is left may be older than the best: the summary of a run that is done knows which one that was.
    let best_of_all = read_summary(run).and_then(|summary| summary["best_step"].as_u64());
    let best_so_far = newest.state.best.iter().map(|best| best.step);
    let wanted: Vec<u64> = best_of_all.into_iter().chain(best_so_far).filter(|_| wants_best).collect();
    let best = wanted.iter().find_map(|step| {
        let opened = Checkpoint::open(&checkpoints.join(step_name(*step)));
        opened.inspect_err(|error| damaged.push(error.to_string())).ok()
    });
    let taken = best.unwrap_or(newest);
    let is_worse = wanted.first().is_some_and(|step| *step != taken.state.step);
    let worse = if is_worse { ", whose weights are not the best ones" } else { "" };
    // One that is both the newest and the best was tried twice.
    damaged.sort();
    damaged.dedup();
    for text in damaged {
        let place = taken.folder.display();
        let _ = writeln!(std::io::stderr(), "linformer: warning: passed over a checkpoint: {text}; {place} is taken{worse}");
    }
    Ok(taken)
}

/// The corpus of `data` in the tokens of a model's tokenizer: one that the config trains is another one as soon as the corpus
/// has changed, and its ids mean nothing to the model's weights.
pub fn prepare_with(tokenizer: &Path, data: &Data) -> Result<Prepared> {
    if !tokenizer.exists() {
        return prepare_as_recorded(tokenizer, data);
    }
    // What the run itself prepared stands under its config's tokenizer, which need not be here any more if it is a file.
    if let Ok(folder) = prepared_folder(data, None) {
        let theirs = Tokenizer::load(&folder.join("tokenizer.json")).and_then(|theirs| theirs.identity()).ok();
        if theirs.is_some() && theirs == Some(Tokenizer::load(tokenizer)?.identity()?) {
            if let Ok(prepared) = open(&folder) {
                return Ok(prepared);
            }
        }
    }
    Ok(prepare(data, Some(tokenizer))?)
}

/// Of a run whose tokenizer was taken away: the config has to make the very one that the run noted when it began.
fn prepare_as_recorded(tokenizer: &Path, data: &Data) -> Result<Prepared> {
    let missing = || format!("{}: not here", tokenizer.display());
    let inputs = read_json(&tokenizer.with_file_name("inputs.json")).with_context(missing)?;
    let was = inputs.get("tokenizer").and_then(Value::as_str).unwrap_or("none");
    let prepared = prepare(data, None)?;
    let now = sha256(prepared.tokenizer.identity()?.as_bytes());
    if was != now {
        bail!(
            "{}, and data.tokenizer={} now makes one with SHA-256 {now:.12}..., expected {was:.12}... as in inputs.json: put the run's tokenizer back",
            missing(),
            data.tokenizer
        );
    }
    Ok(prepared)
}

fn leaves(value: &Value, prefix: &str) -> Vec<String> {
    match value {
        Value::Object(object) => object.iter().flat_map(|(name, inner)| leaves(inner, &format!("{prefix}.{name}"))).collect(),
        _ => vec![prefix.to_string()],
    }
}
