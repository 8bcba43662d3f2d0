//! Each bad input: one clear line that names where, what was found and what was expected; exit code 1 or 2; nothing lost.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{snapshot, Lab};
use serde_json::{json, Value};

/// Runs `pretrain` on `tiny()` with changes; it must fail with `code` and one line that has all of `parts`.
fn refused(lab: &Lab, changes: &[(&str, Value)], code: i32, parts: &[&str]) {
    lab.config("bad.json", changes);
    refused_command(lab, &["pretrain", "bad.json"], code, parts);
}

fn refused_command(lab: &Lab, args: &[&str], code: i32, parts: &[&str]) {
    let ran = lab.run(args);
    let line = ran.stderr.trim_end();
    assert_eq!(ran.code, code, "{args:?}: {line}");
    assert_eq!(line.lines().count(), 1, "more than one line: {line}");
    for part in parts {
        assert!(line.contains(part), "no \"{part}\" in: {line}");
    }
}

#[test]
fn misspelt_and_mistyped_keys() {
    let lab = Lab::new();
    refused(&lab, &[("model.attention.kk", json!(8))], 2, &["bad.json", "model.attention.kk", "did you mean model.attention.k?"]);
    refused(&lab, &[("train.learning_rte", json!(1))], 2, &["did you mean train.learning_rate?"]);
    refused(&lab, &[("k", json!(8))], 2, &["bad.json: k:", "model.attention.k"]);
    refused(
        &lab,
        &[("model.hidden_size", json!("wide"))],
        2,
        &["bad.json", "model.hidden_size", "found string \"wide\"", "expected a whole number"],
    );
    refused(&lab, &[("train.seed", json!(-1))], 2, &["train.seed", "found integer `-1`, expected a whole number of at least 0"]);
    refused(&lab, &[("train.learning_rate", json!("fast"))], 2, &["train.learning_rate", "found string \"fast\", expected a number"]);
    refused(&lab, &[("data.deduplicate", json!(1))], 2, &["data.deduplicate", "found integer `1`, expected true or false"]);
    refused(&lab, &[("train.batch_size", json!(-3))], 2, &["train.batch_size", "-3"]);
    refused(&lab, &[("model.attention.k", json!("many"))], 2, &["model.attention.k", "\"many\"", "a whole number"]);
    refused(&lab, &[("model.attention.sharing", json!("some"))], 2, &["model.attention.sharing", "`some`", "`layerwise`"]);
    refused(&lab, &[("train", json!(3))], 2, &["train", "found 3", "a group of keys"]);
}

#[test]
fn overrides_are_named_as_such() {
    let lab = Lab::new();
    lab.config("ok.json", &[]);
    refused_command(
        &lab,
        &["pretrain", "ok.json", "model.attention.k=99"],
        2,
        &["command line", "model.attention.k", "found 99", "1 to n = 16"],
    );
    refused_command(&lab, &["pretrain", "ok.json", "nonsense"], 2, &["nonsense", "key=value"]);
}

#[test]
fn broken_json_names_line_and_column() {
    let lab = Lab::new();
    lab.write("bad.json", "{\n  \"model\": {,}\n}");
    refused_command(&lab, &["pretrain", "bad.json"], 2, &["bad.json: line 2, column 13"]);
    refused_command(&lab, &["pretrain", "none.json"], 2, &["none.json", "No such file"]);
    lab.write("circle.json", "{\"extends\": \"circle.json\"}");
    refused_command(&lab, &["pretrain", "circle.json"], 2, &["circle.json", "circle"]);
}

#[test]
fn shapes_that_cannot_be() {
    let lab = Lab::new();
    refused(&lab, &[("model.attention.k", json!(17))], 2, &["model.attention.k", "found 17", "1 to n = 16"]);
    refused(&lab, &[("model.attention.k", json!([4, 4, 4]))], 2, &["a list of 3", "2 layers"]);
    refused(&lab, &[("model.attention.k", json!([[4, 4], [4, 4]]))], 2, &["one k per head", "sharing none"]);
    refused(
        &lab,
        &[("model.num_attention_heads", json!(3))],
        2,
        &["model.num_attention_heads", "found 3", "divisor of model.hidden_size = 16"],
    );
    refused(&lab, &[("model.max_position_embeddings", json!(10))], 2, &["data.sequence_length", "found 16", "n = 8"]);
    refused(&lab, &[("train.max_steps", json!(0))], 2, &["train.max_steps", "found 0"]);
    refused(&lab, &[("data.mask_probability", json!(1.5))], 2, &["data.mask_probability", "found 1.5"]);
}

