//! A run or a model folder becomes a folder that `transformers` loads: `config.json`, `model.safetensors`, the tokenizer's files
//! and a model card.
//!
//! Full attention is written as RoBERTa (or, if wanted, as BERT) and needs nothing of ours there. What those classes
//! cannot compute, a Linformer first of all, comes with `modeling_linformer.py`, which `trust_remote_code=True` runs.

use super::card;
use super::import::{whole_folder, write_file, write_json};
use super::names::{Family, POSITIONS};
use super::source::is_finite;
use super::{ExchangeError, Head};
use crate::config::{AttentionKind, Config, HiddenAct, Model, Norm};
use crate::data::tasks::layout::segments;
use crate::data::tasks::TaskSpec;
use crate::data::tokenizer::Tokenizer;
use crate::model::weights::{save, WeightsFile};
use crate::train::checkpoint::Checkpoint;
use serde_json::{json, Map, Value};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use tch::{Kind, Tensor};

const MODELING: &str = include_str!("modeling_linformer.py");

/// Arithmetic of the numbers in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Dtype {
    Fp32,
    Fp16,
    Bf16,
}

impl Dtype {
    fn kind(self) -> Kind {
        match self {
            Self::Fp32 => Kind::Float,
            Self::Fp16 => Kind::Half,
            Self::Bf16 => Kind::BFloat16,
        }
    }

    /// As PyTorch calls it.
    fn torch_name(self) -> &'static str {
        match self {
            Self::Fp32 => "float32",
            Self::Fp16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }
}

/// Which classes of `transformers` load a full-attention export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum As {
    Roberta,
    Bert,
}

/// A trained or imported model that is to be written.
pub struct Trained<'a> {
    /// The run's folder.
    pub run: &'a Path,
    pub config: &'a Config,
    pub checkpoint: &'a Checkpoint,
    pub tokenizer: &'a Path,
}

/// What was written.
pub struct Written {
    pub architecture: String,
    pub tensors: usize,
    /// Whether it needs `trust_remote_code`.
    pub remote_code: bool,
}

/// Writes the folder `out`, which must not exist: whole, or not at all.
pub fn export(trained: &Trained, wanted: As, dtype: Dtype, out: &Path) -> Result<Written, ExchangeError> {
    let weights = trained.checkpoint.weights()?;
    let model = &trained.config.model;
    let head = head(trained, &weights)?;
    let family = family(model, &head, wanted);
    let tokenizer = Tokenizer::load(trained.tokenizer)?;
    let architecture = architecture(family, &head);
    let tensors = tensors(trained, &weights, family, &head, dtype)?;
    whole_folder(out, |folder| {
        let path = folder.join("model.safetensors");
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        let described = folder.join("config.json");
        write_json(&described, &config(model, family, &head, &architecture, &tokenizer, dtype))?;
        save(&path, tensors.iter().map(|(name, tensor)| (name.clone(), tensor)), metadata)?;
        sync_like(&path, &described).map_err(ExchangeError::io(&path))?;
        write_tokenizer(folder, trained, &tokenizer)?;
        if family == Family::Linformer {
            write_file(&folder.join("modeling_linformer.py"), MODELING.as_bytes())?;
        }
        let text = card::text(trained, &architecture, &head, family);
        write_file(&folder.join("README.md"), text.as_bytes())
    })?;
    Ok(Written { architecture, tensors: tensors.len(), remote_code: family == Family::Linformer })
}

/// safetensors makes its files for the owner alone: this one gets the mode of its neighbour, and is synced.
fn sync_like(path: &Path, neighbour: &Path) -> io::Result<()> {
    fs::set_permissions(path, fs::metadata(neighbour)?.permissions())?;
    File::open(path)?.sync_all()
}

