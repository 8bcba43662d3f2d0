//! Tasks by the commands a user types: fine-tune, evaluate, predict, submit, show.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{set, tiny, Lab};
use serde_json::{json, Value};

/// A task that is learned in a few steps: the label is the text's first word. Lengths differ, so that batches are reordered.
fn learnable(count: usize) -> String {
    let row = |i: usize| {
        let label = ["bad", "good"][(i * 7 / 3) % 2];
        format!("{label}{}\t{label}\n", " so".repeat(i * 5 % 9))
    };
    "text\tlabel\n".to_string() + &(0..count).map(row).collect::<String>()
}

/// A fine-tuning config on `train.tsv` and `dev.tsv`.
fn config(lab: &Lab, changes: &[(&str, Value)]) {
    let mut config = tiny();
    config["data"] = json!({"task": {"name": "mine", "train": "train.tsv", "dev": "dev.tsv", "text": "text", "label": "label", "kind": "classification",
        "more_metrics": ["f1", "matthews"]}, "tokenizer": "bytes", "sequence_length": 32, "cache_dir": "cache"});
    config["train"] = json!({"max_epochs": 12, "batch_size": 8, "learning_rate": 1e-2, "warmup_steps": 2, "log_every": 5, "eval_every": 30, "checkpoint_every": 0});
    changes.iter().for_each(|(key, value)| set(&mut config, key, value.clone()));
    lab.write("fine.json", config.to_string());
}

fn lab() -> Lab {
    let lab = Lab::new();
    lab.write("train.tsv", learnable(90));
    lab.write("dev.tsv", learnable(37));
    config(&lab, &[]);
    lab
}

/// Case 12.
#[test]
fn what_was_learned_is_evaluated_and_predicted_row_by_row_in_order() {
    let lab = lab();
    lab.ok(&["finetune", "fine.json"]);
    let summary = lab.json("run/summary.json");
    assert_eq!(lab.json("run/config.json")["data"]["task"]["labels"], json!(["bad", "good"]), "the labels were not found");
    assert!(summary["value"].as_f64().unwrap() > 0.9, "{summary}");
    assert!(summary["scores"]["f1"].is_number() && summary["scores"]["matthews"].is_number(), "{summary}");
    let sha256 = linformer::digest::file_sha256(&lab.path("dev.tsv")).unwrap().1;
    assert_eq!(summary["data"]["dev"]["sha256"], json!(sha256));
    assert!(summary["data"]["train"]["overlap"].as_u64().unwrap() > 0 && summary["data"]["train"]["repeated"].as_u64().unwrap() > 0);

    let report: Value = serde_json::from_str(&lab.ok(&["evaluate", "run"]).stdout).unwrap();
    assert_eq!(report["splits"]["dev"]["accuracy"], summary["value"]);
    // Lengths run up and down: a prediction beside another row's label would show.
    let table = lab.ok(&["predict", "run", "dev.tsv"]).stdout;
    let rows: Vec<Vec<&str>> = table.lines().skip(1).map(|l| l.split('\t').collect()).collect();
    let dev = lab.read("dev.tsv");
    let labels: Vec<&str> = dev.lines().skip(1).map(|l| l.split('\t').nth(1).unwrap()).collect();
    assert_eq!((rows.len(), table.lines().next()), (37, Some("index\tlabel\tprobability")));
    let right = rows.iter().zip(&labels).enumerate().filter(|(i, (row, label))| row[0] == i.to_string() && row[1] == **label).count();
    assert_eq!(right as f64 / 37.0, summary["value"].as_f64().unwrap());
    for row in &rows {
        assert!((0.5..=1.0).contains(&row[2].parse::<f64>().unwrap()), "{row:?}");
    }

    // The same rows by line, in another file order and as JSON: the same answers.
    let texts: Vec<&str> = dev.lines().skip(1).collect();
    let lines: String = texts.iter().rev().map(|l| l.split('\t').next().unwrap().to_string() + "\n").collect();
    lab.write("lines", &lines);
    let json_lines = lab.ok(&["predict", "run", "lines", "--format", "jsonl"]).stdout;
    for (line, row) in json_lines.lines().zip(rows.iter().rev()) {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["label"], row[1]);
        assert!((line["probability"].as_f64().unwrap() - row[2].parse::<f64>().unwrap()).abs() < 1e-4);
        let all: f64 = line["probabilities"].as_object().unwrap().values().map(|p| p.as_f64().unwrap()).sum();
        assert!((all - 1.0).abs() < 1e-6);
    }
    assert_eq!(lab.run(&["predict", "run", "nowhere.tsv"]).code, 1);
    let ran = lab.run(&["predict", "run"]);
    assert!(ran.code == 1 && ran.stderr.contains("has no test split"), "{}", ran.stderr);
}

