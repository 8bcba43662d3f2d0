//! docs/huggingface.md as a user would follow it.

use super::Lab;
use std::path::Path;

/// What a fenced block is marked with, and its lines.
pub fn blocks(markdown: &str) -> Vec<(String, String)> {
    let mut parts = markdown.split("\n```");
    let mut found = Vec::new();
    parts.next();
    while let Some(block) = parts.next() {
        let (mark, body) = block.split_once('\n').unwrap_or((block, ""));
        found.push((mark.trim().to_string(), body.to_string()));
        parts.next();
    }
    found
}

pub fn text() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/huggingface.md")).unwrap()
}

/// The files that the page speaks of.
pub fn prepare(lab: &Lab) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/exchange");
    for (from, to) in [("roberta_mlm", "hf/my-roberta"), ("roberta_classifier", "hf/my-classifier"), ("fairseq_headwise", "fairseq")] {
        for (path, bytes) in super::snapshot(&fixtures.join(from)) {
            lab.write(&format!("{to}/{}", path.file_name().unwrap().to_str().unwrap()), bytes);
        }
    }
    lab.ok(&["import", "hf/my-classifier", "--out", "models/my-classifier"]);
    let words: Vec<&str> =
        "the ship sailed at dawn and a letter came from her sister who praised the garden in winter it was cold but calm"
            .split(' ')
            .collect();
    let line = |i: usize| (0..24).map(|j| words[(i * 5 + j * (i % 7 + 1)) % words.len()]).collect::<Vec<_>>().join(" ") + "\n";
    lab.write("my-text.txt", (0..60).map(line).collect::<String>());
    lab.write("new.txt", line(1) + &line(2));
    lab.write("train.tsv", super::task_rows(16));
    lab.write("dev.tsv", super::task_rows(8));
    for (mark, body) in blocks(&text()) {
        if let Some(name) = mark.strip_prefix("json ") {
            lab.write(name, body);
        }
    }
}

/// Runs every command.
pub fn run(lab: &Lab) {
    let mut count = 0;
    for (_, body) in blocks(&text()).into_iter().filter(|(mark, _)| mark == "sh") {
        for line in body.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            assert_eq!(words[0], "linformer", "{line}");
            lab.ok(&words[1..]);
            count += 1;
        }
    }
    assert!(count >= 9, "{count} commands");
}
