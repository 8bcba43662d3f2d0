//! Damaged checkpoints and corpora, disks and terminals that go away, clocks that go back, numbers that are not finite.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{metrics, ran, series, weights_sha256, Lab, Ran};
use linformer::data::prepare;
use linformer::train::checkpoint::Checkpoint;
use serde_json::{json, Value};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// All: every bit of the first 2,500 bytes (all headers), then one bit of every 37th byte. Else a sample of these.
fn flips(length: usize, all: bool) -> impl Iterator<Item = (usize, u8)> {
    let (bits, step) = if all { (8, 37) } else { (1, 997) };
    let head =
        (0..length.min(2500)).step_by(if all { 1 } else { 5 }).flat_map(move |at| (0..bits).map(move |bit| (at, (bit + at as u8) % 8)));
    let body = (2500..length).step_by(step).map(|at| (at, (at / 37 % 8) as u8));
    head.chain(body)
}

/// Flips bits of each file; `open` has to fail and to name the file (or the folder, whose manifest names it no more).
fn every_flip_is_noticed(folder: &Path, all: bool, open: impl Fn() -> Option<String>) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let good = fs::read(&path).unwrap();
        let mut bytes = good.clone();
        let name = path.file_name().unwrap().to_str().unwrap();
        for (at, bit) in flips(good.len(), all) {
            bytes[at] ^= 1 << bit;
            fs::write(&path, &bytes).unwrap();
            let error = open().unwrap_or_else(|| panic!("{name}, byte {at}, bit {bit}: not noticed"));
            let named = error.contains(name) || (name == "manifest.json" && error.contains(folder.to_str().unwrap()));
            assert!(named && !error.contains('\n'), "{name}, byte {at}, bit {bit}: {error}");
            bytes[at] ^= 1 << bit;
            count += 1;
        }
        // Shorter, longer, empty.
        for changed in [&good[..good.len() - 1], &[&good[..], b"x"].concat(), b""] {
            fs::write(&path, changed).unwrap();
            assert!(open().is_some(), "{name}: {} instead of {} bytes were not noticed", changed.len(), good.len());
            count += 1;
        }
        fs::write(&path, &good).unwrap();
    }
    assert_eq!(open(), None, "the folder was not restored");
    count
}

/// Of a checkpoint and of a prepared corpus.
fn flip_both(all: bool) {
    let lab = Lab::new();
    lab.config("c.json", &[("data.tokenizer", json!("bytes"))]);
    lab.ok(&["pretrain", "c.json", "--quiet"]);
    let checkpoint = lab.path("run/checkpoints/step-00000006");
    let count = every_flip_is_noticed(&checkpoint, all, || Checkpoint::open(&checkpoint).err().map(|e| e.to_string()));
    println!("checkpoint: {count} changes, all noticed");
    let prepared = fs::read_dir(lab.path("cache")).unwrap().map(|e| e.unwrap().path()).find(|p| p.is_dir()).unwrap();
    let more = every_flip_is_noticed(&prepared, all, || prepare::open(&prepared).err().map(|e| e.to_string()));
    println!("prepared corpus: {more} changes, all noticed");
    assert!(count.min(more) > if all { 20_000 } else { 500 }, "{count} {more}");
}

#[test]
fn flipped_bits_of_checkpoints_and_corpora_are_noticed() {
    flip_both(false);
}

#[test]
#[ignore = "slow: make test-faults"]
fn every_flipped_bit_of_checkpoints_and_corpora_is_noticed() {
    flip_both(true);
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_it_used() {
    let lab = Lab::new();
    lab.config("c.json", &[("train.max_steps", json!(12)), ("train.keep_checkpoints", json!(9))]);
    lab.ok(&["pretrain", "c.json", "--quiet"]);
    let run = lab.path("run");
    let straight = (weights_sha256(&run, 12), metrics(&run), series(&run));
    for name in ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"] {
        let path = run.join("checkpoints/step-00000012").join(name);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        fs::write(&path, bytes).unwrap();
        fs::remove_file(run.join("summary.json")).unwrap();
        let ran = lab.ok(&["pretrain", "c.json", "--resume", "auto", "--quiet"]);
        assert!(ran.stderr.contains("passed over a checkpoint") && ran.stderr.contains(name), "{}", ran.stderr);
        assert!(ran.stderr.contains("goes on after step 9"), "{}", ran.stderr);
        assert_eq!((weights_sha256(&run, 12), metrics(&run), series(&run)), straight);
    }
}

