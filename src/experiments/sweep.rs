//! A sweep: its runs one after the other or several at a time, each in a process of its own, and one table at the end.
//!
//! A run that is done is skipped, one that was broken off goes on, and one that fails or comes to its time limit does not stop the
//! others.

use super::results::collect;
use super::reuse::{self, Difference};
use super::runs::{of_defined, over_seeds, reported_score, short, OF_HALVES};
use super::Finished;
use crate::config::sweep::{Sweep, SweepRun};
use crate::config::AttentionKind;
use crate::durable::replace;
use crate::log::progress::thousands;
use crate::native::runtime;
use crate::table::align;
use crate::train::interrupt::Interrupt;
use crate::train::run::{read_summary, MAY_CHANGE};
use anyhow::{bail, Context, Result};
use serde_json::{json, Value};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

/// Which runs of a sweep are made here, and how many at a time.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    pub at_once: usize,
    /// One run by its number (from 0): a job of an array makes one, and the table of what is done by then.
    pub only: Option<usize>,
}

/// Runs a sweep and prints its table; `results` is a folder for `results.json` instead of the file's.
pub fn run(sweep: &Sweep, share: Share, results: Option<&Path>, interrupt: &Interrupt) -> Result<Finished> {
    let configs = sweep.dir.join("configs");
    fs::create_dir_all(&configs).with_context(|| configs.display().to_string())?;
    let count = sweep.runs.len();
    let mut waiting = match share.only {
        Some(only) if only >= count => bail!("--only: found {only}, expected 0 to {}", count - 1),
        Some(only) => only..only + 1,
        None => 0..count,
    };
    let mut workers: Vec<Option<Worker>> = (0..share.at_once.max(1)).map(|_| None).collect();
    let (mut failed, mut stopped, mut interrupted) = (Vec::new(), Vec::new(), false);
    loop {
        interrupted |= interrupt.is_set();
        for (device, slot) in workers.iter_mut().enumerate() {
            if let Some(status) = slot.as_mut().map(|worker| worker.poll(interrupt)).transpose()?.flatten() {
                let run = slot.take().map_or(0, |worker| worker.run);
                let name = sweep.runs[run].name.as_str();
                interrupted |= interrupt.is_set();
                match status.code() {
                    _ if interrupted => {}
                    Some(0) => {}
                    // Nobody asked the sweep to stop.
                    Some(130) => {
                        say(&format!("[{}/{count}] {name} stopped with a checkpoint; the sweep goes on", run + 1));
                        stopped.push(name);
                    }
                    _ => {
                        say(&format!("[{}/{count}] {name} failed ({status}); the sweep goes on", run + 1));
                        failed.push(name);
                    }
                }
            }
            if slot.is_none() && !interrupted {
                if let Some(next) = waiting.next() {
                    let taken = if sweep.file.reuse { reuse::take(&sweep.dir, &sweep.runs[next].config)? } else { None };
                    let note = taken.map(|run| format!(": the same as {}", run.display())).unwrap_or_default();
                    say(&format!("[{}/{count}] {}{note}", next + 1, sweep.runs[next].name));
                    let child = start(&sweep.runs[next], &configs, (share.at_once > 1).then_some(device))?;
                    *slot = Some(Worker { run: next, child, told: false });
                }
            }
        }
        if workers.iter().all(Option::is_none) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    if interrupted {
        return Ok(Finished::Interrupted);
    }
    let table = Table::of(sweep);
    table.write(&sweep.dir)?;
    let mut wrong = Vec::new();
    if !failed.is_empty() {
        wrong.push(format!("{} of {count} runs failed: {}", failed.len(), failed.join(", ")));
    }
    if !stopped.is_empty() {
        let names = stopped.join(", ");
        wrong.push(format!(
            "{} of {count} runs stopped with a checkpoint (train.max_hours, or a signal): {names}; start the sweep again to go on with them",
            stopped.len()
        ));
    }
    if share.only.is_none() {
        wrong.extend(write_results(sweep, results).err().map(|error| format!("{error:#}")));
        std::io::stdout().write_all(table.text().as_bytes()).context("standard output")?;
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("; "));
    }
    Ok(Finished::Done(Value::Null))
}

/// A run that was made before the sweep was changed would lend its numbers to settings that are not its own.
fn refuse_others(sweep: &Sweep) -> Result<()> {
    for run in &sweep.runs {
        let Some(dir) = run.config.run.dir.as_deref().filter(|dir| read_summary(dir).is_some()) else { continue };
        if let Some(Difference { key, was, now }) = reuse::difference(dir, run)? {
            let (config, file) = (dir.join("config.json"), sweep.path.display());
            let remedy = if MAY_CHANGE.contains(&key.as_str()) {
                "start the sweep again to go on with it".to_string()
            } else {
                format!("remove {} and start the sweep again", dir.display())
            };
            bail!(
                "{}: {key}: found {was}, but {file} asks for {now}: the run was made before that was changed; change it back, or {remedy}",
                config.display()
            );
        }
    }
    Ok(())
}

