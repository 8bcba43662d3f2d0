//! What TensorBoard gets of a run besides curves: HParams, texts, histograms, pictures; and that a resume keeps them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{events, series, Lab};
use protobuf::Message;
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::path::Path;
use tensorboard_proto::plugin_hparams::HParamsPluginData;
use tensorboard_proto::summary::Summary_Value;

/// The values of a folder's event file under a tag.
fn values(folder: &Path, tag: &str) -> Vec<Summary_Value> {
    let all = events(folder).into_iter().flat_map(|event| event.get_summary().get_value().to_vec());
    all.filter(|value| value.get_tag() == tag).collect()
}

fn hparams(folder: &Path, tag: &str) -> HParamsPluginData {
    let found = values(folder, tag);
    assert_eq!(found.len(), 1, "{tag}");
    let plugin = found[0].get_metadata().get_plugin_data();
    assert_eq!(plugin.get_plugin_name(), "hparams");
    let mut data = HParamsPluginData::new();
    data.merge_from_bytes(plugin.get_content()).unwrap();
    data
}

/// Case 44.
#[test]
fn a_run_is_a_row_of_hparams_with_numbers_as_numbers() {
    let lab = Lab::new();
    lab.config("c.json", &[("model.attention.k", json!([4, 2])), ("model.attention.sharing", json!("headwise"))]);
    lab.ok(&["pretrain", "c.json", "--quiet"]);
    let folder = lab.path("run/tensorboard");
    let data = hparams(&folder, "_hparams_/session_start_info");
    let settings = data.get_session_start_info().get_hparams();
    assert_eq!(settings["train.batch_size"].get_number_value(), 8.0);
    assert_eq!(settings["model.attention.kind"].get_string_value(), "linformer");
    assert_eq!(settings["model.attention.k"].get_string_value(), "[4,2]");
    assert!(settings["data.whole_word_masking"].has_bool_value() && !settings["data.whole_word_masking"].get_bool_value());
    // Without a value, and what says where a run is.
    for absent in ["train.max_epochs", "model.classifier_dropout", "run.dir", "train.log_every"] {
        assert!(!settings.contains_key(absent), "{absent}");
    }
    let end = hparams(&folder, "_hparams_/session_end_info");
    assert_eq!(end.get_session_end_info().get_status(), tensorboard_proto::api::Status::STATUS_SUCCESS);
    // A list of keys beforehand would hide those that other runs have.
    assert!(values(&folder, "_hparams_/experiment").is_empty());
    // One event file in one folder: no run of its own.
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);

    let text = &values(&folder, "text/config")[0];
    assert_eq!(text.get_metadata().get_plugin_data().get_plugin_name(), "text");
    let markdown = String::from_utf8(text.get_tensor().get_string_val()[0].clone()).unwrap();
    let config: Value = serde_json::from_str(markdown.trim_start_matches("```json\n").trim_end_matches("```")).unwrap();
    assert_eq!(config, lab.json("run/config.json"));
    let card = String::from_utf8(values(&folder, "text/model_card")[0].get_tensor().get_string_val()[0].clone()).unwrap();
    let parameters = lab.json("run/summary.json")["model"]["parameters"].to_string();
    assert!(card.contains(&format!("| parameters | {parameters} |")) && card.starts_with("**run**: masked language model"), "{card}");
}