#[test]
fn standard_input_is_answered_line_by_line() {
    use std::io::{BufRead, BufReader, Write};
    let lab = lab();
    lab.ok(&["finetune", "fine.json", "train.max_epochs=0.1", "train.warmup_steps=0"]);
    let mut child =
        lab.command(&["predict", "run", "-"]).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()).lines());
    assert_eq!(output.next().unwrap().unwrap(), "index\tlabel\tprobability");
    for i in 0..3 {
        input.write_all(b"good so\r\n").unwrap();
        // Waits for the answer before the next line is sent.
        assert!(output.next().unwrap().unwrap().starts_with(&format!("{i}\t")));
    }
    drop(input);
    assert!(output.next().is_none() && child.wait().unwrap().success());
}

/// Names and headers as <https://gluebenchmark.com/faq> and its sample submission have them.
/// Cases 6 and 10.
#[test]
fn submissions_have_glues_names_and_headers() {
    let lab = Lab::new();
    let mut config = tiny();
    let nli = |rows: usize| {
        (0..rows)
            .map(|i| format!("{i}\tx\tA man {i}.\tA cat.\t{}\n", ["neutral", "entailment", "contradiction"][i % 3]))
            .collect::<String>()
    };
    let head = "index\tgenre\tsentence1\tsentence2\tgold_label\n";
    for split in ["train", "dev_matched", "dev_mismatched"] {
        lab.write(&format!("glue/MNLI/{split}.tsv"), format!("{head}{}", nli(12)));
    }
    let test = "index\tgenre\tsentence1\tsentence2\n10\tx\tA \"dog\truns.\n7\tx\tIt is a much longer sentence.\tYes.\n";
    lab.write("glue/MNLI/test_matched.tsv", test);
    lab.write("glue/MNLI/test_mismatched.tsv", test);
    lab.write("glue/AX/AX.tsv", "index\tsentence1\tsentence2\n0\tThe cat sat.\tIt did.\n");
    config["data"] = json!({"task": "mnli", "task_dir": "glue", "tokenizer": "bytes", "sequence_length": 32, "cache_dir": "cache"});
    config["train"]["checkpoint_every"] = json!(0);
    lab.write("m.json", config.to_string());
    lab.ok(&["finetune", "m.json"]);
    let scores = &lab.json("run/summary.json")["scores"];
    assert!(scores["accuracy_matched"].is_number() && scores["accuracy_mismatched"].is_number(), "{scores}");
    assert_eq!(lab.json("run/summary.json")["metric"], "accuracy_matched");
    lab.ok(&["predict", "run", "--out", "sub"]);
    lab.ok(&["predict", "run", "--out", "sub", "--task", "ax"]);
    for (name, indices) in [("MNLI-m.tsv", vec!["10", "7"]), ("MNLI-mm.tsv", vec!["10", "7"]), ("AX.tsv", vec!["0"])] {
        let text = lab.read(&format!("sub/{name}"));
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("index\tprediction"), "{name}");
        let rows: Vec<(&str, &str)> = lines.map(|l| l.split_once('\t').unwrap()).collect();
        assert_eq!(rows.iter().map(|r| r.0).collect::<Vec<_>>(), indices, "{name}");
        assert!(rows.iter().all(|r| ["neutral", "entailment", "contradiction"].contains(&r.1)), "{name}: {rows:?}");
    }
    let ran = lab.run(&["predict", "run", "--task", "rte"]);
    assert!(ran.code == 1 && ran.stderr.contains("task rte: its labels or texts are not those of mnli"), "{}", ran.stderr);
}

#[test]
fn little_of_a_batch_is_padding_and_a_batch_may_be_so_many_tokens() {
    let lab = lab();
    lab.write("train.tsv", learnable(900));
    let padding = |dir: &str, changes: &[&str]| {
        lab.ok(&[&["finetune", "fine.json", "train.max_epochs=1", &format!("run.dir={dir}")], changes].concat());
        let metrics = common::metrics(&lab.path(dir));
        let shares: Vec<f64> = metrics.iter().filter(|m| m["split"] == "train").map(|m| m["padding"].as_f64().unwrap()).collect();
        shares.iter().sum::<f64>() / shares.len() as f64
    };
    let (sorted, unsorted) = (padding("a", &[]), padding("b", &["data.bucket_batches=0"]));
    assert!(sorted < 0.1 && unsorted > 0.25, "{sorted} {unsorted}");
    assert!(padding("c", &["train.batch_tokens=256"]) < 0.1);
    let steps = |dir: &str| lab.json(&format!("{dir}/summary.json"))["total_steps"].as_u64().unwrap();
    assert!(steps("a") == 113 && steps("c") != 113, "{} {}", steps("a"), steps("c"));
    let ran = lab.run(&["finetune", "fine.json", "train.batch_tokens=8"]);
    assert!(ran.code == 2 && ran.stderr.contains("train.batch_tokens: found 8, expected at least 32"), "{}", ran.stderr);
}

