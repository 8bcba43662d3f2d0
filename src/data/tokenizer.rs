//! Text to ids: byte-level BPE trained on the corpus, plain bytes, or any `tokenizer.json` (crate tokenizers).

use super::DataError;
use crate::native::panics::silently;
use std::path::Path;
use tokenizers::models::bpe::{BpeTrainer, BPE};
use tokenizers::models::TrainerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{AddedToken, Tokenizer as Inner};

/// RoBERTa's special tokens in RoBERTa's order, for tokenizers made here.
const SPECIAL: [&str; 5] = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"];

/// An embedding needs a row for each id: a larger one is a mistake in the file.
const LARGEST_VOCABULARY: usize = 1 << 24;

/// Ids with a meaning, as the tokenizer itself declares them by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialIds {
    /// First of every sequence (`<s>` or `[CLS]`).
    pub cls: u32,
    pub pad: u32,
    /// End of a segment (`</s>` or `[SEP]`).
    pub sep: u32,
    pub mask: u32,
}

/// A tokenizer and its special ids.
pub struct Tokenizer {
    inner: Inner,
    pub special: SpecialIds,
    /// Every special id, sorted: never masked, never drawn as a random token.
    pub special_ids: Vec<u32>,
    vocab_size: usize,
}

impl Tokenizer {
    /// Trains byte-level BPE with `vocab_size` entries in all; the same result whatever the number of threads.
    pub fn train_byte_bpe(texts: &[String], vocab_size: usize) -> Result<Self, DataError> {
        let smallest = 256 + SPECIAL.len();
        if vocab_size < smallest {
            return Err(trouble(
                "byte_bpe",
                format!("data.vocab_size is {vocab_size}, expected at least {smallest} (256 bytes and {} special tokens)", SPECIAL.len()),
            ));
        }
        let trainer = BpeTrainer::builder()
            .vocab_size(vocab_size)
            .min_frequency(2)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(SPECIAL.iter().map(|s| AddedToken::from(*s, true)).collect())
            .build();
        let mut inner = Inner::new(BPE::default());
        inner.with_pre_tokenizer(Some(byte_level()));
        inner.train(&mut TrainerWrapper::from(trainer), texts.iter()).map_err(|e| trouble("byte_bpe", e))?;
        Self::around(inner)
    }

    /// One token a byte.
    pub fn bytes() -> Result<Self, DataError> {
        let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
        alphabet.sort_unstable();
        let entries = SPECIAL.iter().map(|s| s.to_string()).chain(alphabet.iter().map(char::to_string));
        let vocabulary: serde_json::Map<String, serde_json::Value> = entries.zip(0u32..).map(|(token, id)| (token, id.into())).collect();
        let json = serde_json::json!({"type": "BPE", "vocab": vocabulary, "merges": []}).to_string();
        let model: BPE = serde_json::from_str(&json).map_err(|e| trouble("bytes", e))?;
        let mut inner = Inner::new(model);
        inner.with_pre_tokenizer(Some(byte_level()));
        Self::around(inner)
    }

    /// Decoder, RoBERTa's way to lay out a pair, and special tokens.
    fn around(mut inner: Inner) -> Result<Self, DataError> {
        inner.with_decoder(Some(byte_level()));
        let id = |inner: &Inner, token: &str| inner.token_to_id(token).unwrap_or(0);
        let (sep, cls) = (("</s>".to_string(), id(&inner, "</s>")), ("<s>".to_string(), id(&inner, "<s>")));
        inner.with_post_processor(Some(RobertaProcessing::new(sep, cls).trim_offsets(true).add_prefix_space(false)));
        inner.add_special_tokens(&SPECIAL.map(|s| AddedToken::from(s, true)));
        Self::checked(inner, "the tokenizer made here")
    }

