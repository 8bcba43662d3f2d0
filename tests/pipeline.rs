//! From text to a report by the commands a user types, and what each leaves behind.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::Lab;
use serde_json::{json, Value};
use std::path::PathBuf;

/// A corpus with the layout of the embedded one: novels and addresses of several years.
fn library(lab: &Lab) {
    for i in 0..20 {
        lab.write(&format!("lib/novels/book/{i:02}.txt"), common::prose(i));
        let year = 1790 + i * 12;
        lab.write(&format!("lib/sotu/{year}-Name-1.txt"), format!("In {year} Congress met. {}", common::prose(i + 3)));
    }
}

#[test]
fn pretrain_finetune_sweep_report() {
    let lab = Lab::new();
    library(&lab);
    lab.config("pretrain.json", &[("data.corpus", json!("lib"))]);
    lab.write("sweep.json", json!({"base": "pretrain.json", "dir": "runs/pre", "variants": [{"name": "full", "set": {"model.attention.kind": "full"}}, {"name": "lin"}], "grid": {"train.seed": [0, 1]}}).to_string());
    let table = lab.ok(&["sweep", "sweep.json"]).stdout;
    assert!(table.contains("perplexity") && table.lines().any(|l| l.starts_with("lin ") && l.contains('±')), "{table}");

    lab.ok(&["data", "derive", "pretrain.json", "tasks", "--train-rows", "40", "--dev-rows", "10", "--words", "8"]);
    let fine = json!({"data": {"task": "which_novel", "task_dir": "tasks", "sequence_length": 16},
        "train": {"max_steps": 6, "batch_size": 8, "warmup_steps": 1, "eval_every": 2, "log_every": 2}, "run": {"init_from": "runs/pre/lin_seed=0"}});
    lab.write("fine.json", fine.to_string());
    lab.write("fine-sweep.json", json!({"base": "fine.json", "dir": "runs/fine", "variants": [{"name": "lin"}, {"name": "random", "set": {"run.init_weights": false}}],
        "grid": {"data.task": ["which_novel", "period"]}}).to_string());
    lab.ok(&["sweep", "fine-sweep.json"]);
    let summary = lab.json("runs/fine/lin_task=period/summary.json");
    assert_eq!((summary["metric"].as_str(), summary["init_weights"].as_bool()), (Some("accuracy"), Some(true)));
    assert!(summary["value"].as_f64().unwrap() <= 1.0 && summary["majority"].as_f64().unwrap() < 1.0);

    let text = lab.ok(&["report", "runs", "--out", "out"]).stdout;
    for part in ["lin", "full", "lin from random weights", "unigram frequencies", "majority class", "which_novel accuracy"] {
        assert!(text.contains(part), "no \"{part}\" in\n{text}");
    }
    for file in ["report.html", "table.csv", "table.json", "perplexity_by_tokens.png", "perplexity_by_k.svg", "scores.png"] {
        assert!(lab.path("out").join(file).exists(), "{file}");
    }
    assert!(lab.read("out/report.html").contains("<svg"));
}

#[test]
fn a_run_leaves_what_the_contract_says() {
    let lab = Lab::new();
    lab.config("c.json", &[]);
    let printed: Value = serde_json::from_str(&lab.ok(&["pretrain", "c.json"]).stdout).unwrap();
    assert_eq!(printed, lab.json("run/summary.json"));
    assert_eq!(lab.json("run/config.json")["model"]["vocab_size"], 300, "the config is not the resolved one");
    assert!(lab.json("run/environment.json")["libtorch"].as_str().unwrap().starts_with("2.11"));
    let metrics: Vec<Value> = lab.read("run/metrics.jsonl").lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let keys = |split: &str| metrics.iter().find(|m| m["split"] == split).unwrap().as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        keys("train"),
        [
            "step",
            "split",
            "time",
            "tokens",
            "loss",
            "perplexity",
            "lr",
            "grad_norm",
            "grad_norm_max",
            "grad_norm_spikes",
            "skipped_steps",
            "tokens_per_second",
            "mfu",
            "data_wait",
            "padding",
            "checkpoint_stall",
            "peak_memory"
        ]
    );
    assert_eq!(keys("valid"), ["step", "split", "time", "tokens", "loss", "perplexity", "masked_accuracy", "bits_per_byte"]);
    let events: Vec<_> = std::fs::read_dir(lab.path("run/tensorboard")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(events.len(), 1);
    let bytes = std::fs::read(&events[0]).unwrap();
    for tag in ["train/loss", "valid/perplexity", "optim/lr", "optim/grad_norm", "speed/tokens_per_second", "speed/mfu"] {
        assert!(bytes.windows(tag.len()).any(|w| w == tag.as_bytes()), "{tag}");
    }
    for file in ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"] {
        assert!(lab.path("run/checkpoints/step-00000006").join(file).exists(), "{file}");
    }
}

