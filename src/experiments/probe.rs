//! A model and real sequences to look at its attention with: what [`super::spectrum`], [`super::theorems`] and [`super::shift`]
//! share.

use super::parent::{prepare_with, Parent};
use super::setup;
use crate::config::{AttentionKind, Config, Model, Origins};
use crate::data::corpus::files;
use crate::data::documents::documents;
use crate::data::masking::{Masking, Target};
use crate::data::tasks::prepared::{prepare as prepare_task, Settings};
use crate::data::tasks::TaskSpec;
use crate::data::tokenizer::Tokenizer;
use crate::distributed::World;
use crate::model::attention::Heads;
use crate::model::weights::Select;
use crate::model::{Encoder, Input, MaskedLmHead, Parameters, Pass};
use crate::random::{Purpose, Stream};
use anyhow::{bail, Context, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// Characters of text read from files that the user names, at most.
const MOST_TEXT: usize = 64 << 20;

/// A model that is only looked at, in fp32.
pub struct Subject {
    pub name: String,
    pub model: Model,
    /// The weights that were read; None: untrained.
    pub checkpoint: Option<PathBuf>,
    pub encoder: Encoder,
    /// Of a pretrained model that was opened with it.
    pub head: Option<MaskedLmHead>,
    pub tokenizer: Tokenizer,
    /// Where that is: a file, or a folder that holds one.
    tokenizer_path: PathBuf,
    config: Config,
    pub device: Device,
}

/// The sequences that it is looked at with.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// Text files; empty: the held-out text of the model's own corpus, or the scored rows of its task.
    pub data: Vec<PathBuf>,
    pub sequences: usize,
    /// Tokens of each, the first-token id included; None: the model's n.
    pub length: Option<i64>,
    /// Share of the tokens that are masked; None: as in the model's own evaluation.
    pub mask: Option<f64>,
}

/// Sequences of one length, some of their tokens masked.
pub struct Sequences {
    pub ids: Vec<Vec<u32>>,
    /// Of each: the masked places and the tokens that stood there.
    pub targets: Vec<Vec<Target>>,
    pub looked: Looked,
}

/// What was looked at, for the record.
#[derive(Clone, Debug, Serialize)]
pub struct Looked {
    pub text: String,
    pub sequences: usize,
    pub length: i64,
    pub masked: f64,
}

impl Subject {
    /// The model of a run or of one of its checkpoints; with `untrained` its shape alone, with weights drawn from that seed.
    pub fn open(run: &Path, untrained: Option<u64>) -> Result<Self> {
        Self::open_with(run, untrained, false)
    }

    /// A pretrained model with its masked-LM head.
    pub fn open_masked_lm(run: &Path) -> Result<Self> {
        Self::open_with(run, None, true)
    }

    fn open_with(run: &Path, untrained: Option<u64>, with_head: bool) -> Result<Self> {
        let looked = Config { run: crate::config::Run { init_from: Some(run.into()), ..Default::default() }, ..Config::default() };
        let Some(parent) = Parent::find(&looked)? else { bail!("{}: no model is here", run.display()) };
        let config = parent.config()?;
        let device = setup::device(&config, &Origins::default(), &World::default())?;
        let mut parameters = Parameters::new(untrained.unwrap_or(0), device);
        let encoder = Encoder::new(&mut parameters, &parent.model);
        if with_head && config.data.task.is_some() {
            bail!("{}: fine-tuned on a task, expected a pretrained model", parent.run.display());
        }
        let head = with_head.then(|| MaskedLmHead::new(&mut parameters, &parent.model, encoder.word_embeddings()));
        if untrained.is_none() {
            parent.load(&parameters, if with_head { Select::All } else { Select::Encoder })?;
        }
        let name = parent.run.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_else(|| "model".into());
        Ok(Self {
            name: if untrained.is_some() { format!("{name} (untrained)") } else { name },
            tokenizer: Tokenizer::load(&parent.tokenizer)?,
            checkpoint: untrained.is_none().then(|| parent.place().to_path_buf()),
            tokenizer_path: parent.tokenizer,
            model: parent.model,
            encoder,
            head,
            config,
            device,
        })
    }

    pub fn is_full(&self) -> bool {
        self.model.attention.kind == AttentionKind::Full
    }

