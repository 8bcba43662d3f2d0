//! `scaling.json`: a config's work, the networks, and what was measured between real ranks.

use super::model::{Algorithm, Network, Step, Work};
use super::{cores, crowding, fit, Timing};
use crate::config::{load, Config, Origins};
use crate::experiments::info;
use crate::log::jsonl;
use crate::model::size::{forward_flops_per_token, parameters_by_part, Head};
use crate::train::run::environment_at_end;
use anyhow::{bail, Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Below this share of the ideal speed more ranks are not worth their price.
pub const WORTHWHILE: f64 = 0.8;
const MIB: f64 = 1048576.0;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the config, for the reader.
    pub name: String,
    pub mfu: f64,
    pub peak_tflops: f64,
    pub networks: Vec<Network>,
    /// Output of `linformer collectives`.
    pub sums: Vec<PathBuf>,
    /// Numbers of ranks whose sums are fitted; the others are predicted.
    pub fit_on: Vec<u64>,
    /// Runs with the same load a rank; one of them with one rank.
    pub runs: Vec<PathBuf>,
}

/// The file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub kind: String,
    pub environment: Value,
    pub plan: Plan,
    pub networks: Vec<Network>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
}

/// The work that is to be shared.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    pub config: String,
    pub parameters: f64,
    pub sequence_length: i64,
    pub batch_size: usize,
    pub micro_batch_size: usize,
    /// FLOPs of training on one sequence.
    pub sequence_flops: f64,
    pub bucket_bytes: f64,
    pub mfu: f64,
    pub peak_tflops: f64,
}

/// What real ranks took on this machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    pub cores: u64,
    pub fit_on: Vec<u64>,
    pub sums: Vec<Timing>,
    pub steps: Vec<TrainingStep>,
}

/// A training step of a run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct TrainingStep {
    pub ranks: u64,
    /// Of one rank.
    pub sequences: f64,
    pub gradient_bytes: f64,
    pub bucket_bytes: f64,
    /// Median over the windows of the metrics but the first.
    pub seconds: f64,
    /// Seconds in which gradients were on the way, and those that the backward pass did not hide.
    pub communication: f64,
    pub exposed: f64,
}

/// Puts the record together.
pub fn make(config: &Config, origins: &Origins, options: &Options) -> Result<Record> {
    let (parameters, sequence_flops) = work_of(config, origins)?;
    let plan = Plan {
        config: options.name.clone(),
        parameters,
        sequence_length: config.data.sequence_length,
        batch_size: config.train.batch_size,
        micro_batch_size: config.train.micro_batch(),
        sequence_flops,
        bucket_bytes: config.run.ranks.bucket_mib * MIB,
        mfu: options.mfu,
        peak_tflops: options.peak_tflops,
    };
    let sums = options.sums.iter().map(|file| read_sums(file)).collect::<Result<Vec<_>>>()?.concat();
    let steps = options.runs.iter().map(|run| read_step(run)).collect::<Result<Vec<_>>>()?;
    let measured = Measured { cores: cores(), fit_on: options.fit_on.clone(), sums, steps };
    if !measured.sums.is_empty() && measured.network().is_none() {
        bail!("--sums: alpha and beta cannot be found in the sums of {:?} ranks (--fit-on)", options.fit_on);
    }
    if !measured.steps.is_empty() && measured.steps.iter().all(|s| s.ranks != 1) {
        bail!("--runs: expected a run of one rank among them, from which the others are predicted");
    }
    let measured = (!measured.sums.is_empty()).then_some(measured);
    Ok(Record { kind: "scaling".into(), environment: environment_at_end("cpu"), plan, networks: options.networks.clone(), measured })
}

/// Parameters, and FLOPs of training on a sequence.
fn work_of(config: &Config, origins: &Origins) -> Result<(f64, f64)> {
    let model = info::resolved(config, origins)?;
    let n = config.data.sequence_length;
    let (head, predicted) = match config.data.task {
        Some(_) => (Head::Classification, 0.0),
        None => (Head::MaskedLm, config.data.mask_probability),
    };
    let parameters: i64 = parameters_by_part(&model, head).iter().map(|(_, count)| count).sum();
    Ok((parameters as f64, 3.0 * forward_flops_per_token(&model, n, predicted, 1.0) * n as f64))
}