#[test]
fn a_sweep_skips_what_is_done_and_survives_a_failure() {
    let lab = Lab::new();
    lab.config("base.json", &[]);
    let sweep = json!({"base": "base.json", "dir": "runs", "variants": [{"name": "good"}, {"name": "bad", "set": {"train.learning_rate": 1e30, "train.clip_grad_norm": 0}}, {"name": "last"}]});
    lab.write("sweep.json", sweep.to_string());
    let ran = lab.run(&["sweep", "sweep.json", "train.max_steps=30"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("1 of 3 runs failed: bad"), "{}", ran.stderr);
    assert!(lab.path("runs/last/summary.json").exists());
    let before = std::fs::metadata(lab.path("runs/good/summary.json")).unwrap().modified().unwrap();
    lab.run(&["sweep", "sweep.json", "train.max_steps=30"]);
    assert_eq!(before, std::fs::metadata(lab.path("runs/good/summary.json")).unwrap().modified().unwrap());
    assert!(lab.read("runs/table.csv").starts_with("group,runs,parameters,perplexity"));
}

#[test]
fn inheritance_and_overrides_reach_the_run() {
    let lab = Lab::new();
    lab.config("base.json", &[]);
    lab.write("deep/child.json", r#"{"extends": "../base.json", "model": {"attention": {"k": 2}}}"#);
    lab.ok(&["pretrain", "deep/child.json", "train.max_steps=2", "train.warmup_steps=1", "--quiet"]);
    let config = lab.json("run/config.json");
    assert_eq!(
        (&config["model"]["attention"]["k"], &config["train"]["max_steps"], &config["model"]["hidden_size"]),
        (&json!(2), &json!(2), &json!(16))
    );
}

#[test]
fn a_dry_run_leaves_nothing_behind() {
    let lab = Lab::new();
    lab.config("c.json", &[]);
    lab.ok(&["data", "prepare", "c.json"]);
    let before = common::snapshot(&lab.path(""));
    let ran = lab.ok(&["pretrain", "c.json", "--dry-run"]);
    assert!(ran.stdout.contains("dry run: two steps made"), "{}", ran.stdout);
    assert!(before == common::snapshot(&lab.path("")), "files were left");
}

#[test]
fn info_knows_the_numbers_before_anything_runs() {
    let lab = Lab::new();
    lab.write("base.json", r#"{"data": {"corpus": "none"}, "model": {"vocab_size": 50265, "attention": {"sharing": "layerwise"}}, "train": {"max_steps": 1000, "batch_size": 256, "micro_batch_size": 16}}"#);
    let text = lab.ok(&["info", "base.json", "--peak-tflops", "100"]).stdout;
    let value = |name: &str| {
        text.lines()
            .find(|l| l.starts_with(name))
            .unwrap_or_else(|| panic!("no {name} in\n{text}"))
            .split_whitespace()
            .last()
            .unwrap()
            .to_string()
    };
    assert_eq!(value("parameters: all"), "124,762,969");
    assert_eq!(value("distinct projection matrices"), "1");
    assert_eq!(value("tokens in all"), "131,072,000");
    assert_eq!(value("micro-batches per step"), "16");
}

#[test]
fn a_broken_pipe_is_no_error() {
    let lab = Lab::new();
    let script = format!("{} data list | head -n 0; echo ${{PIPESTATUS[0]}}", env!("CARGO_BIN_EXE_linformer"));
    let output = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "0");
    drop(lab);
}

#[test]
fn doctor_finds_libtorch() {
    let lab = Lab::new();
    let text = lab.ok(&["doctor"]).stdout;
    assert!(text.contains("2.11.0") && text.contains("libtorch") && text.contains("threads"), "{text}");
}

#[test]
fn preparing_again_reads_the_cache_and_notices_a_change() {
    let lab = Lab::new();
    lab.config("c.json", &[]);
    let folder = || lab.ok(&["data", "prepare", "c.json"]).stdout.lines().last().unwrap().to_string();
    let first = folder();
    let prepared = || std::fs::read_dir(lab.path("cache")).unwrap().filter(|e| e.as_ref().unwrap().path().is_dir()).count();
    assert_eq!((folder(), prepared()), (first.clone(), 1));
    lab.write("text/00.txt", "Something else altogether, and long enough to count as a document of its own.");
    assert_ne!(folder(), first);
    assert_eq!(prepared(), 2);
}

#[test]
fn prepared_files_do_not_depend_on_the_number_of_threads() {
    let lab = Lab::new();
    let read = |threads: &str| {
        let cache = format!("cache{threads}");
        lab.config("c.json", &[("data.cache_dir", json!(cache))]);
        let output = lab.command(&["data", "prepare", "c.json"]).env("RAYON_NUM_THREADS", threads).output().unwrap();
        assert!(output.status.success());
        let folder = std::fs::read_dir(lab.path(&cache)).unwrap().map(|e| e.unwrap().path()).find(|p| p.is_dir()).unwrap();
        ["tokenizer.json", "train-00000.bin", "validation-00000.bin"].map(|name| std::fs::read(folder.join(name)).unwrap())
    };
    assert!(read("1") == read("4"));
}

#[test]
fn files_have_the_modes_that_the_umask_says() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::new();
    lab.config("c.json", &[]);
    for (umask, file, folder) in [("022", 0o644, 0o755), ("027", 0o640, 0o750)] {
        let script = format!(
            "umask {umask}; exec {} pretrain c.json run.dir=r{umask} data.cache_dir=c{umask} --quiet",
            env!("CARGO_BIN_EXE_linformer")
        );
        assert!(std::process::Command::new("bash").args(["-c", &script]).current_dir(lab.path(".")).status().unwrap().success());
        let mut paths = vec![lab.path(&format!("r{umask}")), lab.path(&format!("c{umask}"))];
        while let Some(path) = paths.pop() {
            let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, if path.is_dir() { folder } else { file }, "{}", path.display());
            if path.is_dir() {
                paths.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            }
        }
    }
}

