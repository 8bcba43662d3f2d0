//! Which rows make the batch of a step when rows differ in length: a function of (seed, step) alone.
//!
//! An epoch's permutation is cut into windows; the rows of a window are sorted by length and cut into batches, so that the
//! rows of a batch are about equally long and little of it is padding; then the batches of the epoch are shuffled.

use crate::random::{Purpose, Stream};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// How large a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchRule {
    /// Rows.
    Sequences(usize),
    /// Positions, padding included: at least one row, whatever its length.
    Tokens(usize),
}

/// The batches of all epochs.
pub struct Buckets {
    seed: u64,
    lengths: Vec<u32>,
    rule: BatchRule,
    /// Rows that are sorted together; 0: none.
    window: usize,
    /// The first step (from 0) of every epoch known so far, and of the one behind.
    starts: Mutex<Vec<u64>>,
    /// The epoch used last.
    cached: Mutex<Option<(u64, Arc<Epoch>)>>,
}

/// One epoch's rows in order, and the batches cut from them.
struct Epoch {
    rows: Vec<u32>,
    batches: Vec<Range<usize>>,
}

impl Buckets {
    /// `batches` of a window are sorted together; 0: none.
    pub fn new(seed: u64, lengths: Vec<u32>, rule: BatchRule, batches: usize) -> Self {
        let total: u64 = lengths.iter().map(|l| u64::from(*l)).sum();
        let mean = (total as usize / lengths.len().max(1)).max(1);
        let rows = match rule {
            BatchRule::Sequences(rows) => rows,
            BatchRule::Tokens(tokens) => (tokens / mean).max(1),
        };
        Self { seed, lengths, rule, window: rows * batches, starts: Mutex::new(vec![0]), cached: Mutex::new(None) }
    }

    /// The rows of a step (from 1). A batch never reaches into another epoch: an epoch's last may be smaller.
    pub fn rows(&self, step: u64) -> Vec<usize> {
        let (epoch, batch) = self.place(step - 1);
        let epoch = self.epoch(epoch);
        epoch.rows[epoch.batches[batch].clone()].iter().map(|row| *row as usize).collect()
    }

    /// Steps that so many epochs come to.
    pub fn steps(&self, epochs: f64) -> u64 {
        let whole = epochs.floor() as u64;
        let start = |epoch: u64| self.start(epoch) as f64;
        let steps = start(whole) + (epochs - whole as f64) * (start(whole + 1) - start(whole));
        (steps.ceil() as u64).max(1)
    }

    /// Epoch of a step (from 0), and which of its batches.
    fn place(&self, step: u64) -> (u64, usize) {
        if let BatchRule::Sequences(rows) = self.rule {
            let batches = self.lengths.len().div_ceil(rows) as u64;
            return (step / batches, (step % batches) as usize);
        }
        let mut epoch = 0;
        while self.start(epoch + 1) <= step {
            epoch += 1;
        }
        (epoch, (step - self.start(epoch)) as usize)
    }

    /// First step (from 0) of an epoch.
    fn start(&self, epoch: u64) -> u64 {
        if let BatchRule::Sequences(rows) = self.rule {
            return epoch * self.lengths.len().div_ceil(rows) as u64;
        }
        // How many batches make an epoch depends on which rows meet: every epoch before it is looked at once.
        let mut starts = self.starts.lock().unwrap_or_else(PoisonError::into_inner);
        while starts.len() as u64 <= epoch {
            let known = starts.len() as u64 - 1;
            let next = starts[known as usize] + self.epoch(known).batches.len() as u64;
            starts.push(next);
        }
        starts[epoch as usize]
    }

