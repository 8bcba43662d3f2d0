//! `spectrum`, `theorems`, `shift`, `data listops`: what they take, and their options.

use crate::data::listops::{generate, Shape};
use crate::data::DataError;
use crate::experiments::probe::Source;
use crate::experiments::{shift, spectrum, theorems, Finished};
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

/// A model, and the text to look at it with.
#[derive(Args)]
pub struct Look {
    /// A run's folder, or one of its checkpoints
    model: PathBuf,
    /// Text files or folders [default: the held-out text of the model's corpus, or the scored rows of its task]
    #[arg(long, num_args = 1..)]
    data: Vec<PathBuf>,
    /// Where to write
    #[arg(long)]
    out: PathBuf,
    /// Take the model's shape alone, with random weights drawn from this seed
    #[arg(long, value_name = "SEED")]
    untrained: Option<u64>,
    /// Tokens of a sequence [default: the model's n]
    #[arg(long)]
    length: Option<i64>,
    /// Share of the tokens that are masked [default: as in the model's evaluation]
    #[arg(long)]
    mask: Option<f64>,
}

impl Look {
    fn source(&self, sequences: usize) -> Source {
        Source { data: self.data.clone(), sequences, length: self.length, mask: self.mask }
    }
}

#[derive(Args)]
#[command(after_help = "Examples:
  linformer spectrum runs/full --out runs/spectrum
  linformer spectrum runs/full --out runs/random --untrained 0     # its shape with random weights")]
pub struct SpectrumArgs {
    #[command(flatten)]
    look: Look,
    #[arg(long, default_value_t = 500)]
    sequences: usize,
    /// Singular values counted as large [default: a quarter of the length, the paper's 128 of 512]
    #[arg(long)]
    rank: Option<i64>,
    /// Also write the k leading singular directions of each layer, for run.projections_from
    #[arg(long, value_name = "K", num_args = 1..)]
    projections: Vec<i64>,
}

#[derive(Args)]
#[command(after_help = "Examples:
  linformer theorems runs/full --out runs/theorems -k 8 16 32")]
pub struct TheoremsArgs {
    #[command(flatten)]
    look: Look,
    /// Half of them to fit E and F on, half to measure on
    #[arg(long, default_value_t = 32)]
    sequences: usize,
    /// Projected dimensions [default: n/16, n/8, n/4, n/2]
    #[arg(short, num_args = 1..)]
    k: Vec<i64>,
    /// Adam steps for the learned E and F, at each of two rates
    #[arg(long, default_value_t = 300)]
    steps: i64,
    /// Of the random matrices
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub fn spectrum(args: SpectrumArgs) -> Result<(String, Finished)> {
    spectrum::run(&spectrum::Options {
        source: args.look.source(args.sequences),
        model: args.look.model,
        untrained: args.look.untrained,
        rank: args.rank,
        projections: args.projections,
        out: args.look.out,
    })
}

pub fn theorems(args: TheoremsArgs) -> Result<(String, Finished)> {
    theorems::run(&theorems::Options {
        source: args.look.source(args.sequences),
        model: args.look.model,
        untrained: args.look.untrained,
        k: args.k,
        steps: args.steps,
        seed: args.seed,
        out: args.look.out,
    })
}

#[derive(Args)]
#[command(after_help = "Examples:
  linformer shift runs/full runs/k16 --out runs/shift --by 0,1,2,4")]
pub struct ShiftArgs {
    /// Folders of pretrained runs, or of their checkpoints
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// Text files or folders [default: the held-out text of each model's corpus]
    #[arg(long, num_args = 1..)]
    data: Vec<PathBuf>,
    /// Where to write
    #[arg(long)]
    out: PathBuf,
    /// Places to move the text by
    #[arg(long, value_delimiter = ',', default_value = "0,1,2,4,8,16")]
    by: Vec<i64>,
    #[arg(long, default_value_t = 256)]
    sequences: usize,
    /// Tokens of a sequence [default: the model's n less the furthest shift]
    #[arg(long)]
    length: Option<i64>,
}

pub fn shift(args: ShiftArgs) -> Result<(String, Finished)> {
    let source = Source { data: args.data, sequences: args.sequences, length: args.length, mask: None };
    shift::run(&shift::Options { models: args.models, source, by: args.by, out: args.out })
}

#[derive(Args)]
#[command(after_help = "Examples:
  linformer data listops data/lra/ListOps
  linformer data listops small/ListOps --train-rows 2000 --min-length 20 --max-length 60")]
pub struct ListopsArgs {
    /// Folder for the rows: ListOps below data.task_dir
    out: PathBuf,
    #[arg(long, default_value_t = 96_000)]
    train_rows: usize,
    #[arg(long, default_value_t = 2_000)]
    dev_rows: usize,
    #[arg(long, default_value_t = 2_000)]
    test_rows: usize,
    /// Every expression has more tokens
    #[arg(long, default_value_t = 500)]
    min_length: usize,
    /// Every expression has fewer tokens
    #[arg(long, default_value_t = 2_000)]
    max_length: usize,
    #[arg(long, default_value_t = 10)]
    max_depth: u32,
    #[arg(long, default_value_t = 10)]
    max_arguments: u64,
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub fn listops(args: &ListopsArgs) -> Result<Vec<String>, DataError> {
    let &ListopsArgs { train_rows, dev_rows, test_rows, min_length, max_length, max_depth, max_arguments, seed, .. } = args;
    generate(&Shape { max_depth, max_arguments, min_length, max_length, train_rows, dev_rows, test_rows, seed }, &args.out)
}
