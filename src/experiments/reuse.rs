//! A run that another sweep has made already is taken as it is: the same config gives the same bits.
//!
//! The taken run is a link to the other's folder. What starts it afterwards holds its config and the hashes of all that it read
//! against those of now, as for every run that goes on. Before a sweep lends a run's numbers to its file, it holds the run's config
//! against its own.

use super::runs::{differing, flatten, settings};
use crate::config::load::load;
use crate::config::sweep::SweepRun;
use crate::config::Config;
use crate::train::run::{read_config, read_summary, would_go_on, MAY_CHANGE};
use anyhow::{Context, Result};
use serde_json::{json, Value};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Makes `config.run.dir` a link to a finished run with the same config, in a sweep whose folder stands beside `sweep`'s; gives
/// that run's path. None where there is none, or where `config.run.dir` holds something already.
pub fn take(sweep: &Path, config: &Config) -> Result<Option<PathBuf>> {
    let Some(dir) = config.run.dir.as_deref() else { return Ok(None) };
    let failed = || dir.display().to_string();
    if dir.is_symlink() && !is_same(dir, &without_place(config.clone())) {
        // The other sweep was removed or made anew, or this one's file was changed: only the link goes.
        fs::remove_file(dir).with_context(failed)?;
    }
    if dir.exists() {
        return Ok(None);
    }
    let Some(twin) = find(sweep, config) else { return Ok(None) };
    // Relative, so that the folder of all sweeps may be moved: from sweep/name to the other sweep beside it.
    let others = twin.iter().rev().take(2).collect::<Vec<_>>();
    symlink(Path::new("..").join(others[1]).join(others[0]), dir).with_context(failed)?;
    Ok(Some(twin))
}

/// The run that a taken one stands for, as `sweep/name`.
pub fn taken_from(run: &Path) -> Option<String> {
    let target = fs::read_link(run).ok()?;
    Some(target.strip_prefix("..").unwrap_or(&target).display().to_string())
}

/// A finished run with the same config but for its folder, in a sweep whose folder stands beside `sweep`'s.
pub fn find(sweep: &Path, config: &Config) -> Option<PathBuf> {
    let wanted = without_place(config.clone());
    let mut candidates: Vec<PathBuf> = folders(sweep.parent()?).filter(|other| other != sweep).flat_map(|other| folders(&other)).collect();
    candidates.sort();
    candidates.into_iter().find(|run| !run.is_symlink() && is_same(run, &wanted))
}

/// Whether a run is done, and its sweep asked for it by this config. (What the run's own folder holds has learned its vocabulary since.)
fn is_same(run: &Path, wanted: &Value) -> bool {
    let asked = || {
        let run = run.canonicalize().ok()?;
        let file = run.parent()?.join("configs").join(format!("{}.json", run.file_name()?.to_str()?));
        Some(without_place(load(&file, &[]).ok()?.0))
    };
    read_summary(run).is_some() && asked().is_some_and(|theirs| theirs == *wanted)
}

/// A key that a run was made with otherwise than its sweep asks for now.
pub struct Difference {
    pub key: String,
    pub was: Value,
    pub now: Value,
}

/// The first difference of the run in `dir` to what its sweep asks for, by the config that the run itself noted.
pub fn difference(dir: &Path, run: &SweepRun) -> Result<Option<Difference>> {
    let made = read_config(dir)?;
    let goes_on = read_summary(dir).is_some_and(|summary| would_go_on(&summary, &made, &run.config));
    let was = settings(&serde_json::to_value(&made)?);
    let now = settings(&serde_json::to_value(&run.config)?);
    let mut all =
        differing(&[&was, &now]).into_iter().map(|(key, values)| Difference { key, was: values[0].clone(), now: values[1].clone() });
    Ok(all.find(|difference| !is_free(difference, run) || goes_on && difference.key == "train.early_stopping_patience"))
}

/// Whether a key may differ between a finished run and its sweep: it may change on resume (but not the number of steps, for the
/// run would go on), or the sweep leaves it to the run. More patience is another matter where the run would go on.
fn is_free(difference: &Difference, run: &SweepRun) -> bool {
    let (key, now) = (difference.key.as_str(), &difference.now);
    let set = flatten(&Value::Object(run.raw.clone()));
    match key {
        "train.max_steps" => run.config.train.max_epochs.is_some(),
        "train.precision" => set.get(key) == Some(&json!("auto")),
        "model.vocab_size" | "model.max_position_embeddings" if now.is_null() => true,
        // The tokenizer's, always.
        "model.pad_token_id" => true,
        "data.task.labels" => *now == json!([]),
        // What the sweep does not set of the model is its parent's.
        _ if key.starts_with("model.") && run.config.run.init_from.is_some() => !set.contains_key(key),
        _ => MAY_CHANGE.contains(&key),
    }
}

fn folders(path: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| path.is_dir())
}

fn without_place(mut config: Config) -> Value {
    config.run.dir = None;
    serde_json::to_value(config).unwrap_or_default()
}
