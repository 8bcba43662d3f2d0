//! The embedded corpus: its size, and that no development row of a derived task is seen in training or pretraining.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::Lab;
use serde_json::json;
use std::collections::HashSet;
use std::path::Path;

fn corpus() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/text")
}

#[test]
fn it_is_at_most_8_mb() {
    let bytes: usize = common::snapshot(&corpus()).iter().map(|(_, bytes)| bytes.len()).sum();
    assert!((7_000_000..=8_000_000).contains(&bytes), "{bytes}");
}

/// Runs of `count` words, to be looked up.
fn runs(text: &str, count: usize) -> HashSet<Vec<String>> {
    let words: Vec<String> = text.split_whitespace().map(str::to_string).collect();
    words.windows(count).map(<[String]>::to_vec).collect()
}

#[test]
fn development_text_is_neither_trained_nor_pretrained_on() {
    let lab = Lab::new();
    let text = corpus();
    lab.config("c.json", &[("data.corpus", json!(text)), ("data.validation_fraction", json!(0.08))]);
    lab.ok(&["data", "derive", "c.json", "tasks"]);
    // Pretraining reads the documents that are not held out, by the same function of their names.
    let documents = linformer::data::corpus::files(&[text]).unwrap();
    let (held, kept): (Vec<_>, Vec<_>) = documents.iter().partition(|file| linformer::data::corpus::is_held_out(&file.id, 0.08));
    assert!(held.len() > 15 && held.iter().any(|f| f.id.starts_with("sotu")) && held.iter().any(|f| f.id.starts_with("austen")));
    let pretraining: HashSet<Vec<String>> = kept.iter().flat_map(|file| runs(&std::fs::read_to_string(&file.path).unwrap(), 12)).collect();
    for task in ["period", "which_novel"] {
        let rows = |split: &str| lab.read(&format!("tasks/{task}/{split}.tsv"));
        let training = runs(&rows("train"), 12);
        let (mut seen, mut all) = (0, 0);
        for passage in rows("dev").lines().skip(1).flat_map(|line| line.split('\t')) {
            let runs = runs(passage, 12);
            all += runs.len();
            seen += runs.iter().filter(|r| pretraining.contains(*r) || training.contains(*r)).count();
        }
        // Addresses share a few formulas ("the Senate and House of Representatives of the United States ...").
        assert!(all > 10_000 && (seen as f64) < 0.002 * all as f64, "{task}: {seen} of {all} runs of 12 words were seen");
    }
}

#[test]
fn deriving_twice_gives_the_same_files() {
    let lab = Lab::new();
    lab.config("c.json", &[("data.corpus", json!(corpus()))]);
    for out in ["a", "b"] {
        lab.ok(&["data", "derive", "c.json", out, "--train-rows", "300", "--dev-rows", "100"]);
    }
    let files = |out: &str| {
        common::snapshot(&lab.path(out))
            .into_iter()
            .map(|(path, bytes)| (path.strip_prefix(lab.path(out)).unwrap().to_path_buf(), bytes))
            .collect::<Vec<_>>()
    };
    assert_eq!(files("a"), files("b"));
    for task in ["period", "which_novel"] {
        let labels: HashSet<String> =
            lab.read(&format!("a/{task}/dev.tsv")).lines().skip(1).map(|l| l.rsplit('\t').next().unwrap().to_string()).collect();
        assert!(labels.len() >= 2, "{task}");
    }
}
