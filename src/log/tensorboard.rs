//! A TensorBoard event file, by tensorboard-rs's record format and messages.
//!
//! tensorboard-rs's `SummaryWriter` writes from a thread that panics on a full disk, loses its queue at exit, and names two
//! files of one second alike. Its record writer below that has none of these faults: it is driven here directly, so every
//! error is a value and every event is in the file when the call returns.

use protobuf::Message;
use serde_json::{Map, Value};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use tensorboard_proto::event::Event;
use tensorboard_rs::record_writer::RecordWriter;
use tensorboard_rs::summary;

/// The one event file of a run.
pub struct EventFile {
    records: RecordWriter<BufWriter<File>>,
    file: File,
}

impl EventFile {
    /// Makes the folder's event file anew, holding the lines of `metrics.jsonl` given. An older one is replaced.
    pub fn create(folder: &Path, lines: &[Map<String, Value>]) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("events.out.tfevents.")) {
                std::fs::remove_file(path)?;
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let path = folder.join(format!("events.out.tfevents.{:010}.{}.{}", now.as_secs(), std::process::id(), now.subsec_nanos()));
        let file = OpenOptions::new().create_new(true).append(true).open(path)?;
        let mut events = Self { records: RecordWriter::new(BufWriter::new(file.try_clone()?)), file };
        let mut version = Event::new();
        version.set_wall_time(now.as_secs_f64());
        version.set_file_version("brain.Event:2".into());
        events.event(&version)?;
        lines.iter().try_for_each(|line| events.write(line))?;
        Ok(events)
    }

    /// The numbers of one line as scalars under their tags.
    pub fn write(&mut self, line: &Map<String, Value>) -> io::Result<()> {
        let split = line.get("split").and_then(Value::as_str).unwrap_or("train");
        let step = line.get("step").and_then(Value::as_i64).unwrap_or(0);
        let time = line.get("time").and_then(Value::as_f64).unwrap_or(0.0);
        let scalars = line.iter().filter_map(|(name, value)| Some((tag(split, name)?, value.as_f64()?)));
        for (tag, value) in scalars {
            let mut event = Event::new();
            event.set_wall_time(time);
            event.set_step(step);
            event.set_summary(summary::scalar(&tag, value as f32));
            self.event(&event)?;
        }
        Ok(())
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        let bytes = event.write_to_bytes().map_err(io::Error::other)?;
        // Four small writes make one record; flushed together, so that a crash tears at most the last record.
        self.records.write(&bytes)?;
        self.records.flush()
    }
}

/// The stable name of a metric; None for what is not a curve.
fn tag(split: &str, name: &str) -> Option<String> {
    match name {
        "step" | "split" | "time" | "tokens" => None,
        "lr" | "grad_norm" | "grad_norm_max" | "grad_norm_spikes" | "skipped_steps" => Some(format!("optim/{name}")),
        "tokens_per_second" | "mfu" | "data_wait" | "padding" | "checkpoint_stall" => Some(format!("speed/{name}")),
        _ => Some(format!("{split}/{name}")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_those_documented() {
        assert_eq!(tag("train", "loss").unwrap(), "train/loss");
        assert_eq!(tag("valid", "perplexity").unwrap(), "valid/perplexity");
        assert_eq!(tag("train", "lr").unwrap(), "optim/lr");
        assert_eq!(tag("train", "mfu").unwrap(), "speed/mfu");
        assert_eq!(tag("task", "accuracy").unwrap(), "task/accuracy");
        assert_eq!(tag("train", "tokens"), None);
    }

    #[test]
    fn a_new_file_replaces_the_old_and_holds_its_lines() {
        let folder = tempfile::tempdir().unwrap();
        let line: Map<String, Value> = serde_json::from_str(r#"{"step":3,"split":"train","time":5.0,"loss":1.5}"#).unwrap();
        EventFile::create(folder.path(), &[]).unwrap().write(&line).unwrap();
        EventFile::create(folder.path(), &[line.clone(), line]).unwrap();
        let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(files.len(), 1);
        let bytes = std::fs::read(&files[0]).unwrap();
        assert_eq!(bytes.windows(10).filter(|w| w == b"train/loss").count(), 2);
    }
}
