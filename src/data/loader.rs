//! Batches made ahead of the step that needs them, by a thread of their own.

use crate::native::panics::silently;
use std::ops::RangeInclusive;
use std::sync::mpsc::{sync_channel, Receiver};

/// Batches made and not yet taken at most: memory is that of so many and the one in the making.
const QUEUE: usize = 4;

/// Where batches come from. A batch is a function of its step alone, so that it does not matter who makes it when.
pub trait Batches: Sync {
    type Batch: Send;

    /// The whole batch of a step (from 1).
    fn batch(&self, step: u64) -> Self::Batch;
}

/// The batches of some steps in their order.
pub struct Loader<'a, B: Batches> {
    source: &'a B,
    ready: Receiver<(u64, B::Batch)>,
}

impl<B: Batches> Loader<'_, B> {
    /// The batch of a step. Another step than the next one, or one that the thread could not make, is made here.
    pub fn take(&self, step: u64) -> B::Batch {
        match self.ready.recv() {
            Ok((made, batch)) if made == step => batch,
            _ => self.source.batch(step),
        }
    }
}

/// Runs `body` while a thread makes the batches of `steps`. The thread ends with `body`, whatever is still in the queue.
pub fn with<B: Batches, T>(source: &B, steps: RangeInclusive<u64>, body: impl FnOnce(&Loader<B>) -> T) -> T {
    std::thread::scope(|scope| {
        let (give, ready) = sync_channel(QUEUE);
        let worker = scope.spawn(move || {
            // A panic ends the thread; the step that asks for the batch meets it again, and tells of it.
            let _ = silently(|| {
                for step in steps {
                    if give.send((step, source.batch(step))).is_err() {
                        break;
                    }
                }
            });
        });
        let loader = Loader { source, ready };
        let result = body(&loader);
        drop(loader);
        let _ = worker.join();
        result
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    struct Squares {
        made: AtomicU64,
        fails_at: u64,
    }

    impl Batches for Squares {
        type Batch = u64;

        fn batch(&self, step: u64) -> u64 {
            assert_ne!(step, self.fails_at, "no such batch");
            self.made.fetch_add(1, Ordering::SeqCst);
            step * step
        }
    }

    fn squares(fails_at: u64) -> Squares {
        Squares { made: AtomicU64::new(0), fails_at }
    }

    #[test]
    fn batches_come_in_the_order_of_steps_from_any_step_on() {
        let source = squares(0);
        let taken = with(&source, 7..=40, |loader| (7..=40).map(|step| loader.take(step)).collect::<Vec<_>>());
        assert_eq!(taken, (7..=40).map(|s| s * s).collect::<Vec<_>>());
        assert_eq!(source.made.load(Ordering::SeqCst), 34);
    }

    #[test]
    fn the_queue_is_bounded_and_an_early_end_leaves_no_thread() {
        let source = squares(0);
        with(&source, 1..=1_000_000_000, |loader| {
            assert_eq!(loader.take(1), 1);
            let begun = Instant::now();
            // One taken, the queue, and one that waits to get in.
            while source.made.load(Ordering::SeqCst) < 2 + QUEUE as u64 && begun.elapsed() < Duration::from_secs(20) {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(source.made.load(Ordering::SeqCst), 2 + QUEUE as u64);
        });
    }

    #[test]
    fn a_batch_that_cannot_be_made_is_told_to_the_step_that_asks_for_it() {
        let source = squares(3);
        let told = silently(|| with(&source, 1..=9, |loader| (1..=9).map(|step| loader.take(step)).sum::<u64>()));
        assert!(told.unwrap_err().contains("no such batch"));
    }

    #[test]
    fn steps_out_of_order_are_still_right() {
        with(&squares(0), 1..=3, |loader| assert_eq!([5, 2, 3, 9].map(|step| loader.take(step)), [25, 4, 9, 81]));
    }
}