#[test]
fn efficiency_measures_time_and_memory_and_leaves_out_what_does_not_fit() {
    let lab = Lab::new();
    let config = serde_json::json!({"model": {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}, "n": [128, 512], "k": [16, 256],
        "tokens": 512, "rounds": 2, "largest_gib": 0.003, "out": "out"});
    lab.write("e.json", config.to_string());
    let text = lab.ok(&["efficiency", "e.json"]).stdout;
    assert!(text.contains("x materialised") && text.contains("out of memory"), "{text}");
    let record = lab.json("out/efficiency.json");
    let cells = record["cells"].as_array().unwrap();
    let names: Vec<String> = cells.iter().map(|c| format!("{} {}", c["n"], c["attention"].as_str().unwrap())).collect();
    let of_512 = ["512 materialised", "512 fused", "512 k=16", "512 k=16 stored", "512 k=256", "512 k=256 stored"];
    assert_eq!(names, [&["128 materialised", "128 fused", "128 k=16", "128 k=16 stored"][..], &of_512[..]].concat());
    let of = |record: &Value, n: i64, attention: &str| {
        let cells = record["cells"].as_array().unwrap().clone();
        cells.into_iter().find(|c| c["n"] == n && c["attention"] == attention).unwrap()
    };
    let numbers = |attention: &str, key: &str| of(&record, 512, attention)[key].as_array().unwrap().len();
    // 512 x 512 scores of two heads, twice, in fp32, are 4 MiB: over the limit of 3.
    assert_eq!(numbers("materialised", "seconds"), 0);
    let ours = of(&record, 512, "k=16");
    assert!(numbers("k=16", "seconds") == 2 && ours["microseconds_per_token"].as_f64().unwrap() > 0.0);
    assert!(ours["bytes"].as_f64().is_some(), "memory was not measured");
    // Scores of 512 x 256 of two heads, and their softmax, are 2 MiB, far more than a feed-forward block's rows.
    let bytes = |attention: &str| of(&record, 512, attention)["computed_bytes"].as_f64().unwrap();
    assert!(bytes("k=256 stored") > bytes("k=256") + 1e6 && numbers("k=16 stored", "seconds") == 2, "{record}");
    assert!(lab.path("out/time_by_n.svg").exists() && lab.path("out/time_by_n.png").exists());
    assert!(numbers("k=16", "floor_seconds") > 0 && ours["over_floor"].as_f64().unwrap() > 0.0 && numbers("fused", "floor_seconds") == 0);
    // Another n joins the rows that are there; other settings measure anew.
    lab.ok(&["efficiency", "e.json", "n=[64]"]);
    let more = lab.json("out/efficiency.json");
    assert_eq!(more["efficiency"]["n"], json!([64, 128, 512]));
    assert_eq!(of(&more, 512, "k=16")["seconds"], of(&record, 512, "k=16")["seconds"]);
    // Scores of 512 x 512 do not fit: their time follows from the two lengths that were measured.
    let stored = of(&more, 512, "materialised");
    let time = |n| of(&more, n, "materialised")["microseconds_per_token"].as_f64().unwrap();
    let line = time(128) + (time(128) - time(64)) / 64.0 * 384.0;
    let told = stored["extrapolated_microseconds_per_token"].as_f64().unwrap();
    assert!(stored["microseconds_per_token"].is_null() && (told - line).abs() < 1e-9 * line.abs(), "{told} {line}");
    // Training keeps activations and makes gradients: more memory than inference, measured and computed.
    lab.ok(&["efficiency", "e.json", "pass=forward_backward", "largest_gib=1", "out=training"]);
    let training = lab.json("training/efficiency.json");
    for attention in ["k=16", "fused"] {
        let (inference, training) = (of(&record, 512, attention), of(&training, 512, attention));
        for key in ["bytes", "computed_bytes"] {
            let (less, more) = (inference[key].as_f64().unwrap(), training[key].as_f64().unwrap());
            assert!(more > less, "{attention}: {key} {less} {more}");
        }
        assert_eq!(training["floor_seconds"].as_array().unwrap().len(), 0);
    }
    assert!(lab.read("training/time_by_n.svg").contains("Forward and backward pass"));
    // Times of another program do not stand beside this one's.
    let mut foreign = lab.json("training/efficiency.json");
    foreign["environment"]["program_sha256"] = json!("0");
    lab.write("training/efficiency.json", foreign.to_string());
    lab.ok(&["efficiency", "e.json", "pass=forward_backward", "largest_gib=1", "out=training", "n=[128]"]);
    assert_eq!(lab.json("training/efficiency.json")["efficiency"]["n"], json!([128]));
    lab.ok(&["efficiency", "e.json", "n=[64]", "tokens=64", "k=[16]"]);
    assert_eq!(lab.json("out/efficiency.json")["efficiency"]["n"], json!([64]));
    let refused = lab.run(&["efficiency", "e.json", "token=5"]);
    assert!(refused.code == 2 && refused.stderr.contains("tokens"), "{}", refused.stderr);
}

