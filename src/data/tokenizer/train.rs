//! Training. Words are counted on all cores; what follows does not depend on the order in which they come: alphabets are
//! sorted, and ties are broken by the words themselves.

use super::{pieces, trouble, PIECE_BYTES};
use crate::data::DataError;
use crate::native::panics::silently;
use ahash::AHashMap;
use compact_str::CompactString;
use rayon::prelude::*;
use std::collections::BTreeMap;
use tokenizers::models::bpe::{BpeTrainer, BPE};
use tokenizers::models::unigram::{Unigram, UnigramTrainer};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::{BertNormalizer, NFKC};
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{
    AddedToken, ModelWrapper, NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    PreTokenizerWrapper, Tokenizer as Inner,
};

/// RoBERTa's special tokens in RoBERTa's order.
const ROBERTA: [&str; 5] = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"];
/// BERT's in BERT's order.
const BERT: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
/// Characters that a vocabulary of words may begin with; the rarest are unknown. (Bytes are always known.)
const LARGEST_ALPHABET: usize = 1000;
/// Words are counted batch by batch, of about this many bytes.
const BATCH_BYTES: usize = 4 << 20;

/// What can be trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// RoBERTa's: byte pairs merged by frequency. Every text can be written with it.
    ByteBpe,
    /// BERT's: merged characters, `##` within a word; case is kept.
    WordPiece,
    /// SentencePiece's: a unigram language model of pieces.
    Unigram,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::ByteBpe => "byte_bpe",
            Self::WordPiece => "wordpiece",
            Self::Unigram => "unigram",
        }
    }

    pub fn by_name(name: &str) -> Option<Self> {
        [Self::ByteBpe, Self::WordPiece, Self::Unigram].into_iter().find(|kind| kind.name() == name)
    }
}

type Counts = AHashMap<CompactString, u64>;

pub fn train(kind: Kind, texts: impl Iterator<Item = Result<String, DataError>>, vocab_size: usize) -> Result<Inner, DataError> {
    let smallest = match kind {
        Kind::ByteBpe => 256 + ROBERTA.len(),
        Kind::WordPiece | Kind::Unigram => 32,
    };
    if vocab_size < smallest {
        let why = if kind == Kind::ByteBpe { " (256 bytes and 5 special tokens)" } else { "" };
        return Err(trouble(kind.name(), format!("data.vocab_size is {vocab_size}, expected at least {smallest}{why}")));
    }
    let mut inner = blank(kind);
    let words = count_words(&inner, texts).map_err(|e| match e {
        Trouble::Reading(error) => error,
        Trouble::Splitting(error) => trouble(kind.name(), error),
    })?;
    match kind {
        Kind::ByteBpe => {
            inner.with_model(byte_bpe(&words, vocab_size)?);
            Ok(roberta(inner))
        }
        Kind::WordPiece => {
            inner.with_model(word_piece(words, vocab_size)?);
            inner.with_decoder(Some(tokenizers::decoders::wordpiece::WordPiece::default()));
            inner.add_special_tokens(&BERT.map(|s| AddedToken::from(s, true)));
            let [sep, cls] = ["[SEP]", "[CLS]"].map(|t| (t.to_string(), inner.token_to_id(t).unwrap_or(0)));
            inner.with_post_processor(Some(BertProcessing::new(sep, cls)));
            Ok(inner)
        }
        Kind::Unigram => {
            inner.with_model(unigram(words, vocab_size)?);
            inner.with_decoder(Some(metaspace()));
            Ok(with_roberta_tokens(inner))
        }
    }
}

/// One token a byte.
pub fn bytes() -> Result<Inner, DataError> {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let entries = ROBERTA.iter().map(|s| s.to_string()).chain(alphabet.iter().map(char::to_string));
    let vocabulary: serde_json::Map<String, serde_json::Value> = entries.zip(0u32..).map(|(token, id)| (token, id.into())).collect();
    let json = serde_json::json!({"type": "BPE", "vocab": vocabulary, "merges": []}).to_string();
    let model: BPE = serde_json::from_str(&json).map_err(|e| trouble("bytes", e))?;
    let mut inner = Inner::new(model);
    inner.with_pre_tokenizer(Some(byte_level()));
    Ok(roberta(inner))
}

