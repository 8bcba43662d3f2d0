//! What a Hugging Face `config.json` describes, or why this program would compute something else.
//!
//! Keys that the file leaves out have the defaults of `transformers`, not ours.

use super::names::Family;
use super::source::{read_json, Source};
use super::{ExchangeError, Head};
use crate::config::validate::is_label;
use crate::config::{Attention, AttentionKind, HiddenAct, Model, Origins};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// A checkpoint's model.
#[derive(Clone, Debug)]
pub struct Description {
    pub family: Family,
    /// `RobertaForMaskedLM` and the like; empty if the file does not say.
    pub architecture: String,
    pub model: Model,
    pub head: Head,
}

/// Model types that are RoBERTa under another name and another tokenizer.
const ROBERTA_TYPES: [&str; 3] = ["roberta", "xlm-roberta", "camembert"];
/// Why a neighbour of RoBERTa's is not taken.
const REFUSED_TYPES: [(&str, &str); 9] = [
    ("roberta-prelayernorm", "its LayerNorm stands before each block and has other names"),
    ("xlm-roberta-xl", "its LayerNorm stands before each block and has other names"),
    ("albert", "its layers share their weights and its embeddings are factorised"),
    ("distilbert", "its layers have other names and no token types"),
    ("deberta", "its attention uses relative positions"),
    ("deberta-v2", "its attention uses relative positions"),
    ("electra", "its embeddings have a width of their own"),
    ("mpnet", "its attention uses relative positions"),
    ("modernbert", "its positions are rotations and its feed-forward layers are gated"),
];

/// No size and no id is larger.
const LARGEST: i64 = 1 << 32;

struct Keys {
    path: PathBuf,
    map: Map<String, Value>,
}

impl Keys {
    fn error(&self, key: &str, message: impl Into<String>) -> ExchangeError {
        ExchangeError::Key { path: self.path.clone(), key: key.into(), message: message.into() }
    }

    /// The key's value, or `default` where it is absent or null.
    fn get<T: DeserializeOwned>(&self, key: &str, default: T, expected: &str) -> Result<T, ExchangeError> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => {
                serde_json::from_value(value.clone()).map_err(|_| self.error(key, format!("found {value}, expected {expected}")))
            }
        }
    }

    /// A size or an id; no model has larger ones, and sums of them stay numbers.
    fn whole(&self, key: &str, default: i64) -> Result<i64, ExchangeError> {
        let found = self.get(key, default, "a whole number")?;
        match (0..=LARGEST).contains(&found) {
            true => Ok(found),
            false => Err(self.error(key, format!("found {found}, expected 0 to {LARGEST}"))),
        }
    }

    fn number(&self, key: &str, default: f64) -> Result<f64, ExchangeError> {
        self.get(key, default, "a number")
    }

    fn text(&self, key: &str, default: &str) -> Result<String, ExchangeError> {
        self.get(key, default.to_string(), "a string")
    }
}

/// Reads `config.json` of the checkpoint's folder; the heads are those that its architecture names and its weights have.
pub fn describe(folder: &Path, source: &Source) -> Result<Description, ExchangeError> {
    let path = folder.join("config.json");
    let keys = Keys { map: read_json(&path)?, path };
    let architecture = keys.get("architectures", Vec::<String>::new(), "a list of names")?.into_iter().next().unwrap_or_default();
    let family = family(&keys, &architecture)?;
    refuse_other_computations(&keys)?;
    let model = match family {
        Family::Linformer => own_model(&keys)?,
        _ => model(&keys, family)?,
    };
    let head = head(&keys, family, &architecture, source)?;
    if (family, &head, model.hidden_act) == (Family::Roberta, &Head::MaskedLm, HiddenAct::Relu) {
        return Err(keys.error("hidden_act", "found relu: RoBERTa's masked-LM head uses gelu all the same, ours would use relu"));
    }
    model.validate(&Origins::default(), model.sequence_length()).map_err(|e| ExchangeError::config(&keys.path, e))?;
    Ok(Description { family, architecture, model, head })
}

fn family(keys: &Keys, architecture: &str) -> Result<Family, ExchangeError> {
    // The first files have no model_type.
    let by_name = ["Roberta", "Bert"].iter().find(|name| architecture.starts_with(**name)).map_or("", |name| *name);
    let model_type = keys.text("model_type", &by_name.to_lowercase())?;
    if let Some((_, why)) = REFUSED_TYPES.iter().find(|(name, _)| *name == model_type) {
        return Err(keys.error("model_type", format!("found {model_type}, expected roberta or bert: {why}")));
    }
    match model_type.as_str() {
        "bert" => Ok(Family::Bert),
        "linformer" => Ok(Family::Linformer),
        roberta if ROBERTA_TYPES.contains(&roberta) => Ok(Family::Roberta),
        "" => Err(keys.error("model_type", "is missing, expected roberta or bert")),
        other => Err(keys.error(
            "model_type",
            format!("found {other}, expected roberta, xlm-roberta, camembert, bert or linformer: this program has no other encoder"),
        )),
    }
}

/// Keys with which the same weights mean another function.
fn refuse_other_computations(keys: &Keys) -> Result<(), ExchangeError> {
    let positions = keys.text("position_embedding_type", "absolute")?;
    if positions != "absolute" {
        return Err(
            keys.error("position_embedding_type", format!("found {positions}, expected absolute: this encoder has no relative positions"))
        );
    }
    for (key, why) in [
        ("is_decoder", "attention here sees both sides"),
        ("add_cross_attention", "there is no cross-attention here"),
        ("is_encoder_decoder", "this is an encoder alone"),
    ] {
        if keys.get(key, false, "true or false")? {
            return Err(keys.error(key, format!("found true, expected false: {why}")));
        }
    }
    if keys.map.get("quantization_config").is_some_and(|q| !q.is_null()) {
        return Err(keys.error("quantization_config", "the weights are quantised, expected fp32, fp16 or bf16"));
    }
    if keys.map.get("pruned_heads").and_then(Value::as_object).is_some_and(|heads| !heads.is_empty()) {
        return Err(keys.error("pruned_heads", "heads were pruned, expected every layer with all of its heads"));
    }
    Ok(())
}

