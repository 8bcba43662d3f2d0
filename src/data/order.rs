//! The order of samples: an endless row of epochs, each a permutation that is a function of (seed, epoch).

use crate::random::{Purpose, Stream};
use std::sync::{Mutex, PoisonError};

/// Which of `count` items each sample of a run is.
pub struct EpochOrder {
    seed: u64,
    count: usize,
    /// The epoch used last.
    cached: Mutex<Option<(u64, Vec<u32>)>>,
}

impl EpochOrder {
    pub fn new(seed: u64, count: usize) -> Self {
        Self { seed, count, cached: Mutex::new(None) }
    }

    /// The item of a sample, counted from the start of the run over all epochs.
    pub fn item(&self, sample: u64) -> usize {
        let (epoch, place) = (sample / self.count as u64, (sample % self.count as u64) as usize);
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        match &*cached {
            Some((have, order)) if *have == epoch => order[place] as usize,
            _ => {
                let order = Stream::new(self.seed, Purpose::Order, epoch).draws().permutation(self.count);
                let item = order[place] as usize;
                *cached = Some((epoch, order));
                item
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_epoch_holds_every_item_once_in_an_order_of_its_own() {
        let order = EpochOrder::new(3, 50);
        let epoch = |e: u64| (e * 50..(e + 1) * 50).map(|s| order.item(s)).collect::<Vec<_>>();
        let mut sorted = epoch(1);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        assert_ne!(epoch(0), epoch(1));
        // Going back gives the same: nothing depends on what was asked before.
        assert_eq!(epoch(0), EpochOrder { cached: Mutex::new(None), ..order }.items(0..50));
    }

    impl EpochOrder {
        fn items(&self, samples: std::ops::Range<u64>) -> Vec<usize> {
            samples.map(|s| self.item(s)).collect()
        }
    }
}
