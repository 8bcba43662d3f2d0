//! Masked sequences from a prepared corpus: what a step sees is a function of (seed, step).

use super::batch::MlmBatch;
use super::loader::Batches;
use super::masking::{Masking, Target};
use super::order::EpochOrder;
use super::prepare::Prepared;
use super::tokens::{LineSpan, Tokens};
use super::DataError;
use crate::config::{Config, Sampling};
use crate::random::{combine, Purpose, Stream};

/// Fixed, so that every evaluation of every run on one corpus sees the same masks.
const EVALUATION_SEED: u64 = 0;

/// Training and validation sequences. A packed sequence is the first-token id and n - 1 tokens of the running text, across
/// documents (which end with a separator); what is left over at the end is not used. Others are made of whole lines and
/// padded to n.
pub struct MlmData {
    prepared: Prepared,
    seed: u64,
    masking: Masking,
    evaluation_masking: Masking,
    /// Sequences of the first steps, if those are shorter, and how many steps that is.
    short: Option<(Blocks, u64)>,
    train: Blocks,
    validation: Blocks,
    /// Sequences of the validation part, used or not.
    validation_available: usize,
}

/// A split cut into sequences, and how many of them make a step.
struct Blocks {
    length: usize,
    count: usize,
    per_step: usize,
    order: EpochOrder,
    /// First id and number of ids of each sequence that is made of whole lines; None: all are full.
    spans: Option<Vec<(u64, u32)>>,
}

impl Blocks {
    fn new(tokens: &Tokens, length: usize, per_step: usize, seed: u64, sampling: Sampling) -> Self {
        let spans = (sampling != Sampling::Packed).then(|| whole_lines(tokens.lines(), length - 1, sampling == Sampling::CompleteDoc));
        let count = spans.as_ref().map_or(tokens.len() / (length - 1), Vec::len);
        Self { length, count, per_step, order: EpochOrder::new(seed, count), spans }
    }

    fn sequence(&self, tokens: &Tokens, first: u32, block: usize) -> Vec<u32> {
        let body = self.length - 1;
        let (start, count) = match &self.spans {
            Some(spans) => (spans[block].0 as usize, spans[block].1 as usize),
            None => (block * body, body),
        };
        std::iter::once(first).chain(tokens.ids(start, count)).collect()
    }
}

/// Sequences of at most `room` ids: as many lines as fit, the next one begins with the next line. A line that is longer is
/// cut. With `by_document` a sequence ends with its document.
fn whole_lines(lines: impl Iterator<Item = LineSpan>, room: usize, by_document: bool) -> Vec<(u64, u32)> {
    let mut spans = Vec::new();
    let (mut start, mut count) = (0, 0);
    for line in lines {
        if count > 0 && count + line.length > room {
            spans.push((start as u64, count as u32));
            count = 0;
        }
        if count == 0 {
            start = line.start;
        }
        count += line.length;
        while count > room {
            spans.push((start as u64, room as u32));
            (start, count) = (start + room, count - room);
        }
        if by_document && line.ends_document && count > 0 {
            spans.push((start as u64, count as u32));
            count = 0;
        }
    }
    if count > 0 {
        spans.push((start as u64, count as u32));
    }
    spans
}

impl MlmData {
    pub fn new(prepared: Prepared, config: &Config) -> Result<Self, DataError> {
        let data = &config.data;
        let (length, batch, seed) = (data.sequence_length as usize, config.train.batch_size, config.train.seed);
        let train = Blocks::new(&prepared.train, length, batch, seed, data.sampling);
        let mut validation = Blocks::new(&prepared.validation, length, batch, seed, data.sampling);
        if train.count < batch {
            let what = format!("the corpus is smaller than one batch ({} documents to train on)", prepared.train.documents);
            return Err(DataError::TooSmall {
                what,
                found: train.count,
                length: data.sequence_length,
                expected: batch,
                remedy: "add text, or lower train.batch_size or data.sequence_length",
            });
        }
        if validation.count == 0 {
            let what = format!("the validation part ({} documents)", prepared.validation.documents);
            return Err(DataError::TooSmall {
                what,
                found: 0,
                length: data.sequence_length,
                expected: 1,
                remedy: "raise data.validation_fraction, add documents, or part them differently (data.document)",
            });
        }
        let available = validation.count;
        if data.max_validation_sequences > 0 {
            validation.count = available.min(data.max_validation_sequences);
        }
        let short = data.short_sequence_length.filter(|_| data.short_steps > 0).map(|short| {
            let short = short as usize;
            (Blocks::new(&prepared.train, short, (batch * length).div_ceil(short), seed, data.sampling), data.short_steps)
        });
        Ok(Self {
            seed,
            masking: Masking::new(&prepared.tokenizer, data.mask_probability, data.mask_token_share, data.random_token_share)
                .whole_words(data.whole_word_masking.then(|| prepared.tokenizer.word_starts())),
            evaluation_masking: Masking::new(&prepared.tokenizer, data.evaluation_mask_probability, 0.8, 0.1),
            short,
            train,
            validation,
            validation_available: available,
            prepared,
        })
    }

