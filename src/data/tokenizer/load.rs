//! Tokenizers that were brought along: `tokenizer.json`, GPT-2's `vocab.json` and `merges.txt`, BERT's `vocab.txt`.

use super::special::Declared;
use super::{train, trouble};
use crate::data::{read_text, DataError};
use crate::native::panics::silently;
use serde_json::{json, Map, Value};
use std::path::Path;
use tokenizers::models::bpe::BPE;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::{AddedToken, Tokenizer as Inner};

/// Files that name special tokens.
const SIDE_FILES: [&str; 2] = ["special_tokens_map.json", "tokenizer_config.json"];

/// A tokenizer and what the files beside it declare.
pub fn load(path: &Path) -> Result<(Inner, Declared), DataError> {
    let (folder, file) = match path.is_dir() {
        true => {
            let names = ["tokenizer.json", "vocab.json", "vocab.txt"];
            let found = names.iter().map(|name| path.join(name)).find(|file| file.exists());
            let missing = || trouble(&path.display().to_string(), format!("a folder without {}", names.join(", ")));
            (path, found.ok_or_else(missing)?)
        }
        false => (path.parent().unwrap_or(Path::new(".")), path.to_path_buf()),
    };
    let mut declared = Declared::default();
    let mut side = Map::new();
    for name in SIDE_FILES {
        let beside = folder.join(name);
        if beside.exists() {
            let json: Value = parse(&beside)?;
            declared = declared.or_from(&json);
            side.extend(json.as_object().cloned().unwrap_or_default());
        }
    }
    let mut inner = match file.file_name().and_then(|n| n.to_str()) {
        Some("vocab.txt") => word_piece(&file, &declared, &side)?,
        Some("vocab.json") => byte_bpe(&file, &mut declared, &side)?,
        _ => {
            let bytes = std::fs::read(&file).map_err(DataError::io(&file))?;
            let bad = |e: String| trouble(&file.display().to_string(), format!("not a tokenizer.json: {e}"));
            // The crate panics on some of what it does not expect.
            silently(|| Inner::from_bytes(bytes)).map_err(bad)?.map_err(|e| bad(e.to_string()))?
        }
    };
    let named = [&declared.cls, &declared.sep, &declared.pad, &declared.mask].into_iter().flatten();
    let known: Vec<AddedToken> = named.filter(|t| inner.token_to_id(t).is_some()).map(|t| AddedToken::from(t.clone(), true)).collect();
    inner.add_special_tokens(&known);
    Ok((inner, declared))
}

fn parse(path: &Path) -> Result<Value, DataError> {
    serde_json::from_str(&read_text(path)?).map_err(|e| trouble(&path.display().to_string(), e))
}

/// BERT's list of tokens, one a line; the line is the id. Text is put in lower case if `tokenizer_config.json` says so, or,
/// where it does not, if no entry would be another one in lower case; its other keys are those of transformers.
fn word_piece(path: &Path, declared: &Declared, side: &Map<String, Value>) -> Result<Inner, DataError> {
    let name = path.display().to_string();
    let text = read_text(path)?;
    let tokens: Vec<&str> = text.lines().collect();
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let vocabulary: Map<String, Value> = tokens.iter().enumerate().map(|(id, token)| (token.to_string(), id.into())).collect();
    if vocabulary.len() != tokens.len() {
        return Err(trouble(&name, "the same token stands in two lines"));
    }
    // Capitals that have no lower case, such as a double-struck R, stand in uncased vocabularies too.
    let has_capitals = || tokens.iter().any(|t| !t.starts_with('[') && t.to_lowercase() != *t);
    let lowercase = side.get("do_lower_case").and_then(Value::as_bool).unwrap_or_else(|| !has_capitals());
    let flag = |key: &str| side.get(key).and_then(Value::as_bool);
    if flag("do_basic_tokenize") == Some(false) {
        return Err(trouble(&name, "tokenizer_config.json: do_basic_tokenize is false, expected BERT's own splitting before WordPiece"));
    }
    let unknown = side.get("unk_token").and_then(Value::as_str).unwrap_or("[UNK]");
    let json = json!({"type": "WordPiece", "unk_token": unknown, "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": vocabulary});
    let model: WordPiece = serde_json::from_str(&json.to_string()).map_err(|e| trouble(&name, e))?;
    let mut inner = Inner::new(model);
    let chinese = flag("tokenize_chinese_chars").unwrap_or(true);
    train::with_bert_splitter(&mut inner, BertNormalizer::new(true, chinese, flag("strip_accents"), lowercase));
    inner.with_decoder(Some(tokenizers::decoders::wordpiece::WordPiece::default()));
    let present: Vec<AddedToken> = special.iter().filter(|t| inner.token_to_id(t).is_some()).map(|t| AddedToken::from(*t, true)).collect();
    inner.add_special_tokens(&present);
    let named = |token: &Option<String>, usual: &str| token.clone().unwrap_or_else(|| usual.into());
    let (sep, cls) = (named(&declared.sep, "[SEP]"), named(&declared.cls, "[CLS]"));
    if let (Some(sep_id), Some(cls_id)) = (inner.token_to_id(&sep), inner.token_to_id(&cls)) {
        inner.with_post_processor(Some(BertProcessing::new((sep, sep_id), (cls, cls_id))));
    }
    Ok(inner)
}

