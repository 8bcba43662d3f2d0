//! What more ranks would bring, before anyone pays for them: step time = computing + the communication that is not hidden.
//!
//! A message of b bytes takes alpha + b / beta. Gradients travel in buckets, one after the other, each from when it is full; the
//! backward pass goes on meanwhile, and what ends after it is exposed. The sum of a bucket over W ranks takes
//! - *ring* (and our ordered sum, which sends the same parts): 2 (W - 1) alpha + 2 (W - 1) / W b / beta,
//! - *tree*: 2 log2(W) alpha + 2 b / beta.
//!
//! [`measure`] times such sums between real ranks (`linformer collectives`), [`fit`] finds alpha and beta in them.

use super::info;
use crate::config::{Config, Origins};
use crate::distributed::World;
use crate::log::progress::thousands;
use crate::model::size::{forward_flops_per_token, parameters_by_part, Head};
use crate::native::NativeError;
use crate::table::align;
use anyhow::Result;
use serde::Serialize;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Share of a step that the forward pass takes; the rest is the backward pass.
const FORWARD: f64 = 1.0 / 3.0;
/// Below this share of the ideal speed more ranks are not worth their price.
const WORTHWHILE: f64 = 0.8;
const LARGEST: u32 = 10;

/// How one rank reaches another.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    pub name: String,
    /// Seconds before the first byte.
    pub alpha: f64,
    /// Bytes per second of one rank.
    pub beta: f64,
}

impl Network {
    /// Usual figures, of one rank: half of a duplex link, nine tenths of what stands on it.
    pub fn usual() -> Vec<Self> {
        let network = |name: &str, alpha: f64, beta: f64| Self { name: name.into(), alpha, beta };
        vec![
            network("Ethernet 10 Gbit/s", 30e-6, 1.1e9),
            network("Ethernet 100 Gbit/s", 15e-6, 11e9),
            network("InfiniBand 200 Gbit/s", 3e-6, 22e9),
            network("NVLink 300 GB/s", 2e-6, 135e9),
        ]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Ring,
    Tree,
}

impl Algorithm {
    /// Seconds that the sum of so many bytes over the ranks takes.
    pub fn seconds(self, network: &Network, ranks: u64, bytes: f64) -> f64 {
        if ranks < 2 {
            return 0.0;
        }
        let w = ranks as f64;
        match self {
            Self::Ring => 2.0 * (w - 1.0) * network.alpha + 2.0 * (w - 1.0) / w * bytes / network.beta,
            Self::Tree => 2.0 * w.log2().ceil() * network.alpha + 2.0 * bytes / network.beta,
        }
    }
}

/// The work of one rank in a step.
#[derive(Clone, Debug)]
pub struct Work {
    /// Seconds of forward and backward pass of one micro-batch.
    pub micro_batch: f64,
    pub micro_batches: u64,
    /// Bytes of gradients.
    pub gradients: f64,
    pub bucket: f64,
    /// false: the gradients are sent after the backward pass.
    pub overlaps: bool,
}

/// What a step takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    pub computing: f64,
    pub communication: f64,
    pub exposed: f64,
}

impl Step {
    pub fn seconds(&self) -> f64 {
        self.computing + self.exposed
    }

    /// Share of the ideal speed.
    pub fn efficiency(&self) -> f64 {
        self.computing / self.seconds()
    }
}

impl Work {
    pub fn step(&self, network: &Network, algorithm: Algorithm, ranks: u64) -> Step {
        let backward = self.micro_batch * (1.0 - FORWARD);
        let buckets = (self.gradients / self.bucket).ceil().max(1.0) as u64;
        let each = algorithm.seconds(network, ranks, self.gradients / buckets as f64);
        let mut end = 0.0f64;
        for bucket in 1..=buckets {
            let full = if self.overlaps { backward * bucket as f64 / buckets as f64 } else { backward };
            end = end.max(full) + each;
        }
        let communication = each * buckets as f64;
        Step { computing: self.micro_batch * self.micro_batches as f64, communication, exposed: (end - backward).max(0.0) }
    }
}

/// One size of a sum between ranks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Timing {
    pub ranks: u64,
    pub bytes: f64,
    /// Median over the repetitions, of the slowest rank.
    pub seconds: f64,
}