/// The summary of a run that is done as its sweep asks for it.
fn finished(run: &SweepRun) -> Option<Value> {
    let dir = run.config.run.dir.as_deref()?;
    read_summary(dir).filter(|_| matches!(reuse::difference(dir, run), Ok(None)))
}

/// `results.json` into the folder that was named, or into the file's own if it ran as it stands.
pub fn write_results(sweep: &Sweep, named: Option<&Path>) -> Result<()> {
    let Some(folder) = named.or(sweep.file.results.as_deref().filter(|_| !sweep.changed)) else { return Ok(()) };
    refuse_others(sweep)?;
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
            state(sweep, run),
        ]
    };
    let rows: Vec<Vec<String>> = std::iter::once(header).chain(sweep.runs.iter().map(row)).collect();
    let time = sweep.file.minutes.map(|m| format!("; about {m} minutes on {}", sweep.file.machine)).unwrap_or_default();
    let silent: String = sweep.file.silent.iter().map(|(key, why)| format!("the paper is silent on {key}: {why}\n")).collect();
    let about = if sweep.file.about.is_empty() { String::new() } else { format!("{}\n", sweep.file.about) };
    about + &align(rows) + &format!("{} runs, at most {} tokens of pretraining{time}\n", sweep.runs.len(), thousands(total)) + &silent
}

/// How a run stands before anything runs.
fn state(sweep: &Sweep, run: &SweepRun) -> String {
    let config = &run.config;
    if let Some(dir) = config.run.dir.as_deref().filter(|dir| read_summary(dir).is_some()) {
        return match reuse::difference(dir, run) {
            Ok(None) => "done".into(),
            Ok(Some(Difference { key, was, .. })) => format!("made with {key}={was}"),
            Err(error) => format!("{error:#}"),
        };
    }
    if let Some(path) = config.run.init_from.as_ref().filter(|path| !path.exists()) {
        return format!("needs {}", path.display());
    }
    match sweep.file.reuse.then(|| reuse::find(&sweep.dir, config)).flatten() {
        Some(run) => format!("the same as {}", run.display()),
        None => "to run".into(),
    }
}

/// A batch script for Slurm: an array with one job a run. What is done is skipped and what was broken off goes on, so the same
/// script may be submitted again; `linformer sweep FILE` makes the table of what there is.
pub fn slurm_script(sweep: &Sweep, file: &Path, overrides: &[String]) -> Result<String> {
    let program = std::env::current_exe()?;
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "'\\''"));
    let words = [program.display().to_string(), "sweep".into(), file.display().to_string()];
    let words: Vec<String> = words.iter().chain(overrides).map(|word| quoted(word)).collect();
    let name = sweep.dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_else(|| "sweep".into());
    Ok(format!(
        "#!/bin/bash\n\
         #SBATCH --job-name={name}\n\
         #SBATCH --array=0-{}\n\
         #SBATCH --ntasks=1\n\
         #SBATCH --cpus-per-task=8\n\
         ##SBATCH --gpus-per-task=1\n\
         #SBATCH --time=24:00:00\n\
         #SBATCH --requeue\n\
         # A checkpoint is written two minutes before the time is over; submit again to go on.\n\
         #SBATCH --signal=USR1@120\n\
         #SBATCH --output={}/slurm-%A_%a.log\n\
         cd {}\n\
         srun {} --only \"$SLURM_ARRAY_TASK_ID\"\n",
        sweep.runs.len() - 1,
        sweep.dir.display(),
        quoted(&std::env::current_dir()?.display().to_string()),
        words.join(" "),
    ))
}

/// To stderr; a reader that went away is no reason to stop.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A run at work.
struct Worker {
    run: usize,
    child: Child,
    told: bool,
}

impl Worker {
    /// How it ended, if it has; passes a request to stop on.
    fn poll(&mut self, interrupt: &Interrupt) -> Result<Option<ExitStatus>> {
        if interrupt.is_terminate() && !self.told {
            runtime::terminate(&self.child);
            self.told = true;
        }
        Ok(self.child.try_wait()?)
    }
}

/// In a process of its own, so that nothing one run does (not even the end of memory) touches the others. Runs at the same time
/// take a GPU each, by its number, unless the user has chosen.
fn start(run: &SweepRun, configs: &Path, device: Option<usize>) -> Result<Child> {
    let path = configs.join(format!("{}.json", run.name));
    let text = serde_json::to_string_pretty(&run.raw)?;
    replace(&path, text.as_bytes()).with_context(|| path.display().to_string())?;
    let command = if run.config.data.task.is_some() { "finetune" } else { "pretrain" };
    let program = std::env::current_exe()?;
    let mut process = Command::new(program);
    process.arg(command).arg(&path).args(["--resume", "auto", "--quiet"]);
    // A task of a job step is one run here, not one rank of many.
    for name in ["SLURM_STEP_NUM_TASKS", "RANK", "WORLD_SIZE"] {
        process.env_remove(name);
    }
    if let Some(device) = device.filter(|_| run.config.run.device == "cuda" && std::env::var_os("CUDA_VISIBLE_DEVICES").is_none()) {
        process.env("CUDA_VISIBLE_DEVICES", device.to_string());
    }
    Ok(process.spawn()?)
}

