//! The memory that training a model needs, from its config alone: what stays, and the widest moment of a step.
//!
//! The moments follow the fused blocks (`src/native/`): what each keeps for its backward pass, and what it makes there.

use super::attention::queries_at_once;
use super::encoder::Encoder;
use super::heads::{ClassificationHead, MaskedLmHead};
use super::layers::ROW_BLOCK;
use super::parameters::{Parameter, Parameters};
use super::size::Head;
use crate::config::{AttentionBackend, AttentionKind, Backend, Config, HiddenAct, Model, Norm, Precision, Sharing, Train};
use tch::{Device, Kind};

/// Tokens of an evaluation's pass, where one sequence has not more.
pub const EVALUATION_TOKENS: i64 = 16_384;
/// Predictions of an evaluation whose logits are made at once.
pub const EVALUATION_PREDICTIONS: i64 = 1024;
/// Program, libtorch and its threads' buffers on a CPU, measured.
const PROGRAM: f64 = 230.0 * 1048576.0;
/// What the allocator takes for what comes and goes: a sixteenth that it may keep (src/native/memory.cpp), and small tensors, measured.
const ALLOCATOR: f64 = 1.1;
/// Rows whose sums are added up at once (`kRowChunk` in rows.h).
const ROW_CHUNK: f64 = 128.0;

/// Bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    pub program: f64,
    pub weights: f64,
    pub moments: f64,
    /// bf16 copies of the matrices.
    pub copies: f64,
    /// When all of them are there, after the backward pass.
    pub gradients: f64,
    /// Kept for the backward pass of a micro-batch.
    pub activations: f64,
    /// The most that is there beside activations: logits and their gradients, or what one block's backward pass makes.
    pub working: f64,
    /// The widest moment of a step: activations that still stand, what is made there, and gradients that are there already: with
    /// several micro-batches all of them.
    pub step: f64,
    /// What an evaluation needs beside weights, moments and copies.
    pub evaluation: f64,
    /// The copy of weights and moments that is written in the background.
    pub checkpoint: f64,
}

impl Memory {
    /// Of training by the masked-LM or classification head; the model has its vocabulary and positions.
    pub fn of_training(config: &Config, model: &Model) -> Self {
        let config = &config.in_whole_sequences();
        let head = if config.data.task.is_some() { Head::Classification } else { Head::MaskedLm };
        let mut parameters = Parameters::uninitialised(Device::Cpu);
        let encoder = Encoder::new(&mut parameters, model);
        match head {
            Head::MaskedLm => drop(MaskedLmHead::new(&mut parameters, model, encoder.word_embeddings())),
            Head::Classification => drop(ClassificationHead::new(&mut parameters, model, 2)),
        }
        let count = |keep: fn(&Parameter) -> bool| parameters.iter().filter(|p| keep(p)).map(|p| p.tensor.numel() as f64).sum::<f64>();
        let all = count(|_| true);
        let is_copied = config.train.precision == Precision::Bf16 && model.backend == Backend::Fused;
        let kind = if config.train.precision == Precision::Bf16 { Kind::BFloat16 } else { Kind::Float };
        let read = match head {
            Head::MaskedLm => config.data.mask_probability,
            Head::Classification => 1.0 / config.data.sequence_length as f64,
        };
        let step = Step::new(config, model, head, encoder.share_made(read, kind, Device::Cpu));
        Self {
            program: PROGRAM,
            weights: 4.0 * all,
            moments: 8.0 * all,
            copies: if is_copied { 2.0 * count(|p| p.is_multiplied) } else { 0.0 },
            gradients: 4.0 * all,
            activations: step.activations(),
            working: step.working(),
            step: match config.train.micro_batch() < config.train.batch_size {
                true => ALLOCATOR * step.widest(&[]) + 4.0 * all,
                false => ALLOCATOR * step.widest(&layer_gradients(&parameters, model)),
            },
            evaluation: step.evaluation(config.evaluation_sequences()),
            checkpoint: 12.0 * all,
        }
    }

    /// At the widest moment. A checkpoint on the way is still written while the next steps are made.
    pub fn peak(&self, train: &Train) -> f64 {
        let step = self.step.max(self.gradients).max(self.evaluation);
        let busy = if train.checkpoint_every > 0 { step + self.checkpoint } else { step.max(self.checkpoint) };
        self.program + self.weights + self.moments + self.copies + busy
    }
}

/// Of each layer, in bytes.
fn layer_gradients(parameters: &Parameters, model: &Model) -> Vec<f64> {
    let of = |layer: i64| {
        let name = format!("roberta.encoder.layer.{layer}.");
        parameters.trainable().filter(|p| p.name.starts_with(&name)).map(|p| 4.0 * p.tensor.numel() as f64).sum()
    };
    (0..model.num_hidden_layers).map(of).collect()
}

