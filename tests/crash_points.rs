//! Every point at which a run changes a file: the process is killed there, a write is torn there, the power goes, the call
//! fails, or the disk is full from there on. What was good before is still good, and the resumed run ends as the one that
//! was never broken off.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{crash_variables, metrics, series, task_rows, weights_sha256};
use serde_json::{json, Value};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

const MODES: [&str; 5] = ["kill", "torn", "power", "fail", "full"];
const STEPS: u64 = 6;

/// A command whose crashes are tried.
struct Scene {
    command: &'static str,
    config: Value,
}

fn model() -> Value {
    json!({"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "hidden_dropout_prob": 0.1,
           "attention": {"k": 4, "sharing": "key_value"}})
}

fn train() -> Value {
    json!({"max_steps": STEPS, "batch_size": 4, "micro_batch_size": 2, "warmup_steps": 2, "schedule": "constant", "log_every": 2,
           "eval_every": 3, "checkpoint_every": 2, "keep_checkpoints": 1})
}

fn pretraining() -> Scene {
    let data = json!({"corpus": "text", "tokenizer": "bytes", "cache_dir": "cache", "sequence_length": 16, "validation_fraction": 0.3});
    Scene { command: "pretrain", config: json!({"model": model(), "data": data, "train": train(), "run": {"dir": "run"}}) }
}

fn finetuning() -> Scene {
    let task = json!({"name": "mine", "train": "train.tsv", "dev": "dev.tsv", "text": "text", "label": "label", "labels": ["0", "1"]});
    let data = json!({"task": task, "tokenizer": "bytes", "sequence_length": 16});
    Scene { command: "finetune", config: json!({"model": model(), "data": data, "train": train(), "run": {"dir": "run"}}) }
}

impl Scene {
    fn lay_out(&self, folder: &Path) {
        let write = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
        std::fs::create_dir(folder.join("text")).unwrap();
        (0..8).for_each(|i| write(&format!("text/{i}.txt"), common::prose(i)[..400].to_string()));
        write("train.tsv", task_rows(17));
        write("dev.tsv", task_rows(9));
        write("c.json", self.config.to_string());
    }

    fn run(&self, folder: &Path, resume: bool, variables: &[(&str, String)]) -> common::Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_linformer"));
        command.args([self.command, "c.json", "--quiet"]).current_dir(folder).env("OMP_NUM_THREADS", "1");
        if resume {
            command.args(["--resume", "auto"]);
        }
        let ran = command.envs(variables.iter().map(|(k, v)| (*k, v.as_str()))).output().unwrap();
        common::ran(ran)
    }
}

/// Tries each `(mode, point)`; gives how many crashes or failures really happened.
fn try_points(scene: &Scene, choose: impl Fn(usize) -> Vec<(&'static str, usize)>) -> usize {
    let home = tempfile::tempdir().unwrap();
    let straight = home.path().join("straight");
    std::fs::create_dir(&straight).unwrap();
    scene.lay_out(&straight);
    let ran = scene.run(&straight, false, &crash_variables(&straight, "kill", 0));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let total: usize = std::fs::read_to_string(straight.with_extension("count")).unwrap().parse().unwrap();
    assert!(total > 100, "the shim saw only {total} calls");
    let run = straight.join("run");
    let expected = (weights_sha256(&run, STEPS), metrics(&run), series(&run));

    let points = choose(total);
    let (next, broken) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        while let Some((mode, at)) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
            let folder = home.path().join(format!("{mode}-{at}"));
            std::fs::create_dir(&folder).unwrap();
            scene.lay_out(&folder);
            let first = scene.run(&folder, false, &crash_variables(&folder, mode, *at));
            assert!(!first.stderr.contains("internal error"), "{mode} at {at}: {}", first.stderr);
            match (*mode, first.code) {
                // -1: ended by a signal.
                ("kill" | "torn" | "power", code) => assert!(code == -1 || code == 0, "{mode} at {at}: {code} {}", first.stderr),
                (_, code) => {
                    assert!(code == 0 || code == 1, "{mode} at {at}: {code} {}", first.stderr);
                    let last = first.stderr.lines().last().unwrap_or_default();
                    assert!(code == 0 || last.contains("No space left"), "{mode} at {at}: {}", first.stderr);
                }
            }
            broken.fetch_add(usize::from(first.code != 0), Ordering::Relaxed);
            let second = scene.run(&folder, true, &[]);
            assert_eq!(second.code, 0, "{mode} at {at}, then resumed: {}", second.stderr);
            let run = folder.join("run");
            assert_eq!(weights_sha256(&run, STEPS), expected.0, "{mode} at {at}: weights");
            // A run that ended well without its logs has said so, and is done.
            if !first.stderr.contains("cannot be written") {
                assert_eq!(metrics(&run), expected.1, "{mode} at {at}: metrics");
                assert_eq!(series(&run), expected.2, "{mode} at {at}: TensorBoard");
            }
            std::fs::remove_dir_all(&folder).unwrap();
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        workers.into_iter().for_each(|w| w.join().unwrap());
    });
    let broken = broken.into_inner();
    println!("{}: {} points of {total} tried, {broken} broke the run off", scene.command, points.len());
    broken
}

/// All points in all modes; with CRASH_STEP=n, each nth, another one in each mode.
fn every_mode(total: usize) -> Vec<(&'static str, usize)> {
    let step = std::env::var("CRASH_STEP").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    MODES.iter().enumerate().flat_map(|(i, mode)| (1 + i % step..=total).step_by(step).map(move |at| (*mode, at))).collect()
}

#[test]
fn some_crash_points_of_a_pretraining() {
    let broken = try_points(&pretraining(), |total| (0..20).map(|i| (MODES[i % 5], 1 + i * (total - 2) / 19)).collect());
    assert!(broken >= 12, "{broken}");
}

#[test]
#[ignore = "slow: make test-crash"]
fn every_crash_point_of_a_pretraining() {
    try_points(&pretraining(), every_mode);
}

#[test]
#[ignore = "slow: make test-crash"]
fn every_crash_point_of_a_finetuning() {
    try_points(&finetuning(), every_mode);
}