/// One row a group of runs that differ in their seed alone.
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Row>,
    has_halves: bool,
}

struct Row {
    group: String,
    /// Those that are done ...
    runs: usize,
    /// ... of so many.
    wanted: usize,
    parameters: Option<f64>,
    /// Of each measure the values of the runs that are done; None: not defined.
    measures: Vec<Vec<Option<f64>>>,
}

/// A column's name, and its value by a run's summary.
type Measure = (&'static str, fn(&Value) -> Option<f64>);

const PRETRAIN: [Measure; 4] = [
    ("perplexity", |summary| summary["perplexity"].as_f64()),
    ("loss", |summary| summary["loss"].as_f64()),
    ("masked accuracy", |summary| summary["masked_accuracy"].as_f64()),
    ("tokens/s", |summary| summary["tokens_per_second"].as_f64()),
];
const FINETUNE: [Measure; 3] = [
    ("score", reported_score),
    ("majority", |summary| summary["majority"].as_f64()),
    ("tokens/s", |summary| summary["tokens_per_second"].as_f64()),
];

impl Table {
    /// From the summaries of a sweep's runs.
    pub fn of(sweep: &Sweep) -> Self {
        let finetunes = sweep.runs.iter().any(|r| r.config.data.task.is_some());
        let measures: &[Measure] = if finetunes { &FINETUNE } else { &PRETRAIN };
        let mut groups: Vec<(&str, Vec<Option<Value>>)> = Vec::new();
        for run in &sweep.runs {
            let summary = finished(run);
            match groups.iter_mut().find(|(group, _)| *group == run.group) {
                Some((_, summaries)) => summaries.push(summary),
                None => groups.push((&run.group, vec![summary])),
            }
        }
        let row = |(group, summaries): (&str, Vec<Option<Value>>)| {
            let done: Vec<&Value> = summaries.iter().flatten().collect();
            Row {
                group: group.into(),
                runs: done.len(),
                wanted: summaries.len(),
                parameters: done.first().and_then(|summary| summary["model"]["parameters"].as_f64()),
                measures: measures.iter().map(|(_, value)| done.iter().map(|summary| value(summary)).collect()).collect(),
            }
        };
        Self {
            header: measures.iter().map(|(name, _)| *name).collect(),
            rows: groups.into_iter().map(row).collect(),
            has_halves: sweep.runs.iter().any(|run| run.config.data.dev_halves),
        }
    }

    /// Writes `table.txt`, `table.csv` and `table.json`.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let save = |name: &str, bytes: &[u8]| replace(&dir.join(name), bytes).with_context(|| dir.join(name).display().to_string());
        save("table.txt", self.text().as_bytes())?;
        save("table.json", (serde_json::to_string_pretty(&self.json())? + "\n").as_bytes())?;
        let mut csv = csv::Writer::from_writer(Vec::new());
        let measures = self.header.iter().flat_map(|h| [h.to_string(), format!("{h} sd"), format!("{h} runs")]);
        let head = ["group".to_string(), "runs".into(), "parameters".into()];
        csv.write_record(head.into_iter().chain(measures).chain(["wanted".to_string()]))?;
        for row in &self.rows {
            let number = |v: Option<f64>| v.map(|v| v.to_string()).unwrap_or_default();
            let measures = row.measures.iter().map(|values| of_defined(values));
            let measures = measures.flat_map(|(mean, deviation, count)| [number(mean), number(deviation), count.to_string()]);
            let head = [row.group.clone(), row.runs.to_string(), number(row.parameters)];
            csv.write_record(head.into_iter().chain(measures).chain([row.wanted.to_string()]))?;
        }
        save("table.csv", &csv.into_inner()?)
    }

    fn json(&self) -> Value {
        let row = |row: &Row| {
            let mut object = json!({"group": row.group, "runs": row.runs, "wanted": row.wanted, "parameters": row.parameters});
            for (name, values) in self.header.iter().zip(&row.measures) {
                let (mean, deviation, count) = of_defined(values);
                object[*name] = json!({"mean": mean, "sd": deviation, "runs": count});
            }
            object
        };
        Value::Array(self.rows.iter().map(row).collect())
    }

    /// For people.
    pub fn text(&self) -> String {
        let header = ["group", "runs", "parameters"].iter().chain(&self.header).map(|h| h.to_string()).collect();
        let row = |row: &Row| {
            let measures = row.measures.iter().map(|values| over_seeds(values, short));
            let runs = if row.runs == row.wanted { row.runs.to_string() } else { format!("{} of {}", row.runs, row.wanted) };
            let parameters = row.parameters.map(thousands).unwrap_or_else(|| "-".into());
            [row.group.clone(), runs, parameters].into_iter().chain(measures).collect()
        };
        let note = if self.has_halves { format!("{OF_HALVES}\n") } else { String::new() };
        align(std::iter::once(header).chain(self.rows.iter().map(row)).collect()) + &note
    }
}