fn read_sums(file: &Path) -> Result<Vec<Timing>> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let line = |(i, line): (usize, &str)| {
        serde_json::from_str(line)
            .with_context(|| format!("{}:{}: expected a line that `linformer collectives` wrote", file.display(), i + 1))
    };
    text.lines().enumerate().map(line).collect()
}

/// Of a run's folder.
fn read_step(run: &Path) -> Result<TrainingStep> {
    let (config, origins) = load::load(&run.join("config.json"), &[])?;
    let path = run.join("environment.json");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let environment: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let Some(ranks) = environment["ranks"].as_u64() else { bail!("{}: it does not say how many ranks the run had", path.display()) };
    let path = run.join("metrics.jsonl");
    let lines = jsonl::read(&path).with_context(|| path.display().to_string())?;
    let train: Vec<_> = lines.iter().filter(|l| l.get("split").is_some_and(|s| s == "train")).collect();
    let mut windows: Vec<[f64; 3]> = train.windows(2).filter_map(|w| window(w[0], w[1])).collect();
    if windows.len() < 3 {
        bail!("{}: {} windows of training, expected 3 or more (train.log_every)", path.display(), windows.len());
    }
    windows.sort_by(|a, b| a[0].total_cmp(&b[0]));
    let [seconds, communication, exposed] = windows[windows.len() / 2];
    Ok(TrainingStep {
        ranks,
        sequences: config.train.batch_size as f64 / ranks as f64,
        gradient_bytes: 4.0 * work_of(&config, &origins)?.0,
        bucket_bytes: config.run.ranks.bucket_mib * MIB,
        seconds,
        communication: seconds * communication,
        exposed: seconds * exposed,
    })
}

/// Seconds of a step between two lines of the metrics, and the shares of the communication.
fn window(before: &Map<String, Value>, line: &Map<String, Value>) -> Option<[f64; 3]> {
    let number = |line: &Map<String, Value>, key: &str| line.get(key).and_then(Value::as_f64);
    let since = |key: &str| Some(number(line, key)? - number(before, key)?);
    let seconds = since("tokens")? / since("step")? / number(line, "tokens_per_second")?;
    let share = |key: &str| number(line, key).unwrap_or(0.0);
    Some([seconds, share("communication"), share("communication_exposed")])
}

impl Measured {
    /// Alpha and beta of this machine, found in the sums of `fit_on` ranks.
    pub fn network(&self) -> Option<Network> {
        let chosen: Vec<Timing> = self.sums.iter().filter(|t| self.fit_on.contains(&t.ranks)).copied().collect();
        fit(&chosen).map(|(alpha, beta)| Network::new("measured here", alpha, beta, ""))
    }

    /// What the model says a sum takes.
    pub fn sum(&self, network: &Network, timing: &Timing) -> f64 {
        timing.crowding * Algorithm::Ring.seconds(network, timing.ranks, timing.bytes)
    }

    /// What the model says a step takes, from the step of one rank and the sums: none of the step of several ranks is used. Ranks
    /// that fill all cores have none left to communicate with meanwhile: nothing is hidden.
    pub fn step(&self, network: &Network, step: &TrainingStep) -> Option<f64> {
        let one = self.steps.iter().find(|s| s.ranks == 1)?;
        let overlaps = step.ranks < self.cores;
        let work = Work { micro_batch: one.seconds, micro_batches: 1, gradients: step.gradient_bytes, bucket: step.bucket_bytes, overlaps };
        Some(crowding(step.ranks, self.cores) * work.step(network, Algorithm::Ring, step.ranks).seconds())
    }
}

/// How the batch is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// `batch_size` over all ranks; a rank has at least one sequence.
    SameBatch,
    /// So many micro-batches a rank.
    MicroBatches(u64),
}

impl Plan {
    /// Seconds of forward and backward pass of one sequence.
    pub fn sequence_seconds(&self) -> f64 {
        self.sequence_flops / (self.mfu * self.peak_tflops * 1e12)
    }

    /// None: there are more ranks than sequences.
    pub fn step(&self, network: &Network, algorithm: Algorithm, ranks: u64, load: Load) -> Option<Step> {
        let micro = self.micro_batch_size as f64;
        let (sequences, micro_batches) = match load {
            Load::MicroBatches(count) => (micro, count),
            Load::SameBatch => {
                let share = self.batch_size as f64 / ranks as f64;
                let pieces = (share / micro).ceil().max(1.0);
                (share / pieces, pieces as u64)
            }
        };
        let work = Work {
            micro_batch: self.sequence_seconds() * sequences,
            micro_batches,
            gradients: 4.0 * self.parameters,
            bucket: self.bucket_bytes,
            overlaps: true,
        };
        (load != Load::SameBatch || self.batch_size as u64 >= ranks).then(|| work.step(network, algorithm, ranks))
    }

