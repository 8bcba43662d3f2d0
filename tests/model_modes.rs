//! Properties of every mode: gradients reach every weight, padding never matters, orders agree, counts are the paper's.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use linformer::config::Model;
use linformer::model::size::{distinct_projections, forward_flops_per_token, parameters_by_part, Head};
use linformer::model::{ClassificationHead, Encoder, Input, MaskedLmHead, Parameters, Pass};
use serde_json::{json, Value};
use tch::{Device, Kind, Tensor};

const SHARING: [&str; 4] = ["none", "headwise", "key_value", "layerwise"];
const PROJECTION: [&str; 5] = ["learned", "fixed", "mean_pool", "max_pool", "conv"];

fn model(attention: Value) -> Model {
    serde_json::from_value(json!({"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 18, "attention": attention}))
    .unwrap()
}

fn build(config: &Model) -> (Parameters, Encoder) {
    let mut parameters = Parameters::new(3, Device::Cpu);
    let encoder = Encoder::new(&mut parameters, config);
    (parameters, encoder)
}

/// Ids 5..50 without padding.
fn ids(batch: i64, length: i64) -> Tensor {
    (Tensor::arange(batch * length, (Kind::Int64, Device::Cpu)) * 7).remainder(45).view([batch, length]) + 5
}

fn every_mode() -> Vec<Value> {
    let mut modes: Vec<Value> = SHARING.iter().flat_map(|s| PROJECTION.map(|p| json!({"k": 4, "sharing": s, "projection": p}))).collect();
    // k that does not divide n, per layer, and per layer and head.
    modes.extend(PROJECTION.map(|p| json!({"k": 5, "sharing": "key_value", "projection": p})));
    modes.extend(PROJECTION.map(|p| json!({"k": [3, 7], "sharing": "headwise", "projection": p})));
    modes.extend(PROJECTION.map(|p| json!({"k": [[3, 6], [5, 2]], "sharing": "none", "projection": p})));
    modes.extend(["none", "headwise", "key_value"].map(|s| json!({"k": 4, "sharing": s, "bias": "before_compression"})));
    modes.push(json!({"kind": "full"}));
    modes
}

#[test]
fn every_trainable_weight_gets_a_gradient_in_every_mode() {
    for attention in every_mode() {
        let config = model(attention.clone());
        let (mut parameters, encoder) = build(&config);
        let mlm = MaskedLmHead::new(&mut parameters, &config, encoder.word_embeddings());
        let classifier = ClassificationHead::new(&mut parameters, &config, 3);
        let pass = Pass::training(Kind::Float, 1, 1, 0);
        let hidden = encoder.forward(&Input { ids: ids(3, 16), attention_mask: None }, &pass).unwrap();
        let logits = mlm.forward(&hidden.flatten(0, 1).index_select(0, &Tensor::from_slice(&[1i64, 9, 30]))).unwrap();
        let loss = logits.square().mean(Kind::Float) + classifier.forward(&hidden, &pass).unwrap().square().sum(Kind::Float);
        loss.backward();
        for p in parameters.trainable() {
            let gradient = p.tensor.grad();
            assert!(gradient.defined(), "{attention}: {} has no gradient", p.name);
            assert!(gradient.isfinite().all().int64_value(&[]) == 1, "{attention}: {} is not finite", p.name);
            // A constant added to all keys shifts every score of a query alike: the softmax does not see the key's bias.
            if !p.name.ends_with("self.key.bias") {
                assert!(gradient.abs().max().double_value(&[]) > 0.0, "{attention}: {} has a zero gradient", p.name);
            }
        }
    }
}

#[test]
fn outputs_at_real_tokens_do_not_move_when_padding_is_added() {
    for attention in every_mode() {
        let (_, encoder) = build(&model(attention.clone()));
        let pass = Pass::evaluation(Kind::Float);
        for length in [1, 3, 7, 11] {
            let text = ids(2, length);
            let alone = encoder.forward(&Input { ids: text.shallow_clone(), attention_mask: None }, &pass).unwrap();
            for padded_to in [length + 1, 16] {
                let extra = padded_to - length;
                let input = Input {
                    ids: Tensor::cat(&[text.shallow_clone(), Tensor::ones([2, extra], (Kind::Int64, Device::Cpu))], 1),
                    attention_mask: Some(Tensor::cat(&[text.ones_like(), Tensor::zeros([2, extra], (Kind::Int64, Device::Cpu))], 1)),
                };
                let padded = encoder.forward(&input, &pass).unwrap().narrow(1, 0, length);
                let worst = (&alone - &padded).abs().max().double_value(&[]);
                assert!(worst < 1e-5, "{attention}, length {length} padded to {padded_to}: {worst:e}");
            }
        }
    }
}

/// What the paper's released code does, and why it is not our default.
#[test]
fn padding_blind_attention_is_ours_without_padding_and_moves_with_it() {
    let outputs = |padding: &str, length: i64| {
        let (_, encoder) = build(&model(json!({"k": 4, "sharing": "key_value", "init": "jl", "padding": padding})));
        let text = ids(2, 10).constant_pad_nd([0, length - 10]);
        let mask = Tensor::ones([2, 10], (Kind::Int64, Device::Cpu)).constant_pad_nd([0, length - 10]);
        let input = Input { ids: &text + mask.logical_not().to_kind(Kind::Int64), attention_mask: Some(mask) };
        encoder.forward(&input, &Pass::evaluation(Kind::Float)).unwrap().narrow(1, 0, 10)
    };
    let distance = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
    assert!(distance(&outputs("zeroed", 10), &outputs("blind", 10)) < 1e-6);
    assert!(distance(&outputs("zeroed", 10), &outputs("zeroed", 16)) < 1e-5);
    assert!(distance(&outputs("blind", 10), &outputs("blind", 16)) > 1e-4);
}

/// E (X W) + b and E (X W + b): one function while the biases are zero, and not after.
#[test]
fn where_the_bias_stands_matters_once_it_is_not_zero() {
    let outputs = |bias: &str, value: f64| {
        let (parameters, encoder) = build(&model(json!({"k": 4, "sharing": "headwise", "init": "jl", "bias": bias})));
        tch::no_grad(|| {
            for p in parameters.iter().filter(|p| p.name.ends_with("self.value.bias")) {
                let _ = p.tensor.shallow_clone().fill_(value);
            }
        });
        encoder.forward(&Input { ids: ids(2, 16), attention_mask: None }, &Pass::evaluation(Kind::Float)).unwrap()
    };
    let distance = |value| (outputs("after_compression", value) - outputs("before_compression", value)).abs().max().double_value(&[]);
    assert!(distance(0.0) < 1e-5, "{}", distance(0.0));
    assert!(distance(0.5) > 1e-3, "{}", distance(0.5));
}

#[test]
fn compress_first_and_project_first_are_one_function() {
    for (sharing, projection) in
        ["headwise", "key_value", "layerwise"].iter().flat_map(|s| ["learned", "fixed", "mean_pool", "conv"].map(|p| (*s, p)))
    {
        let run = |order: &str| {
            let (parameters, encoder) = build(&model(json!({"k": 5, "sharing": sharing, "projection": projection, "order": order})));
            // A bias that would show if it were mixed into the compression.
            parameters
                .iter()
                .filter(|p| p.name.ends_with("self.value.bias"))
                .for_each(|p| tch::no_grad(|| drop(p.tensor.shallow_clone().fill_(0.7))));
            let mask = Tensor::from_slice(&[1i64; 16]).view([1, 16]);
            encoder.forward(&Input { ids: ids(1, 16), attention_mask: Some(mask) }, &Pass::evaluation(Kind::Float)).unwrap()
        };
        assert!(run("compress_first").allclose(&run("project_first"), 1e-5, 1e-5, false), "{sharing} {projection}");
    }
}

#[test]
fn a_12_x_12_model_has_288_24_12_and_1_projections() {
    for (sharing, expected) in SHARING.iter().zip([288, 24, 12, 1]) {
        for projection in ["learned", "conv"] {
            let config: Model = serde_json::from_value(
                json!({"vocab_size": 100, "max_position_embeddings": 514, "attention": {"sharing": sharing, "projection": projection}}),
            )
            .unwrap();
            assert_eq!(distinct_projections(&config), expected, "{sharing} {projection}");
        }
    }
}

/// fairseq's linformer_roberta_base (n 512, k 128, headwise) has 124,697,433 weights for 50,265 tokens without its
/// projections: RoBERTa-base with the MLM head, as Hugging Face counts it.
#[test]
fn roberta_base_has_its_known_size() {
    let config: Model = serde_json::from_value(json!({"vocab_size": 50265, "max_position_embeddings": 514})).unwrap();
    let parts = parameters_by_part(&config, Head::MaskedLm);
    let of = |name: &str| parts.iter().find(|(part, _)| *part == name).unwrap().1;
    assert_eq!(of("projections E, F"), 24 * 128 * 512);
    assert_eq!(of("word embeddings"), 50265 * 768);
    assert_eq!(parts.iter().map(|(_, n)| n).sum::<i64>() - of("projections E, F"), 124_697_433);
}

#[test]
fn flops_grow_with_n_for_full_attention_alone() {
    let per_token = |kind: &str, n: i64| {
        let config: Model = serde_json::from_value(
            json!({"vocab_size": 1000, "max_position_embeddings": n + 2, "attention": {"kind": kind, "sharing": "layerwise"}}),
        )
        .unwrap();
        forward_flops_per_token(&config, n, 0.0, 1.0)
    };
    assert!(per_token("full", 8192) > 2.0 * per_token("full", 512));
    assert!(per_token("linformer", 8192) <= per_token("linformer", 512));
}

#[test]
fn fixed_projections_stay_and_learned_ones_move() {
    for (projection, moves) in [("fixed", false), ("learned", true)] {
        let (parameters, encoder) = build(&model(json!({"k": 4, "sharing": "key_value", "projection": projection})));
        let train = linformer::config::Train { learning_rate: 0.1, weight_decay: 0.1, ..Default::default() };
        let mut optimizer = linformer::train::optimizer::Optimizer::new(&parameters, &train);
        let name = "roberta.encoder.layer.0.attention.self.key_projection";
        let before = parameters.get(name).unwrap().tensor.detach().copy();
        encoder
            .forward(&Input { ids: ids(1, 16), attention_mask: None }, &Pass::evaluation(Kind::Float))
            .unwrap()
            .square()
            .select(2, 0)
            .sum(Kind::Float)
            .backward();
        let norm = optimizer.gradients().unwrap().norm;
        optimizer.step(0.1, norm).unwrap();
        assert_eq!(!parameters.get(name).unwrap().tensor.equal(&before), moves, "{projection}");
    }
}

#[test]
fn jl_projections_have_variance_one_over_k() {
    let config: Model = serde_json::from_value(
        json!({"vocab_size": 10, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
        "max_position_embeddings": 514, "attention": {"k": 64, "init": "jl", "sharing": "layerwise"}}),
    )
    .unwrap();
    let (parameters, _) = build(&config);
    let e = &parameters.get("roberta.encoder.shared_projection").unwrap().tensor;
    assert_eq!(e.size(), [64, 512]);
    let variance = e.var(true).double_value(&[]);
    // 5 standard deviations of a sample variance.
    assert!((variance * 64.0 - 1.0).abs() < 5.0 * (2.0 / (64.0 * 512.0f64)).sqrt(), "{variance}");
}

#[test]
fn bf16_is_near_fp32_and_leaves_masters_alone() {
    for attention in
        [json!({"kind": "full"}), json!({"k": 4, "sharing": "key_value"}), json!({"k": 4, "sharing": "none", "projection": "max_pool"})]
    {
        let (parameters, encoder) = build(&model(attention.clone()));
        let run = |kind| encoder.forward(&Input { ids: ids(2, 16), attention_mask: None }, &Pass::evaluation(kind)).unwrap();
        let (fp32, bf16) = (run(Kind::Float), run(Kind::BFloat16));
        assert_eq!(bf16.kind(), Kind::BFloat16);
        assert!(bf16.to_kind(Kind::Float).allclose(&fp32, 0.05, 0.05, false), "{attention}");
        bf16.to_kind(Kind::Float).square().select(2, 0).sum(Kind::Float).backward();
        assert!(parameters.trainable().all(|p| p.tensor.kind() == Kind::Float && p.tensor.grad().kind() == Kind::Float));
    }
}

#[test]
fn pre_norm_trains_too() {
    let mut config = model(json!({"k": 4}));
    config.norm = linformer::config::Norm::Pre;
    let (parameters, encoder) = build(&config);
    assert!(parameters.get("roberta.encoder.LayerNorm.weight").is_some());
    encoder
        .forward(&Input { ids: ids(1, 16), attention_mask: None }, &Pass::evaluation(Kind::Float))
        .unwrap()
        .select(2, 0)
        .square()
        .sum(Kind::Float)
        .backward();
    assert!(parameters.trainable().filter(|p| !p.name.ends_with("key.bias")).all(|p| p.tensor.grad().abs().max().double_value(&[]) > 0.0));
}

#[test]
fn dropout_is_a_function_of_seed_and_step_and_not_of_the_cut() {
    let (_, encoder) = build(&model(json!({"k": 4, "sharing": "key_value"})));
    let run = |first: i64, rows: i64, seed, step| {
        let input = Input { ids: ids(4, 16).narrow(0, first, rows), attention_mask: None };
        encoder.forward(&input, &Pass::training(Kind::Float, seed, step, first)).unwrap()
    };
    let whole = run(0, 4, 1, 1);
    assert!(whole.equal(&run(0, 4, 1, 1)));
    assert!(!whole.equal(&run(0, 4, 1, 2)) && !whole.equal(&run(0, 4, 2, 1)));
    assert!(whole.narrow(0, 2, 2).allclose(&run(2, 2, 1, 1), 1e-6, 1e-6, false));
}

/// The reference's gradients in fp64 beside central differences of its loss, along a direction of every weight: what holds the
/// reference, as the reference holds the fused blocks.
#[test]
fn gradients_are_the_slopes_of_the_loss_in_fp64_in_every_mode() {
    const STEP: f64 = 1e-6;
    let cpu = (Kind::Double, Device::Cpu);
    let wave =
        |shape: &[i64], seed: f64| ((Tensor::arange(shape.iter().product::<i64>(), cpu) * 0.7391 + seed).sin() * 2.1).view(shape).sin();
    let mut modes: Vec<(Value, &str)> = every_mode().into_iter().map(|m| (m, "post")).collect();
    modes.extend([json!({"k": 4, "sharing": "none"}), json!({"kind": "full", "backend": "materialised"})].map(|m| (m, "pre")));
    modes.push((json!({"k": 4, "backend": "materialised"}), "post"));
    for ((attention, norm), padded) in modes.iter().flat_map(|m| [(m, false), (m, true)]) {
        let mut config = model(attention.clone());
        config.norm = serde_json::from_value(json!(norm)).unwrap();
        config.backend = linformer::config::Backend::Reference;
        let (mut parameters, encoder) = build(&config);
        let head = MaskedLmHead::new(&mut parameters, &config, encoder.word_embeddings());
        for (i, p) in parameters.iter().enumerate() {
            // Away from zeros and ones; wide enough for attention that is not even.
            let value = p.tensor.detach().to_kind(Kind::Double) * 2.0 + wave(&p.tensor.size(), i as f64) * 0.2;
            p.tensor.shallow_clone().set_data(&value);
        }
        let mask = Tensor::arange(16, (Kind::Int64, Device::Cpu)).lt_tensor(&Tensor::from_slice(&[11i64, 16]).unsqueeze(1));
        let input = Input { ids: ids(2, 16), attention_mask: padded.then(|| mask.to_kind(Kind::Int64)) };
        let rows = Tensor::from_slice(&[1i64, 9, 20, 31]);
        let loss = || {
            let pass = Pass::evaluation(Kind::Double);
            let hidden = encoder.forward(&input, &pass).unwrap().flatten(0, 1).index_select(0, &rows);
            head.loss(&hidden, &Tensor::from_slice(&[7i64, 8, -100, 9]), 0.1, &pass).unwrap()
        };
        loss().backward();
        let _guard = tch::no_grad_guard();
        for (i, p) in parameters.trainable().enumerate() {
            let direction = wave(&p.tensor.size(), 0.3 * i as f64 + 1.0);
            let moved = |by: f64| {
                let _ = p.tensor.shallow_clone().g_add_(&(&direction * by));
                loss().double_value(&[])
            };
            let (above, below) = (moved(STEP), moved(-2.0 * STEP));
            moved(STEP);
            let slope = (above - below) / (2.0 * STEP);
            let gradient = (p.tensor.grad() * &direction).sum(Kind::Double).double_value(&[]);
            let what = format!("{attention} {norm} padded {padded}: {}", p.name);
            let scale = p.tensor.grad().norm().double_value(&[]) * direction.norm().double_value(&[]);
            assert!((slope - gradient).abs() < 1e-6 * scale.max(0.1), "{what}: {slope} by differences, {gradient} of {scale}");
            assert!(gradient.abs() > 1e-8 || p.name.ends_with("key.bias"), "{what}: {gradient:e}");
        }
    }
}

/// Loss, and the gradient of every weight, of a masked LM in training with dropout, that of attention's probabilities with `p`.
/// `chosen`: the last layer is asked for the predicted rows alone.
fn loss_and_gradients(
    attention: &Value,
    backend: &str,
    kind: Kind,
    padded: bool,
    norm: &str,
    p: f64,
    chosen: bool,
) -> (f64, Vec<(String, Tensor)>) {
    let mut config: Model =
        serde_json::from_value(json!({"vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 96, "max_position_embeddings": 42, "attention_probs_dropout_prob": p, "norm": norm, "backend": backend,
        "weight_init": "inverse_sqrt_width", "attention": attention}))
        .unwrap();
    config.hidden_dropout_prob = 0.1;
    let (mut parameters, encoder) = build(&config);
    let head = MaskedLmHead::new(&mut parameters, &config, encoder.word_embeddings());
    let pass = Pass::training(kind, 1, 7, 3);
    let mask = padded.then(|| {
        Tensor::arange(40, (Kind::Int64, Device::Cpu)).lt_tensor(&Tensor::from_slice(&[29i64, 40, 3]).unsqueeze(1)).to_kind(Kind::Int64)
    });
    let input = Input { ids: ids(3, 40), attention_mask: mask };
    let rows = Tensor::from_slice(&[1i64, 9, 30, 81]);
    let hidden = match chosen {
        true => encoder.forward_at(&input, &rows, &pass).unwrap(),
        false => encoder.forward(&input, &pass).unwrap().flatten(0, 1).index_select(0, &rows),
    };
    let loss = head.loss(&hidden, &Tensor::from_slice(&[7i64, 8, -100, 9]), 0.1, &pass).unwrap() / 3.0;
    loss.backward();
    let gradients = parameters.trainable().map(|p| (p.name.clone(), p.tensor.grad().copy())).collect();
    (loss.double_value(&[]), gradients)
}

#[test]
fn the_fused_blocks_are_the_reference_in_every_mode() {
    let mut modes: Vec<Value> = SHARING.iter().flat_map(|s| PROJECTION.map(|p| json!({"k": 16, "sharing": s, "projection": p}))).collect();
    modes.push(json!({"kind": "full"}));
    modes.push(json!({"k": [[16, 6], [5, 16]], "sharing": "none"}));
    modes.push(json!({"k": 5, "sharing": "headwise", "backend": "materialised"}));
    for (attention, padded) in modes.iter().flat_map(|m| [(m, false), (m, true)]) {
        for (kind, tolerance, norm) in [(Kind::Float, 2e-5, "post"), (Kind::Float, 2e-5, "pre"), (Kind::BFloat16, 0.06, "post")] {
            for (p, chosen) in [(0.1, false), (0.1, true), (0.0, true)] {
                let (fused, reference) = (
                    loss_and_gradients(attention, "fused", kind, padded, norm, p, chosen),
                    loss_and_gradients(attention, "reference", kind, padded, norm, p, false),
                );
                let what = format!("{attention} {kind:?} {norm} padded {padded} p {p} chosen {chosen}");
                assert!((fused.0 - reference.0).abs() < tolerance * reference.0, "{what}: {} {}", fused.0, reference.0);
                for ((name, a), (_, b)) in fused.1.iter().zip(&reference.1) {
                    // Per weight, against its own size; what is zero but for rounding (the key's bias) against the largest.
                    let scale = b.abs().max().double_value(&[]).max(1e-3);
                    let worst = (a - b).abs().max().double_value(&[]);
                    assert!(worst < 5.0 * tolerance * scale, "{what}: {name} differs by {worst:e} of {scale:e}");
                }
            }
        }
    }
}

/// Without gradients rows are taken some at a time, sequences of several lengths together: no layer is any other for it.
#[test]
fn inference_in_blocks_of_rows_is_the_reference() {
    let build_for = |attention: &Value, n: i64, backend: &str| {
        let config: Model = serde_json::from_value(json!({"vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 96, "max_position_embeddings": n + 2, "backend": backend,
            "weight_init": "inverse_sqrt_width", "attention": attention}))
        .unwrap();
        build(&config).1
    };
    let modes = [
        json!({"k": 16}),
        json!({"k": 16, "sharing": "none"}),
        json!({"k": 16, "sharing": "key_value", "projection": "max_pool"}),
        json!({"kind": "full"}),
        json!({"kind": "full", "backend": "materialised"}),
    ];
    let _guard = tch::no_grad_guard();
    for (attention, (batch, n)) in modes.iter().flat_map(|m| [(m, (5, 700)), (m, (2, 2500))]) {
        let mask = Tensor::arange(n, (Kind::Int64, Device::Cpu))
            .lt_tensor(&Tensor::from_slice(&[n - 3, n, 9, n / 2, n][..batch as usize]).unsqueeze(1))
            .to_kind(Kind::Int64);
        let rows = mask.view(-1).nonzero().squeeze_dim(1);
        for padded in [false, true] {
            let input = Input { ids: ids(batch, n), attention_mask: padded.then(|| mask.shallow_clone()) };
            let pass = Pass::evaluation(Kind::Float);
            let real = |hidden: Tensor| hidden.flatten(0, 1).index_select(0, &rows);
            let expected = real(build_for(attention, n, "reference").forward(&input, &pass).unwrap());
            let fused = build_for(attention, n, "fused");
            for (what, found) in
                [("all", real(fused.forward(&input, &pass).unwrap())), ("at", fused.forward_at(&input, &rows, &pass).unwrap())]
            {
                let worst = (found - &expected).abs().max().double_value(&[]);
                assert!(worst < 1e-4, "{attention} {batch} x {n} padded {padded}, {what}: {worst:e}");
            }
        }
    }
}
