//! What would be computed otherwise, or cannot be read, is refused with the reason.

use super::*;

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

/// A tensor that is missing in the first layer alone makes no other model of it.
#[test]
fn half_a_compression_is_refused() {
    let lab = Lab::new();
    for (name, missing) in [("fairseq_headwise", "compress_k"), ("fairseq_headwise", "compress_v"), ("fairseq_key_value", "compress_k")] {
        copy(&lab, name, "half");
        let file = lab.path("half/model.safetensors");
        let all = tensors(&file);
        let first = all.iter().find(|(n, _)| n.contains(&format!("layers.0.self_attn.{missing}.weight"))).unwrap().0.clone();
        let rest: Vec<&(String, Tensor)> = all.iter().filter(|(n, _)| *n != first).collect();
        assert_eq!(rest.len() + 1, all.len());
        let named: Vec<(&str, &Tensor)> = rest.iter().map(|(n, t)| (n.as_str(), t)).collect();
        Tensor::write_safetensors(&named, &file).unwrap();
        let message = take(lab.path("half"), From::Fairseq).err().expect("it was taken");
        assert!(message.contains(&format!("layers.0.self_attn.{missing}")), "{name}: {message}");
    }
}

#[test]
fn labels_that_break_a_line_are_refused() {
    let lab = Lab::new();
    for label in ["a\tb", "x\ny", ""] {
        changed(&lab, "roberta_classifier", "labels", &[("id2label", json!({"0": label, "1": "b", "2": "c"}))]);
        assert!(refusal(&lab, "labels").contains("id2label"));
    }
}
