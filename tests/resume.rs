//! A run that was stopped and resumed is the run that never stopped; accumulation does not change what is learned.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::Lab;
use serde_json::{json, Value};

fn final_weights(lab: &Lab, run: &str, step: u64) -> Vec<u8> {
    std::fs::read(lab.path(&format!("{run}/checkpoints/step-{step:08}/model.safetensors"))).unwrap()
}

fn metrics(lab: &Lab, run: &str) -> Vec<Value> {
    common::metrics(&lab.path(run))
}

const DROPOUT: (&str, f64) = ("model.hidden_dropout_prob", 0.1);

#[test]
fn two_runs_of_one_config_are_equal_bit_for_bit() {
    let lab = Lab::new();
    for dir in ["a", "b"] {
        lab.config("c.json", &[("run.dir", json!(dir)), (DROPOUT.0, json!(DROPOUT.1))]);
        lab.ok(&["pretrain", "c.json", "--quiet"]);
    }
    assert_eq!(final_weights(&lab, "a", 6), final_weights(&lab, "b", 6));
    assert_eq!(metrics(&lab, "a"), metrics(&lab, "b"));
}

/// The corpus has few sequences, so 40 steps cross several epochs; the short phase ends on the way.
#[test]
fn a_resumed_pretraining_is_the_one_that_never_stopped() {
    let lab = Lab::new();
    for precision in ["fp32", "bf16"] {
        let changes = |dir: &str| {
            vec![
                ("run.dir", json!(dir)),
                ("train.max_steps", json!(40)),
                ("train.schedule", json!("constant")),
                ("train.checkpoint_every", json!(7)),
                // Lines of metrics.jsonl that average over the cut.
                ("train.log_every", json!(5)),
                ("train.keep_checkpoints", json!(9)),
                ("train.precision", json!(precision)),
                ("data.short_sequence_length", json!(8)),
                ("data.short_steps", json!(10)),
            ]
        };
        let (whole, cut) = (format!("whole-{precision}"), format!("cut-{precision}"));
        lab.config("whole.json", &changes(&whole));
        lab.ok(&["pretrain", "whole.json", "--quiet"]);
        lab.config("cut.json", &changes(&cut));
        // Stopped after 16 steps: step 14 is the last checkpoint but for the final one, which is taken away.
        lab.ok(&["pretrain", "cut.json", "train.max_steps=16", "--quiet"]);
        std::fs::remove_dir_all(lab.path(&format!("{cut}/checkpoints/step-00000016"))).unwrap();
        lab.ok(&["pretrain", "cut.json", "--resume", "auto", "--quiet"]);
        assert_eq!(final_weights(&lab, &whole, 40), final_weights(&lab, &cut, 40), "{precision}");
        let later = |run: &str| metrics(&lab, run).into_iter().filter(|m| m["step"].as_u64() > Some(16)).collect::<Vec<_>>();
        assert_eq!(later(&whole), later(&cut));
        let steps: Vec<u64> = metrics(&lab, &cut).iter().filter(|m| m["split"] == "train").map(|m| m["step"].as_u64().unwrap()).collect();
        assert!(steps.windows(2).all(|w| w[0] < w[1]), "doubled or backward steps: {steps:?}");
    }
}

