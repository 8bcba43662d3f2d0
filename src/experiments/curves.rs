//! The curves of runs as CSV, under TensorBoard's tags.

use super::runs::Run;
use crate::log::tensorboard::tag;
use anyhow::Result;
use serde_json::Value;
use std::io::Write;

/// `run,tag,step,time,value`, a line a point, in the order in which they were written. Time is in seconds since 1970.
pub fn write(runs: &[Run], out: &mut impl Write) -> Result<()> {
    let mut csv = csv::Writer::from_writer(out);
    csv.write_record(["run", "tag", "step", "time", "value"])?;
    for run in runs {
        let path = run.path.display().to_string();
        for line in &run.lines {
            let split = line.get("split").and_then(Value::as_str).unwrap_or("train");
            let text = |key: &str| line.get(key).map(Value::to_string).unwrap_or_default();
            for (name, value) in line {
                if let (Some(tag), Some(value)) = (tag(split, name), value.as_f64()) {
                    csv.write_record([&path, &tag, &text("step"), &text("time"), &value.to_string()])?;
                }
            }
        }
    }
    Ok(csv.flush()?)
}
