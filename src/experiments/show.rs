//! The first examples of a config as the model sees them.

use super::finetune::{task_of, tokenizer};
use super::parent::Parent;
use crate::config::{Config, Origins};
use crate::data::loader::Batches;
use crate::data::prepare;
use crate::data::pretraining::MlmData;
use crate::data::tasks::prepared::{self, Settings};
use crate::data::tokenizer::Tokenizer;
use anyhow::Result;
use std::fmt::Write;

/// The first `count` training rows of a task, or sequences of a corpus with their masks.
pub fn run(config: Config, origins: &Origins, count: usize) -> Result<String> {
    match config.data.task.is_some() {
        true => task(config, origins, count),
        false => corpus(config, count),
    }
}

fn task(mut config: Config, origins: &Origins, count: usize) -> Result<String> {
    let spec = task_of(&mut config)?;
    let parent = Parent::find(&config)?;
    let tokenizer = tokenizer(&config, origins, parent.as_ref())?;
    if let Some(parent) = &parent {
        config.model = parent.merge_model(&config.model, origins)?;
    }
    let rows = prepared::prepare(&spec, &tokenizer, &Settings::new(&config, &tokenizer))?.train;
    let mut text = format!("{}: {} rows, {} tokens at most\n", spec.name, rows.len(), config.data.sequence_length);
    for row in 0..count.min(rows.len()) {
        let example = rows.example(row);
        let label = match spec.is_regression() {
            true => example.label.to_string(),
            false => format!("{} ({})", spec.labels[example.label as usize], example.label),
        };
        let _ = writeln!(text, "\nrow {row}, label {label}, {} tokens", example.ids.len());
        sequence(&mut text, &tokenizer, &example.ids)?;
        let _ = writeln!(text, "mask    {}", vec!["1"; example.ids.len()].join(" "));
    }
    Ok(text)
}

fn corpus(config: Config, count: usize) -> Result<String> {
    let given = Parent::tokenizer_of(&config)?;
    let data = MlmData::new(prepare::prepare(&config.data, given.as_deref())?, &config)?;
    let batch = data.batch(1);
    let tokenizer = &data.prepared().tokenizer;
    let n = batch.length();
    let mut text = format!("step 1: {} sequences of {n} tokens\n", batch.sequences());
    for (number, ids) in batch.ids.chunks(n).take(count).enumerate() {
        let ids: Vec<u32> = ids.iter().map(|id| *id as u32).collect();
        let here = number * n..(number + 1) * n;
        let targets: Vec<(usize, u32)> = batch
            .positions
            .iter()
            .zip(&batch.targets)
            .filter(|(p, _)| here.contains(&(**p as usize)))
            .map(|(p, t)| (*p as usize - here.start, *t as u32))
            .collect();
        let _ = writeln!(text, "\nsequence {number}, {} of {n} tokens to predict", targets.len());
        sequence(&mut text, tokenizer, &ids)?;
        let target = |(at, id): &(usize, u32)| Ok(format!("{at}:{}", word(tokenizer, *id)?));
        let _ = writeln!(text, "targets {}", targets.iter().map(target).collect::<Result<Vec<_>>>()?.join(" "));
    }
    Ok(text)
}

fn sequence(text: &mut String, tokenizer: &Tokenizer, ids: &[u32]) -> Result<()> {
    let _ = writeln!(text, "text    {:?}", tokenizer.decode(ids)?);
    let words = ids.iter().map(|id| word(tokenizer, *id)).collect::<Result<Vec<_>>>()?;
    let _ = writeln!(text, "tokens  {}", words.join(" "));
    let _ = writeln!(text, "ids     {}", ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "));
    Ok(())
}

/// One token as a quoted string.
fn word(tokenizer: &Tokenizer, id: u32) -> Result<String> {
    Ok(format!("{:?}", tokenizer.decode(&[id])?))
}
