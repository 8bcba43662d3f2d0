//! `metrics.jsonl`: one JSON object a line.

use serde_json::{Map, Value};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// The file, open at its end.
pub struct JsonLines {
    out: BufWriter<File>,
}

impl JsonLines {
    /// Opens or makes the file; whole lines up to `step` stay, the rest (also a torn last line) is cut off.
    pub fn open(path: &Path, step: u64) -> io::Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let kept: usize = text
            .split_inclusive('\n')
            .take_while(|line| line.ends_with('\n') && step_of(line).is_some_and(|s| s <= step))
            .map(str::len)
            .sum();
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        file.set_len(kept as u64)?;
        Ok(Self { out: BufWriter::new(file) })
    }

    pub fn write(&mut self, line: &Map<String, Value>) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, line)?;
        self.out.write_all(b"\n")?;
        self.out.flush()
    }

    pub fn file(&self) -> &File {
        self.out.get_ref()
    }
}

fn step_of(line: &str) -> Option<u64> {
    serde_json::from_str::<Value>(line).ok()?.get("step")?.as_u64()
}

/// All whole lines of a file.
pub fn read(path: &Path) -> io::Result<Vec<Map<String, Value>>> {
    let text = std::fs::read_to_string(path)?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reopening_cuts_later_steps_and_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"step\":4,\"lo").unwrap();
        let mut lines = JsonLines::open(&path, 2).unwrap();
        lines.write(&Map::from_iter([("step".to_string(), Value::from(3)), ("loss".to_string(), Value::from(f64::NAN))])).unwrap();
        drop(lines);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"step\":1}\n{\"step\":2}\n{\"step\":3,\"loss\":null}\n");
        assert_eq!(read(&path).unwrap().len(), 3);
    }
}