/// Bytes that the encoder's forward and backward pass over one sequence of n tokens needs, beside weights and gradients; stored
/// scores are not counted.
pub fn of_encoder(model: &Model, precision: Precision, n: i64) -> f64 {
    let config = one_sequence(model, precision, n);
    Step::new(&config, model, Head::Classification, 1.0).widest(&[])
}

/// Bytes that the encoder's forward pass over one sequence of n tokens needs beside the weights, where nothing is kept for a
/// backward pass.
pub fn of_inference(model: &Model, precision: Precision, n: i64) -> f64 {
    Step::new(&one_sequence(model, precision, n), model, Head::Classification, 1.0).inference(n as f64)
}

fn one_sequence(model: &Model, precision: Precision, n: i64) -> Config {
    let mut config = Config { model: model.clone(), ..Config::default() };
    config.data.sequence_length = n;
    config.train.batch_size = 1;
    config.train.precision = precision;
    config
}

impl Config {
    /// Sequences of an evaluation's pass.
    pub fn evaluation_sequences(&self) -> usize {
        let fit = (EVALUATION_TOKENS / self.data.sequence_length.max(1)).clamp(1, 64) as usize;
        match self.data.max_validation_sequences {
            0 => fit,
            limit => fit.min(limit),
        }
    }
}

/// Numbers of a micro-batch, as floats.
struct Step<'a> {
    config: &'a Config,
    model: &'a Model,
    head: Head,
    /// Sequences, tokens, width, feed-forward width.
    b: f64,
    t: f64,
    d: f64,
    f: f64,
    /// Bytes of an element of the activations.
    e: f64,
    /// Rows that the last layer makes.
    last: f64,
}

impl<'a> Step<'a> {
    /// `made`: the share of its rows that the last layer makes.
    fn new(config: &'a Config, model: &'a Model, head: Head, made: f64) -> Self {
        let b = config.train.micro_batch() as f64;
        let t = b * config.data.sequence_length as f64;
        Self {
            config,
            model,
            head,
            b,
            t,
            last: (made * t).round(),
            d: model.hidden_size as f64,
            f: model.intermediate_size as f64,
            e: if config.train.precision == Precision::Bf16 { 2.0 } else { 4.0 },
        }
    }

    /// Rows of keys in a layer: k of each sequence, or all tokens.
    fn key_rows(&self, layer: usize) -> f64 {
        match self.model.attention.kind {
            AttentionKind::Full => self.t,
            AttentionKind::Linformer => self.b * self.model.attention.k.at(layer, 0) as f64,
        }
    }

    /// A layer's: input, queries, heads' output, the sums under both LayerNorms, the feed-forward block's input and h; keys,
    /// values and the compressed rows; a few numbers a row. The last layer has all but the input of the rows that it makes, and
    /// these rows of the input once more.
    fn layer(&self, layer: usize) -> f64 {
        let is_chosen = layer + 1 == self.layers() && self.last < self.t;
        let (rows, input) = if is_chosen { (self.last, self.t * self.d) } else { (self.t, 0.0) };
        let heads = self.model.num_attention_heads as f64;
        let compressed = match (self.model.attention.kind, self.model.attention.sharing) {
            (AttentionKind::Full, _) => 0.0,
            (_, Sharing::Headwise | Sharing::None) => 2.0,
            _ => 1.0,
        };
        let is_fused = self.model.backend == Backend::Fused && self.model.norm == Norm::Post && self.model.hidden_act == HiddenAct::Gelu;
        // Without the blocks, about what libtorch's operations keep.
        let tensors = if is_fused { 6.0 * self.d + self.f } else { 10.0 * self.d + 2.0 * self.f };
        self.e * (rows * tensors + input + (2.0 + compressed) * self.d * self.key_rows(layer)) + rows * (4.0 * heads + 16.0)
    }

    fn layers(&self) -> usize {
        self.model.num_hidden_layers as usize
    }

    fn activations(&self) -> f64 {
        self.embedding() + (0..self.layers()).map(|l| self.kept(l)).sum::<f64>()
    }

    fn embedding(&self) -> f64 {
        self.t * (self.e * self.d + 24.0)
    }

    /// Rows that a layer makes.
    fn rows(&self, layer: usize) -> f64 {
        if layer + 1 == self.layers() {
            self.last
        } else {
            self.t
        }
    }

    /// Whether a layer is run again in the backward pass: the last one is not where it makes few rows.
    fn is_recomputed(&self, layer: usize) -> bool {
        self.config.train.recompute && !(layer + 1 == self.layers() && self.last < self.t)
    }

