//! What a person types. Every command is a thin call into [`crate::experiments`]; results go to stdout, the rest to stderr.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted with a checkpoint written.

mod doctor;
mod fetch;

use crate::config::sweep::Sweep;
use crate::config::{load, Config, Origins, Precision, Ranks};
use crate::data::derive::{derive, Amounts};
use crate::data::prepare::{open_verified, prepare, prepared_folder};
use crate::distributed::launch::{self, Launch};
use crate::distributed::place::Place;
use crate::distributed::{joined, World, WorldError};
use crate::experiments::efficiency::Efficiency;
use crate::experiments::info::{describe, Speed};
use crate::experiments::report::Report;
use crate::experiments::scaling::{self, Machine, Network};
use crate::experiments::sweep::{slurm_script, Share};
use crate::experiments::{self, predict, Finished, Start};
use crate::native::process::leave;
use crate::table::align;
use crate::train::interrupt::Interrupt;
use crate::train::run::{run_of, Resume};
use anyhow::{bail, Context, Result};
use clap::{Args, Parser, Subcommand};
use serde_json::Value;
use std::io::Write;
use std::num::NonZeroUsize;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const INTERRUPTED: u8 = 130;

#[derive(Parser)]
#[command(
    name = "linformer",
    version,
    about = "Reproduce the Linformer paper: masked-LM pretraining, fine-tuning, and sweeps over the projected dimension k"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Pretrain a masked language model
    Pretrain(RunArgs),
    /// Fine-tune on a task
    Finetune(RunArgs),
    /// Run a command as several processes of this machine: launch --nproc 4 pretrain CONFIG
    Launch {
        /// Ranks
        #[arg(long)]
        nproc: NonZeroUsize,
        /// Folder for the logs of the ranks but the first
        #[arg(long, default_value = "runs/ranks")]
        logs: PathBuf,
        /// pretrain or finetune, with its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        arguments: Vec<String>,
    },
    /// Run every config of a sweep file, skipping what is done
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
    },
    /// Predict with a fine-tuned run: GLUE's submission files of its test split, or a file's rows or lines
    Predict {
        /// A run's folder (its best checkpoint), or one of its checkpoints
        run: PathBuf,
        /// TSV, CSV, JSON lines, parquet, plain lines, or - for standard input [default: the task's test split]
        file: Option<PathBuf>,
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
    },
    /// Metrics of a fine-tuned run on its scored splits, as JSON
    Evaluate {
        /// A run's folder (its best checkpoint), or one of its checkpoints
        run: PathBuf,
        /// Keys to set, such as data.task_dir=glue
        overrides: Vec<String>,
        /// Score the training rows instead
        #[arg(long)]
        train: bool,
    },
    /// Look for the module where a run's numbers stopped being finite
    Replay {
        /// nonfinite-STEP.json in a run's folder
        incident: PathBuf,
        /// Arithmetic, to see whether another one helps: fp32 or bf16 [default: the run's]
        #[arg(long, value_parser = precision)]
        precision: Option<Precision>,
    },
    /// Tables, plots and report.html from finished runs
    Report {
        /// Folders with runs in them
        #[arg(required = true)]
        dirs: Vec<PathBuf>,
        /// Where to write [default: the first folder]
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Time and memory against the sequence length (paper, Table 3)
    Efficiency {
        /// Config (JSON)
        config: PathBuf,
        overrides: Vec<String>,
        /// Memory of one cell, in a process of its own
        #[arg(long, hide = true, value_name = "N,VARIANT")]
        cell: Option<String>,
    },
    /// Every number that follows from a config, before anything runs
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
    },
    /// Time the sum of gradients between the ranks of a job, as JSON lines: launch --nproc 4 collectives
    Collectives {
        /// The largest sum
        #[arg(long, default_value_t = 64)]
        mib: usize,
        #[arg(long, default_value = "9")]
        repetitions: NonZeroUsize,
    },
    /// What 1 to 1,024 ranks would bring, by a model of computing and communication
    Scaling {
        /// Config (JSON)
        config: PathBuf,
        overrides: Vec<String>,
        /// Share of the device's peak that training reaches
        #[arg(long, default_value_t = 0.4)]
        mfu: f64,
        /// Peak of a rank's device in TFLOP/s
        #[arg(long)]
        peak_tflops: f64,
        /// A network of your own: microseconds before the first byte, and GB/s of a rank [default: four usual ones]
        #[arg(long, num_args = 2, value_names = ["ALPHA_US", "BETA_GBS"])]
        network: Vec<f64>,
    },
    /// Corpora and tasks
    #[command(subcommand)]
    Data(DataCommand),
    /// What this machine has, and a remedy for what it lacks
    Doctor,
}

