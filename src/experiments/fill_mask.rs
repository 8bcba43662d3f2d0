//! A pretrained model at work: what it would put in the place of a mask.

use super::parent::Parent;
use super::setup::device;
use crate::config::{Config, Origins};
use crate::data::batch::{batches_by_length, TaskBatch};
use crate::data::tasks::Example;
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

/// Masks whose probabilities `[M, V]` are in memory at once.
const MASKS: usize = 256;

/// For each mask of a text the likeliest tokens.
pub type Guesses = Vec<Vec<Guess>>;

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

    /// A text's tokens, with its masks; an error if it has none or is too long.
    pub fn read(&self, text: &str) -> Result<MaskedText> {
        let masked = self.tokenizer.encode_masked(text)?;
        if masked.masks.is_empty() {
            bail!("no mask in \"{text}\": write <mask> where a token is to be guessed");
        }
        let length = masked.ids.len() + 2;
        if length > self.length {
            bail!("the text has {length} tokens with its first and last one, this model reads at most {}: shorten it", self.length);
        }
        Ok(masked)
    }

    /// For every text and each of its masks the `top_k` likeliest tokens, the likeliest first. Special tokens are no guesses.
    pub fn fill(&self, texts: &[MaskedText], top_k: usize) -> Result<Vec<Guesses>> {
        let _guard = tch::no_grad_guard();
        let lengths: Vec<usize> = texts.iter().map(|text| text.ids.len() + 2).collect();
        let mut all = vec![Guesses::new(); texts.len()];
        for rows in batches_by_length(&lengths) {
            let batch: Vec<&MaskedText> = rows.iter().map(|row| &texts[*row]).collect();
            let length = rows.iter().map(|row| lengths[*row]).max().unwrap_or(0);
            // The place of each mask in B x L, with its row and its number there.
            let masks = |(at, text): (usize, &&MaskedText)| -> Vec<(usize, usize, i64)> {
                let place = |(mask, position): (usize, &usize)| (rows[at], mask, (at * length + position + 1) as i64);
                text.masks.iter().enumerate().map(place).collect()
            };
            let masks: Vec<(usize, usize, i64)> = batch.iter().enumerate().flat_map(masks).collect();
            let places: Vec<i64> = masks.iter().map(|(_, _, place)| *place).collect();
            let hidden = self.hidden(&batch, &places)?;
            for (some, hidden) in masks.chunks(MASKS).zip(hidden.split(MASKS as i64, 0)) {
                let (values, ids) = self.likeliest(&hidden, top_k)?;
                for (i, (row, mask, _)) in some.iter().enumerate() {
                    let count = values.len() / some.len();
                    let pairs = (i * count..(i + 1) * count).map(|at| (values[at], ids[at] as u32));
                    all[*row].push(self.guesses(&texts[*row], *mask, pairs)?);
                }
            }
        }
        Ok(all)
    }

    /// Hidden states `[M, d]` at some places of B x L, L the length of the longest text.
    fn hidden(&self, texts: &[&MaskedText], places: &[i64]) -> Result<Tensor> {
        let special = self.tokenizer.special;
        let example = |text: &&MaskedText| Example { id: 0, ids: [&[special.cls], &text.ids[..], &[special.sep]].concat(), label: 0.0 };
        let tensors = TaskBatch::new(texts.iter().map(example).collect(), special.pad).tensors(0..texts.len(), true, self.device);
        // Without padding there is nothing to be masked, which is faster.
        let padded = texts.iter().any(|text| text.ids.len() != texts[0].ids.len());
        let input = Input { ids: tensors.ids, attention_mask: padded.then_some(tensors.attention_mask) };
        let places = Tensor::from_slice(places).to_device(self.device);
        Ok(self.encoder.forward_at(&input, &places, &Pass::evaluation(self.kind))?)
    }

    /// Probabilities and ids of the likeliest tokens from hidden states `[M, d]`, `top_k` (or fewer) of each, one after the other.
    fn likeliest(&self, hidden: &Tensor, top_k: usize) -> Result<(Vec<f64>, Vec<i64>)> {
        let logits = self.head.forward(hidden)?.to_kind(Kind::Float);
        let banned: Vec<i64> = self.tokenizer.special_ids.iter().map(|id| i64::from(*id)).collect();
        // As transformers does, special tokens count in the softmax; they are only never shown.
        let shown = logits.softmax(-1, Kind::Float).index_fill(1, &Tensor::from_slice(&banned).to_device(self.device), -1.0);
        // The embedding may have more rows than the tokenizer has tokens.
        let known = shown.narrow(1, 0, shown.size()[1].min(self.tokenizer.vocab_size() as i64));
        let (values, ids) = known.topk(i64::try_from(top_k).unwrap_or(i64::MAX).clamp(1, known.size()[1]), 1, true, true);
        let flat = |tensor: Tensor| tensor.to_device(Device::Cpu).contiguous().view(-1);
        Ok((Vec::try_from(flat(values.to_kind(Kind::Double)))?, Vec::try_from(flat(ids))?))
    }

    fn guesses(&self, text: &MaskedText, mask: usize, pairs: impl Iterator<Item = (f64, u32)>) -> Result<Vec<Guess>> {
        pairs
            .filter(|(probability, _)| *probability >= 0.0)
            .map(|(probability, token)| {
                let word = self.tokenizer.token_text(token)?;
                Ok(Guess { token, filled: text.filled(mask, &word), text: word, probability })
            })
            .collect()
    }
}

/// Line breaks and the like as `\n`.
fn on_one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// The guesses for people: a block for each mask.
pub fn to_table(masks: &[Vec<Guess>]) -> String {
    let block = |guesses: &Vec<Guess>| {
        let header = ["text", "token", "probability"].map(str::to_string).to_vec();
        let row = |g: &Guess| vec![on_one_line(&g.filled), format!("{:?}", g.text), format!("{:.4}", g.probability)];
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
