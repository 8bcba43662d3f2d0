//! Numerical health: gradients that are unusually large, steps that are not finite.

use super::state::Health;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// A gradient norm this many times the running mean is a spike ...
const SPIKE: f64 = 5.0;
/// ... once so many norms are known.
const KNOWN: u64 = 20;
/// Share of the running mean that stays at each step.
const DECAY: f64 = 0.98;

/// What was wrong with a step that was skipped.
#[derive(Clone, Debug, PartialEq)]
pub struct NotFinite {
    /// `loss` or `gradient norm`.
    pub what: &'static str,
    pub value: f64,
    /// The first module whose output, or else the first weight whose gradient, is not finite.
    pub place: String,
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "the {} is not finite ({}), first in {}", self.what, self.value, self.place)
    }
}

/// `nonfinite-STEP.json` of a run: the batch that ended it, for `linformer replay`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    pub step: u64,
    pub what: String,
    pub place: String,
    /// As the task serialises it.
    pub batch: Value,
}

impl Incident {
    pub fn file_name(step: u64) -> String {
        format!("nonfinite-{step:08}.json")
    }
}

impl Health {
    /// Takes a step's gradient norm; how many times the mean it is, if it is a spike.
    pub fn made(&mut self, norm: f64) -> Option<f64> {
        self.skipped_in_a_row = 0;
        let ratio = norm / self.mean_norm.max(f64::MIN_POSITIVE);
        let spike = self.norms >= KNOWN && ratio > SPIKE;
        // A spike counts as no more than the limit: one of them does not hide the next.
        let value = if spike { SPIKE * self.mean_norm } else { norm };
        let weight = (1.0 / (self.norms + 1) as f64).max(1.0 - DECAY);
        self.mean_norm += weight * (value - self.mean_norm);
        self.norms += 1;
        spike.then_some(ratio)
    }

    pub fn skip(&mut self) {
        self.skipped += 1;
        self.skipped_in_a_row += 1;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_is_seen_against_the_usual_norm_and_does_not_hide_the_next() {
        let mut health = Health::default();
        assert!((0..30).all(|i| health.made(1.0 + f64::from(i % 3) * 0.1).is_none()));
        let usual = health.mean_norm;
        assert!((health.made(50.0).unwrap() - 50.0 / usual).abs() < 1e-9);
        assert!(health.made(50.0).is_some(), "the first spike moved the mean to {}", health.mean_norm);
        assert!(health.made(1.0).is_none());
        health.skip();
        health.skip();
        assert_eq!((health.skipped, health.skipped_in_a_row), (2, 2));
        health.made(1.0);
        assert_eq!((health.skipped, health.skipped_in_a_row), (2, 0));
    }
}
