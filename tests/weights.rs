//! Weight files that do not fit are refused by name, and the model stays as it was; damaged ones are passed over, and that is said.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::Lab;
use linformer::config::Model;
use linformer::model::weights::{save, Select, WeightsFile};
use linformer::model::{Encoder, MaskedLmHead, Parameters};
use serde_json::json;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

const KEY: &str = "roberta.encoder.layer.0.attention.self.key.weight";

fn model() -> Parameters {
    let config: Model =
        serde_json::from_value(json!({"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 8, "max_position_embeddings": 10, "attention": {"k": 4}}))
        .unwrap();
    let mut parameters = Parameters::new(1, Device::Cpu);
    let encoder = Encoder::new(&mut parameters, &config);
    MaskedLmHead::new(&mut parameters, &config, encoder.word_embeddings());
    parameters
}

/// Saves the model's weights with one of them replaced (None: left out), and tries to load that.
fn load_with(change: impl Fn(&str, &Tensor) -> Option<Tensor>, extra: Option<&str>) -> Result<usize, String> {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("model.safetensors");
    let source = model();
    let mut tensors: Vec<(String, Tensor)> =
        source.iter().filter_map(|p| Some((p.name.clone(), change(&p.name, &p.tensor.detach())?))).collect();
    tensors.extend(extra.map(|name| (name.to_string(), Tensor::zeros([1], (Kind::Float, Device::Cpu)))));
    save(&path, tensors.iter().map(|(n, t)| (n.clone(), t)), Default::default()).unwrap();
    let target = model();
    tch::no_grad(|| target.iter().for_each(|p| drop(p.tensor.shallow_clone().fill_(0.25))));
    let result = WeightsFile::open(&path).unwrap().load_into(&target, Select::All);
    if result.is_err() {
        assert!(target.iter().all(|p| p.tensor.eq(0.25).all().int64_value(&[]) == 1), "a refused file changed the model");
    }
    assert!(target.iter().all(|p| p.tensor.kind() == Kind::Float));
    result.map_err(|e| e.to_string())
}

fn replaced(f: impl Fn(&Tensor) -> Tensor) -> Result<usize, String> {
    load_with(|name, t| Some(if name == KEY { f(t) } else { t.copy() }), None)
}

#[test]
fn a_shape_is_never_broadcast() {
    let message = replaced(|_| Tensor::ones([1, 8], (Kind::Float, Device::Cpu))).unwrap_err();
    assert!(message.contains(KEY) && message.contains("[1, 8]") && message.contains("expected [8, 8]"), "{message}");
}

/// Case 30.
#[test]
fn a_bf16_file_does_not_turn_fp32_masters_into_bf16() {
    let message = replaced(|t| t.to_kind(Kind::BFloat16)).unwrap_err();
    assert!(message.contains(KEY) && message.contains("BF16") && message.contains("expected F32"), "{message}");
}

#[test]
fn missing_and_unexpected_names_are_told() {
    let message = load_with(|name, t| (name != KEY).then(|| t.copy()), None).unwrap_err();
    assert!(message.contains(KEY) && message.contains("missing"), "{message}");
    let message = load_with(|_, t| Some(t.copy()), Some("pooler.weight")).unwrap_err();
    assert!(message.contains("pooler.weight") && message.contains("not in the model"), "{message}");
}

/// Case 28.
#[test]
fn tied_weights_are_saved_once() {
    let parameters = model();
    assert!(parameters.iter().all(|p| !p.name.contains("decoder")));
    assert_eq!(load_with(|_, t| Some(t.copy()), None).unwrap(), parameters.iter().count());
}

/// Case 32.
#[test]
fn hostile_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let hostile: [&[u8]; 4] = [b"", &[0xff; 8], b"\x10\0\0\0\0\0\0\0{\"a\":1}", b"not a safetensors file at all"];
    for bytes in hostile {
        std::fs::write(&path, bytes).unwrap();
        let message = WeightsFile::open(&path).err().unwrap().to_string();
        assert!(message.contains("x.safetensors") && !message.contains('\n'), "{message}");
    }
}

fn damage_weights(lab: &Lab, checkpoint: &str) {
    let path = lab.path(checkpoint).join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
}

/// The one line of a command that says which checkpoint was passed over.
fn passed_over(lab: &Lab, args: &[&str]) -> String {
    let said = lab.ok(args).stderr;
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("passed over a checkpoint")).collect();
    assert_eq!(lines.len(), 1, "{args:?}: {said}");
    lines[0].to_string()
}

#[test]
fn a_damaged_checkpoint_is_named_and_so_is_the_one_that_is_taken() {
    let lab = Lab::new();
    lab.config("c.json", &[("train.keep_checkpoints", json!(9))]);
    lab.ok(&["pretrain", "c.json", "--quiet"]);
    lab.write("train.tsv", common::task_rows(40));
    lab.write("dev.tsv", common::task_rows(12));
    let mut fine = common::tiny();
    fine.as_object_mut().unwrap().remove("model");
    let task = json!({"name": "mine", "train": "train.tsv", "dev": "dev.tsv", "text": "text", "label": "label", "kind": "classification"});
    fine["data"] = json!({"task": task, "sequence_length": 16, "cache_dir": "cache"});
    fine["train"]["keep_checkpoints"] = json!(9);
    fine["run"] = json!({"dir": "fine", "init_from": "run"});
    lab.write("fine.json", fine.to_string());

    // Of a pretrained run the newest is asked for: the one before it is all that there is to say.
    damage_weights(&lab, "run/checkpoints/step-00000006");
    let said = passed_over(&lab, &["finetune", "fine.json", "--quiet"]);
    assert!(said.contains("run/checkpoints/step-00000006: model.safetensors is damaged"), "{said}");
    assert!(said.ends_with("run/checkpoints/step-00000003 is taken"), "{said}");

    // Of a fine-tuned one the best: whether it was the newest or not, the other one's weights are not the best.
    let best = lab.json("fine/summary.json")["best_step"].as_u64().unwrap();
    let other = 3 + 6 - best;
    damage_weights(&lab, &format!("fine/checkpoints/step-{best:08}"));
    lab.write("new.txt", "The ship saw the harbour\n");
    for args in [&["predict", "fine", "new.txt"][..], &["export", "fine", "--out", "out"]] {
        let said = passed_over(&lab, args);
        assert!(said.contains(&format!("fine/checkpoints/step-{best:08}: model.safetensors is damaged")), "{said}");
        let taken = format!("fine/checkpoints/step-{other:08} is taken, whose weights are not the best ones");
        assert!(said.ends_with(&taken), "{said}");
    }
}
