//! The encoder with its masked-LM head: built from a config, or opened from a run or an imported model.
//!
//!     cargo run --release --example encoder                  # a small one from random weights
//!     cargo run --release --example encoder -- runs/mine     # a run's newest checkpoint, on a text
//!
//! Prints what the model says of a masked text: the likeliest tokens at the mask.

use anyhow::{bail, Context};
use linformer::config::Model;
use linformer::data::tokenizer::Tokenizer;
use linformer::model::weights::Select;
use linformer::model::{Encoder, Input, MaskedLmHead, Parameters, Pass};
use linformer::train::checkpoint::Checkpoint;
use linformer::train::run::read_config;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Text before and after the mask.
const TEXT: [&str; 2] = ["It was the", "of times."];

/// The likeliest tokens at the mask with their probabilities, best first.
pub fn run(folder: Option<&Path>) -> anyhow::Result<Vec<(String, f64)>> {
    let (model, tokenizer) = match folder {
        Some(folder) => (read_config(folder)?.model, Tokenizer::load(&folder.join("tokenizer.json"))?),
        None => {
            // A config's `model` group; what is left out has RoBERTa's default.
            let keys = serde_json::json!({"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
                "vocab_size": 261, "max_position_embeddings": 66, "attention": {"k": 16}});
            (serde_json::from_value::<Model>(keys)?, Tokenizer::bytes()?)
        }
    };
    let mut parameters = Parameters::new(0, Device::Cpu);
    let encoder = Encoder::new(&mut parameters, &model);
    let head = MaskedLmHead::new(&mut parameters, &model, encoder.word_embeddings());
    if let Some(folder) = folder {
        // A checkpoint counts only if its hashes agree; names, shapes and types are checked before anything is copied.
        let (newest, damaged) = Checkpoint::latest(&folder.join("checkpoints"));
        newest
            .with_context(|| format!("{}: no valid checkpoint {damaged:?}", folder.display()))?
            .weights()?
            .load_into(&parameters, Select::All)?;
    }

    let special = tokenizer.special;
    let [before, after] = TEXT;
    let parts = [vec![special.cls], tokenizer.encode(before)?, vec![special.mask], tokenizer.encode(after)?, vec![special.sep]];
    let at = (parts[0].len() + parts[1].len()) as i64;
    let ids: Vec<i64> = parts.concat().into_iter().map(i64::from).collect();
    if ids.len() as i64 > model.sequence_length() {
        bail!("{} tokens, expected at most n = {}", ids.len(), model.sequence_length());
    }
    let _guard = tch::no_grad_guard();
    let input = Input { ids: Tensor::from_slice(&ids).unsqueeze(0), attention_mask: None };
    // Hidden states [1, d] at the one position that is asked for, then logits [1, V].
    let hidden = encoder.forward_at(&input, &Tensor::from_slice(&[at]), &Pass::evaluation(Kind::Float))?;
    let probabilities = head.forward(&hidden)?.softmax(-1, Kind::Double).squeeze_dim(0);
    let (values, indices) = probabilities.topk(5, 0, true, true);
    (0..5).map(|i| Ok((tokenizer.decode(&[indices.int64_value(&[i]) as u32])?, values.double_value(&[i])))).collect()
}

#[allow(dead_code)]
fn main() -> anyhow::Result<()> {
    let folder = std::env::args().nth(1);
    for (token, probability) in run(folder.as_deref().map(Path::new))? {
        println!("{probability:.4}  {token:?}");
    }
    Ok(())
}