#[derive(Subcommand)]
enum DataCommand {
    /// Tokenize the corpus of a config
    Prepare { config: PathBuf, overrides: Vec<String> },
    /// What there is to learn from, and whether it is here
    List(fetch::ListArgs),
    /// Bring public data: checked, unpacked safely, whole or absent
    Fetch(fetch::FetchArgs),
    /// Compare every byte of a prepared corpus with its hashes
    Verify { config: PathBuf, overrides: Vec<String> },
    /// Print the first examples of a config as the model sees them: tokens, ids, mask, label
    Show {
        config: PathBuf,
        overrides: Vec<String>,
        #[arg(short = 'n', long, default_value_t = 3)]
        count: usize,
    },
    /// Derive the two embedded tasks from the corpus of a pretraining config, split by its held-out documents
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

#[derive(Args)]
struct RunArgs {
    /// Config (JSON)
    config: PathBuf,
    /// Keys to set, such as model.attention.k=64
    overrides: Vec<String>,
    /// auto: go on with what is in the run's folder; never: refuse it; or a checkpoint's folder
    #[arg(long, default_value = "never")]
    resume: String,
    /// Start a new run from a checkpoint of another run, under this config
    #[arg(long, value_name = "CHECKPOINT", conflicts_with = "resume")]
    fork: Option<PathBuf>,
    /// Build everything and run two steps; only the prepared corpus is kept
    #[arg(long)]
    dry_run: bool,
    /// Do not print the summary
    #[arg(long)]
    quiet: bool,
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
    error.chain().any(|e| e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe))
}

fn run(command: Command) -> Result<Finished> {
    match command {
        Command::Pretrain(args) => train(args, false),
        Command::Finetune(args) => train(args, true),
        Command::Launch { nproc, logs, arguments } => {
            let interrupt = Interrupt::install()?;
            interrupt.wait_for_checkpoint();
            match launch::run(&Launch { count: nproc.get(), logs, arguments }, &interrupt)? {
                0 => Ok(Finished::Done(Value::Null)),
                INTERRUPTED => Ok(Finished::Interrupted),
                code => Err(Exit(code).into()),
            }
        }
        Command::Sweep { file, overrides, at_once, only, emit_slurm } => {
            let sweep = Sweep::load(&file, &overrides)?;
            if emit_slurm {
                std::fs::create_dir_all(&sweep.dir).with_context(|| sweep.dir.display().to_string())?;
                out(&slurm_script(&sweep, &file, &overrides)?)?;
                return Ok(Finished::Done(Value::Null));
            }
            let interrupt = Interrupt::install()?;
            interrupt.wait_for_checkpoint();
            experiments::sweep::run(&sweep, Share { at_once: at_once.get(), only }, &interrupt)
        }
        Command::Replay { incident, precision } => {
            out(&experiments::replay::run(&incident, precision)?)?;
            Ok(Finished::Done(Value::Null))
        }
        Command::Efficiency { config, overrides, cell } => efficiency(&config, &overrides, cell.as_deref()),
        Command::Predict { run, file, format, out: folder, task, overrides } => {
            let (model, folder) = (fine_tuned(&run, &overrides)?, folder.unwrap_or_else(|| run_of(&run).join("submission")));
            match file {
                Some(file) => model.predict(&file, format, &mut std::io::stdout().lock())?,
                None => {
                    for path in model.submit(task.as_deref(), &folder)? {
                        out(&format!("{}\n", path.display()))?;
                    }
                }
            }
            Ok(Finished::Done(Value::Null))
        }
        Command::Evaluate { run, overrides, train } => {
            match fine_tuned(&run, &overrides)?.evaluate(train, &Interrupt::default())? {
                Some(report) => out(&(serde_json::to_string_pretty(&report)? + "\n"))?,
                None => bail!("interrupted"),
            }
            Ok(Finished::Done(Value::Null))
        }
        Command::Report { dirs, out } => report(&dirs, out),
        Command::Info { config, overrides, mfu, peak_tflops } => info(&config, &overrides, mfu, peak_tflops),
        Command::Collectives { mib, repetitions } => collectives(mib << 20, repetitions.get()),
        Command::Scaling { config, overrides, mfu, peak_tflops, network } => {
            let (config, origins) = load::load(&config, &overrides)?;
            let networks = match network[..] {
                [alpha, beta] => vec![Network { name: "--network".into(), alpha: alpha / 1e6, beta: beta * 1e9 }],
                _ => Network::usual(),
            };
            if [mfu, peak_tflops].iter().chain(networks.iter().flat_map(|n| [&n.alpha, &n.beta])).any(|v| !(*v > 0.0 && v.is_finite())) {
                bail!("--mfu, --peak-tflops and --network: expected numbers above 0");
            }
            out(&scaling::describe(&config, &origins, &Machine { mfu, peak_tflops, networks })?)?;
            Ok(Finished::Done(Value::Null))
        }
        Command::Data(command) => data(command),
        Command::Doctor => doctor::run(),
    }
}

