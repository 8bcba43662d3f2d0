//! Step time = computing + the communication that is not hidden.
//!
//! A message of b bytes takes alpha + b / beta. Gradients travel in buckets, one after the other, each from when it is full; the
//! backward pass goes on meanwhile, and what ends after it is exposed. The sum of a bucket over W ranks takes
//! - *ring* (and our ordered sum, which sends the same parts): 2 (W - 1) alpha + 2 (W - 1) / W b / beta,
//! - *tree*: 2 log2(W) alpha + 2 b / beta.
//!
//! Where several ranks of a machine have a faster way to each other, they sum among themselves first, and each carries its part
//! of the bucket, b / (ranks of a machine), to the other machines.

use serde::{Deserialize, Serialize};

/// Share of a step that the forward pass takes; the rest is the backward pass.
const FORWARD: f64 = 1.0 / 3.0;
/// How one rank reaches another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Network {
    pub name: String,
    /// Seconds before the first byte.
    pub alpha: f64,
    /// Bytes per second of one rank.
    pub beta: f64,
    /// A faster way among the ranks of a machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Node>,
    /// Where the figures are from.
    #[serde(default)]
    pub source: String,
}

/// The ranks of one machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    pub ranks: u64,
    pub alpha: f64,
    pub beta: f64,
}

const NCCL: &str = "NCCL 2.28 plans with (src/graph/tuning.cc, ring, Simple)";

impl Network {
    pub fn new(name: &str, alpha: f64, beta: f64, source: &str) -> Self {
        Self { name: name.into(), alpha, beta, node: None, source: source.into() }
    }

    /// Usual figures, of one rank: one direction of a duplex link, nine tenths of what stands on it.
    pub fn usual() -> Vec<Self> {
        let infiniband = |name: &str| {
            Self::new(
                name,
                14e-6,
                22.5e9,
                &format!("beta: 0.9 of HDR's 200 Gbit/s (ConnectX-6); alpha: the 14 us that {NCCL} for a network hop"),
            )
        };
        let mut nvlink = infiniband("NVLink 300 GB/s, 8 a machine; InfiniBand");
        nvlink.node = Some(Node { ranks: 8, alpha: 3.4e-6, beta: 135e9 });
        nvlink.source = format!(
            "within a machine 0.9 of the 150 GB/s a direction of V100's NVLink and the 3.4 us that {NCCL} for a hop on NVLink; between machines InfiniBand 200 Gbit/s for each GPU"
        );
        vec![
            Self::new("Ethernet 10 Gbit/s", 30e-6, 1.125e9, "beta: 0.9 of the line; alpha: assumed, of TCP through the kernel"),
            Self::new(
                "Ethernet 100 Gbit/s",
                14e-6,
                11.25e9,
                &format!("beta: 0.9 of the line; alpha: the 14 us that {NCCL} for a network hop"),
            ),
            infiniband("InfiniBand 200 Gbit/s"),
            nvlink,
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
        let Some(node) = &network.node else { return self.flat(network.alpha, network.beta, ranks, bytes) };
        let within = ranks.min(node.ranks);
        let machines = ranks.div_ceil(node.ranks);
        self.flat(node.alpha, node.beta, within, bytes) + self.flat(network.alpha, network.beta, machines, bytes / within as f64)
    }

    fn flat(self, alpha: f64, beta: f64, ranks: u64, bytes: f64) -> f64 {
        if ranks < 2 {
            return 0.0;
        }
        let w = ranks as f64;
        match self {
            Self::Ring => 2.0 * (w - 1.0) * alpha + 2.0 * (w - 1.0) / w * bytes / beta,
            Self::Tree => 2.0 * w.log2().ceil() * alpha + 2.0 * bytes / beta,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        Network::new("test", 1e-3, 1e6, "")
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
    fn one_rank_never_waits_and_accumulation_hides_the_rest() {
        assert_eq!(work(true, 1).step(&network(), Algorithm::Ring, 1).efficiency(), 1.0);
        let [one, four] = [1, 4].map(|pieces| work(true, pieces).step(&network(), Algorithm::Ring, 64).efficiency());
        assert!(four > one);
        assert!((1.0 / four - 1.0) * 4.0 - (1.0 / one - 1.0) < 1e-9);
    }

    /// Two machines of 4: a ring of 4 within, then each rank carries a quarter between the two.
    #[test]
    fn ranks_of_a_machine_sum_among_themselves_first() {
        let mut two = network();
        two.node = Some(Node { ranks: 4, alpha: 1e-4, beta: 1e7 });
        let within = 6.0 * 1e-4 + 1.5 * 1e6 / 1e7;
        assert!((Algorithm::Ring.seconds(&two, 4, 1e6) - within).abs() < 1e-12);
        let between = 2.0 * 1e-3 + 0.25e6 / 1e6;
        assert!((Algorithm::Ring.seconds(&two, 8, 1e6) - within - between).abs() < 1e-12);
        assert!(Algorithm::Ring.seconds(&network(), 8, 1e6) > Algorithm::Ring.seconds(&two, 8, 1e6));
    }
}