    pub fn prepared(&self) -> &Prepared {
        &self.prepared
    }

    pub fn validation_sequences(&self) -> usize {
        self.validation.count
    }

    fn train_batch(&self, step: u64) -> MlmBatch {
        // Steps of each length count by themselves: what a step sees is a function of its number alone.
        let (blocks, before) = match &self.short {
            Some((short, steps)) if step <= *steps => (short, 0),
            Some((_, steps)) => (&self.train, *steps),
            None => (&self.train, 0),
        };
        let first = (step - 1 - before) * blocks.per_step as u64;
        let mut batch = MlmBatch::new(blocks.length);
        for sample in first..first + blocks.per_step as u64 {
            let mut ids = blocks.sequence(&self.prepared.train, self.prepared.tokenizer.special.cls, blocks.order.item(sample));
            let mask = Stream::new(self.seed, Purpose::Mask, combine(blocks.length as u64, sample));
            let targets = self.masking.apply(&mut ids, mask);
            self.push(&mut batch, blocks, &ids, &targets);
        }
        batch
    }

    /// Validation sequences `first..`, at most `count`; the same at every evaluation.
    pub fn validation_batch(&self, first: usize, count: usize) -> MlmBatch {
        let mut batch = MlmBatch::new(self.validation.length);
        for sequence in first..(first + count).min(self.validation.count) {
            // Spread over all held-out documents when not all sequences are used.
            let block = (sequence as u64 * self.validation_available as u64 / self.validation.count as u64) as usize;
            let mut ids = self.validation.sequence(&self.prepared.validation, self.prepared.tokenizer.special.cls, block);
            let targets = self.evaluation_masking.apply(&mut ids, Stream::new(EVALUATION_SEED, Purpose::EvaluationMask, block as u64));
            self.push(&mut batch, &self.validation, &ids, &targets);
        }
        batch
    }

    fn push(&self, batch: &mut MlmBatch, blocks: &Blocks, ids: &[u32], targets: &[Target]) {
        match blocks.spans {
            Some(_) => batch.push_padded(ids, targets, self.prepared.tokenizer.special.pad),
            None => batch.push(ids, targets),
        }
    }

    /// Loss in nats of the best guess that looks at no context, on the tokens that an evaluation asks for: frequencies of
    /// the training part, one added to each.
    pub fn unigram_loss(&self) -> f64 {
        let counts = &self.prepared.meta.train_token_counts;
        let total: f64 = counts.iter().map(|c| *c as f64 + 1.0).sum();
        let batch = self.validation_batch(0, self.validation.count);
        let nats = batch.targets.iter().map(|t| -((counts[*t as usize] as f64 + 1.0) / total).ln());
        nats.sum::<f64>() / batch.targets.len().max(1) as f64
    }

    /// Bytes of text per token of the validation part, for bits per byte.
    pub fn validation_bytes_per_token(&self) -> f64 {
        let counts = &self.prepared.meta.validation;
        counts.bytes as f64 / (counts.tokens.max(1)) as f64
    }
}

impl Batches for MlmData {
    type Batch = MlmBatch;

