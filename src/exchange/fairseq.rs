//! The state dict of fairseq's `linformer_roberta` (or `roberta`), saved as safetensors.
//!
//! fairseq keeps the settings outside the state dict: sizes and sharing are read off the tensors; the number of heads is
//! d / 64, as in every RoBERTa, unless it is given. `compress_k` and `compress_v` are E and F, `[n / compressed, n]`; with one
//! matrix for all layers it stands in `compress_layer`, and every layer repeats it.
//!
//! fairseq, as we do, compresses the layer's input before the key and value matrices, so biases come after. It does not look
//! at padding: see [`PADDING`].

use super::hugging_face::Description;
use super::import::{Left, Loaded, Report, Taken};
use super::names::{Family, POSITIONS, WORDS};
use super::source::Source;
use super::{ExchangeError, Head};
use crate::config::{Attention, AttentionKind, KSpec, Model, Norm, Origins, Sharing};
use crate::model::Parameters;
use std::collections::BTreeSet;
use tch::{Device, Kind, Tensor};

/// How fairseq's outputs differ where there is padding.
pub const PADDING: &str = "padding: fairseq compresses padding like text, so its outputs depend on how much padding stands behind a text; here padding is zeroed before each compression: outputs are equal where there is none";

/// fairseq's dictionary begins with `<s>`, `<pad>`, `</s>`, `<unk>`.
const PAD: i64 = 1;
const HEAD_SIZE: i64 = 64;
/// Where the encoder stands; files before fairseq 0.9 called it a decoder.
const PREFIXES: [&str; 3] = ["encoder.", "decoder.", ""];
const TOKEN_TYPES: &str = "roberta.embeddings.token_type_embeddings.weight";
/// Parts of a layer: ours, theirs.
const LAYER_NAMES: [(&str, &str); 10] = [
    ("attention.self.query.", "self_attn.q_proj."),
    ("attention.self.key.", "self_attn.k_proj."),
    ("attention.self.value.", "self_attn.v_proj."),
    ("attention.self.key_projection", "self_attn.compress_k.weight"),
    ("attention.self.value_projection", "self_attn.compress_v.weight"),
    ("attention.output.dense.", "self_attn.out_proj."),
    ("attention.output.LayerNorm.", "self_attn_layer_norm."),
    ("intermediate.dense.", "fc1."),
    ("output.dense.", "fc2."),
    ("output.LayerNorm.", "final_layer_norm."),
];

/// The names of one file.
struct Names<'a> {
    source: &'a Source,
    /// `encoder.` and the like.
    prefix: &'static str,
}

impl<'a> Names<'a> {
    fn of(source: &'a Source) -> Result<Self, ExchangeError> {
        let found = PREFIXES.iter().find(|prefix| source.has(&format!("{prefix}sentence_encoder.embed_tokens.weight")));
        match found {
            Some(prefix) => Ok(Self { source, prefix }),
            None => Err(ExchangeError::invalid(
                &source.path,
                "no encoder.sentence_encoder.embed_tokens.weight: not the state dict of a fairseq RoBERTa; for a Hugging Face folder leave --from out",
            )),
        }
    }

    fn body(&self, name: &str) -> String {
        format!("{}sentence_encoder.{name}", self.prefix)
    }