#[test]
fn a_profile_covers_the_steps_and_its_trace_nests() {
    let lab = Lab::new();
    lab.config("c.json", &[("model.hidden_dropout_prob", json!(0.1)), ("train.recompute", json!(true))]);
    let told = lab.ok(&["pretrain", "c.json", "--quiet", "--profile", "2"]).stderr;
    assert!(told.contains("feed-forward block") && told.contains("products ms"), "{told}");
    let profile = lab.json("run/profile.json");
    assert_eq!(profile["steps"], 2);
    let parts = profile["parts"].as_array().unwrap();
    let of = |name: &str, key: &str| parts.iter().find(|p| p["part"] == name).map_or(0.0, |p| p[key].as_f64().unwrap());
    for part in ["embedding", "attention block", "feed-forward block", "head and loss"] {
        assert!(of(part, "forward_ms") > 0.0 && of(part, "backward_ms") > 0.0, "{part}: {profile}");
    }
    for part in ["attention block", "feed-forward block"] {
        assert!(of(part, "recomputed_ms") > 0.0 && of(part, "products_ms") > 0.0, "{part}: {profile}");
    }
    assert!(of("head and loss", "recomputed_ms") == 0.0 && of("optimizer", "ms") > 0.0 && of("gradient norm", "ms") > 0.0);
    let shares: f64 = parts.iter().map(|p| p["share"].as_f64().unwrap()).sum();
    assert!((shares - 1.0).abs() < 1e-9, "{shares}");

    let trace = lab.json("run/trace.json");
    let events: Vec<&Value> = trace["traceEvents"].as_array().unwrap().iter().filter(|e| e["ph"] == "X").collect();
    let time = |e: &Value| (e["ts"].as_f64().unwrap(), e["ts"].as_f64().unwrap() + e["dur"].as_f64().unwrap());
    let mut open: Vec<(f64, f64)> = Vec::new();
    for event in &events {
        let (begin, end) = time(event);
        open.retain(|(_, last)| *last > begin);
        assert!(open.iter().all(|(_, last)| end <= *last) && end >= begin, "{event} does not nest");
        open.push((begin, end));
    }
    let steps: f64 = events.iter().filter(|e| e["name"] == "rest").map(|e| e["dur"].as_f64().unwrap()).sum();
    let told = 2.0 * profile["step_ms"].as_f64().unwrap() * 1e3;
    assert!((steps - told).abs() < 1e-3 * told, "steps of {steps} us, parts of {told}");
    for name in ["FeedForward", "Recompute", "aten::mm"] {
        assert!(events.iter().any(|e| e["name"] == name), "no {name}");
    }
    // Off, nothing is written, and what is learned is the same.
    let weights = common::weights_sha256(&lab.path("run"), 6);
    lab.ok(&["pretrain", "c.json", "--quiet", "run.dir=plain"]);
    assert_eq!(common::weights_sha256(&lab.path("plain"), 6), weights);
    assert!(!lab.path("plain/profile.json").exists() && !lab.path("plain/trace.json").exists());
}

