//! A run's folder: config, environment, tokenizer, metrics, checkpoints, summary.

use super::checkpoint::{set_aside_after, Checkpoint, CheckpointError};
use super::saver::adopt;
use super::state::State;
use crate::config::Config;
use crate::digest::sha256;
use crate::durable;
use crate::log::HISTOGRAMS;
use crate::native::runtime;
use serde_json::{json, Value};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// What to do with a folder that holds a run already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Refuse it.
    Never,
    /// Go on from its newest valid checkpoint, or begin if there is none.
    Auto,
    /// Go on from this checkpoint of the run.
    From(PathBuf),
    /// A new run that goes on from this checkpoint of another run, under other settings.
    Fork(PathBuf),
}

/// Why a run's folder was refused.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: a run is here already; continue it with --resume auto, or choose another folder with run.dir=...")]
    Exists { path: PathBuf },
    #[error(
        "{path}: resumes a run whose {key} was {was}, but it is {now}; what is learned may not change on the way: choose another run.dir, or start a new run from a checkpoint with --fork"
    )]
    Changed { path: PathBuf, key: String, was: String, now: String },
    #[error("{path}: {message}")]
    Invalid { path: PathBuf, message: String },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// Keys that may differ on resume: how long, how often, where; never what is learned from what.
pub const MAY_CHANGE: [&str; 21] = [
    "train.max_steps",
    "train.recompute",
    "train.log_every",
    "train.histogram_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_best_checkpoints",
    "train.max_hours",
    "train.max_skipped_steps",
    "train.early_stopping_patience",
    "run.dir",
    "run.device",
    "run.threads",
    "run.ranks.join_timeout",
    "run.ranks.peer_timeout",
    "run.ranks.collective_timeout",
    "run.ranks.bucket_mib",
    "run.ranks.compare_every",
    "run.ranks.shard_optimizer",
    "data.cache_dir",
];

/// Whether a key is a setting of an experiment, and not where a run is or how often it is looked at.
pub fn is_setting(key: &str) -> bool {
    !MAY_CHANGE.contains(&key) || key == "train.max_steps"
}

/// A run's folder, made or opened.
pub struct RunFolder {
    pub path: PathBuf,
    /// The checkpoint to go on from.
    pub checkpoint: Option<Checkpoint>,
    /// Damaged checkpoints that were passed over.
    pub damaged: Vec<String>,
    /// The summary, if the run is done.
    pub done: Option<Value>,
    /// Held as long as the run writes here; None: another rank writes.
    lock: Option<File>,
}

impl RunFolder {
    /// Makes a new run's folder, or opens one to resume. Nothing that was there is changed when it is refused.
    ///
    /// `inputs` are hashes of everything the run reads (tokenizer, data, weights to start from): a resumed run must read the
    /// same.
    pub fn open(path: &Path, config: &Config, inputs: &Value, total_steps: u64, resume: &Resume) -> Result<Self, RunError> {
        let invalid = |message: String| Err(RunError::Invalid { path: path.into(), message });
        let exists = path.join("config.json").exists();
        match resume {
            Resume::Never | Resume::Fork(_) if exists => return Err(RunError::Exists { path: path.into() }),
            Resume::From(folder) if !exists => return invalid(format!("no run is here to resume from {}", folder.display())),
            _ if !exists && path.join("checkpoints").exists() => {
                return invalid("checkpoints are here, but no config.json: a copy or a fork that was broken off; remove the folder, or choose another run.dir".into())
            }
            _ => {}
        }
        fs::create_dir_all(path).map_err(failed(path))?;
        let lock = lock(path)?;
        let mut run = Self { path: path.into(), checkpoint: None, damaged: Vec::new(), done: None, lock: Some(lock) };
        let now = serde_json::to_value(config).unwrap_or_default();
        if exists {
            // Through the type: a key that this run's program did not know had its default.
            let was = read_config(path)?;
            run.refuse_changes(&serde_json::to_value(&was).unwrap_or_default(), &now, "")?;
            run.refuse_changes(&read_json(&path.join("inputs.json"))?, inputs, "inputs")?;
            let done = |s: &Value| s["total_steps"].as_u64() == Some(total_steps) && !would_go_on(s, &was, config);
            run.done = read_summary(path).filter(|s| *resume == Resume::Auto && done(s));
            if run.done.is_some() {
                return Ok(run);
            }
            run.find_checkpoint(resume)?;
            let _ = fs::remove_file(path.join("summary.json"));
        } else if let Resume::Fork(checkpoint) = resume {
            run.fork(checkpoint, &now, inputs)?;
        }
        // The config last: only with it is there a run here.
        run.write("inputs.json", inputs)?;
        run.write("config.json", &now)?;
        Ok(run)
    }

