//! What more ranks would bring, before anyone pays for them.
//!
//! | module | what |
//! |---|---|
//! | [`model`] | step time = computing + the communication that is not hidden |
//! | [`record`] | `scaling.json`: what is asked, and what was measured |
//! | [`report`] | tables to 1,024 ranks, and the model held against what was measured |
//!
//! [`measure`] times sums between real ranks (`linformer collectives`), [`fit`] finds alpha and beta in them.

pub mod model;
pub mod record;
pub mod report;

use crate::distributed::World;
use crate::eval::median;
use crate::native::distributed::host_name;
use crate::native::NativeError;
use serde::{Deserialize, Serialize};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// One size of a sum between ranks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    pub ranks: u64,
    /// Ranks that share a core: they take turns, so all takes as many times longer. At least 1.
    pub crowding: f64,
    pub bytes: f64,
    /// Median over the repetitions, of the slowest rank.
    pub seconds: f64,
}

/// Ranks a core, if more ranks than cores are on one machine.
pub fn crowding(ranks: u64, cores: u64) -> f64 {
    (ranks as f64 / cores as f64).max(1.0)
}

/// Cores that this process may use.
pub fn cores() -> u64 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u64)
}

/// Times the ordered sum between the ranks, from 4 KiB to `largest` bytes. All ranks call it.
pub fn measure(world: &World, largest: usize, repetitions: usize) -> Result<Vec<Timing>, NativeError> {
    let Some(group) = world.group() else { return Ok(Vec::new()) };
    let here = host_name();
    let neighbours = world.gather_texts(&here)?.iter().filter(|host| **host == here).count();
    let crowding = world.gather([crowding(neighbours as u64, cores())])?.into_iter().map(|[c]| c).fold(1.0, f64::max);
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
            Ok(Timing { ranks: world.size() as u64, crowding, bytes: bytes as f64, seconds: median(&times).unwrap_or(f64::NAN) })
        })
        .collect()
}

/// Alpha and beta by least squares of the relative error, so that small sums count as much as large ones. None: not to be found.
pub fn fit(timings: &[Timing]) -> Option<(f64, f64)> {
    // seconds = x alpha + y / beta, each divided by the seconds.
    let rows = timings.iter().map(|t| {
        let (w, turns) = (t.ranks as f64, t.crowding / t.seconds);
        (2.0 * (w - 1.0) * turns, 2.0 * (w - 1.0) / w * t.bytes * turns)
    });
    let [xx, xy, yy, x, y] = rows.fold([0.0; 5], |[xx, xy, yy, sx, sy], (x, y)| [xx + x * x, xy + x * y, yy + y * y, sx + x, sy + y]);
    let determinant = xx * yy - xy * xy;
    let (alpha, inverse) = ((x * yy - y * xy) / determinant, (y * xx - x * xy) / determinant);
    (alpha > 0.0 && inverse > 0.0 && determinant.abs() > 0.0).then_some((alpha, 1.0 / inverse))
}

#[cfg(test)]
mod tests {
    use super::model::{Algorithm, Network};
    use super::*;

    #[test]
    fn alpha_and_beta_are_found_in_times_made_from_them() {
        let network = Network::new("test", 1e-3, 1e6, "");
        let timing = |ranks: u64, bytes: f64| {
            let crowding = crowding(ranks, 2);
            Timing { ranks, crowding, bytes, seconds: crowding * Algorithm::Ring.seconds(&network, ranks, bytes) }
        };
        let timings = [timing(2, 4096.0), timing(2, 1e6), timing(4, 4096.0), timing(4, 1e6)];
        let (alpha, beta) = fit(&timings).unwrap_or_default();
        assert!((alpha / 1e-3 - 1.0).abs() < 1e-9 && (beta / 1e6 - 1.0).abs() < 1e-9, "{alpha} {beta}");
        assert_eq!(fit(&[]), None);
    }
}
