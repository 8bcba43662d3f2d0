//! The learning rate of each step, counted from 1: the rate that is logged is the rate that was used.

use crate::config::{ScheduleKind, Train};

/// Warm-up, a stable part, and a decay whose length may be given (`decay_steps`).
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    kind: ScheduleKind,
    peak: f64,
    warmup: u64,
    decay: u64,
    total: u64,
    floor: f64,
}

impl Schedule {
    /// For `total` steps.
    pub fn new(train: &Train, total: u64) -> Self {
        let warmup = train.warmup_steps.min(total);
        let decay = train.decay_steps.unwrap_or(total - warmup).min(total - warmup);
        Self { kind: train.schedule, peak: train.learning_rate, warmup, decay, total, floor: train.min_learning_rate_ratio }
    }

    /// The rate of a step in 1..=total: above 0 at the first, `peak` at the end of the warm-up and as long as it is stable,
    /// then down to the floor one step *after* the last, so that no step is wasted on a rate of 0.
    pub fn at(&self, step: u64) -> f64 {
        if step <= self.warmup {
            return self.peak * step as f64 / self.warmup as f64;
        }
        let stable_until = self.total - self.decay;
        let progress = if step <= stable_until { 0.0 } else { (step - stable_until) as f64 / (self.decay + 1) as f64 };
        let factor = match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Linear => 1.0 - progress,
            ScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            ScheduleKind::InverseSqrt => (self.warmup.max(1) as f64 / step as f64).sqrt(),
        };
        self.peak * factor.max(self.floor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(kind: ScheduleKind, warmup: u64, decay: Option<u64>, total: u64) -> Vec<f64> {
        let train = Train { schedule: kind, learning_rate: 1.0, warmup_steps: warmup, decay_steps: decay, ..Train::default() };
        let schedule = Schedule::new(&train, total);
        (1..=total).map(|s| (schedule.at(s) * 1000.0).round() / 1000.0).collect()
    }

    #[test]
    fn warm_up_4_stable_2_decay_4() {
        assert_eq!(table(ScheduleKind::Linear, 4, Some(4), 10), [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]);
        let cosine = table(ScheduleKind::Cosine, 4, Some(4), 10);
        assert_eq!(cosine, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.905, 0.655, 0.345, 0.095]);
    }

    #[test]
    fn the_edges_divide_by_nothing() {
        assert_eq!(table(ScheduleKind::Linear, 0, None, 3), [0.75, 0.5, 0.25]);
        assert_eq!(table(ScheduleKind::Linear, 3, None, 3), [0.333, 0.667, 1.0]);
        assert_eq!(table(ScheduleKind::Cosine, 0, Some(0), 2), [1.0, 1.0]);
        assert_eq!(table(ScheduleKind::Constant, 2, None, 4), [0.5, 1.0, 1.0, 1.0]);
        assert_eq!(table(ScheduleKind::InverseSqrt, 1, None, 4), [1.0, 0.707, 0.577, 0.5]);
        assert!(table(ScheduleKind::InverseSqrt, 0, None, 4).iter().all(|r| r.is_finite() && *r > 0.0));
    }
}
