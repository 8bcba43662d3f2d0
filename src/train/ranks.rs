//! The training loop's part in a world of several ranks: which micro-batches are this rank's, the sum of the gradients, and
//! what all ranks have to agree on. With one rank nothing here communicates, and the loop is what it is without.

use super::shard::Shard;
use crate::config::{Ranks as Settings, Train};
use crate::distributed::World;
use crate::model::Parameters;
use crate::native::distributed::{reached, Reducer, ReducerTimes};
use crate::native::NativeError;
use std::cell::{Cell, OnceCell};
use std::mem::ManuallyDrop;
use std::ops::Range;
use tch::{Kind, Tensor};

/// The first bucket is sent early; c10d's usual size.
const FIRST_BUCKET: usize = 1 << 20;

/// This rank in the training loop.
pub struct Ranks<'a> {
    pub world: &'a World,
    settings: &'a Settings,
    /// Made at the first step, when the graph is known. Its worker may wait for a rank that never answers: it is not joined.
    reducer: OnceCell<ManuallyDrop<Reduced>>,
    /// Some rank was asked to stop, as all of them know.
    stop: Cell<bool>,
    /// The gradient norm of the last step that was made, for the others to see. NaN: none.
    norm: Cell<f64>,
    /// If the optimizer's state is shared out.
    pub shard: Option<Shard>,
}

/// The reducer and the weights that it is for.
struct Reduced {
    reducer: Reducer,
    weights: Vec<Tensor>,
}

/// What the ranks tell each other after a step's backward pass.
#[derive(Clone, Copy, Debug, Default)]
pub struct Step {
    /// Loss of the whole batch.
    pub loss: f64,
    pub times: ReducerTimes,
}

impl<'a> Ranks<'a> {
    pub fn new(world: &'a World, settings: &'a Settings, parameters: &Parameters) -> Self {
        let shard = (settings.shard_optimizer && !world.is_single()).then(|| Shard::new(parameters, world.size()));
        Self { world, settings, reducer: OnceCell::new(), stop: Cell::new(false), norm: Cell::new(f64::NAN), shard }
    }

    /// After the optimizer's step: the weights that other ranks have updated.
    pub fn after_update(&self, parameters: &Parameters) -> Result<(), NativeError> {
        self.shard.as_ref().map_or(Ok(()), |shard| shard.exchange(self.world, parameters))
    }

    /// This rank's micro-batches of a batch of so many sequences. All ranks together have those of one process with as many
    /// times more of them.
    pub fn micro_batches(&self, train: &Train, sequences: usize) -> Vec<Range<usize>> {
        share_of_batch(self.world.rank(), self.world.size(), train, sequences)
    }

    /// To be called before the last backward pass of a step: it sums the gradients over all ranks. `loss` is of the last
    /// micro-batch; None: this rank has none.
    pub fn before_last(&self, parameters: &Parameters, loss: Option<&Tensor>) -> Result<(), NativeError> {
        if self.world.is_single() {
            return Ok(());
        }
        let reduced = match self.reducer.get() {
            Some(reduced) => reduced,
            None => {
                let made = ManuallyDrop::new(self.make_reducer(parameters, loss)?);
                self.reducer.get_or_init(|| made)
            }
        };
        reduced.reducer.prepare()?;
        if loss.is_none() {
            // The others wait for this rank's gradients all the same.
            let zeros: Vec<Tensor> = reduced.weights.iter().map(|w| (w * 0.0).sum(Kind::Float)).collect();
            Tensor::stack(&zeros, 0).sum(Kind::Float).backward();
        }
        Ok(())
    }

    /// Over the weights that the loss depends on, as rank 0 sees it, which has a part of every batch.
    fn make_reducer(&self, parameters: &Parameters, loss: Option<&Tensor>) -> Result<Reduced, NativeError> {
        let weights: Vec<Tensor> = parameters.trainable().map(|p| p.tensor.shallow_clone()).collect();
        let used = match loss {
            Some(loss) => reached(loss, &weights)?,
            None => vec![false; weights.len()],
        };
        let used = Tensor::from_slice(&used.iter().map(|u| i64::from(*u)).collect::<Vec<_>>());
        self.world.broadcast(std::iter::once(&used))?;
        let used: Vec<i64> = Vec::try_from(&used).unwrap_or_default();
        let weights: Vec<Tensor> = weights.into_iter().zip(used).filter(|(_, used)| *used == 1).map(|(w, _)| w).collect();
        let bucket = (self.settings.bucket_mib * (1u64 << 20) as f64) as usize;
        match self.world.group() {
            Some(group) => Ok(Reduced { reducer: Reducer::new(group, &weights, FIRST_BUCKET.min(bucket), bucket)?, weights }),
            None => Err(NativeError::new("no group of ranks")),
        }
    }

