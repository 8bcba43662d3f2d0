//! What a run tells: `metrics.jsonl` and, where they are asked for, `histograms.jsonl` (the source of truth), a TensorBoard
//! event file made from the same records, and a progress bar or plain lines.
//!
//! Nothing here may end a run: a sink that cannot write is reported once and left out.

pub mod heatmap;
pub mod histogram;
pub mod jsonl;
mod messages;
pub mod plot;
pub mod progress;
pub mod tensorboard;

use histogram::Histogram;
use jsonl::JsonLines;
use progress::Progress;
use serde_json::{Map, Value};
use std::fs::File;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use tensorboard::{About, EventFile};

/// Beside `metrics.jsonl`, so that this stays a plain table.
pub const HISTOGRAMS: &str = "histograms.jsonl";

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
    /// Open once there are histograms.
    histograms: Option<JsonLines>,
    events: Option<EventFile>,
    pub progress: Progress,
}

impl Log {
    /// Opens the sinks of a run's folder. On resume at `step`, later records are cut off and the event file is made anew
    /// from those that stay: no doubled and no backward steps. `histograms`: some will come.
    pub fn open(folder: &Path, step: u64, progress: Progress, about: &About, histograms: bool) -> Self {
        let open = |name: &str| keep(JsonLines::open(&folder.join(name), step), name, &progress);
        let past = |name: &str| jsonl::read(&folder.join(name)).unwrap_or_default();
        let lines = open("metrics.jsonl");
        // A run that made some once keeps them.
        let histograms = if histograms || folder.join(HISTOGRAMS).exists() { open(HISTOGRAMS) } else { None };
        let events = EventFile::create(&folder.join("tensorboard"), about, &past("metrics.jsonl"), &past(HISTOGRAMS));
        Self { lines, histograms, events: keep(events, "tensorboard", &progress), progress }
    }

    /// No sinks: another rank has them.
    pub fn silent() -> Self {
        Self { lines: None, histograms: None, events: None, progress: Progress::silent() }
    }

    /// One record to every sink.
    pub fn record(&mut self, record: &Record) {
        let line = record.to_json(now());
        write(&mut self.lines, |sink| sink.write(&line), "metrics.jsonl", &self.progress);
        write(&mut self.events, |sink| sink.write(&line), "tensorboard", &self.progress);
    }

    /// Histograms of one step, by tag, before the step's record.
    pub fn histograms(&mut self, step: u64, histograms: &[(String, Histogram)]) {
        let line = histogram::line(step, now(), histograms);
        write(&mut self.histograms, |sink| sink.write(&line), HISTOGRAMS, &self.progress);
        write(&mut self.events, |sink| sink.histograms(&line), "tensorboard", &self.progress);
    }

    /// The run is over, for the table of runs; all that was recorded is on the disk then.
    pub fn end(&mut self, succeeded: bool) {
        write(&mut self.events, |sink| sink.end(succeeded), "tensorboard", &self.progress);
        self.files().iter().filter_map(|file| file.sync_data().err()).for_each(|error| self.unsynced(&error));
    }

    /// The files behind the sinks, all of whose records have reached the kernel: to be synced elsewhere.
    pub fn files(&self) -> Vec<File> {
        let lines = [&self.lines, &self.histograms].map(|sink| sink.as_ref().map(JsonLines::file));
        let files = [lines[0], lines[1], self.events.as_ref().map(EventFile::file)];
        files.into_iter().flatten().filter_map(|file| file.try_clone().ok()).collect()
    }

    /// Says that a file of [`Self::files`] could not be synced.
    pub fn unsynced(&self, error: &std::io::Error) {
        self.progress.warn(&format!("metrics.jsonl or tensorboard could not be synced to the disk ({error}); the run goes on"));
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64())
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
