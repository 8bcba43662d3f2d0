//! An encoder with a head for classes or a number, and what it says of rows.

use crate::config::Config;
use crate::data::batch::{batches_by_length, TaskBatch};
use crate::data::tasks::layout::segments;
use crate::data::tasks::prepared::Rows;
use crate::data::tasks::Example;
use crate::data::tokenizer::Tokenizer;
use crate::distributed::World;
use crate::eval::{is_constant, Metric};
use crate::model::loss::{cross_entropy_sum, squared_error_sum};
use crate::model::{ClassificationHead, Encoder, Input, Parameters, Pass};
use crate::native::NativeError;
use crate::random::combine;
use crate::train::interrupt::Interrupt;
use crate::train::trainer::kind_of;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

pub struct Classifier {
    encoder: Encoder,
    head: ClassificationHead,
    regression: bool,
    /// Numbers that it says of a row.
    outputs: usize,
    pad: u32,
    kind: Kind,
    device: Device,
    /// The ranks that share the scoring of a split.
    world: World,
}

/// What was predicted for a row: the probability of each class, or one number.
pub type Output = Vec<f64>;

/// How well a split was predicted.
pub struct Scores {
    /// Mean over the rows.
    pub loss: f64,
    /// None: not defined on these predictions.
    pub metrics: Vec<(Metric, Option<f64>)>,
    /// One and the same prediction for every row.
    pub constant: bool,
    /// By the row's number.
    predicted: Vec<f64>,
    truth: Vec<f64>,
}

/// The rows that choose a checkpoint or a rate, and those that report what was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    Choosing,
    Reported,
}

impl Half {
    /// By a hash of the row's number: files alternate labels, or hold them one after the other.
    fn holds(self, row: usize) -> bool {
        (combine(row as u64, 0x68_61_6c_66) & 1 == 0) == (self == Half::Choosing)
    }
}

impl Scores {
    /// A metric on one half of the rows.
    pub fn on(&self, half: Half, metric: Metric) -> Option<f64> {
        let rows = || (0..self.truth.len()).filter(|row| half.holds(*row));
        let of = |values: &[f64]| rows().map(|row| values[row]).collect::<Vec<f64>>();
        metric.compute(&of(&self.predicted), &of(&self.truth))
    }
}

impl Classifier {
    /// Builds the model into `parameters`. One output is a regression.
    pub fn new(parameters: &mut Parameters, config: &Config, outputs: i64, tokenizer: &Tokenizer) -> Self {
        let encoder = Encoder::new(parameters, &config.model).with_segments(segments(&config.model, tokenizer));
        let head = ClassificationHead::new(parameters, &config.model, outputs);
        Self {
            encoder,
            head,
            regression: outputs == 1,
            outputs: outputs.max(1) as usize,
            pad: tokenizer.special.pad,
            kind: kind_of(config.train.precision),
            device: parameters.device(),
            world: World::default(),
        }
    }

    /// Shares the scoring of splits with other ranks.
    pub fn among(self, world: &World) -> Self {
        Self { world: world.clone(), ..self }
    }

    /// The share of its rows that the encoder's last layer makes in training: the head reads one of each `length`.
    pub fn share_made(&self, length: i64) -> f64 {
        self.encoder.share_made(1.0 / length as f64, self.kind, self.device)
    }

    /// Logits `[B, classes]` and labels of some rows of a batch.
    pub fn forward(&self, batch: &TaskBatch, rows: Range<usize>, pass: &Pass) -> Result<(Tensor, Tensor), NativeError> {
        let tensors = batch.tensors(rows, self.regression, self.device);
        let hidden = self.encoder.forward_first(&Input { ids: tensors.ids, attention_mask: Some(tensors.attention_mask) }, pass)?;
        Ok((self.head.forward(&hidden, pass)?, tensors.labels))
    }

    pub fn loss_sum(&self, logits: &Tensor, labels: &Tensor, smoothing: f64) -> Tensor {
        if self.regression {
            squared_error_sum(logits, labels)
        } else {
            cross_entropy_sum(logits, labels, smoothing)
        }
    }

