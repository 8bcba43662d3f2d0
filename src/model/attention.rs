//! Multi-head self-attention: full, or the Linformer's (paper, equation 7):
//! head_i = softmax(Q W_i^Q (E_i K W_i^K)^T / sqrt(d)) F_i V W_i^V.
//!
//! The key and value biases are added **after** the compression, so that (E X) W + b and E (X W) + b are the same
//! function; padding rows are zeroed **before** it, so that the outputs at real tokens do not depend on how much padding
//! stands behind them.

use super::layers::{fp32_at_least, Linear, Pass, ROW_BLOCK};
use super::parameters::Parameters;
use super::projection::{Compressed, Projection};
use crate::config::{AttentionBackend, AttentionKind, Backend, BiasOrder, Model, Order, Sharing};
use crate::native::dropout::attention_with_dropout;
use crate::native::fused::{attention, attention_is_fast, attention_is_supported, heads, spread_rows, take_rows, HeadWeights};
use crate::native::NativeError;
use tch::{Device, Kind, Tensor};

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

    pub(super) fn shallow_clone(&self) -> Self {
        Self { real: self.real.shallow_clone(), factor: self.factor.shallow_clone() }
    }

    /// Of so many sequences from `first` on.
    pub(super) fn of_sequences(&self, first: i64, count: i64) -> Self {
        Self { real: self.real.narrow(0, first, count), factor: self.factor.narrow(0, first, count) }
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
    /// Width of a head.
    head: i64,
    dropout: f64,
    backend: AttentionBackend,
    /// Whether our own kernel may take the place of libtorch's.
    own_kernel: bool,
    /// The layer, as the place of its dropout.
    place: String,
}

/// Queries, keys and values of every head, for those who study the attention itself.
pub struct Heads {
    /// `[B, h, L, d/h]`.
    pub q: Tensor,
    /// `[B, h, m, d/h]`: L keys, or the k compressed ones.
    pub k: Tensor,
    pub v: Tensor,
    mask: Option<Tensor>,
}

impl Heads {
    /// P of the paper, `[B, h, L, m]`, in fp32.
    pub fn probabilities(&self) -> Tensor {
        probabilities(&self.q, &self.k, self.mask.as_ref()).to_kind(Kind::Float)
    }

    /// The rows w of the paper's theorems, Q K^T / sqrt(d/h), `[B, h, L, m]`.
    pub fn scores(&self) -> Tensor {
        scores(&self.q, &self.k)
    }
}

/// What the queries of a sequence attend to: L rows, or the k compressed ones.
pub struct KeysAndValues {
    /// `[B, m, d]`, or with heads, `[B, h, m, d/h]`.
    k: Tensor,
    v: Tensor,
    /// Keys that take part, broadcastable to `[B, h, 1, m]`; None: all.
    mask: Option<Tensor>,
}

impl KeysAndValues {
    /// The mask as `[B, m]`, if it is one for all heads.
    fn key_mask(&self) -> Option<Option<Tensor>> {
        match &self.mask {
            None => Some(None),
            Some(mask) => match mask.size()[..] {
                [batch, 1, 1, _] if batch == self.k.size()[0] => Some(Some(mask.squeeze_dim(1).squeeze_dim(1))),
                _ => None,
            },
        }
    }
}

