//! The matrix products of a Linformer's forward pass alone, as libtorch runs them in the blocks of rows that a pass takes: what a pass
//! cannot be faster than without faster products or other blocks.

use crate::config::Model;
use crate::model::ROW_BLOCK;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Seconds of the products of all layers, layerwise or key-value sharing, compress first; `batch` sequences of n tokens.
pub fn pass(model: &Model, kind: Kind, n: i64, batch: i64, k: i64) -> f64 {
    let _guard = tch::no_grad_guard();
    let (d, f, heads) = (model.hidden_size, model.intermediate_size, model.num_attention_heads);
    let tensor = |size: &[i64]| Tensor::full(size, 0.01, (kind, Device::Cpu));
    let (x, x_k, e) = (tensor(&[batch * n, d]), tensor(&[batch * k, d]), tensor(&[k, n]));
    let [square, inner, outer] = [[d, d], [d, f], [f, d]].map(|size| tensor(&size));
    let wide = tensor(&[ROW_BLOCK.min(batch * n), f]);
    let (q, k_t, v) = (tensor(&[heads, ROW_BLOCK.min(n), d / heads]), tensor(&[heads, d / heads, k]), tensor(&[heads, k, d / heads]));
    let p = tensor(&[heads, ROW_BLOCK.min(n), k]);
    let in_blocks = |x: &Tensor, w: &Tensor| {
        for first in (0..batch * n).step_by(ROW_BLOCK as usize) {
            let rows = ROW_BLOCK.min(batch * n - first);
            let _ = if x.size()[0] == rows { x.mm(w) } else { x.narrow(0, if x.size()[0] > ROW_BLOCK { first } else { 0 }, rows).mm(w) };
        }
    };
    let started = Instant::now();
    for _ in 0..model.num_hidden_layers {
        in_blocks(&x, &square);
        let _e_x = e.unsqueeze(0).expand([batch, k, n], false).bmm(&x.view([batch, n, d]));
        let _k_v = (x_k.mm(&square), x_k.mm(&square));
        for _ in 0..batch * n / q.size()[1] {
            let _ = (q.bmm(&k_t), p.bmm(&v));
        }
        in_blocks(&x, &square);
        in_blocks(&x, &inner);
        in_blocks(&wide, &outer);
    }
    started.elapsed().as_secs_f64()
}