    fn epoch(&self, number: u64) -> Arc<Epoch> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        match &*cached {
            Some((have, epoch)) if *have == number => epoch.clone(),
            _ => {
                let epoch = Arc::new(self.plan(number));
                *cached = Some((number, epoch.clone()));
                epoch
            }
        }
    }

    fn plan(&self, number: u64) -> Epoch {
        let mut rows = Stream::new(self.seed, Purpose::Order, number).draws().permutation(self.lengths.len());
        let length = |row: u32| self.lengths[row as usize] as usize;
        let mut batches = Vec::new();
        let window = if self.window == 0 { rows.len().max(1) } else { self.window };
        let mut first = 0;
        for part in rows.chunks_mut(window) {
            if self.window > 0 {
                part.sort_by_key(|row| length(*row));
            }
            let mut at = 0;
            while at < part.len() {
                let count = self.fitting(&part[at..], length);
                batches.push(first + at..first + at + count);
                at += count;
            }
            first += part.len();
        }
        if self.window > 0 {
            let order = Stream::new(self.seed, Purpose::BatchOrder, number).draws().permutation(batches.len());
            batches = order.into_iter().map(|i| batches[i as usize].clone()).collect();
        }
        Epoch { rows, batches }
    }

    /// How many of the rows, from the first, make a batch.
    fn fitting(&self, rows: &[u32], length: impl Fn(u32) -> usize) -> usize {
        match self.rule {
            BatchRule::Sequences(count) => count.min(rows.len()),
            BatchRule::Tokens(tokens) => {
                let mut longest = 0;
                let too_many = |(i, row): (usize, &u32)| {
                    longest = longest.max(length(*row));
                    longest * (i + 1) > tokens
                };
                rows.iter().enumerate().position(too_many).unwrap_or(rows.len()).max(1)
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Lengths from 4 to 67 without an order.
    fn lengths(count: u64) -> Vec<u32> {
        let mut draws = Stream::new(1, Purpose::Derivation, 0).draws();
        (0..count).map(|_| 4 + draws.below(64) as u32).collect()
    }

    fn padding(buckets: &Buckets, steps: u64) -> f64 {
        let (mut real, mut all) = (0, 0);
        for step in 1..=steps {
            let of: Vec<u32> = buckets.rows(step).iter().map(|row| buckets.lengths[*row]).collect();
            real += of.iter().sum::<u32>();
            all += of.iter().max().unwrap() * of.len() as u32;
        }
        1.0 - f64::from(real) / f64::from(all)
    }

    #[test]
    fn every_row_once_an_epoch_by_either_rule() {
        for rule in [BatchRule::Sequences(8), BatchRule::Tokens(300)] {
            let buckets = Buckets::new(3, lengths(1003), rule, 5);
            let first = buckets.steps(1.0);
            for steps in [1..=first, first + 1..=buckets.steps(2.0)] {
                let mut rows: Vec<usize> = steps.flat_map(|step| buckets.rows(step)).collect();
                rows.sort_unstable();
                assert_eq!(rows, (0..1003).collect::<Vec<_>>());
            }
            assert_ne!(buckets.rows(1), buckets.rows(first + 1));
        }
    }

    #[test]
    fn a_step_is_the_same_whatever_was_asked_before() {
        for rule in [BatchRule::Sequences(8), BatchRule::Tokens(300)] {
            let new = || Buckets::new(3, lengths(100), rule, 4);
            let whole: Vec<Vec<usize>> = (1..=60).map(|step| new().rows(step)).collect();
            let one = new();
            assert_eq!((1..=60).rev().map(|step| one.rows(step)).collect::<Vec<_>>(), whole.into_iter().rev().collect::<Vec<_>>());
        }
    }

    #[test]
    fn buckets_leave_little_padding_and_tokens_bound_a_batch() {
        let of = |rule, batches| {
            let buckets = Buckets::new(3, lengths(10_000), rule, batches);
            (padding(&buckets, buckets.steps(1.0)), buckets)
        };
        assert!(of(BatchRule::Sequences(32), 0).0 > 0.4);
        assert!(of(BatchRule::Sequences(32), 50).0 < 0.05);
        let (share, buckets) = of(BatchRule::Tokens(1024), 50);
        assert!(share < 0.05, "{share}");
        for step in 1..=buckets.steps(1.0) {
            let rows = buckets.rows(step);
            assert!(rows.len() * rows.iter().map(|row| buckets.lengths[*row]).max().unwrap() as usize <= 1024);
        }
        assert_eq!(Buckets::new(0, vec![50; 4], BatchRule::Tokens(10), 2).rows(1).len(), 1);
    }

    #[test]
    fn steps_of_a_part_of_an_epoch() {
        let buckets = Buckets::new(0, lengths(100), BatchRule::Sequences(8), 2);
        assert_eq!((buckets.steps(1.0), buckets.steps(2.5), buckets.steps(0.001)), (13, 33, 1));
    }
}