#[test]
fn text_that_is_none() {
    let lab = Lab::new();
    refused(&lab, &[("data.corpus", json!("nowhere"))], 1, &["data.corpus", "nowhere", "No such file"]);
    std::fs::create_dir(lab.path("empty")).unwrap();
    refused(&lab, &[("data.corpus", json!("empty"))], 1, &["empty: no text in it"]);
    lab.write("blank/a.txt", "  \n\n");
    refused(&lab, &[("data.corpus", json!("blank"))], 1, &["blank: no text in it (1 empty)"]);
    lab.write("latin/a.txt", b"caf\xe9 au lait");
    refused(&lab, &[("data.corpus", json!("latin"))], 1, &["latin/a.txt", "not UTF-8 at byte 3", "iconv"]);
    lab.write("nul/a.txt", b"abc\0def");
    refused(&lab, &[("data.corpus", json!("nul"))], 1, &["nul/a.txt", "NUL byte at byte 3"]);
    refused(&lab, &[("train.batch_size", json!(100_000))], 1, &["smaller than one batch", "expected at least 100000"]);
    refused(&lab, &[("data.vocab_size", json!(100))], 1, &["data.vocab_size is 100", "261"]);
    assert!(!lab.path("run").exists(), "a refused run left a folder behind");
}

#[test]
fn a_run_that_exists_is_left_alone() {
    let lab = Lab::new();
    lab.config("ok.json", &[]);
    lab.ok(&["pretrain", "ok.json", "--quiet"]);
    let before = snapshot(&lab.path("run"));
    refused_command(&lab, &["pretrain", "ok.json"], 1, &["run", "a run is here already", "--resume auto"]);
    refused_command(
        &lab,
        &["pretrain", "ok.json", "train.seed=5", "train.max_steps=8", "--resume", "auto"],
        1,
        &["train.seed was 0, but it is 5"],
    );
    assert!(before == snapshot(&lab.path("run")), "the run's folder was changed");
}