/// With early stopping, accumulation, dropout, and libtorch on two threads.
#[test]
fn a_resumed_finetuning_is_the_one_that_never_stopped() {
    let lab = Lab::new();
    let rows = |n: usize| (0..n).map(|i| format!("{}\t{}\n", common::prose(i).split('.').next().unwrap(), i % 2)).collect::<String>();
    lab.write("train.tsv", format!("text\tlabel\n{}", rows(45)));
    lab.write("dev.tsv", format!("text\tlabel\n{}", rows(13)));
    let config = |dir: &str| {
        json!({"model": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "attention": {"k": 4}},
            "data": {"task": {"name": "mine", "train": "train.tsv", "dev": "dev.tsv", "text": "text", "label": "label", "labels": ["0", "1"]},
                     "tokenizer": "bytes", "sequence_length": 24},
            "train": {"max_epochs": 6, "batch_size": 8, "micro_batch_size": 3, "warmup_steps": 2, "schedule": "constant", "log_every": 5,
                      "eval_every": 6, "checkpoint_every": 4, "keep_checkpoints": 9, "early_stopping_patience": 9},
            "run": {"dir": dir, "threads": 2}})
    };
    let run = |args: &[&str]| {
        let ran = common::ran(lab.command(args).env_remove("OMP_NUM_THREADS").output().unwrap());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    };
    lab.write("whole.json", config("whole").to_string());
    run(&["finetune", "whole.json", "--quiet"]);
    assert_eq!(lab.json("whole/summary.json")["total_steps"], 36, "6 epochs of 45 rows in batches of 8, the last of 5");
    lab.write("cut.json", config("cut").to_string());
    run(&["finetune", "cut.json", "--quiet"]);
    // As if the power had gone after step 20.
    for step in [24u64, 28, 30, 32, 36] {
        let _ = std::fs::remove_dir_all(lab.path(&format!("cut/checkpoints/step-{step:08}")));
    }
    std::fs::remove_file(lab.path("cut/summary.json")).unwrap();
    run(&["finetune", "cut.json", "--resume", "auto", "--quiet"]);
    assert_eq!(final_weights(&lab, "whole", 36), final_weights(&lab, "cut", 36));
    assert_eq!(metrics(&lab, "whole"), metrics(&lab, "cut"));
    assert_eq!(lab.json("whole/summary.json")["value"], lab.json("cut/summary.json")["value"]);
}

#[test]
fn a_finished_run_is_not_taken_for_another() {
    let lab = Lab::new();
    lab.config("c.json", &[]);
    lab.ok(&["pretrain", "c.json", "--quiet"]);
    lab.ok(&["pretrain", "c.json", "--resume", "auto", "--quiet"]);
    let refused = |args: &[&str], part: &str| {
        let ran = lab.run(args);
        assert!(ran.code == 1 && ran.stderr.contains(part), "{}", ran.stderr);
    };
    refused(&["pretrain", "c.json", "train.seed=5", "--resume", "auto"], "train.seed was 0, but it is 5");
    lab.write("text/99.txt", common::prose(99));
    refused(&["pretrain", "c.json", "--resume", "auto"], "inputs.");
    refused(&["pretrain", "c.json", "run.dir=elsewhere", "--resume", "run/checkpoints/step-00000006"], "no run is here");
}

#[test]
fn micro_batches_give_the_loss_of_one_big_batch() {
    let lab = Lab::new();
    let mut losses = Vec::new();
    for (dir, micro, smoothing) in [("m8", 8, 0.0), ("m3", 3, 0.0), ("m1", 1, 0.0), ("s8", 8, 0.1), ("s3", 3, 0.1)] {
        lab.config(
            "c.json",
            &[
                ("run.dir", json!(dir)),
                ("train.micro_batch_size", json!(micro)),
                ("train.label_smoothing", json!(smoothing)),
                ("train.log_every", json!(1)),
                (DROPOUT.0, json!(DROPOUT.1)),
            ],
        );
        lab.ok(&["pretrain", "c.json", "--quiet"]);
        let train = metrics(&lab, dir).into_iter().filter(|m| m["split"] == "train");
        losses.push(train.map(|m| (m["loss"].as_f64().unwrap(), m["grad_norm"].as_f64().unwrap())).collect::<Vec<_>>());
    }
    for (a, b) in [(0, 1), (0, 2), (3, 4)] {
        for (x, y) in losses[a].iter().zip(&losses[b]) {
            assert!((x.0 - y.0).abs() < 2e-5 && (x.1 - y.1).abs() < 1e-3, "{x:?} {y:?}");
        }
    }
    // Untrained logits are nearly alike, so smoothing shows in the gradient rather than in the loss.
    assert!((losses[0][5].1 - losses[3][5].1).abs() > 1e-3, "label smoothing changed nothing: {losses:?}");
}

