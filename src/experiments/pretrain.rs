//! Masked-LM pretraining (paper, section 5.1, Figure 3).

use super::parent::{prepare_with, Parent};
use super::setup::{self, Job};
use super::{Finished, Start};
use crate::config::{load, Config, Origins};
use crate::data::batch::MlmBatch;
use crate::data::prepare::prepare;
use crate::data::pretraining::MlmData;
use crate::distributed::World;
use crate::eval::perplexity;
use crate::log::{progress::Progress, Record};
use crate::model::loss::cross_entropy_sum;
use crate::model::memory::EVALUATION_PREDICTIONS;
use crate::model::size::forward_flops_per_token;
use crate::model::weights::Select;
use crate::model::{Encoder, Input, MaskedLmHead, Parameters, Pass};
use crate::native::NativeError;
use crate::train::interrupt::Interrupt;
use crate::train::trainer::{kind_of, BatchSize, Evaluation};
use crate::train::{LossSum, Outcome, Task};
use anyhow::{bail, Context, Result};
use serde_json::{json, Value};
use std::ops::Range;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// A model within this many nats of the unigram loss has learned nothing from context.
const PLATEAU_MARGIN: f64 = 0.1;

/// Masked-LM on a prepared corpus.
pub struct MaskedLm {
    data: MlmData,
    encoder: Encoder,
    head: MaskedLmHead,
    kind: Kind,
    device: Device,
    label_smoothing: f64,
    /// Sequences of an evaluation's pass.
    evaluation_batch: usize,
    unigram_loss: f64,
    /// The ranks that share an evaluation.
    world: World,
}

impl MaskedLm {
    /// Builds the model into `parameters`.
    pub fn new(data: MlmData, config: &Config, parameters: &mut Parameters) -> Self {
        let encoder = Encoder::new(parameters, &config.model);
        let head = MaskedLmHead::new(parameters, &config.model, encoder.word_embeddings());
        Self {
            unigram_loss: data.unigram_loss(),
            data,
            encoder,
            head,
            kind: kind_of(config.train.precision),
            device: parameters.device(),
            label_smoothing: config.train.label_smoothing,
            evaluation_batch: config.evaluation_sequences(),
            world: World::default(),
        }
    }

    /// Shares its evaluations with other ranks.
    pub fn among(self, world: &World) -> Self {
        Self { world: world.clone(), ..self }
    }

    /// Loss, right predictions and predictions of every block of validation sequences, in order: each block by one rank.
    fn blocks(&self, interrupt: &Interrupt) -> Result<Option<Vec<[f64; 3]>>, NativeError> {
        let pass = Pass::evaluation(self.kind);
        let blocks = self.data.validation_sequences().div_ceil(self.evaluation_batch);
        let (rank, ranks) = (self.world.rank(), self.world.size());
        let mut own = Vec::new();
        for block in (rank..blocks).step_by(ranks) {
            if interrupt.is_set() {
                break;
            }
            let batch = self.data.validation_batch(block * self.evaluation_batch, self.evaluation_batch);
            let (loss, correct) = self.measure(&batch, &pass)?;
            own.extend([loss, correct as f64, batch.targets.len() as f64]);
        }
        let all = self.world.gather_lists(own)?;
        let of = |block: usize| all[block % ranks].get(block / ranks * 3..)?.first_chunk::<3>().copied();
        Ok((0..blocks).map(of).collect())
    }

    /// Sum of the loss, and how many predictions were right.
    fn measure(&self, batch: &MlmBatch, pass: &Pass) -> Result<(f64, i64), NativeError> {
        let tensors = batch.tensors(0..batch.sequences(), self.device);
        let input = Input { ids: tensors.ids, attention_mask: tensors.attention_mask };
        let hidden = self.encoder.forward_at(&input, &tensors.positions, pass)?;
        let (mut loss, mut right) = (0.0, 0);
        // Logits of all at once would take more memory than training does.
        let pieces = |t: &Tensor| t.split(EVALUATION_PREDICTIONS, 0);
        for (hidden, targets) in pieces(&hidden).iter().zip(&pieces(&tensors.targets)) {
            let logits = self.head.forward(hidden)?;
            right += logits.argmax(-1, false).eq_tensor(targets).sum(Kind::Int64).int64_value(&[]);
            loss += cross_entropy_sum(&logits, targets, 0.0).double_value(&[]);
        }
        Ok((loss, right))
    }
}

