//! The runs below some folders: what each is, how far it came, and how they differ.

use crate::eval::mean_and_deviation;
use crate::log::jsonl;
use crate::log::progress::{duration, thousands};
use crate::table::align;
use crate::train::run::{is_running, read_summary};
use anyhow::{bail, Context, Result};
use serde_json::{json, Map, Value};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// How a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Done,
    Running,
    /// Broken off or interrupted: `--resume auto` goes on.
    Stopped,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Running => "running",
            Self::Stopped => "stopped",
        }
    }
}

/// A run's folder, read.
pub struct Run {
    pub path: PathBuf,
    pub status: Status,
    /// Resolved; an empty object if it cannot be read.
    config: Value,
    /// Null unless it is done.
    summary: Value,
    /// Of `metrics.jsonl`.
    pub lines: Vec<Map<String, Value>>,
}

impl Run {
    /// Reads a run's folder.
    pub fn read(path: &Path) -> Result<Self> {
        let file = path.join("config.json");
        let text = fs::read_to_string(&file).with_context(|| format!("{}: not a run's folder", path.display()))?;
        let config: Value = serde_json::from_str(&text).unwrap_or_else(|error| {
            // The other runs are shown all the same.
            let _ = writeln!(std::io::stderr(), "linformer: {}: damaged: {error}", file.display());
            json!({})
        });
        let summary = read_summary(path).unwrap_or_default();
        let status = match (is_running(path), summary.is_object()) {
            (true, _) => Status::Running,
            (false, true) => Status::Done,
            (false, false) => Status::Stopped,
        };
        Ok(Self { path: path.into(), status, config, summary, lines: jsonl::read(&path.join("metrics.jsonl")).unwrap_or_default() })
    }

    fn kind(&self) -> &'static str {
        if self.config["data"]["task"].is_null() {
            "pretrain"
        } else {
            "finetune"
        }
    }

    fn step(&self) -> Option<u64> {
        self.lines.last().and_then(|line| line.get("step")?.as_u64())
    }

    /// The last value of a metric of a split.
    fn last(&self, split: &str, name: &str) -> Option<f64> {
        let of_split = self.lines.iter().rev().filter(|line| line.get("split").and_then(Value::as_str) == Some(split));
        of_split.filter_map(|line| line.get(name)?.as_f64()).next()
    }

    /// Name and value of what the run is judged by: the score that a fine-tuning run reports, else the validation perplexity.
    fn score(&self) -> (String, Option<f64>) {
        match self.kind() {
            "finetune" => {
                let name = self.summary["metric"].as_str().map(str::to_string);
                let of_lines = || self.lines.iter().rev().find(|l| l["split"] == "task").and_then(|l| l.keys().nth(5).cloned());
                let name = name.or_else(of_lines).unwrap_or_else(|| "score".into());
                let value = match self.summary.is_object() {
                    true => reported_score(&self.summary),
                    false => self.last("task", &name),
                };
                (name, value)
            }
            _ => ("perplexity".into(), self.last("valid", "perplexity")),
        }
    }

    fn seconds(&self) -> Option<f64> {
        self.summary["seconds"].as_f64()
    }

    fn k(&self) -> String {
        let attention = &self.config["model"]["attention"];
        match attention["kind"].as_str() {
            Some("linformer") => attention["k"].to_string(),
            _ => "-".into(),
        }
    }

    fn json(&self) -> Value {
        let (metric, value) = self.score();
        json!({
            "run": self.path, "kind": self.kind(), "status": self.status.as_str(), "step": self.step(),
            "total_steps": self.summary["total_steps"].as_u64().or_else(|| self.config["train"]["max_steps"].as_u64()),
            "attention": self.config["model"]["attention"]["kind"], "k": self.config["model"]["attention"]["k"],
            "n": self.config["data"]["sequence_length"], "seed": self.config["train"]["seed"],
            "metric": metric, "value": value, "train_loss": self.last("train", "loss"),
            "tokens_per_second": self.last("train", "tokens_per_second"), "seconds": self.seconds(),
        })
    }
}

/// Every run below `folders`, by path. A run within a run is not looked for.
pub fn find(folders: &[PathBuf]) -> Result<Vec<Run>> {
    let is_run = |folder: &Path| folder.join("config.json").exists() && folder.join("inputs.json").exists();
    folders_below(folders, &is_run)?.iter().map(|folder| Run::read(folder)).collect()
}

