//! Texts with masks in them, as a person writes them.

use super::{DataError, Inner, Tokenizer};
use std::collections::HashMap;
use tokenizers::ModelWrapper;

/// How masks are written in RoBERTa's and in BERT's world; both are understood by every tokenizer.
const SPELLINGS: [&str; 2] = ["<mask>", "[MASK]"];

/// A text's ids with the masks among them.
#[derive(Clone, Debug, PartialEq)]
pub struct MaskedText {
    /// Without first and last token.
    pub ids: Vec<u32>,
    /// Where the masks stand in `ids`.
    pub masks: Vec<usize>,
    /// The text between the masks: one more than there are masks.
    pieces: Vec<String>,
    /// White space before a mask belongs to the mask's token.
    spaced: bool,
}

impl MaskedText {
    /// The text with `token` in the place of one mask.
    pub fn filled(&self, mask: usize, token: &str) -> String {
        let mut text = self.pieces[0].clone();
        for (i, piece) in self.pieces.iter().enumerate().skip(1) {
            if i - 1 == mask {
                text.truncate(if self.spaced { text.trim_end().len() } else { text.len() });
                text += if text.is_empty() { token.trim_start() } else { token };
            } else {
                text += SPELLINGS[0];
            }
            text += piece;
        }
        text
    }
}

impl Tokenizer {
    /// Ids of a text in which `<mask>`, `[MASK]` or the tokenizer's own mask token stands for a token.
    pub fn encode_masked(&self, text: &str) -> Result<MaskedText, DataError> {
        let own = self.inner.id_to_token(self.special.mask).unwrap_or_default();
        let mut pieces: Vec<String> = vec![text.to_string()];
        for spelling in SPELLINGS.into_iter().chain([own.as_str()]).filter(|s| !s.is_empty()) {
            pieces = pieces.iter().flat_map(|piece| piece.split(spelling).map(str::to_string).collect::<Vec<_>>()).collect();
        }
        let last = pieces.len() - 1;
        // " ship" is one token, and the mask stands for it with its space, as in training.
        let spaced = self.spaces_begin_tokens;
        let mut found = MaskedText { ids: Vec::new(), masks: Vec::new(), pieces: Vec::new(), spaced };
        for (i, piece) in pieces.iter().enumerate() {
            found.ids.extend(self.encode(if spaced && i < last { piece.trim_end() } else { piece })?);
            if i < last {
                found.masks.push(found.ids.len());
                found.ids.push(self.special.mask);
            }
        }
        found.pieces = pieces;
        Ok(found)
    }

    /// The text of one token, with the space that it begins with.
    pub fn token_text(&self, id: u32) -> Result<String, DataError> {
        let token = self.inner.id_to_token(id).unwrap_or_default();
        Ok(match (token.starts_with('▁'), is_word_piece(&self.inner)) {
            (true, _) => token.replace('▁', " "),
            (_, true) => token.strip_prefix("##").map_or_else(|| format!(" {token}"), str::to_string),
            _ => self.decode(&[id])?,
        })
    }
}

/// Whether a word's token holds the space before the word.
pub fn spaces_begin_tokens(inner: &Inner, vocabulary: &HashMap<String, u32>, special: &[u32]) -> bool {
    let is_such = |token: &str| token.starts_with(['Ġ', '▁']) && token.chars().nth(1).is_some();
    is_word_piece(inner) || vocabulary.iter().any(|(token, id)| is_such(token) && !special.contains(id))
}

fn is_word_piece(inner: &Inner) -> bool {
    matches!(inner.get_model(), ModelWrapper::WordPiece(_))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::Kind;
    use super::*;

    fn trained(kind: Kind) -> Tokenizer {
        let texts = (0..200).map(|i| Ok(format!("the ship lay in the harbour and the captain saw ships {}", i % 7)));
        Tokenizer::train(kind, texts, 300).unwrap()
    }

    /// The ids around a mask are those of the whole text, and a word's token fills its place.
    #[test]
    fn a_masked_word_leaves_the_other_ids_as_they_were() {
        for kind in [Kind::ByteBpe, Kind::WordPiece, Kind::Unigram] {
            let tokenizer = trained(kind);
            let [the, ship, lay, harbour] = ["the", " ship", " lay in the", " harbour"].map(|part| tokenizer.encode(part).unwrap());
            let whole = tokenizer.encode("the ship lay in the harbour").unwrap();
            assert_eq!([&the[..], &ship, &lay, &harbour].concat(), whole, "{kind:?}");
            let mask = [tokenizer.special.mask];
            for spelling in ["<mask>", "[MASK]"] {
                let masked = tokenizer.encode_masked(&format!("the {spelling} lay in the {spelling}")).unwrap();
                assert_eq!(masked.ids, [&the[..], &mask, &lay, &mask].concat(), "{kind:?}");
                assert_eq!(masked.masks, [the.len(), masked.ids.len() - 1], "{kind:?}");
                let word: String = ship.iter().map(|id| tokenizer.token_text(*id).unwrap()).collect();
                assert_eq!(masked.filled(0, &word), "the ship lay in the <mask>", "{kind:?}");
            }
        }
    }

    #[test]
    fn a_byte_is_a_token_without_its_space() {
        let masked = Tokenizer::bytes().unwrap().encode_masked("a <mask>t").unwrap();
        assert_eq!((masked.ids.len(), masked.masks.as_slice(), masked.filled(0, "c")), (4, &[2][..], "a ct".to_string()));
    }
}
