//! The model card of an export: what the model is and what it reached, from the run's own files.

use super::export::Trained;
use super::names::Family;
use super::Head;
use crate::config::{AttentionKind, Model, Norm};
use crate::train::run::read_summary;
use serde_json::Value;
use std::fmt::Write as _;

/// `README.md` in Markdown with the front matter of the Hub.
pub fn text(trained: &Trained, architecture: &str, head: &Head, family: Family) -> String {
    let model = &trained.config.model;
    let summary = read_summary(trained.run).unwrap_or_default();
    let name = trained.run.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_else(|| "model".into());
    let mut out = front_matter(model, head, &summary);
    let _ = writeln!(out, "# {name}\n\n{}\n", introduction(model, head));
    use_it(&mut out, architecture, head, family);
    table(&mut out, "Model", shape(model));
    table(&mut out, "Training", training(trained, &summary));
    table(&mut out, "Results", results(&summary));
    if let Some(origin) = origin(trained) {
        let _ = writeln!(out, "## Origin\n\n{origin}\n");
    }
    limits(&mut out, model, head);
    out
}

fn front_matter(model: &Model, head: &Head, summary: &Value) -> String {
    let pipeline = match head {
        Head::MaskedLm => "fill-mask",
        Head::Classification { .. } | Head::Regression => "text-classification",
        Head::None => "feature-extraction",
    };
    let tag = if model.attention.kind == AttentionKind::Linformer { "linformer" } else { "roberta" };
    let mut out = format!("---\nlibrary_name: transformers\npipeline_tag: {pipeline}\ntags:\n- {tag}\n");
    if let Some(task) = summary["task"].as_str() {
        let _ = writeln!(out, "- {task}");
    }
    out + "---\n\n"
}

fn introduction(model: &Model, head: &Head) -> String {
    let encoder = match model.attention.kind {
        AttentionKind::Full => "A RoBERTa encoder with full attention".to_string(),
        AttentionKind::Linformer => format!(
            "A Linformer (Wang et al., 2020, arXiv 2006.04768): a RoBERTa encoder whose attention compresses keys and values from n = {} to k = {}",
            model.sequence_length(),
            model.attention.k.summary()
        ),
    };
    format!("{encoder}, with {}.", if *head == Head::None { "no head".into() } else { format!("a {}", head.describe()) })
}

fn use_it(out: &mut String, architecture: &str, head: &Head, family: Family) {
    let auto = match head {
        Head::None => "AutoModel",
        Head::MaskedLm => "AutoModelForMaskedLM",
        Head::Classification { .. } | Head::Regression => "AutoModelForSequenceClassification",
    };
    let remote = if family == Family::Linformer { ", trust_remote_code=True" } else { "" };
    let _ = writeln!(
        out,
        "```python\nfrom transformers import AutoTokenizer, {auto}\n\ntokenizer = AutoTokenizer.from_pretrained(FOLDER)\nmodel = {auto}.from_pretrained(FOLDER{remote})\n```\n"
    );
    if family == Family::Linformer {
        let _ = writeln!(out, "`{architecture}` is in `modeling_linformer.py` beside this file; read it before you trust it.\n");
    }
}

