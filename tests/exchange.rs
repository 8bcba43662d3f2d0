//! Weights in and out: checkpoints of transformers and fairseq give the numbers that those gave
//! (`tests/fixtures/exchange/make.py`), exports are what was imported, and what would be computed wrongly is refused.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

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

/// A copy of a fixture whose config.json has some keys set anew.
fn changed(lab: &Lab, name: &str, to: &str, changes: &[(&str, Value)]) {
    for (path, bytes) in snapshot(&fixture(name)) {
        lab.write(&format!("{to}/{}", path.file_name().unwrap().to_str().unwrap()), bytes);
    }
    let mut config = lab.json(&format!("{to}/config.json"));
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    lab.write(&format!("{to}/config.json"), config.to_string());
}

#[test]
fn what_would_be_computed_otherwise_is_refused_with_the_reason() {
    let lab = Lab::new();
    let cases = [
        ("roberta_mlm", "hidden_act", json!("gelu_new"), "expected gelu (the exact one) or relu"),
        ("roberta_mlm", "hidden_act", json!("relu"), "RoBERTa's masked-LM head uses gelu"),
        ("bert_mlm", "position_embedding_type", json!("relative_key_query"), "no relative positions"),
        ("roberta_mlm", "model_type", json!("roberta-prelayernorm"), "LayerNorm stands before each block"),
        ("roberta_mlm", "model_type", json!("deberta-v2"), "its attention uses relative positions"),
        ("roberta_mlm", "model_type", json!("gpt2"), "this program has no other encoder"),
        ("bert_mlm", "is_decoder", json!(true), "attention here sees both sides"),
        ("bert_mlm", "add_cross_attention", json!(true), "no cross-attention"),
        ("bert_mlm", "pruned_heads", json!({"0": [1]}), "heads were pruned"),
        ("bert_mlm", "embedding_size", json!(8), "expected embeddings as wide as the layers"),
        ("bert_mlm", "quantization_config", json!({"bits": 4}), "expected fp32, fp16 or bf16"),
        ("roberta_classifier", "problem_type", json!("multi_label_classification"), "expected a regression"),
        ("roberta_classifier", "id2label", json!({"0": "a", "1": "a", "2": "b"}), "has \"a\" twice"),
        ("roberta_classifier", "id2label", json!({"0": "a", "1": "b"}), "has no label for 2"),
        ("roberta_mlm", "num_attention_heads", json!(3), "a divisor of model.hidden_size"),
        ("roberta_mlm", "num_attention_heads", json!("two"), "found \"two\", expected a whole number"),
        ("roberta_mlm", "num_hidden_layers", json!(3), "more tensors missing"),
        ("roberta_mlm", "intermediate_size", json!(64), "has shape [32, 16], expected [64, 16]"),
        ("roberta_mlm", "max_position_embeddings", json!(2), "expected more than pad_token_id + 1"),
        ("roberta_mlm", "pad_token_id", json!(0), "its padding token has id 1, but the model's pad_token_id is 0"),
        ("roberta_mlm", "hidden_size", json!(1i64 << 30), "model.hidden_size"),
        ("bert_mlm", "max_position_embeddings", json!(i64::MAX), "expected 0 to 4294967296"),
        ("bert_mlm", "pad_token_id", json!(-1), "found -1, expected 0 to"),
    ];
    for (i, (name, key, value, message)) in cases.into_iter().enumerate() {
        let from = format!("case{i}");
        changed(&lab, name, &from, &[(key, value.clone())]);
        let found = refusal(&lab, &from);
        assert!(found.contains(message), "{key} {value}: {found}");
    }
    // One of them from the shell: nothing is left behind.
    let ran = lab.run(&["import", "case0", "--out", "model"]);
    assert!(ran.code == 1 && ran.stderr.contains("case0/config.json: hidden_act: found gelu_new"), "{}", ran.stderr);
    assert!(!std::fs::read_dir(lab.path("")).unwrap().any(|e| e.unwrap().file_name().to_str().unwrap().contains("model")));
}

