//! RoBERTa's encoder: embeddings, then layers of self-attention and feed-forward, under Hugging Face's names.

use super::attention::{Heads, Keep, SelfAttention};
use super::init::Init;
use super::layers::{activate, is_fused, LayerNorm, Linear, Pass, ROW_BLOCK};
use super::parameters::Parameters;
use super::projection::Projection;
use crate::config::{AttentionKind, Backend, HiddenAct, Model, Norm, Padding, PositionInit, Sharing};
use crate::native::fused::{embedding, feed_forward, is_supported, output_norm, take_rows};
use crate::native::profile::{span, Part};
use crate::native::recompute::recompute;
use crate::native::weight::Weight;
use crate::native::NativeError;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// A batch as the encoder sees it.
pub struct Input {
    /// `[B, L]` int64.
    pub ids: Tensor,
    /// `[B, L]`, 1 at real tokens; None: no padding.
    pub attention_mask: Option<Tensor>,
}

/// Token ids to hidden states.
pub struct Encoder {
    embeddings: Embeddings,
    layers: Vec<Rc<Layer>>,
    /// Pre-norm only: the last LayerNorm.
    norm: Option<LayerNorm>,
    /// Padding is zeroed after the embeddings and then taken for text.
    padding_blind: bool,
}

impl Encoder {
    /// `config` has its vocabulary and positions resolved and has been validated.
    pub fn new(parameters: &mut Parameters, config: &Model) -> Self {
        let embeddings = Embeddings::new(parameters, config);
        let attention = &config.attention;
        let layerwise = attention.kind == AttentionKind::Linformer && attention.sharing == Sharing::Layerwise;
        let shared =
            layerwise.then(|| Projection::shared(parameters, SHARED_PROJECTION, attention, config.sequence_length(), attention.k.at(0, 0)));
        let layers = (0..config.num_hidden_layers as usize).map(|i| Rc::new(Layer::new(parameters, config, i, shared.as_ref()))).collect();
        let norm = (config.norm == Norm::Pre).then(|| LayerNorm::new(parameters, "roberta.encoder.LayerNorm", config));
        let padding_blind = attention.kind == AttentionKind::Linformer && attention.padding == Padding::Blind;
        Self { embeddings, layers, norm, padding_blind }
    }

    /// What stands behind the first `separator` of a sequence gets token type 1 (BERT's second text of a pair); without
    /// one, every token has type 0.
    pub fn with_segments(mut self, separator: Option<u32>) -> Self {
        self.embeddings.separator = separator.map(i64::from);
        self
    }

    /// Hidden states `[B, L, d]` in the arithmetic of the pass.
    pub fn forward(&self, input: &Input, pass: &Pass) -> Result<Tensor, NativeError> {
        let (x, keep) = self.embed(input, pass)?;
        Ok(self.normed(through(&self.layers, x, keep.as_ref(), pass, |_, _| Ok(()))?))
    }

    /// The hidden states that a head reads, `[M, d]`: of the rows b L + position, `[M]` int64, strictly ascending. The last layer
    /// makes no others, where it is of fused blocks: its queries, its feed-forward block and their gradients are of M rows.
    pub fn forward_at(&self, input: &Input, rows: &Tensor, pass: &Pass) -> Result<Tensor, NativeError> {
        let (x, keep) = self.embed(input, pass)?;
        let (others, last) = self.layers.split_at(self.layers.len().saturating_sub(1));
        let x = through(others, x, keep.as_ref(), pass, |_, _| Ok(()))?;
        match last {
            [last] if rows.numel() > 0 && !pass.is_watched() && last.can_choose(x.kind(), x.device(), pass.is_training()) => {
                last.forward_at(&x, keep.as_ref(), rows, pass)
            }
            _ => {
                let x = self.normed(through(last, x, keep.as_ref(), pass, |_, _| Ok(()))?);
                Ok(x.reshape([-1, x.size()[2]]).index_select(0, rows))
            }
        }
    }

    /// The share of its rows that the last layer makes in training, if a head reads a share `read` of them.
    pub fn share_made(&self, read: f64, kind: Kind, device: Device) -> f64 {
        match self.layers.last() {
            Some(last) if last.can_choose(kind, device, true) => read,
            _ => 1.0,
        }
    }

