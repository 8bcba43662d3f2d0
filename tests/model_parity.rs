//! The model against numbers of independent programs: Hugging Face's RoBERTa and a plain PyTorch transcription of the
//! paper's formula (`tests/fixtures/*/make.py` made them).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use linformer::config::Model;
use linformer::model::weights::{Select, WeightsFile};
use linformer::model::{ClassificationHead, Encoder, Input, MaskedLmHead, Parameters, Pass};
use serde_json::{json, Value};
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Reduction, Tensor};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Fixtures hold int64 and fp32 tensors.
struct Fixture(Vec<(String, Tensor)>);

impl Fixture {
    fn read(name: &str) -> Self {
        Self(Tensor::read_safetensors(fixture(name)).unwrap())
    }

    fn get(&self, name: &str) -> Tensor {
        self.find(name).unwrap_or_else(|| panic!("no {name} in the fixture"))
    }

    fn find(&self, name: &str) -> Option<Tensor> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, t)| t.shallow_clone())
    }

    /// Copies `weight.NAME` into every parameter; shapes must agree, and none may be left over.
    fn load_into(&self, parameters: &Parameters) {
        let weights: Vec<&str> = self.0.iter().filter_map(|(n, _)| n.strip_prefix("weight.")).collect();
        assert_eq!(weights.len(), parameters.iter().count(), "fixture and model have different weights");
        for p in parameters.iter() {
            let value = self.get(&format!("weight.{}", p.name));
            assert_eq!(value.size(), p.tensor.size(), "{}", p.name);
            tch::no_grad(|| p.tensor.shallow_clone().copy_(&value));
        }
    }
}

fn assert_close(found: &Tensor, expected: &Tensor, rtol: f64, atol: f64, what: &str) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let worst = (found - expected).abs().max().double_value(&[]);
    assert!(found.allclose(expected, rtol, atol, false), "{what}: largest difference {worst:.2e}");
}

/// Every gradient of the fixture, and none where the fixture has none.
fn assert_gradients(parameters: &Parameters, fixture: &Fixture, prefix: &str, rtol: f64, atol: f64, what: &str) {
    for p in parameters.iter() {
        match fixture.find(&format!("{prefix}grad.{}", p.name)) {
            Some(expected) => assert_close(&p.tensor.grad(), &expected, rtol, atol, &format!("{what}: gradient of {}", p.name)),
            None => assert!(!p.trainable, "{what}: {} has no gradient in the fixture", p.name),
        }
    }
}

fn model(keys: Value) -> Model {
    serde_json::from_value(keys).unwrap()
}

