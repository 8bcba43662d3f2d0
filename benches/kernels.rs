//! Each kernel by itself at the shapes of configuration R (4,096 tokens, d 256, 4 heads, FFN 1024, k 128, vocabulary 8,192):
//! `make bench-kernels`. Bytes are those read and written at least, FLOPs those of the products.
#![allow(clippy::unwrap_used)]

use divan::counter::{BytesCount, ItemsCount};
use divan::Bencher;
use linformer::native::fused::{
    attention, attention_is_supported, bias_gelu, drop_add_norm, embedding, feed_forward, heads, linear, output_norm, take_rows,
    vocabulary_loss, Affine, Drop, HeadWeights, Norm,
};
use linformer::native::optim::{adam_step, norms, AdamItem, AdamSettings};
use linformer::native::weight::Weight;
use linformer::native::{dropout, runtime};
use linformer::random::{Purpose, Stream};
use tch::{Device, Kind, Tensor};

const BATCH: i64 = 8;
const N: i64 = 512;
const ROWS: i64 = BATCH * N;
const D: i64 = 256;
const F: i64 = 1024;
const HEADS: i64 = 4;
const K: i64 = 128;
const VOCABULARY: i64 = 8192;
const MASKED: i64 = 614;
const KINDS: [Kind; 2] = [Kind::Float, Kind::BFloat16];

/// What this processor has products for in our attention: without AVX-512 that is fp32.
fn attention_kinds() -> Vec<Kind> {
    KINDS.into_iter().filter(|kind| attention_is_supported(*kind, Device::Cpu, D / HEADS)).collect()
}

fn main() {
    runtime::keep_freed_memory();
    divan::main();
}

fn drop_at(p: f64) -> Drop {
    Drop { p, stream: Stream::new(1, Purpose::Dropout, 2), offset: 0 }
}

fn numbers(size: &[i64], kind: Kind) -> Tensor {
    let count: i64 = size.iter().product();
    (((Tensor::arange(count, (Kind::Int64, Device::Cpu)) * 7919).remainder(1000).to_kind(Kind::Float) - 500) / 1000)
        .view(size)
        .to_kind(kind)
}

/// A leaf that gets a gradient.
fn input(size: &[i64], kind: Kind) -> Tensor {
    numbers(size, kind).set_requires_grad(true)
}

fn weight(size: &[i64]) -> Weight {
    Weight::new((numbers(size, Kind::Float) * 0.1).set_requires_grad(true))
}

fn bytes(elements: i64, kind: Kind) -> BytesCount {
    BytesCount::new(elements as usize * if kind == Kind::Float { 4 } else { 2 })
}

/// "Items" a second are FLOP/s.
fn flops(count: i64) -> ItemsCount {
    ItemsCount::new(count as usize)
}

/// Times what `forward` does without a graph.
fn forward<R>(bencher: Bencher, forward: impl Fn() -> R) {
    let _guard = tch::no_grad_guard();
    bencher.bench_local(&forward);
}

/// Times the backward pass of what `forward` gives.
fn backward(bencher: Bencher, forward: impl Fn() -> Tensor) {
    let gradient = forward().ones_like();
    // The product with ones and its sum cost little beside the pass itself.
    bencher.with_inputs(|| (forward() * &gradient).sum(Kind::Float)).bench_local_values(|loss| loss.backward());
}

fn attended(kind: Kind, p: f64) -> impl Fn() -> Tensor {
    let (q, k, v) = (input(&[BATCH, N, D], kind), input(&[BATCH, K, D], kind), input(&[BATCH, K, D], kind));
    move || attention(&q, &k, &v, None, HEADS, drop_at(p)).unwrap()
}

const ATTENTION_FLOPS: i64 = 4 * ROWS * K * D;

#[divan::bench(args = attention_kinds())]
fn attention_forward(bencher: Bencher, kind: Kind) {
    forward(bencher.counter(flops(ATTENTION_FLOPS)), attended(kind, 0.1));
}

#[divan::bench(args = attention_kinds())]
fn attention_backward(bencher: Bencher, kind: Kind) {
    backward(bencher.counter(flops(ATTENTION_FLOPS / 2 * 5)), attended(kind, 0.1));
}

/// From the layer's input to the heads' outputs, projections and compression included.
fn all_heads(kind: Kind) -> impl Fn() -> Tensor {
    let x = input(&[BATCH, N, D], kind);
    let weights = [0; 3].map(|_| (weight(&[D, D]), input(&[D], Kind::Float)));
    let e = weight(&[K, N]);
    move || {
        let [query, key, value] = [0, 1, 2].map(|i| Affine { weight: &weights[i].0, bias: &weights[i].1 });
        let weights = HeadWeights { query, key, value, project_keys: Some(&e), project_values: None };
        heads(&x, &weights, None, HEADS, drop_at(0.1), None).unwrap()
    }
}

const HEADS_FLOPS: i64 = ATTENTION_FLOPS + 2 * ROWS * D * D + 2 * ROWS * K * D + 4 * BATCH * K * D * D;