    /// Class, or number, of an output.
    pub fn value(&self, output: &Output) -> f64 {
        if self.regression {
            return output[0];
        }
        // The first of equal ones, as argmax has it; a NaN is no class's.
        let best = (0..output.len()).reduce(|a, b| if output[b] > output[a] { b } else { a });
        best.filter(|b| !output[*b].is_nan()).map_or(f64::NAN, |b| b as f64)
    }

    /// Outputs of some examples and the sum of their losses; they may be in any order.
    fn outputs_of(&self, examples: Vec<Example>) -> Result<(Vec<Output>, f64), NativeError> {
        let count = examples.len();
        let batch = TaskBatch::new(examples, self.pad);
        let (logits, labels) = self.forward(&batch, 0..count, &Pass::evaluation(self.kind))?;
        let loss = self.loss_sum(&logits, &labels, 0.0).double_value(&[]);
        let logits = logits.to_kind(Kind::Double).to_device(Device::Cpu);
        let values = if self.regression { logits } else { logits.softmax(-1, Kind::Double) };
        let row = |i: i64| (0..values.size()[1]).map(|j| values.double_value(&[i, j])).collect();
        Ok(((0..count as i64).map(row).collect(), loss))
    }

    /// Calls `found` with each row's number and output, rows of like length together; gives the sum of the losses. None: broken off.
    fn by_length(
        &self,
        lengths: &[usize],
        example: impl Fn(usize) -> Example,
        interrupt: &Interrupt,
        mut found: impl FnMut(usize, Output),
    ) -> Result<Option<f64>, NativeError> {
        let _guard = tch::no_grad_guard();
        let batches = batches_by_length(lengths);
        let (rank, ranks) = (self.world.rank(), self.world.size());
        // Loss and outputs of every batch that is this rank's.
        let mut own = Vec::new();
        for rows in batches.iter().skip(rank).step_by(ranks) {
            if interrupt.is_set() {
                break;
            }
            let (outputs, loss) = self.outputs_of(rows.iter().map(|row| example(*row)).collect())?;
            own.push(loss);
            own.extend(outputs.into_iter().flatten());
        }
        let all = self.world.gather_lists(own)?;
        let mut left: Vec<&[f64]> = all.iter().map(Vec::as_slice).collect();
        // In the order of the batches: the same sum whatever the number of ranks.
        let mut sum = 0.0;
        for (i, rows) in batches.iter().enumerate() {
            let Some((batch, rest)) = left[i % ranks].split_at_checked(1 + rows.len() * self.outputs) else { return Ok(None) };
            left[i % ranks] = rest;
            sum += batch[0];
            rows.iter().zip(batch[1..].chunks(self.outputs)).for_each(|(row, output)| found(*row, output.to_vec()));
        }
        Ok(Some(sum))
    }

    /// Outputs of sequences in their order.
    pub fn predict(&self, sequences: Vec<Vec<u32>>) -> Result<Vec<Output>, NativeError> {
        let lengths: Vec<usize> = sequences.iter().map(Vec::len).collect();
        let mut outputs = vec![Output::new(); sequences.len()];
        let example = |row: usize| Example { id: row, ids: sequences[row].clone(), label: 0.0 };
        self.by_length(&lengths, example, &Interrupt::default(), |row, output| outputs[row] = output)?;
        Ok(outputs)
    }

    /// Metrics of a split; predictions meet their labels by the row's number. None: broken off.
    pub fn score(&self, rows: &Rows, metrics: &[Metric], interrupt: &Interrupt) -> Result<Option<Scores>, NativeError> {
        let lengths: Vec<usize> = (0..rows.len()).map(|row| rows.length(row)).collect();
        let mut predicted = vec![f64::NAN; rows.len()];
        let done = self.by_length(&lengths, |row| rows.example(row), interrupt, |row, output| predicted[row] = self.value(&output))?;
        let Some(sum) = done else { return Ok(None) };
        let truth = rows.labels();
        Ok(Some(Scores {
            loss: sum / truth.len().max(1) as f64,
            metrics: metrics.iter().map(|metric| (*metric, metric.compute(&predicted, &truth))).collect(),
            constant: is_constant(&predicted),
            predicted,
            truth,
        }))
    }
}