#[test]
fn checkpoints_that_do_not_fit() {
    let lab = Lab::new();
    lab.config("ok.json", &[]);
    lab.ok(&["pretrain", "ok.json", "--quiet"]);
    lab.write("task/period/train.tsv", "sentence\tlabel\nThe ship saw\t1790-1860\nA sailor\t1861-1932\n");
    lab.write("task/period/dev.tsv", "sentence\tlabel\nThe ship\t1790-1860\nA letter\t1933-2026\n");
    let fine = json!({"data": {"task": "period", "task_dir": "task", "sequence_length": 16}, "train": {"max_steps": 2, "batch_size": 2, "warmup_steps": 1},
                      "run": {"init_from": "run", "dir": "fine"}});
    lab.write("fine.json", fine.to_string());
    refused_command(&lab, &["finetune", "fine.json", "model.hidden_size=32"], 2, &["model.hidden_size", "found 32", "run has 16"]);
    refused_command(&lab, &["finetune", "fine.json", "run.init_from=nowhere"], 1, &["run.init_from", "nowhere"]);
    refused_command(&lab, &["finetune", "fine.json", "data.task=periods"], 2, &["no task is named \"periods\"", "period"]);
    refused_command(&lab, &["finetune", "fine.json", "data.sequence_length=99"], 2, &["data.sequence_length", "found 99", "n = 16"]);
    refused_command(&lab, &["finetune", "ok.json"], 2, &["data.task", "pretrain"]);
    refused_command(&lab, &["pretrain", "fine.json"], 2, &["data.task", "finetune"]);

    // A damaged weight file: passed over, and with nothing left, refused by name.
    let weights = std::fs::read_dir(lab.path("run/checkpoints")).unwrap().map(|e| e.unwrap().path().join("model.safetensors"));
    for path in weights {
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    refused_command(&lab, &["finetune", "fine.json"], 1, &["run.init_from", "no valid checkpoint", "model.safetensors is damaged"]);
}

#[test]
fn a_tokenizer_that_does_not_fit_the_model() {
    let lab = Lab::new();
    refused(&lab, &[("model.vocab_size", json!(270))], 2, &["model.vocab_size", "found 270", "needs 300 rows"]);
    refused(&lab, &[("data.tokenizer", json!("none.json"))], 1, &["none.json", "No such file"]);
    lab.write("broken.json", "{}");
    refused(&lab, &[("data.tokenizer", json!("broken.json"))], 1, &["broken.json", "not a tokenizer.json"]);
}

#[test]
fn cuda_where_there_is_none() {
    if std::path::Path::new("/proc/driver/nvidia").exists() {
        return;
    }
    let lab = Lab::new();
    refused(&lab, &[("run.device", json!("cuda"))], 2, &["run.device", "found cuda", "run.device=cpu"]);
    refused(&lab, &[("run.device", json!("gpu"))], 2, &["run.device", "found \"gpu\"", "cuda:N"]);
}

#[test]
fn a_disk_that_is_full_or_read_only() {
    let lab = Lab::new();
    lab.config("ok.json", &[]);
    lab.ok(&["pretrain", "ok.json", "--quiet"]);
    let before = snapshot(&lab.path("run/checkpoints"));
    // A full disk needs a file system of its own; a limit on the size of files fails the same writes.
    let script = format!(
        "ulimit -f 32; trap '' XFSZ; exec {} pretrain ok.json train.max_steps=12 --resume auto --quiet",
        env!("CARGO_BIN_EXE_linformer")
    );
    let output =
        std::process::Command::new("bash").args(["-c", &script]).current_dir(lab.path("")).env("OMP_NUM_THREADS", "1").output().unwrap();
    let ran = common::ran(output);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("earlier checkpoints are unchanged") && ran.stderr.contains("File too large"), "{}", ran.stderr);
    assert!(before == snapshot(&lab.path("run/checkpoints")), "checkpoints were touched");
    refused(&lab, &[("run.dir", json!("/proc/linformer-run"))], 1, &["/proc/linformer-run"]);
}

#[test]
fn training_that_blows_up_stops_before_the_weights() {
    let lab = Lab::new();
    lab.config(
        "hot.json",
        &[
            ("train.learning_rate", json!(1e30)),
            ("train.clip_grad_norm", json!(0.0)),
            ("train.max_steps", json!(50)),
            ("train.warmup_steps", json!(0)),
        ],
    );
    let ran = lab.run(&["pretrain", "hot.json", "--quiet"]);
    assert_eq!(ran.code, 1);
    let line = ran.stderr.lines().last().unwrap();
    assert!(line.contains("is not finite") && line.contains("step ") && line.contains("the weights were not touched"), "{line}");
}

#[test]
fn task_files_name_their_line() {
    let lab = Lab::new();
    lab.write("a.tsv", "text\tlabel\nfine\tyes\nshort\n");
    lab.write("b.tsv", "text\tlabel\nfine\tyes\n");
    let own = json!({"data": {"task": {"name": "mine", "train": "a.tsv", "dev": "b.tsv", "text": "text", "label": "label", "labels": ["no", "yes"]},
        "tokenizer": "bytes", "sequence_length": 16}, "model": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "attention": {"k": 4}},
        "train": {"max_steps": 1, "batch_size": 1, "warmup_steps": 0}, "run": {"dir": "run"}});
    lab.write("own.json", own.to_string());
    refused_command(&lab, &["finetune", "own.json"], 1, &["a.tsv: line 3", "1 fields, expected 2"]);
}

