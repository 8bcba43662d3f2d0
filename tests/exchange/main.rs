//! Weights in and out: checkpoints of transformers and fairseq give the numbers that those gave
//! (`tests/fixtures/exchange/make.py`), exports are what was imported, and what would be computed wrongly is refused.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;
mod exports;
mod refusals;

use common::{docs, snapshot, Lab};
use linformer::exchange::import::{self, From, Request};
use linformer::model::weights::WeightsFile;
use linformer::model::{ClassificationHead, Encoder, Input, MaskedLmHead, Parameters, Pass};
use linformer::train::checkpoint::Checkpoint;
use linformer::train::run::read_config;
use serde_json::{json, Value};
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

const CHECKPOINTS: [&str; 7] =
    ["roberta_mlm", "roberta_classifier", "roberta_regression", "bert_mlm", "bert_relu", "bert_classifier", "bert_encoder"];
const FAIRSEQ: [&str; 3] = ["fairseq_headwise", "fairseq_key_value", "fairseq_layerwise"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/exchange").join(name)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn import_fixture(lab: &Lab, name: &str, more: &[&str]) -> common::Ran {
    lab.run(&[&["import", text(&fixture(name)), "--out", name], more].concat())
}

/// What the command does, in this process: one for each of many cases would take long.
fn take(source: PathBuf, from: From) -> Result<import::Imported, String> {
    let num_attention_heads = (from == From::Fairseq).then_some(2);
    let request = Request { source, from, tokenizer: None, num_attention_heads, linformer: None };
    import::import(&request, &mut |_| {}).map_err(|e| e.to_string())
}

/// Imports a fixture under its name and gives the report.
fn imported(lab: &Lab, name: &str) -> String {
    let from = if name.starts_with("fairseq") { From::Fairseq } else { From::HuggingFace };
    let taken = take(fixture(name), from).unwrap();
    taken.write(&lab.path(name)).unwrap();
    taken.report.text()
}

/// Why a folder of the lab is not taken.
fn refusal(lab: &Lab, folder: &str) -> String {
    let message = take(lab.path(folder), From::HuggingFace).err().expect("it was taken");
    assert!(!message.contains('\n'), "{message}");
    message
}

/// Hidden states and, with a head, logits of a run's or an imported model's newest checkpoint.
fn outputs(folder: &Path, ids: &Tensor, mask: &Tensor) -> (Tensor, Option<Tensor>) {
    let config = read_config(folder).unwrap();
    let checkpoint = Checkpoint::latest(&folder.join("checkpoints")).0.unwrap();
    let shapes = checkpoint.weights().unwrap().shapes().unwrap();
    let mut parameters = Parameters::uninitialised(tch::Device::Cpu);
    let encoder = Encoder::new(&mut parameters, &config.model);
    let classes = shapes.get("classifier.out_proj.bias").map(|shape| shape[0]);
    let classifier = classes.map(|classes| ClassificationHead::new(&mut parameters, &config.model, classes));
    let lm = shapes.contains_key("lm_head.bias").then(|| MaskedLmHead::new(&mut parameters, &config.model, encoder.word_embeddings()));
    checkpoint.weights().unwrap().load_into(&parameters, linformer::model::weights::Select::All).unwrap();
    let _guard = tch::no_grad_guard();
    let pass = Pass::evaluation(Kind::Float);
    let input = Input { ids: ids.shallow_clone(), attention_mask: Some(mask.shallow_clone()) };
    let hidden = encoder.forward(&input, &pass).unwrap();
    let logits = match (&classifier, &lm) {
        (Some(head), _) => Some(head.forward(&encoder.forward_first(&input, &pass).unwrap(), &pass).unwrap()),
        (_, Some(head)) => Some(head.forward(&hidden.flatten(0, 1)).unwrap().view([ids.size()[0], ids.size()[1], -1])),
        _ => None,
    };
    (hidden, logits)
}