impl Task for MaskedLm {
    type Batch = MlmBatch;
    type Data = MlmData;

    fn data(&self) -> &MlmData {
        &self.data
    }

    fn size(&self, batch: &MlmBatch) -> BatchSize {
        BatchSize { sequences: batch.sequences(), length: batch.length(), tokens: batch.tokens(), targets: batch.targets.len() }
    }

    fn loss(&self, batch: &MlmBatch, sequences: Range<usize>, pass: &Pass) -> Result<LossSum, NativeError> {
        let tensors = batch.tensors(sequences, self.device);
        let input = Input { ids: tensors.ids, attention_mask: tensors.attention_mask };
        let hidden = self.encoder.forward_at(&input, &tensors.positions, pass)?;
        Ok(LossSum(self.head.loss(&hidden, &tensors.targets, self.label_smoothing, pass)?))
    }

    /// Every validation sequence once, with fixed masks.
    fn evaluate(&self, interrupt: &Interrupt) -> Result<Option<Evaluation>, NativeError> {
        let _guard = tch::no_grad_guard();
        let Some(blocks) = self.blocks(interrupt)? else { return Ok(None) };
        // In the order of the blocks: the same sum whatever the number of ranks.
        let [sum, right, targets] = blocks.iter().fold([0.0; 3], |sum, block| std::array::from_fn(|i| sum[i] + block[i]));
        let targets = targets.max(1.0);
        let loss = sum / targets;
        let accuracy = right / targets;
        let bits = loss / std::f64::consts::LN_2 / self.data.validation_bytes_per_token();
        let values = vec![("loss", loss), ("perplexity", perplexity(loss)), ("masked_accuracy", accuracy), ("bits_per_byte", bits)];
        Ok(Some(Evaluation {
            record: Record { step: 0, split: "valid", values },
            score: Some(-loss),
            text: format!(
                "validation perplexity {:.2}, masked accuracy {accuracy:.3} (unigram {:.1})",
                perplexity(loss),
                perplexity(self.unigram_loss)
            ),
        }))
    }

    fn keeps_best(&self) -> bool {
        false
    }
}

/// Pretrains one model.
pub fn run(mut config: Config, origins: &Origins, start: Start) -> Result<Finished> {
    let device = setup::device(&config, origins, &start.world)?;
    let parent = Parent::find(&config)?;
    if let Some(parent) = &parent {
        config.model = parent.merge_model(&config.model, origins)?;
    }
    let tokenizer = parent.as_ref().map(|o| o.tokenizer.as_path());
    let prepared = start.world.first_then_others("prepared", || anyhow::Ok(prepare(&config.data, tokenizer)?))?;
    setup::resolve_model(&mut config, origins, &prepared.tokenizer)?;
    let hashes = json!({"train": prepared.meta.train_sha256, "validation": prepared.meta.validation_sha256});
    let inputs = setup::inputs(&config, &prepared.tokenizer, hashes, parent.as_ref())?;
    let data = MlmData::new(prepared, &config)?;
    let folder = setup::open_folder(&config, &start, &inputs, config.train.max_steps)?;
    if let Some(summary) = folder.done {
        return Ok(Finished::Done(summary));
    }
    let mut parameters = Parameters::new(config.train.seed, device);
    let task = MaskedLm::new(data, &config, &mut parameters).among(&start.world);
    let mut warnings = Vec::new();
    if let Some(parent) = parent.as_ref().filter(|_| config.run.init_weights) {
        if parent.has_masked_lm_head()? {
            parent.load(&parameters, Select::All)?;
        } else {
            parent.load(&parameters, Select::Encoder)?;
            warnings.push(format!("run.init_from: {} has no masked-LM head: it starts from random weights", parent.run.display()));
        }
    }
    setup::load_projections(&config, &parameters)?;
    let job = Job {
        config: &config,
        start: &start,
        folder,
        task: &task,
        parameters: &parameters,
        tokenizer: &task.data.prepared().tokenizer,
        warnings,
        total_steps: config.train.max_steps,
        flops_per_token: {
            let masked = config.data.mask_probability;
            let made = task.encoder.share_made(masked, task.kind, task.device);
            forward_flops_per_token(&config.model, config.data.sequence_length, masked, made)
        },
    };
    job.run(|outcome, progress| {
        let summary = summary(&start.name, &config, &task, &parameters, outcome)?;
        warn_on_plateau(&summary, progress);
        Ok(summary)
    })
}

