//! Multi-head self-attention: full, or the Linformer's (paper, equation 7):
//! head_i = softmax(Q W_i^Q (E_i K W_i^K)^T / sqrt(d)) F_i V W_i^V.
//!
//! The key and value biases are added **after** the compression, so that (E X) W + b and E (X W) + b are the same
//! function; padding rows are zeroed **before** it, so that the outputs at real tokens do not depend on how much padding
//! stands behind them.

use super::layers::{Linear, Pass};
use super::parameters::Parameters;
use super::projection::{Compressed, Projection};
use crate::config::{AttentionKind, Backend, Model, Order, Sharing};
use crate::native::NativeError;
use tch::{Kind, Tensor};

/// Which positions of a batch are real tokens.
pub struct Keep {
    /// `[B, L]` bool.
    pub real: Tensor,
    /// `[B, L, 1]` in the arithmetic of the pass: 1 at real tokens, 0 at padding.
    pub factor: Tensor,
}

impl Keep {
    /// From an attention mask `[B, L]` of zeros and ones.
    pub fn new(attention_mask: &Tensor, kind: Kind) -> Self {
        let real = attention_mask.ne(0);
        let factor = real.to_kind(kind).unsqueeze(-1);
        Self { real, factor }
    }
}

/// The self-attention of one layer, without its output matrix.
pub struct SelfAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    /// None: full attention.
    compression: Option<Compression>,
    heads: i64,
    dropout: f64,
    backend: Backend,
    /// The layer, as the place of its dropout.
    place: String,
}

struct Compression {
    keys: Projection,
    /// None: E = F.
    values: Option<Projection>,
    project_first: bool,
}

impl SelfAttention {
    /// `shared` is the one projection of sharing `layerwise`.
    pub fn new(parameters: &mut Parameters, name: &str, config: &Model, layer: usize, shared: Option<&Projection>) -> Self {
        let d = config.hidden_size;
        let linear = |parameters: &mut Parameters, part: &str| Linear::new(parameters, &format!("{name}.{part}"), d, d, config);
        Self {
            query: linear(parameters, "query"),
            key: linear(parameters, "key"),
            value: linear(parameters, "value"),
            compression: (config.attention.kind == AttentionKind::Linformer)
                .then(|| Compression::new(parameters, name, config, layer, shared)),
            heads: config.num_attention_heads,
            dropout: config.attention_probs_dropout_prob,
            backend: config.attention.backend,
            place: format!("{name}.probabilities"),
        }
    }

    /// x `[B, L, d]` -> `[B, L, d]`, heads side by side.
    pub fn forward(&self, x: &Tensor, keep: Option<&Keep>, pass: &Pass) -> Result<Tensor, NativeError> {
        let (q, k, v, mask) = self.queries_keys_values(x, keep);
        let out = if self.backend == Backend::Fused && !pass.drops(self.dropout) {
            Tensor::scaled_dot_product_attention(&q, &k, &v, mask.as_ref(), 0.0, false, None, false)
        } else {
            // libtorch's fused kernel draws its dropout from global state; ours needs the probabilities as a tensor.
            let p = probabilities(&q, &k, mask.as_ref());
            pass.dropout(p, self.dropout, &self.place)?.matmul(&v)
        };
        let (batch, length) = (x.size()[0], x.size()[1]);
        let out = out.transpose(1, 2).reshape([batch, length, -1]);
        pass.see(self.place.trim_end_matches(".probabilities"), &out);
        Ok(out)
    }

    /// P of the paper, `[B, h, L, L]` or `[B, h, L, k]`, in fp32.
    pub fn probabilities(&self, x: &Tensor, keep: Option<&Keep>) -> Tensor {
        let (q, k, _, mask) = self.queries_keys_values(x, keep);
        probabilities(&q, &k, mask.as_ref()).to_kind(Kind::Float)
    }