/// Byte-level decoder, RoBERTa's special tokens and its way to lay out a pair.
pub fn roberta(mut inner: Inner) -> Inner {
    inner.with_decoder(Some(byte_level()));
    with_roberta_tokens(inner)
}

fn with_roberta_tokens(mut inner: Inner) -> Inner {
    inner.add_special_tokens(&ROBERTA.map(|s| AddedToken::from(s, true)));
    let [sep, cls] = ["</s>", "<s>"].map(|t| (t.to_string(), inner.token_to_id(t).unwrap_or(0)));
    inner.with_post_processor(Some(RobertaProcessing::new(sep, cls).trim_offsets(true).add_prefix_space(false)));
    inner
}

pub fn byte_level() -> ByteLevel {
    ByteLevel::new(false, true, true)
}

fn metaspace() -> Metaspace {
    Metaspace::new('▁', PrependScheme::Always, true)
}

/// BERT's normalizer and splitter.
pub fn with_bert_splitter(inner: &mut Inner, normalizer: BertNormalizer) {
    inner.with_normalizer(Some(normalizer));
    inner.with_pre_tokenizer(Some(BertPreTokenizer));
}

/// A tokenizer that splits as the trained one will.
fn blank(kind: Kind) -> Inner {
    let mut inner = Inner::new(BPE::default());
    match kind {
        Kind::ByteBpe => {
            inner.with_pre_tokenizer(Some(byte_level()));
        }
        Kind::WordPiece => with_bert_splitter(&mut inner, BertNormalizer::new(true, true, None, false)),
        Kind::Unigram => {
            inner.with_normalizer(Some(NFKC));
            let parts = vec![PreTokenizerWrapper::WhitespaceSplit(WhitespaceSplit), PreTokenizerWrapper::Metaspace(metaspace())];
            inner.with_pre_tokenizer(Some(Sequence::new(parts)));
        }
    }
    inner
}

enum Trouble {
    Reading(DataError),
    Splitting(tokenizers::Error),
}

/// How often each word stands in the texts.
fn count_words(inner: &Inner, mut texts: impl Iterator<Item = Result<String, DataError>>) -> Result<Counts, Trouble> {
    let mut all = Counts::new();
    loop {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while bytes < BATCH_BYTES {
            let Some(text) = texts.next() else { break };
            let text = text.map_err(Trouble::Reading)?;
            bytes += text.len();
            batch.push(text);
        }
        if batch.is_empty() {
            return Ok(all);
        }
        let parts: Vec<&str> = batch.iter().flat_map(|text| pieces(text, PIECE_BYTES)).collect();
        let counted = parts.par_iter().map(|part| words_of(inner, part)).try_reduce(Counts::new, |a, b| {
            let (mut larger, smaller) = if a.len() > b.len() { (a, b) } else { (b, a) };
            smaller.into_iter().for_each(|(word, count)| *larger.entry(word).or_default() += count);
            Ok(larger)
        });
        counted.map_err(Trouble::Splitting)?.into_iter().for_each(|(word, count)| *all.entry(word).or_default() += count);
    }
}

fn words_of(inner: &Inner, text: &str) -> Result<Counts, tokenizers::Error> {
    let mut normalized = NormalizedString::from(text);
    if let Some(normalizer) = inner.get_normalizer() {
        normalizer.normalize(&mut normalized)?;
    }
    let mut split = PreTokenizedString::from(normalized);
    if let Some(splitter) = inner.get_pre_tokenizer() {
        splitter.pre_tokenize(&mut split)?;
    }
    let mut counts = Counts::new();
    for (word, _, _) in split.get_splits(OffsetReferential::Original, OffsetType::Byte) {
        *counts.entry(word.into()).or_default() += 1;
    }
    Ok(counts)
}

fn special(tokens: impl IntoIterator<Item = String>) -> Vec<AddedToken> {
    tokens.into_iter().map(|token| AddedToken::from(token, true)).collect()
}

/// Merged by count, ties by the lower ids; the alphabet is that of bytes, so no id depends on a hash's order.
fn byte_bpe(words: &Counts, vocab_size: usize) -> Result<BPE, DataError> {
    let trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(special(ROBERTA.map(str::to_string)))
        .build();
    let mut model = BPE::default();
    trainer.do_train(words, &mut model).map_err(|e| trouble("byte_bpe", e))?;
    Ok(model)
}