fn roberta(backend: &str) -> Model {
    model(json!({"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 14, "attention": {"kind": "full", "backend": backend}}))
}

fn fp32() -> Pass<'static> {
    Pass::evaluation(Kind::Float)
}

#[test]
fn masked_lm_equals_hugging_face() {
    let f = Fixture::read("roberta/mlm.safetensors");
    for backend in ["fused", "libtorch", "materialised"] {
        let mut parameters = Parameters::new(0, Device::Cpu);
        let config = roberta(backend);
        let encoder = Encoder::new(&mut parameters, &config);
        let head = MaskedLmHead::new(&mut parameters, &config, encoder.word_embeddings());
        f.load_into(&parameters);
        let input = Input { ids: f.get("input_ids"), attention_mask: Some(f.get("attention_mask")) };
        let hidden = encoder.forward(&input, &fp32()).unwrap();
        let keep = f.get("attention_mask").ne(0).unsqueeze(-1);
        assert_close(&(&hidden * &keep), &(f.get("hidden") * &keep), 1e-5, 1e-5, "hidden states");
        let labels = f.get("labels").view([-1]);
        let positions = labels.ne(-100).nonzero().squeeze_dim(1);
        let logits = head.forward(&hidden.flatten(0, 1).index_select(0, &positions)).unwrap();
        assert_close(&logits, &f.get("logits").view([-1, 40]).index_select(0, &positions), 1e-5, 1e-5, "logits");
        let targets = labels.index_select(0, &positions);
        let loss = linformer::model::loss::cross_entropy_sum(&logits, &targets, 0.0) / targets.size()[0] as f64;
        assert_close(&loss, &f.get("loss"), 1e-5, 1e-5, "loss");
        let smoothed = linformer::model::loss::cross_entropy_sum(&logits, &targets, 0.1) / targets.size()[0] as f64;
        assert_close(&smoothed, &f.get("loss_smoothed"), 1e-5, 1e-5, "smoothed loss");
        loss.backward();
        assert_gradients(&parameters, &f, "", 1e-5, 1e-5, backend);
    }
}

#[test]
fn classifier_and_regression_equal_hugging_face() {
    for (file, outputs) in [("roberta/classifier.safetensors", 3), ("roberta/regression.safetensors", 1)] {
        let f = Fixture::read(file);
        let mut parameters = Parameters::new(0, Device::Cpu);
        let config = roberta("fused");
        let encoder = Encoder::new(&mut parameters, &config);
        let head = ClassificationHead::new(&mut parameters, &config, outputs);
        f.load_into(&parameters);
        let input = Input { ids: f.get("input_ids"), attention_mask: Some(f.get("attention_mask")) };
        let logits = head.forward(&encoder.forward_first(&input, &fp32()).unwrap(), &fp32()).unwrap();
        assert_close(&logits, &f.get("logits"), 1e-5, 1e-5, file);
        let loss = if outputs == 1 {
            logits.squeeze_dim(1).mse_loss(&f.get("labels"), Reduction::Mean)
        } else {
            linformer::model::loss::cross_entropy_sum(&logits, &f.get("labels"), 0.0) / 3.0
        };
        assert_close(&loss, &f.get("loss"), 1e-5, 1e-5, file);
        loss.backward();
        assert_gradients(&parameters, &f, "", 1e-5, 1e-5, file);
    }
}

const SHARING: [&str; 4] = ["none", "headwise", "key_value", "layerwise"];
const PROJECTION: [&str; 5] = ["learned", "fixed", "mean_pool", "max_pool", "conv"];

fn tiny(sharing: &str, projection: &str, order: &str, backend: &str) -> Model {
    model(json!({"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
        "max_position_embeddings": 14,
        "attention": {"k": 4, "sharing": sharing, "projection": projection, "order": order, "backend": backend}}))
}

/// Orders that a mode allows: see `model.attention.order`.
fn orders(sharing: &str, projection: &str) -> Vec<&'static str> {
    match (sharing, projection) {
        ("none", _) => vec!["project_first"],
        (_, "max_pool") => vec!["compress_first"],
        _ => vec!["compress_first", "project_first"],
    }
}

/// Each sharing x projection x order x backend, without padding, with padding, and shorter than n.
#[test]
fn linformer_equals_the_plain_formula() {
    for (sharing, projection) in SHARING.iter().flat_map(|s| PROJECTION.map(|p| (*s, p))) {
        let f = Fixture::read(&format!("linformer/{sharing}_{projection}.safetensors"));
        for (order, backend) in orders(sharing, projection).into_iter().flat_map(|o| ["fused", "libtorch", "materialised"].map(|b| (o, b)))
        {
            let mut parameters = Parameters::new(0, Device::Cpu);
            let encoder = Encoder::new(&mut parameters, &tiny(sharing, projection, order, backend));
            f.load_into(&parameters);
            for case in ["full", "pad", "short"] {
                let what = format!("{sharing} {projection} {order} {backend} {case}");
                parameters.forget_gradients().unwrap();
                let mask = f.get(&format!("{case}.attention_mask"));
                let padded = mask.min().int64_value(&[]) == 0;
                let input = Input { ids: f.get(&format!("{case}.input_ids")), attention_mask: padded.then(|| mask.shallow_clone()) };
                let hidden = encoder.forward(&input, &fp32()).unwrap();
                let keep = mask.ne(0).unsqueeze(-1);
                assert_close(&(&hidden * &keep), &(f.get(&format!("{case}.hidden")) * &keep), 1e-5, 1e-5, &what);
                (hidden * f.get(&format!("{case}.cotangent"))).sum(Kind::Float).backward();
                // Gradients reach 30 in these fixtures, whose weights are large on purpose.
                assert_gradients(&parameters, &f, &format!("{case}."), 1e-5, 5e-5, &what);
            }
        }
    }
}

#[test]
fn a_file_of_our_own_is_what_was_saved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let config = tiny("none", "learned", "auto", "fused");
    let mut a = Parameters::new(1, Device::Cpu);
    Encoder::new(&mut a, &config);
    linformer::model::weights::save(&path, a.iter().map(|p| (p.name.clone(), &p.tensor)), Default::default()).unwrap();
    let mut b = Parameters::new(2, Device::Cpu);
    Encoder::new(&mut b, &config);
    let taken = WeightsFile::open(&path).unwrap().load_into(&b, Select::All).unwrap();
    assert_eq!(taken, a.iter().count());
    a.iter().zip(b.iter()).for_each(|(a, b)| assert!(a.tensor.equal(&b.tensor) && b.tensor.kind() == Kind::Float, "{}", a.name));
}