/// A fine-tuned model, under its run's config with some keys set anew.
fn fine_tuned(run: &Path, overrides: &[String]) -> Result<predict::Model> {
    let file = run_of(run).join("config.json");
    if !file.exists() {
        bail!("{}: no such run; expected the folder of a run or of one of its checkpoints", run.display());
    }
    let (config, origins) = load::load(&file, overrides)?;
    predict::Model::open(run, config, &origins)
}

fn train(args: RunArgs, finetune: bool) -> Result<Finished> {
    let (mut config, origins) = load::load(&args.config, &args.overrides)?;
    check_kind(&config, &origins, finetune)?;
    let resume = match (args.fork, args.resume.as_str()) {
        _ if args.dry_run => Resume::Never,
        (Some(checkpoint), _) => Resume::Fork(checkpoint),
        (None, "auto") => Resume::Auto,
        (None, "never") => Resume::Never,
        (None, path) => Resume::From(path.into()),
    };
    let mut name = file_stem(&args.config);
    if let Some(dir) = config.run.dir.as_deref().and_then(Path::file_name) {
        name = dir.to_string_lossy().into_owned();
    }
    let scratch = args.dry_run.then(|| shorten(&mut config)).transpose()?;
    let interrupt = Interrupt::install()?;
    let world = match Place::from_environment()? {
        Some(place) => World::join(place, &config.run.ranks, &interrupt)?,
        None => World::default(),
    };
    let start = Start { name, resume, world: world.clone(), interrupt };
    let finished = experiments::run(config, &origins, start).map_err(|error| among_ranks(&world, error));
    if finished.is_ok() {
        world.finish()?;
    }
    if let Some(scratch) = scratch {
        let _ = std::fs::remove_dir_all(scratch);
        if let Finished::Done(summary) = finished? {
            out(&format!(
                "dry run: two steps made, {:.0} tokens/s; the run was not kept\n",
                summary["tokens_per_second"].as_f64().unwrap_or(0.0)
            ))?;
            return Ok(Finished::Done(summary));
        }
        bail!("interrupted");
    }
    let finished = finished?;
    if let (Finished::Done(summary), false) = (&finished, args.quiet || !world.is_first()) {
        out(&(serde_json::to_string_pretty(summary)? + "\n"))?;
    }
    Ok(finished)
}

fn collectives(largest: usize, repetitions: usize) -> Result<Finished> {
    let Some(place) = Place::from_environment()? else {
        bail!("this is one process; start several: linformer launch --nproc 2 collectives")
    };
    let world = World::join(place, &Ranks::default(), &Interrupt::default())?;
    let timings = scaling::measure(&world, largest, repetitions).map_err(|error| among_ranks(&world, error.into()))?;
    if world.is_first() {
        for timing in &timings {
            out(&(serde_json::to_string(timing)? + "\n"))?;
        }
        if let Some((alpha, beta)) = scaling::fit(&timings) {
            let (alpha, beta) = (alpha * 1e6, beta / 1e9);
            say(&format!("alpha {alpha:.1} us, beta {beta:.3} GB/s: linformer scaling CONFIG --network {alpha:.1} {beta:.3}"));
        }
    }
    world.finish()?;
    Ok(Finished::Done(Value::Null))
}

