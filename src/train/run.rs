//! A run's folder: config, environment, tokenizer, metrics, checkpoints, summary.

use super::checkpoint::{set_aside_after, Checkpoint};
use crate::config::Config;
use crate::native::runtime;
use serde_json::{json, Value};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// What to do with a folder that holds a run already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Refuse it.
    Never,
    /// Go on from its newest valid checkpoint, or begin if there is none.
    Auto,
    /// Go on from this checkpoint of the run.
    From(PathBuf),
}

/// Why a run's folder was refused.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: a run is here already; continue it with --resume auto, or choose another folder with run.dir=...")]
    Exists { path: PathBuf },
    #[error(
        "{path}: resumes a run whose {key} was {was}, but it is {now}; what is learned may not change on the way: choose another run.dir"
    )]
    Changed { path: PathBuf, key: String, was: String, now: String },
    #[error("{path}: {message}")]
    Invalid { path: PathBuf, message: String },
}

/// Keys that may differ on resume: how long, how often, where; never what is learned from what.
const MAY_CHANGE: [&str; 10] = [
    "train.max_steps",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.early_stopping_patience",
    "run.dir",
    "run.device",
    "run.threads",
    "data.cache_dir",
];

/// A run's folder, made or opened.
pub struct RunFolder {
    pub path: PathBuf,
    /// The checkpoint to go on from.
    pub checkpoint: Option<Checkpoint>,
    /// Damaged checkpoints that were passed over.
    pub damaged: Vec<String>,
    /// The summary, if the run is done.
    pub done: Option<Value>,
    /// Held as long as the run writes here.
    _lock: File,
}

impl RunFolder {
    /// Makes a new run's folder, or opens one to resume. Nothing that was there is changed when it is refused.
    ///
    /// `inputs` are hashes of everything the run reads (tokenizer, data, weights to start from): a resumed run must read the
    /// same.
    pub fn open(path: &Path, config: &Config, inputs: &Value, total_steps: u64, resume: &Resume) -> Result<Self, RunError> {
        let exists = path.join("config.json").exists() || path.join("checkpoints").exists();
        match resume {
            Resume::Never if exists => return Err(RunError::Exists { path: path.into() }),
            Resume::From(folder) if !exists => {
                return Err(RunError::Invalid { path: path.into(), message: format!("no run is here to resume from {}", folder.display()) })
            }
            _ => {}
        }
        fs::create_dir_all(path).map_err(failed(path))?;
        let lock = lock(path)?;
        let mut run = Self { path: path.into(), checkpoint: None, damaged: Vec::new(), done: None, _lock: lock };
        if exists {
            run.refuse_changes("config.json", &serde_json::to_value(config).unwrap_or_default(), "")?;
            run.refuse_changes("inputs.json", inputs, "inputs")?;
            let done = |s: &Value| s["total_steps"].as_u64() == Some(total_steps);
            run.done = read_summary(path).filter(|s| *resume == Resume::Auto && done(s));
            if run.done.is_some() {
                return Ok(run);
            }
            run.find_checkpoint(resume)?;
            let _ = fs::remove_file(path.join("summary.json"));
        }
        run.write("config.json", &serde_json::to_value(config).unwrap_or_default())?;
        run.write("inputs.json", inputs)?;
        Ok(run)
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
            self.checkpoint = Some(Checkpoint::open(folder).map_err(|e| invalid(e.to_string()))?);
        } else {
            (self.checkpoint, self.damaged) = Checkpoint::latest(&checkpoints);
        }
        set_aside_after(&checkpoints, self.checkpoint.as_ref().map_or(0, |c| c.state.step));
        Ok(())
    }

    /// Holds `now` against the file of the run that was begun; the first difference is an error.
    fn refuse_changes(&self, name: &str, now: &Value, prefix: &str) -> Result<(), RunError> {
        let path = self.path.join(name);
        let text = fs::read_to_string(&path).map_err(failed(&path))?;
        let was: Value = serde_json::from_str(&text).map_err(|e| RunError::Invalid { path, message: e.to_string() })?;
        match first_difference(&was, now, prefix) {
            Some((key, was, now)) => Err(RunError::Changed { path: self.path.clone(), key, was, now }),
            None => Ok(()),
        }
    }

    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Writes a JSON file aside and renames it.
    pub fn write(&self, name: &str, value: &Value) -> Result<(), RunError> {
        self.write_text(name, &(serde_json::to_string_pretty(value).unwrap_or_default() + "\n"))
    }

    pub fn write_text(&self, name: &str, text: &str) -> Result<(), RunError> {
        let path = self.path.join(name);
        let aside = self.path.join(format!("{name}.tmp"));
        let result = fs::write(&aside, text).and_then(|()| fs::rename(&aside, &path));
        result.map_err(|source| {
            let _ = fs::remove_file(&aside);
            RunError::Io { path, source }
        })
    }
}

/// The config of a run's folder as it was resolved.
pub fn read_config(run: &Path) -> Result<Config, RunError> {
    let path = run.join("config.json");
    let text = fs::read_to_string(&path).map_err(|source| RunError::Io { path: path.clone(), source })?;
    serde_json::from_str(&text).map_err(|e| RunError::Invalid { path, message: e.to_string() })
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
        "libtorch": runtime::torch_version(),
        "device": device,
        "cpu": cpu_model(),
        "cpu_capability": runtime::cpu_capability(),
        "threads": tch::get_num_threads(),
        "measured_peak_tflops": peak_tflops,
        "started": std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_secs()),
        "command": std::env::args().collect::<Vec<_>>(),
    })
}

/// The processor's name by the kernel.
pub fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim().to_string()));
    model.unwrap_or_else(|| "unknown".into())
}

/// Of the source tree that this program was built from.
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

/// The first key with two values, other than those that may change.
fn first_difference(was: &Value, now: &Value, key: &str) -> Option<(String, String, String)> {
    if MAY_CHANGE.contains(&key) || was == now {
        return None;
    }
    match (was, now) {
        (Value::Object(a), Value::Object(b)) => a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))).find_map(|name| {
            let inner = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            first_difference(a.get(name).unwrap_or(&Value::Null), b.get(name).unwrap_or(&Value::Null), &inner)
        }),
        _ => Some((key.into(), was.to_string(), now.to_string())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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