    /// Queries `[B, h, L, d/h]`, keys and values `[B, h, rows, d/h]`, and which rows take part.
    fn queries_keys_values(&self, x: &Tensor, keep: Option<&Keep>) -> (Tensor, Tensor, Tensor, Option<Tensor>) {
        let q = self.split(&self.query.forward(x));
        match &self.compression {
            None => {
                let mask = keep.map(|keep| keep.real.unsqueeze(1).unsqueeze(1));
                (q, self.split(&self.key.forward(x)), self.split(&self.value.forward(x)), mask)
            }
            Some(compression) => {
                let zeroed = keep.map_or_else(|| x.shallow_clone(), |keep| x * &keep.factor);
                let real = keep.map(|keep| &keep.real);
                let (k, v, mask) = if compression.project_first {
                    self.project_then_compress(compression, &zeroed, real)
                } else {
                    self.compress_then_project(compression, &zeroed, real)
                };
                (q, k, v, mask)
            }
        }
    }

    /// E X computed once for keys and values when E = F, then (E X) W + b on k rows instead of n.
    fn compress_then_project(&self, compression: &Compression, x: &Tensor, real: Option<&Tensor>) -> (Tensor, Tensor, Option<Tensor>) {
        let keys = compression.keys.compress(x, real);
        let values = compression.values.as_ref().map(|f| f.compress(x, real).rows);
        let k = self.split(&self.key.forward(&keys.rows));
        let v = self.split(&self.value.forward(values.as_ref().unwrap_or(&keys.rows)));
        (k, v, keys.mask)
    }

    /// E_i (X W_i) + b_i: needed where every head has its own E.
    fn project_then_compress(&self, compression: &Compression, x: &Tensor, real: Option<&Tensor>) -> (Tensor, Tensor, Option<Tensor>) {
        let compress = |projection: &Projection, linear: &Linear| {
            let Compressed { rows, mask } = projection.compress(&self.split(&linear.without_bias(x)), real);
            let bias = linear.bias.to_kind(rows.kind()).view([1, self.heads, 1, -1]);
            (rows + bias, mask)
        };
        let (k, mask) = compress(&compression.keys, &self.key);
        let (v, _) = compress(compression.values.as_ref().unwrap_or(&compression.keys), &self.value);
        (k, v, mask)
    }

    /// `[B, m, d]` -> `[B, h, m, d/h]`.
    fn split(&self, x: &Tensor) -> Tensor {
        let size = x.size();
        x.view([size[0], size[1], self.heads, size[2] / self.heads]).transpose(1, 2)
    }
}

impl Compression {
    fn new(parameters: &mut Parameters, name: &str, config: &Model, layer: usize, shared: Option<&Projection>) -> Self {
        let attention = &config.attention;
        let n = config.sequence_length();
        let heads = config.num_attention_heads as usize;
        let mut make = |part: &str| {
            let name = format!("{name}.{part}_projection");
            match attention.sharing {
                Sharing::None => {
                    Projection::per_head(parameters, &name, attention, n, (0..heads).map(|h| attention.k.at(layer, h)).collect())
                }
                _ => Projection::shared(parameters, &name, attention, n, attention.k.at(layer, 0)),
            }
        };
        let (keys, values) = match (attention.sharing, shared) {
            (Sharing::Layerwise, Some(shared)) => (shared.shallow_clone(), None),
            (Sharing::Layerwise | Sharing::KeyValue, _) => (make("key"), None),
            (Sharing::None | Sharing::Headwise, _) => (make("key"), Some(make("value"))),
        };
        let project_first = match attention.order {
            Order::Auto => attention.sharing == Sharing::None,
            order => order == Order::ProjectFirst,
        };
        Self { keys, values, project_first }
    }
}

/// softmax(Q K^T / sqrt(d)) with the sum of the softmax in fp32.
fn probabilities(q: &Tensor, k: &Tensor, mask: Option<&Tensor>) -> Tensor {
    let scale = 1.0 / (q.size()[3] as f64).sqrt();
    let scores = (q * scale).matmul(&k.transpose(-2, -1));
    let scores = match mask {
        Some(mask) => scores.masked_fill(&mask.logical_not(), f64::NEG_INFINITY),
        None => scores,
    };
    scores.softmax(-1, Kind::Float).to_kind(q.kind())
}
