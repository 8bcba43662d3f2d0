//! The documentation cannot lie: every config block of README and docs is read by the program, and every command is run, in
//! the order in which a page has them, in a folder with the repository's `data/` and `experiments/`.
//!
//! Runs are made short by keys that the test adds. What needs the network, another program, or a placeholder such as
//! `CONFIG` is not run; its command and its flags, or the Makefile's target, have to exist.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::Lab;
use serde_json::{json, Value};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Keys that make a run short.
const SHORT: [&str; 10] = [
    "train.max_steps=2",
    "train.warmup_steps=1",
    "train.decay_steps=null",
    "train.log_every=1",
    "train.eval_every=0",
    "train.checkpoint_every=0",
    "train.histogram_every=1",
    "train.batch_size=4",
    "data.max_validation_sequences=8",
    "data.short_steps=0",
];

struct Block {
    language: String,
    /// The paragraph before it.
    before: String,
    lines: Vec<String>,
}

fn blocks(page: &str) -> Vec<Block> {
    let text = std::fs::read_to_string(root().join(page)).unwrap_or_else(|e| panic!("{page}: {e}"));
    let (mut blocks, mut open, mut before, mut ended): (Vec<Block>, Option<Block>, String, bool) = (Vec::new(), None, String::new(), false);
    for line in text.lines() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(_), Some(block)) => blocks.push(block),
            (Some(language), None) => {
                open = Some(Block { language: language.into(), before: std::mem::take(&mut before), lines: Vec::new() })
            }
            (None, Some(mut block)) => {
                block.lines.push(line.into());
                open = Some(block);
            }
            (None, None) if line.trim().is_empty() => ended = true,
            (None, None) if std::mem::take(&mut ended) => before = line.into(),
            (None, None) => before = format!("{before} {line}"),
        }
    }
    blocks
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A folder in which a page's commands work: a reader has texts and tables of their own.
fn desk() -> Lab {
    let lab = Lab::new();
    for name in ["data", "experiments", "models"] {
        std::os::unix::fs::symlink(root().join(name), lab.path(name)).unwrap();
    }
    // The demo's corpus is prepared once for all pages.
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("docs-cache");
    std::fs::create_dir_all(&cache).unwrap();
    std::fs::create_dir_all(lab.path("runs/demo")).unwrap();
    std::os::unix::fs::symlink(cache, lab.path("runs/demo/cache")).unwrap();
    for i in 0..90 {
        lab.write(&format!("my-texts/{i}.txt"), common::prose(i));
    }
    lab.write("train.tsv", common::task_rows(30));
    lab.write("dev.tsv", common::task_rows(10));
    lab.write("new.tsv", common::task_rows(5));
    lab.write("texts.txt", common::prose(1).replace(". ", ".\n"));
    lab.write("new.jsonl", (0..5).map(|i| json!({"review": common::prose(i)[..40]}).to_string() + "\n").collect::<String>());
    lab
}

/// The name that a paragraph gives to the config below it: the first `NAME.json` in it.
fn name_of(before: &str) -> Option<&str> {
    let mut quoted = before.split('`').skip(1).step_by(2);
    quoted.find(|q| q.ends_with(".json") && !q.contains('/') && !q.contains(' '))
}

/// A config, sweep, or task description in a block is taken by the program.
fn check_config(lab: &Lab, page: &str, text: &str, name: Option<&str>) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{page}: {e}\n{text}"));
    let Value::Object(object) = &value else { return };
    let file = name.unwrap_or("block.json");
    lab.write(file, text);
    if object.contains_key("base") {
        let sweep = linformer::config::sweep::Sweep::load(&lab.path(file), &[]);
        // The base is relative to the sweep, whose folder is the desk.
        sweep.unwrap_or_else(|e| panic!("{page}: {e}\n{text}"));
    } else if ["model", "data", "train", "run", "extends"].iter().any(|group| object.contains_key(*group)) {
        let ran = lab.run(&["config", "show", file]);
        assert_eq!(ran.code, 0, "{page}: {}\n{text}", ran.stderr);
    }
}

