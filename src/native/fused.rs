//! Blocks of the model in one pass over memory each, with their gradients: what libtorch does in several operations.
//!
//! On a CPU, in fp32 and bf16. Every one is held against its composition of libtorch operations in the tests.

use super::{last_error, raw, NativeError};
use crate::random::Stream;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use tch::{Device, Kind, Tensor};

extern "C" {
    fn linformer_drop_add_norm(
        y: *mut c_void,
        bias: *mut c_void,
        residual: *mut c_void,
        gamma: *mut c_void,
        beta: *mut c_void,
        eps: f64,
        p: f64,
        key: u64,
        nonce: u64,
        offset: i64,
    ) -> *mut c_void;
    fn linformer_bias_gelu(h: *mut c_void, bias: *mut c_void) -> *mut c_void;
    fn linformer_vocabulary_loss(
        y: *mut c_void,
        weight: *mut c_void,
        bias: *mut c_void,
        targets: *mut c_void,
        smoothing: f64,
    ) -> *mut c_void;
    fn linformer_attention_is_supported(is_bf16: c_int, head: i64) -> c_int;
    fn linformer_attention(
        q: *mut c_void,
        k: *mut c_void,
        v: *mut c_void,
        keep: *mut c_void,
        heads: i64,
        p: f64,
        key: u64,
        nonce: u64,
        offset: i64,
    ) -> *mut c_void;
}

/// Dropout of a block: probability, numbers, and the index of the tensor's first element in the whole batch.
#[derive(Clone, Copy, Debug)]
pub struct Drop {
    pub p: f64,
    pub stream: Stream,
    pub offset: i64,
}

impl Drop {
    pub const NONE: Self = Self { p: 0.0, stream: Stream { key: 0, nonce: 0 }, offset: 0 };
}

/// Whether blocks of this kind on this device have kernels.
pub fn is_supported(kind: Kind, device: Device) -> bool {
    device == Device::Cpu && matches!(kind, Kind::Float | Kind::BFloat16)
}

/// LayerNorm(residual + dropout(y + bias)). y, residual `[.., d]` of one kind; bias, gamma, beta `[d]` fp32.
///
/// y is used up: its memory holds the sum afterwards.
pub fn drop_add_norm(
    y: Tensor,
    bias: Option<&Tensor>,
    residual: Option<&Tensor>,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f64,
    drop: Drop,
) -> Result<Tensor, NativeError> {
    let optional = |t: Option<&Tensor>| t.map_or(null_mut(), raw);
    // SAFETY: live tensors or null where the shim allows it.
    taken(unsafe {
        let Drop { p, stream, offset } = drop;
        linformer_drop_add_norm(
            raw(&y),
            optional(bias),
            optional(residual),
            raw(gamma),
            raw(beta),
            eps,
            p,
            stream.key,
            stream.nonce,
            offset,
        )
    })
}

/// GELU(h + bias), exact to 2e-7. h `[.., f]`, bias `[f]` fp32.
pub fn bias_gelu(h: &Tensor, bias: &Tensor) -> Result<Tensor, NativeError> {
    // SAFETY: live tensors.
    taken(unsafe { linformer_bias_gelu(raw(h), raw(bias)) })
}

/// Cross-entropy of the logits y W^T + b, summed over the rows whose target is not negative, in nats and fp32.
/// y `[M, d]` and weight `[V, d]` of one kind, bias `[V]` fp32, targets `[M]` int64. Label smoothing as PyTorch defines it.
pub fn vocabulary_loss(y: &Tensor, weight: &Tensor, bias: &Tensor, targets: &Tensor, smoothing: f64) -> Result<Tensor, NativeError> {
    // SAFETY: live tensors.
    taken(unsafe { linformer_vocabulary_loss(raw(y), raw(weight), raw(bias), raw(targets), smoothing) })
}

/// Whether [`attention`] has products for this kind and width of a head on this processor.
pub fn attention_is_supported(kind: Kind, device: Device, head: i64) -> bool {
    // SAFETY: plain numbers.
    is_supported(kind, device) && unsafe { linformer_attention_is_supported((kind == Kind::BFloat16).into(), head) } == 1
}

/// softmax(Q K^T / sqrt(d/h)) V, heads side by side: q `[B, L, d]`, k and v `[B, m, d]`, keep `[B, m]` bool (which keys take
/// part), to `[B, L, d]`. Dropout is that of the probabilities `[B, h, L, m]`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, keep: Option<&Tensor>, heads: i64, drop: Drop) -> Result<Tensor, NativeError> {
    let Drop { p, stream, offset } = drop;
    // SAFETY: live tensors, or null for keep.
    taken(unsafe { linformer_attention(raw(q), raw(k), raw(v), keep.map_or(null_mut(), raw), heads, p, stream.key, stream.nonce, offset) })
}

