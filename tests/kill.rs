//! SIGKILL at random moments, again and again, and a run that is equal bit for bit to the one that was left in peace.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{metrics, series, task_rows, weights_sha256, Lab};
use linformer::random::{Purpose, Stream};
use serde_json::{json, Value};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Dropout, accumulation, epochs that end on the way, evaluations and checkpoints that are not in step with each other.
fn configs(lab: &Lab, precision: &str, steps: u64) -> [(&'static str, Value); 2] {
    lab.write("train.tsv", task_rows(45));
    lab.write("dev.tsv", task_rows(90));
    let model = json!({"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "hidden_dropout_prob": 0.1,
                       "attention_probs_dropout_prob": 0.1, "attention": {"k": 4, "sharing": "headwise"}});
    let train = json!({"max_steps": steps, "batch_size": 8, "micro_batch_size": 3, "learning_rate": 1e-3, "warmup_steps": 5, "precision": precision,
                       "log_every": 7, "eval_every": 20, "checkpoint_every": 9});
    let corpus = json!({"corpus": "text", "tokenizer": "bytes", "cache_dir": "cache", "sequence_length": 16, "validation_fraction": 0.2,
                        "short_sequence_length": 8, "short_steps": steps / 3});
    let task = json!({"task": {"name": "mine", "train": "train.tsv", "dev": "dev.tsv", "text": "text", "label": "label", "labels": ["0", "1"]},
                      "tokenizer": "bytes", "sequence_length": 24});
    [("pretrain", corpus), ("finetune", task)].map(|(command, data)| (command, json!({"model": model, "data": data, "train": train})))
}

/// Kills runs of both kinds until `kills` of them hit a living process; each run bears a few before it may end.
fn kill_and_compare(precision: &str, steps: u64, kills: usize, kills_a_run: usize) {
    for kind in 0..2 {
        let lab = Lab::new();
        let (command, config) = configs(&lab, precision, steps)[kind].clone();
        lab.write("c.json", config.to_string());
        let started = Instant::now();
        lab.ok(&[command, "c.json", "run.dir=whole", "--quiet"]);
        let whole_seconds = started.elapsed().as_secs_f64();
        let whole = lab.path("whole");
        let expected = (weights_sha256(&whole, steps), metrics(&whole), series(&whole));
        let mut random = Stream::new(kills as u64, Purpose::Order, 0).draws();
        let (mut hits, mut runs, mut resumed_late) = (0, 0, 0);
        while hits < kills {
            runs += 1;
            let dir = format!("run.dir=cut{runs}");
            let run = lab.path(&format!("cut{runs}"));
            for _ in 0..kills_a_run {
                let mut child = lab
                    .command(&[command, "c.json", &dir, "--resume", "auto", "--quiet"])
                    .stderr(Stdio::null())
                    .stdout(Stdio::null())
                    .spawn()
                    .unwrap();
                std::thread::sleep(Duration::from_secs_f64(whole_seconds * 1.1 * random.uniform()));
                let lives = child.try_wait().unwrap().is_none();
                child.kill().unwrap();
                child.wait().unwrap();
                hits += usize::from(lives);
                resumed_late += usize::from(lives && run.join("checkpoints").exists());
            }
            lab.ok(&[command, "c.json", &dir, "--resume", "auto", "--quiet"]);
            assert_eq!(weights_sha256(&run, steps), expected.0, "{command} {precision}, run {runs}: weights");
            assert_eq!(metrics(&run), expected.1, "{command} {precision}, run {runs}: metrics");
            assert_eq!(series(&run), expected.2, "{command} {precision}, run {runs}: TensorBoard");
        }
        assert!(resumed_late * 4 >= kills, "only {resumed_late} of {kills} kills came after the first checkpoint");
        println!(
            "{command} {precision}: {hits} kills hit a living process ({resumed_late} after its first checkpoint), {runs} runs, all equal"
        );
    }
}

#[test]
fn a_few_kills_change_nothing() {
    kill_and_compare("fp32", 60, 4, 2);
}

#[test]
#[ignore = "slow: make test-kill"]
fn fifty_kills_in_fp32_change_nothing() {
    kill_and_compare("fp32", 300, 50, 5);
}

#[test]
#[ignore = "slow: make test-kill"]
fn fifty_kills_in_bf16_change_nothing() {
    kill_and_compare("bf16", 300, 50, 5);
}
