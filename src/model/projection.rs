//! The projection along the sequence: n positions become k rows (E and F of the paper's equation 7).
//!
//! `learned` and `fixed` are matrices `[k, n]`; a shorter input of L positions uses their first L columns.
//!
//! `mean_pool`, `max_pool` and `conv` work on windows of w = ceil(n/k) positions with stride w, so a length L fills
//! ceil(L/w) rows (at most k; fewer when k does not divide n), the last of which may be cut short. Mean and maximum are
//! over the real tokens of a window. A convolution has one kernel of w taps for all channels: the matrix E restricted to
//! `E[j, j w + t] = c[t]`; padding counts as zero. A window without any real token takes no part in the attention.

use super::init::{pooled, Init};
use super::parameters::Parameters;
use crate::config::{Attention, Projection as Kind, ProjectionInit};
use crate::native::weight::Weight;
use tch::Tensor;

/// Maps `[.., L, c]` to `[.., rows, c]`; one for all heads, or one per head.
pub struct Projection {
    kind: Kind,
    /// The longest input.
    n: i64,
    /// One entry for all heads, or (sharing `none`) one per head.
    k: Vec<i64>,
    per_head: bool,
    /// Matrices or kernels: none (pooling), one for everything, or one per head when the heads' k differ.
    weights: Vec<Weight>,
}

/// What a projection gave.
pub struct Compressed {
    /// `[B, rows, c]`, or `[B, h, rows, c]` when given heads.
    pub rows: Tensor,
    /// Rows that take part in the attention, broadcastable to `[B, h, 1, rows]`; None: all.
    pub mask: Option<Tensor>,
}

impl Projection {
    /// One projection for all heads.
    pub fn shared(parameters: &mut Parameters, name: &str, config: &Attention, n: i64, k: i64) -> Self {
        let weights = make_weight(parameters, name, config, n, k, None).into_iter().collect();
        Self { kind: config.projection, n, k: vec![k], per_head: false, weights }
    }

    /// One projection for each head; `k` has one entry a head.
    pub fn per_head(parameters: &mut Parameters, name: &str, config: &Attention, n: i64, k: Vec<i64>) -> Self {
        let heads = k.len() as i64;
        let weights = if k.iter().all(|x| *x == k[0]) {
            make_weight(parameters, name, config, n, k[0], Some(heads)).into_iter().collect()
        } else {
            (0..k.len()).filter_map(|h| make_weight(parameters, &format!("{name}.{h}"), config, n, k[h], None)).collect()
        };
        Self { kind: config.projection, n, k, per_head: true, weights }
    }

    /// Another handle on the same weights (sharing between layers).
    pub fn shallow_clone(&self) -> Self {
        Self {
            kind: self.kind,
            n: self.n,
            k: self.k.clone(),
            per_head: self.per_head,
            weights: self.weights.iter().map(Weight::shallow_clone).collect(),
        }
    }

    /// The one matrix `[k, n]` that is the projection, if it is one.
    pub fn matrix(&self) -> Option<&Weight> {
        match self.kind {
            Kind::Learned | Kind::Fixed if !self.per_head => self.weights.first(),
            _ => None,
        }
    }

    /// x: `[B, L, c]` or, with heads, `[B, h, L, c]`, zero at padding. `keep`: `[B, L]` bool, true at real tokens.
    pub fn compress(&self, x: &Tensor, keep: Option<&Tensor>) -> Compressed {
        let same_k = self.k.iter().all(|k| *k == self.k[0]);
        if !self.per_head || same_k {
            return self.compress_with(x, keep, self.weights.first(), self.k[0]);
        }
        // Heads of different k: one after the other, filled up to the longest.
        let parts: Vec<Compressed> =
            (0..self.k.len()).map(|h| self.compress_with(&x.narrow(1, h as i64, 1), keep, self.weights.get(h), self.k[h])).collect();
        let longest = parts.iter().map(|p| p.rows.size()[2]).max().unwrap_or(0);
        let fill = |t: &Tensor, rows: i64| t.constant_pad_nd([0, 0, 0, longest - rows]);
        let rows: Vec<Tensor> = parts.iter().map(|p| fill(&p.rows, p.rows.size()[2])).collect();
        let batch = x.size()[0];
        let masks: Vec<Tensor> = parts
            .iter()
            .map(|p| {
                let rows = p.rows.size()[2];
                let all = Tensor::ones([batch, 1, 1, rows], (tch::Kind::Bool, x.device()));
                let mask = p.mask.as_ref().map_or(all, |m| m.expand([batch, 1, 1, rows], false));
                mask.constant_pad_nd([0, longest - rows])
            })
            .collect();
        Compressed { rows: Tensor::cat(&rows, 1), mask: Some(Tensor::cat(&masks, 1)) }
    }

    fn compress_with(&self, x: &Tensor, keep: Option<&Tensor>, weight: Option<&Weight>, k: i64) -> Compressed {
        let length = x.size()[x.dim() - 2];
        match (self.kind, weight.map(Weight::tensor)) {
            (Kind::Learned | Kind::Fixed, Some(matrix)) => {
                let columns = matrix.narrow(-1, 0, length).to_kind(x.kind());
                Compressed { rows: columns.matmul(x), mask: None }
            }
            (Kind::Conv, Some(kernel)) => {
                let window = self.window(k);
                // [w] or [h, w] as a row vector that multiplies each window [.., rows, w, c].
                let kernel = if kernel.dim() == 2 { kernel.view([-1, 1, 1, window]) } else { kernel.view([1, window]) };
                let rows = kernel.to_kind(x.kind()).matmul(&windows(x, window)).squeeze_dim(-2);
                Compressed { rows, mask: window_mask(keep, window) }
            }
            (Kind::MaxPool, _) => max_pool(x, keep, self.window(k)),
            _ => mean_pool(x, keep, self.window(k)),
        }
    }

