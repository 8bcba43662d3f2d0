//! The experiments of the paper from outside: every file under `experiments/`, the commands that look at attention, and the
//! report from committed numbers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::Lab;
use linformer::config::sweep::Sweep;
use linformer::experiments::sweep::describe;
use serde_json::{json, Value};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Sweep files below `experiments/`.
fn sweeps() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in ["experiments/demo", "experiments/small", "experiments/paper"] {
        for entry in std::fs::read_dir(repository().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            if serde_json::from_str::<Value>(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display())).get("base").is_some() {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn every_sweep_says_what_it_comes_to() {
    let sweeps = sweeps();
    assert!(sweeps.len() >= 30, "{}", sweeps.len());
    for path in &sweeps {
        let sweep = Sweep::load(path, &[]).unwrap_or_else(|e| panic!("{e}"));
        let text = describe(&sweep);
        assert!(text.contains(&format!("\n{} runs, ", sweep.runs.len())), "{}: {text}", path.display());
        assert!(sweep.file.silent.values().all(|why| text.contains(why)), "{}: {text}", path.display());
    }
    // And by the program, as a person asks.
    let mut command = Command::new(env!("CARGO_BIN_EXE_linformer"));
    let output = command.current_dir(repository()).args(["sweep", "experiments/paper/figure3ab.json", "--dry-run"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("21 runs, at most 5,505,024,000,000 tokens"), "{text}");
    assert!(!repository().join("runs/paper/figure3ab/configs").exists(), "a dry run wrote something");
}

/// A sweep that starts from other runs must find them made by another file; a comparison must have the seeds of its partner.
#[test]
fn what_one_experiment_needs_another_makes() {
    let loaded: Vec<(PathBuf, Sweep)> = sweeps().into_iter().map(|path| (path.clone(), Sweep::load(&path, &[]).unwrap())).collect();
    let made: BTreeSet<&Path> = loaded.iter().flat_map(|(_, s)| &s.runs).filter_map(|r| r.config.run.dir.as_deref()).collect();
    for (path, sweep) in &loaded {
        for run in &sweep.runs {
            if let Some(parent) = &run.config.run.init_from {
                assert!(
                    made.contains(parent.as_path()),
                    "{}: {} starts from {}, which no sweep makes",
                    path.display(),
                    run.name,
                    parent.display()
                );
            }
        }
        let in_study = path.parent().unwrap().ends_with("small") && sweep.file.results.is_some();
        if in_study {
            assert!(!sweep.file.about.is_empty() && sweep.file.minutes.is_some(), "{}: no about or minutes", path.display());
        }
    }
    let folders: Vec<&Path> = loaded.iter().filter_map(|(_, s)| s.file.results.as_deref()).collect();
    assert_eq!(folders.iter().collect::<BTreeSet<_>>().len(), folders.len(), "two experiments write into one folder of results");
    // Each experiment of the small scale is there at the paper's.
    let names = |folder: &str| -> BTreeSet<String> {
        let of = loaded.iter().filter(|(p, _)| p.parent().unwrap().ends_with(folder));
        of.map(|(p, _)| p.file_stem().unwrap().to_string_lossy().into_owned()).collect()
    };
    let paper = names("paper");
    for name in names("small")
        .iter()
        .filter(|n| !["k-sweep", "tasks-pretrain-sweep", "initialisation-seeds", "figure3a-long", "table2"].contains(&n.as_str()))
    {
        assert!(paper.contains(name), "experiments/paper/{name}.json is missing");
    }
}

/// Two pretrained models, one full and one Linformer, of a few steps.
fn pretrained(lab: &Lab) {
    for (name, kind) in [("full", "full"), ("linformer", "linformer")] {
        let config = format!("{name}.json");
        lab.config(&config, &[("model.attention.kind", json!(kind)), ("run.dir", json!(name))]);
        lab.ok(&["pretrain", &config, "--quiet"]);
    }
}

#[test]
fn spectra_theorems_and_shifts_of_a_trained_model() {
    let lab = Lab::new();
    pretrained(&lab);
    let table = lab.ok(&["spectrum", "full", "--sequences", "12", "--out", "spectrum/full", "--projections", "4"]).stdout;
    assert!(table.contains("cumulative at 4") && table.contains("12 sequences of 16 tokens"), "{table}");
    let record = lab.json("spectrum/full/spectrum.json");
    assert_eq!(record["by_head"].as_array().unwrap().len(), 4);
    assert_eq!(record["by_layer"][0]["cumulative"]["count"], 12);
    for layer in record["curves"].as_array().unwrap() {
        let curve: Vec<f64> = serde_json::from_value(layer.clone()).unwrap();
        assert!(curve.len() == 16 && curve.windows(2).all(|w| w[1] >= w[0]) && (curve[15] - 1.0).abs() < 1e-9, "{curve:?}");
    }
    lab.ok(&["spectrum", "full", "--untrained", "1", "--sequences", "12", "--out", "spectrum/untrained"]);
    assert!(lab.json("spectrum/untrained/spectrum.json")["checkpoint"].is_null());
    // P of a Linformer is n x k: at most k singular values.
    lab.ok(&["spectrum", "linformer", "--sequences", "4", "--data", "text", "--out", "spectrum/linformer"]);
    assert_eq!(lab.json("spectrum/linformer/spectrum.json")["curves"][0].as_array().unwrap().len(), 4);

    let bound = lab.ok(&["theorems", "full", "--sequences", "8", "--steps", "20", "--out", "theorems"]).stdout;
    assert!(bound.contains("none below k = 94"), "33.75 ln 16 = 93.6: {bound}");

    lab.ok(&["shift", "full", "linformer", "--by", "0,1,4", "--sequences", "8", "--out", "shift"]);
    let record = lab.json("shift/shift.json");
    let moved = |model: usize, i: usize| record["models"][model]["moved"][i]["difference"]["mean"].as_f64().unwrap().abs();
    assert!(moved(0, 1) < 1e-5 && moved(0, 2) < 1e-5, "full attention noticed: {record}");
    assert!(moved(1, 2) > 1e-6, "E did not notice: {record}");

    // A Linformer starts from the directions that were found.
    lab.config("warm.json", &[("run.dir", json!("warm")), ("run.projections_from", json!("spectrum/full/projections-k4.safetensors"))]);
    lab.ok(&["pretrain", "warm.json", "--quiet", "train.max_steps=1", "train.learning_rate=1e-12", "train.warmup_steps=0"]);
    let weights = |path: &str, name: &str| {
        let file = linformer::model::weights::WeightsFile::open(&lab.path(path)).unwrap();
        file.tensor(name, Some(&[4, 16])).unwrap()
    };
    let name = "roberta.encoder.layer.1.attention.self.key_projection";
    let found = weights("spectrum/full/projections-k4.safetensors", name);
    assert!(weights("warm/checkpoints/step-00000001/model.safetensors", name).allclose(&found, 1e-6, 1e-6, false));

    let refused = lab.run(&["theorems", "linformer", "--out", "x"]);
    assert!(refused.code == 1 && refused.stderr.contains("expected a model with full attention"), "{}", refused.stderr);
    let refused = lab.run(&["pretrain", "warm.json", "model.attention.k=5", "run.dir=other"]);
    assert!(refused.code == 1 && refused.stderr.contains("expected [5, 16]"), "{}", refused.stderr);
    let refused = lab.run(&["spectrum", "full", "--length", "17", "--out", "x"]);
    assert!(refused.code == 1 && refused.stderr.contains("expected 4 to the model's n = 16"), "{}", refused.stderr);
}

/// ListOps from the generator to a sweep with chosen rates, its results, and the report.
#[test]
fn a_sweep_leaves_results_and_a_report_is_made_of_them() {
    let lab = Lab::new();
    let small =
        ["--train-rows", "60", "--dev-rows", "24", "--test-rows", "8", "--min-length", "5", "--max-length", "15", "--max-depth", "4"];
    lab.ok(&[&["data", "listops", "tasks/ListOps"][..], &small[..]].concat());
    let mut config = common::tiny();
    common::set(
        &mut config,
        "data",
        json!({"task": "listops", "task_dir": "tasks", "tokenizer": "tasks/ListOps/tokenizer.json",
        "cache_dir": "cache", "sequence_length": 16, "dev_halves": true}),
    );
    lab.write("base.json", config.to_string());
    let sweep = json!({"base": "base.json", "dir": "runs", "results": "results/listops", "about": "Small.",
        "silent": {"train.learning_rate": "not stated"},
        "variants": [{"name": "full", "set": {"model.attention.kind": "full"}}, {"name": "k4", "against": "full", "paper": 0.0015}],
        "grid": {"train.learning_rate": [1e-3, 3e-3], "train.seed": [0, 1]}});
    lab.write("sweep.json", sweep.to_string());
    lab.ok(&["sweep", "sweep.json"]);
    let results = lab.json("results/listops/results.json");
    assert_eq!((results["wanted"].as_u64(), results["runs"].as_array().unwrap().len()), (Some(8), 8));
    let summary = &results["runs"][0]["summary"];
    let (value, reported) = (summary["value"].as_f64().unwrap(), summary["reported_value"].as_f64().unwrap());
    // The two halves together are all rows, so that their mean weighs them to the whole.
    let all = summary["scores"]["accuracy"].as_f64().unwrap();
    assert!((value.min(reported)..=value.max(reported)).contains(&all), "{summary}");
    lab.ok(&["sweep", "sweep.json", "--collect", "--results", "again"]);
    assert_eq!(lab.json("again/results.json"), results);
    let text = lab.ok(&["report", "results"]).stdout;
    assert!(text.contains("On ListOps"), "{text}");
    let page = lab.read("results/listops/page.md");
    assert!(
        page.contains("| full | 2 |") && page.contains("Learning rates, of 0.001, 0.003, chosen on the rows that are not reported"),
        "{page}"
    );
    assert!(lab.read("results/report.html").contains("prefers-color-scheme: dark"));
    // Keys set on the command line make other results, which must not take the file's place.
    lab.ok(&["sweep", "sweep.json", "train.max_steps=7", "--results", "elsewhere"]);
    assert_eq!(lab.json("results/listops/results.json"), results);
    assert_ne!(lab.json("elsewhere/results.json")["configs_sha256"], results["configs_sha256"]);

    for (bad, message) in [(json!({"against": "fool"}), "which is no variant"), (json!({"paper": 0.1}), "nothing it is compared with")] {
        let mut sweep = sweep.clone();
        let mut variant = json!({"name": "k4"});
        variant.as_object_mut().unwrap().extend(bad.as_object().unwrap().clone());
        sweep["variants"][1] = variant;
        lab.write("bad.json", sweep.to_string());
        let refused = lab.run(&["sweep", "bad.json"]);
        assert!(refused.code == 2 && refused.stderr.contains(message), "{}", refused.stderr);
    }
}

/// The same config in two sweeps: the second takes the first's run, and makes its own again once that is gone.
#[test]
fn a_run_that_another_sweep_made_is_taken() {
    let lab = Lab::new();
    lab.config("base.json", &[]);
    lab.write("first.json", json!({"base": "base.json", "dir": "runs/first", "grid": {"train.seed": [0, 1]}}).to_string());
    let second = json!({"base": "base.json", "dir": "runs/second", "results": "results/second", "reuse": true,
        "variants": [{"name": "same"}, {"name": "faster", "set": {"train.learning_rate": 0.002}, "against": "same"}]});
    lab.write("second.json", second.to_string());
    lab.ok(&["sweep", "first.json"]);
    assert!(lab.ok(&["sweep", "second.json", "--dry-run"]).stdout.contains("the same as runs/first/seed=0"));
    let before = common::snapshot(&lab.path("runs/first"));
    let ran = lab.ok(&["sweep", "second.json"]);
    assert!(ran.stderr.contains("[1/2] same: the same as runs/first/seed=0"), "{}", ran.stderr);
    assert_eq!(common::snapshot(&lab.path("runs/first")), before);
    let results = lab.json("results/second/results.json");
    assert_eq!(results["runs"][0]["taken_from"], "first/seed=0");
    assert!(results["runs"][1].get("taken_from").is_none(), "{results}");
    // Other weights on the run's way are noticed: its inputs are held against those of now.
    let inputs = lab.read("runs/first/seed=0/inputs.json");
    lab.write("runs/first/seed=0/inputs.json", inputs.replacen(|c: char| c.is_ascii_digit(), "x", 1));
    let refused = lab.run(&["sweep", "second.json"]);
    assert!(refused.code == 1 && refused.stderr.contains("inputs."), "{}", refused.stderr);
    lab.write("runs/first/seed=0/inputs.json", &inputs);
    // Another config wants another run: the link goes, what it led to stays. (A run of this sweep's own would refuse the other config.)
    std::fs::remove_dir_all(lab.path("runs/second/faster")).unwrap();
    lab.ok(&["sweep", "second.json", "train.weight_decay=0.5", "--results", "other"]);
    assert!(!lab.path("runs/second/same").is_symlink() && lab.json("other/results.json")["runs"][0].get("taken_from").is_none());
    assert_eq!(common::snapshot(&lab.path("runs/first")), before);
    std::fs::remove_dir_all(lab.path("runs/second")).unwrap();
    lab.ok(&["sweep", "second.json"]);
    // The bits that were promised.
    std::fs::remove_dir_all(lab.path("runs/first")).unwrap();
    lab.ok(&["sweep", "second.json"]);
    let again = lab.json("results/second/results.json");
    assert_eq!(again["runs"][0]["summary"]["loss"], results["runs"][0]["summary"]["loss"]);
    assert!(again["runs"][0].get("taken_from").is_none(), "{again}");
}

/// Every committed page and table is what the committed numbers make, and the list of claims too.
#[test]
fn what_is_committed_agrees_with_the_committed_numbers() {
    let results = repository().join("experiments/results");
    if !linformer::experiments::study::is_study(&results) {
        return;
    }
    for (name, text) in linformer::experiments::study::texts(&results).unwrap() {
        let path = if name == "reproduction.md" { repository().join("docs/reproduction.md") } else { results.join(&name) };
        let committed = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let differs = || committed.lines().zip(text.lines()).find(|(was, is)| was != is);
        assert!(committed == text, "{}: run `make report-results`; the first lines that differ: {:?}", path.display(), differs());
    }
}

/// Numbers of a run that was made before its sweep was changed are not those of what the sweep asks for.
#[test]
fn a_run_that_was_made_with_other_settings_is_not_collected() {
    let lab = Lab::new();
    lab.config("base.json", &[]);
    let mut sweep = json!({"base": "base.json", "dir": "runs", "results": "results", "variants": [{"name": "one"}]});
    lab.write("sweep.json", sweep.to_string());
    lab.ok(&["sweep", "sweep.json"]);
    let results = lab.read("results/results.json");
    for (key, value, was) in [("train.max_steps", json!(7), "6"), ("train.learning_rate", json!(0.002), "0.001")] {
        sweep["set"] = json!({ key: value });
        lab.write("sweep.json", sweep.to_string());
        let refused = lab.run(&["sweep", "sweep.json", "--collect"]);
        assert!(refused.code == 1 && refused.stderr.lines().count() == 1, "{}", refused.stderr);
        let told = format!("runs/one/config.json: {key}: found {was}, but sweep.json asks for {value}: ");
        assert!(refused.stderr.contains(&told), "{}", refused.stderr);
        let dry = lab.ok(&["sweep", "sweep.json", "--dry-run"]).stdout;
        assert!(dry.contains(&format!("made with {key}={was}")) && !dry.contains("done"), "{dry}");
        assert_eq!(lab.read("results/results.json"), results);
    }
    // The sweep, started all the same, is refused by the run, and has no numbers for the new rate.
    let ran = lab.run(&["sweep", "sweep.json"]);
    assert!(ran.code == 1 && ran.stderr.contains("1 of 1 runs failed: one; runs/one/config.json: train.learning_rate: "), "{}", ran.stderr);
    assert!(ran.stdout.contains("0 of 1"), "{}", ran.stdout);
    assert_eq!(lab.read("results/results.json"), results);
    // Where a run lies and how often it is looked at make no other run.
    sweep["set"] = json!({"run.threads": 1, "data.cache_dir": "elsewhere", "train.log_every": 3});
    lab.write("sweep.json", sweep.to_string());
    lab.ok(&["sweep", "sweep.json", "--collect", "--results", "other"]);
    sweep.as_object_mut().unwrap().remove("set");
    lab.write("sweep.json", sweep.to_string());
    lab.ok(&["sweep", "sweep.json", "--collect"]);
    assert_eq!(lab.read("results/results.json"), results);
}

#[test]
fn a_run_that_comes_to_its_time_limit_does_not_end_the_sweep() {
    let lab = Lab::new();
    lab.config("base.json", &[("train.eval_every", json!(0)), ("train.checkpoint_every", json!(0))]);
    // Less than a second.
    let long = json!({"train.max_steps": 1_000_000, "train.max_hours": 0.0002});
    let variants = json!([{"name": "long", "set": long}, {"name": "short"}]);
    lab.write("sweep.json", json!({"base": "base.json", "dir": "runs", "results": "results", "variants": variants}).to_string());
    // Started again, it goes on with the long one, which comes to its limit again.
    for _ in 0..2 {
        let ran = lab.run(&["sweep", "sweep.json"]);
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        let told = "1 of 2 runs stopped with a checkpoint (train.max_hours, or a signal): long; start the sweep again to go on with them";
        assert!(ran.stderr.contains(told), "{}", ran.stderr);
        assert!(ran.stdout.lines().any(|line| line.starts_with("long ") && line.contains("0 of 1")), "{}", ran.stdout);
        let results = lab.json("results/results.json");
        assert_eq!((results["runs"].as_array().unwrap().len(), &results["runs"][0]["name"]), (1, &json!("short")));
    }
    let text = lab.ok(&["report", "runs", "--out", "out"]).stdout;
    assert!(text.contains("Not finished, and not in the table: runs/long."), "{text}");
}
