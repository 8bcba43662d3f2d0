//! `linformer config`: what a config comes to, and the schema of its files.

use super::out;
use crate::config::{json_schema, load};
use crate::experiments;
use anyhow::Result;
use clap::Subcommand;
use serde_json::{json, Map, Value};
use std::path::PathBuf;

#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Every key with its value and where the value came from: a file, the command line, or the default
    #[command(after_help = "Examples:
  linformer config show experiments/demo/pretrain.json
  linformer config show mine.json model.attention.k=16 --set-only
  linformer config show mine.json --json | jq .config.train")]
    Show {
        /// Config (JSON)
        config: PathBuf,
        /// Keys to set, such as model.attention.k=64
        overrides: Vec<String>,
        /// Leave out what is the default
        #[arg(long)]
        set_only: bool,
        /// As JSON: {"config": the resolved config, "origins": {key: where from}}
        #[arg(long)]
        json: bool,
    },
    /// The JSON Schema of experiment files, for editors
    #[command(after_help = "Examples:
  linformer config schema > linformer.schema.json          # then, in a config: \"$schema\": \"linformer.schema.json\"
  linformer config schema --sweep > sweep.schema.json
  linformer config schema --efficiency > efficiency.schema.json")]
    Schema {
        /// Of sweep files
        #[arg(long)]
        sweep: bool,
        /// Of the files that `linformer efficiency` reads
        #[arg(long, conflicts_with = "sweep")]
        efficiency: bool,
    },
}

pub fn run(command: ConfigCommand) -> Result<()> {
    match command {
        ConfigCommand::Schema { sweep, efficiency } => {
            let schema = match (sweep, efficiency) {
                (true, _) => json_schema::sweep(),
                (_, true) => experiments::efficiency::schema(),
                _ => json_schema::config(),
            };
            out(&(serde_json::to_string_pretty(&schema)? + "\n"))
        }
        ConfigCommand::Show { config, overrides, set_only, json } => show(&config, &overrides, set_only, json),
    }
}

fn show(path: &std::path::Path, overrides: &[String], set_only: bool, json: bool) -> Result<()> {
    let (config, origins) = load::load(path, overrides)?;
    let resolved = serde_json::to_value(&config)?;
    let keys = load::all_keys(resolved.as_object().unwrap_or(&Map::new()), "");
    let origin = |key: &str| origins.exact(key).unwrap_or("default").to_string();
    let rows: Vec<(String, String)> =
        keys.into_iter().map(|key| (origin(&key), key)).filter(|(o, _)| !set_only || o != "default").map(|(o, k)| (k, o)).collect();
    if json {
        let origins: Map<String, Value> = rows.into_iter().map(|(key, origin)| (key, origin.into())).collect();
        return out(&(serde_json::to_string_pretty(&json!({"config": resolved, "origins": origins}))? + "\n"));
    }
    let value = |key: &str| resolved.pointer(&format!("/{}", key.replace('.', "/"))).map(Value::to_string).unwrap_or_default();
    let left: Vec<String> = rows.iter().map(|(key, _)| format!("{key} = {}", value(key))).collect();
    let width = left.iter().map(|l| l.chars().count()).filter(|w| *w <= 60).max().unwrap_or(0);
    let lines = left.iter().zip(&rows).map(|(left, (_, origin))| format!("{left:<width$}  # {origin}\n"));
    out(&lines.collect::<String>())
}