#[divan::bench(args = attention_kinds())]
fn heads_forward(bencher: Bencher, kind: Kind) {
    forward(bencher.counter(flops(HEADS_FLOPS)), all_heads(kind));
}

#[divan::bench(args = attention_kinds())]
fn heads_backward(bencher: Bencher, kind: Kind) {
    backward(bencher.counter(flops(2 * HEADS_FLOPS)), all_heads(kind));
}

fn fed_forward(kind: Kind) -> impl Fn() -> Tensor {
    let x = input(&[ROWS, D], kind);
    let (w1, w2) = (weight(&[F, D]), weight(&[D, F]));
    let [b1, b2, gamma, beta] = [F, D, D, D].map(|width| input(&[width], Kind::Float));
    move || {
        let norm = Norm { gamma: &gamma, beta: &beta, eps: 1e-5 };
        feed_forward(&x, Affine { weight: &w1, bias: &b1 }, Affine { weight: &w2, bias: &b2 }, norm, drop_at(0.1), None).unwrap()
    }
}

#[divan::bench(args = KINDS)]
fn feed_forward_forward(bencher: Bencher, kind: Kind) {
    forward(bencher.counter(flops(4 * ROWS * D * F)), fed_forward(kind));
}

#[divan::bench(args = KINDS)]
fn feed_forward_backward(bencher: Bencher, kind: Kind) {
    backward(bencher.counter(flops(8 * ROWS * D * F)), fed_forward(kind));
}

fn multiplied(kind: Kind) -> impl Fn() -> Tensor {
    let (x, w, bias) = (input(&[ROWS, D], kind), weight(&[D, D]), input(&[D], Kind::Float));
    move || linear(&x, &w, Some(&bias)).unwrap()
}

#[divan::bench(args = KINDS)]
fn linear_forward(bencher: Bencher, kind: Kind) {
    forward(bencher.counter(flops(2 * ROWS * D * D)), multiplied(kind));
}

#[divan::bench(args = KINDS)]
fn linear_backward(bencher: Bencher, kind: Kind) {
    backward(bencher.counter(flops(4 * ROWS * D * D)), multiplied(kind));
}

/// The end of the attention block.
fn put_out(kind: Kind) -> impl Fn() -> Tensor {
    let (o, x, w) = (input(&[ROWS, D], kind), input(&[ROWS, D], kind), weight(&[D, D]));
    let [bias, gamma, beta] = [0; 3].map(|_| input(&[D], Kind::Float));
    move || {
        let norm = Norm { gamma: &gamma, beta: &beta, eps: 1e-5 };
        output_norm(&o, &x, Affine { weight: &w, bias: &bias }, norm, drop_at(0.1), None).unwrap()
    }
}

#[divan::bench(args = KINDS)]
fn output_norm_forward(bencher: Bencher, kind: Kind) {
    forward(bencher.counter(flops(2 * ROWS * D * D)), put_out(kind));
}

#[divan::bench(args = KINDS)]
fn output_norm_backward(bencher: Bencher, kind: Kind) {
    backward(bencher.counter(flops(4 * ROWS * D * D)), put_out(kind));
}

/// The rows that are predicted, out of all, and their gradients back among zeros.
fn taken(kind: Kind) -> impl Fn() -> Tensor {
    let x = input(&[ROWS, D], kind);
    let rows = (Tensor::arange(MASKED, (Kind::Int64, Device::Cpu)) * ROWS).divide_scalar_mode(MASKED, "floor");
    move || take_rows(&x, &rows).unwrap()
}

#[divan::bench(args = KINDS)]
fn take_rows_forward(bencher: Bencher, kind: Kind) {
    forward(bencher.counter(bytes(2 * MASKED * D, kind)), taken(kind));
}

#[divan::bench(args = KINDS)]
fn take_rows_backward(bencher: Bencher, kind: Kind) {
    backward(bencher.counter(bytes((MASKED + ROWS) * D, kind)), taken(kind));
}

fn gelu(kind: Kind) -> impl Fn() -> Tensor {
    let (h, bias) = (input(&[ROWS, F], kind), input(&[F], Kind::Float));
    move || bias_gelu(&h, &bias).unwrap()
}

#[divan::bench(args = KINDS)]
fn gelu_forward(bencher: Bencher, kind: Kind) {
    forward(bencher.counter(bytes(2 * ROWS * F, kind)), gelu(kind));
}

#[divan::bench(args = KINDS)]
fn gelu_backward(bencher: Bencher, kind: Kind) {
    backward(bencher.counter(bytes(3 * ROWS * F, kind)), gelu(kind));
}

/// Bias, dropout, residual and LayerNorm. The sum takes y's memory: each pass gets its own.
fn normed(kind: Kind, p: f64) -> impl Fn() -> Tensor {
    let (y, residual) = (input(&[ROWS, D], kind), input(&[ROWS, D], kind));
    let [bias, gamma, beta] = [0; 3].map(|_| input(&[D], Kind::Float));
    move || drop_add_norm(&y + 0.0, Some(&bias), Some(&residual), Norm { gamma: &gamma, beta: &beta, eps: 1e-5 }, drop_at(p)).unwrap()
}