/// As nobody where the tests run as root, whom no permission holds back.
fn as_user(lab: &Lab, command: &mut Command) {
    let is_root = fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
    if is_root {
        command.uid(65534).gid(65534);
        open_to_all(&lab.path("."));
    }
}

fn open_to_all(path: &Path) {
    let mode = if path.is_dir() { 0o777 } else { 0o666 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|e| open_to_all(&e.unwrap().path()));
    }
}

fn one_line(ran: &Ran) -> &str {
    ran.stderr.lines().last().unwrap_or_default()
}

#[test]
fn folders_that_may_not_be_written() {
    let lab = Lab::new();
    lab.config("c.json", &[]);
    // So that the program can be run by another user: its own folder may be closed to him.
    let program = lab.path("linformer");
    fs::copy(env!("CARGO_BIN_EXE_linformer"), &program).unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.args(args).current_dir(lab.path(".")).env("OMP_NUM_THREADS", "1");
        as_user(&lab, &mut command);
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        (command, ())
    };
    let (mut command, ()) = run(&["pretrain", "c.json", "--quiet"]);
    if command.output().map_or(true, |o| o.status.code() == Some(127)) {
        // libtorch itself is out of this user's reach: nothing can be tried.
        return;
    }
    // A read-only cache that holds what is needed is enough.
    let closed = |name: &str| fs::set_permissions(lab.path(name), fs::Permissions::from_mode(0o555)).unwrap();
    let (mut command, ()) = run(&["pretrain", "c.json", "run.dir=second", "--quiet"]);
    closed("cache");
    let second = ran(command.output().unwrap());
    assert_eq!(second.code, 0, "{}", second.stderr);
    // One that does not is named.
    let (mut command, ()) = run(&["pretrain", "c.json", "run.dir=third", "data.vocab_size=290", "--quiet"]);
    closed("cache");
    let third = ran(command.output().unwrap());
    assert_eq!(third.code, 1);
    assert!(one_line(&third).contains("cache") && one_line(&third).contains("Permission denied"), "{}", third.stderr);
    // Permissions that change while a run goes on: the checkpoint that cannot be written ends it, the last one stands.
    let before = "step-00000006";
    let (mut command, ()) = run(&["pretrain", "c.json", "run.dir=second", "train.max_steps=4000", "--resume", "auto", "--quiet"]);
    closed("second/checkpoints");
    let fourth = ran(command.output().unwrap());
    assert_eq!(fourth.code, 1);
    assert!(one_line(&fourth).contains("earlier checkpoints are unchanged"), "{}", fourth.stderr);
    assert!(one_line(&fourth).contains("Permission denied"), "{}", fourth.stderr);
    assert!(Checkpoint::open(&lab.path("second/checkpoints").join(before)).is_ok());
}

#[test]
fn a_run_whose_folder_is_taken_away() {
    let lab = Lab::new();
    lab.config("c.json", &[("train.max_steps", json!(100_000)), ("train.checkpoint_every", json!(50))]);
    let child = lab.command(&["pretrain", "c.json", "--quiet"]).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    while !lab.path("run/checkpoints").exists() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    fs::rename(lab.path("run"), lab.path("moved")).unwrap();
    let ran = ran(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 1);
    let line = one_line(&ran);
    assert!(line.contains("run/checkpoints") && line.contains("No such file or directory"), "{line}");
    assert!(!lab.path("run").exists(), "half a run was made anew");
}

#[test]
fn a_clock_that_goes_back_changes_nothing() {
    let lab = Lab::new();
    lab.config("c.json", &[]);
    lab.ok(&["pretrain", "c.json", "run.dir=straight", "--quiet"]);
    let library = compile(&lab, "clock.so", "tests/crash_points/clock.c");
    let run = |args: &[&str]| ran(lab.command(args).env("LD_PRELOAD", &library).output().unwrap());
    let first = run(&["pretrain", "c.json", "train.max_steps=3", "train.schedule=constant", "--quiet"]);
    assert_eq!(first.code, 0, "{}", first.stderr);
    let second = run(&["pretrain", "c.json", "run.dir=back", "--quiet"]);
    assert_eq!(second.code, 0, "{}", second.stderr);
    assert_eq!(weights_sha256(&lab.path("straight"), 6), weights_sha256(&lab.path("back"), 6));
    assert_eq!(series(&lab.path("straight")), series(&lab.path("back")));
    let seconds = lab.json("back/summary.json")["seconds"].as_f64().unwrap();
    assert!(seconds > 0.0 && seconds < 600.0, "durations came from the wall clock: {seconds}");
}

