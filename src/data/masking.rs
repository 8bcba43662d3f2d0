//! BERT's masking (Devlin et al., 2018, section 3.1): a share of the tokens is chosen; of these 80 % become the mask
//! token, 10 % a random token, 10 % stay. Special tokens are never chosen and never drawn.
//!
//! With whole words the choice falls on a word, and each of its tokens is then replaced by itself at the same rates.

use super::tokenizer::{Tokenizer, WordStarts};
use crate::random::Stream;

/// Rates and ids.
#[derive(Clone, Debug)]
pub struct Masking {
    pub probability: f64,
    pub mask_token_share: f64,
    pub random_token_share: f64,
    mask: u32,
    vocab_size: usize,
    /// Sorted.
    special: Vec<u32>,
    /// None: tokens are chosen one by one.
    words: Option<WordStarts>,
}

/// A chosen place of a sequence and the token that stood there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub position: usize,
    pub token: u32,
}

impl Masking {
    pub fn new(tokenizer: &Tokenizer, probability: f64, mask_token_share: f64, random_token_share: f64) -> Self {
        Self {
            probability,
            mask_token_share,
            random_token_share,
            mask: tokenizer.special.mask,
            vocab_size: tokenizer.vocab_size(),
            special: tokenizer.special_ids.clone(),
            words: None,
        }
    }

    /// Chooses whole words, if it is known where they begin.
    pub fn whole_words(self, words: Option<WordStarts>) -> Self {
        Self { words, ..self }
    }

    /// Masks a sequence in place; the same stream gives the same masks.
    pub fn apply(&self, ids: &mut [u32], stream: Stream) -> Vec<Target> {
        let mut draws = stream.draws();
        let mut targets = Vec::new();
        let mut chosen = false;
        // The token before, as it was; None behind a special token.
        let mut before = None;
        for (position, id) in ids.iter_mut().enumerate() {
            if self.special.binary_search(id).is_ok() {
                before = None;
                continue;
            }
            let begins = match (&self.words, before) {
                (Some(words), Some(before)) => words.begins(before, *id),
                _ => true,
            };
            before = Some(*id);
            if begins {
                chosen = draws.uniform() < self.probability;
            }
            if !chosen {
                continue;
            }
            targets.push(Target { position, token: *id });
            let kind = draws.uniform();
            if kind < self.mask_token_share {
                *id = self.mask;
            } else if kind < self.mask_token_share + self.random_token_share {
                *id = self.ordinary(draws.below((self.vocab_size - self.special.len()) as u64) as u32);
            }
        }
        targets
    }

