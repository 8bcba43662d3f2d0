//! Batches: plain integers, and the tensors made from them.

use super::masking::Target;
use super::tasks::Example;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use tch::{Device, Tensor};

/// Masked sequences of one length; padding stands at their ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MlmBatch {
    length: usize,
    /// B x n.
    pub ids: Vec<i64>,
    /// Index in B x n of each token to predict, ascending.
    pub positions: Vec<i64>,
    /// The tokens that stood there.
    pub targets: Vec<i64>,
    /// Real tokens of each sequence; empty: no padding anywhere.
    #[serde(default)]
    lengths: Vec<usize>,
}

/// The tensors of some sequences of an [`MlmBatch`].
pub struct MlmTensors {
    /// `[B, n]`.
    pub ids: Tensor,
    /// `[M]`, index in B x n, ascending.
    pub positions: Tensor,
    /// `[M]`; some may be [`IGNORED`].
    pub targets: Tensor,
    /// `[B, n]`, 1 at real tokens; None: no padding.
    pub attention_mask: Option<Tensor>,
}

/// A target that the loss leaves out.
pub const IGNORED: i64 = -100;
/// The number of targets is filled up to a multiple of this: libtorch compiles its bf16 products anew for every shape, and
/// the number of masked tokens is another at each step.
const TARGETS_MULTIPLE: usize = 128;

impl MlmBatch {
    pub fn new(length: usize) -> Self {
        Self { length, ids: Vec::new(), positions: Vec::new(), targets: Vec::new(), lengths: Vec::new() }
    }

    pub fn push(&mut self, ids: &[u32], targets: &[Target]) {
        let base = self.ids.len();
        self.ids.extend(ids.iter().map(|id| i64::from(*id)));
        self.positions.extend(targets.iter().map(|t| (base + t.position) as i64));
        self.targets.extend(targets.iter().map(|t| i64::from(t.token)));
    }

    /// A sequence shorter than the others, filled up with `pad`.
    pub fn push_padded(&mut self, ids: &[u32], targets: &[Target], pad: u32) {
        self.push(ids, targets);
        self.lengths.push(ids.len());
        self.ids.resize(self.lengths.len() * self.length, pad.into());
    }

    pub fn length(&self) -> usize {
        self.length
    }

    /// Real tokens.
    pub fn tokens(&self) -> usize {
        if self.lengths.is_empty() {
            self.ids.len()
        } else {
            self.lengths.iter().sum()
        }
    }

    pub fn sequences(&self) -> usize {
        self.ids.len() / self.length
    }

    /// Tensors of a range of sequences.
    pub fn tensors(&self, sequences: Range<usize>, device: Device) -> MlmTensors {
        let (start, end) = (sequences.start * self.length, sequences.end * self.length);
        let from = self.positions.partition_point(|p| (*p as usize) < start);
        let to = self.positions.partition_point(|p| (*p as usize) < end);
        let chosen = self.positions[from..to].iter().zip(&self.targets[from..to]).map(|(p, target)| (*p as usize - start, *target));
        let (positions, targets) = filled_up(chosen.collect(), sequences.len(), self.length);
        let shape = [sequences.len() as i64, self.length as i64];
        let attention_mask = (!self.lengths.is_empty()).then(|| {
            let of = |length: &usize| (0..self.length).map(|i| i64::from(i < *length)).collect::<Vec<_>>();
            let mask: Vec<i64> = self.lengths[sequences.clone()].iter().flat_map(of).collect();
            Tensor::from_slice(&mask).view(shape).to_device(device)
        });
        MlmTensors {
            attention_mask,
            ids: Tensor::from_slice(&self.ids[start..end]).view(shape).to_device(device),
            positions: Tensor::from_slice(&positions).to_device(device),
            targets: Tensor::from_slice(&targets).to_device(device),
        }
    }
}

/// Positions and targets, ascending, with ignored ones between them up to a multiple of [`TARGETS_MULTIPLE`], which are spread
/// over the sequences: the last layer takes as many of each.
fn filled_up(mut chosen: Vec<(usize, i64)>, sequences: usize, length: usize) -> (Vec<i64>, Vec<i64>) {
    let mut is_free = vec![true; sequences * length];
    chosen.iter().for_each(|(position, _)| is_free[*position] = false);
    let missing = chosen.len().next_multiple_of(TARGETS_MULTIPLE) - chosen.len();
    let by_column = (0..length).flat_map(|column| (0..sequences).map(move |row| row * length + column));
    chosen.extend(by_column.filter(|position| is_free[*position]).take(missing).map(|position| (position, IGNORED)));
    chosen.sort_unstable_by_key(|(position, _)| *position);
    chosen.into_iter().map(|(position, target)| (position as i64, target)).unzip()
}