/// Case 28, of a checkpoint that was brought.
#[test]
fn weights_that_are_not_tied_are_refused() {
    let lab = Lab::new();
    changed(&lab, "bert_mlm", "untied", &[]);
    let mut weights = tensors(&lab.path("untied/model.safetensors"));
    let decoder = weights.iter_mut().find(|(name, _)| name == "cls.predictions.decoder.weight").unwrap();
    decoder.1 = &decoder.1 + 1.0;
    Tensor::write_safetensors(&weights, lab.path("untied/model.safetensors")).unwrap();
    assert!(refusal(&lab, "untied").contains("its output matrix is not tied"));
}

#[test]
fn numbers_that_a_file_cannot_hold_are_told() {
    let lab = Lab::new();
    changed(&lab, "bert_encoder", "nan", &[]);
    let with = |value: f64| {
        let mut weights = tensors(&fixture("bert_encoder").join("model.safetensors"));
        let bias = weights.iter_mut().find(|(name, _)| name == "encoder.layer.1.output.dense.bias").unwrap();
        bias.1 = &bias.1 * 0.0 + value;
        Tensor::write_safetensors(&weights, lab.path("nan/model.safetensors")).unwrap();
    };
    with(f64::NAN);
    assert!(refusal(&lab, "nan").contains("encoder.layer.1.output.dense.bias holds values that are not finite"));
    with(1e6);
    lab.ok(&["import", "nan", "--out", "large"]);
    let ran = lab.run(&["export", "large", "--out", "half", "--dtype", "fp16"]);
    assert!(ran.code == 1 && ran.stderr.contains("output.dense.bias has values that float16 cannot hold"), "{}", ran.stderr);
    lab.ok(&["export", "large", "--out", "half", "--dtype", "bf16"]);
}

/// Case 31.
#[test]
fn a_missing_shard_is_named_and_an_index_cannot_reach_elsewhere() {
    let lab = Lab::new();
    let index = "shards/model.safetensors.index.json";
    let refused = |message: &str| {
        let found = refusal(&lab, "shards");
        assert!(found.contains(message), "{found}");
    };
    changed(&lab, "roberta_classifier", "shards", &[]);
    std::fs::remove_file(lab.path("shards/model-00002-of-00003.safetensors")).unwrap();
    refused("shard model-00002-of-00003.safetensors is missing, which holds");
    changed(&lab, "roberta_classifier", "shards", &[]);
    let good = lab.json(index);
    for (shard, message) in [
        (json!("../shards/model-00001-of-00003.safetensors"), "expected the name of a shard beside the index"),
        (json!(7), "expected the name of a shard beside the index"),
        (json!("model-00003-of-00003.safetensors"), "which does not have it"),
    ] {
        let mut bad = good.clone();
        bad["weight_map"]["roberta.embeddings.word_embeddings.weight"] = shard;
        lab.write(index, bad.to_string());
        refused(message);
    }
    lab.write(index, "{}");
    refused("no weight_map");
    std::fs::remove_file(lab.path(index)).unwrap();
    lab.write("shards/pytorch_model.bin", "");
    refused("found pytorch_model.bin, expected model.safetensors: convert it first");
}

/// Case 32, at the file that somebody sent.
#[test]
fn hostile_weights_are_errors() {
    let lab = Lab::new();
    changed(&lab, "bert_encoder", "hostile", &[]);
    let header = |json: &str, body: usize| [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &vec![0; body][..]].concat();
    let hostile: [Vec<u8>; 7] = [
        vec![],
        vec![0xff; 8],
        [&u64::MAX.to_le_bytes()[..], b"{}"].concat(),
        header("{\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,8]}}", 8),
        header("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}", 12),
        header("{\"a\":{\"dtype\":\"F32\",\"shape\":[18446744073709551615,2],\"data_offsets\":[0,8]}}", 8),
        header("{\"embeddings.word_embeddings.weight\":{\"dtype\":\"I8\",\"shape\":[29,16],\"data_offsets\":[0,464]}}", 464),
    ];
    for bytes in hostile {
        lab.write("hostile/model.safetensors", &bytes);
        let found = refusal(&lab, "hostile");
        assert!(found.contains("hostile"), "{found}");
    }
}