fn compile(lab: &Lab, name: &str, source: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    let library = lab.path(name);
    assert!(Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).args([&library, &source]).arg("-ldl").status().unwrap().success());
    library
}

/// stdout closed, stderr closed, both, a reader that went away, a terminal that is resized.
#[test]
fn outputs_that_go_away() {
    let lab = Lab::new();
    lab.config("c.json", &[("train.max_steps", json!(400)), ("train.log_every", json!(1))]);
    lab.ok(&["pretrain", "c.json", "run.dir=straight", "--quiet"]);
    let program = env!("CARGO_BIN_EXE_linformer");
    let resize = "(for i in 1 2 3 4 5 6 7 8; do sleep 0.1; stty cols $((40 + i * 9)); done) &";
    let ways = [
        format!("exec {program} pretrain c.json run.dir=way >&-"),
        format!("exec {program} pretrain c.json run.dir=way 2>&-"),
        format!("exec {program} pretrain c.json run.dir=way >&- 2>&- <&-"),
        format!("{program} pretrain c.json run.dir=way 2>&1 | head -n 2 >/dev/null; exit ${{PIPESTATUS[0]}}"),
        format!("{program} pretrain c.json run.dir=way > /dev/full 2>/dev/full; test $? -le 1"),
        format!("script -qec \"bash -c '{resize} exec {program} pretrain c.json run.dir=way'\" /dev/null"),
    ];
    for way in ways {
        let _ = fs::remove_dir_all(lab.path("way"));
        let output = Command::new("bash").args(["-c", &way]).current_dir(lab.path(".")).env("OMP_NUM_THREADS", "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{way}: {} {text}", output.status);
        assert!(!text.contains("internal error"), "{way}: {text}");
        assert_eq!(weights_sha256(&lab.path("straight"), 400), weights_sha256(&lab.path("way"), 400), "{way}");
        assert!(lab.path("way/summary.json").exists(), "{way}");
    }
}

#[test]
fn of_two_resumes_at_once_one_is_refused() {
    let lab = Lab::new();
    lab.config("c.json", &[("train.max_steps", json!(500))]);
    lab.ok(&["pretrain", "c.json", "run.dir=straight", "--quiet"]);
    lab.ok(&["pretrain", "c.json", "train.max_steps=100", "train.schedule=constant", "run.dir=other", "--quiet"]);
    let start = || {
        let args = ["pretrain", "c.json", "--resume", "auto", "--quiet"];
        lab.command(&args).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let both: Vec<_> = (0..2).map(|_| start()).collect();
    let mut ended: Vec<Ran> = both.into_iter().map(|c| ran(c.wait_with_output().unwrap())).collect();
    ended.sort_by_key(|r| r.code);
    assert_eq!((ended[0].code, ended[1].code), (0, 1), "{}", ended[1].stderr);
    assert!(one_line(&ended[1]).contains("another process is running this run"), "{}", ended[1].stderr);
    assert_eq!(weights_sha256(&lab.path("straight"), 500), weights_sha256(&lab.path("run"), 500));
}

#[test]
fn no_room_for_a_checkpoint_is_said_before_the_first_step() {
    let lab = Lab::new();
    lab.config("c.json", &[]);
    let library = compile(&lab, "full.so", "tests/crash_points/full.c");
    let free = |bytes: &str| {
        let mut command = lab.command(&["pretrain", "c.json", "--quiet"]);
        ran(command.env("LD_PRELOAD", &library).env("FREE_BYTES", bytes).output().unwrap())
    };
    let none = free("10000");
    assert_eq!(none.code, 1);
    assert!(one_line(&none).contains("bytes are free, but a checkpoint needs"), "{}", none.stderr);
    assert!(!lab.path("run/checkpoints").exists());
    let little = free("300000");
    assert!(little.code == 1 || little.stderr.contains("the checkpoints to keep need"), "{}", little.stderr);
}

/// A regression whose one label squares to infinity in fp32.
fn regression(lab: &Lab, bad_label: &str) -> Value {
    let rows = |n: usize| (0..n).map(|i| format!("{}\t{}.5\n", common::prose(i).split('.').next().unwrap(), i % 3)).collect::<String>();
    lab.write("train.tsv", format!("text\tlabel\n{}A row too much\t{bad_label}\n", rows(20)));
    lab.write("dev.tsv", format!("text\tlabel\n{}", rows(9)));
    json!({"model": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "attention": {"k": 4}},
        "data": {"task": {"name": "mine", "train": "train.tsv", "dev": "dev.tsv", "text": "text", "label": "label", "kind": "regression"},
                 "tokenizer": "bytes", "sequence_length": 24},
        "train": {"max_steps": 21, "batch_size": 4, "warmup_steps": 2, "log_every": 3, "eval_every": 7, "checkpoint_every": 5},
        "run": {"dir": "run"}})
}