#[test]
fn wrong_usage_is_2() {
    let lab = Lab::new();
    assert_eq!(lab.run(&["pretrain"]).code, 2);
    assert_eq!(lab.run(&["frobnicate"]).code, 2);
    refused_command(&lab, &["report", "nowhere"], 1, &["nowhere", "no such folder"]);
    refused_command(&lab, &["report", "text"], 1, &["text", "no finished run"]);
    lab.write("twice.json", "{\"train\": {\"max_steps\": 3},\n \"train\": {\"seed\": 4}}");
    refused_command(&lab, &["config", "show", "twice.json"], 2, &["twice.json: line 2", "\"train\" stands twice"]);
    lab.config("c.json", &[]);
    for (key, value) in [("run.threads", "-1"), ("run.threads", "100000"), ("model.layer_norm_eps", "-1"), ("data.task", "\"sst3\"")] {
        let set = format!("{key}={value}");
        let more = if key == "data.task" { vec!["data.corpus=null"] } else { Vec::new() };
        refused_command(&lab, &[&["config", "show", "c.json", &set][..], &more].concat(), 2, &[key]);
    }
    for args in [["--mfu", "5"], ["--mfu", "0"], ["--peak-tflops", "inf"]] {
        refused_command(&lab, &[&["info", "c.json"][..], &args].concat(), 2, &[args[0]]);
    }
}

#[test]
fn labels_of_the_data_that_no_config_can_hold() {
    let lab = Lab::new();
    lab.write("a.jsonl", "{\"text\": \"fine\", \"label\": \"joy\\n\"}\n{\"text\": \"poor\", \"label\": \"grief\"}\n");
    lab.write("b.jsonl", "{\"text\": \"fine\", \"label\": \"joy\"}\n{\"text\": \"poor\", \"label\": \"grief\"}\n");
    let own = json!({"data": {"task": {"name": "mine", "train": "a.jsonl", "dev": "b.jsonl", "text": "text", "label": "label"}, "tokenizer": "bytes",
        "sequence_length": 16, "cache_dir": "cache"}, "model": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "attention": {"k": 4}},
        "train": {"max_steps": 1, "batch_size": 1, "warmup_steps": 0}, "run": {"dir": "run"}});
    lab.write("own.json", own.to_string());
    let found = "a.jsonl: line 1: label \"joy\\n\"";
    refused_command(&lab, &["finetune", "own.json"], 1, &[found, "expected text on one line without tabs", "data.task.labels"]);
    let labels = "data.task.labels=[\"grief\",\"joy\"]";
    refused_command(&lab, &["finetune", "own.json", labels], 1, &[found, "expected one of grief, joy", "data.on_error"]);
    assert!(!lab.path("run").exists(), "a refused run left a folder behind");
    // What was not refused is read again.
    lab.ok(&["finetune", "own.json", labels, "data.on_error=skip", "--quiet"]);
    lab.ok(&["evaluate", "run"]);
}

/// The data is not there, and need not be.
#[test]
fn info_says_nothing_that_follows_from_steps_which_nobody_knows() {
    let lab = Lab::new();
    lab.config("fine.json", &[]);
    let mut config = lab.json("fine.json");
    config["data"] = json!({"task": "sst2", "tokenizer": "bytes", "sequence_length": 16});
    config["train"]["max_epochs"] = json!(3);
    config["train"].as_object_mut().unwrap().remove("max_steps");
    lab.write("fine.json", config.to_string());
    for (device, follows) in [
        (["--peak-tflops", "100"], vec!["tokens in all", "tokens per parameter", "time at MFU"]),
        (["--cluster", "8xH100"], vec!["tokens in all", "training FLOPs in all", "days at MFU", "GPU-hours"]),
    ] {
        let text = |more: &[&str]| lab.ok(&[&["info", "fine.json"][..], more, &device].concat()).stdout;
        let (unknown, known) = (text(&[]), text(&["train.max_epochs=null", "train.max_steps=50"]));
        let steps = unknown.lines().find(|line| line.starts_with("steps")).unwrap();
        assert!(steps.contains("3 epochs: not known before the data is read"), "{unknown}");
        for name in follows {
            assert!(!unknown.contains(name) && known.contains(name), "{name}\n{unknown}\n{known}");
        }
        // So many positions hold three sequences of 16.
        let batch = text(&["train.batch_tokens=50"]);
        let sequences = batch.lines().find(|line| line.starts_with("sequences per step") || line.starts_with("sequences a step")).unwrap();
        assert!(sequences.split_whitespace().last() == Some("3"), "{batch}");
    }
}
