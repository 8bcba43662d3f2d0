//! Keys of `run.ranks`: how several processes work together. None of them changes what is learned.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Times are in seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Ranks {
    /// How long the ranks wait for each other at the start.
    pub join_timeout: f64,
    /// A rank that shows no sign of life for so long has failed: the job ends.
    pub peer_timeout: f64,
    /// A rank that lives, but does not come to where the others wait for it: the job ends.
    pub collective_timeout: f64,
    /// Gradients travel in buckets of about this many MiB, while the backward pass goes on.
    pub bucket_mib: f64,
    /// Steps after which the ranks compare their weights; 0: never.
    pub compare_every: u64,
    /// ZeRO-1: each rank holds the optimizer's state of a part of the weights. Less memory, more communication, the same bits.
    pub shard_optimizer: bool,
}

impl Default for Ranks {
    fn default() -> Self {
        Self {
            join_timeout: 300.0,
            peer_timeout: 60.0,
            collective_timeout: 1800.0,
            bucket_mib: 25.0,
            compare_every: 500,
            shard_optimizer: false,
        }
    }
}