#[test]
fn steps_that_are_not_finite_are_skipped_and_counted() {
    let lab = Lab::new();
    lab.write("c.json", regression(&lab, "1e30").to_string());
    let ran = lab.ok(&["finetune", "c.json", "--quiet"]);
    assert!(ran.stderr.contains("the loss is not finite (inf), first in the loss itself; the step was skipped"), "{}", ran.stderr);
    let skipped: f64 = metrics(&lab.path("run")).iter().filter_map(|m| m["skipped_steps"].as_f64()).sum();
    // Each of the 3 whole epochs of 6 batches meets the row once; the half epoch at the end does not come to it.
    assert_eq!(skipped, 3.0);
    assert!(metrics(&lab.path("run")).iter().filter_map(|m| m["loss"].as_f64()).all(f64::is_finite));
    // The same when it is broken off and goes on.
    lab.ok(&["finetune", "c.json", "run.dir=cut", "--quiet"]);
    fs::remove_dir_all(lab.path("cut/checkpoints/step-00000021")).unwrap();
    fs::remove_file(lab.path("cut/summary.json")).unwrap();
    lab.ok(&["finetune", "c.json", "run.dir=cut", "--resume", "auto", "--quiet"]);
    assert_eq!(weights_sha256(&lab.path("run"), 21), weights_sha256(&lab.path("cut"), 21));
    assert_eq!(metrics(&lab.path("run")), metrics(&lab.path("cut")));
}

#[test]
fn too_many_skipped_steps_end_the_run_with_something_to_replay() {
    let lab = Lab::new();
    let changes = [
        ("train.learning_rate", json!(1e30)),
        ("train.clip_grad_norm", json!(0.0)),
        ("train.max_steps", json!(50)),
        ("train.warmup_steps", json!(0)),
        ("train.max_skipped_steps", json!(3)),
    ];
    lab.config("c.json", &changes);
    let ran = lab.run(&["pretrain", "c.json", "--quiet"]);
    assert_eq!(ran.code, 1);
    let line = one_line(&ran);
    assert!(line.contains("3 in a row were skipped") && line.contains("first in roberta.e") && line.contains("replay"), "{line}");
    let incident =
        fs::read_dir(lab.path("run")).unwrap().map(|e| e.unwrap().path()).find(|p| p.to_string_lossy().contains("nonfinite-")).unwrap();
    let incident = incident.strip_prefix(lab.path("")).unwrap().to_str().unwrap().to_string();
    let module = lab.json(&incident)["place"].as_str().unwrap().to_string();
    let table = lab.ok(&["replay", &incident]).stdout;
    assert!(table.contains(&format!("first not finite: {module}")) && table.contains("gradient of"), "{table}");
    assert!(lab.ok(&["replay", &incident, "--precision", "bf16"]).stdout.contains("bf16: loss"));
    assert_eq!(lab.run(&["replay", "c.json"]).code, 1);
    // The same batch with the weights of a healthy run is finite: it was not the batch.
    let task = regression(&lab, "1e30");
    lab.write("t.json", task.to_string());
    let ran = lab.run(&["finetune", "t.json", "run.dir=task", "train.max_skipped_steps=1", "--quiet"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let step = one_line(&ran).split("step ").nth(1).unwrap().split(':').next().unwrap().parse::<u64>().unwrap();
    let table = lab.ok(&["replay", &format!("task/nonfinite-{step:08}.json")]).stdout;
    assert!(table.contains("every module's output is finite") && table.contains("loss inf"), "{table}");
}

#[test]
fn memory_that_ends_inside_a_step_is_one_line_with_step_and_shape() {
    let lab = Lab::new();
    lab.config(
        "c.json",
        &[("data.tokenizer", json!("bytes")), ("train.batch_size", json!(400)), ("model.intermediate_size", json!(32_768))],
    );
    let program = env!("CARGO_BIN_EXE_linformer");
    let script = format!("ulimit -v 1500000; exec {program} pretrain c.json --quiet");
    let output = Command::new("bash").args(["-c", &script]).current_dir(lab.path(".")).env("OMP_NUM_THREADS", "1").output().unwrap();
    let ran = ran(output);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(one_line(&ran).contains("step 1, batch [400, 16]: libtorch:"), "{}", ran.stderr);
}
