//! Small parts: a pass through the model, linear layers, LayerNorm.

use super::init::Init;
use super::parameters::Parameters;
use super::watch::Watch;
use crate::config::{Backend, HiddenAct, Model, WeightInit};
use crate::native::dropout::dropout;
use crate::native::fused::{bias_gelu, drop_add_norm, is_supported, linear, Affine, Drop, Norm};
use crate::native::weight::Weight;
use crate::native::NativeError;
use crate::random::{combine, hash_name, Purpose, Stream};
use tch::{Kind, Tensor};

/// Rows taken at once where nothing is kept for a backward pass: what the feed-forward block makes of them should stay in the
/// cache, and is the most that a pass over a sequence needs. Products of fewer rows are slower (benches/LOG.md).
pub(crate) const ROW_BLOCK: i64 = 512;

/// One forward pass: its arithmetic and its randomness, and who looks on.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// Arithmetic: fp32, or bf16 with the fp32 weights cast where they are used.
    pub kind: Kind,
    dropout: Option<DropoutKey>,
    watch: Option<&'a Watch>,
    /// Layers keep their input alone for the backward pass.
    recomputes: bool,
}

#[derive(Clone, Copy, Debug)]
struct DropoutKey {
    seed: u64,
    step: u64,
    first_sequence: i64,
}

impl DropoutKey {
    fn stream(self, place: &str) -> Stream {
        Stream::new(self.seed, Purpose::Dropout, combine(self.step, hash_name(place)))
    }
}

impl<'a> Pass<'a> {
    /// Without dropout.
    pub fn evaluation(kind: Kind) -> Self {
        Self { kind, dropout: None, watch: None, recomputes: false }
    }

    /// With dropout as a function of (seed, step). `first_sequence` is the place of the micro-batch in the step's batch:
    /// on a CPU the cut into micro-batches does not change what is dropped.
    pub fn training(kind: Kind, seed: u64, step: u64, first_sequence: i64) -> Self {
        Self { kind, dropout: Some(DropoutKey { seed, step, first_sequence }), watch: None, recomputes: false }
    }

    /// The same pass with its modules' outputs looked at.
    pub fn watched(self, watch: &'a Watch) -> Self {
        Self { watch: Some(watch), ..self }
    }

    /// The same pass with layers that keep their input alone, and are run again in the backward pass.
    pub fn recomputing(self, recomputes: bool) -> Self {
        Self { recomputes, ..self }
    }

    /// The pass inside a layer that is run again.
    pub(super) fn within_recomputed(&self) -> Pass<'static> {
        Pass { kind: self.kind, dropout: self.dropout, watch: None, recomputes: false }
    }

    pub(super) fn recomputes(&self) -> bool {
        self.recomputes && self.watch.is_none()
    }

    pub(super) fn is_training(&self) -> bool {
        self.dropout.is_some()
    }

    /// Shows a module's output to whoever looks on.
    pub fn see(&self, module: &str, output: &Tensor) {
        if let Some(watch) = self.watch {
            watch.see(module, output);
        }
    }

    /// Dropout of a block at a named place, whose tensor has `per_sequence` elements for each sequence.
    pub fn drop(&self, p: f64, place: &str, per_sequence: i64) -> Drop {
        match self.dropout {
            Some(key) if p > 0.0 => Drop { p, stream: key.stream(place), offset: key.first_sequence * per_sequence },
            _ => Drop::NONE,
        }
    }

    pub fn is_watched(&self) -> bool {
        self.watch.is_some()
    }

    pub fn drops(&self, p: f64) -> bool {
        self.dropout.is_some() && p > 0.0
    }

    /// Dropout of x `[B, ..]` at a named place of the model.
    pub fn dropout(&self, x: Tensor, p: f64, place: &str) -> Result<Tensor, NativeError> {
        match self.dropout {
            Some(key) if p > 0.0 => {
                let per_sequence = x.numel() as i64 / x.size()[0].max(1);
                dropout(&x, p, key.stream(place), key.first_sequence * per_sequence)
            }
            _ => Ok(x),
        }
    }
}