    /// Of a rank beside the first: nothing is read or written here. `found` is [`Self::found`] of the first one.
    pub fn follow(path: &Path, found: &Value) -> Result<Self, RunError> {
        let invalid = |e: serde_json::Error| RunError::Invalid { path: path.into(), message: e.to_string() };
        let state: Option<State> = serde_json::from_value(found["state"].clone()).map_err(invalid)?;
        let checkpoint = state.map(|state| Checkpoint { folder: path.join("checkpoints"), state });
        let done = Some(found["done"].clone()).filter(|done| !done.is_null());
        Ok(Self { path: path.into(), checkpoint, damaged: Vec::new(), done, lock: None })
    }

    /// What the other ranks have to know of what is here.
    pub fn found(&self) -> Value {
        json!({"state": self.checkpoint.as_ref().map(|c| &c.state), "done": self.done})
    }

    fn find_checkpoint(&mut self, resume: &Resume) -> Result<(), RunError> {
        let checkpoints = self.checkpoints();
        if let Resume::From(folder) = resume {
            let invalid = |message: String| RunError::Invalid { path: folder.clone(), message };
            let inside =
                folder.canonicalize().ok().is_some_and(|f| checkpoints.canonicalize().is_ok_and(|c| f.parent() == Some(c.as_path())));
            if !inside {
                return Err(invalid(format!("not a checkpoint of this run (they are in {})", checkpoints.display())));
            }
            self.checkpoint = Some(Checkpoint::open(folder)?);
        } else {
            (self.checkpoint, self.damaged) = Checkpoint::to_resume(&checkpoints)?;
        }
        let step = self.checkpoint.as_ref().map_or(0, |c| c.state.step);
        set_aside_after(&checkpoints, step).map_err(failed(&checkpoints))
    }

    /// Copies the checkpoint and the metrics up to it, and notes where they come from and which settings differ. Scores of
    /// the parent's other checkpoints are left behind: their weights are not here.
    fn fork(&mut self, folder: &Path, config: &Value, inputs: &Value) -> Result<(), RunError> {
        let parent = folder.ancestors().nth(2).unwrap_or(folder);
        let was = serde_json::to_value(read_config(parent)?).unwrap_or_default();
        let parent_inputs = read_json(&parent.join("inputs.json"))?;
        if parent_inputs.get("tokenizer") != inputs.get("tokenizer") {
            let message = "its tokenizer is another one than this config's: its weights mean nothing here".to_string();
            return Err(RunError::Invalid { path: folder.into(), message });
        }
        let mut state = Checkpoint::open(folder)?.state;
        state.best.retain(|best| best.step == state.step);
        state.evaluations_since_best = 0;
        let mut changes = serde_json::Map::new();
        differences(&was, config, "", &mut |key, was, now| {
            changes.insert(key.into(), json!({"was": was, "is": now}));
        });
        adopt(&self.checkpoints(), folder, &state)?;
        for name in ["metrics.jsonl", HISTOGRAMS] {
            if let Ok(lines) = fs::read_to_string(parent.join(name)) {
                self.write_text(name, &lines)?;
            }
        }
        self.write("forked_from.json", &json!({"checkpoint": folder, "step": state.step, "changes": changes}))?;
        self.find_checkpoint(&Resume::Auto)
    }