    /// What of a training step is made of libtorch's operations, and why; none: every block is one of ours.
    pub fn unfused(&self, kind: Kind, device: Device) -> Vec<&'static str> {
        if self.embeddings.backend != Backend::Fused {
            return vec!["all: backend reference"];
        }
        if !is_supported(kind, device) {
            return vec!["all: the blocks are for fp32 and bf16 on a CPU"];
        }
        let mut parts = Vec::new();
        parts.extend(self.norm.as_ref().map(|_| "feed-forward, LayerNorm and residuals: norm pre"));
        for part in self.layers.iter().flat_map(|layer| layer.attention.unfused(kind, device)) {
            if !parts.contains(&part) {
                parts.push(part);
            }
        }
        parts
    }

    /// Those of the first token of each sequence, `[B, d]`.
    pub fn forward_first(&self, input: &Input, pass: &Pass) -> Result<Tensor, NativeError> {
        let (sequences, length) = (input.ids.size()[0], input.ids.size()[1]);
        let rows = Tensor::arange(sequences, (Kind::Int64, input.ids.device())) * length;
        self.forward_at(input, &rows, pass)
    }

    fn normed(&self, x: Tensor) -> Tensor {
        match &self.norm {
            Some(norm) => norm.forward(&x),
            None => x,
        }
    }

    /// The layers' first input, and the padding that they know of.
    fn embed(&self, input: &Input, pass: &Pass) -> Result<(Tensor, Option<Keep>), NativeError> {
        let keep = input.attention_mask.as_ref().map(|mask| Keep::new(mask, pass.kind));
        let x = self.embeddings.forward(input, keep.as_ref(), pass)?;
        Ok(match keep {
            Some(keep) if self.padding_blind => (x * keep.factor, None),
            keep => (x, keep),
        })
    }

    /// Calls `see` with the number of each layer and what its attention is computed from, in a pass over a batch.
    pub fn visit(&self, input: &Input, pass: &Pass, mut see: impl FnMut(usize, Heads)) -> Result<(), NativeError> {
        let mut number = 0;
        let (x, keep) = self.embed(input, pass)?;
        through(&self.layers, x, keep.as_ref(), pass, |layer, x| {
            see(number, layer.heads(x, keep.as_ref())?);
            number += 1;
            Ok(())
        })
        .map(drop)
    }

    /// The self-attention of a layer.
    pub fn attention(&self, layer: usize) -> &SelfAttention {
        &self.layers[layer].attention
    }

    /// What the self-attention of each layer reads, `[B, L, d]`.
    pub fn attention_inputs(&self, input: &Input, pass: &Pass) -> Result<Vec<Tensor>, NativeError> {
        let mut inputs = Vec::with_capacity(self.layers.len());
        let (x, keep) = self.embed(input, pass)?;
        through(&self.layers, x, keep.as_ref(), pass, |layer, x| {
            inputs.push(layer.attention_input(x));
            Ok(())
        })
        .map(drop)?;
        Ok(inputs)
    }

    /// The word embeddings `[V, d]`, to which the MLM head is tied.
    pub fn word_embeddings(&self) -> &Weight {
        &self.embeddings.word
    }
}

/// x `[B, L, d]` through some layers; `see` has each layer and its input before it runs.
fn through(
    layers: &[Rc<Layer>],
    mut x: Tensor,
    keep: Option<&Keep>,
    pass: &Pass,
    mut see: impl FnMut(&Layer, &Tensor) -> Result<(), NativeError>,
) -> Result<Tensor, NativeError> {
    for layer in layers {
        see(layer, &x)?;
        x = match pass.recomputes() && x.requires_grad() {
            true => Layer::forward_again(layer, &x, keep, pass)?,
            false => layer.forward(x, keep, pass)?,
        };
    }
    Ok(x)
}

struct Embeddings {
    word: Weight,
    position: Tensor,
    token_type: Tensor,
    /// Ends the tokens of type 0.
    separator: Option<i64>,
    norm: LayerNorm,
    pad: i64,
    dropout: f64,
    backend: Backend,
}

