//! `linformer predict`, `fill-mask`, `embed` and `evaluate`: models at work.

use super::{out, say};
use crate::config::load::usage;
use crate::experiments::embed::{Embedder, Pooling};
use crate::experiments::fill_mask::{self, MaskFiller};
use crate::experiments::parent::config_of;
use crate::experiments::predict;
use crate::experiments::pretrain;
use crate::experiments::texts::{InputFormat, Texts};
use crate::train::interrupt::Interrupt;
use crate::train::run::run_of;
use anyhow::{bail, Result};
use clap::Args;
use std::path::{Path, PathBuf};

/// How texts are read.
#[derive(Args)]
pub struct InputArgs {
    /// How FILE is read [default: by its ending; lines]
    #[arg(long, value_enum)]
    input: Option<InputFormat>,
    /// Column of the text in a table
    #[arg(long, value_name = "COLUMN")]
    text: Option<String>,
    /// Column of the second text of a pair
    #[arg(long, value_name = "COLUMN")]
    text_pair: Option<String>,
}

impl InputArgs {
    fn over(self, texts: Texts) -> Texts {
        let InputArgs { input, text, text_pair } = self;
        Texts { format: input.or(texts.format), text: text.unwrap_or(texts.text), text_pair: text_pair.or(texts.text_pair), ..texts }
    }
}

#[derive(Args)]
#[command(after_help = "Examples:
  linformer predict runs/mine new.tsv > labels.tsv         # index, label, probability of every row, in the file's order
  linformer predict runs/mine new.jsonl --text review --format jsonl
  echo \"what a film\" | linformer predict runs/mine -
  linformer predict runs/rte                                # GLUE's submission file of the task's test split")]