#[test]
fn the_logged_rate_is_above_zero_from_the_first_step() {
    let lab = Lab::new();
    lab.config("c.json", &[("train.log_every", json!(1)), ("train.max_steps", json!(4)), ("train.warmup_steps", json!(2))]);
    lab.ok(&["pretrain", "c.json", "--quiet"]);
    let rates: Vec<f64> = metrics(&lab, "run").iter().filter_map(|m| m["lr"].as_f64()).collect();
    assert_eq!(rates.iter().map(|r| (r * 1e6).round()).collect::<Vec<_>>(), [500.0, 1000.0, 667.0, 333.0]);
}

#[test]
fn evaluation_masks_are_fixed_and_real() {
    let lab = Lab::new();
    for (dir, seed) in [("a", 0), ("b", 1)] {
        // A rate of almost nothing: both evaluations see the same weights.
        lab.config("c.json", &[("run.dir", json!(dir)), ("train.seed", json!(seed)), ("train.learning_rate", json!(1e-30))]);
        lab.ok(&["pretrain", "c.json", "--quiet"]);
        let losses: Vec<f64> = metrics(&lab, dir).iter().filter(|m| m["split"] == "valid").map(|m| m["loss"].as_f64().unwrap()).collect();
        assert_eq!(losses.len(), 2);
        assert_eq!(losses[0], losses[1], "masks were drawn anew");
        assert!(losses[0] > 3.0, "perplexity near 1: nothing was masked");
    }
}

#[test]
fn a_run_that_learned_nothing_says_so() {
    let lab = Lab::new();
    lab.config("c.json", &[("train.learning_rate", json!(1e-30))]);
    let ran = lab.ok(&["pretrain", "c.json", "--quiet"]);
    assert!(ran.stderr.contains("unigram") && ran.stderr.contains("has not left the unigram plateau"), "{}", ran.stderr);
}

/// Weights and moments after 20 steps, in every kind of layer, with micro-batches and on two ranks.
#[test]
fn recomputation_changes_no_bit() {
    let lab = Lab::new();
    let modes: [&[(&str, Value)]; 6] = [
        &[("train.precision", json!("bf16"))],
        &[("model.attention.sharing", json!("layerwise")), ("train.micro_batch_size", json!(3))],
        &[("model.attention.sharing", json!("none")), ("model.norm", json!("pre"))],
        &[("model.attention.kind", json!("full")), ("model.attention.backend", json!("materialised"))],
        &[("model.backend", json!("reference")), ("train.precision", json!("bf16"))],
        &[("model.attention.projection", json!("mean_pool")), ("model.hidden_act", json!("relu"))],
    ];
    for (number, mode) in modes.iter().enumerate() {
        let runs = ["kept", "again"].map(|how| {
            let dir = format!("{how}-{number}");
            let mut changes = vec![
                ("run.dir", json!(dir)),
                ("train.max_steps", json!(20)),
                ("train.recompute", json!(how == "again")),
                ("model.hidden_dropout_prob", json!(0.1)),
                ("model.attention_probs_dropout_prob", json!(0.1)),
            ];
            changes.extend(mode.iter().cloned());
            lab.config("c.json", &changes);
            lab.ok(&["pretrain", "c.json", "--quiet"]);
            dir
        });
        let [kept, again] = runs.map(|dir| (common::weights_sha256(&lab.path(&dir), 20), metrics(&lab, &dir)));
        assert_eq!(kept, again, "{mode:?}");
    }
    // A projection that all layers share gets its gradient once, though each layer's pass makes a part of it.
    let ranks = ["kept-ranks", "again-ranks"].map(|dir| {
        let recompute = json!(dir.starts_with("again"));
        lab.config("c.json", &[("run.dir", json!(dir)), ("train.recompute", recompute), ("model.attention.sharing", json!("layerwise"))]);
        lab.ok(&["launch", "--nproc", "2", "pretrain", "c.json", "--quiet"]);
        common::weights_sha256(&lab.path(dir), 6)
    });
    assert_eq!(ranks[0], ranks[1]);
}

