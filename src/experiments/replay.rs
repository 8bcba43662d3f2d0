//! A step whose numbers were not finite, once more, module by module.

use crate::config::{Config, Precision};
use crate::data::batch::{MlmBatch, TaskBatch};
use crate::data::tasks::layout::segments;
use crate::data::tokenizer::Tokenizer;
use crate::model::loss::{cross_entropy_sum, squared_error_sum};
use crate::model::watch::{Seen, Watch};
use crate::model::weights::Select;
use crate::model::{ClassificationHead, Encoder, Input, MaskedLmHead, Parameters, Pass};
use crate::native::panics::catch;
use crate::table::align;
use crate::train::checkpoint::{step_name, Checkpoint};
use crate::train::health::Incident;
use crate::train::run::read_config;
use crate::train::trainer::kind_of;
use anyhow::{bail, Context, Result};
use serde::de::DeserializeOwned;
use std::path::Path;
use tch::{Device, Tensor};

/// The mean loss of a batch as a pass over the model.
type Forward = Box<dyn Fn(&Pass) -> Result<Tensor>>;

/// The batch of `incident` through the weights of its checkpoint, as a table of modules and one of gradients.
pub fn run(incident: &Path, precision: Option<Precision>) -> Result<String> {
    let text = std::fs::read_to_string(incident).with_context(|| incident.display().to_string())?;
    let recorded: Incident = serde_json::from_str(&text).with_context(|| format!("{}: not a nonfinite-STEP.json", incident.display()))?;
    let run = incident.parent().unwrap_or(Path::new("."));
    let mut config = read_config(run)?;
    config.train.precision = precision.unwrap_or(config.train.precision);
    let checkpoint = Checkpoint::open(&run.join("checkpoints").join(step_name(recorded.step)))
        .context("the checkpoint of that step is needed: it holds the weights that the batch met")?;
    let mut parameters = Parameters::uninitialised(Device::Cpu);
    let watch = Watch::default();
    let batch = |e| anyhow::Error::from(e).context(format!("{}: batch", incident.display()));
    let forward: Forward = if config.data.task.is_some() {
        let tokenizer = Tokenizer::load(&run.join("tokenizer.json"))?;
        let segments = segments(&config.model, &tokenizer);
        finetune(&config, &mut parameters, &checkpoint, segments, parse(recorded.batch).map_err(batch)?)?
    } else {
        pretrain(&config, &mut parameters, parse(recorded.batch).map_err(batch)?)
    };
    checkpoint.weights()?.load_into(&parameters, Select::All)?;
    parameters.trainable().for_each(|p| drop(p.tensor.shallow_clone().set_requires_grad(true)));
    let pass = Pass::training(kind_of(config.train.precision), config.train.seed, recorded.step, 0);
    let loss = catch(|| {
        let loss = forward(&pass.watched(&watch))?;
        loss.backward();
        Ok::<f64, anyhow::Error>(loss.double_value(&[]))
    })?;
    let gradients: Vec<Seen> =
        parameters.trainable().map(|p| (&p.name, p.tensor.grad())).filter(|(_, g)| g.defined()).map(|(n, g)| Seen::new(n, &g)).collect();
    let first = watch.first_bad().map_or("every module's output is finite".to_string(), |s| format!("first not finite: {}", s.module));
    let other_mask = match config.run.device.starts_with("cuda") && config.model.hidden_dropout_prob > 0.0 {
        true => "; on the CPU: what dropout took away is not what it took on the GPU",
        false => "",
    };
    Ok(format!(
        "step {}, recorded: {} in {}; {}: loss {loss}, {first}{other_mask}\n\n{}\n{}",
        recorded.step,
        recorded.what,
        recorded.place,
        config.train.precision,
        table("output of", &watch.seen()),
        table("gradient of", &gradients)
    ))
}

fn parse<T: DeserializeOwned>(batch: serde_json::Value) -> serde_json::Result<T> {
    serde_json::from_value(batch)
}

/// The whole batch in one forward pass on the CPU: dropout does not depend on the cut into micro-batches there.
fn pretrain(config: &Config, parameters: &mut Parameters, batch: MlmBatch) -> Forward {
    let encoder = Encoder::new(parameters, &config.model);
    let head = MaskedLmHead::new(parameters, &config.model, encoder.word_embeddings());
    let smoothing = config.train.label_smoothing;
    Box::new(move |pass| {
        let tensors = batch.tensors(0..batch.sequences(), Device::Cpu);
        let hidden = encoder.forward_at(&Input { ids: tensors.ids, attention_mask: tensors.attention_mask }, &tensors.positions, pass)?;
        Ok(head.loss(&hidden, &tensors.targets, smoothing, pass)? / batch.targets.len().max(1) as f64)
    })
}

fn finetune(
    config: &Config,
    parameters: &mut Parameters,
    checkpoint: &Checkpoint,
    segments: Option<u32>,
    batch: TaskBatch,
) -> Result<Forward> {
    let outputs = checkpoint.weights()?.tensor("classifier.out_proj.bias", None)?.size()[0];
    let encoder = Encoder::new(parameters, &config.model).with_segments(segments);
    let head = ClassificationHead::new(parameters, &config.model, outputs);
    let (smoothing, rows) = (config.train.label_smoothing, batch.examples.len());
    if rows == 0 {
        bail!("the batch is empty");
    }
    let regression = outputs == 1;
    Ok(Box::new(move |pass| {
        let tensors = batch.tensors(0..rows, regression, Device::Cpu);
        let hidden = encoder.forward_first(&Input { ids: tensors.ids, attention_mask: Some(tensors.attention_mask) }, pass)?;
        let logits = head.forward(&hidden, pass)?;
        let sum =
            if regression { squared_error_sum(&logits, &tensors.labels) } else { cross_entropy_sum(&logits, &tensors.labels, smoothing) };
        Ok(sum / rows as f64)
    }))
}

fn table(title: &str, rows: &[Seen]) -> String {
    let header = [title, "shape", "not finite", "largest"].map(str::to_string).to_vec();
    let row = |s: &Seen| vec![s.module.clone(), format!("{:?}", s.shape), s.bad.to_string(), format!("{:.4e}", s.largest)];
    align(std::iter::once(header).chain(rows.iter().map(row)).collect())
}