/// A failure of this rank, of which the others are told; or the one that it comes from.
fn among_ranks(world: &World, error: anyhow::Error) -> anyhow::Error {
    if world.is_single() {
        return error;
    }
    match world.cause(&one_line(&error)) {
        Some(fault) => WorldError::Parted(fault).into(),
        None => error.context(format!("rank {}", world.rank())),
    }
}

/// Two steps in a folder that is thrown away; made here, so that nobody else's folder of that name in a shared /tmp is used.
fn shorten(config: &mut Config) -> Result<PathBuf> {
    let scratch = std::env::temp_dir().join(format!("linformer-dry-run-{}", std::process::id()));
    std::fs::DirBuilder::new().mode(0o700).create(&scratch).with_context(|| scratch.display().to_string())?;
    config.run.dir = Some(scratch.join("run"));
    config.train.max_steps = 2;
    config.train.max_epochs = None;
    config.train.warmup_steps = config.train.warmup_steps.min(2);
    config.train.log_every = 1;
    config.train.decay_steps = None;
    config.data.short_steps = config.data.short_steps.min(1);
    config.data.max_validation_sequences = 8;
    Ok(scratch)
}

fn check_kind(config: &Config, origins: &Origins, finetune: bool) -> Result<()> {
    match (finetune, config.data.task.is_some()) {
        (true, false) => Err(origins.error("data.task", "is not set: this is a pretraining config, use linformer pretrain").into()),
        (false, true) => Err(origins.error("data.task", "is set: this is a fine-tuning config, use linformer finetune").into()),
        _ => Ok(()),
    }
}

fn precision(text: &str) -> Result<Precision, String> {
    serde_json::from_value(text.into()).map_err(|_| "expected fp32 or bf16".into())
}

fn file_stem(path: &Path) -> String {
    path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_else(|| "run".into())
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
    let folder = folder.or_else(|| dirs.first().cloned()).context("no folder given")?;
    let text = Report::read(dirs)?.write(&folder)?;
    out(&text)?;
    say(&format!("written: {}", folder.join("report.html").display()));
    Ok(Finished::Done(Value::Null))
}

fn info(config: &Path, overrides: &[String], mfu: f64, peak_tflops: Option<f64>) -> Result<Finished> {
    let (config, origins) = load::load(config, overrides)?;
    let peak = match peak_tflops {
        Some(peak) => peak,
        None => {
            let device = experiments::setup::device(&config, &origins, &World::default())?;
            let measured = experiments::setup::measure_peak(device, crate::train::trainer::kind_of(config.train.precision));
            (measured / 1e10).round() / 100.0
        }
    };
    if !(mfu > 0.0 && peak > 0.0) {
        bail!("--mfu and --peak-tflops: expected numbers above 0");
    }
    out(&describe(&config, &origins, Speed { mfu, peak_tflops: peak })?)?;
    Ok(Finished::Done(Value::Null))
}

fn data(command: DataCommand) -> Result<Finished> {
    match command {
        DataCommand::Prepare { config, overrides } => {
            let (config, origins) = load::load(&config, &overrides)?;
            check_kind(&config, &origins, false)?;
            let prepared = prepare(&config.data, None)?;
            let meta = &prepared.meta;
            let row = |name: &str, c: &crate::data::prepare::SplitCounts| {
                vec![name.to_string(), c.documents.to_string(), c.tokens.to_string(), c.bytes.to_string()]
            };
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
            let folder = prepared_folder(&config.data, None)?;
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

/// To stderr; a reader that went away is no reason to fail.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "linformer: {line}");
}

/// To stdout; a reader that went away is an error of its own kind, not a panic.
fn out(text: &str) -> Result<()> {
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(std::io::stdout().flush()?)
}