/// The prepared corpora of a cache.
fn corpora(lab: &Lab, cache: &str) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = std::fs::read_dir(lab.path(cache)).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    folders.sort();
    folders
}

/// Texts of which another tokenizer is trained.
fn capitals(lab: &Lab, prefix: &str) {
    (0..24).for_each(|i| lab.write(&format!("{prefix}{i:02}.txt"), common::prose(i).to_uppercase()));
}

#[test]
fn a_model_reads_through_its_own_tokenizer_when_its_corpus_has_changed() {
    let lab = Lab::new();
    lab.config("c.json", &[("model.attention.kind", json!("full"))]);
    lab.ok(&["pretrain", "c.json", "--quiet"]);
    let report = lab.ok(&["evaluate", "run"]).stdout;
    let tokenizer = lab.read("run/tokenizer.json");
    let own: Value = serde_json::from_str(&tokenizer).unwrap();
    // Without its file, the corpus as it was still makes the same one. What the run prepared is opened, not made again.
    std::fs::remove_file(lab.path("run/tokenizer.json")).unwrap();
    assert_eq!(lab.ok(&["evaluate", "run"]).stdout, report);
    assert_eq!(corpora(&lab, "cache").len(), 1);
    capitals(&lab, "text/more-");
    let refused = lab.run(&["evaluate", "run"]);
    assert!(refused.code == 1 && refused.stderr.lines().count() == 1, "{} {}", refused.stdout, refused.stderr);
    for part in ["run/tokenizer.json: not here", "data.tokenizer=byte_bpe", "inputs.json", "put the run's tokenizer back"] {
        assert!(refused.stderr.contains(part), "no \"{part}\" in {}", refused.stderr);
    }
    lab.write("run/tokenizer.json", &tokenizer);
    for args in [
        &["evaluate", "run"][..],
        &["spectrum", "run", "--sequences", "8", "--out", "spectrum"],
        &["theorems", "run", "--sequences", "8", "--steps", "20", "--out", "theorems"],
        &["shift", "run", "--by", "0,1", "--sequences", "8", "--out", "shift"],
    ] {
        std::fs::remove_dir_all(lab.path("cache")).unwrap();
        lab.ok(args);
        let folders = corpora(&lab, "cache");
        assert_eq!(folders.len(), 1, "{args:?}");
        let used: Value = serde_json::from_slice(&std::fs::read(folders[0].join("tokenizer.json")).unwrap()).unwrap();
        assert!(used["model"] == own["model"], "{args:?}: another tokenizer");
    }
}

/// Continued pretraining reads its corpus in the tokens of the model that it goes on from.
#[test]
fn a_corpus_is_prepared_verified_and_shown_as_the_run_reads_it() {
    let lab = Lab::new();
    lab.config("parent.json", &[]);
    lab.ok(&["pretrain", "parent.json", "--quiet"]);
    capitals(&lab, "other/");
    let changes = [("data.corpus", "other"), ("data.cache_dir", "own"), ("run.init_from", "run"), ("run.dir", "child")];
    lab.config("child.json", &changes.map(|(key, value)| (key, json!(value))));
    lab.ok(&["pretrain", "child.json", "--quiet"]);
    let read = corpora(&lab, "own");
    assert_eq!(read.len(), 1);
    for command in ["verify", "prepare", "show"] {
        lab.ok(&["data", command, "child.json"]);
        assert_eq!(corpora(&lab, "own"), read, "data {command}");
    }
}
