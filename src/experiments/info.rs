//! Every number that follows from a config, before anything runs.

use super::parent::Parent;
use crate::config::validate::parse_device;
use crate::config::{Backend, Config, Model, Origins, Train};
use crate::data::tokenizer::{Kind as TokenizerKind, Tokenizer};
use crate::log::progress::{duration, thousands};
use crate::model::memory::Memory;
use crate::model::size::{distinct_projections, forward_flops_per_token, parameters_by_part, Head};
use crate::model::{Encoder, Parameters};
use crate::table::align;
use crate::train::trainer::kind_of;
use anyhow::Result;

/// What a given device would need: share of its peak reached, and the peak.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    pub mfu: f64,
    pub peak_tflops: f64,
}

/// The numbers as text.
pub fn describe(config: &Config, origins: &Origins, speed: Speed) -> Result<String> {
    let model = resolved(config, origins)?;
    let config = &config.in_whole_sequences();
    let train = &config.train;
    let n = config.data.sequence_length;
    let parts = parameters_by_part(&model, if config.data.task.is_some() { Head::Classification } else { Head::MaskedLm });
    let total: i64 = parts.iter().map(|(_, count)| count).sum();
    let predicted = if config.data.task.is_some() { 0.0 } else { config.data.mask_probability };
    let flops = 3.0 * forward_flops_per_token(&model, n, predicted, 1.0);
    let tokens_per_step = train.batch_size as f64 * n as f64;
    let (steps, steps_in_words) = steps(train);
    let tokens = steps.map(|steps| tokens_per_step * steps as f64);
    let mut rows = vec![vec!["quantity".to_string(), "value".into()]];
    let mut add = |name: &str, value: String| rows.push(vec![name.into(), value]);
    for (part, count) in &parts {
        add(&format!("parameters: {part}"), thousands(*count as f64));
    }
    add("parameters: all", thousands(total as f64));
    add("distinct projection matrices", distinct_projections(&model).to_string());
    add("sequence length n", n.to_string());
    add("k", if distinct_projections(&model) > 0 || is_pool(&model) { model.attention.k.summary() } else { "-".into() });
    add("training FLOPs per token", thousands(flops));
    add("sequences per step", train.batch_size.to_string());
    add("micro-batches per step", train.batch_size.div_ceil(train.micro_batch()).to_string());
    add("tokens per step", thousands(tokens_per_step));
    add("steps", steps_in_words);
    if let Some(tokens) = tokens {
        add("tokens in all", thousands(tokens));
        add("tokens per parameter", format!("{:.1}", tokens / total as f64));
    }
    let unfused = unfused(config, &model);
    add("blocks of our own", if unfused.is_empty() { "everywhere".into() } else { "except below".into() });
    unfused.iter().for_each(|part| add("by libtorch's operations", part.to_string()));
    let memory = Memory::of_training(config, &model);
    add("memory: program and libtorch", mebibytes(memory.program));
    add("memory: weights, Adam's moments", mebibytes(memory.weights + memory.moments));
    if memory.copies > 0.0 {
        add("memory: weights in bf16", mebibytes(memory.copies));
    }
    add("memory: gradients", mebibytes(memory.gradients));
    add("memory: activations of a micro-batch", mebibytes(memory.activations));
    add("memory: logits or one block's gradients", mebibytes(memory.working));
    add("memory: an evaluation", mebibytes(memory.evaluation));
    add("memory: a checkpoint being written", mebibytes(memory.checkpoint));
    add("memory at the peak, on a CPU", mebibytes(memory.peak(train)));
    if let Some(tokens) = tokens {
        let seconds = tokens * flops / (speed.mfu * speed.peak_tflops * 1e12);
        add(&format!("time at MFU {} of {} TFLOP/s", speed.mfu, speed.peak_tflops), duration(seconds));
    }
    Ok(align(rows))
}

/// The steps, where the config says how many, and what is to be said of them: those of epochs are counted on the training rows.
pub(super) fn steps(train: &Train) -> (Option<u64>, String) {
    match train.max_epochs {
        None => (Some(train.max_steps), thousands(train.max_steps as f64)),
        Some(epochs) => (None, format!("those of {epochs} epochs: not known before the data is read")),
    }
}

/// The model with its vocabulary and positions: the checkpoint's, or what config and tokenizer file say.
pub(super) fn resolved(config: &Config, origins: &Origins) -> Result<Model> {
    if let Some(parent) = Parent::find(config)? {
        return parent.merge_model(&config.model, origins);
    }
    let mut model = config.model.clone();
    if model.vocab_size.is_none() {
        model.vocab_size = Some(match config.data.tokenizer.as_str() {
            name if TokenizerKind::by_name(name).is_some() => config.data.vocab_size,
            name => Tokenizer::named(name)?.vocab_size(),
        } as i64);
    }
    model.max_position_embeddings.get_or_insert(config.data.sequence_length + model.pad_token_id + 1);
    Ok(model)
}

/// Parts of a training step that have no block of our own.
fn unfused(config: &Config, model: &Model) -> Vec<&'static str> {
    let encoder = Encoder::new(&mut Parameters::uninitialised(tch::Device::Cpu), model);
    let device = parse_device(&config.run.device).unwrap_or(tch::Device::Cpu);
    let mut parts = encoder.unfused(kind_of(config.train.precision), device);
    if model.type_vocab_size > 1 && model.backend == Backend::Fused {
        parts.push("embeddings: of pairs with token types");
    }
    if config.data.task.is_some() && model.backend == Backend::Fused {
        parts.push("classification head: it has none");
    }
    parts
}

fn is_pool(model: &Model) -> bool {
    use crate::config::{AttentionKind, Projection};
    model.attention.kind == AttentionKind::Linformer && matches!(model.attention.projection, Projection::MeanPool | Projection::MaxPool)
}

/// What the backward pass needs: about 10 tensors of width d and 2 of the feed-forward width a layer, and the logits.
pub(super) fn activation_bytes(config: &Config, model: &Model, sequences: f64) -> f64 {
    let tokens = sequences * config.data.sequence_length as f64;
    let width = 10.0 * model.hidden_size as f64 + 2.0 * model.intermediate_size as f64;
    let logits = if config.data.task.is_some() { 0.0 } else { config.data.mask_probability * model.vocabulary() as f64 * 3.0 };
    let bytes = if config.train.precision == crate::config::Precision::Bf16 { 2.0 } else { 4.0 };
    tokens * (bytes * width * model.num_hidden_layers as f64 + 4.0 * logits)
}

fn mebibytes(bytes: f64) -> String {
    format!("{} MiB", thousands(bytes / 1048576.0))
}
