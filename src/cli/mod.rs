//! What a person types. Every command is a thin call into [`crate::experiments`]; results go to stdout, the rest to stderr.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted with a checkpoint written.

mod config;
mod data;
mod doctor;
mod exchange;
mod fetch;
mod ranks;
mod runs;
mod serve;
mod shell;
mod study;
mod train;

use crate::config::sweep::Sweep;
use crate::config::{load, Precision};
use crate::distributed::{joined, World};
use crate::experiments::efficiency::Efficiency;
use crate::experiments::info::{describe, Speed};
use crate::experiments::planner::{plan, Cluster};
use crate::experiments::report::Report;
use crate::experiments::sweep::{slurm_script, Share};
use crate::experiments::{self, Finished};
use crate::native::panics;
use crate::native::process::leave;
use crate::train::interrupt::Interrupt;
use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use serde_json::Value;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const INTERRUPTED: u8 = 130;

const AFTER_HELP: &str = "Examples:
  linformer pretrain experiments/demo/pretrain.json model.attention.k=16 run.dir=runs/k16
  linformer fill-mask runs/k16 'It is a truth universally <mask>.'
  linformer list

Results go to standard output, everything else to standard error. NO_COLOR=1 turns colours off.

Exit codes:
  0    done
  1    failed; one line on standard error says where, what was found, and what to do
  2    wrong usage, or a config that was refused
  130  interrupted, with a checkpoint written: go on with --resume auto";