/// GPT-2's vocabulary and merges. What masked language modelling needs and GPT-2 does not have (a mask, padding, a first
/// and a last token) is added behind it, under RoBERTa's names.
fn byte_bpe(path: &Path, declared: &mut Declared, side: &Map<String, Value>) -> Result<Inner, DataError> {
    let name = path.display().to_string();
    let merges = path.with_file_name("merges.txt");
    let lines = read_text(&merges)?;
    let merges: Vec<&str> = lines.lines().filter(|line| !line.starts_with("#version") && !line.is_empty()).collect();
    let vocabulary = parse(path)?;
    let had: Vec<String> = vocabulary.as_object().map(|v| v.keys().cloned().collect()).unwrap_or_default();
    let json = json!({"type": "BPE", "vocab": vocabulary, "merges": merges});
    let bad = |e: String| trouble(&name, format!("with merges.txt: {e}"));
    let model: BPE = silently(|| serde_json::from_str(&json.to_string())).map_err(bad)?.map_err(|e| bad(e.to_string()))?;
    let mut inner = Inner::new(model);
    let prefix = side.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(false);
    inner.with_pre_tokenizer(Some(train::byte_level().add_prefix_space(prefix)));
    let inner = with_end_of_text(train::roberta(inner), &had);
    // GPT-2's files name its end of text as first and last token; a mask and padding they do not have.
    *declared = Declared { mask: declared.mask.take(), pad: declared.pad.take(), ..Declared::default() };
    Ok(inner)
}