/// Largest difference at real tokens (`[B, L, ..]`) or anywhere (`[B, classes]`).
fn difference(a: &Tensor, b: &Tensor, mask: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    let difference = if a.dim() == 3 { (a - b) * mask.unsqueeze(-1) } else { a - b };
    difference.abs().max().double_value(&[])
}

fn tensors(path: &Path) -> Vec<(String, Tensor)> {
    let mut all = Tensor::read_safetensors(path).unwrap();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn named(tensors: &[(String, Tensor)], name: &str) -> Option<Tensor> {
    tensors.iter().find(|(n, _)| n == name).map(|(_, t)| t.shallow_clone())
}

fn assert_equals_expected(lab: &Lab, name: &str) {
    let expected = tensors(&fixture(name).join("expected.safetensors"));
    let get = |part: &str| named(&expected, part);
    let mask = get("attention_mask").unwrap();
    let (hidden, logits) = outputs(&lab.path(name), &get("input_ids").unwrap(), &mask);
    let off = difference(&hidden, &get("hidden").unwrap(), &mask);
    assert!(off < 1e-5, "{name}: hidden states differ by {off:e}");
    assert_eq!(logits.is_some(), get("logits").is_some(), "{name}");
    if let (Some(logits), Some(expected)) = (logits, get("logits")) {
        let off = difference(&logits, &expected, &mask);
        assert!(off < 1e-5, "{name}: logits differ by {off:e}");
    }
}

fn copy(lab: &Lab, name: &str, to: &str) {
    for (path, bytes) in snapshot(&fixture(name)) {
        lab.write(&format!("{to}/{}", path.file_name().unwrap().to_str().unwrap()), bytes);
    }
}

/// A copy of a fixture whose config.json has some keys set anew.
fn changed(lab: &Lab, name: &str, to: &str, changes: &[(&str, Value)]) {
    copy(lab, name, to);
    let mut config = lab.json(&format!("{to}/config.json"));
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    lab.write(&format!("{to}/config.json"), config.to_string());
}

/// Case 27: the longest rows fill all positions.
#[test]
fn checkpoints_give_the_logits_of_transformers() {
    let lab = Lab::new();
    for name in CHECKPOINTS {
        imported(&lab, name);
        assert_equals_expected(&lab, name);
    }
}

#[test]
fn fairseq_state_dicts_give_its_logits_and_the_padding_difference_is_stated() {
    let lab = Lab::new();
    for name in FAIRSEQ {
        let said = imported(&lab, name);
        assert_equals_expected(&lab, name);
        assert!(said.contains("fairseq compresses padding like text"), "{said}");
        let sharing = name.strip_prefix("fairseq_").unwrap();
        assert_eq!(lab.json(&format!("{name}/config.json"))["model"]["attention"]["sharing"], sharing);
    }
    let ran = import_fixture(&lab, "fairseq_headwise", &["--from", "fairseq"]);
    assert!(ran.code == 1 && ran.stderr.contains("already"), "{}", ran.stderr);
    let ran = lab.run(&["import", text(&fixture("fairseq_headwise")), "--out", "x", "--from", "fairseq"]);
    assert!(ran.stderr.contains("--num-attention-heads"), "{}", ran.stderr);
    let message = take(fixture("bert_mlm"), From::Fairseq).err().unwrap();
    assert!(message.contains("not the state dict of a fairseq RoBERTa"), "{message}");
}

/// Case 29.
#[test]
fn what_was_taken_left_and_missing_is_said() {
    let lab = Lab::new();
    let said = import_fixture(&lab, "bert_mlm", &[]).stdout;
    for line in [
        "left     cls.seq_relationship.weight [2, 16]: next-sentence prediction has no place here",
        "left     bert.pooler.dense.weight [16, 16]: the pooler",
        "left     cls.predictions.decoder.weight [27, 16]: a copy of a tied weight",
        "left     bert.embeddings.position_ids [1, 12]: a constant",
        "missing  a classification head",
        "note     positions: BERT counts from 0",
        "note     token types: all 2 rows are kept; the second text of a pair has type 1",
        "written  bert_mlm",
    ] {
        assert!(said.contains(line), "no \"{line}\" in\n{said}");
    }
    let report = lab.json("bert_mlm/import.json");
    let taken = report["taken"].as_array().unwrap();
    let gamma = taken.iter().find(|t| t["ours"] == "roberta.embeddings.LayerNorm.weight").unwrap();
    assert_eq!(gamma["theirs"], "bert.embeddings.LayerNorm.gamma");
    assert!(said.contains(&format!("taken    {} tensors", taken.len())));
    let said = imported(&lab, "bert_encoder");
    assert!(said.contains("missing  a masked-LM head"), "{said}");
}

/// `predict` on rows of two texts, as logits less their mean: softmax forgets that.
fn centred(probabilities: &Value) -> Vec<f64> {
    let logs: Vec<f64> = probabilities.as_object().unwrap().values().map(|p| p.as_f64().unwrap().ln()).collect();
    let mean = logs.iter().sum::<f64>() / logs.len() as f64;
    logs.into_iter().map(|log| log - mean).collect()
}

/// Of a pair, BERT's second text has token type 1 and one separator before it: logits are those of transformers
/// (`pairs.json`), from the model folder and from the checkpoint as it lies there; a fine-tuned child reads pairs so too.
#[test]
fn pairs_have_berts_token_types() {
    let lab = Lab::new();
    imported(&lab, "bert_classifier");
    let pairs: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(fixture("bert_classifier").join("pairs.json")).unwrap()).unwrap();
    let lines = pairs.iter().map(|p| format!("{}\n", json!({"a": p["text"], "b": p["text_pair"], "label": "x"})));
    lab.write("pairs.jsonl", lines.collect::<String>());
    let columns = ["--text", "a", "--text-pair", "b", "--format", "jsonl"];
    for model in ["bert_classifier", text(&fixture("bert_classifier"))] {
        let said = lab.ok(&[&["predict", model, "pairs.jsonl"], &columns[..]].concat()).stdout;
        for (line, pair) in said.lines().zip(&pairs) {
            let ours = centred(&serde_json::from_str::<Value>(line).unwrap()["probabilities"]);
            let theirs: Vec<f64> = pair["logits"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect();
            let mean = theirs.iter().sum::<f64>() / theirs.len() as f64;
            let off = ours.iter().zip(&theirs).map(|(a, b)| (a - (b - mean)).abs()).fold(0.0, f64::max);
            assert!(off < 1e-5, "{model}: {off:e}: {line} {pair}");
        }
        assert_eq!(said.lines().count(), pairs.len());
    }
    // The ids that a child is trained on; RoBERTa's layout for the same tokenizer on a model without types.
    let rows: String = pairs
        .iter()
        .enumerate()
        .map(|(i, p)| format!("{}\n", json!({"a": p["text"], "b": p["text_pair"], "label": (["x", "y"][i % 2])})))
        .collect();
    lab.write("train.jsonl", rows);
    let task = json!({"name": "own", "train": "train.jsonl", "dev": "train.jsonl", "text": "a", "text_pair": "b", "label": "label", "labels": ["x", "y"]});
    let run = json!({"init_from": "bert_classifier", "dir": "child"});
    lab.write(
        "f.json",
        json!({"data": {"task": task, "sequence_length": 12, "cache_dir": "cache"},
        "train": {"max_steps": 2, "batch_size": 2, "warmup_steps": 0, "log_every": 1}, "run": run})
        .to_string(),
    );
    let ids: Vec<String> = pairs[0]["ids"].as_array().unwrap().iter().map(Value::to_string).collect();
    let shown = lab.ok(&["data", "show", "f.json"]).stdout;
    assert!(shown.contains(&format!("ids     {}\n", ids.join(" "))), "{shown}");
    lab.ok(&["finetune", "f.json", "--quiet"]);
    let predicted = lab.ok(&["predict", "child", "pairs.jsonl", "--format", "jsonl"]).stdout;
    // Out and read where it lies: the same numbers, with the types declared for AutoTokenizer.
    lab.ok(&["export", "child", "--out", "out", "--as", "bert"]);
    assert_eq!(lab.ok(&[&["predict", "out", "pairs.jsonl"], &columns[..]].concat()).stdout, predicted);
    assert_eq!(lab.json("out/tokenizer_config.json")["model_input_names"], json!(["input_ids", "token_type_ids", "attention_mask"]));
    assert_eq!(lab.json("out/tokenizer.json")["post_processor"]["type"], "BertProcessing");
}

/// Special tokens that only the file beside the tokenizer names are still the special ones in a fine-tuned child and its export.
#[test]
fn declared_special_tokens_survive_into_a_child() {
    let lab = Lab::new();
    changed(&lab, "roberta_mlm", "hf", &[]);
    // Words of no meaning to the loader; the post-processor is gone.
    let mut tokenizer = lab.json("hf/tokenizer.json");
    tokenizer["post_processor"] = Value::Null;
    let names = [("<s>", "ALPHA"), ("</s>", "OMEGA"), ("<mask>", "HIDDEN"), ("<pad>", "FILL")];
    let renamed = names.iter().fold(tokenizer.to_string(), |text, (old, new)| text.replace(&format!("\"{old}\""), &format!("\"{new}\"")));
    lab.write("hf/tokenizer.json", renamed);
    lab.write(
        "hf/special_tokens_map.json",
        json!({"cls_token": "ALPHA", "sep_token": "OMEGA", "mask_token": "HIDDEN", "pad_token": "FILL"}).to_string(),
    );
    lab.ok(&["import", "hf", "--out", "model"]);
    lab.write("train.tsv", "text\tlabel\nthe ship sailed\tx\na cold winter\ty\n");
    let task = json!({"name": "own", "train": "train.tsv", "dev": "train.tsv", "text": "text", "label": "label", "labels": ["x", "y"]});
    let config = |from: &str, dir: &str| {
        json!({"data": {"task": task, "sequence_length": 12, "cache_dir": "cache"}, "train": {"max_steps": 2, "batch_size": 2, "warmup_steps": 0},
            "run": {"init_from": from, "dir": dir}}).to_string()
    };
    lab.write("f.json", config("model", "child"));
    lab.ok(&["finetune", "f.json", "--quiet"]);
    // A grandchild, whose only source is the child's folder, reads the same ids.
    lab.write("g.json", config("child", "grandchild"));
    let ids = |file: &str| lab.ok(&["data", "show", file]).stdout.lines().find(|l| l.starts_with("ids")).unwrap().to_string();
    assert_eq!(ids("g.json"), ids("f.json"));
    assert!(ids("g.json").starts_with("ids     0 ") && ids("g.json").ends_with(" 2"), "{}", ids("g.json"));
    lab.ok(&["finetune", "g.json", "--quiet"]);
    lab.ok(&["export", "grandchild", "--out", "out"]);
    assert_eq!(lab.json("out/special_tokens_map.json")["mask_token"], "HIDDEN");
    lab.ok(&["predict", "out", "train.tsv"]);
}

/// Every command of docs/huggingface.md, in its order, on files of the names that it uses.
#[test]
fn the_commands_of_the_docs_run() {
    let lab = Lab::new();
    docs::prepare(&lab);
    docs::run(&lab);
    assert!(lab.path("out/on/modeling_linformer.py").exists() && !lab.path("out/tuned/modeling_linformer.py").exists());
    assert_eq!(lab.json("out/on/config.json")["torch_dtype"], "bfloat16");
}