#[derive(Parser)]
#[command(
    name = "linformer",
    version,
    about = "Reproduce the Linformer paper: masked-LM pretraining, fine-tuning, and sweeps over the projected dimension k",
    after_help = AFTER_HELP
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Pretrain a masked language model
    #[command(after_help = "Examples:
  linformer pretrain mine.json --dry-run                    # builds everything, makes two steps, keeps nothing
  linformer pretrain mine.json model.attention.k=16 run.dir=runs/k16
  linformer pretrain mine.json --resume auto                # begins, or goes on with what is there
  linformer pretrain mine.json --profile 10 train.max_steps=20 run.dir=/tmp/profile
  linformer pretrain mine.json run.dir=runs/b train.learning_rate=1e-4 --fork runs/a/checkpoints/step-00001000")]
    Pretrain(train::RunArgs),
    /// Fine-tune on a task
    #[command(after_help = "Examples:
  linformer finetune fine.json run.init_from=runs/k16
  linformer finetune experiments/demo/finetune.json data.task=period run.init_from=runs/k16 train.seed=1 run.dir=runs/period-1")]
    Finetune(train::RunArgs),
    /// Run a command as several processes of this machine: launch --nproc 4 pretrain CONFIG
    #[command(after_help = "Examples:
  linformer launch --nproc 2 pretrain mine.json
  linformer launch --nproc 4 pretrain mine.json --resume auto train.max_steps=2000")]
    Launch(ranks::LaunchArgs),
    /// Run every config of a sweep file, skipping what is done
    #[command(after_help = "Examples:
  linformer sweep experiments/small/k-sweep.json
  linformer sweep my-sweep.json train.max_steps=200         # a trial; start it again to go on after an interruption")]
    Sweep {
        /// Sweep file (JSON)
        file: PathBuf,
        /// Keys to set in every run, such as train.max_steps=100
        overrides: Vec<String>,
        /// Runs at a time; on GPUs, each takes one
        #[arg(long, default_value = "1")]
        at_once: NonZeroUsize,
        /// Make this run only, by its number from 0: what a job of an array does
        #[arg(long)]
        only: Option<usize>,
        /// Print a Slurm batch script, an array with one job a run, and run nothing
        #[arg(long, conflicts_with_all = ["only", "at_once"])]
        emit_slurm: bool,
        /// Say what it comes to, and run nothing
        #[arg(long)]
        dry_run: bool,
        /// Write results.json of the runs that are done, and run nothing
        #[arg(long, conflicts_with = "dry_run")]
        collect: bool,
        /// Folder for results.json [default: the file's, if no keys are set]
        #[arg(long, value_name = "DIR")]
        results: Option<PathBuf>,
    },
    /// Labels for a file's rows or lines with a fine-tuned model, or GLUE's submission files of its test split
    Predict(serve::PredictArgs),
    /// Guess the tokens behind <mask> with a pretrained model
    FillMask(serve::FillMaskArgs),
    /// Texts to vectors, in a safetensors or npy file
    Embed(serve::EmbedArgs),
    /// Metrics of a fine-tuned model on a task's scored splits, as JSON
    Evaluate(serve::EvaluateArgs),
    /// Look for the module where a run's numbers stopped being finite
    #[command(after_help = "Examples:
  linformer replay runs/mine/nonfinite-00000120.json
  linformer replay runs/mine/nonfinite-00000120.json --precision fp32")]
    Replay {
        /// nonfinite-STEP.json in a run's folder
        incident: PathBuf,
        /// Arithmetic, to see whether another one helps: fp32 or bf16 [default: the run's]
        #[arg(long, value_parser = precision)]
        precision: Option<Precision>,
    },
    /// Tables, plots and report.html from finished runs; or, of a folder of results, the report on the paper
    #[command(after_help = "Examples:
  linformer report runs/mine                                # table, plots and report.html in runs/mine
  linformer report runs/pretrain runs/finetune --out report
  linformer report experiments/results                      # the whole paper beside ours, from committed numbers")]
    Report {
        /// Folders with runs in them
        #[arg(required = true)]
        dirs: Vec<PathBuf>,
        /// Where to write [default: the first folder]
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Time and memory against the sequence length (paper, Table 3)
    #[command(after_help = "Examples:
  linformer efficiency experiments/small/efficiency.json")]
    Efficiency {
        /// Config (JSON)
        config: PathBuf,
        overrides: Vec<String>,
        /// Memory of one cell, in a process of its own
        #[arg(long, hide = true, value_name = "N,VARIANT")]
        cell: Option<String>,
    },
    /// Singular values of attention matrices (paper, Figure 1)
    #[command(after_help = "Examples:
  linformer spectrum runs/full --out spectrum
  linformer spectrum runs/full --out spectrum --projections 16 32 # E and F to start from: run.projections_from")]
    Spectrum(study::SpectrumArgs),
    /// Error of the paper's approximations of attention, beside its bound (theorems 1 and 2)
    #[command(after_help = "Examples:
  linformer theorems runs/full --out theorems -k 8 16 32")]
    Theorems(study::TheoremsArgs),
    /// Loss on text moved by some places: how bound to positions is a model?
    #[command(after_help = "Examples:
  linformer shift runs/full runs/k32 --out shift --by 0,1,8")]
    Shift(study::ShiftArgs),
    /// Every number that follows from a config, before anything runs
    #[command(after_help = "Examples:
  linformer info experiments/small/base.json model.attention.k=64
  linformer info mine.json --mfu 0.4 --peak-tflops 312      # the time on another device")]
    Info {
        /// Config (JSON)
        config: PathBuf,
        overrides: Vec<String>,
        /// Share of the device's peak that training reaches
        #[arg(long, default_value_t = 0.4)]
        mfu: f64,
        /// Peak of the device in TFLOP/s [default: measured here]
        #[arg(long)]
        peak_tflops: Option<f64>,
        /// Plan for a cluster: 8xH100, 64xV100-16, or any 4x300:40 (TFLOP/s and GiB of a GPU)
        #[arg(long, value_name = "COUNTxGPU", conflicts_with = "peak_tflops")]
        cluster: Option<Cluster>,
    },
    /// A Hugging Face or fairseq checkpoint becomes a model that runs start from, full attention or made a Linformer
    #[command(after_help = "Examples:
  linformer import roberta-base --out models/roberta
  linformer import roberta-base --out models/roberta-k128 --projected-dimension 128 --projection-init jl")]
    Import(exchange::ImportArgs),
    /// A run or imported model becomes a folder that transformers loads
    #[command(after_help = "Examples:
  linformer export runs/k32 --out k32-for-transformers
  linformer export runs/full --out full --as bert --dtype bf16")]
    Export(exchange::ExportArgs),
    /// Time the sum of gradients between the ranks of a job, as JSON lines
    #[command(after_help = "Examples:
  linformer launch --nproc 4 collectives
  linformer launch --nproc 2 collectives --mib 16")]
    Collectives(ranks::CollectivesArgs),
    /// What 1 to 1,024 ranks would bring, by a model of computing and communication
    #[command(after_help = "Examples:
  linformer scaling experiments/paper/pretrain.json --peak-tflops 989
  linformer scaling mine.json --peak-tflops 0.3 --network 50 1.2   # 50 us before the first byte, 1.2 GB/s")]
    Scaling(ranks::ScalingArgs),
    /// Corpora and tasks
    #[command(subcommand)]
    Data(data::DataCommand),
    /// What a config comes to, and the schema of its files
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Runs in a table: kind, status, step, k, score, speed
    List(runs::ListArgs),
    /// Where runs differ: keys and results side by side
    Compare(runs::CompareArgs),
    /// The curves that TensorBoard shows, as CSV
    TensorboardExport(runs::ExportArgs),
    /// What this machine has, and a remedy for what it lacks
    #[command(after_help = "Examples:\n  linformer doctor\n  linformer doctor --json")]
    Doctor {
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// A script that completes commands and flags in your shell
    Completions(shell::CompletionsArgs),
    /// The manual's pages
    Man(shell::ManArgs),
}

/// A command that others have told about, with its exit code.
#[derive(Debug, thiserror::Error)]
#[error("exit code {0}")]
struct Exit(u8);

/// Parses, runs, and turns the result into an exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let code = match run(cli.command) {
        Ok(Finished::Done(_)) => 0,
        Ok(Finished::Interrupted) => {
            say("interrupted; a checkpoint was written, go on with --resume auto");
            INTERRUPTED
        }
        Err(error) if is_broken_pipe(&error) => 0,
        Err(error) => match error.downcast_ref::<Exit>() {
            Some(Exit(code)) => *code,
            None => {
                say(&one_line(&error));
                let wrong_usage = error.chain().any(|e| e.is::<load::ConfigError>());
                if wrong_usage {
                    2
                } else {
                    1
                }
            }
        },
    };
    if joined() {
        // Threads of libtorch may still wait for ranks that never answer.
        leave(code);
    }
    ExitCode::from(code)
}