/// The head that the checkpoint's weights have; labels are those of the run's task.
fn head(trained: &Trained, weights: &WeightsFile) -> Result<Head, ExchangeError> {
    let shapes = weights.shapes()?;
    if shapes.contains_key("lm_head.bias") {
        return Ok(Head::MaskedLm);
    }
    let (Some(task), Some(shape)) = (&trained.config.data.task, shapes.get("classifier.out_proj.weight")) else { return Ok(Head::None) };
    let spec = TaskSpec::find(task, &trained.config.data.task_dir)?;
    match (spec.is_regression(), shape.first()) {
        (true, Some(1)) => Ok(Head::Regression),
        (false, Some(outputs)) if *outputs == spec.labels.len() as i64 => Ok(Head::Classification { labels: spec.labels }),
        _ => Err(ExchangeError::invalid(
            &trained.checkpoint.folder,
            format!("its head has {:?} outputs, but the task {} has {} labels", shape.first(), spec.name, spec.labels.len()),
        )),
    }
}

fn family(model: &Model, head: &Head, wanted: As) -> Family {
    // RoBERTa's masked-LM head knows no activation but gelu.
    let gelu = model.hidden_act == HiddenAct::Gelu || *head != Head::MaskedLm;
    match (model.attention.kind, model.norm, wanted) {
        (AttentionKind::Full, Norm::Post, As::Bert) => Family::Bert,
        (AttentionKind::Full, Norm::Post, As::Roberta) if gelu => Family::Roberta,
        _ => Family::Linformer,
    }
}

fn architecture(family: Family, head: &Head) -> String {
    let name = match family {
        Family::Roberta => "Roberta",
        Family::Bert => "Bert",
        Family::Linformer => "Linformer",
    };
    let head = match head {
        Head::None => "Model",
        Head::MaskedLm => "ForMaskedLM",
        Head::Classification { .. } | Head::Regression => "ForSequenceClassification",
    };
    format!("{name}{head}")
}

/// The weights under the family's names; those of an encoder alone go without its prefix.
fn tensors(
    trained: &Trained,
    weights: &WeightsFile,
    family: Family,
    head: &Head,
    dtype: Dtype,
) -> Result<Vec<(String, Tensor)>, ExchangeError> {
    let _guard = tch::no_grad_guard();
    let pad = trained.config.model.pad_token_id;
    let ours: Vec<String> = weights.shapes()?.into_keys().collect();
    let one = |ours: &String| {
        let mut tensor = weights.tensor(ours, None)?;
        if ours == POSITIONS {
            let first = pad + 1 - family.first_position(pad);
            tensor = tensor.narrow(0, first, tensor.size()[0] - first);
        }
        let theirs = family.theirs(ours);
        let name = match head {
            Head::None => theirs.strip_prefix(family.prefix()).map_or_else(|| theirs.clone(), str::to_string),
            _ => theirs,
        };
        let cast = tensor.to_kind(dtype.kind()).contiguous();
        if is_finite(&tensor) && !is_finite(&cast) {
            let message = format!("{ours} has values that {} cannot hold; use --dtype bf16 or fp32", dtype.torch_name());
            return Err(ExchangeError::invalid(&trained.checkpoint.folder, message));
        }
        Ok((name, cast))
    };
    ours.iter().map(one).collect()
}

