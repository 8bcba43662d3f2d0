//! From the folders of a sweep's runs to [`Results`].

use super::{Point, Results, RunResult, FORMAT};
use crate::config::sweep::{Sweep, SweepRun};
use crate::digest::sha256;
use crate::experiments::reuse::taken_from;
use crate::experiments::runs::PLACES;
use crate::log::jsonl;
use crate::train::run::read_summary;
use anyhow::{Context, Result};
use serde_json::{json, Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Reads what the runs of a sweep left.
pub fn collect(sweep: &Sweep) -> Result<Results> {
    let stem = sweep.path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let runs: Vec<RunResult> = sweep.runs.iter().filter_map(|run| collect_run(sweep, run).transpose()).collect::<Result<_>>()?;
    let environments: Vec<Value> =
        sweep.runs.iter().filter_map(|r| read_json(&r.config.run.dir.as_ref()?.join("environment.json"))).collect();
    let of_task = sweep.runs.iter().any(|r| r.config.data.task.is_some());
    let measure = match sweep.file.measure.as_str() {
        "" if of_task => "value",
        "" => "loss",
        named => named,
    };
    Ok(Results {
        format: FORMAT,
        experiment: sweep.file.results.as_deref().and_then(Path::file_name).map_or(stem, |n| n.to_string_lossy().into_owned()),
        about: sweep.file.about.clone(),
        command: format!("linformer sweep {}", sweep.path.display()),
        configs_sha256: configs_sha256(sweep)?,
        measure: measure.into(),
        silent: sweep.file.silent.clone(),
        published: sweep.file.published.clone(),
        programs: programs(&environments),
        environment: environments.into_iter().next().unwrap_or_default(),
        wanted: sweep.runs.len(),
        rates: BTreeSet::new(),
        left_out: Vec::new(),
        runs,
    })
}

/// What the runs were made by, where that is more than one thing.
pub(super) fn programs(environments: &[Value]) -> Vec<String> {
    let text = |e: &Value, key: &str| e[key].as_str().map(str::to_string);
    // Older runs have no digest of their program.
    let program = |e: &Value| text(e, "program_sha256").map(|digest| digest.chars().take(12).collect()).or_else(|| text(e, "git_revision"));
    let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "unknown".into());
    let all: BTreeSet<String> = environments.iter().map(|e| or_unknown(program(e)) + " on " + &or_unknown(text(e, "cpu"))).collect();
    if all.len() > 1 {
        all.into_iter().collect()
    } else {
        Vec::new()
    }
}

fn configs_sha256(sweep: &Sweep) -> Result<String> {
    let mut text = String::new();
    for run in &sweep.runs {
        let mut config = serde_json::to_value(&run.config)?;
        // A model to start from is a folder too.
        for place in PLACES.iter().chain(&["run.init_from"]) {
            if let Some(value) = config.pointer_mut(&format!("/{}", place.replace('.', "/"))) {
                *value = Value::Null;
            }
        }
        text += &format!("{} {config}\n", run.name);
    }
    Ok(sha256(text.as_bytes()))
}

/// None: the run is not done.
fn collect_run(sweep: &Sweep, run: &SweepRun) -> Result<Option<RunResult>> {
    let Some(dir) = run.config.run.dir.as_deref() else { return Ok(None) };
    let Some(summary) = read_summary(dir) else { return Ok(None) };
    let lines = jsonl::read(&dir.join("metrics.jsonl")).with_context(|| dir.join("metrics.jsonl").display().to_string())?;
    let (split, key) = if run.config.data.task.is_some() { ("task", "chosen_on") } else { ("valid", "loss") };
    let number = |line: &Map<String, Value>, key: &str| line.get(key).and_then(Value::as_f64);
    let value = |line: &Map<String, Value>| number(line, key).or_else(|| number(line, "accuracy"));
    let tokens = tokens_by_step(&lines);
    let curve = lines.iter().filter(|l| l.get("split").and_then(Value::as_str) == Some(split)).filter_map(|l| {
        let step = l.get("step")?.as_u64()?;
        let tokens = number(l, "tokens").or_else(|| tokens.range(..=step).next_back().map(|(_, t)| *t)).unwrap_or(0.0);
        Some(Point { step, tokens, value: value(l)? })
    });
    let settings = json!({"attention": run.config.model.attention, "sequence_length": run.config.data.sequence_length,
        "learning_rate": run.config.train.learning_rate, "set": changed(sweep, run)});
    Ok(Some(RunResult {
        name: run.name.clone(),
        group: run.group.clone(),
        against: run.against.clone(),
        paper: run.paper,
        seed: run.config.train.seed,
        taken_from: taken_from(dir),
        speed: fastest(&lines, run.config.data.short_steps),
        settings,
        curve: curve.collect(),
        summary: slim(summary),
    }))
}

fn fastest(lines: &[Map<String, Value>], short_steps: u64) -> Option<f64> {
    let is_full = |l: &&Map<String, Value>| l.get("step").and_then(Value::as_u64).is_some_and(|step| step > short_steps);
    lines.iter().filter(is_full).filter_map(|l| l.get("tokens_per_second")?.as_f64()).max_by(f64::total_cmp)
}

fn tokens_by_step(lines: &[Map<String, Value>]) -> BTreeMap<u64, f64> {
    lines.iter().filter_map(|l| Some((l.get("step")?.as_u64()?, l.get("tokens")?.as_f64()?))).collect()
}

/// The keys of the file's variants and grid, as this run has them.
fn changed(sweep: &Sweep, run: &SweepRun) -> Value {
    let keys = sweep.file.grid.keys().chain(sweep.file.variants.iter().flat_map(|v| v.set.keys()));
    let config = serde_json::to_value(&run.config).unwrap_or_default();
    let of = |key: &String| Some((key.clone(), config.pointer(&format!("/{}", key.replace('.', "/")))?.clone()));
    Value::Object(keys.filter_map(of).collect())
}

/// Without what a report never reads and what differs from machine to machine.
fn slim(mut summary: Value) -> Value {
    if let Some(object) = summary.as_object_mut() {
        for key in ["data", "pretraining_overlap", "init_from"] {
            object.shift_remove(key);
        }
    }
    summary
}

fn read_json(path: &Path) -> Option<Value> {
    serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
}