#[test]
fn examples_are_shown_as_the_model_sees_them() {
    let lab = lab();
    let text = lab.ok(&["data", "show", "fine.json", "-n", "2"]).stdout;
    assert!(text.contains("mine: 90 rows") && text.contains("row 1, label bad (0)"), "{text}");
    assert!(text.contains("\"<s>\" \"b\" \"a\" \"d\"") && text.contains("ids     0 ") && text.contains("mask    1 1 1"), "{text}");
    lab.config("pre.json", &[]);
    let text = lab.ok(&["data", "show", "pre.json", "-n", "1"]).stdout;
    assert!(text.contains("step 1: 8 sequences of 16 tokens") && text.contains("sequence 0, ") && text.contains("targets "), "{text}");
}

#[test]
fn scored_texts_in_the_pretraining_corpus_are_counted_and_named() {
    let lab = lab();
    lab.config("pre.json", &[("data.tokenizer", json!("bytes")), ("run.dir", json!("pre")), ("train.max_steps", json!(2))]);
    lab.ok(&["pretrain", "pre.json", "--quiet"]);
    let known: String = common::prose(3).split_whitespace().take(12).collect::<Vec<_>>().join(" ");
    lab.write("dev.tsv", learnable(10) + &format!("{known}\tgood\n"));
    // The model's shape comes from the pretrained run.
    let mut config = lab.json("fine.json");
    config.as_object_mut().unwrap().remove("model");
    lab.write("fine.json", config.to_string());
    let args = ["finetune", "fine.json", "train.max_epochs=1", "data.sequence_length=16", "run.init_from=pre"];
    let ran = lab.ok(&args);
    assert!(ran.stderr.contains("scored texts stand in the corpus of run.init_from, the first is \""), "{}", ran.stderr);
    assert_eq!(lab.json("run/summary.json")["pretraining_overlap"]["found"], 1);
}

#[test]
fn odd_rows_and_leaks_are_told_at_the_start_and_in_the_result() {
    let lab = lab();
    lab.write("train.tsv", learnable(30) + "a \" lone quote\nno\tsuch label\n");
    let ran = lab.run(&["finetune", "fine.json", "data.task.labels=[\"bad\",\"good\"]"]);
    assert!(ran.code == 1 && ran.stderr.contains("train.tsv: line 32: 1 fields, expected 2"), "{}", ran.stderr);
    let ran = lab.ok(&["finetune", "fine.json", "data.task.labels=[\"bad\",\"good\"]", "data.on_error=skip", "train.max_epochs=1"]);
    assert!(ran.stderr.contains("train: 2 rows were skipped") && ran.stderr.contains("train.tsv: line 32"), "{}", ran.stderr);
    assert!(ran.stderr.contains("rows stand in a scored split too"), "{}", ran.stderr);
    let skipped = &lab.json("run/summary.json")["data"]["train"]["skipped"];
    assert_eq!(skipped["rows"], 2);
    let labels = "data.task.labels=[\"bad\",\"good\"]";
    let ran = lab.run(&["finetune", "fine.json", labels, "run.dir=other", "data.on_overlap=stop", "data.on_error=skip"]);
    assert!(ran.code == 1 && ran.stderr.contains("data.on_overlap: ") && !lab.path("other").exists(), "{}", ran.stderr);
}

