//! Twenty thousand steps: neither memory nor open files grow.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::Lab;
use serde_json::json;
use std::process::Stdio;
use std::time::Duration;

/// Resident KiB and open files of a process.
fn footprint(process: u32) -> Option<(u64, usize)> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|l| l.starts_with("VmRSS"))?;
    let files = std::fs::read_dir(format!("/proc/{process}/fd")).ok()?.count();
    Some((line.split_whitespace().nth(1)?.parse().ok()?, files))
}

#[test]
#[ignore = "slow: make test-long"]
fn memory_and_files_stay_flat_over_twenty_thousand_steps() {
    let lab = Lab::new();
    let changes = [
        ("train.max_steps", json!(20_000)),
        ("train.log_every", json!(100)),
        ("train.eval_every", json!(500)),
        ("train.checkpoint_every", json!(500)),
        ("model.hidden_dropout_prob", json!(0.1)),
    ];
    lab.config("c.json", &changes);
    let mut child = lab.command(&["pretrain", "c.json", "--quiet"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let step = || {
        let text = std::fs::read_to_string(lab.path("run/metrics.jsonl")).unwrap_or_default();
        text.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok()?["step"].as_u64()).next_back().unwrap_or(0)
    };
    let mut seen = Vec::new();
    while child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(500));
        let at = step();
        if let (Some((memory, files)), 2000..=19_900) = (footprint(child.id()), at) {
            seen.push((at, memory, files));
        }
    }
    assert!(child.wait().unwrap().success());
    assert!(seen.len() > 20, "{seen:?}");
    let (least, most) = (seen.iter().map(|s| s.1).min().unwrap(), seen.iter().map(|s| s.1).max().unwrap());
    let files: Vec<usize> = seen.iter().map(|s| s.2).collect();
    let (fewest, open) = (*files.iter().min().unwrap(), *files.iter().max().unwrap());
    println!("{} samples after step 2,000: {least} to {most} KiB resident, {fewest} to {open} open files", seen.len());
    assert!(most as f64 <= least as f64 * 1.02, "memory grew: {seen:?}");
    // One checkpoint may be open while it is written: its files are open only then.
    let at_rest = files.iter().filter(|f| **f == fewest).count();
    assert!(at_rest * 2 > files.len(), "open files grew: {files:?}");
}
