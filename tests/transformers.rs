//! Real transformers, in the Python that LINFORMER_PYTHON names (`make test-transformers` has one made): every kind of model
//! that is exported gives there what it gives here.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{docs, Lab};
use linformer::data::tokenizer::Tokenizer;
use linformer::model::weights::{save, Select};
use linformer::model::{ClassificationHead, Encoder, Input, MaskedLmHead, Parameters, Pass};
use linformer::train::checkpoint::Checkpoint;
use linformer::train::run::read_config;
use serde_json::{json, Value};
use std::path::Path;
use std::process::Command;
use tch::{Kind, Tensor};

/// Exports of a lab, with what is to be found in them.
#[derive(Default)]
struct Cases(Vec<Value>);

const MASKED: &str = "The <mask> saw the <mask> law; a letter.";
const SAMPLE: &str = "The ship saw the new law; a letter.";

/// Two texts, one shorter than the other, as a batch.
fn batch(tokenizer: &Tokenizer, n: usize) -> (Tensor, Tensor) {
    let special = tokenizer.special;
    let row = |text: &str, length: usize| {
        let ids = tokenizer.encode(text).unwrap();
        let mut row: Vec<i64> =
            [special.cls].iter().chain(&ids[..ids.len().min(length - 2)]).chain([&special.sep]).map(|id| i64::from(*id)).collect();
        row.resize(n, special.pad.into());
        row
    };
    let rows = [row(&common::prose(3), n), row("A sailor saw", n / 2)].concat();
    let ids = Tensor::from_slice(&rows).view([2, n as i64]);
    let mask = ids.ne(i64::from(special.pad)).to_kind(Kind::Int64);
    (ids, mask)
}

impl Cases {
    /// Notes what the model in `run` computes; transformers has to find it in `folder`.
    fn add(&mut self, lab: &Lab, run: &str, folder: &Path) {
        let path = lab.path(run);
        let config = read_config(&path).unwrap();
        let tokenizer = Tokenizer::load(&path.join("tokenizer.json")).unwrap();
        let (ids, mask) = batch(&tokenizer, config.model.sequence_length().min(64) as usize);
        let weights = Checkpoint::latest(&path.join("checkpoints")).0.unwrap().weights().unwrap();
        let shapes = weights.shapes().unwrap();
        let mut parameters = Parameters::uninitialised(tch::Device::Cpu);
        let encoder = Encoder::new(&mut parameters, &config.model);
        let classes = shapes.get("classifier.out_proj.bias").map(|shape| shape[0]);
        let classifier = classes.map(|classes| ClassificationHead::new(&mut parameters, &config.model, classes));
        let lm = shapes.contains_key("lm_head.bias").then(|| MaskedLmHead::new(&mut parameters, &config.model, encoder.word_embeddings()));
        weights.load_into(&parameters, Select::All).unwrap();
        let _guard = tch::no_grad_guard();
        let pass = Pass::evaluation(Kind::Float);
        let input = Input { ids: ids.shallow_clone(), attention_mask: Some(mask.shallow_clone()) };
        let hidden = encoder.forward(&input, &pass).unwrap();
        let logits = classifier.map(|head| head.forward(&encoder.forward_first(&input, &pass).unwrap(), &pass).unwrap());
        let logits = logits.or_else(|| Some(lm?.forward(&hidden.flatten(0, 1)).unwrap().view([ids.size()[0], ids.size()[1], -1])));
        let tensors = [("input_ids", Some(ids)), ("attention_mask", Some(mask)), ("hidden", Some(hidden)), ("logits", logits)];
        let file = lab.path(&format!("expected-{}.safetensors", self.0.len()));
        let present: Vec<(String, Tensor)> =
            tensors.into_iter().filter_map(|(name, t)| Some((name.to_string(), t?.contiguous()))).collect();
        save(&file, present.iter().map(|(n, t)| (n.clone(), t)), Default::default()).unwrap();
        let special = tokenizer.special;
        let ids = [vec![special.cls], tokenizer.encode(SAMPLE).unwrap(), vec![special.sep]].concat();
        let masked = tokenizer.encode_masked(MASKED).unwrap().ids;
        let masked_ids = [vec![special.cls], masked, vec![special.sep]].concat();
        let masked = json!({"text": MASKED.replace("<mask>", &tokenizer.token(special.mask).unwrap()), "ids": masked_ids});
        self.0.push(json!({"folder": folder, "expected": file, "text": SAMPLE, "ids": ids, "masked": masked}));
    }

