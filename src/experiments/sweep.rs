//! A sweep: its runs one after the other, each in a process of its own, and one table at the end.
//!
//! A run that is done is skipped, one that was broken off goes on, and one that fails does not stop the others.

use super::results::collect;
use super::Finished;
use crate::config::sweep::{Sweep, SweepRun};
use crate::config::AttentionKind;
use crate::durable::replace;
use crate::eval::mean_and_deviation;
use crate::log::progress::thousands;
use crate::native::runtime;
use crate::table::align;
use crate::train::interrupt::Interrupt;
use crate::train::run::read_summary;
use anyhow::{bail, Context, Result};
use serde_json::{json, Value};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

/// Runs a sweep and prints its table; `results` is a folder for `results.json` instead of the file's.
pub fn run(sweep: &Sweep, results: Option<&Path>, interrupt: &Interrupt) -> Result<Finished> {
    let configs = sweep.dir.join("configs");
    fs::create_dir_all(&configs).with_context(|| configs.display().to_string())?;
    let mut failed = Vec::new();
    for (i, run) in sweep.runs.iter().enumerate() {
        say(&format!("[{}/{}] {}", i + 1, sweep.runs.len(), run.name));
        let status = start(run, &configs, interrupt)?;
        if interrupt.is_set() || status.code() == Some(130) {
            return Ok(Finished::Interrupted);
        }
        if !status.success() {
            say(&format!("[{}/{}] {} failed ({status}); the sweep goes on", i + 1, sweep.runs.len(), run.name));
            failed.push(run.name.as_str());
        }
    }
    let table = Table::of(sweep);
    table.write(&sweep.dir)?;
    write_results(sweep, results)?;
    std::io::stdout().write_all(table.text().as_bytes())?;
    if !failed.is_empty() {
        bail!("{} of {} runs failed: {}", failed.len(), sweep.runs.len(), failed.join(", "));
    }
    Ok(Finished::Done(Value::Null))
}

/// `results.json` into the folder that was named, or into the file's own if it ran as it stands.
pub fn write_results(sweep: &Sweep, named: Option<&Path>) -> Result<()> {
    let Some(folder) = named.or(sweep.file.results.as_deref().filter(|_| !sweep.changed)) else { return Ok(()) };
    let text = serde_json::to_string_pretty(&collect(sweep)?)? + "\n";
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let path = folder.join("results.json");
    replace(&path, text.as_bytes()).with_context(|| path.display().to_string())
}

/// What a sweep comes to, before anything runs: a line a run, and the sums.
pub fn describe(sweep: &Sweep) -> String {
    let header = ["run", "compared with", "n", "k", "steps", "sequences a step", "tokens", "state"].map(str::to_string).to_vec();
    let mut total = 0.0;
    let row = |run: &SweepRun| {
        let (config, attention) = (&run.config, &run.config.model.attention);
        let epochs = config.train.max_epochs;
        let tokens = config.train.max_steps as f64 * config.train.batch_size as f64 * config.data.sequence_length as f64;
        if epochs.is_none() {
            total += tokens;
        }
        let done = config.run.dir.as_deref().and_then(read_summary).is_some();
        let missing = config.run.init_from.as_ref().filter(|path| !path.exists());
        vec![
            run.name.clone(),
            run.against.clone().unwrap_or_else(|| "-".into()),
            config.data.sequence_length.to_string(),
            match (attention.kind, &config.run.init_from) {
                (_, Some(_)) => "its parent's".into(),
                (AttentionKind::Full, _) => "full".into(),
                _ => attention.k.summary(),
            },
            epochs.map_or_else(|| thousands(config.train.max_steps as f64), |e| format!("{e} epochs")),
            config.train.batch_size.to_string(),
            if epochs.is_some() { "-".into() } else { thousands(tokens) },
            match (done, missing) {
                (true, _) => "done".into(),
                (false, Some(path)) => format!("needs {}", path.display()),
                (false, None) => "to run".into(),
            },
        ]
    };
    let rows: Vec<Vec<String>> = std::iter::once(header).chain(sweep.runs.iter().map(row)).collect();
    let time = sweep.file.minutes.map(|m| format!("; about {m} minutes on {}", sweep.file.machine)).unwrap_or_default();
    let silent: String = sweep.file.silent.iter().map(|(key, why)| format!("the paper is silent on {key}: {why}\n")).collect();
    let about = if sweep.file.about.is_empty() { String::new() } else { format!("{}\n", sweep.file.about) };
    about + &align(rows) + &format!("{} runs, at most {} tokens of pretraining{time}\n", sweep.runs.len(), thousands(total)) + &silent
}

