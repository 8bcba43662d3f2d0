//! Text to ids: a tokenizer that is trained on the corpus, plain bytes, or one that was brought along (crate tokenizers).

mod load;
mod masked;
mod special;
mod train;
mod words;

use super::DataError;
use crate::native::panics::silently;
pub use masked::MaskedText;
use rayon::prelude::*;
use serde_json::{json, Value};
use special::Declared;
pub use special::SpecialIds;
use std::path::Path;
use tokenizers::{PaddingParams, Tokenizer as Inner, TruncationParams};
pub use train::Kind;
pub use words::WordStarts;

/// Texts of more bytes than this are encoded in pieces, so that memory does not grow with the longest document.
const PIECE_BYTES: usize = 1 << 16;

/// A tokenizer and its special ids.
pub struct Tokenizer {
    inner: Inner,
    pub special: SpecialIds,
    /// Every special id, sorted: never masked, never drawn as a random token.
    pub special_ids: Vec<u32>,
    vocab_size: usize,
    /// A word's token holds the space before the word.
    spaces_begin_tokens: bool,
    /// What the file says of cutting and filling up: kept for the file, never applied here, where a model's n decides.
    truncation: Option<TruncationParams>,
    padding: Option<PaddingParams>,
}

impl Tokenizer {
    /// Trains on texts; the same result whatever the number of threads. `vocab_size` counts special tokens too.
    pub fn train(kind: Kind, texts: impl Iterator<Item = Result<String, DataError>>, vocab_size: usize) -> Result<Self, DataError> {
        Self::checked(train::train(kind, texts, vocab_size)?, kind.name(), Declared::default())
    }

    /// One token a byte.
    pub fn bytes() -> Result<Self, DataError> {
        Self::checked(train::bytes()?, "bytes", Declared::default())
    }

    /// A `tokenizer.json`, a BERT `vocab.txt`, a GPT-2 `vocab.json` with its `merges.txt`, or a folder with one of these.
    pub fn load(path: &Path) -> Result<Self, DataError> {
        let (inner, declared) = load::load(path)?;
        Self::checked(inner, &path.display().to_string(), declared)
    }

    /// What a config's `data.tokenizer` says that is not trained.
    pub fn named(name: &str) -> Result<Self, DataError> {
        match name {
            "bytes" => Self::bytes(),
            path => Self::load(Path::new(path)),
        }
    }

    fn checked(mut inner: Inner, name: &str, declared: Declared) -> Result<Self, DataError> {
        let special = special::resolve(&inner, name, declared)?;
        let own = inner.get_added_tokens_decoder().into_iter().filter(|(_, token)| token.special).map(|(id, _)| id);
        let mut special_ids: Vec<u32> = own.chain([special.cls, special.pad, special.sep, special.mask]).collect();
        special_ids.sort_unstable();
        special_ids.dedup();
        // Text that spells "<mask>" is text.
        inner.set_encode_special_tokens(true);
        let (truncation, padding) = (inner.get_truncation().cloned(), inner.get_padding().cloned());
        inner.with_truncation(None).map_err(|e| trouble(name, e))?.with_padding(None);
        // Ids may have holes (RoBERTa's have): the embedding needs a row up to the largest.
        let vocabulary = inner.get_vocab(true);
        let vocab_size = vocabulary.values().max().map_or(0, |id| *id as usize + 1);
        let spaces_begin_tokens = masked::spaces_begin_tokens(&inner, &vocabulary, &special_ids);
        Ok(Self { inner, special, special_ids, vocab_size, spaces_begin_tokens, truncation, padding })
    }

