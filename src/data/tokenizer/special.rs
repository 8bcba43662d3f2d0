//! Ids with a meaning, by the tokenizer's own declaration, never by number: the files beside it, its post-processor, its
//! padding, its special tokens, in this order.

use super::trouble;
use crate::data::DataError;
use serde_json::Value;
use tokenizers::Tokenizer as Inner;

/// Ids with a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialIds {
    /// First of every sequence (`<s>` or `[CLS]`).
    pub cls: u32,
    pub pad: u32,
    /// End of a segment (`</s>` or `[SEP]`).
    pub sep: u32,
    pub mask: u32,
}

/// Tokens that `special_tokens_map.json` or `tokenizer_config.json` name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Declared {
    pub cls: Option<String>,
    pub sep: Option<String>,
    pub pad: Option<String>,
    pub mask: Option<String>,
}

impl Declared {
    /// From the text of such a file; what it does not name is taken from `self`.
    pub fn or_from(self, json: &Value) -> Self {
        let token = |key: &str| match &json[key] {
            Value::String(text) => Some(text.clone()),
            Value::Object(object) => object.get("content").and_then(Value::as_str).map(str::to_string),
            _ => None,
        };
        Self {
            cls: self.cls.or_else(|| token("cls_token")).or_else(|| token("bos_token")),
            sep: self.sep.or_else(|| token("sep_token")).or_else(|| token("eos_token")),
            pad: self.pad.or_else(|| token("pad_token")),
            mask: self.mask.or_else(|| token("mask_token")),
        }
    }

    /// What the tokenizer itself says: the tokens that its post-processor puts around a text, and its padding.
    fn or_from_tokenizer(mut self, inner: &Inner) -> Self {
        let processor = serde_json::to_value(inner.get_post_processor()).unwrap_or_default();
        if let (Some((first, _)), Some((last, _))) = (pair(&processor["cls"]), pair(&processor["sep"])) {
            self.cls.get_or_insert(first);
            self.sep.get_or_insert(last);
        }
        if let Some(single) = processor["single"].as_array() {
            let token = |item: Option<&Value>| item.and_then(|i| i["SpecialToken"]["id"].as_str()).map(str::to_string);
            self.cls = self.cls.or_else(|| token(single.first()));
            self.sep = self.sep.or_else(|| token(single.last()));
        }
        self.pad = self.pad.or_else(|| inner.get_padding().map(|p| p.pad_token.clone()));
        self
    }
}

fn pair(value: &Value) -> Option<(String, u64)> {
    Some((value[0].as_str()?.to_string(), value[1].as_u64()?))
}

/// The four ids, or which of them the tokenizer does not have.
pub fn resolve(inner: &Inner, name: &str, declared: Declared) -> Result<SpecialIds, DataError> {
    let declared = declared.or_from_tokenizer(inner);
    let find = |what: &str, declared: Option<String>, names: [&str; 2]| {
        if let Some(token) = declared {
            return inner.token_to_id(&token).ok_or_else(|| {
                trouble(name, format!("declares \"{token}\" as its {what} token, but has no such token in its vocabulary"))
            });
        }
        let id = names.iter().find_map(|token| inner.token_to_id(token));
        id.ok_or_else(|| {
            trouble(name, format!("has no {what} token ({} or {}), which masked language modelling needs", names[0], names[1]))
        })
    };
    let mask = declared.mask.or_else(|| only_mask(inner));
    Ok(SpecialIds {
        cls: find("first", declared.cls, ["<s>", "[CLS]"])?,
        pad: find("padding", declared.pad, ["<pad>", "[PAD]"])?,
        sep: find("separator", declared.sep, ["</s>", "[SEP]"])?,
        mask: find("mask", mask, ["<mask>", "[MASK]"])?,
    })
}

/// The one special token that calls itself a mask, in tokenizers that declare it nowhere else.
fn only_mask(inner: &Inner) -> Option<String> {
    let special = inner.get_added_tokens_decoder().into_values().filter(|token| token.special);
    let masks: Vec<String> = special.map(|token| token.content).filter(|t| t.to_lowercase().contains("mask")).collect();
    <[String; 1]>::try_from(masks).ok().map(|[mask]| mask)
}