impl Embeddings {
    fn new(parameters: &mut Parameters, config: &Model) -> Self {
        let d = config.hidden_size;
        let name = "roberta.embeddings";
        let pad = config.pad_token_id;
        let word_std = config.embedding_init_range.unwrap_or(config.initializer_range);
        let position_range = config.position_init_range.unwrap_or(config.initializer_range);
        let position_init = match config.position_init {
            PositionInit::Normal => Init::NormalWithZeroRow { std: position_range, row: pad },
            PositionInit::Sinusoidal => Init::Sinusoidal { amplitude: position_range, base: config.position_init_base, first_row: pad + 1 },
        };
        let positions = config.sequence_length() + pad + 1;
        Self {
            word: parameters.create_weight(
                &format!("{name}.word_embeddings.weight"),
                &[config.vocabulary(), d],
                Init::NormalWithZeroRow { std: word_std, row: pad },
            ),
            position: parameters.create(&format!("{name}.position_embeddings.weight"), &[positions, d], position_init),
            token_type: parameters.create(
                &format!("{name}.token_type_embeddings.weight"),
                &[config.type_vocab_size, d],
                Init::Normal { std: config.initializer_range },
            ),
            separator: None,
            norm: LayerNorm::new(parameters, &format!("{name}.LayerNorm"), config),
            pad,
            dropout: config.hidden_dropout_prob,
            backend: config.backend,
        }
    }

    fn forward(&self, input: &Input, keep: Option<&Keep>, pass: &Pass) -> Result<Tensor, NativeError> {
        let _span = span(Part::Embedding);
        let places = self.places(&input.ids, keep);
        let types = self.separator.map(|separator| self.types(&input.ids, separator));
        let normal = if types.is_none() && self.backend == Backend::Fused && is_supported(pass.kind, input.ids.device()) {
            let size = [input.ids.size(), vec![self.token_type.size()[1]]].concat();
            let token_type = self.token_type.get(0);
            let sum = embedding(self.word.tensor(), &self.position, &token_type, &input.ids, &places, self.pad, pass.kind)?;
            self.norm.forward_fused(sum)?.view(size.as_slice())
        } else {
            let words = Tensor::embedding(self.word.tensor(), &input.ids, self.pad, false, false);
            let positions = Tensor::embedding(&self.position, &places, self.pad, false, false);
            let types = types.unwrap_or_else(|| self.token_type.get(0));
            self.norm.forward(&(words + positions + types).to_kind(pass.kind))
        };
        let out = pass.dropout(normal, self.dropout, "roberta.embeddings")?;
        pass.see("roberta.embeddings", &out);
        Ok(out)
    }

    /// The embeddings of the token types of `[B, L]` ids: `[B, L, d]`.
    fn types(&self, ids: &Tensor, separator: i64) -> Tensor {
        let is_separator = ids.eq(separator).to_kind(Kind::Int64);
        let before = is_separator.cumsum(1, Kind::Int64) - is_separator;
        Tensor::embedding(&self.token_type, &before.clamp_max(1), -1, false, false)
    }

    /// RoBERTa counts positions from pad + 1 and gives padding the position pad: `[B, L]`.
    fn places(&self, ids: &Tensor, keep: Option<&Keep>) -> Tensor {
        match keep {
            None => {
                let (first, length) = (self.pad + 1, ids.size()[1]);
                Tensor::arange_start(first, first + length, (Kind::Int64, ids.device())).expand_as(ids)
            }
            Some(keep) => {
                let real = keep.real.to_kind(Kind::Int64);
                real.cumsum(1, Kind::Int64) * &real + self.pad
            }
        }
    }
}

struct Layer {
    attention: SelfAttention,
    attention_output: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: LayerNorm,
    norm: Norm,
    act: HiddenAct,
    dropout: f64,
    backend: Backend,
    /// Names of the attention and feed-forward outputs, where dropout stands.
    places: [String; 2],
    /// All that is learned here, shared projections included.
    weights: Vec<Tensor>,
}

impl Layer {
    fn new(parameters: &mut Parameters, config: &Model, index: usize, shared: Option<&Projection>) -> Self {
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let name = format!("roberta.encoder.layer.{index}");
        let first = parameters.iter().count();
        let layer = Self {
            attention: SelfAttention::new(parameters, &format!("{name}.attention.self"), config, index, shared),
            attention_output: Linear::new(parameters, &format!("{name}.attention.output.dense"), d, d, config),
            attention_norm: LayerNorm::new(parameters, &format!("{name}.attention.output.LayerNorm"), config),
            intermediate: Linear::new(parameters, &format!("{name}.intermediate.dense"), d, f, config),
            output: Linear::new(parameters, &format!("{name}.output.dense"), f, d, config),
            output_norm: LayerNorm::new(parameters, &format!("{name}.output.LayerNorm"), config),
            norm: config.norm,
            act: config.hidden_act,
            dropout: config.hidden_dropout_prob,
            backend: config.backend,
            places: [format!("{name}.attention.output"), format!("{name}.output")],
            weights: Vec::new(),
        };
        let own = parameters.iter().skip(first).chain(parameters.get(SHARED_PROJECTION));
        let weights = own.filter(|p| p.trainable).map(|p| p.tensor.shallow_clone()).collect();
        Self { weights, ..layer }
    }