    /// Of a layer until its backward pass.
    fn kept(&self, layer: usize) -> f64 {
        if self.is_recomputed(layer) {
            self.e * self.t * self.d
        } else {
            self.layer(layer)
        }
    }

    /// The head's moment, or that of a layer's backward pass: what it and those below it have kept, what it makes, and the gradients of
    /// the head and of the layers above, if `gradients` has them.
    fn widest(&self, gradients: &[f64]) -> f64 {
        let (vocabulary, matrix) = self.vocabulary();
        let (mut kept, mut above) = (self.activations(), matrix);
        let mut widest = kept + vocabulary;
        for layer in (0..self.layers()).rev() {
            let again = if self.is_recomputed(layer) { self.layer(layer) } else { 0.0 };
            widest = widest.max(kept + again + self.feed_forward(self.rows(layer)) + above);
            kept -= self.kept(layer);
            above += gradients.get(layer).unwrap_or(&0.0);
        }
        widest
    }

    /// A feed-forward block's backward pass: gradients of its output, of the sum (twice), of h, GELU once more, and those of its weights.
    fn feed_forward(&self, rows: f64) -> f64 {
        self.e * rows * (3.0 * self.d + 2.0 * self.f) + 2.0 * self.d * self.f * if self.e < 4.0 { 6.0 } else { 4.0 }
    }

    /// Of the vocabulary's product: logits, later their gradient; the gradient of the matrix, in bf16 both ways; and partial
    /// sums. (now, and after it.)
    fn vocabulary(&self) -> (f64, f64) {
        if self.head == Head::Classification {
            return (0.0, 0.0);
        }
        let (v, rows) = (self.model.vocabulary() as f64, (self.config.data.mask_probability * self.t).ceil());
        let matrix = 4.0 * v * self.d;
        let head = rows * (self.e * (v + 4.0 * self.d)) + 4.0 * v * (rows / ROW_CHUNK).ceil();
        (head + matrix + if self.e < 4.0 { matrix / 2.0 } else { 0.0 } + self.e * self.t * self.d, matrix)
    }

    fn working(&self) -> f64 {
        let (vocabulary, matrix) = self.vocabulary();
        let of = |layer: usize| self.feed_forward(self.rows(layer)) + if self.is_recomputed(layer) { self.layer(layer) } else { 0.0 };
        (0..self.layers()).map(of).fold(vocabulary, |most, layer| most.max(matrix + layer))
    }

    /// A layer's widest moment without a backward pass: its input and output; keys and values of the sequences at work; of the
    /// block of rows at work the queries and the heads' output, or what the feed-forward block has: its input, h, their product
    /// and the output.
    fn inference(&self, tokens: f64) -> f64 {
        let n = self.config.data.sequence_length as f64;
        let block = ROW_BLOCK as f64;
        let at_work = ((block / n).floor().max(1.0) * n).min(tokens);
        let attention = &self.model.attention;
        // Keys of a sequence; tensors that have as many rows as they.
        let (keys, tensors) = match attention.kind {
            AttentionKind::Full => (n, 2.0),
            AttentionKind::Linformer => (attention.k.at(0, 0) as f64, 3.0),
        };
        // Scores and their softmax, which is made in fp32: in bf16 the scores once more.
        let stores_scores = attention.backend == AttentionBackend::Materialised;
        let scores = at_work * keys * self.model.num_attention_heads as f64 * if self.e < 4.0 { 10.0 } else { 8.0 };
        let is_full_in_fp32 = attention.kind == AttentionKind::Full && self.e == 4.0;
        let rows = (queries_at_once(attention.backend, is_full_in_fp32) as f64).min(at_work);
        let attended = self.e * rows * 2.0 * self.d + if stores_scores { self.e * rows * self.d + scores } else { 0.0 };
        let of_block = rows.min(block) * (3.0 * self.d + self.f);
        // Of more rows than a block: the heads' output and the blocks that are done, beside one at work or all put together.
        let feed_forward = self.e * if rows > block { 2.0 * rows * self.d + of_block.max(rows * self.d) } else { of_block };
        self.e * (2.0 * tokens + tensors * at_work / n * keys) * self.d + attended.max(feed_forward)
    }

    /// A layer's widest moment; or the logits of some rows, in fp32 too, with their logarithms.
    fn evaluation(&self, sequences: usize) -> f64 {
        let tokens = (sequences as f64) * self.config.data.sequence_length as f64;
        let layer = self.inference(tokens);
        let logits = if self.head == Head::MaskedLm {
            let rows = (self.config.data.evaluation_mask_probability * tokens).min(EVALUATION_PREDICTIONS as f64);
            self.e * tokens * self.d + rows * self.model.vocabulary() as f64 * if self.e < 4.0 { 10.0 } else { 8.0 }
        } else {
            0.0
        };
        layer.max(logits)
    }
}
