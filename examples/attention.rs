//! The Linformer's attention layer alone, between layers of one's own.
//!
//!     cargo run --release --example attention
//!
//! Prints the shapes, and that padding behind a text changes nothing at the text's own positions.

use linformer::config::{Attention, AttentionKind, KSpec, Model, Sharing};
use linformer::model::attention::{Keep, SelfAttention};
use linformer::model::{Parameters, Pass};
use tch::{Device, Kind, Tensor};

/// What the example shows.
pub struct Shown {
    /// `[B, L, d]`.
    pub output: Vec<i64>,
    /// Largest difference at real tokens between a text by itself and the same text with padding behind it.
    pub padding_difference: f64,
    /// Weights of E and F: n x k each.
    pub projection_weights: i64,
}

pub fn run() -> anyhow::Result<Shown> {
    // n = 128 positions compressed to k = 16; only the keys of `model` that the attention reads matter here.
    let (n, d, heads) = (128, 64, 4);
    let model = Model {
        vocab_size: Some(2),
        hidden_size: d,
        num_attention_heads: heads,
        // Hugging Face's count: n + pad_token_id + 1.
        max_position_embeddings: Some(n + 2),
        attention: Attention { kind: AttentionKind::Linformer, k: KSpec::One(16), sharing: Sharing::Headwise, ..Attention::default() },
        ..Model::default()
    };
    // Weights are drawn from (seed, name) and kept in `parameters`, by name, for an optimizer or a file.
    let mut parameters = Parameters::new(0, Device::Cpu);
    let attention = SelfAttention::new(&mut parameters, "attention", &model, 0, None);

    // A text of 40 positions, and the same with 24 positions of anything at all behind it.
    let text = Tensor::randn([1, 40, d], (Kind::Float, Device::Cpu));
    let padded = Tensor::cat(&[text.shallow_clone(), Tensor::ones([1, 24, d], (Kind::Float, Device::Cpu)) * 1e3], 1);
    let mask = Tensor::cat(&[Tensor::ones([1, 40], (Kind::Int64, Device::Cpu)), Tensor::zeros([1, 24], (Kind::Int64, Device::Cpu))], 1);
    let pass = Pass::evaluation(Kind::Float);
    let alone = attention.forward(&text, None, &pass)?;
    let with_padding = attention.forward(&padded, Some(&Keep::new(&mask, Kind::Float)), &pass)?;
    let padding_difference = (with_padding.narrow(1, 0, 40) - &alone).abs().max().double_value(&[]);

    // Gradients reach E, F and the matrices as in any tch module.
    alone.sum(Kind::Float).backward();
    let projections = parameters.iter().filter(|p| p.name.ends_with("_projection"));
    let projection_weights = projections.inspect(|p| assert!(p.tensor.grad().defined())).map(|p| p.tensor.numel() as i64).sum();
    Ok(Shown { output: alone.size(), padding_difference, projection_weights })
}

#[allow(dead_code)]
fn main() -> anyhow::Result<()> {
    let shown = run()?;
    println!(
        "output {:?}; {} weights in E and F; padding changes it by {:e}",
        shown.output, shown.projection_weights, shown.padding_difference
    );
    Ok(())
}
