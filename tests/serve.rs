//! Models at work from the shell: guesses for masks, vectors, labels, for every kind of input.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::Lab;
use serde_json::{json, Value};
use std::io::Write;
use std::process::Stdio;

fn pretrained() -> Lab {
    let lab = Lab::new();
    lab.config("c.json", &[("train.max_steps", json!(60)), ("train.eval_every", json!(0)), ("train.checkpoint_every", json!(0))]);
    lab.ok(&["pretrain", "c.json", "--quiet"]);
    lab
}

fn with_input(lab: &Lab, args: &[&str], input: &str) -> common::Ran {
    let mut child = lab.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    common::ran(child.wait_with_output().unwrap())
}

#[test]
fn masks_are_filled_under_transformers_names() {
    let lab = pretrained();
    let text = lab.ok(&["fill-mask", "run", "The <mask> saw a letter.", "-k", "3"]).stdout;
    assert!(text.lines().count() == 5 && text.lines().nth(2).unwrap().starts_with("The "), "{text}");
    // Every token but the five special ones: their probabilities are nearly all there is.
    let all: Value =
        serde_json::from_str(&lab.ok(&["fill-mask", "run", "The <mask> saw a letter.", "-k", "300", "--json"]).stdout).unwrap();
    let all = all.as_array().unwrap();
    let scores: Vec<f64> = all.iter().map(|g| g["score"].as_f64().unwrap()).collect();
    assert_eq!(all.len(), 295);
    assert!(scores.windows(2).all(|w| w[0] >= w[1]) && (0.9..=1.0 + 1e-6).contains(&scores.iter().sum::<f64>()), "{scores:?}");
    for guess in all {
        let word = guess["token_str"].as_str().unwrap();
        let expected = format!("The{word} saw a letter.");
        assert!(guess["sequence"] == expected && guess["token"].as_u64().unwrap() > 4, "{guess}");
    }
    // Two masks: two lists; the other mask stays.
    let two: Value = serde_json::from_str(&lab.ok(&["fill-mask", "run", "[MASK] saw <mask>", "--json", "-k", "2"]).stdout).unwrap();
    assert_eq!((two.as_array().unwrap().len(), two[0].as_array().unwrap().len()), (2, 2));
    assert!(two[0][0]["sequence"].as_str().unwrap().ends_with(" saw <mask>"), "{two}");
    // A text a line.
    let ran = with_input(&lab, &["fill-mask", "run", "-"], "A <mask> saw.\nThe <mask> saw a letter.\nno mask\n");
    let lines: Vec<Value> = ran.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((lines.len(), lines[1][0]["token"].clone(), ran.code), (2, all[0]["token"].clone(), 1));
    assert!(ran.stderr.contains("standard input: line 3: no mask in \"no mask\": write <mask>"), "{}", ran.stderr);
    let most = lab.ok(&["fill-mask", "run", "The <mask> saw a letter.", "-k", "18446744073709551615", "--json"]).stdout;
    assert_eq!(serde_json::from_str::<Value>(&most).unwrap().as_array().unwrap().len(), 295);
    for (more, part) in [(["-k", "0"], "0 is not in 1.."), (["--set", "model.hidden_size=64"], "the model comes as it was trained")] {
        let ran = lab.run(&[&["fill-mask", "run", "The <mask>"][..], &more].concat());
        assert!(ran.code == 2 && ran.stderr.contains(part), "{}", ran.stderr);
    }
    let ran = lab.run(&["fill-mask", "run", &format!("{} <mask>", common::prose(1))]);
    assert!(ran.code == 1 && ran.stderr.contains("this model reads at most 16: shorten it"), "{}", ran.stderr);
}

/// The matrix of a version 1.0 file.
fn npy(bytes: &[u8]) -> (Vec<usize>, Vec<f32>) {
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let length = u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
    let header = std::str::from_utf8(&bytes[10..10 + length]).unwrap();
    assert!(
        (10 + length).is_multiple_of(64) && header.ends_with('\n') && header.contains("'descr': '<f4', 'fortran_order': False"),
        "{header}"
    );
    let shape = header.split("'shape': (").nth(1).unwrap().split(')').next().unwrap();
    let values = bytes[10 + length..].chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    (shape.split(", ").map(|n| n.parse().unwrap()).collect(), values)
}