    /// Holds `now` against what the run was begun with; the first difference is an error.
    fn refuse_changes(&self, was: &Value, now: &Value, prefix: &str) -> Result<(), RunError> {
        let mut first = None;
        differences(was, now, prefix, &mut |key, was, now| {
            let may = MAY_CHANGE.contains(&key);
            first = first.take().or_else(|| (!may).then(|| (key.to_string(), was.to_string(), now.to_string())));
        });
        match first {
            Some((key, was, now)) => Err(RunError::Changed { path: self.path.clone(), key, was, now }),
            None => Ok(()),
        }
    }

    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Writes a JSON file aside, syncs it and renames it. Of several ranks the first one does.
    pub fn write(&self, name: &str, value: &Value) -> Result<(), RunError> {
        self.write_text(name, &(serde_json::to_string_pretty(value).unwrap_or_default() + "\n"))
    }

    pub fn write_text(&self, name: &str, text: &str) -> Result<(), RunError> {
        if self.lock.is_none() {
            return Ok(());
        }
        let path = self.path.join(name);
        durable::replace(&path, text.as_bytes()).map_err(failed(&path))
    }
}

/// The run that a checkpoint's folder belongs to, or the run itself.
pub fn run_of(path: &Path) -> &Path {
    match is_checkpoint(path) {
        true => path.ancestors().nth(2).unwrap_or(path),
        false => path,
    }
}

/// Whether the folder is a checkpoint's, not a run's.
pub fn is_checkpoint(path: &Path) -> bool {
    path.join(durable::MANIFEST).exists()
}

/// The config of a run's folder as it was resolved.
pub fn read_config(run: &Path) -> Result<Config, RunError> {
    let path = run.join("config.json");
    serde_json::from_value(read_json(&path)?).map_err(|e| RunError::Invalid { path, message: e.to_string() })
}

fn read_json(path: &Path) -> Result<Value, RunError> {
    let text = fs::read_to_string(path).map_err(failed(path))?;
    serde_json::from_str(&text).map_err(|e| RunError::Invalid { path: path.into(), message: e.to_string() })
}

/// `summary.json` of a run that is done.
pub fn read_summary(run: &Path) -> Option<Value> {
    serde_json::from_str(&fs::read_to_string(run.join("summary.json")).ok()?).ok()
}

/// What the run ran on.
pub fn environment(device: &str, peak_tflops: f64) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "git_revision": git_revision(),
        "program_sha256": program_sha256(),
        "libtorch": runtime::torch_version(),
        "device": device,
        "cpu": cpu_model(),
        "gpus": if device.starts_with("cuda") { json!(gpu_models()) } else { Value::Null },
        "cpu_capability": runtime::cpu_capability(),
        "kernels": runtime::kernels(),
        "tiles": runtime::has_tiles(),
        "threads": tch::get_num_threads(),
        "measured_peak_tflops": peak_tflops,
        "started": std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_secs()),
        "command": command(),
    })
}

/// [`environment`] of a measurement that is done, with the seconds that the program took for it.
pub fn environment_at_end(device: &str) -> Value {
    let mut value = environment(device, 0.0);
    if let (Some(wall), Some(now)) = (runtime::seconds_since_start(), value["started"].as_f64()) {
        value["wall_seconds"] = json!(wall);
        value["started"] = json!((now - wall).round() as u64);
    }
    value
}

/// How this program was called; where it lies is no one's business.
fn command() -> Vec<String> {
    let name = |path: String| Path::new(&path).file_name().map_or(path.clone(), |name| name.to_string_lossy().into_owned());
    std::env::args().enumerate().map(|(i, word)| if i == 0 { name(word) } else { word }).collect()
}

/// The processor's name by the kernel.
pub fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim().to_string()));
    model.unwrap_or_else(|| "unknown".into())
}

/// The GPUs' names by their driver.
fn gpu_models() -> Vec<String> {
    let gpus = fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten();
    let mut facts: Vec<String> = gpus.filter_map(|gpu| fs::read_to_string(gpu.path().join("information")).ok()).collect();
    facts.sort();
    facts.iter().filter_map(|text| Some(text.lines().find_map(|line| line.strip_prefix("Model:"))?.trim().to_string())).collect()
}