    /// The better of ring and tree.
    pub fn best(&self, network: &Network, ranks: u64, load: Load) -> Option<Step> {
        let steps = [Algorithm::Ring, Algorithm::Tree].into_iter().filter_map(|a| self.step(network, a, ranks, load));
        steps.min_by(|a, b| a.seconds().total_cmp(&b.seconds()))
    }

    /// The least number of micro-batches a rank with which so many ranks are worth it.
    pub fn micro_batches_needed(&self, network: &Network, ranks: u64) -> u64 {
        let one = self.best(network, ranks, Load::MicroBatches(1));
        let exposed_by_computing = one.map_or(0.0, |s| s.exposed / s.computing);
        // A hair less, so that rounding makes no micro-batch more of a whole number.
        (exposed_by_computing * WORTHWHILE / (1.0 - WORTHWHILE) - 1e-9).ceil().max(1.0) as u64
    }

    /// Tokens a second of all ranks, a micro-batch each in so many seconds.
    pub fn speed(&self, ranks: u64, seconds: f64) -> f64 {
        self.micro_batch_size as f64 * self.sequence_length as f64 * ranks as f64 / seconds
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A second a sequence, 1 MB of gradients in one bucket, 1 MB/s: the sum of two ranks takes 1 s, all of it exposed.
    fn plan() -> Plan {
        Plan {
            config: String::new(),
            parameters: 0.25e6,
            sequence_length: 10,
            batch_size: 2,
            micro_batch_size: 1,
            sequence_flops: 1e12,
            bucket_bytes: 1e6,
            mfu: 1.0,
            peak_tflops: 1.0,
        }
    }

    #[test]
    fn a_plan_by_hand() {
        let (plan, network) = (plan(), Network::new("test", 0.0, 1e6, ""));
        let step = |ranks, load| plan.best(&network, ranks, load);
        assert_eq!(step(2, Load::SameBatch).unwrap().efficiency(), 0.5);
        assert_eq!(step(1, Load::SameBatch).unwrap().seconds(), 2.0, "two micro-batches of one sequence");
        assert_eq!(step(4, Load::SameBatch), None, "a rank would have half a sequence");
        assert_eq!(step(2, Load::MicroBatches(4)).unwrap().efficiency(), 0.8);
        assert_eq!(plan.micro_batches_needed(&network, 2), 4);
        assert_eq!(plan.micro_batches_needed(&network, 1), 1);
        assert_eq!(plan.speed(2, 2.0), 10.0);
    }

    /// On two cores, one rank: 3 s. Three ranks take turns, 1.5 times as long, and hide nothing of the 4/3 s of their sum.
    #[test]
    fn a_step_is_predicted_from_that_of_one_rank() {
        let network = Network::new("test", 0.0, 1e6, "");
        let sum = |ranks, bytes| {
            let crowding = crowding(ranks, 2);
            Timing {
                ranks,
                crowding,
                bytes,
                seconds: crowding * (Algorithm::Ring.seconds(&network, ranks, bytes) + 1e-3 * (ranks - 1) as f64),
            }
        };
        let step = |ranks, seconds| TrainingStep {
            ranks,
            sequences: 1.0,
            gradient_bytes: 1e6,
            bucket_bytes: 1e6,
            seconds,
            communication: 0.0,
            exposed: 0.0,
        };
        let sums = [2, 4].into_iter().flat_map(|ranks| [1e3, 1e5, 1e7].map(|bytes| sum(ranks, bytes))).collect();
        let measured = Measured { cores: 2, fit_on: vec![2, 4], sums, steps: vec![step(1, 3.0), step(3, 9.0)] };
        let found = measured.network().unwrap();
        assert!((found.alpha - 0.5e-3).abs() < 1e-9 && (found.beta - 1e6).abs() < 1.0, "{found:?}");
        let predicted = measured.step(&found, &measured.steps[1]).unwrap();
        assert!((predicted - 1.5 * (3.0 + 4.0 * 0.5e-3 + 4.0 / 3.0)).abs() < 1e-6, "{predicted}");
    }
}
