//! A pretrained model at work: what it would put in the place of a mask.

use super::setup::{device, Parent};
use crate::config::{Config, Origins};
use crate::data::tokenizer::{MaskedText, Tokenizer};
use crate::distributed::World;
use crate::model::weights::Select;
use crate::model::{Encoder, Input, MaskedLmHead, Parameters, Pass};
use crate::table::align;
use crate::train::trainer::kind_of;
use anyhow::{bail, Result};
use serde_json::{json, Value};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// A masked language model with its tokenizer.
pub struct MaskFiller {
    encoder: Encoder,
    head: MaskedLmHead,
    tokenizer: Tokenizer,
    /// Longest sequence, first and last token included.
    length: usize,
    kind: Kind,
    device: Device,
}

/// One token that might stand in a mask's place.
#[derive(Clone, Debug, PartialEq)]
pub struct Guess {
    pub token: u32,
    /// With the space that it begins with.
    pub text: String,
    pub probability: f64,
    /// The whole text with it.
    pub filled: String,
}

impl MaskFiller {
    /// Opens a pretraining run or one of its checkpoints; `config` is the run's.
    pub fn open(model: &Path, config: Config, origins: &Origins) -> Result<Self> {
        if config.data.task.is_some() {
            let parent = config.run.init_from.as_ref().map(|p| format!(" ({})", p.display())).unwrap_or_default();
            bail!(
                "{}: fine-tuned on a task, it has no masked-LM head; expected a pretrained model, such as the one it began with{parent}",
                model.display()
            );
        }
        let parent = Parent::open(model)?;
        let device = device(&config, origins, &World::default())?;
        let mut parameters = Parameters::uninitialised(device);
        let encoder = Encoder::new(&mut parameters, &parent.model);
        let head = MaskedLmHead::new(&mut parameters, &parent.model, encoder.word_embeddings());
        parent.load(&parameters, Select::All)?;
        Ok(Self {
            encoder,
            head,
            tokenizer: Tokenizer::load(&parent.tokenizer)?,
            length: parent.model.sequence_length() as usize,
            kind: kind_of(config.train.precision),
            device,
        })
    }

    /// For every mask of the text the `top_k` likeliest tokens, the likeliest first. Special tokens are no guesses.
    pub fn fill(&self, text: &str, top_k: usize) -> Result<Vec<Vec<Guess>>> {
        let masked = self.tokenizer.encode_masked(text)?;
        if masked.masks.is_empty() {
            bail!("no mask in \"{text}\": write <mask> where a token is to be guessed");
        }
        if masked.ids.len() + 2 > self.length {
            bail!(
                "the text has {} tokens with its first and last one, this model reads at most {}: shorten it",
                masked.ids.len() + 2,
                self.length
            );
        }
        let probabilities = self.probabilities(&masked)?;
        (0..masked.masks.len()).map(|mask| self.guesses(&masked, mask, &probabilities.get(mask as i64), top_k)).collect()
    }

    /// `[masks, V]`, fp32 on the CPU.
    fn probabilities(&self, text: &MaskedText) -> Result<Tensor> {
        let _guard = tch::no_grad_guard();
        let special = self.tokenizer.special;
        let ids: Vec<i64> = [&[special.cls], &text.ids[..], &[special.sep]].concat().into_iter().map(i64::from).collect();
        let positions: Vec<i64> = text.masks.iter().map(|at| *at as i64 + 1).collect();
        let input = Input { ids: Tensor::from_slice(&ids).unsqueeze(0).to_device(self.device), attention_mask: None };
        let hidden = self.encoder.forward(&input, &Pass::evaluation(self.kind))?;
        let logits = self.head.forward(&hidden, &Tensor::from_slice(&positions).to_device(self.device))?.to_kind(Kind::Float);
        let banned: Vec<i64> = self.tokenizer.special_ids.iter().map(|id| i64::from(*id)).collect();
        // As transformers does, special tokens count in the softmax; they are only never shown.
        let shown = logits.softmax(-1, Kind::Float).index_fill(1, &Tensor::from_slice(&banned).to_device(self.device), -1.0);
        Ok(shown.to_device(Device::Cpu))
    }

    fn guesses(&self, text: &MaskedText, mask: usize, probabilities: &Tensor, top_k: usize) -> Result<Vec<Guess>> {
        // The embedding may have more rows than the tokenizer has tokens.
        let known = probabilities.narrow(0, 0, probabilities.size()[0].min(self.tokenizer.vocab_size() as i64));
        let (values, ids) = known.topk((top_k as i64).clamp(1, known.size()[0]), 0, true, true);
        let pairs = (0..values.size()[0]).map(|i| (values.double_value(&[i]), ids.int64_value(&[i]) as u32));
        pairs
            .filter(|(probability, _)| *probability >= 0.0)
            .map(|(probability, token)| {
                let word = self.tokenizer.token_text(token)?;
                Ok(Guess { token, filled: text.filled(mask, &word), text: word, probability })
            })
            .collect()
    }
}

/// The guesses for people: a block for each mask.
pub fn to_table(masks: &[Vec<Guess>]) -> String {
    let block = |guesses: &Vec<Guess>| {
        let header = ["text", "token", "probability"].map(str::to_string).to_vec();
        let row = |g: &Guess| vec![g.filled.clone(), format!("{:?}", g.text), format!("{:.4}", g.probability)];
        align(std::iter::once(header).chain(guesses.iter().map(row)).collect())
    };
    masks.iter().map(block).collect::<Vec<_>>().join("\n")
}

/// The guesses under the names of transformers' pipeline `fill-mask`: a list of objects, and of lists for several masks.
pub fn to_json(masks: &[Vec<Guess>]) -> Value {
    let one = |g: &Guess| json!({"score": g.probability, "token": g.token, "token_str": g.text, "sequence": g.filled});
    let list = |guesses: &Vec<Guess>| guesses.iter().map(one).collect::<Vec<_>>();
    match masks {
        [only] => json!(list(only)),
        several => several.iter().map(list).collect(),
    }
}
