//! Checkpoints: a folder `step-00001000` with weights, optimizer state, the loop's own state, and a manifest.
//!
//! It is written under a temporary name in the same folder, every file synced, the manifest last, then renamed and the
//! parent synced. A crash or a full disk leaves a temporary folder, which is never read and is removed by the next save;
//! the previous checkpoint is untouched. A checkpoint counts only if its manifest's sizes and hashes agree.

use super::optimizer::Optimizer;
use crate::digest::file_sha256;
use crate::model::weights::{self, WeightsError, WeightsFile};
use crate::model::Parameters;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Raised when the files change their meaning.
const FORMAT: u32 = 1;
const FILES: [&str; 3] = ["model.safetensors", "optimizer.safetensors", "state.json"];

/// Why a checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{path}: {source}; earlier checkpoints are unchanged")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}: {message}")]
    Invalid { path: PathBuf, message: String },
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

/// What the loop has to know to go on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Optimizer steps made.
    pub step: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Seconds of training, over all starts.
    pub seconds: f64,
    /// The best evaluation.
    pub best: Option<Best>,
    /// Evaluations since the best.
    pub evaluations_since_best: u64,
    /// Sums since the last line of metrics.jsonl.
    pub window: Window,
}

/// An evaluation that was the best when it was made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Higher is better; None: the metric was not defined.
    pub score: Option<f64>,
    pub step: u64,
}

/// Sums over the steps since the last report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    pub loss: f64,
    pub targets: u64,
    pub tokens: u64,
    pub seconds: f64,
    pub waited: f64,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: u32,
    files: Vec<ManifestEntry>,
}

#[derive(Serialize, Deserialize)]
struct ManifestEntry {
    name: String,
    bytes: u64,
    sha256: String,
}

/// Writes the checkpoint of `state.step` below `folder`, then removes those that are neither among the newest `keep` nor
/// the best.
pub fn save(folder: &Path, parameters: &Parameters, optimizer: &Optimizer, state: &State, keep: usize) -> Result<(), CheckpointError> {
    let target = folder.join(step_name(state.step));
    let aside = folder.join(format!("{}.tmp", step_name(state.step)));
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| CheckpointError::Write { path, source }
    };
    fs::create_dir_all(folder).map_err(failed(folder))?;
    remove_leftovers(folder);
    fs::create_dir(&aside).map_err(failed(&aside))?;
    let written = write_files(&aside, parameters, optimizer, state).and_then(|()| {
        if target.exists() {
            fs::remove_dir_all(&target).map_err(failed(&target))?;
        }
        fs::rename(&aside, &target).map_err(failed(&target))?;
        sync_folder(folder).map_err(failed(folder))
    });
    if written.is_err() {
        let _ = fs::remove_dir_all(&aside);
        return written;
    }
    remove_old(folder, keep, state);
    Ok(())
}

fn write_files(aside: &Path, parameters: &Parameters, optimizer: &Optimizer, state: &State) -> Result<(), CheckpointError> {
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| CheckpointError::Write { path, source }
    };
    let metadata = || HashMap::from([("format".to_string(), "pt".to_string())]);
    let weights_io = |error| match error {
        WeightsError::Io { path, source } => CheckpointError::Write { path, source },
        other => CheckpointError::Weights(other),
    };
    weights::save(&aside.join(FILES[0]), parameters.iter().map(|p| (p.name.clone(), &p.tensor)), metadata()).map_err(weights_io)?;
    weights::save(&aside.join(FILES[1]), optimizer.state().into_iter(), metadata()).map_err(weights_io)?;
    let text = serde_json::to_string_pretty(state).unwrap_or_default();
    fs::write(aside.join(FILES[2]), text).map_err(io(&aside.join(FILES[2])))?;
    let entries = FILES.iter().map(|name| manifest_entry(aside, name)).collect::<io::Result<Vec<_>>>().map_err(io(aside))?;
    let manifest = serde_json::to_string_pretty(&Manifest { format: FORMAT, files: entries }).unwrap_or_default();
    let path = aside.join("manifest.json");
    fs::write(&path, manifest).map_err(io(&path))?;
    for name in FILES.iter().chain(&["manifest.json"]) {
        let path = aside.join(name);
        File::open(&path).and_then(|f| f.sync_all()).map_err(io(&path))?;
    }
    sync_folder(aside).map_err(io(aside))
}