#[test]
fn recomputation_takes_less_memory() {
    let lab = Lab::new();
    let peak = |dir: &str, recompute: bool| {
        let shape = [("num_hidden_layers", 24), ("hidden_size", 64), ("num_attention_heads", 2), ("intermediate_size", 256)];
        let keys: Vec<String> = shape.iter().map(|(key, _)| format!("model.{key}")).collect();
        let mut changes: Vec<(&str, Value)> = keys.iter().zip(shape).map(|(key, (_, value))| (key.as_str(), json!(value))).collect();
        changes.extend([("run.dir", json!(dir)), ("train.recompute", json!(recompute)), ("train.max_steps", json!(2))]);
        changes.extend([("train.batch_size", json!(512)), ("train.micro_batch_size", json!(256))]);
        lab.config("c.json", &changes);
        lab.ok(&["pretrain", "c.json", "--quiet"]);
        metrics_of_memory(&lab, dir)
    };
    let (kept, again) = (peak("kept", false), peak("again", true));
    assert!(again < kept - 20e6, "{kept} bytes with all kept, {again} with recomputation");
}

fn metrics_of_memory(lab: &Lab, run: &str) -> f64 {
    let lines = lab.read(&format!("{run}/metrics.jsonl"));
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter_map(|line| line["peak_memory"].as_f64()).fold(0.0, f64::max)
}

/// A task whose scored rows all have one text, and either label: whatever is learned, each evaluation is half right.
fn undecidable(lab: &Lab) {
    lab.write("train.tsv", common::task_rows(40));
    lab.write("dev.tsv", "text\tlabel\n".to_string() + &"The ship saw\t0\nThe ship saw\t1\n".repeat(4));
    let config = json!({"model": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "attention": {"k": 4}},
        "data": {"task": {"name": "mine", "train": "train.tsv", "dev": "dev.tsv", "text": "text", "label": "label", "labels": ["0", "1"]},
                 "tokenizer": "bytes", "sequence_length": 24, "cache_dir": "cache"},
        "train": {"max_steps": 20, "batch_size": 8, "warmup_steps": 2, "log_every": 5, "eval_every": 2, "checkpoint_every": 0,
                  "early_stopping_patience": 2},
        "run": {"dir": "run"}});
    lab.write("fine.json", config.to_string());
}

#[test]
fn more_patience_lets_a_run_that_stopped_early_go_on_as_if_it_had_had_it() {
    let lab = Lab::new();
    undecidable(&lab);
    let steps = |dir: &str| lab.json(&format!("{dir}/summary.json"))["steps"].as_u64().unwrap();
    lab.ok(&["finetune", "fine.json", "--quiet"]);
    assert_eq!(steps("run"), 6, "the first evaluation is the best, two more are waited for");
    for (patience, end) in [(2, 6), (1, 6), (4, 10), (0, 20)] {
        let key = format!("train.early_stopping_patience={patience}");
        lab.ok(&["finetune", "fine.json", &key, "--resume", "auto", "--quiet"]);
        assert_eq!(steps("run"), end, "patience {patience}");
    }
    for (patience, end) in [(4, 10), (0, 20)] {
        let key = format!("train.early_stopping_patience={patience}");
        let (cut, whole) = (format!("cut-{patience}"), format!("whole-{patience}"));
        lab.ok(&["finetune", "fine.json", &format!("run.dir={cut}"), "--quiet"]);
        lab.ok(&["finetune", "fine.json", &format!("run.dir={cut}"), &key, "--resume", "auto", "--quiet"]);
        lab.ok(&["finetune", "fine.json", &format!("run.dir={whole}"), &key, "--quiet"]);
        assert_eq!(common::weights_sha256(&lab.path(&cut), end), common::weights_sha256(&lab.path(&whole), end));
        assert_eq!(metrics(&lab, &cut), metrics(&lab, &whole));
    }
}