    /// Rows that an embedding needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Ids of a text without special tokens. (A unigram model finds `<s>` among its pieces: such places are left out.)
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let SpecialIds { cls, pad, sep, mask } = self.special;
        let mut ids = Vec::new();
        for piece in pieces(text, PIECE_BYTES) {
            // The crate panics with some tokenizers that are not what they say.
            let encoded = silently(|| self.inner.encode_fast(piece, false)).map_err(|e| trouble("tokenizer", e))?;
            let encoding = encoded.map_err(|e| trouble("tokenizer", e))?;
            ids.extend(encoding.get_ids().iter().filter(|id| ![cls, pad, sep, mask].contains(id)));
        }
        Ok(ids)
    }

    /// Ids of many texts, on all cores.
    pub fn encode_all(&self, texts: Vec<String>) -> Result<Vec<Vec<u32>>, DataError> {
        texts.par_iter().map(|text| self.encode(text)).collect()
    }

    pub fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        self.inner.decode(ids, false).map_err(|e| trouble("tokenizer", e))
    }

    /// Which tokens begin a word.
    pub fn word_starts(&self) -> WordStarts {
        WordStarts::new(&self.inner, self.vocab_size)
    }

    /// The `tokenizer.json`.
    pub fn to_json(&self) -> Result<String, DataError> {
        let mut inner = self.inner.clone();
        inner.with_padding(self.padding.clone());
        inner.with_truncation(self.truncation.clone()).map_err(|e| trouble("tokenizer", e))?;
        inner.to_string(true).map_err(|e| trouble("tokenizer", e))
    }

    /// A token's text.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether its own post-processor makes of a text what a model here sees: the first token, the text, a separator.
    pub fn frames_texts(&self) -> bool {
        let encoded = self.inner.encode_fast("a", true);
        encoded.is_ok_and(|e| e.get_ids().first() == Some(&self.special.cls) && e.get_ids().last() == Some(&self.special.sep))
    }

    /// Whether its post-processor gives the second text of a pair another token type than the first, as BERT's does.
    pub fn tells_pairs_apart(&self) -> bool {
        self.inner.encode_fast(("a", "a"), true).is_ok_and(|pair| pair.get_type_ids().contains(&1))
    }

    /// What it is, for hashes: its file and, where the file alone does not say them, its special tokens.
    pub fn identity(&self) -> Result<String, DataError> {
        Ok(self.to_json()? + &self.declaration()?.map(|map| map.to_string()).unwrap_or_default())
    }

    /// `special_tokens_map.json`, if the `tokenizer.json` without it would be taken for a tokenizer with other special tokens.
    pub fn declaration(&self) -> Result<Option<Value>, DataError> {
        let alone = Inner::from_bytes(self.to_json()?).map_err(|e| trouble("tokenizer", e))?;
        let same = special::resolve(&alone, "tokenizer", Declared::default()).is_ok_and(|special| special == self.special);
        Ok((!same).then(|| self.special_tokens_map()))
    }

    /// The special tokens under Hugging Face's names.
    pub fn special_tokens_map(&self) -> Value {
        let name = |id: u32| self.token(id).unwrap_or_default();
        let SpecialIds { cls, pad, sep, mask } = self.special;
        let (cls, pad, sep, mask) = (name(cls), name(pad), name(sep), name(mask));
        let mut tokens =
            json!({"bos_token": cls, "eos_token": sep, "cls_token": cls, "sep_token": sep, "pad_token": pad, "mask_token": mask});
        if let (Some(unknown), Value::Object(tokens)) = (self.unknown(), &mut tokens) {
            tokens.insert("unk_token".into(), json!(unknown));
        }
        tokens
    }

    /// Whether a word's token holds the space before the word, which a mask then stands for as well.
    pub fn mask_takes_the_space(&self) -> bool {
        self.spaces_begin_tokens
    }

    /// What stands for characters that the vocabulary lacks, if there is such a token.
    pub fn unknown(&self) -> Option<String> {
        ["<unk>", "[UNK]"].into_iter().find(|token| self.inner.token_to_id(token).is_some()).map(str::to_string)
    }
}

fn trouble(path: &str, message: impl std::fmt::Display) -> DataError {
    DataError::Tokenizer { path: path.into(), message: message.to_string().lines().next().unwrap_or_default().into() }
}

/// A text in pieces of at least `size` bytes (but for the last), cut before a space between two letters or digits, where
/// the usual tokenizers cut as well: the ids are those of the whole text. Where there is no such place for 16 times as
/// long, it is cut all the same.
pub fn pieces(text: &str, size: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, after) = rest.split_at(cut(rest, size));
        rest = after;
        Some(piece)
    })
}

