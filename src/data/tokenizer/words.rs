//! Where words begin, for whole-word masking: a word ends at white space (WordPiece: where a token without `##` follows).

use tokenizers::{ModelWrapper, Tokenizer as Inner};

/// For every id, whether it begins a word, and whether the next one does whatever it is.
#[derive(Clone, Debug)]
pub struct WordStarts {
    begins: Vec<bool>,
    ends: Vec<bool>,
}

impl WordStarts {
    pub(super) fn new(inner: &Inner, vocab_size: usize) -> Self {
        let is_word_piece = matches!(inner.get_model(), ModelWrapper::WordPiece(_));
        let (mut begins, mut ends) = (vec![true; vocab_size], vec![false; vocab_size]);
        for (token, id) in inner.get_vocab(true) {
            let id = id as usize;
            if is_word_piece {
                begins[id] = !token.starts_with("##");
                continue;
            }
            // A space as byte-level tokenizers and SentencePiece write it; a line break and a tab as the former do.
            begins[id] = token.starts_with(['Ġ', '▁', ' ', 'Ċ', 'ĉ', 'č']);
            ends[id] = token.ends_with(['Ċ', 'ĉ', 'č']);
        }
        Self { begins, ends }
    }

    /// Whether a word begins at `id` when `before` stands before it.
    pub fn begins(&self, before: u32, id: u32) -> bool {
        let at = |flags: &[bool], id: u32| flags.get(id as usize).copied().unwrap_or(true);
        at(&self.begins, id) || at(&self.ends, before)
    }
}