    /// The ordinary token of a rank: ids without the special ones.
    fn ordinary(&self, rank: u32) -> u32 {
        self.special.iter().fold(rank, |id, special| if *special <= id { id + 1 } else { id })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::random::Purpose;

    fn masking() -> Masking {
        Masking::new(&Tokenizer::bytes().unwrap(), 0.15, 0.8, 0.1)
    }

    /// On 10^6 tokens, each share within 5 standard deviations.
    #[test]
    fn rates_are_15_percent_and_80_10_10() {
        let (mut ordinary, mut chosen, mut masked, mut kept, mut random) = (0f64, 0f64, 0f64, 0f64, 0f64);
        for sequence in 0..1000u64 {
            let before: Vec<u32> = (0..1000).map(|i| if i == 0 { 0 } else { 5 + (i * 31 + sequence as u32) % 256 }).collect();
            let mut ids = before.clone();
            let targets = masking().apply(&mut ids, Stream::new(1, Purpose::Mask, sequence));
            ordinary += 999.0;
            chosen += targets.len() as f64;
            for t in &targets {
                assert_eq!(before[t.position], t.token);
                match ids[t.position] {
                    4 => masked += 1.0,
                    id if id == t.token => kept += 1.0,
                    _ => random += 1.0,
                }
            }
            let untouched = ids.iter().zip(&before).filter(|(a, b)| a != b).count();
            assert!(untouched <= targets.len());
            assert_eq!(ids[0], 0, "the first token was masked");
        }
        let near = |found: f64, of: f64, p: f64| {
            assert!((found / of - p).abs() < 5.0 * (p * (1.0 - p) / of).sqrt(), "{found} of {of}, expected {p}")
        };
        near(chosen, ordinary, 0.15);
        near(masked, chosen, 0.8);
        // A random token is the old one once in 256 times.
        near(random, chosen, 0.1 * 255.0 / 256.0);
        near(kept, chosen, 0.1 + 0.1 / 256.0);
    }

    /// Case 24: the rates of whole words are those of tokens. Words are masked as a whole or not at all; on 10^6 tokens,
    /// the share of words within 5 standard deviations, and the share of tokens within 5 of a sum over words.
    #[test]
    fn whole_words_are_chosen_at_the_same_rates() {
        let tokenizer = Tokenizer::bytes().unwrap();
        let masking = masking().whole_words(Some(tokenizer.word_starts()));
        let text =
            |i: usize| (0..150).map(|j| ["a", "word", "is", "of", "several", "bytes"][(i * 7 + j * j) % 6]).collect::<Vec<_>>().join(" ");
        let (mut words, mut chosen, mut tokens, mut targets, mut squares) = (0f64, 0f64, 0f64, 0f64, 0f64);
        let (mut masked, mut kept, mut random) = (0f64, 0f64, 0f64);
        for sequence in 0..2000 {
            let before = tokenizer.encode(&text(sequence)).unwrap();
            let mut ids = before.clone();
            let found = masking.apply(&mut ids, Stream::new(1, Purpose::Mask, sequence as u64));
            let places: Vec<usize> = found.iter().map(|t| t.position).collect();
            let space = tokenizer.encode(" ").unwrap()[0];
            let mut starts: Vec<usize> = (0..before.len()).filter(|i| *i == 0 || before[*i] == space).collect();
            starts.push(before.len());
            for word in starts.windows(2) {
                let hit = (word[0]..word[1]).filter(|i| places.binary_search(i).is_ok()).count();
                assert!(hit == 0 || hit == word[1] - word[0], "half a word was chosen");
                words += 1.0;
                chosen += f64::from(u8::from(hit > 0));
                squares += ((word[1] - word[0]) as f64).powi(2);
            }
            tokens += before.len() as f64;
            targets += found.len() as f64;
            for t in &found {
                match ids[t.position] {
                    4 => masked += 1.0,
                    id if id == t.token => kept += 1.0,
                    _ => random += 1.0,
                }
            }
        }
        assert!(tokens > 1e6, "{tokens}");
        let near = |found: f64, of: f64, p: f64| {
            assert!((found / of - p).abs() < 5.0 * (p * (1.0 - p) / of).sqrt(), "{found} of {of}, expected {p}")
        };
        near(chosen, words, 0.15);
        assert!((targets - 0.15 * tokens).abs() < 5.0 * (0.15 * 0.85 * squares).sqrt(), "{targets} of {tokens}");
        near(masked, targets, 0.8);
        near(random, targets, 0.1 * 255.0 / 256.0);
        near(kept, targets, 0.1 + 0.1 / 256.0);
    }

    #[test]
    fn random_tokens_are_never_special() {
        let m = masking();
        let drawn: Vec<u32> = (0..256).map(|rank| m.ordinary(rank)).collect();
        assert_eq!(drawn, (5..261).collect::<Vec<u32>>());
        let holes = Masking { special: vec![0, 3, 260], ..m };
        assert_eq!((holes.ordinary(0), holes.ordinary(1), holes.ordinary(2), holes.ordinary(257)), (1, 2, 4, 259));
    }

    #[test]
    fn the_stream_decides() {
        let run = |index| {
            let mut ids: Vec<u32> = (5..200).collect();
            (masking().apply(&mut ids, Stream::new(1, Purpose::Mask, index)), ids)
        };
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
    }
}