/// Of the file that runs, wherever it is by now: the revision says what the sources are, not what they were when it was built.
fn program_sha256() -> Option<&'static str> {
    static DIGEST: OnceLock<Option<String>> = OnceLock::new();
    DIGEST.get_or_init(|| Some(sha256(&fs::read("/proc/self/exe").ok()?))).as_deref()
}

/// Of the source tree that this program was built from, as it is now.
fn git_revision() -> Option<String> {
    let git = |args: &[&str]| {
        let out = std::process::Command::new("git")
            .args(["-C", env!("CARGO_MANIFEST_DIR")])
            .args(args)
            .output()
            .ok()
            .filter(|o| o.status.success())?;
        Some(String::from_utf8_lossy(&out.stdout).trim().to_string())
    };
    let revision = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|s| !s.is_empty());
    Some(if changed { format!("{revision}+changes") } else { revision })
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> RunError {
    let path = path.to_path_buf();
    move |source| RunError::Io { path, source }
}

/// One process a run: two would overwrite each other's checkpoints and interleave their logs.
fn lock(path: &Path) -> Result<File, RunError> {
    let name = path.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&name).map_err(failed(&name))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(RunError::Invalid { path: path.into(), message: "another process is running this run".into() })
        }
        Err(TryLockError::Error(source)) => Err(RunError::Io { path: name, source }),
    }
}

/// Whether a process holds the run's lock. Nothing is made or changed.
pub fn is_running(run: &Path) -> bool {
    File::open(run.join("lock")).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Whether a run with this summary, made with one config, would go on with another: it stopped before its last step, which a run with
/// a summary does for want of patience, and is given more. A patience of 0 never ends.
pub fn would_go_on(summary: &Value, was: &Config, now: &Config) -> bool {
    let evaluations = |config: &Config| match config.train.early_stopping_patience {
        0 => u64::MAX,
        patience => patience,
    };
    summary["steps"] != summary["total_steps"] && evaluations(now) > evaluations(was)
}

/// Calls `found` for every key that has two values, in order.
fn differences(was: &Value, now: &Value, key: &str, found: &mut impl FnMut(&str, &Value, &Value)) {
    match (was, now) {
        _ if was == now => {}
        (Value::Object(a), Value::Object(b)) => {
            for name in a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))) {
                let inner = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                differences(a.get(name).unwrap_or(&Value::Null), b.get(name).unwrap_or(&Value::Null), &inner, found);
            }
        }
        _ => found(key, was, now),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_docs_name_the_keys_that_may_change_and_no_others() {
        let docs = include_str!("../../docs/reliability.md");
        let table = docs.split("## Which keys may change on resume").nth(1).unwrap().split("Every other key").next().unwrap();
        let mut named: Vec<&str> = table.split('`').skip(1).step_by(2).collect();
        let mut may = MAY_CHANGE.to_vec();
        named.sort_unstable();
        may.sort_unstable();
        assert_eq!(named, may);
    }

    #[test]
    fn what_is_learned_may_not_change_on_resume() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::default();
        let path = folder.path().join("run");
        let open = |config: &Config, inputs: Value, resume| RunFolder::open(&path, config, &inputs, 10, &resume);
        drop(open(&config, json!({"data": "a"}), Resume::Never).unwrap());
        assert!(matches!(open(&config, json!({"data": "a"}), Resume::Never), Err(RunError::Exists { .. })));
        let mut longer = config.clone();
        longer.train.max_steps += 5;
        let first = open(&longer, json!({"data": "a"}), Resume::Auto).unwrap();
        let message = open(&longer, json!({"data": "a"}), Resume::Auto).err().unwrap().to_string();
        assert!(message.contains("another process"), "{message}");
        drop(first);
        let message = open(&longer, json!({"data": "b"}), Resume::Auto).err().unwrap().to_string();
        assert!(message.contains("inputs.data was \"a\", but it is \"b\""), "{message}");
        let mut other = config;
        other.train.seed = 7;
        let message = open(&other, json!({"data": "a"}), Resume::Auto).err().unwrap().to_string();
        assert!(message.contains("train.seed was 0, but it is 7"), "{message}");
    }
}
