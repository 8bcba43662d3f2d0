//! Weight files that do not fit are refused by name, and the model stays as it was.
#![allow(clippy::unwrap_used, clippy::expect_used)]

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