    /// The shape of a matrix of the encoder.
    fn matrix(&self, name: &str) -> Result<[i64; 2], ExchangeError> {
        let name = self.body(name);
        match self.source.shape(&name) {
            Some([rows, columns]) => Ok([*rows, *columns]),
            Some(shape) => Err(ExchangeError::invalid(&self.source.path, format!("{name} has shape {shape:?}, expected a matrix"))),
            None => Err(ExchangeError::invalid(&self.source.path, format!("{name} is missing"))),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.source.has(&self.body(name))
    }

    /// fairseq's name of one of our weights.
    fn theirs(&self, ours: &str) -> String {
        if let Some(rest) = ours.strip_prefix("roberta.encoder.layer.") {
            let (layer, part) = rest.split_once('.').unwrap_or((rest, ""));
            let found = LAYER_NAMES.iter().find_map(|(from, to)| Some(format!("{to}{}", part.strip_prefix(from)?)));
            return self.body(&format!("layers.{layer}.{}", found.unwrap_or_else(|| part.into())));
        }
        let embedding_norm = if self.has("emb_layer_norm.weight") { "emb_layer_norm." } else { "layernorm_embedding." };
        let ends = |prefix: &str| ours.strip_prefix(prefix);
        match ours {
            WORDS => self.body("embed_tokens.weight"),
            POSITIONS => self.body("embed_positions.weight"),
            "roberta.encoder.shared_projection" => self.body("compress_layer.weight"),
            _ => match (ends("roberta.embeddings.LayerNorm."), ends("roberta.encoder.LayerNorm.")) {
                (Some(part), _) => self.body(&format!("{embedding_norm}{part}")),
                (_, Some(part)) => self.body(&format!("layer_norm.{part}")),
                _ => format!("{}{ours}", self.prefix),
            },
        }
    }

    fn model(&self, heads: Option<i64>) -> Result<Model, ExchangeError> {
        let [vocabulary, d] = self.matrix("embed_tokens.weight")?;
        let [rows, _] = self.matrix("embed_positions.weight")?;
        let [intermediate_size, _] = self.matrix("layers.0.fc1.weight")?;
        let layers = (0..).take_while(|i| self.has(&format!("layers.{i}.fc1.weight"))).count();
        let heads = match heads {
            Some(heads) => heads,
            None if d % HEAD_SIZE == 0 => d / HEAD_SIZE,
            None => {
                return Err(ExchangeError::invalid(
                    &self.source.path,
                    format!("its width {d} is no multiple of {HEAD_SIZE}; give --num-attention-heads"),
                ))
            }
        };
        let model = Model {
            vocab_size: Some(vocabulary),
            hidden_size: d,
            num_hidden_layers: layers as i64,
            num_attention_heads: heads,
            intermediate_size,
            max_position_embeddings: Some(rows),
            type_vocab_size: 1,
            pad_token_id: PAD,
            norm: if self.has("layer_norm.weight") { Norm::Pre } else { Norm::Post },
            attention: self.attention(rows - PAD - 1)?,
            ..Model::default()
        };
        model.validate(&Origins::default(), model.sequence_length()).map_err(|e| ExchangeError::config(&self.source.path, e))?;
        Ok(model)
    }

    fn attention(&self, n: i64) -> Result<Attention, ExchangeError> {
        // Of any layer: one that is missing in the first must not pass for a model without.
        let any_has = |part: &str| self.source.names().any(|name| name.contains(part) && name.ends_with(".weight"));
        if !any_has(".compress_k.") && !any_has(".compress_v.") && !self.has("compress_layer.weight") {
            return Ok(Attention { kind: AttentionKind::Full, ..Attention::default() });
        }
        let sharing = match (self.has("compress_layer.weight"), any_has(".compress_v.")) {
            (true, _) => Sharing::Layerwise,
            (false, true) => Sharing::Headwise,
            (false, false) => Sharing::KeyValue,
        };
        let [k, columns] = self.matrix("layers.0.self_attn.compress_k.weight")?;
        if columns != n {
            let message = format!("compress_k has {columns} columns, but embed_positions is for {n} positions, expected the same");
            return Err(ExchangeError::invalid(&self.source.path, message));
        }
        Ok(Attention { kind: AttentionKind::Linformer, k: KSpec::One(k), sharing, ..Attention::default() })
    }
}

/// Fills a model from the state dict.
pub fn take(source: &Source, heads: Option<i64>) -> Result<(Description, Loaded, Report), ExchangeError> {
    let names = Names::of(source)?;
    let model = names.model(heads)?;
    let head = if source.has(&names.theirs("lm_head.dense.weight")) { Head::MaskedLm } else { Head::None };
    let loaded = Loaded::build(&model, &head, Parameters::uninitialised(Device::Cpu));
    let parameters = &loaded.parameters;
    let mut report = Report { source: source.path.clone(), ..Report::default() };
    let _guard = tch::no_grad_guard();
    for parameter in parameters.iter() {
        let mut target = parameter.tensor.detach();
        if parameter.name == TOKEN_TYPES {
            // RoBERTa has none in fairseq.
            let _ = target.zero_();
            continue;
        }
        let theirs = names.theirs(&parameter.name);
        let value = source.tensor(&theirs)?;
        if value.size() != target.size() {
            let message = format!("{theirs} has shape {:?}, expected {:?}", value.size(), target.size());
            return Err(ExchangeError::invalid(&source.path, message));
        }
        target.copy_(&value);
        report.taken.push(Taken { theirs, ours: parameter.name.clone(), shape: value.size() });
    }
    verify_copies(&names, parameters)?;
    leave_the_rest(&names, &mut report);
    describe(&model, &head, heads, &mut report);
    Ok((Description { family: Family::Roberta, architecture: "fairseq".into(), model, head }, loaded, report))
}

/// Copies of one matrix have to be copies: the output matrix of the embeddings, the layers' compression of the shared one.
fn verify_copies(names: &Names, parameters: &Parameters) -> Result<(), ExchangeError> {
    let shared = parameters.get("roberta.encoder.shared_projection");
    let words = parameters.get(WORDS).map(|p| &p.tensor);
    let output = format!("{}lm_head.weight", names.prefix);
    let compressions = names.source.names().filter(|name| name.contains(".compress_") && name.ends_with(".weight"));
    let copies = compressions.filter_map(|name| Some((name.to_string(), &shared?.tensor)));
    for (name, original) in copies.chain(words.map(|words| (output, words))) {
        if names.source.has(&name) && !equal(&names.source.tensor(&name)?, original) {
            let message = format!("{name} is not the copy that it should be, expected one matrix under both names");
            return Err(ExchangeError::invalid(&names.source.path, message));
        }
    }
    Ok(())
}

fn equal(a: &Tensor, b: &Tensor) -> bool {
    a.size() == b.size() && a.eq_tensor(b).all().to_kind(Kind::Int64).int64_value(&[]) == 1
}

fn leave_the_rest(names: &Names, report: &mut Report) {
    let taken: BTreeSet<&str> = report.taken.iter().map(|t| t.theirs.as_str()).collect();
    let why = |name: &str| match name {
        _ if name.ends_with("lm_head.weight") => "a copy of the word embeddings",
        _ if name.contains("compress_layer.bias") => "fairseq does not use it",
        _ if name.contains("compress_") => "a copy of the one shared matrix",
        _ if name.contains("classification_heads.") => "a head: fine-tuning starts its own",
        _ if name.ends_with("version") || name.ends_with("_float_tensor") => "a constant",
        _ => "no place here",
    };
    let rest = names.source.names().filter(|name| !taken.contains(name));
    report.left =
        rest.map(|name| Left { name: name.into(), shape: names.source.shape(name).unwrap_or_default().to_vec(), why: why(name) }).collect();
}

fn describe(model: &Model, head: &Head, heads: Option<i64>, report: &mut Report) {
    let attention = match model.attention.kind {
        AttentionKind::Full => "full attention".to_string(),
        AttentionKind::Linformer => format!("Linformer k = {}, sharing {}", model.attention.k.summary(), model.attention.sharing),
    };
    report.description = format!(
        "fairseq: {} layers, {} heads{}, d = {}, n = {}, vocabulary {}, LayerNorm {}, {attention}; {}",
        model.num_hidden_layers,
        model.num_attention_heads,
        if heads.is_none() { " (d / 64; else give --num-attention-heads)" } else { "" },
        model.hidden_size,
        model.sequence_length(),
        model.vocabulary(),
        model.norm,
        head.describe()
    );
    report.missing.push("token types: RoBERTa has none in fairseq, the one row here is zero".into());
    if *head == Head::None {
        report.missing.push("a masked-LM head: pretraining from it starts one at random".into());
    }
    if model.attention.kind == AttentionKind::Linformer {
        report.notes.push(PADDING.into());
    }
    report.notes.push("activation: gelu is taken for granted, the state dict does not say".into());
    report.notes.push(
        "tokenizer: its ids have to be those of fairseq's dict.txt (0 <s>, 1 <pad>, 2 </s>, 3 <unk>, the lines of the file, then <mask>)"
            .into(),
    );
}