/// The lines without their times, by step.
fn histograms(run: &Path) -> BTreeMap<u64, Value> {
    let text = std::fs::read_to_string(run.join("histograms.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let by_step: BTreeMap<u64, Value> = lines.iter().map(|l| (l["step"].as_u64().unwrap(), l["histograms"].clone())).collect();
    assert_eq!(by_step.len(), lines.len(), "a step twice");
    by_step
}

/// Case 41: what a resume takes back is gone from the file, and no step stands twice.
#[test]
fn histograms_of_projections_and_gradients_survive_a_resume() {
    let lab = Lab::new();
    lab.config(
        "c.json",
        &[("train.checkpoint_every", json!(3)), ("train.histogram_every", json!(2)), ("model.attention.sharing", json!("headwise"))],
    );
    lab.ok(&["pretrain", "c.json", "--quiet"]);
    let run = lab.path("run");
    let (lines, shown) = (histograms(&run), series(&run));
    assert_eq!(lines.keys().copied().collect::<Vec<_>>(), [2, 4, 6]);
    // Every count is a weight; the last checkpoint is the state after the last step, its gradients gone.
    let name = "roberta.encoder.layer.1.attention.self.value_projection";
    for group in ["weights", "gradients"] {
        let histogram = &lines[&4][format!("{group}/{name}")];
        let count: u64 = histogram["counts"].as_array().unwrap().iter().map(|c| c.as_u64().unwrap()).sum();
        assert_eq!((count, histogram["not_finite"].as_u64()), (4 * 16, Some(0)), "{group}: {histogram}");
    }
    assert!(lines[&2]["gradients/roberta.embeddings.word_embeddings.weight"].is_object());
    assert!(lines[&2].as_object().unwrap().keys().filter(|k| k.starts_with("weights/")).all(|k| k.ends_with("_projection")));
    let place =
        |tag: &str, step: i64| shown.iter().position(|(t, s, _)| t == tag && *s == step).unwrap_or_else(|| panic!("no {tag} at {step}"));
    assert!(place(&format!("gradients/{name}"), 4) < place("train/loss", 4));

    // Back to step 3 and on again: the same lines, the same events in the same order.
    lab.ok(&["pretrain", "c.json", "--quiet", "--resume", "run/checkpoints/step-00000003"]);
    assert!(histograms(&run) == lines, "other histograms");
    assert_eq!(series(&run), shown);
    // Asked for no longer, what is there stays.
    lab.ok(&["pretrain", "c.json", "--quiet", "--resume", "run/checkpoints/step-00000003", "train.histogram_every=0"]);
    assert_eq!(histograms(&run).keys().copied().collect::<Vec<_>>(), [2]);
    // Without the key there is no such file.
    lab.ok(&["pretrain", "c.json", "--quiet", "train.histogram_every=0", "run.dir=other"]);
    assert!(!lab.path("other/histograms.jsonl").exists());
    // A fork begins with its parent's.
    lab.ok(&["pretrain", "c.json", "--quiet", "run.dir=fork", "train.learning_rate=2e-3", "--fork", "run/checkpoints/step-00000003"]);
    let fork = histograms(&lab.path("fork"));
    assert!(fork.len() == 3 && fork[&2] == lines[&2] && fork[&6] != lines[&6]);
}

#[test]
fn a_report_is_shown_as_pictures_and_curves_are_exported() {
    let lab = Lab::new();
    for (dir, kind) in [("runs/full", "full"), ("runs/lin", "linformer")] {
        lab.config("c.json", &[]);
        lab.ok(&["pretrain", "c.json", "--quiet", &format!("run.dir={dir}"), &format!("model.attention.kind={kind}")]);
    }
    let before = series(&lab.path("runs/full"));
    lab.ok(&["report", "runs"]);
    let folder = lab.path("runs/tensorboard-report");
    let image = &values(&folder, "report/perplexity_by_k")[0];
    assert_eq!((image.get_image().get_width(), image.get_image().get_height()), (1800, 1080));
    assert_eq!(image.get_image().get_encoded_image_string(), std::fs::read(lab.path("runs/perplexity_by_k.png")).unwrap());
    let table = String::from_utf8(values(&folder, "report/table")[0].get_tensor().get_string_val()[0].clone()).unwrap();
    assert!(
        table.contains("valid. perplexity") && table.contains("linformer") == lab.read("runs/table.txt").contains("linformer"),
        "{table}"
    );
    // A chart that a later report does not draw is no longer shown.
    lab.ok(&["report", "runs/full", "--out", "runs"]);
    assert!(values(&folder, "report/perplexity_by_k").is_empty() && !lab.path("runs/perplexity_by_k.png").exists());
    assert_eq!(values(&folder, "report/perplexity_by_tokens").len(), 1);
    // A report into a run's own folder leaves its curves alone.
    lab.ok(&["report", "runs/full"]);
    assert_eq!(series(&lab.path("runs/full")), before);

    lab.ok(&["tensorboard-export", "runs", "--out", "curves.csv"]);
    let mut expected = Vec::new();
    for run in ["runs/full", "runs/lin"] {
        let scalars = events(&lab.path(run).join("tensorboard")).into_iter().flat_map(|event| {
            let step = event.get_step();
            event
                .get_summary()
                .get_value()
                .iter()
                .filter(|v| v.has_simple_value())
                .map(move |v| (v.get_tag().to_string(), step, v.get_simple_value()))
                .collect::<Vec<_>>()
        });
        expected.extend(scalars.map(|(tag, step, value)| (run.to_string(), tag, step, value)));
    }
    let mut csv = csv::Reader::from_path(lab.path("curves.csv")).unwrap();
    let rows: Vec<(String, String, i64, f64, f64)> = csv.deserialize().map(|row| row.unwrap()).collect();
    let found: Vec<_> = rows.into_iter().map(|(run, tag, step, _, value)| (run, tag, step, value as f32)).collect();
    assert!(!expected.is_empty() && found == expected);
}
