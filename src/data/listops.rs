//! ListOps as Long Range Arena has it (Nangia and Bowman, 2018; Tay et al., 2020): nested prefix expressions over single digits
//! and their value, by a generator of our own to the published grammar.
//!
//! An expression at depth 1 is a digit with probability 3/4 (always at the greatest depth), else an operator (MIN, MAX, MED: the
//! median, rounded down; SM: the sum modulo 10) with 2 to 10 arguments of the next depth. Kept are those of more than 500 and
//! fewer than 2,000 tokens, each once: 96,000 to train on, 2,000 to choose with and 2,000 to report on. The published files
//! also have parentheses, which their readers take out again; here there are none.

use super::DataError;
use crate::digest::sha256;
use crate::durable::replace;
use crate::random::{hash_name, Draws, Purpose, Stream};
use serde_json::json;
use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::Path;

/// The published sizes are the defaults.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub max_depth: u32,
    pub max_arguments: u64,
    /// An expression has more tokens than the first and fewer than the second.
    pub min_length: usize,
    pub max_length: usize,
    pub train_rows: usize,
    pub dev_rows: usize,
    pub test_rows: usize,
    pub seed: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            max_depth: 10,
            max_arguments: 10,
            min_length: 500,
            max_length: 2000,
            train_rows: 96_000,
            dev_rows: 2_000,
            test_rows: 2_000,
            seed: 0,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Min,
    Max,
    Median,
    SumModulo,
}

const OPERATORS: [(Operator, &str); 4] =
    [(Operator::Min, "[MIN"), (Operator::Max, "[MAX"), (Operator::Median, "[MED"), (Operator::SumModulo, "[SM")];
const END: &str = "]";
/// The classes: the value of an expression.
pub const LABELS: &[&str] = &DIGITS;
const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
/// Of an operator where depth allows one.
const OPERATOR_SHARE: f64 = 0.25;

impl Operator {
    fn apply(self, arguments: &mut [u8]) -> u8 {
        arguments.sort_unstable();
        let last = arguments.len() - 1;
        match self {
            Self::Min => arguments[0],
            Self::Max => arguments[last],
            // Of an even number the mean of the middle two, rounded down.
            Self::Median => (arguments[last / 2] + arguments[last.div_ceil(2)]) / 2,
            Self::SumModulo => (arguments.iter().map(|a| u32::from(*a)).sum::<u32>() % 10) as u8,
        }
    }
}

/// Draws one expression; gives its value, or None once it has grown past `max_length` tokens.
fn draw(draws: &mut Draws, depth: u32, shape: &Shape, tokens: &mut Vec<&'static str>) -> Option<u8> {
    if depth >= shape.max_depth || draws.uniform() > OPERATOR_SHARE {
        let digit = draws.below(10) as usize;
        tokens.push(DIGITS[digit]);
        return (tokens.len() < shape.max_length).then_some(digit as u8);
    }
    let count = 2 + draws.below(shape.max_arguments - 1);
    let (operator, name) = OPERATORS[draws.below(4) as usize];
    tokens.push(name);
    let mut arguments = Vec::new();
    for _ in 0..count {
        arguments.push(draw(draws, depth + 1, shape, tokens)?);
    }
    tokens.push(END);
    (tokens.len() < shape.max_length).then(|| operator.apply(&mut arguments))
}

/// Writes `train.tsv`, `dev.tsv`, `test.tsv` (text, label) and `tokenizer.json` into `out`; gives what was written.
pub fn generate(shape: &Shape, out: &Path) -> Result<Vec<String>, DataError> {
    let bad = |what: &str| Err(DataError::Task(format!("listops: {what}")));
    if shape.max_arguments < 2 || shape.max_depth < 2 {
        return bad("found fewer than 2 arguments or a depth below 2, expected at least 2 of each");
    }
    if shape.min_length + 1 >= shape.max_length {
        return bad("no length is more than the shortest and less than the longest");
    }
    std::fs::create_dir_all(out).map_err(DataError::io(out))?;
    let mut seen = HashSet::new();
    let (mut attempt, mut written) = (0u64, Vec::new());
    for (split, rows) in [("train", shape.train_rows), ("dev", shape.dev_rows), ("test", shape.test_rows)] {
        let (mut text, mut kept) = ("text\tlabel\n".to_string(), 0);
        while kept < rows {
            // One expression a number, so that the same seed gives the same rows whatever is kept.
            let mut draws = Stream::new(shape.seed, Purpose::Derivation, hash_name("listops").wrapping_add(attempt)).draws();
            attempt += 1;
            if attempt > 10_000_000 + 10_000 * (shape.train_rows + shape.dev_rows + shape.test_rows) as u64 {
                return bad("expressions of this length hardly occur at this depth; widen the lengths or raise the depth");
            }
            let mut tokens = Vec::new();
            let Some(value) = draw(&mut draws, 1, shape, &mut tokens) else { continue };
            if tokens.len() <= shape.min_length || !seen.insert(sha256(tokens.concat().as_bytes())) {
                continue;
            }
            let _ = writeln!(text, "{}\t{value}", tokens.join(" "));
            kept += 1;
        }
        let path = out.join(format!("{split}.tsv"));
        replace(&path, text.as_bytes()).map_err(DataError::io(&path))?;
        written.push(format!("{}: {rows} rows", path.display()));
    }
    let path = out.join("tokenizer.json");
    replace(&path, tokenizer().as_bytes()).map_err(DataError::io(&path))?;
    written.push(format!("{}: one token a word", path.display()));
    Ok(written)
}

