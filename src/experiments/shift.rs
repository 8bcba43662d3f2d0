//! How bound to positions is a model? (asked of the paper, which never asked)
//!
//! Every sequence is moved to the right by s places, with padding in front, and asked for the same masked tokens. Positions are
//! counted from the first real token, as RoBERTa counts them, so that to attention nothing has changed: with full attention
//! the loss stays what it was. A matrix E over places sees its columns slip by s.

use super::probe::{Sequences, Source, Subject};
use super::Finished;
use crate::durable::replace;
use crate::eval::statistics::{Estimate, Test};
use crate::log::plot::{Chart, LineChart, Series};
use crate::model::{Input, Pass};
use crate::table::align;
use crate::train::run::environment_at_end;
use anyhow::{bail, Context, Result};
use serde_json::{json, Value};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    pub models: Vec<PathBuf>,
    pub source: Source,
    /// Places to move by; 0 is always among them.
    pub by: Vec<i64>,
    pub out: PathBuf,
}

/// Sequences of a forward pass.
const BATCH: usize = 16;

/// Mean loss in nats of each sequence, moved by `by` places within n.
fn losses(subject: &Subject, sequences: &Sequences, by: i64) -> Result<Vec<f64>> {
    let _guard = tch::no_grad_guard();
    let Some(head) = &subject.head else { bail!("{}: no masked-LM head", subject.name) };
    let n = subject.model.sequence_length();
    let (pad, by) = (i64::from(subject.tokenizer.special.pad), by as usize);
    let mut all = Vec::new();
    for (ids, targets) in sequences.ids.chunks(BATCH).zip(sequences.targets.chunks(BATCH)) {
        let (mut flat, mut mask, mut places, mut tokens) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (ids, targets) in ids.iter().zip(targets) {
            let first = flat.len();
            places.extend(targets.iter().map(|t| (first + by + t.position) as i64));
            tokens.extend(targets.iter().map(|t| i64::from(t.token)));
            let real = |place: usize| place.checked_sub(by).and_then(|i| ids.get(i));
            flat.extend((0..n as usize).map(|place| real(place).map_or(pad, |id| i64::from(*id))));
            mask.extend((0..n as usize).map(|place| i64::from(real(place).is_some())));
        }
        let shaped = |values: &[i64]| Tensor::from_slice(values).view([ids.len() as i64, n]).to_device(subject.device);
        let input = Input { ids: shaped(&flat), attention_mask: Some(shaped(&mask)) };
        let (places, tokens) =
            (Tensor::from_slice(&places).to_device(subject.device), Tensor::from_slice(&tokens).to_device(subject.device));
        let hidden = subject.encoder.forward_at(&input, &places, &Pass::evaluation(Kind::Float))?;
        let logits = head.forward(&hidden)?.to_kind(Kind::Float);
        let nats = -logits.log_softmax(-1, Kind::Double).gather(1, &tokens.unsqueeze(1), false).squeeze_dim(1);
        let mut first = 0;
        for targets in targets.iter().filter(|t| !t.is_empty()) {
            let count = targets.len() as i64;
            all.push(nats.narrow(0, first, count).mean(Kind::Double).double_value(&[]));
            first += count;
        }
    }
    Ok(all)
}

/// Measures every model, writes table, JSON and plot into `out`, and gives the table as text.
pub fn run(options: &Options) -> Result<(String, Finished)> {
    let furthest = options.by.iter().copied().max().unwrap_or(0);
    if options.by.iter().any(|s| *s < 0) {
        bail!("--by: expected numbers of at least 0");
    }
    let mut models = Vec::new();
    for model in &options.models {
        let subject = Subject::open_masked_lm(model)?;
        let n = subject.model.sequence_length();
        let length = options.source.length.unwrap_or(n - furthest);
        if length + furthest > n {
            bail!("--by: {length} tokens moved by {furthest} do not fit the model's n = {n}");
        }
        let sequences = subject.sequences(&Source { length: Some(length), ..options.source.clone() })?;
        let at_home = losses(&subject, &sequences, 0)?;
        let mut moved = Vec::new();
        for by in &options.by {
            let there = losses(&subject, &sequences, *by)?;
            let difference = Estimate::of(&there.iter().zip(&at_home).map(|(a, b)| a - b).collect::<Vec<_>>());
            moved.push(json!({"by": by, "loss": Estimate::of(&there), "difference": difference, "test": Test::paired(&there, &at_home)}));
        }
        models.push(json!({"name": subject.name, "checkpoint": subject.checkpoint, "attention": subject.model.attention, "n": n,
            "looked_at": sequences.looked, "loss": Estimate::of(&at_home), "moved": moved}));
    }
    let record = json!({"kind": "shift", "environment": environment_at_end("cpu"), "models": models});
    let out = &options.out;
    std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let save = |name: &str, text: &str| replace(&out.join(name), text.as_bytes()).with_context(|| out.join(name).display().to_string());
    save("shift.json", &(serde_json::to_string_pretty(&record)? + "\n"))?;
    let text = draw(&record, out)?;
    save("table.txt", &text)?;
    Ok((text, Finished::Done(record)))
}

/// The plot, and the table as text: everything from the record alone.
pub fn draw(record: &Value, out: &Path) -> Result<String> {
    plot(record).render(&out.join("shift"))?;
    Ok(table(record))
}

/// Loss against the shift.
pub fn plot(record: &Value) -> LineChart {
    let series = |model: &Value| {
        let moved = || model["moved"].as_array().into_iter().flatten();
        let points = moved().filter_map(|m| m["by"].as_f64().zip(m["loss"]["mean"].as_f64())).collect();
        Series::marked(model["name"].as_str().unwrap_or_default(), points)
    };
    LineChart {
        title: "The same text, moved".into(),
        x: "places moved to the right".into(),
        y: "loss in nats".into(),
        log_x: false,
        log_y: false,
        series: record["models"].as_array().into_iter().flatten().map(series).collect(),
    }
}

/// One line a model and shift.
pub fn table(record: &Value) -> String {
    let header = ["model", "moved by", "loss", "more than unmoved", "p"].map(str::to_string).to_vec();
    let estimate = |v: &Value, digits| serde_json::from_value::<Estimate>(v.clone()).map_or("-".into(), |e| e.text(digits));
    let mut rows = vec![header];
    for model in record["models"].as_array().into_iter().flatten() {
        for moved in model["moved"].as_array().into_iter().flatten() {
            rows.push(vec![
                model["name"].as_str().unwrap_or_default().into(),
                moved["by"].to_string(),
                estimate(&moved["loss"], 4),
                estimate(&moved["difference"], 5),
                moved["test"]["p"].as_f64().map_or("-".into(), |p| format!("{p:.1e}")),
            ]);
        }
    }
    let looked = &record["models"][0]["looked_at"];
    align(rows)
        + &format!(
            "{} sequences of {} tokens from {}; mean ± standard error over sequences, in nats.\n",
            record["models"][0]["loss"]["count"],
            looked["length"],
            looked["text"].as_str().unwrap_or_default()
        )
}
