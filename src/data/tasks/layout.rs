//! Ids of a text or pair as the model sees them, in RoBERTa's layout, cut to a length.

use super::super::tokenizer::{SpecialIds, Tokenizer};
use crate::config::{Model, Truncation};

/// How texts become sequences.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub special: SpecialIds,
    /// Tokens of a sequence at most, special tokens included.
    pub length: usize,
    pub truncation: Truncation,
    /// BERT's layout of pairs: one separator between the texts, which token types tell apart.
    pub segments: bool,
}

/// The separator behind which a pair's second text gets token type 1: of a model with several types whose tokenizer tells
/// the texts of a pair apart, as BERT's does.
pub fn segments(model: &Model, tokenizer: &Tokenizer) -> Option<u32> {
    (model.type_vocab_size > 1 && tokenizer.tells_pairs_apart()).then_some(tokenizer.special.sep)
}

impl Layout {
    /// `first A separator`, or `first A separator separator B separator` (BERT: `first A separator B separator`); of a pair
    /// the longer text is cut first. Also says whether something was cut.
    pub fn sequence(&self, a: &[u32], b: Option<&[u32]>) -> (Vec<u32>, bool) {
        let SpecialIds { cls, sep, .. } = self.special;
        match b {
            None => {
                let room = self.length - 2;
                let (head, tail) = match self.truncation {
                    _ if a.len() <= room => (a.len(), 0),
                    Truncation::Head => (room, 0),
                    // The end of a review often holds its verdict.
                    Truncation::HeadTail => (room - room / 4, room / 4),
                };
                ([&[cls], &a[..head], &a[a.len() - tail..], &[sep]].concat(), a.len() > room)
            }
            Some(b) => {
                let between = &[sep; 2][usize::from(self.segments)..];
                let room = self.length - 2 - between.len();
                let (keep_a, keep_b) = longest_first(a.len(), b.len(), room);
                ([&[cls], &a[..keep_a], between, &b[..keep_b], &[sep]].concat(), a.len() + b.len() > room)
            }
        }
    }
}

/// How much of two texts stays when tokens are taken from the longer until `room` is enough.
fn longest_first(a: usize, b: usize, room: usize) -> (usize, usize) {
    let half = room / 2;
    match (a + b <= room, a <= half, b <= half) {
        (true, _, _) => (a, b),
        (_, true, _) => (a, room - a),
        (_, _, true) => (room - b, b),
        _ => (room - half, half),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECIAL: SpecialIds = SpecialIds { cls: 0, pad: 1, sep: 2, mask: 4 };

    /// Case 11.
    #[test]
    fn pairs_are_cut_longest_first() {
        assert_eq!(longest_first(3, 20, 12), (3, 9));
        assert_eq!(longest_first(20, 3, 12), (9, 3));
        assert_eq!(longest_first(20, 20, 13), (7, 6));
        assert_eq!(longest_first(3, 4, 12), (3, 4));
        let layout = Layout { special: SPECIAL, length: 12, truncation: Truncation::HeadTail, segments: false };
        assert_eq!(layout.sequence(&[7, 8], Some(&[9; 20])), (vec![0, 7, 8, 2, 2, 9, 9, 9, 9, 9, 9, 2], true));
        let berts = Layout { segments: true, ..layout };
        assert_eq!(berts.sequence(&[7, 8], Some(&[9; 20])), (vec![0, 7, 8, 2, 9, 9, 9, 9, 9, 9, 9, 2], true));
    }

    #[test]
    fn a_single_text_keeps_its_head_or_its_head_and_tail() {
        let ids: Vec<u32> = (10..30).collect();
        let cut = |truncation| Layout { special: SPECIAL, length: 10, truncation, segments: false }.sequence(&ids, None);
        assert_eq!(cut(Truncation::Head), (vec![0, 10, 11, 12, 13, 14, 15, 16, 17, 2], true));
        assert_eq!(cut(Truncation::HeadTail), (vec![0, 10, 11, 12, 13, 14, 15, 28, 29, 2], true));
        let short = Layout { special: SPECIAL, length: 22, truncation: Truncation::HeadTail, segments: false }.sequence(&ids, None);
        assert_eq!((short.0.len(), short.1), (22, false));
    }
}
