//! What goes out, comes back, and is trained on.

use super::*;

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

    let ran = lab.run(&["evaluate", "roberta_classifier"]);
    assert!(ran.code == 2 && ran.stderr.contains("the model comes without rows to score"), "{}", ran.stderr);

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
    // Texts longer than the run's 12 tokens are cut there too, here and in transformers.
    assert_eq!(lab.json("tuned-hf/tokenizer_config.json")["model_max_length"], 12);
    lab.write("long.txt", "the ship sailed and it was cold but calm and the ship sailed on and on\nit was cold\n");
    assert_eq!(lab.ok(&["predict", "tuned", "long.txt"]).stdout, lab.ok(&["predict", "tuned-hf", "long.txt"]).stdout);

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
    assert!(ran.code == 2 && ran.stderr.contains("needs --text FILE"), "{}", ran.stderr);
    for wrong in [
        ["--projected-dimension", "0", "--projection-init", "jl"].as_slice(),
        &["--projected-dimension", "4", "--text", "words.txt", "--fit-sequences", "0"],
    ] {
        let ran = lab.run(&[&["import", text(&fixture("roberta_mlm")), "--out", "x"], wrong].concat());
        assert!(ran.code == 2 && ran.stderr.contains("invalid value '0'"), "{wrong:?}: {}", ran.stderr);
    }
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
