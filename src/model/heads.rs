//! From hidden states to predictions: RoBERTa's masked-LM head and its classification head.

use super::init::Init;
use super::layers::{activate, activate_fused, is_fused, LayerNorm, Linear, Pass};
use super::loss::cross_entropy_sum;
use super::parameters::Parameters;
use crate::config::{Backend, HiddenAct, Model};
use crate::native::fused::vocabulary_loss;
use crate::native::profile::{span, Part};
use crate::native::weight::Weight;
use crate::native::NativeError;
use tch::Tensor;

/// Dense, GELU, LayerNorm, then the word embeddings as the output matrix.
pub struct MaskedLmHead {
    dense: Linear,
    norm: LayerNorm,
    bias: Tensor,
    word_embeddings: Weight,
    act: HiddenAct,
    backend: Backend,
}

impl MaskedLmHead {
    pub fn new(parameters: &mut Parameters, config: &Model, word_embeddings: &Weight) -> Self {
        Self {
            dense: Linear::new(parameters, "lm_head.dense", config.hidden_size, config.hidden_size, config),
            norm: LayerNorm::new(parameters, "lm_head.layer_norm", config),
            bias: parameters.create("lm_head.bias", &[config.vocabulary()], Init::Zeros),
            word_embeddings: word_embeddings.shallow_clone(),
            act: config.hidden_act,
            backend: config.backend,
        }
    }

    /// The cross-entropy of the predictions from `hidden` `[M, d]`, summed over `targets` `[M]` int64 (negative: ignored), in
    /// nats. The fused block never stores logits and gradient side by side.
    pub fn loss(&self, hidden: &Tensor, targets: &Tensor, smoothing: f64, pass: &Pass) -> Result<Tensor, NativeError> {
        let _span = span(Part::Head);
        if !is_fused(self.backend, hidden) || pass.is_watched() {
            let logits = self.forward(hidden)?;
            pass.see("lm_head", &logits);
            return Ok(cross_entropy_sum(&logits, targets, smoothing));
        }
        let x = activate_fused(&self.dense.without_bias(hidden)?, &self.dense.bias, self.act)?;
        vocabulary_loss(&self.norm.forward_fused(x)?, &self.word_embeddings, &self.bias, targets, smoothing)
    }

    /// Logits `[M, V]` from the hidden states `[M, d]` of what is predicted ([`super::Encoder::forward_at`]).
    pub fn forward(&self, hidden: &Tensor) -> Result<Tensor, NativeError> {
        let x = self.norm.forward(&activate(&self.dense.forward(hidden)?, self.act));
        Ok(x.linear(&self.word_embeddings.cast(x.kind()), Some(&self.bias.to_kind(x.kind()))))
    }
}

/// Dense and tanh on the first token, then a linear layer: classes, or one number for a regression.
pub struct ClassificationHead {
    dense: Linear,
    out: Linear,
    dropout: f64,
}

impl ClassificationHead {
    pub fn new(parameters: &mut Parameters, config: &Model, outputs: i64) -> Self {
        let d = config.hidden_size;
        Self {
            dense: Linear::new(parameters, "classifier.dense", d, d, config),
            out: Linear::new(parameters, "classifier.out_proj", d, outputs, config),
            dropout: config.classifier_dropout.unwrap_or(config.hidden_dropout_prob),
        }
    }

    /// Hidden states of the sequences' first tokens `[B, d]` ([`super::Encoder::forward_first`]) -> `[B, outputs]`.
    pub fn forward(&self, first: &Tensor, pass: &Pass) -> Result<Tensor, NativeError> {
        let _span = span(Part::Head);
        let first = pass.dropout(first.shallow_clone(), self.dropout, "classifier.dense")?;
        let x = self.dense.forward(&first)?.tanh();
        let out = self.out.forward(&pass.dropout(x, self.dropout, "classifier.out_proj")?)?;
        pass.see("classifier", &out);
        Ok(out)
    }
}