pub struct PredictArgs {
    /// A fine-tuned run's folder (its best checkpoint), one of its checkpoints, or a Hugging Face checkpoint
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// TSV, CSV, JSON lines, parquet, plain lines, or - for standard input [default: the task's test split]
    file: Option<PathBuf>,
    #[command(flatten)]
    input: InputArgs,
    /// What is written for a file
    #[arg(long, value_enum, default_value = "tsv")]
    format: predict::Format,
    /// Without FILE: where the submission files go [default: the run's folder, submission]
    #[arg(long, conflicts_with = "file")]
    out: Option<PathBuf>,
    /// Without FILE: another task with the same labels, such as ax for mnli
    #[arg(long, conflicts_with = "file")]
    task: Option<String>,
    /// Keys to set, such as data.task_dir=glue
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

#[derive(Args)]
#[command(after_help = "Examples:
  linformer fill-mask runs/mine 'The ship lay in the <mask>.'
  linformer fill-mask runs/mine 'A <mask> of <mask>' --top-k 3 --json
  linformer fill-mask runs/mine - < sentences.txt > guesses.jsonl   # an object a line")]
pub struct FillMaskArgs {
    /// A pretraining run's folder (its newest checkpoint), one of its checkpoints, or a Hugging Face checkpoint
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// A text with <mask> in it, or - for a text a line from standard input
    text: String,
    /// Guesses for each mask
    #[arg(long, short = 'k', default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    top_k: u64,
    /// As transformers' pipeline has it: score, token, token_str, sequence
    #[arg(long)]
    json: bool,
    /// Keys to set, such as run.device=cuda
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

#[derive(Args)]
#[command(after_help = "Examples:
  linformer embed runs/mine texts.txt --out texts.safetensors
  linformer embed runs/mine rows.jsonl --text body --pooling first --out rows.npy   # numpy.load(\"rows.npy\")")]
pub struct EmbedArgs {
    /// A run's folder, one of its checkpoints, or a Hugging Face checkpoint
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// TSV, CSV, JSON lines, parquet, plain lines, or - for standard input
    file: PathBuf,
    #[command(flatten)]
    input: InputArgs,
    /// What becomes a text's vector
    #[arg(long, value_enum, default_value = "mean")]
    pooling: Pooling,
    /// Where the vectors go: a name that ends in .safetensors (one tensor, embeddings) or .npy; fp32 [texts, hidden_size]
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Keys to set, such as run.device=cuda
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

#[derive(Args)]
#[command(after_help = "Examples:
  linformer evaluate runs/mine                          # the best checkpoint on the task's scored splits, as JSON
  linformer evaluate runs/mnli rte data.task_dir=glue   # another task whose labels are the same
  linformer evaluate runs/mine other.json               # the task that a config describes
  linformer evaluate runs/pretrained                    # a pretrained model: loss and perplexity on its validation documents")]
pub struct EvaluateArgs {
    /// A run's folder (a fine-tuned one's best checkpoint), one of its checkpoints, or a Hugging Face checkpoint
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Another task with the same labels, by its name or a config's, and keys to set, such as data.task_dir=glue
    #[arg(value_name = "[TASK] [KEY=VALUE]...")]
    task_and_overrides: Vec<String>,
    /// Score the training rows instead
    #[arg(long)]
    train: bool,
}

fn fine_tuned(model: &Path, overrides: &[String]) -> Result<predict::Model> {
    let (config, origins) = config_of(model, overrides)?;
    predict::Model::open(model, config, &origins)
}

pub fn predict(args: PredictArgs) -> Result<()> {
    let model = fine_tuned(&args.model, &args.overrides)?;
    match args.file {
        Some(file) => model.predict(&args.input.over(model.texts(&file)), args.format, &mut std::io::stdout().lock()),
        None => {
            let folder = args.out.unwrap_or_else(|| run_of(&args.model).join("submission"));
            model.submit(args.task.as_deref(), &folder)?.iter().try_for_each(|path| out(&format!("{}\n", path.display())))
        }
    }
}

pub fn evaluate(args: EvaluateArgs) -> Result<()> {
    // Sweeps write configs with such names.
    let is_override = |text: &String| text.contains('=') && !Path::new(text).exists();
    let (overrides, tasks): (Vec<String>, Vec<String>) = args.task_and_overrides.into_iter().partition(is_override);
    if let [_, second, ..] = &tasks[..] {
        return Err(usage(format!("found \"{second}\", expected one task and keys of the form key=value")).into());
    }
    let task = tasks.first().map(String::as_str);
    let (config, origins) = config_of(&args.model, &overrides)?;
    let interrupt = Interrupt::default();
    let report = match (&config.data.task, task) {
        (Some(_), task) => predict::Model::open(&args.model, config, &origins)?.evaluate(task, args.train, &interrupt)?,
        (None, _) if args.train => {
            return Err(usage(format!("--train: {} is a pretrained model, expected one that was fine-tuned", args.model.display())).into())
        }
        (None, Some(name)) if !name.ends_with(".json") => {
            bail!("{}: a pretrained model, found the task \"{name}\", expected a config file with a corpus", args.model.display())
        }
        (None, file) => pretrain::evaluate(&args.model, config, &origins, file.map(Path::new), &interrupt)?,
    };
    match report {
        Some(report) => out(&(serde_json::to_string_pretty(&report)? + "\n")),
        None => bail!("interrupted"),
    }
}

pub fn fill_mask(args: FillMaskArgs) -> Result<()> {
    let (config, origins) = config_of(&args.model, &args.overrides)?;
    let filler = MaskFiller::open(&args.model, config, &origins)?;
    let top_k = usize::try_from(args.top_k).unwrap_or(usize::MAX);
    if args.text == "-" {
        return fill_lines(&filler, top_k);
    }
    for masks in filler.fill(&[filler.read(&args.text)?], top_k)? {
        out(&match args.json {
            true => serde_json::to_string_pretty(&fill_mask::to_json(&masks))? + "\n",
            false => fill_mask::to_table(&masks),
        })?;
    }
    Ok(())
}

/// A text a line from standard input, an object a line to standard output; lines before a bad one are answered.
fn fill_lines(filler: &MaskFiller, top_k: usize) -> Result<()> {
    let lines = Texts { path: "-".into(), format: Some(InputFormat::Lines), text: "text".into(), text_pair: None, header: false };
    lines.chunks(|rows| {
        let mut read = Vec::with_capacity(rows.len());
        let mut failed = None;
        for row in &rows {
            match filler.read(&row.text) {
                Ok(text) => read.push(text),
                Err(error) => {
                    let number = row.index.parse::<usize>().unwrap_or_default() + 1;
                    failed = Some(error.context(format!("standard input: line {number}")));
                    break;
                }
            }
        }
        let answers: String = filler.fill(&read, top_k)?.iter().map(|masks| format!("{}\n", fill_mask::to_json(masks))).collect();
        out(&answers)?;
        failed.map_or(Ok(()), Err)
    })
}

pub fn embed(args: EmbedArgs) -> Result<()> {
    let (config, origins) = config_of(&args.model, &args.overrides)?;
    let texts = Texts { path: args.file, format: None, text: "text".into(), text_pair: None, header: true };
    let count = Embedder::open(&args.model, config, &origins, args.pooling)?.embed(&args.input.over(texts), &args.out)?;
    say(&format!("{count} vectors written: {}", args.out.display()));
    Ok(())
}
