//! Parameters by part and the cost of a forward pass, from the config alone.

use super::encoder::Encoder;
use super::heads::{ClassificationHead, MaskedLmHead};
use super::parameters::{Parameter, Parameters};
use crate::config::{AttentionKind, Model, Order, Projection, Sharing};

/// What stands on the encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    MaskedLm,
    /// Of two classes.
    Classification,
}

/// Parts of a model and their number of weights, in the order of the model.
pub fn parameters_by_part(config: &Model, head: Head) -> Vec<(&'static str, i64)> {
    let mut parameters = Parameters::uninitialised(tch::Device::Cpu);
    let encoder = Encoder::new(&mut parameters, config);
    match head {
        Head::MaskedLm => drop(MaskedLmHead::new(&mut parameters, config, encoder.word_embeddings())),
        Head::Classification => drop(ClassificationHead::new(&mut parameters, config, 2)),
    }
    let parts = [
        "word embeddings",
        "position embeddings",
        "projections E, F",
        "attention",
        "feed-forward",
        "LayerNorm and token type",
        "MLM head",
        "classification head",
    ];
    let sum = |part: &str| parameters.iter().filter(|p| part_of(&p.name) == part).map(|p| p.tensor.numel() as i64).sum();
    parts.into_iter().map(|part| (part, sum(part))).filter(|(_, count)| *count > 0).collect()
}

fn part_of(name: &str) -> &'static str {
    let has = |text: &str| name.contains(text);
    match () {
        _ if name.starts_with("lm_head") => "MLM head",
        _ if name.starts_with("classifier") => "classification head",
        _ if has("word_embeddings") => "word embeddings",
        _ if has("position_embeddings") => "position embeddings",
        _ if has("_projection") => "projections E, F",
        _ if has("LayerNorm") || has("token_type") => "LayerNorm and token type",
        _ if has(".attention.") => "attention",
        _ => "feed-forward",
    }
}

/// Distinct projection matrices (paper, section 4: 288, 24, 12 and 1 for 12 layers of 12 heads).
pub fn distinct_projections(config: &Model) -> i64 {
    let mut parameters = Parameters::uninitialised(tch::Device::Cpu);
    Encoder::new(&mut parameters, config);
    let own_matrix = if config.attention.projection == Projection::Conv { 1 } else { 2 };
    let matrices = |p: &Parameter| if p.tensor.dim() > own_matrix { p.tensor.size()[0] } else { 1 };
    parameters.iter().filter(|p| part_of(&p.name) == "projections E, F").map(matrices).sum()
}

/// Multiply-adds times two of a forward pass per token, at length `length`, the MLM head on a share `predicted` of the
/// positions (0: no head), the last layer on a share `made` of its rows ([`Encoder::share_made`]). Products only, as is the
/// custom; training costs three times as much.
pub fn forward_flops_per_token(config: &Model, length: i64, predicted: f64, made: f64) -> f64 {
    let (d, n, count) = (config.hidden_size as f64, length as f64, config.num_hidden_layers as usize);
    let layer =
        |index: usize| if index + 1 == count { made } else { 1.0 } * rows_products(config, index, n) + keys_products(config, index, n);
    let layers: f64 = (0..count).map(layer).sum();
    let head = predicted * (d * d + d * config.vocabulary() as f64);
    2.0 * (layers + head)
}

/// Multiply-adds per token of what a layer makes for each row by itself: queries, scores and weighted sum, output and
/// feed-forward block.
fn rows_products(config: &Model, layer: usize, n: f64) -> f64 {
    let (d, f) = (config.hidden_size as f64, config.intermediate_size as f64);
    let keys = if config.attention.kind == AttentionKind::Full { n } else { mean_k(config, layer) };
    2.0 * d * d + 2.0 * d * f + 2.0 * keys * d
}

fn mean_k(config: &Model, layer: usize) -> f64 {
    let heads = config.num_attention_heads as usize;
    (0..heads).map(|h| config.attention.k.at(layer, h) as f64).sum::<f64>() / heads as f64
}

/// Multiply-adds per token of keys, values and compression in one layer.
fn keys_products(config: &Model, layer: usize, n: f64) -> f64 {
    let (attention, d) = (&config.attention, config.hidden_size as f64);
    if attention.kind == AttentionKind::Full {
        return 2.0 * d * d;
    }
    let k = mean_k(config, layer);
    let matrix = matches!(attention.projection, Projection::Learned | Projection::Fixed);
    let compression = if matrix { k * d } else { d };
    let project_first = attention.order == Order::ProjectFirst || attention.sharing == Sharing::None;
    let twice = project_first || attention.sharing == Sharing::Headwise;
    let compressions = if twice { 2.0 * compression } else { compression };
    let keys_and_values = if project_first { 2.0 * d * d } else { 2.0 * d * d * k / n };
    keys_and_values + compressions
}