#[test]
fn texts_become_vectors_in_their_order() {
    let lab = pretrained();
    let texts: Vec<String> = (0..70).map(|i| common::prose(i)[..5 + (i * 37) % 60].to_string()).collect();
    lab.write("texts.txt", texts.join("\n"));
    lab.ok(&["embed", "run", "texts.txt", "--out", "mean.npy"]);
    let (shape, mean) = npy(&std::fs::read(lab.path("mean.npy")).unwrap());
    assert_eq!((shape, mean.len()), (vec![70, 16], 70 * 16));
    // The same texts as records, under another column's name, first token: another matrix, in safetensors.
    let records: String = texts.iter().map(|t| json!({"body": t}).to_string() + "\n").collect();
    lab.write("texts.jsonl", &records);
    lab.ok(&["embed", "run", "texts.jsonl", "--text", "body", "--pooling", "first", "--out", "first.safetensors"]);
    let bytes = std::fs::read(lab.path("first.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let first = file.tensor("embeddings").unwrap();
    assert_eq!((first.shape(), first.dtype()), (&[70, 16][..], safetensors::Dtype::F32));
    let first: Vec<f32> = first.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(safetensors::SafeTensors::read_metadata(&bytes).unwrap().1.metadata().as_ref().unwrap()["pooling"], "first");
    // One text by itself: the same vector, whatever stood beside it.
    for row in [0, 33, 69] {
        for (pooling, all) in [("mean", &mean), ("first", &first)] {
            with_input(&lab, &["embed", "run", "-", "--pooling", pooling, "--out", "one.npy"], &texts[row]);
            let (_, one) = npy(&std::fs::read(lab.path("one.npy")).unwrap());
            let close = one.iter().zip(&all[row * 16..(row + 1) * 16]).all(|(a, b)| (a - b).abs() < 1e-5);
            assert!(close && one.len() == 16, "{pooling} {row}");
        }
    }
    assert!(mean.iter().zip(&first).any(|(a, b)| (a - b).abs() > 1e-2));
    // What is broken off leaves what was there.
    let before = std::fs::read(lab.path("mean.npy")).unwrap();
    lab.write("bad.jsonl", "{\"text\": \"good\"}\n{\"other\": 1}\n");
    let ran = lab.run(&["embed", "run", "bad.jsonl", "--out", "mean.npy"]);
    assert!(ran.code == 1 && ran.stderr.contains("bad.jsonl: line 2: no column \"text\"; the columns are other"), "{}", ran.stderr);
    assert_eq!(std::fs::read(lab.path("mean.npy")).unwrap(), before);
    assert!(!std::fs::read_dir(lab.path("")).unwrap().any(|e| e.unwrap().path().extension().is_some_and(|e| e == "tmp")));
    let ran = lab.run(&["embed", "run", "texts.txt", "--out", "mean.csv"]);
    assert!(ran.code == 2 && ran.stderr.contains("expected a name that ends in .safetensors or .npy"), "{}", ran.stderr);
}

fn fine_tuned(lab: &Lab) {
    lab.write("train.tsv", common::task_rows(40));
    lab.write("dev.tsv", common::task_rows(12));
    let mut config = common::tiny();
    config.as_object_mut().unwrap().remove("model");
    config["data"] = json!({"task": {"name": "mine", "train": "train.tsv", "dev": "dev.tsv", "text": "text", "label": "label", "kind": "classification"},
        "sequence_length": 16, "cache_dir": "cache"});
    config["run"] = json!({"dir": "fine", "init_from": "run"});
    config["train"]["checkpoint_every"] = json!(0);
    lab.write("fine.json", config.to_string());
    lab.ok(&["finetune", "fine.json", "--quiet"]);
}

#[test]
fn labels_for_every_kind_of_input_and_a_task_of_another_name() {
    let lab = pretrained();
    fine_tuned(&lab);
    let texts = ["The ship saw the harbour", "A sailor praised a letter", "seven stones", "é, \"quoted\""];
    lab.write("new.txt", texts.join("\n"));
    let quoted = |t: &str| format!("\"{}\"", t.replace('"', "\"\""));
    lab.write("new.csv", "n,body\n".to_string() + &texts.iter().map(|t| format!("1,{}\n", quoted(t))).collect::<String>());
    let records: String = texts.iter().map(|t| json!({"body": t}).to_string() + "\n").collect();
    let expected = lab.ok(&["predict", "fine", "new.txt"]).stdout;
    assert_eq!(expected.lines().count(), 5);
    assert_eq!(lab.ok(&["predict", "fine", "new.csv", "--text", "body"]).stdout, expected);
    let piped = with_input(&lab, &["predict", "fine", "-", "--input", "jsonl", "--text", "body"], &records);
    assert_eq!(piped.stdout, expected, "{}", piped.stderr);
    // Rows before a bad one are answered.
    let piped = with_input(&lab, &["predict", "fine", "-", "--input", "jsonl", "--text", "body"], &(records + "{\n"));
    assert!(piped.stdout == expected && piped.code == 1 && piped.stderr.contains("/dev/stdin: line 5"), "{}", piped.stderr);
    // The same task, described by a file: the same scores.
    let own: Value = serde_json::from_str(&lab.ok(&["evaluate", "fine"]).stdout).unwrap();
    let other: Value = serde_json::from_str(&lab.ok(&["evaluate", "fine", "fine.json", "run.threads=1"]).stdout).unwrap();
    assert_eq!(own["splits"]["dev"]["accuracy"], other["splits"]["dev"]["accuracy"]);
    // Sweeps write configs with such names.
    std::fs::copy(lab.path("fine.json"), lab.path("fine_seed=0.json")).unwrap();
    let same: Value = serde_json::from_str(&lab.ok(&["evaluate", "fine", "fine_seed=0.json"]).stdout).unwrap();
    assert_eq!(own["splits"]["dev"]["accuracy"], same["splits"]["dev"]["accuracy"]);
    let ran = lab.run(&["predict", "fine", "new.txt", "--set", "data.sequence_length=500"]);
    assert!(ran.code == 2 && ran.stderr.contains("data.sequence_length: found 500, expected at most n = 16"), "{}", ran.stderr);
    let ran = lab.run(&["evaluate", "fine", "mnli"]);
    assert!(ran.code == 1 && ran.stderr.contains("task mnli: its labels or texts are not those of mine"), "{}", ran.stderr);
    let ran = lab.run(&["fill-mask", "fine", "a <mask>"]);
    assert!(
        ran.code == 1 && ran.stderr.contains("has no masked-LM head; expected a pretrained model, such as the one it began with (run)"),
        "{}",
        ran.stderr
    );
}

/// A reader that goes away (`head`) is the end, not a failure.
#[test]
fn a_closed_pipe_is_silent() {
    let lab = pretrained();
    fine_tuned(&lab);
    lab.write("many.txt", "The ship saw the harbour\n".repeat(20_000));
    let mut child = lab.command(&["predict", "fine", "many.txt"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 5];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    drop(child.stdout.take());
    let ran = common::ran(child.wait_with_output().unwrap());
    assert_eq!((&first, ran.code, ran.stderr.as_str()), (b"index", 0, ""));
}

/// A model folder that `import` made is a model as a run is.
#[test]
fn an_imported_model_fills_masks_and_embeds() {
    let lab = Lab::new();
    let fixture = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/exchange/roberta_mlm");
    lab.ok(&["import", fixture.to_str().unwrap(), "--out", "model"]);
    let guesses: Value = serde_json::from_str(&lab.ok(&["fill-mask", "model", "a <mask> b", "--json", "-k", "3"]).stdout).unwrap();
    assert_eq!(guesses.as_array().unwrap().len(), 3, "{guesses}");
    with_input(&lab, &["embed", "model", "-", "--out", "v.npy"], "a b\nc\n");
    let width = lab.json("model/config.json")["model"]["hidden_size"].as_u64().unwrap() as usize;
    assert_eq!(npy(&std::fs::read(lab.path("v.npy")).unwrap()).0, [2, width]);
}

/// Guesses for many lines, worked on together, are those for each line alone, in the order of the lines.
#[test]
fn masks_of_many_lines_are_filled_together() {
    let lab = pretrained();
    let line = |i: usize| format!("The {} saw a <mask>{}", ["ship", "sailor", "<mask>"][i % 3], ["", " letter", "."][i / 3 % 3]);
    let lines: Vec<String> = (0..40).map(line).collect();
    lab.write("lines.txt", lines.join("\n"));
    let ran =
        lab.command(&["fill-mask", "run", "-", "-k", "3"]).stdin(std::fs::File::open(lab.path("lines.txt")).unwrap()).output().unwrap();
    let answers: Vec<Value> = String::from_utf8(ran.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(answers.len(), lines.len(), "{}", String::from_utf8_lossy(&ran.stderr));
    for row in [0, 1, 2, 5, 39] {
        let alone: Value = serde_json::from_str(&lab.ok(&["fill-mask", "run", &lines[row], "-k", "3", "--json"]).stdout).unwrap();
        let flat = |v: &Value| -> Vec<Value> {
            v.as_array().unwrap().iter().flat_map(|g| g.as_array().cloned().unwrap_or_else(|| vec![g.clone()])).collect()
        };
        let (alone, together) = (flat(&alone), flat(&answers[row]));
        assert_eq!(alone.len(), together.len());
        for (a, b) in alone.iter().zip(&together) {
            let off = (a["score"].as_f64().unwrap() - b["score"].as_f64().unwrap()).abs();
            assert!(a["sequence"] == b["sequence"] && off < 1e-6, "{row}: {a} {b}");
        }
    }
}

/// A Hugging Face checkpoint is a model where it lies: no import, and the same numbers as with one.
#[test]
fn a_hugging_face_folder_is_a_model() {
    let lab = pretrained();
    fine_tuned(&lab);
    lab.ok(&["export", "run", "--out", "hf-lm"]);
    lab.ok(&["export", "fine", "--out", "hf-fine"]);
    let fill = |model: &str| lab.ok(&["fill-mask", model, "The <mask> saw a letter.", "--json"]).stdout;
    assert_eq!(fill("hf-lm"), fill("run"));
    lab.write("new.txt", "The ship saw the harbour\nA sailor\n");
    let label = |model: &str| lab.ok(&["predict", model, "new.txt"]).stdout;
    assert_eq!(label("hf-fine"), label("fine"));
    for model in ["hf-lm", "run"] {
        lab.ok(&["embed", model, "new.txt", "--out", &format!("{model}.npy")]);
    }
    assert_eq!(lab.read_bytes("hf-lm.npy"), lab.read_bytes("run.npy"));
    // A start for runs: the child of the export is the child of the run.
    let mut config = lab.json("fine.json");
    for (from, dir) in [("hf-lm", "child-hf"), ("run", "child-run")] {
        config["run"] = json!({"dir": dir, "init_from": from});
        lab.write("child.json", config.to_string());
        lab.ok(&["finetune", "child.json", "--quiet"]);
    }
    let weights = |run: &str| common::weights_sha256(&lab.path(run), 6);
    assert_eq!(weights("child-hf"), weights("child-run"));
    // What cannot be is said.
    let ran = lab.run(&["export", "hf-lm", "--out", "again"]);
    assert!(ran.code == 1 && ran.stderr.contains("a Hugging Face checkpoint already"), "{}", ran.stderr);
    let ran = lab.run(&["predict", "hf-lm", "new.txt"]);
    assert!(ran.code == 1 && ran.stderr.contains("a pretraining run, expected one that was fine-tuned"), "{}", ran.stderr);
    let ran = lab.run(&["fill-mask", "nowhere", "a <mask>"]);
    assert!(ran.code == 1 && ran.stderr.contains("nowhere: no such model; expected the folder of a run"), "{}", ran.stderr);
}
