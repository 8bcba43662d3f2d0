//! What a person with a terminal, and a script, expect of a program.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::Lab;
use serde_json::{json, Value};
use std::process::Command;

#[test]
fn completions_are_scripts_that_the_shell_reads() {
    let lab = Lab::new();
    for (shell, sign) in [("bash", "complete -F _linformer"), ("zsh", "#compdef linformer"), ("fish", "complete -c linformer")] {
        let script = lab.ok(&["completions", shell]).stdout;
        assert!(script.contains(sign) && script.contains("fill-mask") && script.contains("dry-run"), "{shell}");
    }
    lab.write("c.bash", lab.ok(&["completions", "bash"]).stdout);
    let ask = "source ./c.bash; COMP_WORDS=(linformer fi); COMP_CWORD=1; _linformer linformer fi linformer; echo \"${COMPREPLY[@]}\"";
    let output = Command::new("bash").args(["--norc", "-c", ask]).current_dir(lab.path(".")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "finetune fill-mask", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_manual_page_for_every_command() {
    let lab = Lab::new();
    lab.ok(&["man", "--out", "man1"]);
    for page in ["linformer", "linformer-pretrain", "linformer-fill-mask", "linformer-data-fetch", "linformer-config-show"] {
        let text = lab.read(&format!("man1/{page}.1"));
        assert!(text.contains(&format!(".TH {page} 1")) && text.contains("Examples:"), "{page}: {}", &text[..200]);
    }
    let main = lab.ok(&["man"]).stdout;
    assert!(main.contains("Exit codes") && main.contains("interrupted, with a checkpoint written"), "{main}");
}

#[test]
fn config_show_says_where_every_value_came_from() {
    let lab = Lab::new();
    lab.config("base.json", &[]);
    lab.write("mine.json", r#"{"$schema": "linformer.schema.json", "extends": "base.json", "train": {"batch_size": 4}}"#);
    let text = lab.ok(&["config", "show", "mine.json", "model.attention.k=2"]).stdout;
    let origin = |key: &str| {
        let line = text.lines().find(|l| l.starts_with(&format!("{key} = "))).unwrap_or_else(|| panic!("{key}: {text}"));
        let (value, origin) = line.split_once("  # ").unwrap();
        (value.split_once(" = ").unwrap().1.trim().to_string(), origin.to_string())
    };
    let expect = |key: &str, value: &str, from: &str| assert_eq!(origin(key), (value.to_string(), from.to_string()), "{key}");
    expect("model.attention.k", "2", "command line");
    expect("train.batch_size", "4", "mine.json");
    expect("model.hidden_size", "16", "base.json");
    expect("model.norm", "\"post\"", "default");
    expect("train.weight_decay", "0.01", "default");
    let set = lab.ok(&["config", "show", "mine.json", "--set-only"]).stdout;
    assert!(set.lines().count() > 10 && !set.contains("# default"), "{set}");
    let all: Value = serde_json::from_str(&lab.ok(&["config", "show", "mine.json", "--json"]).stdout).unwrap();
    assert_eq!((all["config"]["train"]["batch_size"].clone(), all["origins"]["train.batch_size"].clone()), (json!(4), json!("mine.json")));
    // What is shown is a config: it comes to the same.
    lab.write("again.json", all["config"].to_string());
    let again: Value = serde_json::from_str(&lab.ok(&["config", "show", "again.json", "--json"]).stdout).unwrap();
    assert_eq!(again["config"], all["config"]);
    let schema: Value = serde_json::from_str(&lab.ok(&["config", "schema"]).stdout).unwrap();
    let efficiency: Value = serde_json::from_str(&lab.ok(&["config", "schema", "--efficiency"]).stdout).unwrap();
    let file: Value = serde_json::from_str(&std::fs::read_to_string("experiments/small/efficiency.json").unwrap()).unwrap();
    let unknown: Vec<&String> =
        file.as_object().unwrap().keys().filter(|key| efficiency["properties"].get(key.as_str()).is_none()).collect();
    assert!(unknown.is_empty() && efficiency["additionalProperties"] == false, "{unknown:?}");
    assert!(schema["properties"]["extends"].is_object() && schema["$schema"].as_str().unwrap().contains("2020-12"));
    let ran = lab.run(&["config", "show", "mine.json", "train.batchsize=4"]);
    assert!(ran.code == 2 && ran.stderr.contains("did you mean train.batch_size?"), "{}", ran.stderr);
}

#[test]
fn runs_are_listed_and_compared() {
    let lab = Lab::new();
    for (dir, changes) in
        [("runs/a", vec!["model.attention.k=4"]), ("runs/deep/b", vec!["model.attention.k=2", "train.seed=1", "train.max_steps=4"])]
    {
        lab.config("c.json", &[]);
        lab.ok(&[&["pretrain", "c.json", "--quiet", &format!("run.dir={dir}")], &changes[..]].concat());
    }
    std::fs::remove_file(lab.path("runs/deep/b/summary.json")).unwrap();
    let before = common::snapshot(&lab.path("runs"));
    let rows: Value = serde_json::from_str(&lab.ok(&["list", "--json"]).stdout).unwrap();
    assert_eq!(
        (&rows[0]["run"], &rows[0]["status"], &rows[0]["step"], &rows[0]["k"]),
        (&json!("runs/a"), &json!("done"), &json!(6), &json!(4))
    );
    assert_eq!((&rows[1]["run"], &rows[1]["status"], &rows[1]["total_steps"]), (&json!("runs/deep/b"), &json!("stopped"), &json!(4)));
    assert_eq!(rows[0]["value"], lab.json("runs/a/summary.json")["perplexity"]);
    let text = lab.ok(&["list"]).stdout;
    assert!(text.lines().count() == 4 && text.contains("runs/deep/b") && text.contains("perplexity"), "{text}");
    let both: Value = serde_json::from_str(&lab.ok(&["compare", "runs/a", "runs/deep/b", "--json"]).stdout).unwrap();
    assert_eq!(both[0]["config"], json!({"model.attention.k": 4, "train.max_steps": 6, "train.seed": 0}));
    assert_eq!(both[1]["config"]["train.seed"], 1);
    assert_eq!(both[1]["results"]["status"], "stopped");
    let text = lab.ok(&["compare", "runs"]).stdout;
    assert!(text.lines().any(|l| l.split_whitespace().collect::<Vec<_>>() == ["model.attention.k", "4", "2"]), "{text}");
    let ran = lab.run(&["compare", "runs/a"]);
    assert!(ran.code == 2 && ran.stderr.contains("found 1 run, expected two or more"), "{}", ran.stderr);
    assert!(before == common::snapshot(&lab.path("runs")), "listing changed something");
    // A sweep that takes runs over links them. Under two names a run is one, and links in a circle end.
    std::fs::create_dir(lab.path("taken")).unwrap();
    std::os::unix::fs::symlink("../runs/a", lab.path("taken/a")).unwrap();
    std::os::unix::fs::symlink(".", lab.path("taken/again")).unwrap();
    let names = |folders: &[&str]| {
        let rows: Value = serde_json::from_str(&lab.ok(&[&["list", "--json"], folders].concat()).stdout).unwrap();
        rows.as_array().unwrap().iter().map(|r| r["run"].as_str().unwrap().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(&["taken"]), ["taken/a"]);
    assert_eq!(names(&["taken", "runs", "runs/a"]), ["runs/a", "runs/deep/b"]);
    let one = lab.ok(&["report", "runs", "runs/a", "taken", "--out", "report"]).stdout;
    assert!(one.contains("One seed a model") && !one.contains('±'), "{one}");
    // A damaged run hides no other.
    lab.write("runs/deep/b/config.json", "{");
    let ran = lab.ok(&["list"]);
    assert!(ran.stderr.contains("runs/deep/b/config.json: damaged") && ran.stdout.contains("runs/a"), "{} {}", ran.stdout, ran.stderr);
}

/// On a terminal there are styles and a bar, with NO_COLOR neither colour nor bold; without a terminal nothing of the kind.
#[test]
fn colours_are_for_terminals_and_no_color_turns_them_off() {
    let lab = Lab::new();
    lab.config("c.json", &[]);
    let program = env!("CARGO_BIN_EXE_linformer");
    let on_terminal = |arguments: &str, no_color: bool| {
        let mut command = Command::new("script");
        command
            .args(["-qec", &format!("{program} {arguments}"), "/dev/null"])
            .current_dir(lab.path("."))
            .env("TERM", "xterm-256color")
            .env_remove("NO_COLOR");
        if no_color {
            command.env("NO_COLOR", "1");
        }
        String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
    };
    // The codes that set colour or weight end with m.
    let styled = |text: &str| {
        text.split("\u{1b}[").skip(1).any(|code| code.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m'))
    };
    assert!(styled(&on_terminal("--help", false)));
    assert!(!styled(&on_terminal("--help", true)));
    assert!(styled(&on_terminal("pretrain c.json run.dir=a train.max_steps=200", false)));
    assert!(!styled(&on_terminal("pretrain c.json run.dir=b train.max_steps=200", true)));
    let plain = lab.ok(&["pretrain", "c.json", "run.dir=c"]);
    assert!(!plain.stdout.contains('\u{1b}') && !plain.stderr.contains('\u{1b}'));
}

/// Case 45: without a terminal no bar and no colour, but a line now and then.
#[test]
fn a_log_without_a_terminal_is_sparse_plain_lines() {
    let lab = Lab::new();
    lab.config("c.json", &[("train.max_steps", json!(40)), ("train.log_every", json!(2)), ("train.checkpoint_every", json!(0))]);
    let said = lab.ok(&["pretrain", "c.json"]).stderr;
    assert!(!said.contains(['\r', '\u{1b}']), "{said:?}");
    let steps = said.lines().filter(|line| line.contains("step ")).count();
    assert!((2..=40).contains(&steps) && said.contains("step 40/40"), "{said}");
}