/// Commands and the files that `$ cat NAME` shows.
fn commands(lab: &Lab, page: &str, block: &Block) -> Vec<String> {
    let (mut commands, mut shown): (Vec<String>, Option<(String, String)>) = (Vec::new(), None);
    for line in block.lines.iter().chain([&String::new()]) {
        let line = line.strip_prefix("$ ").unwrap_or(line);
        if let Some((name, text)) = &mut shown {
            if line.trim().is_empty() {
                check_config(lab, page, text, Some(name));
                shown = None;
            } else {
                *text += &format!("{line}\n");
            }
        } else if let Some(name) = line.strip_prefix("cat ").filter(|name| name.ends_with(".json")) {
            shown = Some((name.into(), String::new()));
        } else if ["linformer ", "target/release/linformer ", "echo "].iter().any(|start| line.starts_with(start)) {
            commands.push(line.replace("target/release/linformer", "linformer"));
        } else if let Some(target) = line.strip_prefix("make ") {
            check_target(page, target.split_whitespace().next().unwrap());
        }
    }
    commands
}

fn check_target(page: &str, target: &str) {
    let makefile = std::fs::read_to_string(root().join("Makefile")).unwrap();
    assert!(target.contains('=') || makefile.lines().any(|l| l.starts_with(&format!("{target}:"))), "{page}: make has no target {target}");
}

/// A comment begins with a # after white space.
fn without_comment(line: &str) -> &str {
    line.split_once(" #").map_or(line, |(command, _)| command).trim()
}

/// A placeholder is a word of capitals, such as CONFIG or runs/RUN.
fn has_placeholder(command: &str) -> bool {
    let is_one = |word: &str| word.len() > 2 && word.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    command.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(is_one)
        || command.contains("...")
        || command.contains('|') && command.contains("jq")
}