/// The folders below some that are what is looked for, by path, each once. Links are followed, but not to where they came from,
/// nor to what cannot be read; a folder under two names is taken by that which is no link. Below one of them no other is looked
/// for.
pub fn folders_below(folders: &[PathBuf], is_one: &dyn Fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
    let (mut waiting, mut links) = (Vec::new(), Vec::new());
    for folder in folders {
        if !folder.is_dir() {
            bail!("{}: no such folder; runs are below runs/ unless run.dir says otherwise", folder.display());
        }
        if folder.is_symlink() { &mut links } else { &mut waiting }.push(folder.clone());
    }
    let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
    // Links wait until all else was looked at.
    while let Some(folder) = waiting.pop().or_else(|| links.pop()) {
        let real = folder.canonicalize().with_context(|| folder.display().to_string())?;
        if !seen.insert(real.clone()) {
            continue;
        }
        if is_one(&folder) {
            found.push(folder);
            continue;
        }
        let entries = match fs::read_dir(&folder) {
            Err(_) if folder.is_symlink() && !folders.contains(&folder) => continue,
            entries => entries.with_context(|| folder.display().to_string())?,
        };
        for entry in entries {
            let path = entry?.path();
            if path.is_symlink() {
                let leads_back = |target: PathBuf| real.starts_with(target);
                links.extend((path.is_dir() && !path.canonicalize().is_ok_and(leads_back)).then_some(path));
            } else if path.is_dir() {
                waiting.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// One line a run.
pub fn list(runs: &[Run]) -> String {
    let header = ["run", "kind", "status", "step", "k", "seed", "score", "tokens/s", "time"].map(str::to_string).to_vec();
    let row = |run: &Run| {
        let (metric, value) = run.score();
        vec![
            run.path.display().to_string(),
            run.kind().into(),
            run.status.as_str().into(),
            run.step().map_or_else(|| "-".into(), |step| thousands(step as f64)),
            run.k(),
            run.config["train"]["seed"].to_string(),
            value.map_or_else(|| "-".into(), |value| format!("{metric} {}", short(value))),
            run.last("train", "tokens_per_second").map_or_else(|| "-".into(), thousands),
            run.seconds().map_or_else(|| "-".into(), duration),
        ]
    };
    align(std::iter::once(header).chain(runs.iter().map(row)).collect())
}

pub fn list_json(runs: &[Run]) -> Value {
    runs.iter().map(Run::json).collect()
}

/// The keys in which some runs differ, and their results: a column a run.
pub struct Comparison {
    columns: Vec<String>,
    /// Key, and each run's value.
    config: Vec<(String, Vec<Value>)>,
    results: Vec<(String, Vec<Value>)>,
}

/// Keys that say where and how fast a run ran, not what.
pub const PLACES: [&str; 3] = ["run.dir", "data.cache_dir", "run.threads"];

impl Comparison {
    pub fn of(runs: &[Run]) -> Self {
        let configs: Vec<Map<String, Value>> = runs.iter().map(|run| settings(&run.config)).collect();
        let mut names: Vec<String> = Vec::new();
        let results: Vec<Map<String, Value>> = runs.iter().map(results).collect();
        for name in results.iter().flat_map(Map::keys) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        let row = |name: String| {
            let values = results.iter().map(|r| r.get(&name).cloned().unwrap_or_default()).collect();
            (name, values)
        };
        let config = differing(&configs.iter().collect::<Vec<_>>());
        Self { columns: columns(runs), config, results: names.into_iter().map(row).collect() }
    }

    pub fn text(&self) -> String {
        let header = std::iter::once(String::new()).chain(self.columns.iter().cloned()).collect();
        let cell = |value: &Value| match value {
            Value::Null => "-".into(),
            Value::String(text) => text.clone(),
            Value::Number(n) if n.is_f64() => n.as_f64().map(short).unwrap_or_default(),
            other => other.to_string(),
        };
        let row = |(name, values): &(String, Vec<Value>)| std::iter::once(name.clone()).chain(values.iter().map(cell)).collect();
        align(std::iter::once(header).chain(self.config.iter().chain(&self.results).map(row)).collect())
    }

    pub fn json(&self) -> Value {
        let of = |rows: &[(String, Vec<Value>)], i: usize| {
            rows.iter().map(|(name, values)| (name.clone(), values[i].clone())).collect::<Map<_, _>>()
        };
        let one = |(i, run): (usize, &String)| json!({"run": run, "config": of(&self.config, i), "results": of(&self.results, i)});
        self.columns.iter().enumerate().map(one).collect()
    }
}

fn results(run: &Run) -> Map<String, Value> {
    let (metric, value) = run.score();
    let mut found =
        Map::from_iter([("status".to_string(), json!(run.status.as_str())), ("step".into(), json!(run.step())), (metric, json!(value))]);
    let more = [
        ("train loss", run.last("train", "loss")),
        ("masked accuracy", run.last("valid", "masked_accuracy")),
        ("parameters", run.summary["model"]["parameters"].as_f64()),
    ];
    found.extend(more.into_iter().filter_map(|(name, value)| Some((name.to_string(), json!(value?)))));
    found.extend([("tokens/s".to_string(), json!(run.last("train", "tokens_per_second"))), ("seconds".into(), json!(run.seconds()))]);
    found
}

/// What of the paths tells the runs apart: the last part, or all of it.
fn columns(runs: &[Run]) -> Vec<String> {
    let last = |run: &Run| run.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let short: Vec<String> = runs.iter().map(last).collect();
    let distinct: BTreeSet<&String> = short.iter().collect();
    match distinct.len() == short.len() {
        true => short,
        false => runs.iter().map(|run| run.path.display().to_string()).collect(),
    }
}

/// A config's dotted keys and their values, without those that say where a run is.
pub fn settings(config: &Value) -> Map<String, Value> {
    let mut flat = flatten(config);
    flat.retain(|key, _| !PLACES.contains(&key.as_str()));
    flat
}

/// The keys in which some settings differ, and each one's value: null where it lacks the key.
pub fn differing(all: &[&Map<String, Value>]) -> Vec<(String, Vec<Value>)> {
    let keys: BTreeSet<&String> = all.iter().flat_map(|one| one.keys()).collect();
    let values = |key: &String| all.iter().map(|one| one.get(key).cloned().unwrap_or_default()).collect::<Vec<Value>>();
    keys.into_iter().map(|key| (key.clone(), values(key))).filter(|(_, values)| values.iter().any(|v| *v != values[0])).collect()
}

/// For tables that have scores of runs with halves.
pub const OF_HALVES: &str = "Where data.dev_halves is set, a score is of the half of the rows that did not choose the checkpoint.";

/// Whether one half of the scored rows chose a fine-tuning run's checkpoint, by its summary.
pub fn has_halves(summary: &Value) -> bool {
    summary["scores"]["chosen_on"].is_number()
}

/// The score by a fine-tuning run's summary: of the half of the rows that chose nothing, where there are halves. None: not defined.
pub fn reported_score(summary: &Value) -> Option<f64> {
    summary[if has_halves(summary) { "reported_value" } else { "value" }].as_f64()
}

/// Rows that a fine-tuning run's reported score is of, by its summary.
pub fn scored_rows(summary: &Value) -> Option<f64> {
    summary["dev_rows"].as_f64().map(|rows| if has_halves(summary) { rows / 2.0 } else { rows })
}

/// Mean and deviation of the values that are defined, and how many they are.
pub fn of_defined(values: &[Option<f64>]) -> (Option<f64>, Option<f64>, usize) {
    let defined: Vec<f64> = values.iter().flatten().copied().collect();
    let (mean, deviation) = mean_and_deviation(&defined).unzip();
    (mean, deviation.flatten(), defined.len())
}

/// The mean over seeds in words: `12.30`, or `12.30 ± 0.15`, and of how many seeds it is where the value of others is not
/// defined; `-` of no seed.
pub fn over_seeds(values: &[Option<f64>], number: impl Fn(f64) -> String) -> String {
    let (mean, deviation, defined) = of_defined(values);
    let of = match values.len() - defined {
        0 => String::new(),
        undefined => format!(" ({defined} of {}; {undefined} undefined)", values.len()),
    };
    match (mean, deviation) {
        (None, _) if values.is_empty() => "-".into(),
        (None, _) => "undefined".into(),
        (Some(mean), None) => number(mean) + &of,
        (Some(mean), Some(deviation)) => format!("{} ± {}{of}", number(mean), number(deviation)),
    }
}

/// Dotted keys and their values; lists stay whole.
pub fn flatten(value: &Value) -> Map<String, Value> {
    let mut flat = Map::new();
    let mut waiting = vec![(String::new(), value)];
    while let Some((prefix, value)) = waiting.pop() {
        match value {
            Value::Object(object) => {
                let dotted = |name: &String| if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                waiting.extend(object.iter().rev().map(|(name, inner)| (dotted(name), inner)));
            }
            other => drop(flat.insert(prefix, other.clone())),
        }
    }
    flat
}

/// Four significant digits or so.
pub fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => thousands(value),
        v if v >= 100.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}