type Rows = Vec<(&'static str, String)>;

fn table(out: &mut String, title: &str, rows: Rows) {
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(out, "## {title}\n\n| | |\n|---|---|");
    for (name, value) in rows {
        let _ = writeln!(out, "| {name} | {value} |");
    }
    out.push('\n');
}

fn shape(model: &Model) -> Rows {
    let mut rows = vec![
        ("layers", model.num_hidden_layers.to_string()),
        ("heads", model.num_attention_heads.to_string()),
        ("hidden size", model.hidden_size.to_string()),
        ("intermediate size", model.intermediate_size.to_string()),
        ("longest text n", format!("{} tokens", model.sequence_length())),
        ("vocabulary", model.vocabulary().to_string()),
    ];
    if model.norm == Norm::Pre {
        rows.push(("LayerNorm", "before each block".into()));
    }
    if model.attention.kind == AttentionKind::Linformer {
        let attention = &model.attention;
        rows.push(("projected dimension k", attention.k.summary()));
        rows.push(("sharing of E and F", attention.sharing.to_string()));
        rows.push(("projection", attention.projection.to_string()));
    }
    rows
}

/// Nothing for a model that no run here has trained.
fn training(trained: &Trained, summary: &Value) -> Rows {
    let (train, data, state) = (&trained.config.train, &trained.config.data, &trained.checkpoint.state);
    if state.step == 0 {
        return Vec::new();
    }
    let mut rows = vec![
        ("steps", format!("{} (checkpoint), {} in all", state.step, summary["total_steps"].as_u64().unwrap_or(train.max_steps))),
        ("tokens", state.tokens.to_string()),
        ("seconds", format!("{:.0}", state.seconds)),
        ("sequences per step", train.batch_size.to_string()),
        ("sequence length", data.sequence_length.to_string()),
        (
            "optimizer",
            format!(
                "{}, learning rate {}, {} steps of warm-up, then {}",
                train.optimizer, train.learning_rate, train.warmup_steps, train.schedule
            ),
        ),
        ("weight decay", train.weight_decay.to_string()),
        ("precision", train.precision.to_string()),
        ("seed", train.seed.to_string()),
    ];
    if let Some(corpus) = &data.corpus {
        let paths: Vec<String> = corpus.paths().iter().map(|p| format!("`{}`", p.display())).collect();
        rows.push(("corpus", format!("{}, {} of the tokens masked", paths.join(", "), data.mask_probability)));
    }
    if let Some(parent) = trained.config.run.init_from.as_ref().filter(|_| trained.config.run.init_weights) {
        rows.push(("started from", format!("`{}`", parent.display())));
    }
    let environment = std::fs::read_to_string(trained.run.join("environment.json")).unwrap_or_default();
    let environment: Value = serde_json::from_str(&environment).unwrap_or_default();
    for (name, key) in
        [("device", "device"), ("processor", "cpu"), ("libtorch", "libtorch"), ("program", "version"), ("revision", "git_revision")]
    {
        rows.extend(environment[key].as_str().map(|value| (name, value.to_string())));
    }
    rows
}

/// What the run's summary measured; of a run that was not finished, nothing.
fn results(summary: &Value) -> Rows {
    let number = |name: &'static str, key: &str| summary[key].as_f64().map(|v| (name, format!("{v:.4}")));
    let mut rows: Rows = [
        number("validation loss (nats)", "loss"),
        number("validation perplexity", "perplexity"),
        number("masked accuracy", "masked_accuracy"),
        number("bits per byte", "bits_per_byte"),
        number("perplexity of unigram frequencies", "unigram_perplexity"),
    ]
    .into_iter()
    .flatten()
    .collect();
    if let Some(task) = summary["task"].as_str() {
        rows.push(("task", task.into()));
        rows.extend(
            summary["metric"].as_str().zip(summary["value"].as_f64()).map(|(metric, value)| ("best score", format!("{metric} {value:.4}"))),
        );
        rows.extend(summary["majority"].as_f64().map(|v| ("accuracy of the commonest label", format!("{v:.4}"))));
        rows.extend(
            ["train_rows", "dev_rows"]
                .iter()
                .zip(["training rows", "scored rows"])
                .filter_map(|(key, name)| Some((name, summary[*key].as_u64()?.to_string()))),
        );
    }
    rows
}

/// An imported model says where it is from.
fn origin(trained: &Trained) -> Option<String> {
    let report: Value = serde_json::from_str(&std::fs::read_to_string(trained.run.join("import.json")).ok()?).ok()?;
    let notes: Vec<String> = report["notes"].as_array()?.iter().filter_map(|n| Some(format!("- {}", n.as_str()?))).collect();
    Some(format!("Imported from {}.\n\n{}", report["description"].as_str()?, notes.join("\n")))
}

fn limits(out: &mut String, model: &Model, head: &Head) {
    let n = model.sequence_length();
    let _ = writeln!(out, "## Limits\n\n- Texts of more than {n} tokens have to be cut.");
    if model.attention.kind == AttentionKind::Linformer {
        let _ = writeln!(out, "- Not for causal use: every compressed row mixes all positions.");
    }
    if *head != Head::MaskedLm && head.outputs() == 0 {
        let _ = writeln!(out, "- Hidden states only: a pooler or head that `transformers` adds starts at random.");
    }
}