    /// The same as [`Self::forward`], bit for bit, without what it keeps for the backward pass.
    fn forward_again(this: &Rc<Self>, x: &Tensor, keep: Option<&Keep>, pass: &Pass) -> Result<Tensor, NativeError> {
        let (layer, keep, pass) = (this.clone(), keep.map(Keep::shallow_clone), pass.within_recomputed());
        recompute(x, &this.weights, Box::new(move |x| layer.forward(x, keep.as_ref(), &pass)))
    }

    /// x `[B, L, d]` -> `[B, L, d]`.
    fn forward(&self, x: Tensor, keep: Option<&Keep>, pass: &Pass) -> Result<Tensor, NativeError> {
        match self.norm {
            Norm::Post if is_fused(self.backend, &x) && !pass.is_watched() => self.forward_fused(x, keep, pass),
            Norm::Post => {
                let attention = span(Part::Attention);
                let x = self.attention_norm.forward(&(self.attend(&x, keep, pass)? + &x));
                drop(attention);
                let _span = span(Part::FeedForward);
                Ok(self.output_norm.forward(&(self.feed_forward(&x, pass)? + &x)))
            }
            Norm::Pre => {
                let attention = span(Part::Attention);
                let x = self.attend(&self.attention_norm.forward(&x), keep, pass)? + x;
                drop(attention);
                let _span = span(Part::FeedForward);
                Ok(self.feed_forward(&self.output_norm.forward(&x), pass)? + x)
            }
        }
    }

    /// Of the attention of the layer's input x.
    fn heads(&self, x: &Tensor, keep: Option<&Keep>) -> Result<Heads, NativeError> {
        self.attention.heads(&self.attention_input(x), keep)
    }

    /// What the self-attention reads of the layer's input.
    fn attention_input(&self, x: &Tensor) -> Tensor {
        match self.norm {
            Norm::Post => x.shallow_clone(),
            Norm::Pre => self.attention_norm.forward(x),
        }
    }

    fn attend(&self, x: &Tensor, keep: Option<&Keep>, pass: &Pass) -> Result<Tensor, NativeError> {
        let out = self.attention_output.forward(&self.attention.forward(x, keep, pass)?)?;
        pass.see(&self.places[0], &out);
        pass.dropout(out, self.dropout, &self.places[0])
    }

    fn feed_forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor, NativeError> {
        let out = self.output.forward(&activate(&self.intermediate.forward(x)?, self.act))?;
        pass.see(&self.places[1], &out);
        pass.dropout(out, self.dropout, &self.places[1])
    }

    /// The same in three blocks: the heads' outputs, the end of the attention, the feed-forward block.
    fn forward_fused(&self, x: Tensor, keep: Option<&Keep>, pass: &Pass) -> Result<Tensor, NativeError> {
        let (size, width) = (x.size(), x.size()[2]);
        if !pass.is_training() && !x.requires_grad() && size[0] * size[1] > ROW_BLOCK {
            return self.forward_by_rows(&x, keep, pass);
        }
        let attention = span(Part::Attention);
        let (attended, x) = (self.attention.forward(&x, keep, pass)?.view([-1, width]), x.view([-1, width]));
        drop(attention);
        Ok(self.rest_of_layer(attended, &x, size[1], None, pass)?.view(size.as_slice()))
    }

