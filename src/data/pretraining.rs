//! Masked sequences from a prepared corpus: sample i of a run is a function of (seed, i).

use super::batch::MlmBatch;
use super::masking::Masking;
use super::order::EpochOrder;
use super::prepare::Prepared;
use super::shards::TokenFile;
use super::DataError;
use crate::config::Config;
use crate::random::{Purpose, Stream};

/// Fixed, so that every evaluation of every run on one corpus sees the same masks.
const EVALUATION_SEED: u64 = 0;

/// Training and validation sequences. A sequence is the first-token id and n - 1 tokens of the running text, across
/// documents (which end with a separator); what is left over at the end is not used.
pub struct MlmData {
    prepared: Prepared,
    seed: u64,
    length: usize,
    masking: Masking,
    evaluation_masking: Masking,
    train_sequences: usize,
    validation_sequences: usize,
    order: EpochOrder,
}

impl MlmData {
    pub fn new(prepared: Prepared, config: &Config) -> Result<Self, DataError> {
        let data = &config.data;
        let length = data.sequence_length as usize;
        let blocks = |file: &TokenFile| file.len() / (length - 1);
        let (train, validation) = (blocks(&prepared.train), blocks(&prepared.validation));
        if train < config.train.batch_size {
            let what = "the corpus is smaller than one batch".to_string();
            return Err(DataError::TooSmall { what, found: train, length: data.sequence_length, expected: config.train.batch_size, remedy: "add text, or lower train.batch_size or data.sequence_length" });
        }
        if validation == 0 {
            let what = format!("the validation part ({} documents)", prepared.validation.documents);
            return Err(DataError::TooSmall { what, found: 0, length: data.sequence_length, expected: 1, remedy: "raise data.validation_fraction, add documents, or part them differently (data.document)" });
        }
        let masking = |p: f64| Masking::new(&prepared.tokenizer, p, data.mask_token_share, data.random_token_share);
        let limit = if data.max_validation_sequences == 0 { usize::MAX } else { data.max_validation_sequences };
        Ok(Self {
            seed: config.train.seed,
            length,
            masking: masking(data.mask_probability),
            evaluation_masking: Masking::new(&prepared.tokenizer, data.evaluation_mask_probability, 0.8, 0.1),
            train_sequences: train,
            validation_sequences: validation.min(limit),
            order: EpochOrder::new(config.train.seed, train),
            prepared,
        })
    }

    pub fn prepared(&self) -> &Prepared {
        &self.prepared
    }

    pub fn train_sequences(&self) -> usize {
        self.train_sequences
    }

    pub fn validation_sequences(&self) -> usize {
        self.validation_sequences
    }

    /// Samples `first..first + count` of the run, counted over all epochs.
    pub fn train_batch(&self, first: u64, count: usize) -> MlmBatch {
        let mut batch = MlmBatch::new(self.length);
        for sample in first..first + count as u64 {
            let mut ids = self.sequence(&self.prepared.train, self.order.item(sample));
            let targets = self.masking.apply(&mut ids, Stream::new(self.seed, Purpose::Mask, sample));
            batch.push(&ids, &targets);
        }
        batch
    }

    /// Validation sequences `first..`, at most `count`; the same at every evaluation.
    pub fn validation_batch(&self, first: usize, count: usize) -> MlmBatch {
        let mut batch = MlmBatch::new(self.length);
        for block in first..(first + count).min(self.validation_sequences) {
            let mut ids = self.sequence(&self.prepared.validation, block);
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
        let batch = self.validation_batch(0, self.validation_sequences);
        let nats = batch.targets.iter().map(|t| -((counts[*t as usize] as f64 + 1.0) / total).ln());
        nats.sum::<f64>() / batch.targets.len().max(1) as f64
    }

    /// Bytes of text per token of the validation part, for bits per byte.
    pub fn validation_bytes_per_token(&self) -> f64 {
        let counts = &self.prepared.meta.validation;
        counts.bytes as f64 / (counts.tokens.max(1)) as f64
    }

    fn sequence(&self, file: &TokenFile, block: usize) -> Vec<u32> {
        let body = self.length - 1;
        std::iter::once(self.prepared.tokenizer.special.first).chain(file.ids(block * body, body)).collect()
    }
}
