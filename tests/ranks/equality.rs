//! W ranks give what one process gives.

use super::*;

/// With dropout, and masks of their own for every rank and step; a validation part of 16 sequences, which 3 does not divide.
#[test]
fn cases_24_and_46_ranks_give_the_bits_of_one_process_that_accumulates_as_often() {
    let lab = Lab::new();
    lab.config(
        "c.json",
        &[("model.hidden_dropout_prob", json!(0.1)), ("train.max_steps", json!(7)), ("run.ranks.compare_every", json!(2))],
    );
    for ranks in [2, 3, 4] {
        let (one, many) = (format!("run.dir=one{ranks}"), format!("run.dir=many{ranks}"));
        lab.ok(&["pretrain", "c.json", &one, &format!("train.micro_batch_size={}", 8usize.div_ceil(ranks)), "--quiet"]);
        launched(&lab, ranks, &["pretrain", "c.json", &many, "--quiet"]);
        let [one, many] = [format!("one{ranks}"), format!("many{ranks}")].map(|run| lab.path(&run));
        assert_eq!(weights_sha256(&one, 7), weights_sha256(&many, 7), "{ranks} ranks");
        assert_eq!(metrics(&one), metrics(&many));
        assert_eq!(common::series(&one), common::series(&many));
    }
}

/// Micro-batches within the ranks, gradients in many small buckets: the sums are nested otherwise.
#[test]
fn accumulation_within_ranks_is_within_rounding() {
    let lab = Lab::new();
    lab.config("c.json", &[("model.hidden_dropout_prob", json!(0.1)), ("train.micro_batch_size", json!(1)), ("train.log_every", json!(1))]);
    lab.ok(&["pretrain", "c.json", "run.dir=one", "--quiet"]);
    launched(&lab, 2, &["pretrain", "c.json", "run.dir=two", "run.ranks.bucket_mib=0.002", "--quiet"]);
    let [one, two] = ["one", "two"].map(|run| {
        let file = lab.path(&format!("{run}/checkpoints/step-00000006/model.safetensors"));
        let mut tensors = tch::Tensor::read_safetensors(file).unwrap();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        tensors
    });
    for ((name, a), (_, b)) in one.iter().zip(&two) {
        let difference = (a - b).abs().max().double_value(&[]);
        assert!(difference < 1e-6, "{name}: {difference}");
    }
}

/// A task of 34 rows to learn from, five steps an epoch, and 13 to be scored on.
fn task(lab: &Lab) {
    lab.write("train.tsv", task_rows(34));
    lab.write("dev.tsv", task_rows(13));
    let config = json!({"model": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "attention": {"k": 4}},
        "data": {"task": {"name": "mine", "train": "train.tsv", "dev": "dev.tsv", "text": "text", "label": "label", "labels": ["0", "1"]},
                 "tokenizer": "bytes", "sequence_length": 24},
        "train": {"max_epochs": 2, "batch_size": 8, "warmup_steps": 2, "log_every": 1, "eval_every": 3, "keep_checkpoints": 9}});
    lab.write("c.json", config.to_string());
}

/// 13 rows for 3 ranks; an epoch's last batch of 2 rows leaves a rank without any.
#[test]
fn case_46_fine_tuning_among_ranks_scores_every_row_once() {
    let lab = Lab::new();
    task(&lab);
    lab.ok(&["finetune", "c.json", "run.dir=one", "train.micro_batch_size=3", "--quiet"]);
    launched(&lab, 3, &["finetune", "c.json", "run.dir=three", "--quiet"]);
    let [one, three] = ["one", "three"].map(|run| lab.path(run));
    assert_eq!(metrics(&one), metrics(&three));
    assert_eq!(weights_sha256(&one, 10), weights_sha256(&three, 10));
}

/// The order of data is a function of (seed, epoch); with the same number of ranks the bits are the same as well.
#[test]
fn case_36_a_run_goes_on_with_another_number_of_ranks() {
    let lab = Lab::new();
    lab.config("c.json", &[("train.max_steps", json!(12)), ("train.schedule", json!("constant")), ("train.log_every", json!(1))]);
    launched(&lab, 2, &["pretrain", "c.json", "run.dir=whole", "--quiet"]);
    for (dir, ranks) in [("same", 2), ("more", 4), ("alone", 1)] {
        let dir_key = format!("run.dir={dir}");
        launched(&lab, 2, &["pretrain", "c.json", &dir_key, "train.max_steps=6", "--quiet"]);
        launched(&lab, ranks, &["pretrain", "c.json", &dir_key, "--resume", "auto", "--quiet"]);
        if ranks == 2 {
            assert_eq!(weights_sha256(&lab.path("whole"), 12), weights_sha256(&lab.path(dir), 12));
        }
        let losses = |run: &str| {
            let train = metrics(&lab.path(run)).into_iter().filter(|m| m["split"] == "train");
            train.map(|m| (m["step"].as_u64().unwrap(), m["loss"].as_f64().unwrap())).collect::<Vec<_>>()
        };
        let (whole, cut) = (losses("whole"), losses(dir));
        assert_eq!(whole.len(), cut.len());
        assert!(whole.iter().zip(&cut).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-5), "{whole:?} {cut:?}");
    }
}

