//! A TensorBoard event file, by tensorboard-rs's record format and messages.
//!
//! tensorboard-rs's `SummaryWriter` writes from a thread that panics on a full disk, loses its queue at exit, and names two
//! files of one second alike. Its record writer below that has none of these faults: it is driven here directly, so every
//! error is a value and every event is in the file when the call returns.

use super::histogram::Histogram;
use super::messages;
use protobuf::Message;
use serde_json::{Map, Value};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use tensorboard_proto::event::Event;
use tensorboard_proto::summary::Summary;
use tensorboard_rs::record_writer::RecordWriter;
use tensorboard_rs::summary;

/// What a run is, for TensorBoard: shown beside its curves.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// Settings by dotted key: a row of the HParams table.
    pub settings: Map<String, Value>,
    /// Tag and Markdown.
    pub texts: Vec<(String, String)>,
}

/// The one event file of a run.
pub struct EventFile {
    records: RecordWriter<BufWriter<File>>,
    file: File,
}

impl EventFile {
    /// Makes the folder's event file anew, holding what the run is and the lines of `metrics.jsonl` and `histograms.jsonl`
    /// given. An older one is replaced.
    pub fn create(folder: &Path, about: &About, lines: &[Map<String, Value>], histograms: &[Map<String, Value>]) -> io::Result<Self> {
        let mut events = Self::empty(folder)?;
        let now = super::now();
        let begun = lines.iter().find_map(|line| line.get("time")?.as_f64()).unwrap_or(now);
        if !about.settings.is_empty() {
            events.summary(0, begun, messages::session_start(&about.settings, begun)?)?;
        }
        about.texts.iter().try_for_each(|(tag, markdown)| events.summary(0, begun, messages::text(tag, markdown)))?;
        // In the order in which they were written: a step's histograms are made before its line.
        let step = |line: &Map<String, Value>| line.get("step").and_then(Value::as_u64).unwrap_or(0);
        let mut histograms = histograms.iter().peekable();
        for line in lines {
            while let Some(earlier) = histograms.next_if(|h| step(h) <= step(line)) {
                events.histograms(earlier)?;
            }
            events.write(line)?;
        }
        histograms.try_for_each(|line| events.histograms(line))?;
        Ok(events)
    }

    /// The folder's event file with nothing in it yet.
    pub fn empty(folder: &Path) -> io::Result<Self> {
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
        Ok(events)
    }

    /// The numbers of one line as scalars under their tags.
    pub fn write(&mut self, line: &Map<String, Value>) -> io::Result<()> {
        let split = line.get("split").and_then(Value::as_str).unwrap_or("train");
        let step = line.get("step").and_then(Value::as_i64).unwrap_or(0);
        let time = line.get("time").and_then(Value::as_f64).unwrap_or(0.0);
        let mut scalars = line.iter().filter_map(|(name, value)| Some((tag(split, name)?, value.as_f64()?)));
        scalars.try_for_each(|(tag, value)| self.summary(step, time, summary::scalar(&tag, value as f32)))
    }

    /// One line of `histograms.jsonl`.
    pub fn histograms(&mut self, line: &Map<String, Value>) -> io::Result<()> {
        let step = line.get("step").and_then(Value::as_i64).unwrap_or(0);
        let time = line.get("time").and_then(Value::as_f64).unwrap_or(0.0);
        let all = line.get("histograms").and_then(Value::as_object);
        let mut known = all.into_iter().flatten().filter_map(|(tag, value)| Some((tag, Histogram::from_json(value)?)));
        known.try_for_each(|(tag, histogram)| self.summary(step, time, messages::histogram(tag, &histogram)))
    }

    /// The end of the run, for the HParams table.
    pub fn end(&mut self, succeeded: bool) -> io::Result<()> {
        let now = super::now();
        self.summary(0, now, messages::session_end(succeeded, now)?)
    }

    /// A picture from a PNG file.
    pub fn png(&mut self, tag: &str, bytes: Vec<u8>) -> io::Result<()> {
        let summary = messages::png(tag, bytes).ok_or_else(|| io::Error::other(format!("{tag}: not a PNG file")))?;
        self.summary(0, super::now(), summary)
    }

    /// A text in Markdown.
    pub fn text(&mut self, tag: &str, markdown: &str) -> io::Result<()> {
        self.summary(0, super::now(), messages::text(tag, markdown))
    }

    fn summary(&mut self, step: i64, time: f64, summary: Summary) -> io::Result<()> {
        let mut event = Event::new();
        event.set_wall_time(time);
        event.set_step(step);
        event.set_summary(summary);
        self.event(&event)
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
pub fn tag(split: &str, name: &str) -> Option<String> {
    match name {
        "step" | "split" | "time" | "tokens" => None,
        "lr" | "grad_norm" | "grad_norm_max" | "grad_norm_spikes" | "skipped_steps" => Some(format!("optim/{name}")),
        "tokens_per_second" | "mfu" | "data_wait" | "padding" | "checkpoint_stall" | "peak_memory" => Some(format!("speed/{name}")),
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

    /// Case 43.
    #[test]
    fn a_number_that_is_none_is_a_gap() {
        let folder = tempfile::tempdir().unwrap();
        let line: Map<String, Value> = serde_json::from_str(r#"{"step":3,"split":"train","time":5.0,"loss":null,"lr":0.5}"#).unwrap();
        EventFile::create(folder.path(), &About::default(), &[line], &[]).unwrap();
        let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let text = String::from_utf8_lossy(&std::fs::read(file).unwrap()).into_owned();
        assert!(text.contains("optim/lr") && !text.contains("train/loss"));
    }

    /// Case 42: event files of writers that began in one second have names of their own, and each its own events.
    #[test]
    fn writers_of_one_second_have_files_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let mut names = std::collections::BTreeSet::new();
        for writer in 0..64 {
            let own = folder.path().join(writer.to_string());
            let line: Map<String, Value> =
                serde_json::from_str(&format!(r#"{{"step":{writer},"split":"train","time":5.0,"m{writer}":1.5}}"#)).unwrap();
            EventFile::empty(&own).unwrap().write(&line).unwrap();
            let file = std::fs::read_dir(&own).unwrap().next().unwrap().unwrap();
            names.insert(file.file_name());
            let text = String::from_utf8_lossy(&std::fs::read(file.path()).unwrap()).into_owned();
            assert!(text.contains(&format!("train/m{writer}")) && text.matches("train/m").count() == 1, "{text}");
        }
        // All of them can be copied into one folder.
        assert_eq!(names.len(), 64);
    }

    #[test]
    fn a_new_file_replaces_the_old_and_holds_its_lines() {
        let folder = tempfile::tempdir().unwrap();
        let line: Map<String, Value> = serde_json::from_str(r#"{"step":3,"split":"train","time":5.0,"loss":1.5}"#).unwrap();
        EventFile::create(folder.path(), &About::default(), &[], &[]).unwrap().write(&line).unwrap();
        EventFile::create(folder.path(), &About::default(), &[line.clone(), line], &[]).unwrap();
        let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(files.len(), 1);
        let bytes = std::fs::read(&files[0]).unwrap();
        assert_eq!(bytes.windows(10).filter(|w| w == b"train/loss").count(), 2);
    }
}