    /// The gradient norm that this rank found after the sum over the ranks: all of them should have found it.
    pub fn saw_norm(&self, norm: f64) {
        self.norm.set(norm);
    }

    /// Adds up the parts of the loss in the order of the ranks, finds out whether some rank is to stop, and compares the norms of
    /// the step before.
    pub fn after_backward(&self, loss: f64, asked_to_stop: bool) -> Result<Step, NativeError> {
        if self.world.is_single() {
            return Ok(Step { loss, times: ReducerTimes::default() });
        }
        let all = self.world.gather([loss, f64::from(u8::from(asked_to_stop)), self.norm.replace(f64::NAN)])?;
        self.stop.set(all.iter().any(|[_, stop, _]| *stop > 0.0));
        if let Some((rank, other, first)) = other_norm(&all.iter().map(|[_, _, norm]| *norm).collect::<Vec<_>>()) {
            return Err(NativeError::new(&format!(
                "the ranks have come apart: rank {rank} had the gradient norm {other} in the step before, rank 0 {first}; a machine or network that fails? Go on from the last checkpoint with --resume auto"
            )));
        }
        // In fp32, as micro-batches of one process are added up.
        let loss = all.iter().fold(0.0f32, |sum, [loss, _, _]| sum + *loss as f32);
        let times = self.reducer.get().map_or(Ok(ReducerTimes::default()), |r| r.reducer.times())?;
        Ok(Step { loss: loss.into(), times })
    }

    /// Whether to stop after this step: the same answer on all ranks. A rank by itself follows its own `interrupted`.
    pub fn is_stopped(&self, interrupted: bool) -> bool {
        if self.world.is_single() {
            interrupted
        } else {
            self.stop.get()
        }
    }

    /// An evaluation was broken off, on all ranks.
    pub fn stop(&self) {
        self.stop.set(true);
    }

    /// The first text that a rank has, in their order.
    pub fn first_said(&self, text: Option<String>) -> Result<Option<String>, NativeError> {
        Ok(self.world.gather_texts(&text.unwrap_or_default())?.into_iter().find(|text| !text.is_empty()))
    }

    /// Every so many steps the ranks compare their weights: one that differs is found, not trained on with.
    pub fn compare(&self, parameters: &Parameters, step: u64) -> Result<(), NativeError> {
        let every = self.settings.compare_every;
        if self.world.is_single() || every == 0 || !step.is_multiple_of(every) {
            return Ok(());
        }
        compare_weights(self.world, parameters, &format!("after step {step}"))
    }
}

/// The first rank whose gradient norm is not that of rank 0, with both. Machines of several kinds may round it differently.
fn other_norm(norms: &[f64]) -> Option<(usize, f64, f64)> {
    const ROUNDING: f64 = 1e-4;
    let first = norms[0];
    let same = |norm: f64| (norm.is_nan() && first.is_nan()) || (norm - first).abs() <= ROUNDING * first.abs();
    norms.iter().position(|norm| !same(*norm)).map(|rank| (rank, norms[rank], first))
}

/// Every rank has the weights of rank 0, to the bit, or the first one that differs is named.
pub fn compare_weights(world: &World, parameters: &Parameters, when: &str) -> Result<(), NativeError> {
    if world.is_single() {
        return Ok(());
    }
    let lists = world.gather_lists(parameters.iter().map(|p| checksum(&p.tensor)).collect())?;
    let same = |rank: usize, i: usize| lists[rank].get(i).map(|v| v.to_bits()) == lists[0].get(i).map(|v| v.to_bits());
    for rank in 1..lists.len() {
        if let Some(i) = (0..lists[0].len()).find(|i| !same(rank, *i)) {
            let name = parameters.iter().nth(i).map(|p| p.name.clone()).unwrap_or_default();
            return Err(NativeError::new(&format!(
                "the ranks have come apart {when}: rank {rank} has other bits in {name} than rank 0 (checksums {} and {}); a machine that computes otherwise (another CPU, a fault)? Go on from the last checkpoint with --resume auto",
                lists[rank].get(i).copied().unwrap_or(f64::NAN),
                lists[0][i]
            )));
        }
    }
    Ok(())
}

