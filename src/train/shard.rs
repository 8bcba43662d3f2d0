//! ZeRO-1: every rank holds the optimizer's state of some of the weights, updates those, and gets the others from their owners.
//!
//! Weights are not cut: each belongs to one rank, so that its update has the same bits as without. Gradients are still summed on
//! all ranks, which all need the norm. A checkpoint holds the whole state: it does not depend on the number of ranks.

use super::optimizer::Optimizer;
use crate::config::Train;
use crate::distributed::World;
use crate::model::Parameters;
use crate::native::NativeError;
use tch::{Kind, Tensor};

/// Who owns which trainable weight.
pub struct Shard {
    /// The owner of each, in the order of the weights.
    owners: Vec<usize>,
    /// Elements of the rank that has most.
    largest: i64,
}

impl Shard {
    pub fn new(parameters: &Parameters, ranks: usize) -> Self {
        let sizes: Vec<i64> = parameters.trainable().map(|p| p.tensor.numel() as i64).collect();
        let (owners, largest) = assign(&sizes, ranks);
        Self { owners, largest }
    }

    pub fn owns(&self, rank: usize, weight: usize) -> bool {
        self.owners[weight] == rank
    }

    /// After this rank has updated its own weights: takes over those of the others.
    pub fn exchange(&self, world: &World, parameters: &Parameters) -> Result<(), NativeError> {
        let Some(group) = world.group() else { return Ok(()) };
        let _guard = tch::no_grad_guard();
        let weights: Vec<Tensor> = parameters.trainable().map(|p| p.tensor.detach()).collect();
        let own = Tensor::zeros([self.largest], (Kind::Float, parameters.device()));
        let mut at = 0;
        for (weight, _) in weights.iter().zip(&self.owners).filter(|(_, owner)| **owner == world.rank()) {
            let count = weight.numel() as i64;
            own.narrow(0, at, count).copy_(&weight.view([-1]));
            at += count;
        }
        let all = group.all_gather(&own)?;
        let mut places = vec![0; world.size()];
        for (weight, owner) in parameters.trainable().zip(&self.owners) {
            let count = weight.tensor.numel() as i64;
            if *owner != world.rank() {
                let from = all.get(*owner as i64).narrow(0, places[*owner], count).view_as(&weight.tensor);
                // In place on the weight itself: its version tells that copies of it are old.
                weight.tensor.shallow_clone().copy_(&from);
            }
            places[*owner] += count;
        }
        Ok(())
    }

    /// The whole state on rank 0, for a checkpoint; None on the others.
    pub fn gather(
        &self,
        world: &World,
        parameters: &Parameters,
        settings: &Train,
        own: &Optimizer,
    ) -> Result<Option<Optimizer>, NativeError> {
        let Some(group) = world.group() else { return Ok(None) };
        let _guard = tch::no_grad_guard();
        let whole = world.is_first().then(|| Optimizer::new(parameters, settings));
        let mut mine = own.state().into_iter().map(|(_, tensor)| tensor);
        let mut into = whole.as_ref().map(|whole| whole.state().into_iter().map(|(_, tensor)| tensor));
        for (weight, owner) in parameters.trainable().zip(&self.owners) {
            // First and second moment, and the step counter.
            for shape in [weight.tensor.size(), weight.tensor.size(), Vec::new()] {
                let target = into.as_mut().and_then(Iterator::next);
                let tensor = match (*owner == world.rank()).then(|| mine.next()).flatten() {
                    Some(tensor) => tensor.shallow_clone(),
                    None => Tensor::empty(shape.as_slice(), (Kind::Float, parameters.device())),
                };
                group.broadcast(&tensor, *owner)?;
                if let Some(target) = target {
                    target.shallow_clone().copy_(&tensor);
                }
            }
        }
        drop(into);
        Ok(whole)
    }
}

/// The largest first, each to the rank that has least: the owners, and the elements of the rank that has most.
fn assign(sizes: &[i64], ranks: usize) -> (Vec<usize>, i64) {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|i| (-sizes[*i], *i));
    let (mut owners, mut loads) = (vec![0; sizes.len()], vec![0; ranks]);
    for i in order {
        let rank = (0..ranks).min_by_key(|r| (loads[*r], *r)).unwrap_or(0);
        owners[i] = rank;
        loads[rank] += sizes[i];
    }
    (owners, loads.into_iter().max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_weight_has_one_owner_and_no_rank_has_much_more_than_another() {
        let (owners, largest) = assign(&[50, 3, 3, 20, 20, 10], 2);
        assert_eq!((owners, largest), (vec![0, 0, 1, 1, 1, 1], 53));
        assert_eq!(assign(&[5], 3), (vec![0], 5));
    }
}