    /// The same where nothing has to stay for a backward pass. Only keys and values are made of whole sequences (k rows of a
    /// Linformer); queries, and all that follows them, of a block of rows at a time.
    fn forward_by_rows(&self, x: &Tensor, keep: Option<&Keep>, pass: &Pass) -> Result<Tensor, NativeError> {
        let (batch, length, width) = (x.size()[0], x.size()[1], x.size()[2]);
        let (sequences, rows) = ((ROW_BLOCK / length).max(1), self.attention.queries_at_once(x.kind()).min(length));
        let out = x.empty_like();
        for first in (0..batch).step_by(sequences as usize) {
            let count = sequences.min(batch - first);
            let [x, out] = [x, &out].map(|t| t.narrow(0, first, count));
            let keep = keep.map(|keep| keep.of_sequences(first, count));
            let attention = span(Part::Attention);
            let keys_and_values = self.attention.keys_and_values(&x, keep.as_ref())?;
            drop(attention);
            for row in (0..length).step_by(rows as usize) {
                let [x, mut out] = [&x, &out].map(|t| t.narrow(1, row, rows.min(length - row)));
                let attention = span(Part::Attention);
                let attended = self.attention.attend(&self.attention.queries(&x)?, &keys_and_values, pass)?.view([-1, width]);
                drop(attention);
                out.copy_(&self.rest_by_rows(attended, &x.view([-1, width]), length, None, pass)?.view_as(&out));
            }
        }
        Ok(out)
    }

    /// [`Self::rest_of_layer`] without gradients, of a block of rows at a time.
    fn rest_by_rows(
        &self,
        attended: Tensor,
        x: &Tensor,
        length: i64,
        numbers: Option<&Tensor>,
        pass: &Pass,
    ) -> Result<Tensor, NativeError> {
        let count = x.size()[0];
        if count <= ROW_BLOCK {
            return self.rest_of_layer(attended, x, length, numbers, pass);
        }
        let piece = |first: i64| {
            let of = |t: &Tensor| t.narrow(0, first, ROW_BLOCK.min(count - first));
            self.rest_of_layer(of(&attended), &of(x), length, numbers.map(of).as_ref(), pass)
        };
        let pieces: Vec<Tensor> = (0..count).step_by(ROW_BLOCK as usize).map(piece).collect::<Result<_, _>>()?;
        Ok(Tensor::cat(&pieces, 0))
    }

    /// Whether [`Self::forward_at`] can be asked.
    fn can_choose(&self, kind: Kind, device: Device, is_training: bool) -> bool {
        let is_fused = self.backend == Backend::Fused && is_supported(kind, device);
        self.norm == Norm::Post && is_fused && self.attention.can_choose(kind, device, is_training)
    }

    /// The output's rows b L + position alone, `[M, d]`, as [`Encoder::forward_at`] has them.
    fn forward_at(&self, x: &Tensor, keep: Option<&Keep>, rows: &Tensor, pass: &Pass) -> Result<Tensor, NativeError> {
        let (length, width) = (x.size()[1], x.size()[2]);
        let attention = span(Part::Attention);
        let chosen = take_rows(&x.view([-1, width]), rows)?;
        let (attended, x) = (self.attention.forward_at(x, &chosen, rows, keep, pass)?, chosen);
        drop(attention);
        if pass.is_training() || x.requires_grad() {
            return self.rest_of_layer(attended, &x, length, Some(rows), pass);
        }
        self.rest_by_rows(attended, &x, length, Some(rows), pass)
    }

    /// From the heads' outputs and the layer's input, `[rows, d]` each, to the layer's output; sequences have `length` rows.
    /// `numbers`: of these rows among those of the batch, if they are not all.
    fn rest_of_layer(
        &self,
        attended: Tensor,
        x: &Tensor,
        length: i64,
        numbers: Option<&Tensor>,
        pass: &Pass,
    ) -> Result<Tensor, NativeError> {
        let drop_at = |place: &str| pass.drop(self.dropout, place, length * x.size()[1]);
        let norms = [&self.attention_norm, &self.output_norm].map(LayerNorm::parameters);
        let attention = span(Part::Attention);
        let x = output_norm(&attended, x, self.attention_output.affine(), norms[0], drop_at(&self.places[0]), numbers)?;
        drop((attention, attended));
        let _span = span(Part::FeedForward);
        let (inner, outer, drop) = (self.intermediate.affine(), self.output.affine(), drop_at(&self.places[1]));
        match self.act {
            HiddenAct::Gelu => feed_forward(&x, inner, outer, norms[1], drop, numbers),
            HiddenAct::Relu => output_norm(&self.intermediate.forward(&x)?.relu(), &x, outer, norms[1], drop, numbers),
        }
    }
}

/// The E of sharing `layerwise`.
const SHARED_PROJECTION: &str = "roberta.encoder.shared_projection";