#[divan::bench(args = KINDS)]
fn norm_forward(bencher: Bencher, kind: Kind) {
    // With the copy of y: read, written, read, the sum and the output written, the residual read.
    forward(bencher.counter(bytes(6 * ROWS * D, kind)), normed(kind, 0.0));
}

#[divan::bench(args = KINDS)]
fn norm_backward(bencher: Bencher, kind: Kind) {
    backward(bencher.counter(bytes(3 * ROWS * D, kind)), normed(kind, 0.0));
}

#[divan::bench(args = KINDS)]
fn norm_with_dropout_forward(bencher: Bencher, kind: Kind) {
    forward(bencher.counter(bytes(6 * ROWS * D, kind)), normed(kind, 0.1));
}

#[divan::bench(args = KINDS)]
fn norm_with_dropout_backward(bencher: Bencher, kind: Kind) {
    backward(bencher.counter(bytes(4 * ROWS * D, kind)), normed(kind, 0.1));
}

#[divan::bench(args = KINDS)]
fn dropout_forward(bencher: Bencher, kind: Kind) {
    let x = numbers(&[ROWS, F], kind);
    forward(bencher.counter(bytes(2 * ROWS * F, kind)), move || dropout::dropout(&x, 0.1, drop_at(0.1).stream, 0).unwrap());
}

fn loss(kind: Kind) -> impl Fn() -> Tensor {
    let (y, bias, table) = (input(&[MASKED, D], kind), input(&[VOCABULARY], Kind::Float), weight(&[VOCABULARY, D]));
    let targets = (Tensor::arange(MASKED, (Kind::Int64, Device::Cpu)) * 7919).remainder(VOCABULARY);
    move || vocabulary_loss(&y, &table, &bias, &targets, 0.0).unwrap()
}

/// Logits, loss and the gradient of the logits.
#[divan::bench(args = KINDS)]
fn cross_entropy_forward(bencher: Bencher, kind: Kind) {
    let loss = loss(kind);
    bencher.counter(flops(2 * MASKED * VOCABULARY * D)).bench_local(loss);
}

#[divan::bench(args = KINDS)]
fn cross_entropy_backward(bencher: Bencher, kind: Kind) {
    let loss = loss(kind);
    bencher.counter(flops(4 * MASKED * VOCABULARY * D)).with_inputs(loss).bench_local_values(|loss| loss.backward());
}

fn embedded(kind: Kind) -> impl Fn() -> Tensor {
    let [words, positions, token_type] = [&[VOCABULARY, D][..], &[N + 2, D], &[D]].map(|size| input(size, Kind::Float));
    let ids = (Tensor::arange(ROWS, (Kind::Int64, Device::Cpu)) * 7919).remainder(VOCABULARY - 5).view([BATCH, N]) + 5;
    let places = Tensor::arange_start(2, N + 2, (Kind::Int64, Device::Cpu)).expand([BATCH, N], false);
    move || embedding(&words, &positions, &token_type, &ids, &places, 1, kind).unwrap()
}

#[divan::bench(args = KINDS)]
fn embedding_forward(bencher: Bencher, kind: Kind) {
    forward(bencher.counter(BytesCount::new((ROWS * D * if kind == Kind::Float { 12 } else { 10 }) as usize)), embedded(kind));
}

#[divan::bench(args = KINDS)]
fn embedding_backward(bencher: Bencher, kind: Kind) {
    backward(bencher.counter(BytesCount::new(((2 * ROWS + VOCABULARY) * D * 4) as usize)), embedded(kind));
}

/// AdamW with clipping on as many weights as R has; weight, gradient and moments read, weight and moments written.
#[divan::bench]
fn adam(bencher: Bencher) {
    let weights: Vec<Weight> = (0..7).map(|_| weight(&[1024, 1024])).collect();
    let like = || weights.iter().map(|w| w.tensor().detach().zeros_like()).collect::<Vec<_>>();
    let (gradients, averages, squares) = (like(), like(), like());
    let steps: Vec<Tensor> = weights.iter().map(|_| Tensor::zeros([], (Kind::Float, Device::Cpu))).collect();
    let settings = AdamSettings { lr: 1e-4, beta1: 0.9, beta2: 0.98, eps: 1e-6, gradient_divisor: 2.0, decoupled: 1 };
    bencher.counter(BytesCount::new(7u64 * (7 << 20) * 4)).bench_local(|| {
        let items: Vec<AdamItem> = (0..weights.len())
            .map(|i| AdamItem {
                weight: &weights[i],
                gradient: &gradients[i],
                exp_avg: &averages[i],
                exp_avg_sq: &squares[i],
                step: &steps[i],
                weight_decay: 0.01,
            })
            .collect();
        adam_step(&items, &settings).unwrap()
    });
}

#[divan::bench]
fn gradient_norms(bencher: Bencher) {
    let gradients: Vec<Tensor> = (0..7).map(|_| numbers(&[1024, 1024], Kind::Float)).collect();
    bencher.counter(BytesCount::new((7u64 << 20) * 4)).bench_local(|| norms(&gradients).unwrap());
}
