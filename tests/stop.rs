//! Runs that are asked to stop: signals, the time limit, an evaluation broken off; forks; the best checkpoints.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{metrics, ran, series, weights_sha256, Lab, Ran};
use serde_json::{json, Value};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn start(lab: &Lab, args: &[&str]) -> Child {
    lab.command(args).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

fn wait_for(what: &str, mut there: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !there() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

fn checkpoints(run: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(run.join("checkpoints")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Exit 130 and a checkpoint in the middle of the run; the resumed run ends as the whole one.
fn stops_and_goes_on(name: &str) {
    let lab = Lab::new();
    lab.config("c.json", &[("train.max_steps", json!(600)), ("train.eval_every", json!(0)), ("train.checkpoint_every", json!(0))]);
    lab.ok(&["pretrain", "c.json", "run.dir=whole", "--quiet"]);
    let cut = lab.path("cut");
    let child = start(&lab, &["pretrain", "c.json", "run.dir=cut", "--quiet"]);
    wait_for("the run did not start", || std::fs::metadata(cut.join("metrics.jsonl")).map_or(0, |m| m.len()) > 500);
    signal(&child, name);
    let ran: Ran = ran(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 130, "{}", ran.stderr);
    assert!(ran.stderr.contains("a checkpoint was written"), "{}", ran.stderr);
    let saved = checkpoints(&cut);
    assert!(saved.len() == 1 && saved[0] != "step-00000600", "the signal came too late: {saved:?}");
    lab.ok(&["pretrain", "c.json", "run.dir=cut", "--resume", "auto", "--quiet"]);
    assert_eq!(weights_sha256(&lab.path("whole"), 600), weights_sha256(&cut, 600));
    assert_eq!(metrics(&lab.path("whole")), metrics(&cut));
    assert_eq!(series(&lab.path("whole")), series(&cut));
}

#[test]
fn ctrl_c_stops_with_a_checkpoint() {
    stops_and_goes_on("-INT");
}

#[test]
fn sigterm_stops_with_a_checkpoint() {
    stops_and_goes_on("-TERM");
}

#[test]
fn slurms_warning_stops_with_a_checkpoint() {
    stops_and_goes_on("-USR1");
}

/// Before the first step there is nothing to save: the process ends at once, and nothing half-made is taken for a corpus.
#[test]
fn a_signal_during_preparation_ends_at_once() {
    let lab = Lab::new();
    lab.write("big/a.txt", (0..3000).map(common::prose).collect::<Vec<_>>().join("\n\n"));
    lab.config("c.json", &[("data.corpus", json!("big")), ("data.document", json!("blank_line")), ("data.vocab_size", json!(2000))]);
    let child = start(&lab, &["pretrain", "c.json", "--quiet"]);
    wait_for("no preparation", || lab.path("cache").exists());
    signal(&child, "-TERM");
    let ran = ran(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.stderr.as_str()), (130, ""));
    assert!(!lab.path("run").exists());
    lab.ok(&["pretrain", "c.json", "--quiet"]);
}

#[test]
fn an_evaluation_that_was_broken_off_is_made_when_the_run_goes_on() {
    let lab = Lab::new();
    lab.write("text/long.txt", (0..60).map(common::prose).collect::<Vec<_>>().join("\n\n"));
    let changes = [
        ("data.document", json!("blank_line")),
        ("data.tokenizer", json!("bytes")),
        ("data.validation_fraction", json!(0.7)),
        ("data.max_validation_sequences", json!(0)),
        ("train.eval_every", json!(2)),
        ("train.max_steps", json!(12)),
    ];
    lab.config("c.json", &changes);
    lab.ok(&["pretrain", "c.json", "run.dir=whole", "--quiet"]);
    let pending = |run: &Path| {
        let newest = checkpoints(run).pop().unwrap();
        let text = std::fs::read_to_string(run.join("checkpoints").join(newest).join("state.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["evaluation_pending"] == json!(true)
    };
    let mut broken_off = 0;
    for attempt in 0..6 {
        let (dir, run) = (format!("run.dir=cut{attempt}"), lab.path(&format!("cut{attempt}")));
        let child = start(&lab, &["pretrain", "c.json", &dir, "--quiet"]);
        wait_for("no metrics", || std::fs::metadata(run.join("metrics.jsonl")).map_or(0, |m| m.len()) > 100);
        std::thread::sleep(Duration::from_millis(3 * attempt));
        signal(&child, "-TERM");
        let ran = ran(child.wait_with_output().unwrap());
        assert_eq!(ran.code, 130, "{}", ran.stderr);
        broken_off += usize::from(pending(&run));
        lab.ok(&["pretrain", "c.json", &dir, "--resume", "auto", "--quiet"]);
        assert_eq!(metrics(&lab.path("whole")), metrics(&run));
        assert_eq!(weights_sha256(&lab.path("whole"), 12), weights_sha256(&run, 12));
    }
    assert!(broken_off > 0, "no signal came during an evaluation");
}

#[test]
fn a_second_signal_ends_at_once() {
    let lab = Lab::new();
    // One step takes minutes: only the second signal can end it soon.
    lab.config("c.json", &[("train.batch_size", json!(200)), ("train.micro_batch_size", json!(1)), ("train.max_steps", json!(10_000))]);
    let child = start(&lab, &["pretrain", "c.json", "--quiet"]);
    wait_for("the run did not start", || lab.path("run/tensorboard").exists());
    signal(&child, "-INT");
    signal(&child, "-INT");
    let ran = ran(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 130);
}

#[test]
fn a_time_limit_stops_with_a_checkpoint_until_the_run_is_done() {
    let lab = Lab::new();
    lab.config("c.json", &[("train.max_steps", json!(900)), ("train.eval_every", json!(0)), ("train.checkpoint_every", json!(0))]);
    lab.ok(&["pretrain", "c.json", "run.dir=whole", "--quiet"]);
    let mut stops = 0;
    loop {
        // About half a second.
        let ran = lab.run(&["pretrain", "c.json", "run.dir=cut", "train.max_hours=0.00015", "--resume", "auto", "--quiet"]);
        assert!(ran.code == 0 || ran.code == 130, "{}", ran.stderr);
        if ran.code == 0 {
            break;
        }
        stops += 1;
        assert!(stops < 100);
    }
    assert!(stops > 0, "the limit was never reached");
    assert_eq!(weights_sha256(&lab.path("whole"), 900), weights_sha256(&lab.path("cut"), 900));
    assert_eq!(metrics(&lab.path("whole")), metrics(&lab.path("cut")));
}

/// The run that wrote the checkpoint went on; another goes on from a copy of that checkpoint.
#[test]
fn the_run_that_wrote_a_checkpoint_and_one_that_resumed_it_are_equal() {
    let lab = Lab::new();
    let changes = [("train.max_steps", json!(30)), ("train.checkpoint_every", json!(7)), ("train.keep_checkpoints", json!(9))];
    lab.config("c.json", &changes);
    lab.ok(&["pretrain", "c.json", "--quiet"]);
    let straight = (weights_sha256(&lab.path("run"), 30), metrics(&lab.path("run")), series(&lab.path("run")));
    for step in ["step-00000021", "step-00000007"] {
        let from = format!("run/checkpoints/{step}");
        lab.ok(&["pretrain", "c.json", "--resume", &from, "--quiet"]);
        assert_eq!((weights_sha256(&lab.path("run"), 30), metrics(&lab.path("run")), series(&lab.path("run"))), straight, "from {step}");
    }
}

#[test]
fn a_fork_goes_on_under_other_settings_and_says_which() {
    let lab = Lab::new();
    let changes = [("train.max_steps", json!(12)), ("train.checkpoint_every", json!(6)), ("train.keep_checkpoints", json!(9))];
    lab.config("c.json", &changes);
    lab.ok(&["pretrain", "c.json", "run.dir=parent", "--quiet"]);
    let from = "parent/checkpoints/step-00000006";
    // With the same settings it is the parent.
    lab.ok(&["pretrain", "c.json", "run.dir=same", "--fork", from, "--quiet"]);
    assert_eq!(weights_sha256(&lab.path("same"), 12), weights_sha256(&lab.path("parent"), 12));
    assert_eq!(metrics(&lab.path("same")), metrics(&lab.path("parent")));
    // With others it is not, says so, and can be stopped and resumed like any run.
    let other = ["pretrain", "c.json", "run.dir=other", "train.learning_rate=5e-4", "train.seed=3", "--quiet"];
    lab.ok(&[&other[..], &["--fork", from]].concat());
    assert_ne!(weights_sha256(&lab.path("other"), 12), weights_sha256(&lab.path("parent"), 12));
    let forked = lab.json("other/forked_from.json");
    assert_eq!((&forked["step"], &forked["checkpoint"]), (&json!(6), &json!(from)));
    assert_eq!(forked["changes"]["train.seed"], json!({"was": 0, "is": 3}));
    let finished = weights_sha256(&lab.path("other"), 12);
    std::fs::remove_dir_all(lab.path("other/checkpoints/step-00000012")).unwrap();
    std::fs::remove_file(lab.path("other/summary.json")).unwrap();
    lab.ok(&[&other[..], &["--resume", "auto"]].concat());
    assert_eq!(weights_sha256(&lab.path("other"), 12), finished);
    // What cannot be a fork.
    let refused = |args: &[&str], part: &str| {
        let ran = lab.run(&[&["pretrain", "c.json"], args].concat());
        assert!(ran.code == 1 && ran.stderr.contains(part) && ran.stderr.lines().count() == 1, "{}", ran.stderr);
    };
    refused(&["run.dir=other", "--fork", from], "a run is here already");
    refused(&["run.dir=x1", "model.hidden_size=32", "--fork", from], "has shape");
    refused(&["run.dir=x2", "data.vocab_size=280", "--fork", from], "tokenizer is another one");
    refused(&["run.dir=x3", "--fork", "nowhere/checkpoints/step-00000006"], "No such file");
}

#[test]
fn the_best_checkpoints_are_kept_besides_the_newest() {
    let lab = Lab::new();
    let changes = [
        ("train.max_steps", json!(40)),
        ("train.eval_every", json!(4)),
        ("train.checkpoint_every", json!(4)),
        ("train.keep_checkpoints", json!(1)),
        ("train.keep_best_checkpoints", json!(3)),
        // Learns, then forgets: the best are not the newest.
        ("train.learning_rate", json!(0.1)),
        ("train.warmup_steps", json!(20)),
    ];
    lab.config("c.json", &changes);
    lab.ok(&["pretrain", "c.json", "--quiet"]);
    let mut losses: Vec<(f64, u64)> = metrics(&lab.path("run"))
        .iter()
        .filter(|m| m["split"] == "valid")
        .map(|m| (m["loss"].as_f64().unwrap(), m["step"].as_u64().unwrap()))
        .collect();
    losses.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut expected: Vec<u64> = losses[..3].iter().map(|(_, step)| *step).chain([40]).collect();
    expected.sort_unstable();
    expected.dedup();
    let names: Vec<String> = expected.iter().map(|step| format!("step-{step:08}")).collect();
    assert_eq!(checkpoints(&lab.path("run")), names, "{losses:?}");
}