/// Tensors of an export and of the checkpoint it came from, less those that nothing here has a place for.
#[test]
fn an_export_has_the_bits_of_the_checkpoint() {
    let lab = Lab::new();
    for name in CHECKPOINTS {
        imported(&lab, name);
        let family = name.split('_').next().unwrap();
        let dtype = match name {
            "roberta_regression" => "fp16",
            "bert_relu" => "bf16",
            _ => "fp32",
        };
        let out = format!("{name}-out");
        let said = lab.ok(&["export", name, "--out", &out, "--as", family, "--dtype", dtype]).stdout;
        assert!(!said.contains("trust_remote_code"), "{said}");
        let found = tensors(&lab.path(&out).join("model.safetensors"));
        let shards = snapshot(&fixture(name)).into_iter().map(|(path, _)| path);
        let shards = shards.filter(|p| p.extension().is_some_and(|e| e == "safetensors") && !p.ends_with("expected.safetensors"));
        let mut expected: Vec<(String, Tensor)> = shards.flat_map(|path| tensors(&path)).collect();
        let dropped = ["seq_relationship", "decoder", "position_ids"];
        let pooler = (name != "bert_classifier").then_some("pooler");
        expected.retain(|(name, _)| !dropped.iter().copied().chain(pooler).any(|d| name.contains(d)));
        expected
            .iter_mut()
            .for_each(|(name, _)| *name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"));
        expected.sort_by(|a, b| a.0.cmp(&b.0));
        let names = |tensors: &[(String, Tensor)]| tensors.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
        assert_eq!(names(&found), names(&expected), "{name}");
        for ((tensor, a), (_, b)) in found.iter().zip(&expected) {
            assert!(a.kind() == b.kind() && a.equal(b), "{name}: {tensor}");
        }
        let (ours, theirs) = (lab.json(&format!("{out}/config.json")), fixture(name).join("config.json"));
        let theirs: Value = serde_json::from_str(&std::fs::read_to_string(theirs).unwrap()).unwrap();
        for key in
            ["model_type", "vocab_size", "max_position_embeddings", "layer_norm_eps", "pad_token_id", "hidden_act", "type_vocab_size"]
        {
            assert_eq!(ours[key], theirs[key], "{name}: {key}");
        }
    }
    let labels = lab.json("roberta_classifier-out/config.json");
    assert_eq!((&labels["id2label"]["1"], &labels["label2id"]["glad"]), (&json!("calm"), &json!(2)));
}

/// The weights of a run, out and in again.
#[test]
fn a_linformer_goes_out_and_comes_back_bit_for_bit() {
    let lab = Lab::new();
    let model = json!({"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "norm": "pre",
        "attention": {"k": [[3, 5], [4, 4]], "sharing": "none"}});
    lab.config("c.json", &[("model", model)]);
    lab.ok(&["pretrain", "c.json", "--quiet"]);
    let said = lab.ok(&["export", "run", "--out", "hf"]).stdout;
    assert!(said.contains("LinformerForMaskedLM") && said.contains("trust_remote_code"), "{said}");
    assert!(lab.read("hf/modeling_linformer.py").contains("class LinformerForMaskedLM"));
    lab.ok(&["import", "hf", "--out", "back"]);
    let weights =
        |folder: &str, step: &str| std::fs::read(lab.path(folder).join(format!("checkpoints/step-{step}/model.safetensors"))).unwrap();
    assert!(weights("run", "00000006") == weights("back", "00000000"));
    assert_eq!(lab.json("back/config.json")["model"]["attention"], lab.json("run/config.json")["model"]["attention"]);
    assert_eq!(lab.read("back/tokenizer.json"), lab.read("run/tokenizer.json"));
    lab.ok(&["export", "back", "--out", "hf2"]);
    for name in ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "modeling_linformer.py"] {
        assert!(lab.read_bytes(&format!("hf/{name}")) == lab.read_bytes(&format!("hf2/{name}")), "{name}");
    }
    // The card says what the run's own files say.
    let (card, summary) = (lab.read("hf/README.md"), lab.json("run/summary.json"));
    let perplexity = format!("| validation perplexity | {:.4} |", summary["perplexity"].as_f64().unwrap());
    for line in [
        perplexity.as_str(),
        "| projected dimension k | 3..5 |",
        "| seed | 0 |",
        "| steps | 6 (checkpoint), 6 in all |",
        "pipeline_tag: fill-mask",
    ] {
        assert!(card.contains(line), "no \"{line}\" in\n{card}");
    }
    let before = snapshot(&lab.path("hf"));
    let ran = lab.run(&["export", "run", "--out", "hf"]);
    assert!(ran.code == 1 && ran.stderr.contains("is here already") && snapshot(&lab.path("hf")) == before, "{}", ran.stderr);
}