/// Times the ordered sum between the ranks, from 4 KiB to `largest` bytes. All ranks call it.
pub fn measure(world: &World, largest: usize, repetitions: usize) -> Result<Vec<Timing>, NativeError> {
    let Some(group) = world.group() else { return Ok(Vec::new()) };
    let sizes = std::iter::successors(Some(4096usize), |bytes| Some(bytes * 4)).take_while(|bytes| *bytes <= largest);
    sizes
        .map(|bytes| {
            let tensor = Tensor::ones([bytes as i64 / 4], (Kind::Float, Device::Cpu));
            let mut times = Vec::new();
            // The first one is not counted: memory is touched, buffers are made.
            for repetition in 0..=repetitions {
                world.gather([0.0])?;
                let begun = Instant::now();
                group.ordered_sum(&tensor)?;
                let slowest = world.gather([begun.elapsed().as_secs_f64()])?.into_iter().map(|[s]| s).fold(0.0, f64::max);
                times.extend((repetition > 0).then_some(slowest));
            }
            times.sort_by(f64::total_cmp);
            Ok(Timing { ranks: world.size() as u64, bytes: bytes as f64, seconds: times[times.len() / 2] })
        })
        .collect()
}

/// Alpha and beta by least squares of the relative error, so that small sums count as much as large ones. None: not to be found.
pub fn fit(timings: &[Timing]) -> Option<(f64, f64)> {
    // seconds = x alpha + y / beta, each divided by the seconds.
    let rows = timings.iter().map(|t| {
        let w = t.ranks as f64;
        (2.0 * (w - 1.0) / t.seconds, 2.0 * (w - 1.0) / w * t.bytes / t.seconds)
    });
    let [xx, xy, yy, x, y] = rows.fold([0.0; 5], |[xx, xy, yy, sx, sy], (x, y)| [xx + x * x, xy + x * y, yy + y * y, sx + x, sy + y]);
    let determinant = xx * yy - xy * xy;
    let (alpha, inverse) = ((x * yy - y * xy) / determinant, (y * xx - x * xy) / determinant);
    (alpha > 0.0 && inverse > 0.0 && determinant.abs() > 0.0).then_some((alpha, 1.0 / inverse))
}

/// What is known of the machine.
#[derive(Clone, Debug)]
pub struct Machine {
    pub mfu: f64,
    pub peak_tflops: f64,
    pub networks: Vec<Network>,
}