/// ZeRO-1; the run goes on without it, and with another number of ranks.
#[test]
fn a_sharded_optimizer_gives_the_same_bits_and_the_same_checkpoint() {
    let lab = Lab::new();
    for precision in ["fp32", "bf16"] {
        lab.config("c.json", &[("train.precision", json!(precision)), ("train.schedule", json!("constant"))]);
        let (plain, sharded) = (format!("plain-{precision}"), format!("sharded-{precision}"));
        let [plain_dir, sharded_dir] = [&plain, &sharded].map(|run| format!("run.dir={run}"));
        let zero = "run.ranks.shard_optimizer=true";
        launched(&lab, 3, &["pretrain", "c.json", &plain_dir, "--quiet"]);
        launched(&lab, 3, &["pretrain", "c.json", &sharded_dir, zero, "train.max_steps=4", "--quiet"]);
        launched(&lab, 3, &["pretrain", "c.json", &sharded_dir, zero, "--resume", "auto", "--quiet"]);
        assert_eq!(weights_sha256(&lab.path(&plain), 6), weights_sha256(&lab.path(&sharded), 6), "{precision}");
        launched(&lab, 1, &["pretrain", "c.json", &sharded_dir, "train.max_steps=8", "--resume", "auto", "--quiet"]);
    }
}

#[test]
fn one_bar_one_metrics_file_one_event_file() {
    let lab = Lab::new();
    lab.config("c.json", &[("train.log_every", json!(1))]);
    launched(&lab, 2, &["pretrain", "c.json"]);
    let lines = common::metrics(&lab.path("run"));
    assert_eq!(lines.iter().filter(|m| m["split"] == "train").count(), 6);
    common::series(&lab.path("run"));
    let text = lab.read("run/metrics.jsonl");
    let line: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    for key in ["communication", "communication_exposed", "communication_overlap"] {
        assert!(line[key].as_f64().is_some_and(|v| v >= 0.0), "{key}: {line}");
    }
    assert_eq!(logs(&lab).lines().count(), 1, "the second rank has nothing to say: {}", logs(&lab));
}

/// At the end of an epoch: the next one is neither passed over nor begun twice, whatever the number of ranks.
#[test]
fn case_36_a_run_goes_on_with_the_next_epoch() {
    let lab = Lab::new();
    task(&lab);
    let train = |ranks: usize, dir: &str, steps: usize| {
        let (dir, steps) = (format!("run.dir={dir}"), format!("train.max_steps={steps}"));
        let args = ["finetune", "c.json", &dir, "train.max_epochs=null", &steps, "train.schedule=constant", "--resume", "auto", "--quiet"];
        launched(&lab, ranks, &args);
    };
    train(2, "whole", 10);
    // Five steps are an epoch.
    train(2, "cut", 5);
    train(3, "cut", 10);
    let lines = |run: &str| {
        let train = metrics(&lab.path(run)).into_iter().filter(|m| m["split"] == "train");
        train.map(|m| (m["step"].as_u64().unwrap(), m["tokens"].as_f64().unwrap(), m["loss"].as_f64().unwrap())).collect::<Vec<_>>()
    };
    let (whole, cut) = (lines("whole"), lines("cut"));
    assert_eq!(whole.iter().map(|l| l.0).collect::<Vec<_>>(), (1..=10).collect::<Vec<u64>>());
    assert_eq!(whole.len(), cut.len());
    assert!(whole.iter().zip(&cut).all(|(a, b)| (a.0, a.1) == (b.0, b.1) && (a.2 - b.2).abs() < 1e-5), "{whole:?} {cut:?}");
}

/// Training that ends early ends on all ranks, after the step at which one process would end.
#[test]
fn case_49_early_stopping_ends_all_ranks() {
    let lab = Lab::new();
    task(&lab);
    // Nothing is learned: no evaluation is better than the first.
    let args = ["train.learning_rate=1e-30", "train.early_stopping_patience=1", "train.max_epochs=9", "--quiet"];
    lab.ok(&[&["finetune", "c.json", "run.dir=one", "train.micro_batch_size=3"], &args[..]].concat());
    launched(&lab, 3, &[&["finetune", "c.json", "run.dir=three"], &args[..]].concat());
    let [one, three] = ["one", "three"].map(|run| metrics(&lab.path(run)));
    assert_eq!(one, three);
    assert_eq!(one.last().unwrap()["step"], 6, "the second evaluation of those after every third step");
}
