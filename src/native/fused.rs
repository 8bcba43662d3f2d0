//! Blocks of the model in one pass over memory each, with their gradients: what libtorch does in several operations.
//!
//! On a CPU, in fp32 and bf16. Every one is held against its composition of libtorch operations in the tests.

use super::weight::{Weight, WeightPointers};
use super::{raw, taken, NativeError};
use crate::random::Stream;
use std::ffi::{c_int, c_void};
use std::ptr::{null, null_mut};
use tch::{Device, Kind, Tensor};

extern "C" {
    fn linformer_drop_add_norm(
        y: *mut c_void,
        bias: *mut c_void,
        residual: *mut c_void,
        gamma: *mut c_void,
        beta: *mut c_void,
        eps: f64,
        mask: *const Drop,
    ) -> *mut c_void;
    fn linformer_bias_gelu(h: *mut c_void, bias: *mut c_void) -> *mut c_void;
    fn linformer_linear(x: *mut c_void, weight: *const WeightPointers, bias: *mut c_void) -> *mut c_void;
    fn linformer_feed_forward(
        x: *mut c_void,
        w1: *const WeightPointers,
        b1: *mut c_void,
        w2: *const WeightPointers,
        b2: *mut c_void,
        gamma: *mut c_void,
        beta: *mut c_void,
        eps: f64,
        mask: *const Drop,
        numbers: *mut c_void,
    ) -> *mut c_void;
    fn linformer_output_norm(
        o: *mut c_void,
        x: *mut c_void,
        weight: *const WeightPointers,
        bias: *mut c_void,
        gamma: *mut c_void,
        beta: *mut c_void,
        eps: f64,
        mask: *const Drop,
        numbers: *mut c_void,
    ) -> *mut c_void;
    fn linformer_take_rows(x: *mut c_void, numbers: *mut c_void) -> *mut c_void;
    fn linformer_spread_rows(x: *mut c_void, numbers: *mut c_void, count: i64) -> *mut c_void;
    fn linformer_heads(
        x: *mut c_void,
        q: *const WeightPointers,
        b_q: *mut c_void,
        k: *const WeightPointers,
        b_k: *mut c_void,
        v: *const WeightPointers,
        b_v: *mut c_void,
        e: *const WeightPointers,
        f: *const WeightPointers,
        keep: *mut c_void,
        numbers: *mut c_void,
        heads: i64,
        mask: *const Drop,
    ) -> *mut c_void;
    fn linformer_embedding(
        words: *mut c_void,
        positions: *mut c_void,
        token_type: *mut c_void,
        ids: *mut c_void,
        places: *mut c_void,
        pad: i64,
        is_bf16: c_int,
    ) -> *mut c_void;
    fn linformer_vocabulary_loss(
        y: *mut c_void,
        weight: *const WeightPointers,
        bias: *mut c_void,
        targets: *mut c_void,
        smoothing: f64,
    ) -> *mut c_void;
    fn linformer_attention_is_supported(is_bf16: c_int, head: i64) -> c_int;
    fn linformer_attention(q: *mut c_void, k: *mut c_void, v: *mut c_void, keep: *mut c_void, heads: i64, mask: *const Drop)
        -> *mut c_void;
}

/// Dropout of a block: probability, numbers, and the index of the tensor's first element in the whole batch.
#[repr(C)]
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

/// The parameters of a LayerNorm, `[d]` fp32.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    pub gamma: &'a Tensor,
    pub beta: &'a Tensor,
    pub eps: f64,
}

/// A linear layer: weight `[out, in]`, bias `[out]` fp32.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    pub weight: &'a Weight,
    pub bias: &'a Tensor,
}

fn or_null(tensor: Option<&Tensor>) -> *mut c_void {
    tensor.map_or(null_mut(), raw)
}