/// The validation loss of a pretrained model, as JSON: of its own corpus, or of the corpus that the config file `other` describes.
/// None: broken off.
pub fn evaluate(model: &Path, mut config: Config, origins: &Origins, other: Option<&Path>, interrupt: &Interrupt) -> Result<Option<Value>> {
    let parent = Parent::open(model)?;
    if let Some(other) = other {
        config.data = load::load(other, &[])?.0.data;
    }
    if config.data.corpus.as_ref().is_none_or(|corpus| corpus.paths().is_empty()) {
        bail!("{}: no corpus to evaluate on; give a config file that has data.corpus", other.unwrap_or(model).display());
    }
    if !parent.has_masked_lm_head()? {
        bail!("{}: it has no masked-LM head, so there is no perplexity", model.display());
    }
    let device = setup::device(&config, origins, &World::default())?;
    config.model = parent.model.clone();
    let prepared = prepare_with(&parent.tokenizer, &config.data)?;
    setup::resolve_model(&mut config, origins, &prepared.tokenizer)?;
    let (corpus, meta) = (config.data.corpus.clone(), prepared.meta.clone());
    let mut parameters = Parameters::uninitialised(device);
    let task = MaskedLm::new(MlmData::new(prepared, &config)?, &config, &mut parameters);
    parent.load(&parameters, Select::All)?;
    let Some(evaluation) = task.evaluate(interrupt)? else { return Ok(None) };
    let record = &evaluation.record;
    Ok(Some(json!({
        "corpus": corpus,
        "checkpoint": parent.place(),
        "splits": { "validation": {
            "sequences": task.data.validation_sequences(),
            "sequence_length": config.data.sequence_length,
            "loss": record.get("loss"),
            "perplexity": record.get("perplexity"),
            "masked_accuracy": record.get("masked_accuracy"),
            "bits_per_byte": record.get("bits_per_byte"),
            "unigram_perplexity": perplexity(task.unigram_loss),
            "data_sha256": meta.validation_sha256,
        } },
    })))
}

fn summary(name: &str, config: &Config, task: &MaskedLm, parameters: &Parameters, outcome: &Outcome) -> Result<Value> {
    let evaluation = match outcome.last.clone() {
        Some(evaluation) => evaluation,
        None => task.evaluate(&Interrupt::default())?.context("the evaluation was broken off")?,
    };
    let meta = &task.data.prepared().meta;
    Ok(json!({
        "kind": "pretrain",
        "name": name,
        "model": setup::model_summary(&config.model, parameters),
        "seed": config.train.seed,
        "steps": outcome.state.step,
        "total_steps": config.train.max_steps,
        "tokens": outcome.state.tokens,
        "epochs": outcome.state.tokens as f64 / meta.train.tokens as f64,
        "seconds": outcome.state.seconds,
        "tokens_per_second": setup::tokens_per_second(&outcome.state),
        "precision": config.train.precision,
        "loss": evaluation.record.get("loss"),
        "perplexity": evaluation.record.get("perplexity"),
        "masked_accuracy": evaluation.record.get("masked_accuracy"),
        "bits_per_byte": evaluation.record.get("bits_per_byte"),
        "unigram_perplexity": perplexity(task.unigram_loss),
        "data_sha256": meta.train_sha256,
    }))
}

fn warn_on_plateau(summary: &Value, progress: &Progress) {
    let (loss, unigram) = (summary["loss"].as_f64().unwrap_or(0.0), summary["unigram_perplexity"].as_f64().unwrap_or(1.0).ln());
    if loss > unigram - PLATEAU_MARGIN {
        progress
            .warn("the model has not left the unigram plateau: it uses no context yet; train longer, or see \"Short runs\" in the README");
    }
}