/// What is summed up for a pass in `kind`: fp64 where gradients are checked in fp64, fp32 for all else.
pub(super) fn fp32_at_least(kind: Kind) -> Kind {
    match kind {
        Kind::Double => Kind::Double,
        _ => Kind::Float,
    }
}

/// y = x W^T + b.
pub struct Linear {
    weight: Weight,
    pub bias: Tensor,
    backend: Backend,
}

/// Whether this tensor goes through the blocks of our own.
pub(super) fn is_fused(backend: Backend, x: &Tensor) -> bool {
    backend == Backend::Fused && is_supported(x.kind(), x.device())
}

impl Linear {
    pub fn new(parameters: &mut Parameters, name: &str, inputs: i64, outputs: i64, config: &Model) -> Self {
        let std = match config.weight_init {
            WeightInit::Normal => config.initializer_range,
            WeightInit::InverseSqrtWidth => 1.0 / (inputs as f64).sqrt(),
        };
        Self {
            weight: parameters.create_weight(&format!("{name}.weight"), &[outputs, inputs], Init::Normal { std }),
            bias: parameters.create(&format!("{name}.bias"), &[outputs], Init::Zeros),
            backend: config.backend,
        }
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor, NativeError> {
        self.product(x, Some(&self.bias))
    }

    /// x W^T.
    pub fn without_bias(&self, x: &Tensor) -> Result<Tensor, NativeError> {
        self.product(x, None)
    }

    fn product(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, NativeError> {
        if is_fused(self.backend, x) {
            return linear(x, &self.weight, bias);
        }
        Ok(x.linear(&self.weight.cast(x.kind()), bias.map(|bias| bias.to_kind(x.kind())).as_ref()))
    }

    /// For a block that takes the layer in.
    pub fn affine(&self) -> Affine<'_> {
        Affine { weight: &self.weight, bias: &self.bias }
    }
}

/// LayerNorm over the last dimension; statistics and parameters in fp32 whatever the kind of x.
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    pub fn new(parameters: &mut Parameters, name: &str, config: &Model) -> Self {
        let d = config.hidden_size;
        Self {
            weight: parameters.create(&format!("{name}.weight"), &[d], Init::Ones),
            bias: parameters.create(&format!("{name}.bias"), &[d], Init::Zeros),
            eps: config.layer_norm_eps,
        }
    }

    /// For a block that takes the layer in.
    pub fn parameters(&self) -> Norm<'_> {
        Norm { gamma: &self.weight, beta: &self.bias, eps: self.eps }
    }

    /// The norm of x in one block, which uses x up.
    pub fn forward_fused(&self, x: Tensor) -> Result<Tensor, NativeError> {
        drop_add_norm(x, None, None, self.parameters(), Drop::NONE)
    }

    pub fn forward(&self, x: &Tensor) -> Tensor {
        // On a CPU, libtorch takes bf16 rows with fp32 parameters and keeps the statistics in fp32.
        let same_kind = x.kind() == Kind::Float || x.device() == tch::Device::Cpu;
        let (input, back) = if same_kind { (x.shallow_clone(), x.kind()) } else { (x.to_kind(Kind::Float), x.kind()) };
        input.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, true).to_kind(back)
    }
}

/// act(h + bias), in one block for GELU.
pub fn activate_fused(h: &Tensor, bias: &Tensor, act: HiddenAct) -> Result<Tensor, NativeError> {
    match act {
        HiddenAct::Gelu => bias_gelu(h, bias),
        HiddenAct::Relu => Ok((h + bias.to_kind(h.kind())).relu()),
    }
}

pub fn activate(x: &Tensor, act: HiddenAct) -> Tensor {
    match act {
        HiddenAct::Gelu => x.gelu("none"),
        HiddenAct::Relu => x.relu(),
    }
}
