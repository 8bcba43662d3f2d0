//! Several processes: starting them, timing them, and what more of them would bring.

use super::{out, say, train::among_ranks, Exit, INTERRUPTED};
use crate::config::{load, Ranks};
use crate::distributed::launch::{self, Launch};
use crate::distributed::place::Place;
use crate::distributed::World;
use crate::experiments::scaling::model::Network;
use crate::experiments::scaling::record::{self, Options};
use crate::experiments::scaling::{self, report};
use crate::experiments::Finished;
use crate::train::interrupt::Interrupt;
use anyhow::{bail, Result};
use clap::Args;
use serde_json::Value;
use std::num::NonZeroUsize;
use std::path::PathBuf;

#[derive(Args)]
pub struct LaunchArgs {
    /// Ranks
    #[arg(long)]
    nproc: NonZeroUsize,
    /// Folder for the logs of the ranks but the first
    #[arg(long, default_value = "runs/ranks")]
    logs: PathBuf,
    /// pretrain or finetune, with its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    arguments: Vec<String>,
}

#[derive(Args)]
pub struct CollectivesArgs {
    /// The largest sum
    #[arg(long, default_value_t = 64)]
    mib: usize,
    #[arg(long, default_value = "9")]
    repetitions: NonZeroUsize,
}

#[derive(Args)]
pub struct ScalingArgs {
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
    /// What `linformer collectives` printed: the model is fitted to it and held against it
    #[arg(long, value_name = "FILE", num_args = 1)]
    sums: Vec<PathBuf>,
    /// Numbers of ranks whose sums are fitted; the others are predicted
    #[arg(long, value_delimiter = ',', default_values_t = [2, 4])]
    fit_on: Vec<u64>,
    /// A run's folder, whose training step is predicted from that of one rank
    #[arg(long, value_name = "RUN", num_args = 1, requires = "sums")]
    run: Vec<PathBuf>,
    /// Write scaling.json, table and plots there
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn launch(args: LaunchArgs) -> Result<Finished> {
    let interrupt = Interrupt::install()?;
    interrupt.wait_for_checkpoint();
    match launch::run(&Launch { count: args.nproc.get(), logs: args.logs, arguments: args.arguments }, &interrupt)? {
        0 => Ok(Finished::Done(Value::Null)),
        INTERRUPTED => Ok(Finished::Interrupted),
        code => Err(Exit(code).into()),
    }
}

pub fn collectives(args: &CollectivesArgs) -> Result<Finished> {
    let Some(place) = Place::from_environment()? else {
        bail!("this is one process; start several: linformer launch --nproc 2 collectives")
    };
    let world = World::join(place, &Ranks::default(), &Interrupt::default())?;
    let timings = scaling::measure(&world, args.mib << 20, args.repetitions.get()).map_err(|error| among_ranks(&world, error.into()))?;
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

pub fn scaling(args: &ScalingArgs) -> Result<Finished> {
    let (config, origins) = load::load(&args.config, &args.overrides)?;
    let networks = match args.network[..] {
        [alpha, beta] => vec![Network::new("--network", alpha / 1e6, beta * 1e9, "")],
        _ => Network::usual(),
    };
    let numbers = networks.iter().flat_map(|n| [n.alpha, n.beta]).chain([args.mfu, args.peak_tflops]);
    if numbers.into_iter().any(|v| !(v > 0.0 && v.is_finite())) {
        bail!("--mfu, --peak-tflops and --network: expected numbers above 0");
    }
    let record = record::make(
        &config,
        &origins,
        &Options {
            name: args.config.display().to_string(),
            mfu: args.mfu,
            peak_tflops: args.peak_tflops,
            networks,
            sums: args.sums.clone(),
            fit_on: args.fit_on.clone(),
            runs: args.run.clone(),
        },
    )?;
    out(&report::text(&record))?;
    args.out.as_ref().map_or(Ok(()), |dir| report::write(&record, dir))?;
    Ok(Finished::Done(Value::Null))
}