    /// Any `tokenizer.json`.
    pub fn load(path: &Path) -> Result<Self, DataError> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).map_err(DataError::io(path))?;
        // The crate panics on some files that are not what they say.
        let parsed = silently(|| Inner::from_bytes(bytes).map_err(|e| e.to_string())).unwrap_or_else(Err);
        let inner = parsed.map_err(|e| trouble(&name, format!("not a tokenizer.json: {e}")))?;
        Self::checked(inner, &name)
    }

    fn checked(inner: Inner, name: &str) -> Result<Self, DataError> {
        let find = |what: &str, names: [&str; 2]| {
            let id = names.iter().find_map(|token| inner.token_to_id(token));
            id.ok_or_else(|| {
                trouble(name, format!("has no {what} token ({} or {}), which masked language modelling needs", names[0], names[1]))
            })
        };
        let special = SpecialIds {
            cls: find("first", ["<s>", "[CLS]"])?,
            pad: find("padding", ["<pad>", "[PAD]"])?,
            sep: find("separator", ["</s>", "[SEP]"])?,
            mask: find("mask", ["<mask>", "[MASK]"])?,
        };
        let declared = inner.get_added_tokens_decoder().into_iter().filter(|(_, token)| token.special).map(|(id, _)| id);
        let mut special_ids: Vec<u32> = declared.chain([special.cls, special.pad, special.sep, special.mask]).collect();
        special_ids.sort_unstable();
        special_ids.dedup();
        // Ids may have holes (RoBERTa's have): the embedding needs a row up to the largest.
        let vocab_size = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        if vocab_size > LARGEST_VOCABULARY {
            return Err(trouble(name, format!("has a token with id {}, expected ids below {LARGEST_VOCABULARY}", vocab_size - 1)));
        }
        Ok(Self { inner, special, special_ids, vocab_size })
    }

    /// Rows that an embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Ids of a text without special tokens.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| trouble("tokenizer", e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids of many texts, on all cores.
    pub fn encode_all(&self, texts: Vec<String>) -> Result<Vec<Vec<u32>>, DataError> {
        let encode = || self.inner.encode_batch_fast(texts, false).map_err(|e| e.to_string());
        let encodings = silently(encode).unwrap_or_else(Err).map_err(|e| trouble("tokenizer", e))?;
        Ok(encodings.into_iter().map(|e| e.get_ids().to_vec()).collect())
    }

    pub fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        self.inner.decode(ids, false).map_err(|e| trouble("tokenizer", e))
    }

    /// The `tokenizer.json`.
    pub fn to_json(&self) -> Result<String, DataError> {
        self.inner.to_string(true).map_err(|e| trouble("tokenizer", e))
    }
}

fn byte_level() -> ByteLevel {
    ByteLevel::new(false, true, true)
}

fn trouble(path: &str, message: impl std::fmt::Display) -> DataError {
    DataError::Tokenizer { path: path.into(), message: message.to_string().lines().next().unwrap_or_default().into() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn text() -> Vec<String> {
        let words = ["the", "sea", "was", "calm", "and", "the", "ship", "lay", "still", "naïve", "Éire"];
        (0..400).map(|i| (0..20).map(|j| words[(i * 7 + j * 3) % words.len()]).collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn trained_and_plain_bytes_give_the_text_back() {
        for tokenizer in [Tokenizer::train_byte_bpe(&text(), 300).unwrap(), Tokenizer::bytes().unwrap()] {
            let sample = "the naïve ship — \t 1,234 “quoted”\n\nÉire 🌊";
            let ids = tokenizer.encode(sample).unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), sample);
            assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size() && !tokenizer.special_ids.contains(id)));
        }
    }

    #[test]
    fn special_ids_are_robertas() {
        let tokenizer = Tokenizer::bytes().unwrap();
        assert_eq!(tokenizer.special, SpecialIds { cls: 0, pad: 1, sep: 2, mask: 4 });
        assert_eq!(tokenizer.vocab_size(), 261);
    }

    #[test]
    fn training_twice_gives_the_same_tokenizer() {
        let json = || Tokenizer::train_byte_bpe(&text(), 290).unwrap().to_json().unwrap();
        assert_eq!(json(), json());
    }

    #[test]
    fn a_tokenizer_without_a_mask_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, Tokenizer::bytes().unwrap().to_json().unwrap().replace("<mask>", "<hide>")).unwrap();
        let message = Tokenizer::load(&path).err().unwrap().to_string();
        assert!(message.contains("has no mask token"), "{message}");
    }
}