/// Tables of a config for 1 to 1,024 ranks, as text.
pub fn describe(config: &Config, origins: &Origins, machine: &Machine) -> Result<String> {
    let model = info::resolved(config, origins)?;
    let (n, train) = (config.data.sequence_length, &config.train);
    let (head, predicted) = match config.data.task {
        Some(_) => (Head::Classification, 0.0),
        None => (Head::MaskedLm, config.data.mask_probability),
    };
    let parameters: i64 = parameters_by_part(&model, head).iter().map(|(_, count)| count).sum();
    let flops = 3.0 * forward_flops_per_token(&model, n, predicted) * n as f64;
    let sequence = flops / (machine.mfu * machine.peak_tflops * 1e12);
    let work = |sequences: f64, micro_batches: u64| Work {
        micro_batch: sequence * sequences,
        micro_batches,
        gradients: 4.0 * parameters as f64,
        bucket: config.run.ranks.bucket_mib * (1u64 << 20) as f64,
        overlaps: true,
    };
    let micro = train.micro_batch() as f64;
    let mut text = format!(
        "{} parameters: {:.0} MiB of gradients; {:.1} ms a sequence of {n} at MFU {} of {} TFLOP/s\n\
         same batch: {} sequences over all ranks; same load: {micro} a rank; accumulated: 4 times {micro} a rank\n",
        thousands(parameters as f64),
        4.0 * parameters as f64 / 1048576.0,
        sequence * 1e3,
        machine.mfu,
        machine.peak_tflops,
        train.batch_size,
    );
    for network in &machine.networks {
        let header = ["ranks", "same batch: ms", "exposed", "efficiency", "same load: ms", "efficiency", "tree", "accumulated", "tokens/s"];
        let mut rows = vec![header.map(String::from).to_vec()];
        let (mut last_batch, mut last_load) = (1, 1);
        for ranks in (0..=LARGEST).map(|power| 1u64 << power) {
            // A rank has at least one sequence: beyond that the batch is not the same any more.
            let share = train.batch_size as f64 / ranks as f64;
            let pieces = (share / micro).ceil().max(1.0);
            let fits = share >= 1.0;
            let same = work(share / pieces, pieces as u64).step(network, Algorithm::Ring, ranks);
            let load = work(micro, 1).step(network, Algorithm::Ring, ranks);
            let tree = work(micro, 1).step(network, Algorithm::Tree, ranks);
            let accumulated = work(micro, 4).step(network, Algorithm::Ring, ranks);
            last_batch = if fits && same.efficiency() >= WORTHWHILE { ranks } else { last_batch };
            last_load = if load.efficiency() >= WORTHWHILE { ranks } else { last_load };
            let percent = |step: &Step| format!("{:.0} %", 100.0 * step.efficiency());
            let of_batch = |text: String| if fits { text } else { "-".into() };
            rows.push(vec![
                ranks.to_string(),
                of_batch(format!("{:.1}", same.seconds() * 1e3)),
                of_batch(format!("{:.1}", same.exposed * 1e3)),
                of_batch(percent(&same)),
                format!("{:.1}", load.seconds() * 1e3),
                percent(&load),
                percent(&tree),
                percent(&accumulated),
                thousands(micro * n as f64 * ranks as f64 / load.seconds()),
            ]);
        }
        text += &format!("\n{} ({:.0} us, {:.1} GB/s a rank)\n{}", network.name, network.alpha * 1e6, network.beta / 1e9, align(rows));
        text += &format!(
            "worth it (efficiency {WORTHWHILE} and more) up to {last_batch} ranks with the same batch, {last_load} with the same load\n"
        );
    }
    text += "\nBeyond that: accumulate more micro-batches or raise train.batch_size (gradients travel once a step), larger buckets\n\
             where alpha dominates; ZeRO-1 saves memory, not time.\n";
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        Network { name: "test".into(), alpha: 1e-3, beta: 1e6 }
    }

    fn work(overlaps: bool, micro_batches: u64) -> Work {
        Work { micro_batch: 3.0, micro_batches, gradients: 1e6, bucket: 0.25e6, overlaps }
    }

    /// Worked by hand: four buckets of 0.25 MB, 4 ranks: 6 alpha + 1.5 * 0.25 s = 0.381 s each.
    #[test]
    fn a_ring_by_hand() {
        let each = Algorithm::Ring.seconds(&network(), 4, 0.25e6);
        assert!((each - 0.381).abs() < 1e-12, "{each}");
        let late = work(false, 1).step(&network(), Algorithm::Ring, 4);
        assert!((late.exposed - 4.0 * 0.381).abs() < 1e-12 && (late.communication - late.exposed).abs() < 1e-12);
        // Each bucket is sent before the next one is full (0.5 s): only the last is exposed.
        let step = work(true, 1).step(&network(), Algorithm::Ring, 4);
        assert!((step.exposed - 0.381).abs() < 1e-12 && (step.seconds() - 3.381).abs() < 1e-12);
        let tree = Algorithm::Tree.seconds(&network(), 4, 0.25e6);
        assert!((tree - 0.504).abs() < 1e-12, "{tree}");
    }

    #[test]
    fn alpha_and_beta_are_found_in_times_made_from_them() {
        let timing = |ranks: u64, bytes: f64| Timing { ranks, bytes, seconds: Algorithm::Ring.seconds(&network(), ranks, bytes) };
        let timings = [timing(2, 4096.0), timing(2, 1e6), timing(4, 4096.0), timing(4, 1e6)];
        let (alpha, beta) = fit(&timings).unwrap_or_default();
        assert!((alpha / 1e-3 - 1.0).abs() < 1e-9 && (beta / 1e6 - 1.0).abs() < 1e-9, "{alpha} {beta}");
        assert_eq!(fit(&[]), None);
    }

    #[test]
    fn one_rank_never_waits_and_accumulation_hides_the_rest() {
        assert_eq!(work(true, 1).step(&network(), Algorithm::Ring, 1).efficiency(), 1.0);
        let [one, four] = [1, 4].map(|pieces| work(true, pieces).step(&network(), Algorithm::Ring, 64).efficiency());
        assert!(four > one);
        assert!((1.0 / four - 1.0) * 4.0 - (1.0 / one - 1.0) < 1e-9);
    }
}
