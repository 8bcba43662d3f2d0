//! The models that the repository brings along: they say sensible things and reach what their cards claim.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::Lab;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name)
}

/// A number of a model's card: the row that begins with `row`.
fn card(name: &str, row: &str) -> f64 {
    let text = std::fs::read_to_string(model(name).join("README.md")).unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("| {row} |"))).unwrap_or_else(|| panic!("no row \"{row}\""));
    line.split('|').nth(2).unwrap().trim().trim_start_matches("accuracy ").parse().unwrap()
}

/// A lab with the repository's text.
fn desk() -> Lab {
    let lab = Lab::new();
    for name in ["data", "experiments", "models"] {
        std::os::unix::fs::symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join(name), lab.path(name)).unwrap();
    }
    lab
}

#[test]
fn the_masked_lm_guesses_words_and_has_the_loss_of_its_card() {
    let lab = desk();
    for (text, word, at_least) in [
        ("The people of the United <mask> are free.", " States", 0.5),
        ("I have the honour to be your <mask> servant.", " own", 0.02),
        ("She was a very <mask> woman.", " pretty", 0.02),
    ] {
        let said: Value = serde_json::from_str(&lab.ok(&["fill-mask", "models/prose", text, "--json"]).stdout).unwrap();
        let guess = said.as_array().unwrap().iter().find(|g| g["token_str"] == word);
        assert!(guess.is_some_and(|g| g["score"].as_f64().unwrap() > at_least), "{text}: {said}");
    }
    let said = lab.ok(&["evaluate", "models/prose", "experiments/release/pretrain.json"]).stdout;
    let split = serde_json::from_str::<Value>(&said).unwrap()["splits"]["validation"].clone();
    // The card's are the run's own, in bf16; these are of the file, in fp32.
    for (row, key, off) in [("validation loss (nats)", "loss", 0.01), ("masked accuracy", "masked_accuracy", 0.005)] {
        let (found, claimed) = (split[key].as_f64().unwrap(), card("prose", row));
        assert!((found - claimed).abs() < off, "{row}: {found}, the card says {claimed}");
    }
    // The tokenizer is the one that the config makes of the text.
    assert!(split["loss"].as_f64().unwrap() < 3.5 && split["unigram_perplexity"].as_f64().unwrap() > 500.0, "{split}");
}

#[test]
fn the_classifier_dates_passages_and_has_the_accuracy_of_its_card() {
    let lab = desk();
    let words = ["--words", "60", "--train-rows", "300", "--dev-rows", "2000"];
    lab.ok(&[&["data", "derive", "experiments/release/pretrain.json", "tasks"], &words[..]].concat());
    let said = lab.ok(&["evaluate", "models/prose-period", "period", "data.task_dir=tasks", "data.cache_dir=cache"]).stdout;
    let split = serde_json::from_str::<Value>(&said).unwrap()["splits"]["dev"].clone();
    let (found, claimed) = (split["accuracy"].as_f64().unwrap(), card("prose-period", "accuracy of these weights"));
    // A passage or two on the edge between two classes may fall otherwise on another processor.
    assert!((found - claimed).abs() < 4e-3 && split["rows"] == 853, "{found}, the card says {claimed}: {split}");
}

/// transformers wants the file beside the weights: it is the one that an export writes today.
#[test]
fn the_models_python_is_that_of_an_export() {
    let ours = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/exchange/modeling_linformer.py")).unwrap();
    for name in ["prose", "prose-period"] {
        assert!(std::fs::read_to_string(model(name).join("modeling_linformer.py")).unwrap() == ours, "{name}: export it again");
    }
}

/// Small enough to be cloned with the program.
#[test]
fn the_models_are_small() {
    let size = |name: &str| model(name).join("model.safetensors").metadata().unwrap().len();
    assert!(size("prose") + size("prose-period") < 12_000_000);
}