    fn batch(&self, step: u64) -> MlmBatch {
        self.train_batch(step)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::OneOrMany;
    use crate::data::prepare::prepare;
    use tch::{Device, Kind, Tensor};

    fn data(sampling: Sampling, seed: u64) -> MlmData {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..30 {
            let line = |j: usize| format!("Line {j} of {i}{}\n", " and so on".repeat((i * j) % 4));
            std::fs::write(folder.path().join(format!("{i}.txt")), (0..8).map(line).collect::<String>()).unwrap();
        }
        let mut config = Config::default();
        config.data.corpus = Some(OneOrMany::One(folder.path().into()));
        config.data.cache_dir = folder.path().join("cache");
        config.data.tokenizer = "bytes".into();
        (config.data.sequence_length, config.data.sampling, config.data.validation_fraction) = (64, sampling, 0.2);
        (config.train.batch_size, config.train.seed) = (4, seed);
        MlmData::new(prepare(&config.data, None).unwrap(), &config).unwrap()
    }

    /// Cases 23 and 24: evaluation has the same masks whatever the run; training has others in every epoch.
    #[test]
    fn evaluation_masks_never_change_and_training_masks_always_do() {
        let (one, other) = (data(Sampling::Packed, 1), data(Sampling::Packed, 2));
        assert_eq!(one.validation_batch(0, 8), other.validation_batch(0, 8));
        assert!(one.validation_batch(0, 8).targets.len() > 30, "an evaluation without masks");
        assert_ne!(one.train_batch(1), other.train_batch(1));
        assert_eq!(one.train_batch(3), data(Sampling::Packed, 1).train_batch(3));
        // The same sequence in the first two epochs.
        let unmasked = |batch: &MlmBatch, at: usize| {
            let mut ids = batch.ids[at * 64..(at + 1) * 64].to_vec();
            for (position, target) in batch.positions.iter().zip(&batch.targets) {
                if (*position as usize) / 64 == at {
                    ids[*position as usize % 64] = *target;
                }
            }
            ids
        };
        let epoch = one.train.count as u64;
        let first = one.train_batch(1);
        let (wanted, masks) = (unmasked(&first, 0), |b: &MlmBatch, at: usize| {
            b.positions.iter().filter(|p| **p as usize / 64 == at).map(|p| p % 64).collect::<Vec<_>>()
        });
        let again = (epoch / 4..epoch / 2 + 2)
            .map(|step| one.train_batch(step))
            .find_map(|batch| (0..4).find(|at| unmasked(&batch, *at) == wanted).map(|at| masks(&batch, at)));
        assert_ne!(again.unwrap(), masks(&first, 0));
    }

    #[test]
    fn padded_sequences_hold_whole_lines_and_no_target_in_the_padding() {
        for sampling in [Sampling::Complete, Sampling::CompleteDoc] {
            let data = data(sampling, 1);
            let batch = data.validation_batch(0, 8);
            let tensors = batch.tensors(2..6, Device::Cpu);
            let mask = tensors.attention_mask.unwrap();
            assert_eq!(mask.size(), [4, 64]);
            assert!(batch.tokens() < batch.ids.len());
            let pad = i64::from(data.prepared.tokenizer.special.pad);
            assert!(Tensor::equal(&tensors.ids.ne(pad).to_kind(Kind::Int64), &mask));
            let at_targets = mask.view(-1).index_select(0, &tensors.positions).masked_select(&tensors.targets.ge(0));
            assert_eq!(at_targets.min().int64_value(&[]), 1);
            // Every sequence begins with a line.
            for block in 0..data.validation.count {
                let ids = data.validation.sequence(&data.prepared.validation, 0, block);
                assert!(data.prepared.tokenizer.decode(&ids[1..]).unwrap().starts_with("Line "), "{sampling}");
            }
        }
    }

    /// Lines of documents, as (lengths, lengths, ...).
    fn lines(documents: &[&[usize]]) -> Vec<LineSpan> {
        let mut start = 0;
        let mut all = Vec::new();
        for document in documents {
            for (i, length) in document.iter().enumerate() {
                all.push(LineSpan { start, length: *length, ends_document: i + 1 == document.len() });
                start += length;
            }
        }
        all
    }

    #[test]
    fn sequences_are_whole_lines_and_long_lines_are_cut() {
        let spans = |by_document| whole_lines(lines(&[&[3, 4, 5], &[2], &[25, 1]]).into_iter(), 10, by_document);
        assert_eq!(spans(false), [(0, 7), (7, 7), (14, 10), (24, 10), (34, 6)]);
        assert_eq!(spans(true), [(0, 7), (7, 5), (12, 2), (14, 10), (24, 10), (34, 6)]);
    }

    #[test]
    fn no_token_is_lost_and_none_stands_twice() {
        let many: Vec<Vec<usize>> = (0..50).map(|i| (0..i % 7 + 1).map(|j| (i * 13 + j * 5) % 23 + 1).collect()).collect();
        let documents: Vec<&[usize]> = many.iter().map(Vec::as_slice).collect();
        let total: usize = many.iter().flatten().sum();
        for by_document in [false, true] {
            let spans = whole_lines(lines(&documents).into_iter(), 16, by_document);
            let mut at = 0;
            for (start, count) in &spans {
                assert!(*start == at && (1..=16).contains(count));
                at += u64::from(*count);
            }
            assert_eq!(at as usize, total);
        }
    }
}
