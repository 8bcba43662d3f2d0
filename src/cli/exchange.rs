//! `linformer import` and `linformer export`.

use super::{out, say};
use crate::config::load::usage;
use crate::config::{ProjectionInit, Sharing};
use crate::exchange::export::{self, As, Dtype, Trained};
use crate::exchange::import::{self, From, Request};
use crate::exchange::least_squares::Settings;
use crate::exchange::project::{AsLinformer, Start};
use crate::experiments::parent::Parent;
use crate::experiments::Finished;
use anyhow::{bail, Result};
use clap::builder::RangedU64ValueParser;
use clap::Args;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io::IsTerminal;
use std::path::PathBuf;

const LEAST_SQUARES: &str = "least-squares";

#[derive(Args)]
#[command(after_help = "Examples:
  linformer import roberta-base/ --out models/roberta-base
  linformer import roberta-base/ --out models/roberta-k128 --projected-dimension 128 --text my-text.txt")]
pub struct ImportArgs {
    /// A folder with config.json, model.safetensors (or shards and their index) and the tokenizer's files; of fairseq, a .safetensors file
    source: PathBuf,
    /// Folder for the model; it must not exist
    #[arg(long)]
    out: PathBuf,
    /// Whose checkpoint it is
    #[arg(long, value_enum, default_value = "hugging-face")]
    from: From,
    /// Tokenizer file or folder [default: beside the weights]
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// fairseq: heads of a layer [default: hidden size / 64]
    #[arg(long)]
    num_attention_heads: Option<i64>,
    /// Make it a Linformer with this projected dimension k
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(i64).range(1..))]
    projected_dimension: Option<i64>,
    /// Start of E and F: least-squares (on --text), jl, mean_pool, xavier or normal_0.02
    #[arg(long, requires = "projected_dimension", default_value = LEAST_SQUARES, value_parser = init)]
    projection_init: Start,
    /// Which projections are one: none, headwise, key_value or layerwise
    #[arg(long, requires = "projected_dimension", default_value = "headwise", value_parser = word::<Sharing>)]
    sharing: Sharing,
    /// least-squares: text whose activations E and F are fitted on
    #[arg(long, requires = "projected_dimension", value_name = "FILE")]
    text: Option<PathBuf>,
    /// least-squares: sequences read from the text, an eighth of which measures the fit
    #[arg(long, requires = "text", default_value_t = Settings::default().sequences, value_parser = RangedU64ValueParser::<usize>::new().range(8..))]
    fit_sequences: usize,
    /// least-squares: steps of the fit
    #[arg(long, requires = "text", default_value_t = Settings::default().steps)]
    fit_steps: usize,
    /// Of the numbers that are drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Args)]
#[command(after_help = "Examples:
  linformer export runs/mine --out out/mine
  linformer export runs/mine --out out/mine-bf16 --dtype bf16")]
pub struct ExportArgs {
    /// A run's folder (its best or newest checkpoint), one of its checkpoints, or an imported model
    model: PathBuf,
    /// Folder to write; it must not exist
    #[arg(long)]
    out: PathBuf,
    /// Classes that a full-attention model is written for
    #[arg(long = "as", value_enum, default_value = "roberta")]
    family: As,
    /// Numbers in the file
    #[arg(long, value_enum, default_value = "fp32")]
    dtype: Dtype,
}

fn word<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|e| e.to_string())
}

/// A start without its text, which another option gives.
fn init(text: &str) -> Result<Start, String> {
    match text {
        LEAST_SQUARES => Ok(Start::LeastSquares { text: PathBuf::new(), settings: Settings::default() }),
        drawn => word::<ProjectionInit>(drawn).map(Start::Drawn).map_err(|e| format!("{e}, or {LEAST_SQUARES}")),
    }
}

pub fn import(args: &ImportArgs) -> Result<Finished> {
    import::must_be_new(&args.out)?;
    let request = Request {
        source: args.source.clone(),
        from: args.from,
        tokenizer: args.tokenizer.clone(),
        num_attention_heads: args.num_attention_heads,
        linformer: args.projected_dimension.map(|k| as_linformer(args, k)).transpose()?,
    };
    let mut progress = |text: &str| {
        if std::io::stderr().is_terminal() {
            say(text);
        }
    };
    let imported = import::import(&request, &mut progress)?;
    imported.write(&args.out)?;
    out(&imported.report.text())?;
    out(&format!("written  {}\n", args.out.display()))?;
    Ok(Finished::Done(Value::Null))
}

fn as_linformer(args: &ImportArgs, k: i64) -> Result<AsLinformer> {
    let start = match &args.projection_init {
        Start::Drawn(init) => Start::Drawn(*init),
        Start::LeastSquares { .. } => {
            let no_text = || usage("--projection-init least-squares needs --text FILE; without a text: --projection-init jl");
            let text = args.text.clone().ok_or_else(no_text)?;
            let settings = Settings { sequences: args.fit_sequences, steps: args.fit_steps, seed: args.seed, ..Settings::default() };
            Start::LeastSquares { text, settings }
        }
    };
    Ok(AsLinformer { k, sharing: args.sharing, start, seed: args.seed })
}

pub fn export(args: &ExportArgs) -> Result<Finished> {
    let parent = Parent::open(&args.model)?;
    let config = parent.config()?;
    let Some(checkpoint) = parent.checkpoint() else {
        bail!(
            "{}: a Hugging Face checkpoint already; linformer import makes a model of it that can be exported otherwise",
            args.model.display()
        )
    };
    let trained = Trained { run: &parent.run, config: &config, checkpoint, tokenizer: &parent.tokenizer };
    let written = export::export(&trained, args.family, args.dtype, &args.out)?;
    let remote = if written.remote_code { ", to be loaded with trust_remote_code=True" } else { "" };
    out(&format!("written  {}: {}, {} tensors{remote}\n", args.out.display(), written.architecture, written.tensors))?;
    Ok(Finished::Done(Value::Null))
}
