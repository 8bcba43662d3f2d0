//! `linformer pretrain` and `linformer finetune`, alone or as one of several ranks.

use super::{one_line, out};
use crate::config::{load, Config, Origins};
use crate::distributed::place::Place;
use crate::distributed::{World, WorldError};
use crate::experiments::{self, Finished, Start};
use crate::train::interrupt::Interrupt;
use crate::train::run::Resume;
use anyhow::{bail, Context, Result};
use clap::Args;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct RunArgs {
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
    /// Where the time of this many steps goes: a table, profile.json, and trace.json for chrome://tracing
    #[arg(long, value_name = "STEPS", default_value_t = 0, conflicts_with = "dry_run", hide_default_value = true)]
    profile: u64,
    /// Do not print the summary
    #[arg(long)]
    quiet: bool,
}

pub fn run(args: RunArgs, finetune: bool) -> Result<Finished> {
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
    let start = Start { name, resume, world: world.clone(), interrupt, profile: args.profile };
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

/// A failure of this rank, of which the others are told; or the one that it comes from.
pub fn among_ranks(world: &World, error: anyhow::Error) -> anyhow::Error {
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

/// A pretraining config has a corpus, a fine-tuning config a task.
pub fn check_kind(config: &Config, origins: &Origins, finetune: bool) -> Result<()> {
    match (finetune, config.data.task.is_some()) {
        (true, false) => Err(origins.error("data.task", "is not set: this is a pretraining config, use linformer pretrain").into()),
        (false, true) => Err(origins.error("data.task", "is set: this is a fine-tuning config, use linformer finetune").into()),
        _ => Ok(()),
    }
}

fn file_stem(path: &Path) -> String {
    path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_else(|| "run".into())
}