struct Compression {
    keys: Projection,
    /// None: E = F.
    values: Option<Projection>,
    project_first: bool,
    /// The biases go through the compression too.
    bias_first: bool,
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
            head: d / config.num_attention_heads,
            dropout: config.attention_probs_dropout_prob,
            backend: config.attention.backend,
            own_kernel: config.backend == Backend::Fused && config.attention.backend == AttentionBackend::Fused,
            place: format!("{name}.probabilities"),
        }
    }

    /// x `[B, L, d]` -> `[B, L, d]`, heads side by side.
    pub fn forward(&self, x: &Tensor, keep: Option<&Keep>, pass: &Pass) -> Result<Tensor, NativeError> {
        let out = match self.block_weights() {
            Some((weights, k)) if self.has_kernel(x.kind(), x.device(), pass.is_training()) => {
                let drop = pass.drop(self.dropout, &self.place, self.heads * x.size()[1] * k.unwrap_or(x.size()[1]));
                heads(x, &weights, keep.map(|keep| &keep.real), self.heads, drop, None)?
            }
            _ => self.attend(&self.queries(x)?, &self.keys_and_values(x, keep)?, pass)?,
        };
        pass.see(self.place.trim_end_matches(".probabilities"), &out);
        Ok(out)
    }

    /// Whether [`Self::forward_at`] can be asked: dropout of the probabilities is for the block as a whole there.
    pub fn can_choose(&self, kind: Kind, device: Device, is_training: bool) -> bool {
        !self.drops(is_training) || self.has_kernel(kind, device, is_training) && self.block_weights().is_some()
    }

    /// The same of some rows alone: `chosen` `[M, d]` are the rows `rows` of x (b L + position, `[M]` int64, strictly ascending).
    pub fn forward_at(&self, x: &Tensor, chosen: &Tensor, rows: &Tensor, keep: Option<&Keep>, pass: &Pass) -> Result<Tensor, NativeError> {
        let (batch, length, width) = (x.size()[0], x.size()[1], x.size()[2]);
        let has_kernel = self.has_kernel(x.kind(), x.device(), pass.is_training());
        if let Some((weights, k)) = self.block_weights().filter(|_| has_kernel) {
            let drop = pass.drop(self.dropout, &self.place, self.heads * length * k.unwrap_or(length));
            return heads(x, &weights, keep.map(|keep| &keep.real), self.heads, drop, Some(rows));
        }
        let to = self.keys_and_values(x, keep)?;
        let q = self.query.forward(chosen)?;
        // As many queries of each sequence as of the one that has most.
        let (places, most) = side_by_side(&numbers(rows), batch as usize, length);
        let places = Tensor::from_slice(&places);
        let q = spread_rows(&q, &places, batch * most)?.view([batch, most, width]);
        take_rows(&self.attend(&q, &to, pass)?.view([-1, width]), &places)
    }

    /// Whether the scores of every query stand in memory at once.
    fn stores_scores(&self) -> bool {
        self.backend == AttentionBackend::Materialised
    }

    /// [`queries_at_once`] of this attention.
    pub fn queries_at_once(&self, kind: Kind) -> i64 {
        queries_at_once(self.backend, self.compression.is_none() && kind == Kind::Float)
    }

    /// Whether our own kernel is the one to take. libtorch's has no dropout.
    fn has_kernel(&self, kind: Kind, device: Device, is_training: bool) -> bool {
        let is_better = if self.drops(is_training) { attention_is_supported } else { attention_is_fast };
        self.own_kernel && is_better(kind, device, self.head)
    }

    /// What of a training step is made of libtorch's operations, and why.
    pub fn unfused(&self, kind: Kind, device: Device) -> Vec<&'static str> {
        let mut parts = Vec::new();
        if self.block_weights().is_none() {
            parts.push("keys and values: E of every head, pools, convolutions, project first and biases first have no block");
        }
        if !self.has_kernel(kind, device, true) {
            parts.push(match () {
                _ if self.stores_scores() => "heads, from E X to the softmax: the scores are stored",
                _ if !self.own_kernel => "heads, from E X to the softmax: libtorch's kernel was asked for",
                _ if self.head % 32 != 0 => "heads, from E X to the softmax: the width of a head is no multiple of 32",
                _ if attention_is_supported(kind, device, self.head) => {
                    "heads, from E X to the softmax: without dropout libtorch's kernel is faster on this processor"
                }
                _ => "heads, from E X to the softmax: this processor has no products for ours",
            });
        }
        parts
    }

    fn drops(&self, is_training: bool) -> bool {
        is_training && self.dropout > 0.0
    }

    /// What one block does as a whole, and k: full attention, and projections that are matrices for all heads, compress first.
    fn block_weights(&self) -> Option<(HeadWeights<'_>, Option<i64>)> {
        let (project_keys, project_values) = match &self.compression {
            None => (None, None),
            Some(Compression { project_first: true, .. } | Compression { bias_first: true, .. }) => return None,
            Some(Compression { keys, values: None, .. }) => (Some(keys.matrix()?), None),
            Some(Compression { keys, values: Some(values), .. }) => (Some(keys.matrix()?), Some(values.matrix()?)),
        };
        let [query, key, value] = [&self.query, &self.key, &self.value].map(Linear::affine);
        Some((HeadWeights { query, key, value, project_keys, project_values }, project_keys.map(|e| e.tensor().size()[0])))
    }

    /// Of rows x `[B, l, d]`.
    pub fn queries(&self, x: &Tensor) -> Result<Tensor, NativeError> {
        self.query.forward(x)
    }

    /// What queries `[B, l, d]` get of the keys and values of their sequences: `[B, l, d]`. Dropout takes them for all of the
    /// sequences' queries.
    pub fn attend(&self, q: &Tensor, to: &KeysAndValues, pass: &Pass) -> Result<Tensor, NativeError> {
        match to.key_mask() {
            Some(mask) if self.has_kernel(q.kind(), q.device(), pass.is_training()) => {
                let (k, v) = (self.merge(&to.k), self.merge(&to.v));
                let drop = pass.drop(self.dropout, &self.place, self.heads * q.size()[1] * k.size()[1]);
                attention(q, &k, &v, mask.as_ref(), self.heads, drop)
            }
            _ => self.by_libtorch(q, to, pass),
        }
    }

    fn by_libtorch(&self, q: &Tensor, to: &KeysAndValues, pass: &Pass) -> Result<Tensor, NativeError> {
        let (q, k, v, mask) = (self.split(q), self.split(&to.k), self.split(&to.v), to.mask.as_ref());
        let drops = pass.drops(self.dropout);
        let out = if self.stores_scores() || drops && q.device() == Device::Cpu {
            // On a CPU libtorch's kernel has no dropout of its own, and ours needs the probabilities as a tensor.
            pass.dropout(probabilities(&q, &k, mask), self.dropout, &self.place)?.matmul(&v)
        } else if drops {
            let drop = pass.drop(self.dropout, &self.place, self.heads * q.size()[2] * k.size()[2]);
            attention_with_dropout(&q, &k, &v, mask, drop)?
        } else {
            Tensor::scaled_dot_product_attention(&q, &k, &v, mask, 0.0, false, None, false)
        };
        Ok(self.merge(&out))
    }

    /// What the attention of x is computed from, head by head.
    pub fn heads(&self, x: &Tensor, keep: Option<&Keep>) -> Result<Heads, NativeError> {
        let (q, KeysAndValues { k, v, mask }) = (self.queries(x)?, self.keys_and_values(x, keep)?);
        Ok(Heads { q: self.split(&q), k: self.split(&k), v: self.split(&v), mask })
    }

    /// Of whole sequences x `[B, L, d]`.
    pub fn keys_and_values(&self, x: &Tensor, keep: Option<&Keep>) -> Result<KeysAndValues, NativeError> {
        let Some(compression) = &self.compression else {
            let mask = keep.map(|keep| keep.real.unsqueeze(1).unsqueeze(1));
            return Ok(KeysAndValues { k: self.key.forward(x)?, v: self.value.forward(x)?, mask });
        };
        let zeroed = keep.map_or_else(|| x.shallow_clone(), |keep| x * &keep.factor);
        let real = keep.map(|keep| &keep.real);
        if compression.bias_first {
            self.bias_then_compress(compression, &zeroed, keep)
        } else if compression.project_first {
            self.project_then_compress(compression, &zeroed, real)
        } else {
            self.compress_then_project(compression, &zeroed, real)
        }
    }

    /// E X computed once for keys and values when E = F, then (E X) W + b on k rows instead of n.
    fn compress_then_project(&self, compression: &Compression, x: &Tensor, real: Option<&Tensor>) -> Result<KeysAndValues, NativeError> {
        let keys = compression.keys.compress(x, real);
        let values = compression.values.as_ref().map(|f| f.compress(x, real).rows);
        let v = self.value.forward(values.as_ref().unwrap_or(&keys.rows))?;
        Ok(KeysAndValues { k: self.key.forward(&keys.rows)?, v, mask: keys.mask })
    }

    /// E_i (X W_i) + b_i: needed where every head has its own E.
    fn project_then_compress(&self, compression: &Compression, x: &Tensor, real: Option<&Tensor>) -> Result<KeysAndValues, NativeError> {
        let compress = |projection: &Projection, linear: &Linear| {
            let Compressed { rows, mask } = projection.compress(&self.split(&linear.without_bias(x)?), real);
            let bias = linear.bias.to_kind(rows.kind()).view([1, self.heads, 1, -1]);
            Ok((rows + bias, mask))
        };
        let (k, mask) = compress(&compression.keys, &self.key)?;
        let (v, _) = compress(compression.values.as_ref().unwrap_or(&compression.keys), &self.value)?;
        Ok(KeysAndValues { k, v, mask })
    }

    /// E_i (X W_i + b_i), zero at padding.
    fn bias_then_compress(&self, compression: &Compression, x: &Tensor, keep: Option<&Keep>) -> Result<KeysAndValues, NativeError> {
        let compress = |projection: &Projection, linear: &Linear| {
            let y = linear.forward(x)?;
            let y = keep.map_or_else(|| y.shallow_clone(), |keep| &y * &keep.factor);
            Ok::<_, NativeError>(projection.compress(&self.split(&y), keep.map(|keep| &keep.real)))
        };
        let Compressed { rows: k, mask } = compress(&compression.keys, &self.key)?;
        let v = compress(compression.values.as_ref().unwrap_or(&compression.keys), &self.value)?.rows;
        Ok(KeysAndValues { k, v, mask })
    }

    /// `[B, m, d]` -> `[B, h, m, d/h]`; what is split already stays.
    fn split(&self, x: &Tensor) -> Tensor {
        match x.size()[..] {
            [batch, rows, width] => x.view([batch, rows, self.heads, width / self.heads]).transpose(1, 2),
            _ => x.shallow_clone(),
        }
    }

    /// `[B, h, m, d/h]` -> `[B, m, d]`; what is merged already stays.
    fn merge(&self, x: &Tensor) -> Tensor {
        match x.size()[..] {
            [batch, heads, rows, width] => x.transpose(1, 2).reshape([batch, rows, heads * width]),
            _ => x.shallow_clone(),
        }
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
        Self { keys, values, project_first, bias_first: attention.bias == BiasOrder::Before }
    }
}