fn check(lab: &Lab, page: &str, line: &str) {
    let command = without_comment(line);
    let words: Vec<&str> = command.split_whitespace().skip_while(|w| *w != "linformer").skip(1).collect();
    let needs_more =
        ["data fetch", "efficiency", "data list"].iter().any(|c| words.join(" ").starts_with(c)) || words.first() == Some(&"replay");
    if has_placeholder(command) || needs_more {
        let path: Vec<&str> = words.iter().copied().take_while(|w| w.chars().all(|c| c.is_ascii_lowercase() || c == '-')).take(2).collect();
        let path = if ["data", "config"].contains(&path[0]) { &path[..] } else { &path[..1] };
        let help = lab.ok(&[path, &["--help"]].concat()).stdout;
        for flag in words.iter().filter(|w| w.starts_with("--")) {
            assert!(help.contains(flag), "{page}: {line}: no flag {flag}");
        }
        return;
    }
    let trains = ["pretrain", "finetune", "sweep"].contains(&words[0]) && !(words[0] == "sweep" && command.contains("--dry-run"));
    let mut run = command.to_string();
    if trains {
        // What the line itself sets stays; a sweep may not set its own keys.
        let set = SHORT.iter().filter(|key| !command.contains(key.split('=').next().unwrap()));
        run += &set.map(|key| format!(" {key}")).collect::<String>();
    }
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_linformer"));
    let path = format!("{}:{}", binary.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("bash");
    shell.args(["-c", &format!("set -o pipefail; {run}")]).current_dir(lab.path(".")).env("PATH", path).env("OMP_NUM_THREADS", "1");
    let ran = common::ran(shell.output().unwrap());
    assert_eq!(ran.code, 0, "{page}: {line}\n{}{}", ran.stdout, ran.stderr);
}

fn run_page(page: &str, lab: &Lab) -> usize {
    let mut count = 0;
    for block in blocks(page) {
        if block.language == "json" || block.lines.first().is_some_and(|l| l.starts_with('{')) {
            check_config(lab, page, &block.lines.join("\n"), name_of(&block.before));
            continue;
        }
        for command in commands(lab, page, &block) {
            check(lab, page, &command);
            count += 1;
        }
    }
    count
}

#[test]
fn quick_start() {
    assert!(run_page("docs/quick-start.md", &desk()) >= 9);
}

#[test]
fn your_text() {
    assert!(run_page("docs/your-text.md", &desk()) >= 7);
}

#[test]
fn sweeps() {
    assert!(run_page("docs/sweeps.md", &desk()) >= 6);
}

/// A desk on which a pretrained and a fine-tuned run stand already.
fn desk_with_runs() -> Lab {
    let lab = desk();
    lab.config("small.json", &[("data.sequence_length", json!(128))]);
    for name in ["my-pretrained-model", "pretrained", "first", "a", "mine/a", "mine/b"] {
        lab.ok(&["pretrain", "small.json", "--quiet", &format!("run.dir=runs/{name}"), "train.max_steps=2"]);
    }
    lab
}

#[test]
fn tasks_and_predictions() {
    let lab = desk_with_runs();
    std::fs::remove_dir_all(lab.path("runs/mine")).unwrap();
    assert!(run_page("docs/tasks.md", &lab) >= 5);
    lab.write("other.json", lab.read("mine.json"));
    assert!(run_page("docs/predictions.md", &lab) >= 8);
    assert!(run_page("docs/data.md", &desk()) >= 2);
}

#[test]
fn logs_and_the_shell() {
    let lab = desk_with_runs();
    lab.config("mine.json", &[("run.dir", json!("runs/with-histograms"))]);
    assert!(run_page("docs/tensorboard.md", &lab) >= 4);
    assert!(run_page("docs/shell.md", &lab) >= 7);
    for page in ["docs/fetching.md", "docs/reliability.md", "docs/questions.md", "docs/experiments.md", "docs/reproduction.md"] {
        run_page(page, &lab);
    }
}

#[test]
fn readme() {
    let lab = desk();
    std::os::unix::fs::symlink(lab.path("my-texts"), lab.path("texts")).unwrap();
    let lab_text = "path/to/your/texts";
    std::fs::create_dir_all(lab.path("path/to/your")).unwrap();
    std::os::unix::fs::symlink(lab.path("my-texts"), lab.path(lab_text)).unwrap();
    assert!(run_page("README.md", &lab) >= 3);
}

/// Every link to a page leads somewhere, and every page can be found.
#[test]
fn pages_are_linked() {
    let pages: Vec<String> =
        std::fs::read_dir(root().join("docs")).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    let index = std::fs::read_to_string(root().join("docs/README.md")).unwrap();
    for page in pages.iter().filter(|page| page.ends_with(".md") && *page != "README.md") {
        assert!(index.contains(&format!("({page})")), "docs/README.md does not name {page}");
        let text = std::fs::read_to_string(root().join("docs").join(page)).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).filter(|l| !l.contains("://")) {
            let file = link.split('#').next().unwrap();
            assert!(root().join("docs").join(file).exists(), "{page}: {link} leads nowhere");
        }
    }
}

/// What the page of errors quotes is what the program says.
#[test]
fn quoted_errors_exist() {
    let mut source = String::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            match entry.is_dir() {
                true => folders.push(entry),
                false if entry.extension().is_some_and(|e| e == "rs") => source += &std::fs::read_to_string(entry).unwrap(),
                false => {}
            }
        }
    }
    source += &std::fs::read_to_string(root().join("build.rs")).unwrap();
    let page = std::fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let quoted: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`')).collect();
    assert!(quoted.len() > 20);
    // The dynamic linker's.
    let ours = quoted.iter().filter(|text| !text.starts_with("error while loading shared libraries"));
    ours.for_each(|text| assert!(source.contains(*text), "nothing says \"{text}\""));
}