/// Characters by how often they stand in the words, without the rarest, sorted.
fn alphabet(words: &Counts, vocab_size: usize) -> Vec<char> {
    let mut counts: BTreeMap<char, u64> = BTreeMap::new();
    for (word, count) in words {
        word.chars().for_each(|c| *counts.entry(c).or_default() += count);
    }
    let mut ranked: Vec<(char, u64)> = counts.into_iter().collect();
    ranked.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    ranked.truncate(LARGEST_ALPHABET.min((vocab_size - BERT.len()) / 3));
    let mut kept: Vec<char> = ranked.into_iter().map(|(c, _)| c).collect();
    kept.sort_unstable();
    kept
}

fn written_with(words: Counts, alphabet: &[char]) -> Counts {
    words.into_iter().filter(|(word, _)| word.chars().all(|c| alphabet.binary_search(&c).is_ok())).collect()
}

/// BPE with `##` before what does not begin a word. The crate gives `##x` its id when a word first needs it, in the order
/// of a hash; here all of the alphabet have theirs beforehand.
fn word_piece(words: Counts, vocab_size: usize) -> Result<WordPiece, DataError> {
    let alphabet = alphabet(&words, vocab_size);
    let words = written_with(words, &alphabet);
    let inside = alphabet.iter().map(|c| format!("##{c}"));
    let trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .min_frequency(2)
        .show_progress(false)
        .continuing_subword_prefix("##".into())
        .initial_alphabet(alphabet.iter().copied().collect())
        .special_tokens(special(BERT.map(str::to_string).into_iter().chain(inside)))
        .build();
    let mut model = BPE::default();
    trainer.do_train(&words, &mut model).map_err(|e| trouble("wordpiece", e))?;
    Ok(WordPiece::from_bpe(&model))
}

/// Sums of floats depend on their order: sorted words, one thread.
fn unigram(words: Counts, vocab_size: usize) -> Result<ModelWrapper, DataError> {
    let fail = |e: String| trouble("unigram", e);
    let alphabet = alphabet(&words, vocab_size);
    let words = written_with(words, &alphabet);
    let mut sentences: Vec<(String, u32)> =
        words.into_iter().map(|(word, count)| (word.to_string(), count.min(u32::MAX.into()) as u32)).collect();
    sentences.sort_unstable();
    let trainer = UnigramTrainer::builder()
        .show_progress(false)
        .vocab_size(vocab_size as u32)
        .special_tokens(special(ROBERTA.map(str::to_string)))
        .unk_token(Some("<unk>".into()))
        .build()
        .map_err(|e| fail(e.to_string()))?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(|e| fail(e.to_string()))?;
    let mut model = Unigram::default();
    // The crate panics where a text leaves it nothing to estimate.
    let trained = silently(|| pool.install(|| trainer.do_train(sentences, &mut model)));
    trained.map_err(fail)?.map_err(|e| fail(e.to_string()))?;
    let ordered = in_one_order(model.iter().cloned().collect());
    Unigram::from(ordered, Some(3), false).map(ModelWrapper::Unigram).map_err(|e| fail(e.to_string()))
}

/// Characters that no piece needs get the lowest scores, in steps of 0.0001, in the order of a hash: here in their own.
fn in_one_order(mut pieces: Vec<(String, f64)>) -> Vec<(String, f64)> {
    let mut rest = pieces.split_off(ROBERTA.len());
    let lowest = rest.iter().map(|(_, score)| *score).fold(f64::INFINITY, f64::min);
    let mut steps: Vec<usize> = Vec::new();
    let mut penalty = 0.0;
    loop {
        let score = lowest + penalty;
        let at: Vec<usize> = (0..rest.len()).filter(|i| rest[*i].1 == score && rest[*i].0.chars().count() == 1).collect();
        if at.is_empty() {
            break;
        }
        steps.extend(at);
        penalty += 0.0001;
    }
    let mut tokens: Vec<String> = steps.iter().map(|i| rest[*i].0.clone()).collect();
    tokens.sort_unstable();
    steps.iter().zip(tokens).for_each(|(i, token)| rest[*i].0 = token);
    rest.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    pieces.extend(rest);
    pieces
}