/// LayerNorm(residual + dropout(y + bias)). y, residual `[.., d]` of one kind; bias `[d]` fp32.
///
/// y is used up: its memory holds the sum afterwards.
pub fn drop_add_norm(y: Tensor, bias: Option<&Tensor>, residual: Option<&Tensor>, norm: Norm, drop: Drop) -> Result<Tensor, NativeError> {
    let Norm { gamma, beta, eps } = norm;
    // SAFETY: live tensors or null where the shim allows it.
    taken(unsafe { linformer_drop_add_norm(raw(&y), or_null(bias), or_null(residual), raw(gamma), raw(beta), eps, &drop) })
}

/// GELU(h + bias); Phi within 1.7e-7 in fp32, 3.2e-5 in bf16. h `[.., f]`, bias `[f]` fp32.
pub fn bias_gelu(h: &Tensor, bias: &Tensor) -> Result<Tensor, NativeError> {
    // SAFETY: live tensors.
    taken(unsafe { linformer_bias_gelu(raw(h), raw(bias)) })
}

/// x W^T + b, x `[.., in]` to `[.., out]`.
pub fn linear(x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Result<Tensor, NativeError> {
    // SAFETY: live tensors or null where the shim allows it.
    taken(unsafe { linformer_linear(raw(x), &weight.pointers(), or_null(bias)) })
}

/// Rows `numbers` (`[M]` int64, ascending) of x `[R, width]`: `[M, width]`.
pub fn take_rows(x: &Tensor, numbers: &Tensor) -> Result<Tensor, NativeError> {
    // SAFETY: live tensors; the shim checks the numbers.
    taken(unsafe { linformer_take_rows(raw(x), raw(numbers)) })
}

/// x `[M, width]` as the rows `numbers` (`[M]` int64, ascending) of `[count, width]`, zeros elsewhere.
pub fn spread_rows(x: &Tensor, numbers: &Tensor, count: i64) -> Result<Tensor, NativeError> {
    // SAFETY: live tensors; the shim checks the numbers.
    taken(unsafe { linformer_spread_rows(raw(x), raw(numbers), count) })
}

/// LayerNorm(x + dropout(GELU(x W1^T + b1) W2^T + b2)), x `[rows, d]`. `numbers` (`[rows]` int64): of the rows in the tensor
/// that the dropout is of, where x is some of its rows.
pub fn feed_forward(
    x: &Tensor,
    inner: Affine,
    outer: Affine,
    norm: Norm,
    drop: Drop,
    numbers: Option<&Tensor>,
) -> Result<Tensor, NativeError> {
    let (w1, w2) = (inner.weight.pointers(), outer.weight.pointers());
    // SAFETY: live tensors.
    taken(unsafe {
        let Norm { gamma, beta, eps } = norm;
        linformer_feed_forward(raw(x), &w1, raw(inner.bias), &w2, raw(outer.bias), raw(gamma), raw(beta), eps, &drop, or_null(numbers))
    })
}

/// LayerNorm(x + dropout(o W^T + b)), o and x `[rows, d]`; `numbers` as in [`feed_forward`].
pub fn output_norm(
    o: &Tensor,
    x: &Tensor,
    output: Affine,
    norm: Norm,
    drop: Drop,
    numbers: Option<&Tensor>,
) -> Result<Tensor, NativeError> {
    let Norm { gamma, beta, eps } = norm;
    // SAFETY: live tensors.
    taken(unsafe {
        let weight = output.weight.pointers();
        linformer_output_norm(raw(o), raw(x), &weight, raw(output.bias), raw(gamma), raw(beta), eps, &drop, or_null(numbers))
    })
}

/// The weights of [`heads`]: query, key, value `[d, d]`, and the projections `[k, n]` of keys and values. No `keys`: full
/// attention; no `values`: E = F.
pub struct HeadWeights<'a> {
    pub query: Affine<'a>,
    pub key: Affine<'a>,
    pub value: Affine<'a>,
    pub project_keys: Option<&'a Weight>,
    pub project_values: Option<&'a Weight>,
}