/// As after a crash between the last checkpoint and the summary.
#[test]
fn a_summary_that_is_written_again_is_the_same() {
    let lab = Lab::new();
    undecidable(&lab);
    lab.ok(&["finetune", "fine.json", "--quiet"]);
    let summary = lab.json("run/summary.json");
    assert_eq!((&summary["best_step"], &summary["constant_prediction"]), (&json!(2), &json!(true)), "{summary}");
    std::fs::remove_file(lab.path("run/summary.json")).unwrap();
    lab.ok(&["finetune", "fine.json", "--resume", "auto", "--quiet"]);
    assert_eq!(lab.json("run/summary.json"), summary);
}

/// Most training rows are bad and all scored rows are said to be: at first bad is said of every row, and what is learned later
/// is worse.
#[test]
fn a_constant_prediction_is_that_of_the_evaluation_which_the_value_is_of() {
    let lab = Lab::new();
    undecidable(&lab);
    let row = |i: usize, word: &str, label: &str| format!("{word}{}\t{label}\n", " so".repeat(i * 5 % 7));
    let word = |i: usize, every: usize| if i.is_multiple_of(every) { "good" } else { "bad" };
    let table = |rows: String| "text\tlabel\n".to_string() + &rows;
    lab.write("train.tsv", table((0..96).map(|i| row(i, word(i, 4), word(i, 4))).collect()));
    lab.write("dev.tsv", table((0..16).map(|i| row(i, word(i, 2), "bad")).collect()));
    let labels = "data.task.labels=[\"bad\",\"good\"]";
    let train = ["train.max_steps=240", "train.eval_every=3", "train.learning_rate=1e-2", "train.early_stopping_patience=0"];
    lab.ok(&[&["finetune", "fine.json", labels][..], &train, &["--quiet"]].concat());
    let evaluations: Vec<Value> = metrics(&lab, "run").into_iter().filter(|m| m["split"] == "task").collect();
    let last = evaluations.last().unwrap();
    assert!(last["constant_prediction"].is_null(), "nothing was learned in the end: {last}");
    let summary = lab.json("run/summary.json");
    assert_eq!((&summary["value"], &summary["constant_prediction"]), (&json!(1.0), &json!(true)), "{summary}");
}

#[test]
fn checkpoints_that_cannot_be_read_are_not_taken_for_none() {
    let lab = Lab::new();
    lab.config("c.json", &[]);
    lab.ok(&["pretrain", "c.json", "--quiet"]);
    let logged = lab.read("run/metrics.jsonl");
    let longer = ["pretrain", "c.json", "train.max_steps=9", "--resume", "auto", "--quiet"];
    let refused = |named: &str| {
        let ran = lab.run(&longer);
        let line = ran.stderr.trim_end();
        assert!(ran.code == 1 && line.lines().count() == 1 && line.contains(named) && line.contains("mount its disk"), "{line}");
        assert_eq!(lab.read("run/metrics.jsonl"), logged);
        assert!(lab.path("run/summary.json").exists());
    };
    let instead = |name: &str, target: &str, named: &str| {
        let path = lab.path(name);
        std::fs::rename(&path, lab.path("kept")).unwrap();
        std::os::unix::fs::symlink(lab.path(target), &path).unwrap();
        refused(named);
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(lab.path("kept"), &path).unwrap();
    };
    // A disk that is not mounted, and a file that not even root can open: a link to itself.
    instead("run/checkpoints", "disk/checkpoints", "run/checkpoints: No such file");
    let weights = "run/checkpoints/step-00000006/model.safetensors";
    instead(weights, weights, "step-00000006/model.safetensors: Too many levels");
    let ran = lab.ok(&longer);
    assert!(ran.stderr.contains("goes on after step 6"), "{}", ran.stderr);
}