fn config(model: &Model, family: Family, head: &Head, architecture: &str, tokenizer: &Tokenizer, dtype: Dtype) -> Value {
    let special = tokenizer.special;
    let mut keys = Map::new();
    keys.insert("architectures".into(), json!([architecture]));
    let positions = model.max_position_embeddings.unwrap_or(0) - (model.pad_token_id + 1 - family.first_position(model.pad_token_id));
    let shape = json!({
        "vocab_size": model.vocabulary(),
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_hidden_layers,
        "num_attention_heads": model.num_attention_heads,
        "intermediate_size": model.intermediate_size,
        "max_position_embeddings": positions,
        "type_vocab_size": model.type_vocab_size,
        "pad_token_id": model.pad_token_id,
        "bos_token_id": special.cls,
        "eos_token_id": special.sep,
        "layer_norm_eps": model.layer_norm_eps,
        "hidden_act": model.hidden_act,
        "hidden_dropout_prob": model.hidden_dropout_prob,
        "attention_probs_dropout_prob": model.attention_probs_dropout_prob,
        "classifier_dropout": model.classifier_dropout,
        "initializer_range": model.initializer_range,
        "torch_dtype": dtype.torch_name(),
    });
    keys.extend(shape.as_object().cloned().unwrap_or_default());
    let own = match family {
        Family::Roberta => json!({"model_type": "roberta", "position_embedding_type": "absolute", "tie_word_embeddings": true}),
        Family::Bert => json!({"model_type": "bert", "position_embedding_type": "absolute", "tie_word_embeddings": true}),
        Family::Linformer => {
            let class = |name: &str| format!("modeling_linformer.Linformer{name}");
            json!({
                "model_type": "linformer",
                "norm": model.norm,
                "attention": model.attention,
                // The output matrix is not a weight of its own there either.
                "tie_word_embeddings": false,
                "auto_map": {
                    "AutoConfig": class("Config"),
                    "AutoModel": class("Model"),
                    "AutoModelForMaskedLM": class("ForMaskedLM"),
                    "AutoModelForSequenceClassification": class("ForSequenceClassification"),
                },
            })
        }
    };
    keys.extend(own.as_object().cloned().unwrap_or_default());
    let labels = match head {
        Head::Classification { labels } => Some((labels.clone(), "single_label_classification")),
        Head::Regression => Some((vec!["LABEL_0".to_string()], "regression")),
        Head::None | Head::MaskedLm => None,
    };
    if let Some((labels, problem)) = labels {
        let by_id: Map<String, Value> = labels.iter().enumerate().map(|(id, label)| (id.to_string(), json!(label))).collect();
        let by_label: Map<String, Value> = labels.iter().enumerate().map(|(id, label)| (label.clone(), json!(id))).collect();
        keys.insert("id2label".into(), Value::Object(by_id));
        keys.insert("label2id".into(), Value::Object(by_label));
        keys.insert("problem_type".into(), json!(problem));
    }
    Value::Object(keys)
}

fn trains_on_pairs(trained: &Trained) -> Result<bool, ExchangeError> {
    let data = &trained.config.data;
    let spec = data.task.as_ref().map(|task| TaskSpec::find(task, &data.task_dir)).transpose()?;
    Ok(spec.is_some_and(|spec| spec.text_pair.is_some()))
}

/// `tokenizer.json` as the run has it, and what `AutoTokenizer` has to know beside it.
fn write_tokenizer(folder: &Path, trained: &Trained, tokenizer: &Tokenizer) -> Result<(), ExchangeError> {
    let name = |id: u32| tokenizer.token(id).unwrap_or_default();
    let special = tokenizer.special;
    let bytes = std::fs::read(trained.tokenizer).map_err(ExchangeError::io(trained.tokenizer))?;
    let mut json: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let has_segments = segments(&trained.config.model, tokenizer).is_some();
    // Texts have to reach the model there as they did here; of a pair, BERT's own layout is another where there are no types.
    let is_robertas = json["post_processor"]["type"] == "RobertaProcessing";
    if !tokenizer.frames_texts() || (!has_segments && trains_on_pairs(trained)? && !is_robertas) {
        json["post_processor"] = json!({"type": "RobertaProcessing", "sep": [name(special.sep), special.sep],
            "cls": [name(special.cls), special.cls], "trim_offsets": true, "add_prefix_space": false});
    }
    // The mask stands for a word with the space before it, as here: RoBERTa's own file says so too.
    let masks = json["added_tokens"].as_array_mut().into_iter().flatten().filter(|token| token["id"] == special.mask);
    masks.for_each(|token| token["lstrip"] = json!(tokenizer.mask_takes_the_space()));
    write_json(&folder.join("tokenizer.json"), &json)?;
    let mut tokens = tokenizer.special_tokens_map();
    write_json(&folder.join("special_tokens_map.json"), &tokens)?;
    if let Value::Object(tokens) = &mut tokens {
        let types = has_segments.then_some("token_type_ids");
        let inputs: Vec<&str> = ["input_ids"].into_iter().chain(types).chain(["attention_mask"]).collect();
        tokens.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        // What a classifier's run cut its texts to they are cut to there.
        let Config { data, model, .. } = &trained.config;
        let longest = if data.task.is_some() { data.sequence_length.min(model.sequence_length()) } else { model.sequence_length() };
        tokens.insert("model_max_length".into(), json!(longest));
        tokens.insert("model_input_names".into(), json!(inputs));
        tokens.insert("clean_up_tokenization_spaces".into(), json!(false));
    }
    write_json(&folder.join("tokenizer_config.json"), &tokens)
}