fn taken(pointer: *mut c_void) -> Result<Tensor, NativeError> {
    if pointer.is_null() {
        return Err(last_error());
    }
    // SAFETY: a tensor that the shim hands over.
    Ok(unsafe { Tensor::from_ptr(pointer as *mut _) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::native::dropout::dropout;
    use crate::random::Purpose;

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    fn values(shape: &[i64], seed: i64) -> Tensor {
        let count: i64 = shape.iter().product();
        ((Tensor::arange(count, CPU) * 0.7391 + seed as f64 * 1.37).sin() * 1.3 + (Tensor::arange(count, CPU) * 0.0173).cos() * 0.4)
            .view(shape)
    }

    fn leaf(shape: &[i64], seed: i64, kind: Kind) -> Tensor {
        values(shape, seed).to_kind(kind).set_requires_grad(true)
    }

    fn drop(p: f64) -> Drop {
        Drop { p, stream: Stream::new(5, Purpose::Dropout, 3), offset: 40 }
    }

    /// Both functions on the same leaves: outputs and all gradients of a weighted sum agree to `tolerance` of the largest value.
    fn agree(leaves: &[Tensor], tolerance: f64, fused: impl Fn() -> Tensor, reference: impl Fn() -> Tensor) {
        let run = |f: &dyn Fn() -> Tensor| {
            leaves.iter().for_each(|l| l.shallow_clone().zero_grad());
            let out = f();
            let weights = values(&out.size(), 77);
            (out.to_kind(Kind::Float) * weights).sum(Kind::Float).backward();
            let gradients = leaves.iter().map(|l| l.grad().to_kind(Kind::Float).copy());
            std::iter::once(out.detach().to_kind(Kind::Float).copy()).chain(gradients).collect::<Vec<_>>()
        };
        for (i, (a, b)) in run(&fused).iter().zip(run(&reference)).enumerate() {
            let worst = (a - &b).abs().max().double_value(&[]);
            let scale = b.abs().max().double_value(&[]).max(1e-3);
            assert!(worst <= tolerance * scale, "output or gradient {i}: {worst:e} of {scale:e}");
            assert!(b.abs().max().double_value(&[]) > 0.0, "gradient {i} is zero");
        }
    }

    #[test]
    fn drop_add_norm_is_its_composition() {
        for (kind, tolerance) in [(Kind::Float, 3e-6), (Kind::BFloat16, 2e-2)] {
            for (rows, width, p) in [(5, 64, 0.0), (300, 48, 0.3), (130, 37, 0.1)] {
                let leaves = [
                    leaf(&[rows, width], 1, kind),
                    leaf(&[width], 2, Kind::Float),
                    leaf(&[rows, width], 3, kind),
                    leaf(&[width], 4, Kind::Float),
                    leaf(&[width], 5, Kind::Float),
                ];
                let [y, bias, residual, gamma, beta] = &leaves;
                // In fp32: libtorch adds up gradients of bf16 rows in bf16 and would be the less exact of the two.
                let wide = |t: &Tensor| t.to_kind(Kind::Float);
                agree(
                    &leaves,
                    tolerance,
                    || drop_add_norm(y * 1.0, Some(bias), Some(residual), gamma, beta, 1e-5, drop(p)).unwrap(),
                    || {
                        let x = dropout(&(wide(y) + bias), p, drop(p).stream, drop(p).offset).unwrap() + wide(residual);
                        x.layer_norm([width], Some(gamma), Some(beta), 1e-5, true).to_kind(kind)
                    },
                );
                agree(
                    &[y.shallow_clone(), gamma.shallow_clone(), beta.shallow_clone()],
                    tolerance,
                    || drop_add_norm(y * 1.0, None, None, gamma, beta, 1e-5, Drop::NONE).unwrap(),
                    || wide(y).layer_norm([width], Some(gamma), Some(beta), 1e-5, true).to_kind(kind),
                );
            }
        }
    }

    #[test]
    fn bias_gelu_is_its_composition() {
        for (kind, tolerance) in [(Kind::Float, 2e-6), (Kind::BFloat16, 1e-2)] {
            for (rows, width) in [(7, 32), (300, 41)] {
                let leaves = [leaf(&[rows, width], 1, kind), leaf(&[width], 2, Kind::Float)];
                agree(
                    &leaves,
                    tolerance,
                    || bias_gelu(&leaves[0], &leaves[1]).unwrap(),
                    || (&leaves[0] + leaves[1].to_kind(kind)).gelu("none"),
                );
            }
        }
    }

    #[test]
    fn vocabulary_loss_is_its_composition() {
        for (kind, tolerance) in [(Kind::Float, 3e-6), (Kind::BFloat16, 2e-2)] {
            for (rows, width, classes, smoothing) in [(9, 32, 50, 0.0), (200, 16, 333, 0.1)] {
                let leaves = [leaf(&[rows, width], 1, kind), leaf(&[classes, width], 2, kind), leaf(&[classes], 3, Kind::Float)];
                let targets = (Tensor::arange(rows, (Kind::Int64, Device::Cpu)) * 7).remainder(classes);
                let targets = targets.masked_fill(&Tensor::arange(rows, (Kind::Int64, Device::Cpu)).remainder(4).eq(1), -100);
                let [y, weight, bias] = &leaves;
                agree(
                    &leaves,
                    tolerance,
                    || vocabulary_loss(y, weight, bias, &targets, smoothing).unwrap() / 3.0,
                    || {
                        let logits = y.linear(weight, None::<&Tensor>).to_kind(Kind::Float) + bias;
                        logits.cross_entropy_loss(&targets, None::<&Tensor>, tch::Reduction::Sum, -100, smoothing) / 3.0
                    },
                );
            }
        }
        let message =
            vocabulary_loss(&values(&[1, 4], 1), &values(&[3, 4], 1), &values(&[3], 1), &Tensor::from_slice(&[3i64]), 0.0).unwrap_err();
        assert!(message.to_string().contains("not below 3"), "{message}");
    }

    #[test]
    fn attention_is_its_composition() {
        if !attention_is_supported(Kind::Float, Device::Cpu, 32) {
            return;
        }
        for (kind, tolerance) in [(Kind::Float, 5e-6), (Kind::BFloat16, 3e-2)] {
            if !attention_is_supported(kind, Device::Cpu, 32) {
                continue;
            }
            for (batch, length, keys, heads, head, p, padded) in [
                (2, 96, 32, 2, 32, 0.0, false),
                (1, 70, 19, 2, 64, 0.2, false),
                (2, 33, 40, 1, 32, 0.1, true),
                (2, 130, 130, 2, 32, 0.0, true),
            ] {
                let width = heads * head;
                let leaves =
                    [leaf(&[batch, length, width], 1, kind), leaf(&[batch, keys, width], 2, kind), leaf(&[batch, keys, width], 3, kind)];
                let [q, k, v] = &leaves;
                let keep = padded.then(|| {
                    let limits = (Tensor::arange(batch, (Kind::Int64, Device::Cpu)) * 9 + 12).unsqueeze(1);
                    Tensor::arange(keys, (Kind::Int64, Device::Cpu)).unsqueeze(0).lt_tensor(&limits)
                });
                let split = |t: &Tensor| t.view([batch, -1, heads, head]).transpose(1, 2);
                agree(
                    &leaves,
                    tolerance,
                    || attention(q, k, v, keep.as_ref(), heads, drop(p)).unwrap(),
                    || {
                        let scores = (split(q) / (head as f64).sqrt()).matmul(&split(k).transpose(-2, -1)).to_kind(Kind::Float);
                        let scores = match &keep {
                            Some(keep) => scores.masked_fill(&keep.logical_not().unsqueeze(1).unsqueeze(1), f64::NEG_INFINITY),
                            None => scores,
                        };
                        let probabilities = scores.softmax(-1, Kind::Float).to_kind(kind);
                        let dropped = dropout(&probabilities, p, drop(p).stream, drop(p).offset).unwrap();
                        dropped.matmul(&split(v)).transpose(1, 2).reshape([batch, length, width])
                    },
                );
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_not_finite() {
        let bad = |x: &Tensor| x.isfinite().logical_not().any().int64_value(&[]) == 1;
        let x = values(&[4, 32], 1);
        let _ = x.get(1).narrow(0, 3, 1).fill_(f64::NAN);
        let (ones, zeros) = (Tensor::ones([32], CPU), Tensor::zeros([32], CPU));
        assert!(bad(&drop_add_norm(x.copy(), None, None, &ones, &zeros, 1e-5, Drop::NONE).unwrap()));
        assert!(bad(&bias_gelu(&x, &zeros).unwrap()));
        assert!(bad(&vocabulary_loss(&x, &values(&[9, 32], 2), &values(&[9], 3), &Tensor::from_slice(&[1i64, 2, 3, 4]), 0.0).unwrap()));
        if attention_is_supported(Kind::Float, Device::Cpu, 32) {
            let q = x.view([1, 4, 32]);
            let other = values(&[1, 8, 32], 4);
            assert!(bad(&attention(&q, &other, &other, None, 1, Drop::NONE).unwrap()));
            assert!(bad(&attention(&other, &q, &other.narrow(1, 0, 4), None, 1, Drop::NONE).unwrap()));
        }
    }
}