fn with_end_of_text(mut inner: Inner, had: &[String]) -> Inner {
    if had.iter().any(|token| token == "<|endoftext|>") {
        inner.add_special_tokens(&[AddedToken::from("<|endoftext|>", true)]);
    }
    inner
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{SpecialIds, Tokenizer};
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| std::fs::write(folder.path().join(name), text).unwrap());
        folder
    }

    const BERT: &str = "[PAD]\nthe\nship\n##s\nsail\n[CLS]\n[MASK]\n[SEP]\n[UNK]\n,\n";

    #[test]
    fn a_bert_vocabulary_has_the_ids_of_its_lines() {
        let folder = folder(&[("vocab.txt", BERT)]);
        for path in [folder.path().to_path_buf(), folder.path().join("vocab.txt")] {
            let tokenizer = Tokenizer::load(&path).unwrap();
            assert_eq!(tokenizer.special, SpecialIds { cls: 5, pad: 0, sep: 7, mask: 6 });
            assert_eq!(tokenizer.encode("The ships, sails quickly").unwrap(), [1, 2, 3, 9, 4, 3, 8]);
            assert_eq!(tokenizer.special_ids, [0, 5, 6, 7, 8]);
        }
        std::fs::write(folder.path().join("tokenizer_config.json"), "{\"do_lower_case\": false}").unwrap();
        assert_eq!(Tokenizer::load(folder.path()).unwrap().encode("The ships").unwrap(), [8, 2, 3]);
        // An uncased vocabulary may have capitals that have no lower case.
        std::fs::write(folder.path().join("tokenizer_config.json"), "{}").unwrap();
        std::fs::write(folder.path().join("vocab.txt"), format!("{BERT}ℝ\ne\n")).unwrap();
        assert_eq!(Tokenizer::load(folder.path()).unwrap().encode("The SHIP").unwrap(), [1, 2]);
        assert_eq!(Tokenizer::load(folder.path()).unwrap().encode("é").unwrap(), [11]);
        std::fs::write(folder.path().join("tokenizer_config.json"), "{\"strip_accents\": false}").unwrap();
        assert_eq!(Tokenizer::load(folder.path()).unwrap().encode("é").unwrap(), [8]);
        // An ideograph is a word of its own, or goes on with the word before it.
        std::fs::write(folder.path().join("vocab.txt"), format!("{BERT}船\n##船\n")).unwrap();
        for (says, ids) in [("{}", [2, 10]), ("{\"tokenize_chinese_chars\": false}", [2, 11])] {
            std::fs::write(folder.path().join("tokenizer_config.json"), says).unwrap();
            assert_eq!(Tokenizer::load(folder.path()).unwrap().encode("ship船").unwrap(), ids, "{says}");
        }
        std::fs::write(folder.path().join("tokenizer_config.json"), "{\"do_basic_tokenize\": false}").unwrap();
        assert!(Tokenizer::load(folder.path()).err().unwrap().to_string().contains("do_basic_tokenize"));
        std::fs::write(folder.path().join("vocab.txt"), "[PAD]\na\na\n").unwrap();
        std::fs::remove_file(folder.path().join("tokenizer_config.json")).unwrap();
        assert!(Tokenizer::load(folder.path()).err().unwrap().to_string().contains("in two lines"));
    }

    #[test]
    fn a_gpt2_vocabulary_keeps_its_ids_and_gets_what_it_lacks() {
        let (h, e, he) = ("\"h\": 0", "\"e\": 1", "\"he\": 2");
        let vocabulary = format!("{{{h}, {e}, {he}, \"Ġ\": 3, \"<|endoftext|>\": 4}}");
        let folder = folder(&[
            ("vocab.json", &vocabulary),
            ("merges.txt", "#version: 0.2\nh e\n"),
            ("special_tokens_map.json", "{\"bos_token\": \"<|endoftext|>\", \"eos_token\": \"<|endoftext|>\"}"),
        ]);
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        assert_eq!(tokenizer.encode("he eh").unwrap(), [2, 3, 1, 0]);
        assert_eq!(tokenizer.special, SpecialIds { cls: 5, pad: 6, sep: 7, mask: 9 });
        assert_eq!(tokenizer.special_ids, [4, 5, 6, 7, 8, 9]);
        std::fs::write(folder.path().join("tokenizer_config.json"), "{\"add_prefix_space\": true}").unwrap();
        assert_eq!(Tokenizer::load(folder.path()).unwrap().encode("he eh").unwrap(), [3, 2, 3, 1, 0]);
        std::fs::remove_file(folder.path().join("merges.txt")).unwrap();
        assert!(Tokenizer::load(folder.path()).err().unwrap().to_string().contains("merges.txt"));
    }

    /// Names that nobody uses: the declaration counts, wherever it stands.
    #[test]
    fn special_tokens_are_those_that_are_declared() {
        let mut json: Value = serde_json::from_str(&Tokenizer::bytes().unwrap().to_json().unwrap()).unwrap();
        let ids = |names: [&str; 4]| names.map(|n| json["model"]["vocab"][n].as_u64().unwrap() as u32);
        let [first, last, fill, hide] = ids(["A", "B", "C", "D"]);
        let side = "{\"cls_token\": \"A\", \"sep_token\": {\"content\": \"B\"}, \"pad_token\": \"C\", \"mask_token\": \"D\"}";
        let beside = folder(&[("tokenizer.json", &json.to_string()), ("special_tokens_map.json", side)]);
        let tokenizer = Tokenizer::load(&beside.path().join("tokenizer.json")).unwrap();
        assert_eq!(tokenizer.special, SpecialIds { cls: first, pad: fill, sep: last, mask: hide });
        assert!([first, last, fill, hide].iter().all(|id| tokenizer.special_ids.contains(id)));
        json["post_processor"]["cls"] = json!(["E", json["model"]["vocab"]["E"]]);
        json["padding"] = json!({"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": json["model"]["vocab"]["F"], "pad_type_id": 0, "pad_token": "F"});
        let inside = folder(&[("tokenizer.json", &json.to_string())]);
        let special = Tokenizer::load(inside.path()).unwrap().special;
        let id = |name: &str| json["model"]["vocab"][name].as_u64().unwrap() as u32;
        assert_eq!((special.cls, special.pad, special.mask), (id("E"), id("F"), id("<mask>")));
        let wrong = folder(&[("tokenizer.json", &json.to_string()), ("special_tokens_map.json", "{\"mask_token\": \"[nowhere]\"}")]);
        let message = Tokenizer::load(wrong.path()).err().unwrap().to_string();
        assert!(message.contains("declares \"[nowhere]\" as its mask token"), "{message}");
    }
}