/// Labelled sequences of one task, padded on the right to one length.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskBatch {
    pub examples: Vec<Example>,
    pad: u32,
    /// Of the longest sequence: the cut into micro-batches does not change it.
    length: usize,
}

/// The tensors of some rows of a [`TaskBatch`].
pub struct TaskTensors {
    /// `[B, L]`.
    pub ids: Tensor,
    /// `[B, L]`, 1 at real tokens.
    pub attention_mask: Tensor,
    /// `[B]`: int64 classes, or fp32 numbers of a regression.
    pub labels: Tensor,
}

impl TaskBatch {
    pub fn new(examples: Vec<Example>, pad: u32) -> Self {
        let length = examples.iter().map(|e| e.ids.len()).max().unwrap_or(0);
        Self { examples, pad, length }
    }

    pub fn length(&self) -> usize {
        self.length
    }

    /// Real tokens.
    pub fn tokens(&self) -> usize {
        self.examples.iter().map(|e| e.ids.len()).sum()
    }

    /// Tensors of a range of rows.
    pub fn tensors(&self, rows: Range<usize>, regression: bool, device: Device) -> TaskTensors {
        let shape = [rows.len() as i64, self.length as i64];
        let rows = &self.examples[rows];
        let padded = |e: &Example| (0..self.length).map(|i| i64::from(e.ids.get(i).copied().unwrap_or(self.pad))).collect::<Vec<_>>();
        let ids: Vec<i64> = rows.iter().flat_map(padded).collect();
        let mask: Vec<i64> = rows.iter().flat_map(|e| (0..self.length).map(|i| i64::from(i < e.ids.len()))).collect();
        let labels = if regression {
            Tensor::from_slice(&rows.iter().map(|e| e.label as f32).collect::<Vec<_>>())
        } else {
            Tensor::from_slice(&rows.iter().map(|e| e.label as i64).collect::<Vec<_>>())
        };
        TaskTensors {
            ids: Tensor::from_slice(&ids).view(shape).to_device(device),
            attention_mask: Tensor::from_slice(&mask).view(shape).to_device(device),
            labels: labels.to_device(device),
        }
    }
}
/// Positions of a forward pass without gradients, padding included, and sequences.
const EVALUATION_POSITIONS: usize = 1 << 14;
const EVALUATION_SEQUENCES: usize = 256;

/// Sequences of like length together, the shortest first: each batch holds at most `EVALUATION_POSITIONS` (or one sequence)
/// and so little padding.
pub fn batches_by_length(lengths: &[usize]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|row| lengths[*row]);
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for row in order {
        match batches.last_mut() {
            Some(batch) if batch.len() < EVALUATION_SEQUENCES && (batch.len() + 1) * lengths[row] <= EVALUATION_POSITIONS => {
                batch.push(row)
            }
            _ => batches.push(vec![row]),
        }
    }
    batches
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_filled_up_with_ignored_ones_that_are_spread_over_the_sequences() {
        let (sequences, length) = (16, 24);
        let chosen: Vec<(usize, i64)> = (0..150).map(|i| (i * 2, i as i64)).collect();
        let (positions, targets) = filled_up(chosen.clone(), sequences, length);
        assert_eq!(positions.len(), 256);
        assert!(positions.windows(2).all(|pair| pair[0] < pair[1]), "{positions:?}");
        let kept = positions.iter().zip(&targets).filter(|(_, target)| **target != IGNORED);
        assert_eq!(kept.map(|(p, target)| (*p as usize, *target)).collect::<Vec<_>>(), chosen);
        let of = |sequence: usize| positions.iter().filter(|p| **p as usize / length == sequence).count();
        let counts: Vec<usize> = (0..sequences).map(of).collect();
        assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 14, "{counts:?}");
        // No more than there are.
        assert_eq!(filled_up(vec![(3, 9)], 2, 5).0, (0..10).collect::<Vec<_>>());
        assert_eq!(filled_up(Vec::new(), 2, 5), (Vec::new(), Vec::new()));
    }
}