fn model(keys: &Keys, family: Family) -> Result<Model, ExchangeError> {
    let bert = family == Family::Bert;
    let act = keys.text("hidden_act", "gelu")?;
    let hidden_act = match act.as_str() {
        "gelu" => HiddenAct::Gelu,
        "relu" => HiddenAct::Relu,
        other => return Err(keys.error("hidden_act", format!("found {other}, expected gelu (the exact one) or relu"))),
    };
    let pad_token_id = keys.whole("pad_token_id", i64::from(!bert))?;
    let hidden_size = keys.whole("hidden_size", 768)?;
    if keys.whole("embedding_size", hidden_size)? != hidden_size {
        return Err(keys.error("embedding_size", format!("is not hidden_size = {hidden_size}, expected embeddings as wide as the layers")));
    }
    let rows = keys.whole("max_position_embeddings", 512)?;
    let positions = rows.saturating_sub(family.first_position(pad_token_id));
    if positions < 1 {
        return Err(
            keys.error("max_position_embeddings", format!("found {rows}, expected more than pad_token_id + 1 = {}", pad_token_id + 1))
        );
    }
    Ok(Model {
        vocab_size: Some(keys.whole("vocab_size", if bert { 30_522 } else { 50_265 })?),
        hidden_size,
        num_hidden_layers: keys.whole("num_hidden_layers", 12)?,
        num_attention_heads: keys.whole("num_attention_heads", 12)?,
        intermediate_size: keys.whole("intermediate_size", 3072)?,
        max_position_embeddings: Some(positions + pad_token_id + 1),
        type_vocab_size: keys.whole("type_vocab_size", 2)?,
        pad_token_id,
        layer_norm_eps: keys.number("layer_norm_eps", 1e-12)?,
        hidden_act,
        hidden_dropout_prob: keys.number("hidden_dropout_prob", 0.1)?,
        attention_probs_dropout_prob: keys.number("attention_probs_dropout_prob", 0.1)?,
        classifier_dropout: keys.get("classifier_dropout", None, "a number or null")?,
        initializer_range: keys.number("initializer_range", 0.02)?,
        attention: Attention { kind: AttentionKind::Full, ..Attention::default() },
        ..Model::default()
    })
}

/// Our own export says our own keys.
fn own_model(keys: &Keys) -> Result<Model, ExchangeError> {
    let known = serde_json::to_value(Model::default()).unwrap_or_default();
    let ours = keys.map.iter().filter(|(name, _)| known.get(name.as_str()).is_some());
    let object: Map<String, Value> = ours.map(|(name, value)| (name.clone(), value.clone())).collect();
    serde_path_to_error::deserialize(Value::Object(object)).map_err(|e| keys.error(&e.path().to_string(), e.inner().to_string()))
}

fn head(keys: &Keys, family: Family, architecture: &str, source: &Source) -> Result<Head, ExchangeError> {
    let is = |ending: &str| architecture.ends_with(ending);
    let has_lm = family.candidates("lm_head.dense.weight").iter().any(|name| source.has(name));
    if is("ForMaskedLM") || is("ForPreTraining") || (architecture.is_empty() && has_lm) {
        return Ok(if has_lm { Head::MaskedLm } else { Head::None });
    }
    if !is("ForSequenceClassification") {
        return Ok(Head::None);
    }
    let last = family.theirs("classifier.out_proj.weight");
    let outputs = source.shape(&last).and_then(|shape| shape.first().copied());
    let outputs = outputs.ok_or_else(|| keys.error("architectures", format!("found {architecture}, but the weights have no {last}")))?;
    let problem = keys.text("problem_type", if outputs == 1 { "regression" } else { "single_label_classification" })?;
    match (problem.as_str(), outputs) {
        ("regression", 1) => Ok(Head::Regression),
        ("single_label_classification", 2..) => Ok(Head::Classification { labels: labels(keys, outputs)? }),
        _ => Err(keys.error(
            "problem_type",
            format!("found {problem} with {outputs} outputs, expected a regression of one number or a single label among two or more"),
        )),
    }
}

/// `id2label` in the order of its ids, or `LABEL_0`, `LABEL_1`, ...
fn labels(keys: &Keys, outputs: i64) -> Result<Vec<String>, ExchangeError> {
    let named: Map<String, Value> = keys.get("id2label", Map::new(), "an object {id: label}")?;
    let label = |id: i64| match named.get(&id.to_string()) {
        Some(Value::String(label)) if !is_label(label) => {
            Err(keys.error("id2label", format!("has {label:?} for {id}, expected text on one line without tabs")))
        }
        Some(Value::String(label)) => Ok(label.clone()),
        None if named.is_empty() => Ok(format!("LABEL_{id}")),
        _ => Err(keys.error("id2label", format!("has no label for {id}; the weights have {outputs} outputs"))),
    };
    let labels = (0..outputs).map(label).collect::<Result<Vec<_>, _>>()?;
    match labels.iter().enumerate().find(|(i, label)| labels[..*i].contains(label)) {
        Some((_, twice)) => Err(keys.error("id2label", format!("has \"{twice}\" twice, expected distinct labels"))),
        None => Ok(labels),
    }
}
