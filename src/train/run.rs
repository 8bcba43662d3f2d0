//! A run's folder: config, environment, tokenizer, metrics, checkpoints, summary.

use super::checkpoint::Checkpoint;
use crate::config::Config;
use crate::native::runtime;
use serde_json::{json, Value};
use std::fs;
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

/// A run's folder, made or opened.
pub struct RunFolder {
    pub path: PathBuf,
    /// The checkpoint to go on from.
    pub checkpoint: Option<Checkpoint>,
    /// Damaged checkpoints that were passed over.
    pub damaged: Vec<String>,
}

/// Keys that may differ on resume: how long, how often, where; never what is learned from what.
const MAY_CHANGE: [&str; 8] = [
    "train.max_steps",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.early_stopping_patience",
    "run",
    "data.cache_dir",
];

impl RunFolder {
    /// Makes a new run's folder, or opens one to resume. Nothing that was there is changed when it is refused.
    pub fn open(path: &Path, config: &Config, resume: &Resume) -> Result<Self, RunError> {
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| RunError::Io { path, source }
        };
        let config_path = path.join("config.json");
        let exists = config_path.exists() || path.join("checkpoints").exists();
        if exists && *resume == Resume::Never {
            return Err(RunError::Exists { path: path.into() });
        }
        fs::create_dir_all(path).map_err(failed(path))?;
        let (mut checkpoint, mut damaged) = (None, Vec::new());
        if exists {
            if let Ok(text) = fs::read_to_string(&config_path) {
                refuse_changes(path, &text, config)?;
            }
            (checkpoint, damaged) = match resume {
                Resume::From(folder) => {
                    let opened =
                        Checkpoint::open(folder).map_err(|e| RunError::Invalid { path: folder.clone(), message: e.to_string() })?;
                    (Some(opened), Vec::new())
                }
                _ => Checkpoint::latest(&path.join("checkpoints")),
            };
        }
        let run = Self { path: path.into(), checkpoint, damaged };
        run.write("config.json", &serde_json::to_value(config).unwrap_or_default())?;
        Ok(run)
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

fn git_revision() -> Option<String> {
    let git = |args: &[&str]| {
        let out = std::process::Command::new("git").args(args).output().ok().filter(|o| o.status.success())?;
        Some(String::from_utf8_lossy(&out.stdout).trim().to_string())
    };
    let revision = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|s| !s.is_empty());
    Some(if changed { format!("{revision}+changes") } else { revision })
}

fn refuse_changes(path: &Path, old: &str, config: &Config) -> Result<(), RunError> {
    let was: Value = serde_json::from_str(old).map_err(|e| RunError::Invalid { path: path.join("config.json"), message: e.to_string() })?;
    let now = serde_json::to_value(config).unwrap_or_default();
    match first_difference(&was, &now, "") {
        Some((key, was, now)) => Err(RunError::Changed { path: path.into(), key, was, now }),
        None => Ok(()),
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
        RunFolder::open(&path, &config, &Resume::Never).unwrap();
        assert!(matches!(RunFolder::open(&path, &config, &Resume::Never), Err(RunError::Exists { .. })));
        let mut longer = config.clone();
        longer.train.max_steps += 5;
        RunFolder::open(&path, &longer, &Resume::Auto).unwrap();
        let mut other = config;
        other.train.seed = 7;
        let message = RunFolder::open(&path, &other, &Resume::Auto).err().unwrap().to_string();
        assert!(message.contains("train.seed was 0, but it is 7"), "{message}");
    }
}
