//! `linformer data ...`: what there is to learn from.

use super::{fetch, out, say, study, train::check_kind};
use crate::config::load;
use crate::data::derive::{derive, Amounts};
use crate::data::prepare::{open_verified, prepare, prepared_folder, SplitCounts};
use crate::experiments::parent::Parent;
use crate::experiments::{self, Finished};
use crate::table::align;
use anyhow::{bail, Result};
use clap::Subcommand;
use serde_json::Value;
use std::path::PathBuf;

#[derive(Subcommand)]
pub enum DataCommand {
    /// Tokenize the corpus of a config
    #[command(after_help = "Examples:
  linformer data prepare experiments/demo/pretrain.json")]
    Prepare { config: PathBuf, overrides: Vec<String> },
    /// What there is to learn from, and whether it is here
    #[command(after_help = "Examples:
  linformer data list
  linformer data list --json")]
    List(fetch::ListArgs),
    /// Bring public data: checked, unpacked safely, whole or absent
    #[command(after_help = "Examples:
  linformer data fetch sst2 rte")]
    Fetch(fetch::FetchArgs),
    /// Compare every byte of a prepared corpus with its hashes
    #[command(after_help = "Examples:
  linformer data verify experiments/demo/pretrain.json")]
    Verify { config: PathBuf, overrides: Vec<String> },
    /// Print the first examples of a config as the model sees them: tokens, ids, mask, label
    #[command(after_help = "Examples:
  linformer data show experiments/demo/pretrain.json -n 1")]
    Show {
        config: PathBuf,
        overrides: Vec<String>,
        #[arg(short = 'n', long, default_value_t = 3)]
        count: usize,
    },
    /// Generate Long Range Arena's ListOps: task rows and a tokenizer
    #[command(after_help = "Examples:
  linformer data listops data/glue/ListOps                  # as published
  linformer data listops small --train-rows 2000 --min-length 20 --max-length 100")]
    Listops(study::ListopsArgs),
    /// Derive the two embedded tasks from the corpus of a pretraining config, split by its held-out documents
    #[command(after_help = "Examples:
  linformer data derive experiments/demo/pretrain.json runs/demo/tasks --words 18")]
    Derive {
        config: PathBuf,
        /// Folder for the tasks
        out: PathBuf,
        #[arg(long, default_value_t = 12000)]
        train_rows: usize,
        #[arg(long, default_value_t = 1000)]
        dev_rows: usize,
        /// Words of a passage; each of a pair has half as many
        #[arg(long, default_value_t = 48)]
        words: usize,
    },
}

pub fn run(command: DataCommand) -> Result<Finished> {
    match command {
        DataCommand::Prepare { config, overrides } => {
            let (config, origins) = load::load(&config, &overrides)?;
            check_kind(&config, &origins, false)?;
            let prepared = prepare(&config.data, Parent::tokenizer_of(&config)?.as_deref())?;
            let meta = &prepared.meta;
            let row =
                |name: &str, c: &SplitCounts| vec![name.to_string(), c.documents.to_string(), c.tokens.to_string(), c.bytes.to_string()];
            let header = ["split", "documents", "tokens", "bytes"].map(str::to_string).to_vec();
            out(&align(vec![header, row("train", &meta.train), row("validation", &meta.validation)]))?;
            let dropped = Some(meta.found.dropped()).filter(|d| !d.is_empty()).map(|d| format!("; left out: {d}")).unwrap_or_default();
            let documents = if meta.found.documents == 1 { "1 document".into() } else { format!("{} documents", meta.found.documents) };
            out(&format!("{documents} in {} files by data.document={}{dropped}\n", meta.found.files, config.data.document))?;
            meta.found.first_invalid.iter().for_each(|place| say(&format!("left out: {place}")));
            out(&format!("vocabulary {}; {}\n", meta.vocab_size, prepared.folder.display()))?;
        }
        DataCommand::List(args) => fetch::list(&args)?,
        DataCommand::Fetch(args) => fetch::run(&args)?,
        DataCommand::Verify { config, overrides } => {
            let (config, origins) = load::load(&config, &overrides)?;
            check_kind(&config, &origins, false)?;
            let folder = prepared_folder(&config.data, Parent::tokenizer_of(&config)?.as_deref())?;
            if !folder.exists() {
                bail!("{}: not prepared yet (linformer data prepare)", folder.display());
            }
            let prepared = open_verified(&folder)?;
            let tokens = prepared.train.len() + prepared.validation.len();
            out(&format!(
                "{}: {tokens} ids in {} shards, all as written\n",
                folder.display(),
                prepared.meta.train.shards + prepared.meta.validation.shards
            ))?;
        }
        DataCommand::Show { config, overrides, count } => {
            let (config, origins) = load::load(&config, &overrides)?;
            out(&experiments::show::run(config, &origins, count)?)?;
        }
        DataCommand::Listops(args) => {
            for line in study::listops(&args)? {
                out(&(line + "\n"))?;
            }
        }
        DataCommand::Derive { config, out: folder, train_rows, dev_rows, words } => {
            let (config, origins) = load::load(&config, &[])?;
            check_kind(&config, &origins, false)?;
            for line in derive(&config.data, Amounts { train_rows, dev_rows, words }, &folder)? {
                out(&(line + "\n"))?;
            }
        }
    }
    Ok(Finished::Done(Value::Null))
}