/// The whole chain on one line, without what a cause repeats of its context.
fn one_line(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if !parts.iter().any(|p| p.contains(&text)) {
            parts.push(text);
        }
    }
    parts.join(": ").replace('\n', " ")
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let is = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    let in_csv = |e: &csv::Error| matches!(e.kind(), csv::ErrorKind::Io(e) if is(e));
    error.chain().any(|e| e.downcast_ref().is_some_and(is) || e.downcast_ref().is_some_and(in_csv))
}

fn run(command: Command) -> Result<Finished> {
    match command {
        Command::Pretrain(args) => train::run(args, false),
        Command::Finetune(args) => train::run(args, true),
        Command::Launch(args) => ranks::launch(args),
        Command::Sweep { file, overrides, at_once, only, emit_slurm, dry_run, collect, results } => {
            let sweep = Sweep::load(&file, &overrides)?;
            if emit_slurm {
                std::fs::create_dir_all(&sweep.dir).with_context(|| sweep.dir.display().to_string())?;
                out(&slurm_script(&sweep, &file, &overrides)?)?;
                return Ok(Finished::Done(Value::Null));
            }
            if dry_run {
                out(&experiments::sweep::describe(&sweep))?;
                return Ok(Finished::Done(Value::Null));
            }
            if collect {
                experiments::sweep::write_results(&sweep, results.as_deref())?;
                return Ok(Finished::Done(Value::Null));
            }
            let interrupt = Interrupt::install()?;
            interrupt.wait_for_checkpoint();
            experiments::sweep::run(&sweep, Share { at_once: at_once.get(), only }, results.as_deref(), &interrupt)
        }
        Command::Replay { incident, precision } => {
            out(&experiments::replay::run(&incident, precision)?)?;
            Ok(Finished::Done(Value::Null))
        }
        Command::Efficiency { config, overrides, cell } => panics::catch(|| efficiency(&config, &overrides, cell.as_deref())),
        Command::Spectrum(args) => printed(panics::catch(|| study::spectrum(args))?),
        Command::Theorems(args) => printed(panics::catch(|| study::theorems(args))?),
        Command::Shift(args) => printed(panics::catch(|| study::shift(args))?),
        Command::Predict(args) => done(serve::predict(args)),
        Command::FillMask(args) => done(serve::fill_mask(args)),
        Command::Embed(args) => done(serve::embed(args)),
        Command::Evaluate(args) => done(serve::evaluate(args)),
        Command::Report { dirs, out } => report(&dirs, out),
        Command::Info { config, overrides, mfu, peak_tflops, cluster } => {
            panics::catch(|| info(&config, &overrides, mfu, peak_tflops, cluster))
        }
        Command::Import(args) => exchange::import(&args),
        Command::Export(args) => exchange::export(&args),
        Command::Collectives(args) => ranks::collectives(&args),
        Command::Scaling(args) => ranks::scaling(&args),
        Command::Data(command) => data::run(command),
        Command::Config(command) => done(config::run(command)),
        Command::List(args) => done(runs::list(args)),
        Command::Compare(args) => done(runs::compare(args)),
        Command::TensorboardExport(args) => done(runs::export(&args)),
        Command::Doctor { json } => done(doctor::run(json)),
        Command::Completions(args) => done(shell::completions(&args)),
        Command::Man(args) => done(shell::man(&args)),
    }
}

