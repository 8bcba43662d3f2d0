//! Adam, AdamW and the losses against `torch.optim` and `torch.nn.functional` (`tests/fixtures/{optimizer,loss}/make.py`).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use linformer::config::{OptimizerKind, Train};
use linformer::model::init::Init;
use linformer::model::loss::{cross_entropy_sum, squared_error_sum};
use linformer::model::Parameters;
use linformer::train::optimizer::Optimizer;
use tch::{Device, Kind, Tensor};

fn read(name: &str) -> impl Fn(&str) -> Tensor {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let tensors = Tensor::read_safetensors(path).unwrap();
    move |name| tensors.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name}")).1.shallow_clone()
}

#[test]
fn ten_steps_with_clipping_equal_pytorch() {
    for (file, kind, decay) in
        [("optimizer/adamw.safetensors", OptimizerKind::AdamW, 0.01), ("optimizer/adam.safetensors", OptimizerKind::Adam, 0.0)]
    {
        let get = read(file);
        let mut parameters = Parameters::new(0, Device::Cpu);
        // The second is in the group without weight decay: a bias by its name.
        for (i, name) in ["a.weight", "b.bias", "c.weight"].iter().enumerate() {
            let start = get(&format!("param.{i}"));
            let tensor = parameters.create(name, &start.size(), Init::Zeros);
            tch::no_grad(|| tensor.shallow_clone().copy_(&start));
        }
        let train = Train {
            optimizer: kind,
            weight_decay: decay,
            adam_beta1: 0.9,
            adam_beta2: 0.98,
            adam_epsilon: 1e-6,
            clip_grad_norm: 1.0,
            ..Train::default()
        };
        let mut optimizer = Optimizer::new(&parameters, &train);
        for step in 1..=10 {
            parameters.forget_gradients().unwrap();
            for (i, p) in parameters.iter().enumerate() {
                // A backward pass that leaves exactly this gradient.
                (&p.tensor * get(&format!("grad.{step}.{i}"))).sum(Kind::Float).backward();
            }
            let norm = optimizer.gradients().unwrap().norm;
            let expected = get("norm").double_value(&[step - 1]);
            assert!((norm / expected - 1.0).abs() < 1e-6, "{file} step {step}: norm {norm}, expected {expected}");
            optimizer.step(get("lr").double_value(&[step - 1]), norm).unwrap();
            for (i, p) in parameters.iter().enumerate() {
                let expected = get(&format!("after.{step}.{i}"));
                let worst = (&p.tensor - &expected).abs().max().double_value(&[]);
                assert!(p.tensor.allclose(&expected, 1e-5, 1e-6, false), "{file} step {step} parameter {i}: {worst:e}");
            }
        }
        let state = optimizer.state();
        for (i, name) in ["a.weight", "b.bias", "c.weight"].iter().enumerate() {
            for moment in ["exp_avg", "exp_avg_sq"] {
                let found = state.iter().find(|(n, _)| *n == format!("{moment}.{name}")).unwrap().1;
                assert!(found.allclose(&get(&format!("{moment}.{i}")), 1e-5, 1e-7, false), "{file} {moment} {name}");
            }
        }
    }
}

#[test]
fn label_smoothing_with_ignored_targets_equals_pytorch() {
    let get = read("loss/cross_entropy.safetensors");
    let targets = get("labels");
    let counted = targets.ne(-100).sum(Kind::Int64).double_value(&[]);
    for smoothing in ["0", "0.1", "0.3"] {
        let logits = get("logits").copy().set_requires_grad(true);
        let loss = cross_entropy_sum(&logits, &targets, smoothing.parse().unwrap()) / counted;
        let expected = get(&format!("loss.{smoothing}"));
        assert!(loss.allclose(&expected, 1e-6, 1e-6, false), "{smoothing}: {loss:?}, expected {expected:?}");
        loss.backward();
        let expected = get(&format!("grad.{smoothing}"));
        let worst = (logits.grad() - &expected).abs().max().double_value(&[]);
        assert!(logits.grad().allclose(&expected, 1e-5, 1e-7, false), "{smoothing}: {worst:e}");
    }
    let mse = squared_error_sum(&get("prediction").view([-1, 1]), &get("target")) / 24.0;
    assert!(mse.allclose(&get("mse"), 1e-6, 1e-6, false));
}

/// In pure bf16 a step of 1e-6 on a weight of 1 would be lost; the masters are fp32.
#[test]
fn a_rate_of_1e_6_still_moves_the_weights() {
    let mut parameters = Parameters::new(0, Device::Cpu);
    let w = parameters.create("w.weight", &[8], Init::Ones);
    let mut optimizer = Optimizer::new(&parameters, &Train::default());
    (w.to_kind(Kind::BFloat16) * 2.0).sum(Kind::Float).backward();
    optimizer.step(1e-6, optimizer.gradients().unwrap().norm).unwrap();
    let moved = (w.ones_like() - &w).abs();
    assert!(moved.min().double_value(&[]) > 5e-7, "{moved:?}");
}

#[test]
fn a_bad_gradient_is_named() {
    let mut parameters = Parameters::new(0, Device::Cpu);
    let a = parameters.create("a.weight", &[2], Init::Ones);
    let b = parameters.create("b.weight", &[2], Init::Zeros);
    let optimizer = Optimizer::new(&parameters, &Train::default());
    (&a + b.reciprocal() * 0.0).sum(Kind::Float).backward();
    let gradients = optimizer.gradients().unwrap();
    assert!(!gradients.norm.is_finite());
    assert_eq!(gradients.first_bad.as_deref(), Some("b.weight"));
}
