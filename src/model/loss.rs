//! Losses as sums: the trainer divides by the number of targets of the whole batch, so that accumulation over
//! micro-batches with unequal numbers of targets gives the loss of one big batch.

use super::layers::fp32_at_least;
use tch::{Kind, Reduction, Tensor};

/// Cross-entropy in nats, summed over rows: logits `[M, V]` (any kind, computed in fp32 at least), targets `[M]` int64, -100 ignored.
///
/// Label smoothing e is PyTorch's: the target gets 1 - e + e/V and every other class e/V. fairseq's
/// `label_smoothed_cross_entropy` spreads its e over the V - 1 others, so that e here equals fairseq's times V/(V - 1).
pub fn cross_entropy_sum(logits: &Tensor, targets: &Tensor, label_smoothing: f64) -> Tensor {
    logits.to_kind(fp32_at_least(logits.kind())).cross_entropy_loss(targets, None::<&Tensor>, Reduction::Sum, -100, label_smoothing)
}

/// Squared error summed over rows: predictions `[M, 1]`, targets `[M]`.
pub fn squared_error_sum(predictions: &Tensor, targets: &Tensor) -> Tensor {
    predictions.squeeze_dim(1).to_kind(Kind::Float).mse_loss(targets, Reduction::Sum)
}