fn numbers(rows: &Tensor) -> Vec<i64> {
    let mut numbers = vec![0; rows.numel()];
    rows.copy_data(&mut numbers, rows.numel());
    numbers
}

/// Where rows (b length + position, ascending) stand when every sequence has as many as the one that has most, and how many
/// that is.
fn side_by_side(rows: &[i64], batch: usize, length: i64) -> (Vec<i64>, i64) {
    let mut counts = vec![0; batch];
    let within: Vec<(i64, i64)> = rows
        .iter()
        .map(|row| {
            let sequence = row / length;
            let before = counts[sequence as usize];
            counts[sequence as usize] += 1;
            (sequence, before)
        })
        .collect();
    let most = counts.into_iter().max().unwrap_or(0);
    (within.into_iter().map(|(sequence, before)| sequence * most + before).collect(), most)
}

/// Queries of a sequence that are attended with at once where nothing is kept for a backward pass. Each block of them reads all
/// keys and values: n of them, in fp32, are worth more queries than k (benches/LOG.md).
pub fn queries_at_once(backend: AttentionBackend, is_full_in_fp32: bool) -> i64 {
    match backend {
        AttentionBackend::Materialised => i64::MAX,
        _ if is_full_in_fp32 => 2048,
        _ => ROW_BLOCK,
    }
}

/// Q K^T / sqrt(d).
fn scores(q: &Tensor, k: &Tensor) -> Tensor {
    (q * (1.0 / (q.size()[3] as f64).sqrt())).matmul(&k.transpose(-2, -1))
}

/// softmax(Q K^T / sqrt(d)) with the sum of the softmax in fp32 at least.
fn probabilities(q: &Tensor, k: &Tensor, mask: Option<&Tensor>) -> Tensor {
    let scores = scores(q, k);
    let scores = match mask {
        Some(mask) => scores.masked_fill(&mask.logical_not(), f64::NEG_INFINITY),
        None => scores,
    };
    scores.softmax(-1, fp32_at_least(q.kind())).to_kind(q.kind())
}