/// Of the bits of a tensor, whatever the order in which it is computed: 53 bits of two sums.
fn checksum(tensor: &Tensor) -> f64 {
    let _guard = tch::no_grad_guard();
    let bits = tensor.detach().contiguous().view_dtype(Kind::Int).view([-1]).to_kind(Kind::Int64);
    let places = Tensor::arange(bits.numel() as i64, (Kind::Int64, bits.device())).remainder(65_521) + 1;
    let sum = bits.sum(Kind::Int64).int64_value(&[]);
    let weighted = (bits * places).sum(Kind::Int64).int64_value(&[]);
    ((sum ^ weighted.rotate_left(21)) & ((1 << 53) - 1)) as f64
}

fn share_of_batch(rank: usize, ranks: usize, train: &Train, sequences: usize) -> Vec<Range<usize>> {
    let share = train.batch_size.div_ceil(ranks);
    let each = share.div_ceil(train.micro_batch().min(share));
    let micro = sequences.div_ceil(ranks * each).max(1);
    let all = (0..sequences).step_by(micro).map(|first| first..(first + micro).min(sequences));
    all.skip(rank * each).take(each).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tch::Device;

    /// Every sequence once, in order, whatever the number of ranks; ranks may have nothing.
    #[test]
    fn the_ranks_share_a_batch_as_one_process_with_more_micro_batches_cuts_it() {
        for (batch, micro, sequences) in [(8, None, 8), (8, Some(1), 8), (8, Some(3), 5), (5, None, 5), (4, None, 2), (64, Some(8), 64)] {
            for ranks in 1..=6 {
                let train = |micro| Train { batch_size: batch, micro_batch_size: micro, ..Train::default() };
                let shares: Vec<_> = (0..ranks).map(|r| share_of_batch(r, ranks, &train(micro), sequences)).collect();
                let all: Vec<usize> = shares.concat().into_iter().flatten().collect();
                assert_eq!(all, (0..sequences).collect::<Vec<_>>(), "{batch} {micro:?} {ranks}");
                assert!(shares[0].len() <= shares[0].len().max(1) && !shares[0].is_empty());
                let longest = shares.concat().iter().map(Range::len).max().unwrap();
                assert!(longest <= train(micro).micro_batch());
            }
        }
    }

    #[test]
    fn a_norm_that_is_not_the_others_is_found() {
        assert_eq!(other_norm(&[2.0, 2.0 + 1e-9, 2.0]), None);
        assert_eq!(other_norm(&[f64::NAN, f64::NAN]), None, "the step before was skipped by all");
        assert_eq!(other_norm(&[2.0, 2.0, 2.1]), Some((2, 2.1, 2.0)));
        assert!(other_norm(&[2.0, f64::NAN]).is_some_and(|(rank, _, _)| rank == 1));
        assert_eq!(other_norm(&[0.0, 0.0]), None);
    }

    #[test]
    fn a_checksum_sees_one_bit_and_the_order() {
        let t = (Tensor::arange(1000, (Kind::Float, Device::Cpu)) * 0.7391).sin();
        let same = t.copy();
        assert_eq!(checksum(&t), checksum(&same));
        let mut swapped = t.copy();
        let (a, b) = (t.double_value(&[3]), t.double_value(&[4]));
        let _ = swapped.narrow(0, 3, 1).fill_(b);
        let _ = swapped.narrow(0, 4, 1).fill_(a);
        assert_ne!(checksum(&t), checksum(&swapped));
        swapped = t.copy();
        let _ = swapped.narrow(0, 7, 1).neg_();
        assert_ne!(checksum(&t), checksum(&swapped));
    }
}
