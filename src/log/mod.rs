//! What a run tells: `metrics.jsonl` (the source of truth), a TensorBoard event file made from the same records, and a
//! progress bar or plain lines.
//!
//! Nothing here may end a run: a sink that cannot write is reported once and left out.

pub mod jsonl;
pub mod plot;
pub mod progress;
pub mod tensorboard;

use jsonl::JsonLines;
use progress::Progress;
use serde_json::{Map, Value};
use std::fs::File;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use tensorboard::EventFile;

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub step: u64,
    /// `train`, `valid` (masked LM) or `task`.
    pub split: &'static str,
    pub values: Vec<(&'static str, f64)>,
}

impl Record {
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
    }

    fn to_json(&self, time: f64) -> Map<String, Value> {
        let head = [("step", Value::from(self.step)), ("split", self.split.into()), ("time", time.into())];
        let values = self.values.iter().map(|(name, value)| (*name, Value::from(*value)));
        head.into_iter().chain(values).map(|(name, value)| (name.to_string(), value)).collect()
    }
}

/// All sinks of one run.
pub struct Log {
    lines: Option<JsonLines>,
    events: Option<EventFile>,
    pub progress: Progress,
}

impl Log {
    /// Opens the sinks of a run's folder. On resume at `step`, later records are cut off and the event file is made anew
    /// from those that stay: no doubled and no backward steps.
    pub fn open(folder: &Path, step: u64, progress: Progress) -> Self {
        let lines = keep(JsonLines::open(&folder.join("metrics.jsonl"), step), "metrics.jsonl", &progress);
        let past = jsonl::read(&folder.join("metrics.jsonl")).unwrap_or_default();
        let events = keep(EventFile::create(&folder.join("tensorboard"), &past), "tensorboard", &progress);
        Self { lines, events, progress }
    }

    /// No sinks: another rank has them.
    pub fn silent() -> Self {
        Self { lines: None, events: None, progress: Progress::silent() }
    }

    /// One record to every sink.
    pub fn record(&mut self, record: &Record) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64());
        let line = record.to_json(time);
        write(&mut self.lines, |sink| sink.write(&line), "metrics.jsonl", &self.progress);
        write(&mut self.events, |sink| sink.write(&line), "tensorboard", &self.progress);
    }

    /// The files behind the sinks, all of whose records have reached the kernel: to be synced elsewhere.
    pub fn files(&self) -> Vec<File> {
        let files = [self.lines.as_ref().map(JsonLines::file), self.events.as_ref().map(EventFile::file)];
        files.into_iter().flatten().filter_map(|file| file.try_clone().ok()).collect()
    }

    /// Says that a file of [`Self::files`] could not be synced.
    pub fn unsynced(&self, error: &std::io::Error) {
        self.progress.warn(&format!("metrics.jsonl or tensorboard could not be synced to the disk ({error}); the run goes on"));
    }
}

fn keep<T>(sink: std::io::Result<T>, name: &str, progress: &Progress) -> Option<T> {
    sink.map_err(|error| progress.warn(&format!("{name} cannot be written ({error}); the run goes on without it"))).ok()
}

fn write<T>(sink: &mut Option<T>, action: impl FnOnce(&mut T) -> std::io::Result<()>, name: &str, progress: &Progress) {
    if let Some(Err(error)) = sink.as_mut().map(action) {
        progress.warn(&format!("{name} cannot be written any more ({error}); the run goes on without it"));
        *sink = None;
    }
}