fn manifest_entry(folder: &Path, name: &str) -> io::Result<ManifestEntry> {
    let (bytes, sha256) = file_sha256(&folder.join(name))?;
    Ok(ManifestEntry { name: name.into(), bytes, sha256 })
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// A checkpoint that was found valid.
pub struct Checkpoint {
    pub folder: PathBuf,
    pub state: State,
}

impl Checkpoint {
    /// The newest valid checkpoint below `folder`, if any; damaged ones are named in the second list.
    pub fn latest(folder: &Path) -> (Option<Self>, Vec<String>) {
        let mut damaged = Vec::new();
        for step in steps(folder).into_iter().rev() {
            match Self::open(&folder.join(step_name(step))) {
                Ok(checkpoint) => return (Some(checkpoint), damaged),
                Err(error) => damaged.push(error.to_string()),
            }
        }
        (None, damaged)
    }

    /// Checks a checkpoint's folder against its manifest.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let invalid = |message: String| CheckpointError::Invalid { path: folder.into(), message };
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(|source| CheckpointError::Read { path, source })
        };
        let manifest: Manifest = serde_json::from_str(&read("manifest.json")?).map_err(|e| invalid(format!("manifest.json: {e}")))?;
        if manifest.format != FORMAT {
            return Err(invalid(format!("format {}, this program reads {FORMAT}", manifest.format)));
        }
        for name in FILES {
            let entry =
                manifest.files.iter().find(|e| e.name == name).ok_or_else(|| invalid(format!("the manifest does not name {name}")))?;
            let path = folder.join(name);
            let (bytes, sha256) = file_sha256(&path).map_err(|source| CheckpointError::Read { path, source })?;
            if bytes != entry.bytes || sha256 != entry.sha256 {
                return Err(invalid(format!(
                    "{name} is damaged ({bytes} bytes, expected {} with SHA-256 {}...)",
                    entry.bytes,
                    &entry.sha256[..12.min(entry.sha256.len())]
                )));
            }
        }
        let state = serde_json::from_str(&read("state.json")?).map_err(|e| invalid(format!("state.json: {e}")))?;
        Ok(Self { folder: folder.into(), state })
    }

    pub fn weights(&self) -> Result<WeightsFile, WeightsError> {
        WeightsFile::open(&self.folder.join(FILES[0]))
    }

    pub fn optimizer(&self) -> Result<WeightsFile, WeightsError> {
        WeightsFile::open(&self.folder.join(FILES[1]))
    }
}

/// The folder's name of a step.
pub fn step_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// Steps that have a checkpoint folder, ascending.
fn steps(folder: &Path) -> Vec<u64> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut steps: Vec<u64> = entries.filter_map(|e| e.file_name().to_str()?.strip_prefix("step-")?.parse().ok()).collect();
    steps.sort_unstable();
    steps
}

fn remove_leftovers(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_leftover = |path: &PathBuf| path.extension().is_some_and(|e| e == "tmp");
    entries.map(|e| e.path()).filter(is_leftover).for_each(|path| drop(fs::remove_dir_all(path)));
}

/// Keeps the newest `keep` up to the one just written, and the best.
fn remove_old(folder: &Path, keep: usize, state: &State) {
    let steps: Vec<u64> = steps(folder).into_iter().filter(|step| *step <= state.step).collect();
    let old = &steps[..steps.len().saturating_sub(keep)];
    let best = state.best.map(|b| b.step);
    old.iter().filter(|step| Some(**step) != best).for_each(|step| drop(fs::remove_dir_all(folder.join(step_name(*step)))));
}

/// Renames every checkpoint after `step` out of the way: a run that goes on from there makes its own. They are damaged, or
/// were left behind on purpose.
pub fn set_aside_after(folder: &Path, step: u64) {
    for later in steps(folder).into_iter().filter(|s| *s > step) {
        let name = step_name(later);
        let aside = folder.join(format!("abandoned-{name}"));
        let _ = fs::remove_dir_all(&aside);
        let _ = fs::rename(folder.join(name), aside);
    }
}
