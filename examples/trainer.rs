//! The trainer on a task of one's own: say each text backwards.
//!
//!     cargo run --release --example trainer
//!
//! What a task has to say is [`Task`]: where batches come from, their loss, how well it is learned. Checkpoints, resuming,
//! metrics.jsonl, TensorBoard, the schedule, clipping and signals come with the trainer. Start it again and it goes on.

use linformer::config::{Attention, AttentionKind, Config, Model, ScheduleKind, Train};
use linformer::data::loader::Batches;
use linformer::data::tokenizer::Tokenizer;
use linformer::distributed::World;
use linformer::experiments::setup::Job;
use linformer::experiments::{Finished, Start};
use linformer::log::Record;
use linformer::model::loss::cross_entropy_sum;
use linformer::model::{Encoder, Input, MaskedLmHead, Parameters, Pass};
use linformer::native::NativeError;
use linformer::random::{Purpose, Stream};
use linformer::train::interrupt::Interrupt;
use linformer::train::run::{Resume, RunFolder};
use linformer::train::trainer::{BatchSize, Evaluation};
use linformer::train::{LossSum, Task};
use serde_json::{json, Value};
use std::ops::Range;
use std::path::Path;
use tch::{Device, Kind, Tensor};

const LENGTH: usize = 12;
const BATCH: usize = 32;
/// Tokens that texts are made of.
const TOKENS: Range<u64> = 5..21;

/// Random texts: a batch is a function of its step alone, which is what makes a resumed run equal.
struct Texts {
    seed: u64,
}

impl Batches for Texts {
    type Batch = Vec<i64>;

    fn batch(&self, step: u64) -> Vec<i64> {
        let mut draws = Stream::new(self.seed, Purpose::Mask, step).draws();
        (0..BATCH * LENGTH).map(|_| (TOKENS.start + draws.below(TOKENS.end - TOKENS.start)) as i64).collect()
    }
}

struct Backwards {
    texts: Texts,
    encoder: Encoder,
    head: MaskedLmHead,
}

impl Backwards {
    /// Loss summed over all positions of some texts, and how many tokens were right.
    fn measure(&self, batch: &[i64], texts: Range<usize>, pass: &Pass) -> Result<(Tensor, i64), NativeError> {
        let ids = Tensor::from_slice(&batch[texts.start * LENGTH..texts.end * LENGTH]).view([-1, LENGTH as i64]);
        let targets = ids.flip([1]).reshape([-1]);
        let hidden = self.encoder.forward(&Input { ids, attention_mask: None }, pass)?;
        let logits = self.head.forward(&hidden.flatten(0, 1))?;
        let right = logits.argmax(-1, false).eq_tensor(&targets).sum(Kind::Int64).int64_value(&[]);
        Ok((cross_entropy_sum(&logits, &targets, 0.0), right))
    }
}

impl Task for Backwards {
    type Batch = Vec<i64>;
    type Data = Texts;

    fn data(&self) -> &Texts {
        &self.texts
    }

    fn size(&self, batch: &Vec<i64>) -> BatchSize {
        BatchSize { sequences: BATCH, length: LENGTH, tokens: batch.len(), targets: batch.len() }
    }

    fn loss(&self, batch: &Vec<i64>, sequences: Range<usize>, pass: &Pass) -> Result<LossSum, NativeError> {
        Ok(LossSum(self.measure(batch, sequences, pass)?.0))
    }

    fn evaluate(&self, _: &Interrupt) -> Result<Option<Evaluation>, NativeError> {
        let _guard = tch::no_grad_guard();
        // A step that is never trained on.
        let batch = self.texts.batch(u64::MAX);
        let (loss, right) = self.measure(&batch, 0..BATCH, &Pass::evaluation(Kind::Float))?;
        let (loss, accuracy) = (loss.double_value(&[]) / batch.len() as f64, right as f64 / batch.len() as f64);
        let record = Record { step: 0, split: "valid", values: vec![("loss", loss), ("accuracy", accuracy)] };
        Ok(Some(Evaluation { record, score: Some(accuracy), text: format!("accuracy {accuracy:.3}") }))
    }

    fn keeps_best(&self) -> bool {
        false
    }
}

/// Trains in `folder`, or goes on there, and gives the share of tokens that come out right.
pub fn run(folder: &Path, steps: u64) -> anyhow::Result<f64> {
    let tokenizer = Tokenizer::bytes()?;
    let model = Model {
        vocab_size: Some(tokenizer.vocab_size() as i64),
        hidden_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        intermediate_size: 64,
        max_position_embeddings: Some(LENGTH as i64 + 2),
        hidden_dropout_prob: 0.0,
        attention_probs_dropout_prob: 0.0,
        initializer_range: 0.1,
        attention: Attention { kind: AttentionKind::Full, ..Attention::default() },
        ..Model::default()
    };
    let train = Train {
        max_steps: steps,
        batch_size: BATCH,
        learning_rate: 5e-3,
        warmup_steps: 20,
        schedule: ScheduleKind::Constant,
        log_every: 50,
        eval_every: 0,
        checkpoint_every: 100,
        ..Train::default()
    };
    let mut config = Config { model, train, ..Config::default() };
    config.run.dir = Some(folder.into());

    let mut parameters = Parameters::new(config.train.seed, Device::Cpu);
    let encoder = Encoder::new(&mut parameters, &config.model);
    let head = MaskedLmHead::new(&mut parameters, &config.model, encoder.word_embeddings());
    let task = Backwards { texts: Texts { seed: config.train.seed }, encoder, head };

    let start =
        Start { name: "backwards".into(), resume: Resume::Auto, interrupt: Interrupt::default(), world: World::default(), profile: 0 };
    let inputs = json!({"data": "random"});
    let opened = RunFolder::open(folder, &config, &inputs, steps, &start.resume)?;
    if let Some(summary) = &opened.done {
        return Ok(summary["accuracy"].as_f64().unwrap_or(0.0));
    }
    let job = Job {
        config: &config,
        start: &start,
        folder: opened,
        task: &task,
        parameters: &parameters,
        tokenizer: &tokenizer,
        warnings: Vec::new(),
        total_steps: steps,
        flops_per_token: 0.0,
    };
    let finished = job.run(|outcome, _| {
        let accuracy = outcome.last.as_ref().and_then(|last| last.record.get("accuracy"));
        Ok(json!({"total_steps": steps, "steps": outcome.state.step, "accuracy": accuracy}))
    })?;
    Ok(match finished {
        Finished::Done(summary) => summary.get("accuracy").and_then(Value::as_f64).unwrap_or(0.0),
        Finished::Interrupted => 0.0,
    })
}

#[allow(dead_code)]
fn main() -> anyhow::Result<()> {
    let accuracy = run(Path::new("runs/backwards"), 600)?;
    println!("{:.1}% of the tokens come out right", 100.0 * accuracy);
    Ok(())
}