/// The table of a measurement to stdout.
fn printed((text, finished): (String, Finished)) -> Result<Finished> {
    out(&text)?;
    Ok(finished)
}

/// Of a command that has no summary.
fn done(result: Result<()>) -> Result<Finished> {
    result.map(|()| Finished::Done(Value::Null))
}

fn precision(text: &str) -> Result<Precision, String> {
    let found = serde_json::from_value(text.into()).ok().filter(|p| *p != Precision::Auto);
    found.ok_or_else(|| "expected fp32 or bf16".into())
}

fn efficiency(config: &Path, overrides: &[String], cell: Option<&str>) -> Result<Finished> {
    let efficiency = Efficiency::load(config, overrides)?;
    if let Some((n, variant)) = cell.and_then(|cell| cell.split_once(',')) {
        out(&format!("{}\n", efficiency.measure_memory(n.parse()?, variant.parse()?)?))?;
        return Ok(Finished::Done(Value::Null));
    }
    let (text, finished) = experiments::efficiency::run(&efficiency, config, overrides)?;
    out(&text)?;
    Ok(finished)
}

fn report(dirs: &[PathBuf], folder: Option<PathBuf>) -> Result<Finished> {
    let runs = Report::read(dirs);
    if let ([dir], None) = (dirs, &folder) {
        let is_study = experiments::study::is_study(dir);
        if is_study && runs.is_err() {
            out(&experiments::study::write(dir)?)?;
            say(&format!("written: {}", dir.join("report.html").display()));
            return Ok(Finished::Done(Value::Null));
        }
        if is_study {
            say(&format!("{}: a report of its runs; results of measurements below it are reported where no runs are", dir.display()));
        }
    }
    let folder = folder.or_else(|| dirs.first().cloned()).context("no folder given")?;
    let text = runs?.write(&folder)?;
    out(&text)?;
    say(&format!("written: {}", folder.join("report.html").display()));
    Ok(Finished::Done(Value::Null))
}

fn info(config: &Path, overrides: &[String], mfu: f64, peak_tflops: Option<f64>, cluster: Option<Cluster>) -> Result<Finished> {
    let (config, origins) = load::load(config, overrides)?;
    if !(mfu > 0.0 && mfu <= 1.0) {
        return Err(load::usage(format!("--mfu: found {mfu}, expected a number above 0, at most 1")).into());
    }
    if let Some(peak) = peak_tflops.filter(|peak| !(*peak > 0.0 && peak.is_finite())) {
        return Err(load::usage(format!("--peak-tflops: found {peak}, expected a number above 0")).into());
    }
    if let Some(cluster) = cluster {
        out(&plan(&config, &origins, &cluster, mfu)?)?;
        return Ok(Finished::Done(Value::Null));
    }
    let peak = match peak_tflops {
        Some(peak) => peak,
        None => {
            let device = experiments::setup::device(&config, &origins, &World::default())?;
            let measured = experiments::setup::measure_peak(device, crate::train::trainer::kind_of(config.train.precision));
            (measured / 1e10).round() / 100.0
        }
    };
    out(&describe(&config, &origins, Speed { mfu, peak_tflops: peak })?)?;
    Ok(Finished::Done(Value::Null))
}

/// To stderr; a reader that went away is no reason to fail.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "linformer: {line}");
}

/// To stdout; a reader that went away is an error of its own kind, not a panic.
fn out(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("standard output")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