/// To stderr; a reader that went away is no reason to stop.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// In a process of its own, so that nothing one run does (not even the end of memory) touches the others.
fn start(run: &SweepRun, configs: &Path, interrupt: &Interrupt) -> Result<ExitStatus> {
    let path = configs.join(format!("{}.json", run.name));
    let text = serde_json::to_string_pretty(&run.raw)?;
    replace(&path, text.as_bytes()).with_context(|| path.display().to_string())?;
    let command = if run.config.data.task.is_some() { "finetune" } else { "pretrain" };
    let program = std::env::current_exe()?;
    let mut child = Command::new(program).arg(command).arg(&path).args(["--resume", "auto", "--quiet"]).spawn()?;
    let mut told = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if interrupt.is_terminate() && !told {
            runtime::terminate(&child);
            told = true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One row a group of runs that differ in their seed alone.
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Row>,
}

struct Row {
    group: String,
    runs: usize,
    parameters: Option<f64>,
    /// Mean and deviation per measure.
    measures: Vec<Option<(f64, Option<f64>)>>,
}

const PRETRAIN: [(&str, &str); 4] =
    [("perplexity", "perplexity"), ("loss", "loss"), ("masked accuracy", "masked_accuracy"), ("tokens/s", "tokens_per_second")];
const FINETUNE: [(&str, &str); 3] = [("score", "value"), ("majority", "majority"), ("tokens/s", "tokens_per_second")];

impl Table {
    /// From the summaries of a sweep's runs.
    pub fn of(sweep: &Sweep) -> Self {
        let finetunes = sweep.runs.iter().any(|r| r.config.data.task.is_some());
        let measures: &[(&'static str, &str)] = if finetunes { &FINETUNE } else { &PRETRAIN };
        let mut groups: Vec<(&str, Vec<Value>)> = Vec::new();
        for run in &sweep.runs {
            let summary = run.config.run.dir.as_deref().and_then(read_summary);
            match groups.iter_mut().find(|(group, _)| *group == run.group) {
                Some((_, summaries)) => summaries.extend(summary),
                None => groups.push((&run.group, summary.into_iter().collect())),
            }
        }
        let row = |(group, summaries): (&str, Vec<Value>)| {
            let values = |key: &str| summaries.iter().filter_map(|s| s[key].as_f64()).collect::<Vec<f64>>();
            Row {
                group: group.into(),
                runs: summaries.len(),
                parameters: summaries.first().and_then(|s| s["model"]["parameters"].as_f64()),
                measures: measures.iter().map(|(_, key)| mean_and_deviation(&values(key))).collect(),
            }
        };
        Self { header: measures.iter().map(|(name, _)| *name).collect(), rows: groups.into_iter().map(row).collect() }
    }

    /// Writes `table.txt`, `table.csv` and `table.json`.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let save = |name: &str, bytes: &[u8]| replace(&dir.join(name), bytes).with_context(|| dir.join(name).display().to_string());
        save("table.txt", self.text().as_bytes())?;
        save("table.json", (serde_json::to_string_pretty(&self.json())? + "\n").as_bytes())?;
        let mut csv = csv::Writer::from_writer(Vec::new());
        let measures = self.header.iter().flat_map(|h| [h.to_string(), format!("{h} sd")]);
        csv.write_record(["group".to_string(), "runs".into(), "parameters".into()].into_iter().chain(measures))?;
        for row in &self.rows {
            let number = |v: Option<f64>| v.map(|v| v.to_string()).unwrap_or_default();
            let measures = row.measures.iter().flat_map(|m| [number(m.map(|m| m.0)), number(m.and_then(|m| m.1))]);
            csv.write_record([row.group.clone(), row.runs.to_string(), number(row.parameters)].into_iter().chain(measures))?;
        }
        save("table.csv", &csv.into_inner()?)
    }

    fn json(&self) -> Value {
        let row = |row: &Row| {
            let mut object = json!({"group": row.group, "runs": row.runs, "parameters": row.parameters});
            for (name, measure) in self.header.iter().zip(&row.measures) {
                object[*name] = json!({"mean": measure.map(|m| m.0), "sd": measure.and_then(|m| m.1)});
            }
            object
        };
        Value::Array(self.rows.iter().map(row).collect())
    }

    /// For people.
    pub fn text(&self) -> String {
        let header = ["group", "runs", "parameters"].iter().chain(&self.header).map(|h| h.to_string()).collect();
        let row = |row: &Row| {
            let measures = row.measures.iter().map(|m| measure_text(*m));
            let parameters = row.parameters.map(thousands).unwrap_or_else(|| "-".into());
            [row.group.clone(), row.runs.to_string(), parameters].into_iter().chain(measures).collect()
        };
        align(std::iter::once(header).chain(self.rows.iter().map(row)).collect())
    }
}

fn measure_text(measure: Option<(f64, Option<f64>)>) -> String {
    let number = |v: f64| {
        if v.abs() >= 1000.0 {
            thousands(v)
        } else if v.abs() >= 100.0 {
            format!("{v:.1}")
        } else {
            format!("{v:.3}")
        }
    };
    match measure {
        None => "-".into(),
        Some((mean, None)) => number(mean),
        Some((mean, Some(deviation))) => format!("{} ± {}", number(mean), number(deviation)),
    }
}