/// One pretrained model, two tasks: three outputs for MNLI, one for STS-B; and a task whose metric its predictions do not define.
/// Cases 7, 8 and 9.
#[test]
fn the_task_decides_the_outputs_and_an_undefined_metric_ends_nothing() {
    let lab = Lab::new();
    lab.config("pre.json", &[("run.dir", json!("pre")), ("data.sequence_length", json!(32)), ("train.max_steps", json!(2))]);
    lab.ok(&["pretrain", "pre.json", "--quiet"]);
    let nli = |i: usize| format!("A man {i}.\tA cat.\t{}\n", ["neutral", "entailment", "contradiction"][i % 3]);
    for split in ["train", "dev_matched", "dev_mismatched"] {
        lab.write(
            &format!("glue/MNLI/{split}.tsv"),
            "sentence1\tsentence2\tgold_label\n".to_string() + &(0..9).map(nli).collect::<String>(),
        );
    }
    // Every pair of the scored split is the same one: the model cannot but say one number.
    let pair = |i: usize, train: bool| format!("A plane {}.\tA bird.\t{}.5\n", if train { i } else { 0 }, i % 5);
    for (split, train) in [("train", true), ("dev", false)] {
        let rows: String = (0..10).map(|i| pair(i, train)).collect();
        lab.write(&format!("glue/STS-B/{split}.tsv"), "sentence1\tsentence2\tscore\n".to_string() + &rows);
    }
    for (task, outputs) in [("mnli", 3), ("stsb", 1)] {
        let config = json!({"data": {"task": task, "task_dir": "glue", "sequence_length": 32, "cache_dir": "cache"}, "run": {"init_from": "pre", "dir": format!("runs/{task}")},
            "train": {"max_steps": 4, "batch_size": 4, "warmup_steps": 1, "eval_every": 2, "checkpoint_every": 0}});
        lab.write("t.json", config.to_string());
        lab.ok(&["finetune", "t.json", "--quiet"]);
        let folder = std::fs::read_dir(lab.path(&format!("runs/{task}/checkpoints"))).unwrap().next().unwrap().unwrap().path();
        let weights = std::fs::read(folder.join("model.safetensors")).unwrap();
        let shape = safetensors::SafeTensors::deserialize(&weights).unwrap().tensor("classifier.out_proj.weight").unwrap().shape().to_vec();
        assert_eq!(shape, [outputs, 16], "{task}");
    }
    let summary = lab.json("runs/stsb/summary.json");
    assert_eq!(
        (&summary["metric"], &summary["value"], &summary["constant_prediction"]),
        (&json!("pearson"), &json!(null), &json!(true)),
        "{summary}"
    );
    let report: Value = serde_json::from_str(&lab.ok(&["evaluate", "runs/stsb"]).stdout).unwrap();
    assert!(report["splits"]["dev"]["undefined"].as_array().unwrap().contains(&json!("pearson")), "{report}");
    let text = lab.ok(&["report", "runs/stsb", "--out", "out"]).stdout;
    assert!(text.contains("One and the same prediction for every row, at the checkpoint that the value is of: stsb."), "{text}");
}