fn cut(text: &str, size: usize) -> usize {
    if text.len() <= size {
        return text.len();
    }
    let bytes = text.as_bytes();
    let last = text.len().min(16 * size);
    let is_word = |b: u8| b.is_ascii_alphanumeric();
    let place = (size..last.saturating_sub(1)).find(|i| bytes[*i] == b' ' && is_word(bytes[i - 1]) && is_word(bytes[i + 1]));
    place.unwrap_or_else(|| (1..=last).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(text.len()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn text() -> Vec<Result<String, DataError>> {
        let words = ["the", "sea", "was", "calm", "and", "the", "ship", "lay", "still", "naïve", "Éire"];
        (0..400).map(|i| (0..20).map(|j| words[(i * 7 + j * 3) % words.len()]).collect::<Vec<_>>().join(" ")).map(Ok).collect()
    }

    #[test]
    fn trained_and_plain_bytes_give_the_text_back() {
        for tokenizer in [Tokenizer::train(Kind::ByteBpe, text().into_iter(), 300).unwrap(), Tokenizer::bytes().unwrap()] {
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

    /// Case 18: hash order decides nothing, and neither does the number of threads.
    #[test]
    fn training_gives_the_same_tokenizer_at_any_number_of_threads() {
        for kind in [Kind::ByteBpe, Kind::WordPiece, Kind::Unigram] {
            let json = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| Tokenizer::train(kind, text().into_iter(), 290).unwrap().to_json().unwrap())
            };
            let first = json(1);
            for threads in [1, 4, 4, 3] {
                assert!(json(threads) == first, "{kind:?} at {threads} threads");
            }
        }
    }

    #[test]
    fn wordpiece_and_unigram_have_their_special_tokens_and_give_words_back() {
        let wordpiece = Tokenizer::train(Kind::WordPiece, text().into_iter(), 120).unwrap();
        assert_eq!(wordpiece.special, SpecialIds { cls: 2, pad: 0, sep: 3, mask: 4 });
        assert_eq!(wordpiece.decode(&wordpiece.encode("the naïve ship\nlay").unwrap()).unwrap(), "the naïve ship lay");
        let unigram = Tokenizer::train(Kind::Unigram, text().into_iter(), 60).unwrap();
        assert_eq!(unigram.special, SpecialIds { cls: 0, pad: 1, sep: 2, mask: 4 });
        assert_eq!(unigram.decode(&unigram.encode("the naïve ship\nlay").unwrap()).unwrap(), "the naïve ship lay");
        for tokenizer in [wordpiece, unigram] {
            let reloaded = Inner::from_bytes(tokenizer.to_json().unwrap()).unwrap();
            assert!(reloaded.get_vocab_size(true) <= tokenizer.vocab_size());
            assert!(tokenizer.encode("the ship <s> [CLS] <mask>").unwrap().iter().all(|id| {
                !tokenizer.special_ids.contains(id) || tokenizer.inner.id_to_token(*id).is_some_and(|t| t.to_lowercase().contains("unk"))
            }));
        }
    }

    #[test]
    fn a_text_that_spells_special_tokens_has_none() {
        let tokenizer = Tokenizer::bytes().unwrap();
        let ids = tokenizer.encode("a <mask> and </s>").unwrap();
        assert!(ids.iter().all(|id| !tokenizer.special_ids.contains(id)), "{ids:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), "a <mask> and </s>");
    }

    /// Pieces change nothing: each trained kind gives the ids of the whole text.
    #[test]
    fn long_texts_have_the_ids_of_the_whole() {
        let whole = text().into_iter().map(Result::unwrap).collect::<Vec<_>>().join("\n\n  and so, ");
        for kind in [Kind::ByteBpe, Kind::WordPiece, Kind::Unigram] {
            let tokenizer = Tokenizer::train(kind, text().into_iter(), 290).unwrap();
            let at_once = tokenizer.inner.encode_fast(whole.as_str(), false).unwrap().get_ids().to_vec();
            let parts: Vec<&str> = pieces(&whole, 100).collect();
            assert!(parts.len() > 100 && parts.concat() == whole);
            let ids: Vec<u32> = parts.iter().flat_map(|p| tokenizer.encode(p).unwrap()).collect();
            assert!(ids == at_once, "{kind:?}");
        }
    }

    #[test]
    fn a_million_characters_without_a_space_are_encoded() {
        let tokenizer = Tokenizer::bytes().unwrap();
        let text = "é".repeat(1_000_000);
        assert_eq!(tokenizer.encode(&text).unwrap().len(), 2_000_000);
        assert!(pieces(&text, 1000).all(|p| p.len() <= 16_000));
    }

    /// Files of sentence encoders cut every text to 128 tokens and fill it up: neither is for a corpus.
    #[test]
    fn what_the_file_says_of_truncation_and_padding_stays_in_the_file() {
        let mut json: serde_json::Value = serde_json::from_str(&Tokenizer::bytes().unwrap().to_json().unwrap()).unwrap();
        json["truncation"] = serde_json::json!({"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"});
        json["padding"] = serde_json::json!({"strategy": {"Fixed": 4}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 1, "pad_type_id": 0,
            "pad_token": "<pad>"});
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, json.to_string()).unwrap();
        let tokenizer = Tokenizer::load(&path).unwrap();
        assert_eq!(tokenizer.encode("twelve bytes").unwrap().len(), 12);
        let written: serde_json::Value = serde_json::from_str(&tokenizer.to_json().unwrap()).unwrap();
        assert_eq!((&written["truncation"], &written["padding"]), (&json["truncation"], &json["padding"]));
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