    /// As many sequences of one length as `source` wants, spread over its text.
    pub fn sequences(&self, source: &Source) -> Result<Sequences> {
        let n = self.model.sequence_length();
        let length = source.length.unwrap_or(n);
        if length < 4 || length > n {
            bail!("--length: found {length}, expected 4 to the model's n = {n}");
        }
        let of_task = source.data.is_empty() && self.config.data.task.is_some();
        let (text, mut sequences) = match (source.data.is_empty(), of_task) {
            (false, _) => (paths(&source.data), self.of_files(&source.data, length as usize)?),
            (true, true) => self.of_task(length as usize)?,
            (true, false) => self.of_corpus(length as usize)?,
        };
        if sequences.is_empty() {
            bail!("{text}: no sequence of {length} tokens; give more text (--data) or a smaller --length");
        }
        sequences = spread(sequences, source.sequences);
        let masked = source.mask.unwrap_or(if of_task { 0.0 } else { self.config.data.evaluation_mask_probability });
        if !(0.0..1.0).contains(&masked) {
            bail!("--mask: found {masked}, expected at least 0 and below 1");
        }
        let masking = Masking::new(&self.tokenizer, masked, 0.8, 0.1);
        let mask = |(i, ids): (usize, &mut Vec<u32>)| masking.apply(ids, Stream::new(0, Purpose::EvaluationMask, i as u64));
        let targets = sequences.iter_mut().enumerate().map(mask).collect();
        let looked = Looked { text, sequences: sequences.len(), length, masked };
        Ok(Sequences { ids: sequences, targets, looked })
    }

    /// The validation documents of the corpus that the model was pretrained on.
    fn of_corpus(&self, length: usize) -> Result<(String, Vec<Vec<u32>>)> {
        let prepared = prepare_with(&self.tokenizer_path, &self.config.data)
            .context("the text that the model was pretrained on is not here; name other text with --data")?;
        let tokens = &prepared.validation;
        let cls = self.tokenizer.special.cls;
        let sequence = |i: usize| std::iter::once(cls).chain(tokens.ids(i * (length - 1), length - 1)).collect();
        Ok(("the model's validation documents".into(), (0..tokens.len() / (length - 1)).map(sequence).collect()))
    }

    /// Scored rows that are long enough, cut.
    fn of_task(&self, length: usize) -> Result<(String, Vec<Vec<u32>>)> {
        let Some(choice) = &self.config.data.task else { bail!("the model was not fine-tuned on a task") };
        let spec = TaskSpec::find(choice, &self.config.data.task_dir)?;
        let prepared = prepare_task(&spec, &self.tokenizer, &Settings::new(&self.config, &self.tokenizer))?;
        let rows = prepared.scored.iter().flat_map(|rows| (0..rows.len()).map(|row| rows.example(row).ids));
        let long = rows.filter(|ids| ids.len() >= length).map(|ids| ids[..length].to_vec()).collect();
        Ok((format!("scored rows of {} with at least {length} tokens", spec.name), long))
    }

    /// Running text with a separator after each document.
    fn of_files(&self, data: &[PathBuf], length: usize) -> Result<Vec<Vec<u32>>> {
        let found = files(data)?;
        let (mut texts, mut size) = (Vec::new(), 0);
        for document in documents(&found, &self.config.data) {
            let text = document?.text;
            size += text.len();
            texts.push(text);
            if size > MOST_TEXT {
                break;
            }
        }
        let special = self.tokenizer.special;
        let running: Vec<u32> =
            self.tokenizer.encode_all(texts)?.into_iter().flat_map(|ids| ids.into_iter().chain([special.sep])).collect();
        Ok(running.chunks_exact(length - 1).map(|body| std::iter::once(special.cls).chain(body.iter().copied()).collect()).collect())
    }

    /// Calls `see` with the layer and its heads for each batch of sequences.
    pub fn visit(&self, sequences: &[Vec<u32>], see: impl FnMut(usize, Heads)) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let flat: Vec<i64> = sequences.iter().flatten().map(|id| i64::from(*id)).collect();
        let ids = Tensor::from_slice(&flat).view([sequences.len() as i64, -1]).to_device(self.device);
        Ok(self.encoder.visit(&Input { ids, attention_mask: None }, &Pass::evaluation(Kind::Float), see)?)
    }
}

fn paths(data: &[PathBuf]) -> String {
    data.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// `count` of them at equal distances; all, if there are not more.
fn spread<T>(all: Vec<T>, count: usize) -> Vec<T> {
    let total = all.len();
    if count == 0 || total <= count {
        return all;
    }
    let mut wanted = (0..count).map(|i| i * total / count).peekable();
    let keep = all.into_iter().enumerate().filter(|(i, _)| wanted.next_if_eq(i).is_some());
    keep.map(|(_, item)| item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_taken_from_everywhere() {
        assert_eq!(spread((0..10).collect(), 4), [0, 2, 5, 7]);
        assert_eq!(spread(vec![1, 2], 4), [1, 2]);
        assert_eq!(spread(vec![1, 2], 0), [1, 2]);
    }
}