/// What makes a run short: these tests look at tables.
fn short() -> [(&'static str, Value); 2] {
    [("train.max_epochs", json!(0.1)), ("train.warmup_steps", json!(0))]
}

#[test]
fn a_report_averages_over_seeds_and_nothing_else() {
    let lab = lab();
    config(&lab, &short());
    lab.config("pre.json", &[("data.tokenizer", json!("bytes")), ("data.sequence_length", json!(32))]);
    for seed in [0, 1] {
        lab.ok(&["pretrain", "pre.json", "--quiet", &format!("run.dir=pre/lin_seed={seed}"), &format!("train.seed={seed}")]);
    }
    let variant = |name: &str, seed: u64| json!({"name": name, "set": {"run.init_from": format!("pre/lin_seed={seed}")}});
    let sweep = json!({"base": "fine.json", "dir": "fine", "variants": [variant("a", 0), variant("b", 1)],
        "grid": {"train.learning_rate": [0.001, 0.01], "train.seed": [0, 1]}});
    lab.write("sweep.json", sweep.to_string());
    lab.ok(&["sweep", "sweep.json", "--results", "first"]);
    // What the runs took from their parents and found in the rows is no change of the sweep.
    let dry = lab.ok(&["sweep", "sweep.json", "--dry-run"]).stdout;
    assert_eq!(dry.lines().filter(|line| line.ends_with("done")).count(), 8, "{dry}");
    lab.ok(&["sweep", "sweep.json", "--collect", "--results", "again"]);
    assert_eq!(lab.json("again/results.json"), lab.json("first/results.json"));

    // Name, number of perplexities, number of scores.
    let lines = |dirs: &[&str]| -> Vec<String> {
        lab.ok(&[&["report"][..], dirs, &["--out", "out"]].concat());
        let models = lab.json("out/table.json")["models"].as_array().unwrap().clone();
        let count = |values: &Value| values.as_array().map_or(0, Vec::len);
        let line = |m: &Value| format!("{}: {}, {}", m["name"].as_str().unwrap(), count(&m["perplexity"]), count(&m["scores"]["mine"]));
        models.iter().map(line).collect()
    };
    let rates = ["lin: 2, 0", "lin with train.learning_rate=0.001: 0, 4", "lin with train.learning_rate=0.01: 0, 4"];
    assert_eq!(lines(&["pre", "fine"]), rates);
    // Without the parents.
    let rates = ["a_learning_rate=0.001: 0, 2", "a_learning_rate=0.01: 0, 2", "b_learning_rate=0.001: 0, 2", "b_learning_rate=0.01: 0, 2"];
    assert_eq!(lines(&["fine"]), rates);
    let made: [(&str, &[&str]); 6] = [
        ("one/x", &[]),
        ("two/x", &["train.weight_decay=0.5"]),
        ("one/y_seed=0", &[]),
        ("one/y_seed=1", &["train.seed=1", "train.weight_decay=0.5"]),
        ("one/z_seed=0", &[]),
        ("one/z_seed=1", &["train.seed=1", "run.threads=1", "data.cache_dir=elsewhere"]),
    ];
    for (dir, changes) in made {
        lab.ok(&[&["finetune", "fine.json", "--quiet", &format!("run.dir={dir}")], changes].concat());
    }
    let decays = ["one/x: 0, 1", "two/x: 0, 1", "y with train.weight_decay=0.01: 0, 1", "y with train.weight_decay=0.5: 0, 1", "z: 0, 2"];
    assert_eq!(lines(&["one", "two"]), decays);
}

/// The summaries get numbers that no table can mistake for each other.
#[test]
fn tables_show_the_half_that_chose_nothing() {
    let lab = lab();
    config(&lab, &[&short()[..], &[("data.dev_halves", json!(true))]].concat());
    lab.write("sweep.json", json!({"base": "fine.json", "dir": "runs", "variants": [{"name": "one"}]}).to_string());
    lab.ok(&["sweep", "sweep.json"]);
    let written = lab.json("runs/one/summary.json");
    for (reported, shown) in [(json!(0.25), "0.250"), (json!(null), "undefined")] {
        let mut summary = written.clone();
        (summary["value"], summary["reported_value"]) = (json!(0.875), reported);
        lab.write("runs/one/summary.json", summary.to_string());
        let sweep = lab.ok(&["sweep", "sweep.json"]).stdout;
        let report = lab.ok(&["report", "runs", "--out", "out"]).stdout;
        for text in [&sweep, &report] {
            assert!(text.contains(shown) && !text.contains("0.875"), "{text}");
            assert!(text.contains("the half of the rows that did not choose the checkpoint"), "{text}");
        }
        // Of half of 37 rows.
        assert!(report.contains("is at least 0.093"), "{report}");
        let list = lab.ok(&["list", "runs"]).stdout;
        assert!(!list.contains("0.875"), "{list}");
    }
}

#[test]
fn a_mean_says_of_how_many_seeds_it_is_where_some_are_undefined() {
    let lab = lab();
    config(&lab, &short());
    let sweep = json!({"base": "fine.json", "dir": "runs", "variants": [{"name": "one"}], "grid": {"train.seed": [0, 1, 2]}});
    lab.write("sweep.json", sweep.to_string());
    lab.ok(&["sweep", "sweep.json"]);
    for (seed, value) in [json!(0.4), json!(null), json!(0.5)].into_iter().enumerate() {
        let name = format!("runs/one_seed={seed}/summary.json");
        let mut summary = lab.json(&name);
        summary["value"] = value;
        lab.write(&name, summary.to_string());
    }
    let cell = "0.450 ± 0.071 (2 of 3; 1 undefined)";
    let table = lab.ok(&["sweep", "sweep.json"]).stdout;
    assert!(table.contains(cell), "{table}");
    assert!(lab.read("runs/table.csv").starts_with("group,runs,parameters,score,score sd,score runs,"), "{}", lab.read("runs/table.csv"));
    let row = &lab.json("runs/table.json")[0];
    assert_eq!((&row["runs"], &row["wanted"], &row["score"]["runs"]), (&json!(3), &json!(3), &json!(2)));
    let report = lab.ok(&["report", "runs", "--out", "out"]).stdout;
    for text in [&report, &lab.read("out/table.csv"), &lab.read("out/report.html")] {
        assert!(text.contains(cell), "{text}");
    }
    assert!(report.contains("Where the value of a seed is undefined, a mean is of the others"), "{report}");
    assert_eq!(lab.json("out/table.json")["models"][0]["scores"]["mine"], json!([0.4, null, 0.5]));
}
