//! Masked sequences from a prepared corpus: what a step sees is a function of (seed, step).

use super::batch::MlmBatch;
use super::loader::Batches;
use super::masking::Masking;
use super::order::EpochOrder;
use super::prepare::Prepared;
use super::token_file::TokenFile;
use super::DataError;
use crate::config::Config;
use crate::random::{combine, Purpose, Stream};

/// Fixed, so that every evaluation of every run on one corpus sees the same masks.
const EVALUATION_SEED: u64 = 0;

/// Training and validation sequences. A sequence is the first-token id and n - 1 tokens of the running text, across
/// documents (which end with a separator); what is left over at the end is not used.
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

/// A token file cut into sequences, and how many of them make a step.
struct Blocks {
    length: usize,
    count: usize,
    per_step: usize,
    order: EpochOrder,
}

impl Blocks {
    fn new(file: &TokenFile, length: usize, per_step: usize, seed: u64) -> Self {
        let count = file.len() / (length - 1);
        Self { length, count, per_step, order: EpochOrder::new(seed, count) }
    }

    fn sequence(&self, file: &TokenFile, first: u32, block: usize) -> Vec<u32> {
        let body = self.length - 1;
        std::iter::once(first).chain(file.ids(block * body, body)).collect()
    }
}

impl MlmData {
    pub fn new(prepared: Prepared, config: &Config) -> Result<Self, DataError> {
        let data = &config.data;
        let (length, batch, seed) = (data.sequence_length as usize, config.train.batch_size, config.train.seed);
        let train = Blocks::new(&prepared.train, length, batch, seed);
        let mut validation = Blocks::new(&prepared.validation, length, batch, seed);
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
            (Blocks::new(&prepared.train, short, (batch * length).div_ceil(short), seed), data.short_steps)
        });
        Ok(Self {
            seed,
            masking: Masking::new(&prepared.tokenizer, data.mask_probability, data.mask_token_share, data.random_token_share),
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
            batch.push(&ids, &targets);
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
            batch.push(&ids, &targets);
        }
        batch
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