    fn window(&self, k: i64) -> i64 {
        (self.n + k - 1) / k
    }
}

/// The weight of one projection, `[k, n]` or (conv) `[w]`, with a leading dimension for heads when given; pooling has none.
fn make_weight(parameters: &mut Parameters, name: &str, config: &Attention, n: i64, k: i64, heads: Option<i64>) -> Option<Weight> {
    let window = (n + k - 1) / k;
    let tail = match config.projection {
        Kind::MeanPool | Kind::MaxPool => return None,
        Kind::Conv => vec![window],
        Kind::Learned | Kind::Fixed => vec![k, n],
    };
    let shape: Vec<i64> = heads.into_iter().chain(tail).collect();
    let init = if config.projection == Kind::Conv { kernel_init(config.init, window) } else { matrix_init(config.init, n, k) };
    Some(match config.projection {
        Kind::Fixed => parameters.create_constant(name, &shape, init),
        _ => parameters.create_weight(name, &shape, init),
    })
}

fn matrix_init(init: ProjectionInit, n: i64, k: i64) -> Init {
    match init {
        ProjectionInit::Normal => Init::Normal { std: 0.02 },
        ProjectionInit::Xavier => Init::Uniform { bound: (6.0 / (n + k) as f64).sqrt() },
        ProjectionInit::Jl => Init::Normal { std: 1.0 / (k as f64).sqrt() },
        ProjectionInit::MeanPool => Init::MeanPool { std: 0.02 },
    }
}

/// A kernel is one row of E on its window: `jl` and `mean_pool` keep a row's expected length of 1.
fn kernel_init(init: ProjectionInit, window: i64) -> Init {
    match init {
        ProjectionInit::Normal => Init::Normal { std: 0.02 },
        ProjectionInit::Xavier => Init::Uniform { bound: (6.0 / (window + 1) as f64).sqrt() },
        ProjectionInit::Jl => Init::Normal { std: 1.0 / (window as f64).sqrt() },
        ProjectionInit::MeanPool => Init::Kernel { std: 0.02 },
    }
}

/// `[.., L, c]` as `[.., ceil(L/w), w, c]`, filled up with zeros.
fn windows(x: &Tensor, window: i64) -> Tensor {
    let mut shape = x.size();
    let at = shape.len() - 2;
    let rows = (shape[at] + window - 1) / window;
    let filled = x.constant_pad_nd([0, 0, 0, rows * window - shape[at]]);
    shape[at] = rows;
    shape.insert(at + 1, window);
    filled.reshape(shape)
}

/// keep `[B, L]` as `[B, ceil(L/w), w]`.
fn kept_windows(keep: &Tensor, window: i64) -> Tensor {
    windows(&keep.unsqueeze(-1), window).squeeze_dim(-1)
}

/// Windows with at least one real token, `[B, 1, 1, rows]`; without padding that is all of them.
fn window_mask(keep: Option<&Tensor>, window: i64) -> Option<Tensor> {
    keep.map(|keep| kept_windows(keep, window).any_dim(-1, false).unsqueeze(1).unsqueeze(1))
}

/// A tensor of windows `[B, rows, ..]` made to broadcast over x's windows `[B, rows, ..]` or `[B, h, rows, ..]`.
fn over_heads(t: Tensor, x: &Tensor) -> Tensor {
    if x.dim() == 4 {
        t.unsqueeze(1)
    } else {
        t
    }
}

/// E of a mean pool, `[k, n]` in fp64: each row has the mean of its window ([`pooled`]; where k does not divide n, the projection
/// `mean_pool` has wider windows and fewer rows).
pub fn averages(k: i64, n: i64) -> Tensor {
    let e = Tensor::zeros([k, n], (tch::Kind::Double, tch::Device::Cpu));
    for row in 0..k {
        let window = pooled(row as usize, k as usize, n as usize);
        let (first, width) = (window.start as i64, window.len() as i64);
        let _ = e.get(row).narrow(0, first, width).fill_(1.0 / width.max(1) as f64);
    }
    e
}

fn mean_pool(x: &Tensor, keep: Option<&Tensor>, window: i64) -> Compressed {
    let size = x.size();
    let all = Tensor::ones([1, size[size.len() - 2]], (tch::Kind::Bool, x.device()));
    let counts = kept_windows(keep.unwrap_or(&all), window).sum_dim_intlist([-1i64].as_slice(), true, x.kind()).clamp_min(1);
    let sums = windows(x, window).sum_dim_intlist([-2i64].as_slice(), false, x.kind());
    Compressed { rows: sums / over_heads(counts, x), mask: window_mask(keep, window) }
}

fn max_pool(x: &Tensor, keep: Option<&Tensor>, window: i64) -> Compressed {
    let size = x.size();
    let all = Tensor::ones([1, size[size.len() - 2]], (tch::Kind::Bool, x.device()));
    let real = kept_windows(keep.unwrap_or(&all), window);
    // Padding never wins; a window of padding alone is masked below and only has to stay finite.
    let lowest = real.logical_not().to_kind(x.kind()) * -1e30;
    let highest = (windows(x, window) + over_heads(lowest.unsqueeze(-1), x)).amax([-2i64].as_slice(), false);
    let empty = over_heads(real.any_dim(-1, true).logical_not(), x);
    Compressed { rows: highest.masked_fill(&empty, 0.0), mask: window_mask(keep, window) }
}