/// A word-level tokenizer for the 15 words and the special tokens.
fn tokenizer() -> String {
    let special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"];
    let words = special.iter().chain(OPERATORS.iter().map(|(_, name)| name)).chain([&END]).chain(&DIGITS);
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        words.enumerate().map(|(id, word)| (word.to_string(), id.into())).collect();
    let added = |(id, token): (usize, &&str)| json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": special.iter().enumerate().map(added).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": null,
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    });
    format!("{tokenizer:#}\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::data::tokenizer::Tokenizer;

    const SMALL: Shape =
        Shape { max_depth: 5, max_arguments: 4, min_length: 8, max_length: 60, train_rows: 300, dev_rows: 40, test_rows: 40, seed: 3 };

    /// The value of a row, by another way: a stack machine over its words.
    fn value(text: &str) -> u8 {
        let mut stack: Vec<(&str, Vec<u8>)> = vec![("", Vec::new())];
        for word in text.split(' ') {
            if word == "]" {
                let (operator, mut arguments) = stack.pop().unwrap();
                arguments.sort();
                let n = arguments.len();
                let value = match operator {
                    "[MIN" => *arguments.first().unwrap(),
                    "[MAX" => *arguments.last().unwrap(),
                    "[SM" => (arguments.iter().map(|a| *a as u32).sum::<u32>() % 10) as u8,
                    _ if n % 2 == 1 => arguments[n / 2],
                    _ => ((arguments[n / 2 - 1] + arguments[n / 2]) as f64 / 2.0) as u8,
                };
                stack.last_mut().unwrap().1.push(value);
            } else if word.starts_with('[') {
                stack.push((word, Vec::new()));
            } else {
                stack.last_mut().unwrap().1.push(word.parse().unwrap());
            }
        }
        assert_eq!(stack.len(), 1, "{text}");
        stack[0].1[0]
    }

    #[test]
    fn rows_are_what_the_grammar_says_each_once_and_the_same_again() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        generate(&SMALL, one.path()).unwrap();
        generate(&SMALL, other.path()).unwrap();
        let tokenizer = Tokenizer::load(&one.path().join("tokenizer.json")).unwrap();
        let (mut seen, mut labels, mut words) = (HashSet::new(), [0; 10], HashSet::new());
        for (split, rows) in [("train", 300), ("dev", 40), ("test", 40)] {
            let text = std::fs::read_to_string(one.path().join(format!("{split}.tsv"))).unwrap();
            assert_eq!(text, std::fs::read_to_string(other.path().join(format!("{split}.tsv"))).unwrap());
            assert_eq!(text.lines().count(), rows + 1);
            for line in text.lines().skip(1) {
                let (expression, label) = line.split_once('\t').unwrap();
                let label: u8 = label.parse().unwrap();
                assert_eq!(value(expression), label, "{expression}");
                let count = expression.split(' ').count();
                assert!(count > 8 && count < 60, "{count}");
                assert!(seen.insert(expression.to_string()), "twice: {expression}");
                labels[label as usize] += 1;
                words.extend(expression.split(' ').map(str::to_string));
                let ids = tokenizer.encode(expression).unwrap();
                assert_eq!(ids.len(), count, "one token a word");
                assert!(!ids.contains(&3), "an unknown word: {expression}");
            }
        }
        assert_eq!(words.len(), 15);
        assert!(labels.iter().all(|count| *count > 5), "{labels:?}");
    }

    #[test]
    fn what_cannot_be_drawn_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = |shape: Shape| generate(&shape, folder.path()).unwrap_err().to_string();
        assert!(error(Shape { min_length: 60, ..SMALL }).contains("no length"));
        assert!(error(Shape { max_depth: 1, ..SMALL }).contains("depth below 2"));
    }
}