#[test]
fn an_imported_model_predicts_is_fine_tuned_and_trained_on() {
    let lab = Lab::new();
    imported(&lab, "roberta_classifier");
    lab.write("lines.txt", "the ship sailed\nit was cold but calm\n");
    let said = lab.ok(&["predict", "roberta_classifier", "lines.txt", "--format", "jsonl"]).stdout;
    let rows: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(rows.len() == 2 && rows[0]["probabilities"]["glad"].is_number(), "{said}");

    imported(&lab, "bert_encoder");
    lab.write("train.tsv", common::task_rows(16));
    lab.write("dev.tsv", common::task_rows(8));
    let task = json!({"name": "own", "train": "train.tsv", "dev": "dev.tsv", "text": "text", "label": "label", "labels": ["0", "1"]});
    let train = json!({"max_steps": 2, "batch_size": 4, "warmup_steps": 0, "learning_rate": 1e-3, "log_every": 1});
    let config =
        json!({"data": {"task": task, "sequence_length": 12}, "train": train, "run": {"init_from": "bert_encoder", "dir": "tuned"}});
    lab.write("f.json", config.to_string());
    lab.ok(&["finetune", "f.json", "--quiet"]);
    lab.ok(&["export", "tuned", "--out", "tuned-hf"]);
    assert_eq!(lab.json("tuned-hf/config.json")["id2label"], json!({"0": "0", "1": "1"}));

    let config = json!({"data": {"corpus": "text", "sequence_length": 12, "cache_dir": "cache", "validation_fraction": 0.2}, "train": train,
        "run": {"init_from": "bert_encoder", "dir": "on"}});
    lab.write("p.json", config.to_string());
    let said = lab.ok(&["pretrain", "p.json", "--quiet"]).stderr;
    assert!(said.contains("bert_encoder has no masked-LM head: it starts from random weights"), "{said}");
}

/// The start of a model of its own, made a Linformer: everything but E and F is as it was.
#[test]
fn full_attention_becomes_a_linformer() {
    let lab = Lab::new();
    imported(&lab, "roberta_mlm");
    let words = "the ship sailed at dawn and a letter came from her sister who praised the garden in winter it was cold but calm ";
    lab.write("words.txt", words.repeat(40));
    let full = tensors(&lab.path("roberta_mlm/checkpoints/step-00000000/model.safetensors"));
    let make = |out: &str, more: &[&str]| {
        let source = fixture("roberta_mlm");
        let args = ["import", text(&source), "--out", out, "--projected-dimension", "4"];
        lab.ok(&[&args[..], more].concat());
        let weights = tensors(&lab.path(out).join("checkpoints/step-00000000/model.safetensors"));
        for (name, tensor) in &full {
            assert!(named(&weights, name).unwrap().equal(tensor), "{out}: {name}");
        }
        weights
    };
    let weights = make("jl", &["--projection-init", "jl", "--sharing", "none"]);
    let e = named(&weights, "roberta.encoder.layer.1.attention.self.value_projection").unwrap();
    assert_eq!(e.size(), [2, 4, 12]);
    let variance = e.square().mean(Kind::Float).double_value(&[]);
    assert!((variance - 0.25).abs() < 5.0 * 0.25 * (2.0 / 96.0f64).sqrt(), "{variance}");
    assert_eq!(weights.len(), full.len() + 4);
    for sharing in ["headwise", "key_value", "layerwise", "none"] {
        let out = format!("fit-{sharing}");
        make(&out, &["--text", "words.txt", "--sharing", sharing, "--fit-steps", "60", "--fit-sequences", "48"]);
        let fit = lab.json(&format!("{out}/import.json"))["fit"].clone();
        let sum = |key: &str| fit.as_array().unwrap().iter().map(|layer| layer[key].as_f64().unwrap()).sum::<f64>();
        assert!(sum("fitted") < 0.9 * sum("mean_pool"), "{sharing}: {fit}");
    }
    let ran = lab.run(&["import", text(&fixture("roberta_mlm")), "--out", "x", "--projected-dimension", "4"]);
    assert!(ran.code == 1 && ran.stderr.contains("needs --text FILE"), "{}", ran.stderr);
    let ran = lab.run(&["import", text(&fixture("roberta_mlm")), "--out", "x", "--projected-dimension", "40", "--projection-init", "jl"]);
    assert!(ran.code == 1 && ran.stderr.contains("found 40, expected 1 to n = 12"), "{}", ran.stderr);
    lab.write("short.txt", "the ship");
    let ran = lab.run(&["import", text(&fixture("roberta_mlm")), "--out", "x", "--projected-dimension", "4", "--text", "short.txt"]);
    assert!(ran.code == 1 && ran.stderr.contains("give a longer text"), "{}", ran.stderr);
}