/// Self-attention up to the heads' outputs, compress first (paper, equation 7): x `[B, L, d]` to `[B, L, d]`. keep `[B, L]`
/// bool: real tokens. Of the rows `numbers` (b L + position, `[M]` int64, ascending) alone: `[M, d]`. Where
/// [`attention_is_supported`].
pub fn heads(
    x: &Tensor,
    weights: &HeadWeights,
    keep: Option<&Tensor>,
    heads: i64,
    drop: Drop,
    numbers: Option<&Tensor>,
) -> Result<Tensor, NativeError> {
    let [q, k, v] = [weights.query, weights.key, weights.value].map(|affine| affine.weight.pointers());
    let projections = [weights.project_keys, weights.project_values].map(|w| w.map(Weight::pointers));
    let [e, f] = [&projections[0], &projections[1]].map(|p| p.as_ref().map_or(null(), |p| p as *const WeightPointers));
    let [b_q, b_k, b_v] = [weights.query, weights.key, weights.value].map(|affine| raw(affine.bias));
    // SAFETY: live tensors, or null for the projections, keep and numbers.
    taken(unsafe { linformer_heads(raw(x), &q, b_q, &k, b_k, &v, b_v, e, f, or_null(keep), or_null(numbers), heads, &drop) })
}

/// The sum of three embeddings: words `[V, d]` at ids, positions `[P, d]` at places (both `[B, L]` int64), and token_type `[d]`,
/// all fp32, to `[B L, d]` of `kind`. The rows `pad` of both tables get no gradient.
pub fn embedding(
    words: &Tensor,
    positions: &Tensor,
    token_type: &Tensor,
    ids: &Tensor,
    places: &Tensor,
    pad: i64,
    kind: Kind,
) -> Result<Tensor, NativeError> {
    let is_bf16 = (kind == Kind::BFloat16).into();
    // SAFETY: live tensors; the shim checks ids and places against the tables.
    taken(unsafe { linformer_embedding(raw(words), raw(positions), raw(token_type), raw(ids), raw(places), pad, is_bf16) })
}

/// Cross-entropy of the logits y W^T + b, summed over the rows whose target is not negative, in nats and fp32.
/// y `[M, d]`, weight `[V, d]`, bias `[V]` fp32, targets `[M]` int64. Label smoothing as PyTorch defines it.
pub fn vocabulary_loss(y: &Tensor, weight: &Weight, bias: &Tensor, targets: &Tensor, smoothing: f64) -> Result<Tensor, NativeError> {
    // SAFETY: live tensors.
    taken(unsafe { linformer_vocabulary_loss(raw(y), &weight.pointers(), raw(bias), raw(targets), smoothing) })
}

/// Whether [`attention`] has products for this kind and width of a head on this processor.
pub fn attention_is_supported(kind: Kind, device: Device, head: i64) -> bool {
    // SAFETY: plain numbers.
    is_supported(kind, device) && unsafe { linformer_attention_is_supported((kind == Kind::BFloat16).into(), head) } > 0
}

/// Whether it is faster than libtorch's attention without dropout: with the blocks of AVX-512, but not without.
pub fn attention_is_fast(kind: Kind, device: Device, head: i64) -> bool {
    // SAFETY: plain numbers.
    is_supported(kind, device) && unsafe { linformer_attention_is_supported((kind == Kind::BFloat16).into(), head) } > 1
}

/// softmax(Q K^T / sqrt(d/h)) V, heads side by side: q `[B, L, d]`, k and v `[B, m, d]`, keep `[B, m]` bool (which keys take
/// part), to `[B, L, d]`. Dropout is that of the probabilities `[B, h, L, m]`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, keep: Option<&Tensor>, heads: i64, drop: Drop) -> Result<Tensor, NativeError> {
    // SAFETY: live tensors, or null for keep.
    taken(unsafe { linformer_attention(raw(q), raw(k), raw(v), or_null(keep), heads, &drop) })
}

#[cfg(test)]
#[path = "fused_tests.rs"]
mod tests;