    /// Exports the model in `run` and adds it.
    fn export(&mut self, lab: &Lab, run: &str, more: &[&str]) {
        let out = format!("hf/{run}{}", more.concat());
        lab.ok(&[&["export", run, "--out", &out], more].concat());
        self.add(lab, run, &lab.path(&out));
    }

    fn check(self, lab: &Lab, python: &str) {
        assert!(!self.0.is_empty());
        lab.write("manifest.json", json!(self.0).to_string());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/exchange/compare.py");
        run_python(lab, python, &[text(&script), text(&lab.path("manifest.json"))]);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run_python(lab: &Lab, python: &str, args: &[&str]) {
    let mut command = Command::new(python);
    command.args(args).current_dir(lab.path("")).env("HF_HUB_OFFLINE", "1").env("HF_HOME", lab.path("cache")).env("OMP_NUM_THREADS", "1");
    assert!(command.status().unwrap().success());
}

/// The page's commands have made the folders that its Python loads.
#[test]
#[ignore = "needs transformers: make test-transformers"]
fn the_python_of_the_docs_runs() {
    let python = std::env::var("LINFORMER_PYTHON").expect("LINFORMER_PYTHON names a python with torch and transformers");
    let lab = Lab::new();
    docs::prepare(&lab);
    docs::run(&lab);
    for (_, body) in docs::blocks(&docs::text()).into_iter().filter(|(mark, _)| mark == "python") {
        run_python(&lab, &python, &["-c", &body]);
    }
}

/// A pretraining run whose weights are large enough for every part to matter.
fn pretrained(lab: &Lab, name: &str, model: &[(&str, Value)]) {
    let mut changes: Vec<(&str, Value)> = vec![
        ("model.initializer_range", json!(0.2)),
        ("train.max_steps", json!(2)),
        ("data.max_validation_sequences", json!(8)),
        ("run.dir", json!(name)),
    ];
    changes.extend(model.iter().map(|(key, value)| (*key, value.clone())));
    lab.config("c.json", &changes);
    lab.ok(&["pretrain", "c.json", "--quiet"]);
}

#[test]
#[ignore = "needs transformers: make test-transformers"]
fn exports_give_the_same_numbers_in_transformers() {
    let python = std::env::var("LINFORMER_PYTHON").expect("LINFORMER_PYTHON names a python with torch and transformers");
    let lab = Lab::new();
    std::fs::create_dir(lab.path("hf")).unwrap();
    let mut cases = Cases::default();
    pretrained(&lab, "full", &[("model.attention.kind", json!("full"))]);
    cases.export(&lab, "full", &[]);
    cases.export(&lab, "full", &["--as", "bert"]);
    pretrained(&lab, "full-relu", &[("model.attention.kind", json!("full")), ("model.hidden_act", json!("relu"))]);
    cases.export(&lab, "full-relu", &[]);
    cases.export(&lab, "full-relu", &["--as", "bert"]);
    for norm in ["post", "pre"] {
        // Where LayerNorm stands has nothing to do with how E is applied: one projection for `pre`.
        let projections = if norm == "post" { &["learned", "fixed", "mean_pool", "max_pool", "conv"][..] } else { &["learned"] };
        for sharing in ["none", "headwise", "key_value", "layerwise"] {
            for projection in projections {
                let name = format!("{norm}-{sharing}-{projection}");
                let keys = [
                    ("model.norm", json!(norm)),
                    ("model.attention.sharing", json!(sharing)),
                    ("model.attention.projection", json!(projection)),
                    ("model.attention.init", json!("jl")),
                ];
                pretrained(&lab, &name, &keys);
                cases.export(&lab, &name, &[]);
            }
        }
    }
    for projection in ["learned", "mean_pool", "conv"] {
        let name = format!("per-head-{projection}");
        let keys = [
            ("model.attention.sharing", json!("none")),
            ("model.attention.k", json!([[3, 5], [8, 8]])),
            ("model.attention.projection", json!(projection)),
            ("model.attention.init", json!("jl")),
        ];
        pretrained(&lab, &name, &keys);
        cases.export(&lab, &name, &[]);
    }
    lab.write("train.tsv", common::task_rows(16));
    for (parent, labels) in [("full", json!(["0", "1"])), ("post-headwise-learned", json!(["0", "1"])), ("pre-none-learned", json!([]))] {
        let task = json!({"name": "own", "train": "train.tsv", "dev": "train.tsv", "text": "text", "label": "label", "labels": labels});
        let train = json!({"max_steps": 2, "batch_size": 4, "warmup_steps": 0, "learning_rate": 1e-2, "log_every": 1});
        let run = json!({"init_from": parent, "dir": format!("{parent}-tuned")});
        lab.write("f.json", json!({"data": {"task": task, "sequence_length": 16}, "train": train, "run": run}).to_string());
        lab.ok(&["finetune", "f.json", "--quiet"]);
        cases.export(&lab, &format!("{parent}-tuned"), &[]);
    }
    cases.check(&lab, &python);
}

/// Pairs, with and without token types: BERT fine-tuned on pairs, RoBERTa, and a Linformer that a BERT became.
#[test]
#[ignore = "needs transformers: make test-transformers"]
fn pairs_give_the_same_numbers_in_transformers() {
    let python = std::env::var("LINFORMER_PYTHON").expect("LINFORMER_PYTHON names a python with torch and transformers");
    let lab = Lab::new();
    std::fs::create_dir(lab.path("hf")).unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/exchange");
    let bert = fixtures.join("bert_classifier");
    lab.ok(&["import", text(&bert), "--out", "bert"]);
    lab.ok(&["import", text(&bert), "--out", "bert-lin", "--projected-dimension", "4", "--projection-init", "jl"]);
    lab.ok(&["import", text(&fixtures.join("roberta_classifier")), "--out", "roberta"]);
    let pairs: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(bert.join("pairs.json")).unwrap()).unwrap();
    let row = |(i, p): (usize, &Value)| json!({"a": p["text"], "b": p["text_pair"], "label": (["x", "y"][i % 2])}).to_string() + "\n";
    lab.write("pairs.jsonl", pairs.iter().enumerate().map(row).collect::<String>());
    let mut cases = Cases::default();
    for (parent, family) in [("bert", "bert"), ("bert", "roberta"), ("bert-lin", "roberta"), ("roberta", "roberta")] {
        let run = format!("{parent}-{family}-tuned");
        let task = json!({"name": "own", "train": "pairs.jsonl", "dev": "pairs.jsonl", "text": "a", "text_pair": "b", "label": "label", "labels": ["x", "y"]});
        let train = json!({"max_steps": 3, "batch_size": 2, "warmup_steps": 0, "learning_rate": 1e-2});
        let config = json!({"data": {"task": task, "sequence_length": 12}, "train": train, "run": {"init_from": parent, "dir": run}});
        lab.write("f.json", config.to_string());
        lab.ok(&["finetune", "f.json", "--quiet"]);
        let out = format!("hf/{run}");
        lab.ok(&["export", &run, "--out", &out, "--as", family]);
        cases.add(&lab, &run, &lab.path(&out));
        let predicted = lab.ok(&["predict", &run, "pairs.jsonl", "--format", "jsonl"]).stdout;
        let rows: Vec<Value> = predicted
            .lines()
            .zip(&pairs)
            .map(|(line, pair)| {
                let found: Value = serde_json::from_str(line).unwrap();
                json!({"text": pair["text"], "text_pair": pair["text_pair"], "probabilities": found["probabilities"]})
            })
            .collect();
        cases.0.last_mut().unwrap()["pairs"] = json!(rows);
    }
    cases.check(&lab, &python);
}

/// A checkpoint that others trained, of 6 layers and 22 million weights: LINFORMER_CHECKPOINT names its folder.
#[test]
#[ignore = "needs transformers and the real checkpoint: make test-transformers"]
fn a_real_checkpoint_gives_the_same_numbers_here_and_in_transformers() {
    let python = std::env::var("LINFORMER_PYTHON").expect("LINFORMER_PYTHON names a python with torch and transformers");
    let real = std::env::var("LINFORMER_CHECKPOINT").expect("LINFORMER_CHECKPOINT names a checkpoint's folder");
    let lab = Lab::new();
    std::fs::create_dir(lab.path("hf")).unwrap();
    lab.ok(&["import", &real, "--out", "real"]);
    let mut cases = Cases::default();
    cases.add(&lab, "real", Path::new(&real));
    cases.export(&lab, "real", &[]);
    cases.export(&lab, "real", &["--as", "bert"]);
    // A start whose scores are small: others make hidden states of 6 untrained layers that rounding alone moves by 1e-5.
    lab.ok(&["import", &real, "--out", "lin", "--projected-dimension", "64", "--projection-init", "normal_0.02"]);
    cases.export(&lab, "lin", &[]);
    cases.check(&lab, &python);
}