/// A tokenizer that puts nothing around a text, or BERT's single separator between two, would feed the model something else.
#[test]
fn the_exported_tokenizer_makes_the_layout_that_the_model_was_trained_on() {
    let lab = Lab::new();
    imported(&lab, "bert_encoder");
    let rows: String = (0..16).map(|i| format!("the ship\tit was cold\t{}\n", i % 2)).collect();
    lab.write("pairs.tsv", format!("a\tb\tlabel\n{rows}"));
    let task = json!({"name": "own", "train": "pairs.tsv", "dev": "pairs.tsv", "text": "a", "text_pair": "b", "label": "label", "labels": ["0", "1"]});
    let train = json!({"max_steps": 1, "batch_size": 4, "warmup_steps": 0, "log_every": 1});
    let config =
        json!({"data": {"task": task, "sequence_length": 12}, "train": train, "run": {"init_from": "bert_encoder", "dir": "pairs"}});
    lab.write("f.json", config.to_string());
    lab.ok(&["finetune", "f.json", "--quiet"]);
    lab.ok(&["export", "pairs", "--out", "pairs-hf"]);
    let tokenizer = tokenizers::Tokenizer::from_file(lab.path("pairs-hf/tokenizer.json")).unwrap();
    let tokens = tokenizer.encode(("the ship", "it was"), true).unwrap().get_tokens().to_vec();
    assert_eq!(tokens, ["[CLS]", "the", "ship", "[SEP]", "it", "was", "[SEP]"]);
    // The same tokenizer on a model without token types: RoBERTa's layout.
    changed(&lab, "roberta_mlm", "untyped", &[("pad_token_id", json!(0))]);
    std::fs::copy(fixture("bert_encoder").join("tokenizer.json"), lab.path("untyped/tokenizer.json")).unwrap();
    lab.ok(&["import", "untyped", "--out", "untyped-model"]);
    lab.write("f.json", config.to_string().replace("bert_encoder", "untyped-model").replace("\"pairs\"", "\"untyped-pairs\""));
    lab.ok(&["finetune", "f.json", "--quiet"]);
    lab.ok(&["export", "untyped-pairs", "--out", "untyped-hf"]);
    let tokenizer = tokenizers::Tokenizer::from_file(lab.path("untyped-hf/tokenizer.json")).unwrap();
    let tokens = tokenizer.encode(("the ship", "it was"), true).unwrap().get_tokens().to_vec();
    assert_eq!(tokens, ["[CLS]", "the", "ship", "[SEP]", "[SEP]", "it", "was", "[SEP]"]);

    changed(&lab, "roberta_mlm", "bare", &[]);
    let mut json = lab.json("bare/tokenizer.json");
    json["post_processor"] = Value::Null;
    lab.write("bare/tokenizer.json", json.to_string());
    lab.ok(&["import", "bare", "--out", "bare-model"]);
    lab.ok(&["export", "bare-model", "--out", "bare-hf"]);
    let tokenizer = tokenizers::Tokenizer::from_file(lab.path("bare-hf/tokenizer.json")).unwrap();
    assert_eq!(tokenizer.encode("the ship", true).unwrap().get_tokens(), ["<s>", "the", "ship", "</s>"]);
}

/// Case 31, on the way out.
#[test]
fn exports_carry_the_format_of_pytorch() {
    let lab = Lab::new();
    imported(&lab, "roberta_mlm");
    lab.ok(&["export", "roberta_mlm", "--out", "out"]);
    let bytes = lab.read_bytes("out/model.safetensors");
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    assert_eq!(header["__metadata__"], json!({"format": "pt"}));
    WeightsFile::open(&lab.path("out/model.safetensors")).unwrap();
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
