//! `linformer list`, `compare` and `tensorboard-export`: runs in a table, and their curves.

use super::out;
use crate::config::load::usage;
use crate::durable;
use crate::experiments::curves;
use crate::experiments::runs::{find, list as table, list_json, Comparison};
use anyhow::{bail, Context, Result};
use clap::Args;
use serde_json::Value;
use std::path::PathBuf;

#[derive(Args)]
#[command(after_help = "Examples:
  linformer list                       # every run below runs/: kind, status, step, k, score, speed
  linformer list runs/mine --json | jq -r '.[] | select(.status == \"stopped\") | .run'")]
pub struct ListArgs {
    /// Folders with runs in them [default: runs]
    dirs: Vec<PathBuf>,
    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:
  linformer compare runs/demo/pretrain/full runs/demo/pretrain/linformer-k32
  linformer compare runs/mine          # all runs below a folder")]
pub struct CompareArgs {
    /// Runs, or folders with runs in them
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:
  linformer tensorboard-export runs/mine > curves.csv
  linformer tensorboard-export runs/a runs/b --out curves.csv")]
pub struct ExportArgs {
    /// Runs, or folders with runs in them
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Write here instead of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Curves as CSV.
pub fn export(args: &ExportArgs) -> Result<()> {
    let runs = find(&args.runs)?;
    if runs.is_empty() {
        bail!("no run is here; expected runs, or folders with runs in them (see linformer list)");
    }
    match &args.out {
        None => curves::write(&runs, &mut std::io::stdout().lock()),
        Some(file) => {
            let mut bytes = Vec::new();
            curves::write(&runs, &mut bytes)?;
            durable::replace(file, &bytes).with_context(|| file.display().to_string())
        }
    }
}

pub fn list(args: ListArgs) -> Result<()> {
    let dirs = if args.dirs.is_empty() { vec![PathBuf::from("runs")] } else { args.dirs };
    let runs = find(&dirs)?;
    print(args.json, || list_json(&runs), || table(&runs))
}

pub fn compare(args: CompareArgs) -> Result<()> {
    let runs = find(&args.runs)?;
    if runs.len() < 2 {
        return Err(usage(format!("found {} run, expected two or more to compare (see linformer list)", runs.len())).into());
    }
    let comparison = Comparison::of(&runs);
    print(args.json, || comparison.json(), || comparison.text())
}

fn print(json: bool, value: impl FnOnce() -> Value, text: impl FnOnce() -> String) -> Result<()> {
    match json {
        true => out(&(serde_json::to_string_pretty(&value())? + "\n")),
        false => out(&text()),
    }
}
