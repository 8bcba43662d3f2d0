//! The row kernels of every instruction set give the same bits: a run is the same on any of them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{metrics, weights_sha256, Lab};
use serde_json::json;
use std::process::Command;

/// Trains with the kernels of one instruction set; None: this processor lacks it.
fn trained_with(lab: &Lab, kernels: &str, precision: &str, width: u64) -> Option<(String, Vec<serde_json::Value>)> {
    let dir = format!("{kernels}-{precision}-{width}");
    let changes = [
        ("run.dir", json!(dir)),
        ("run.threads", json!(1)),
        ("train.precision", json!(precision)),
        ("model.hidden_size", json!(width)),
        ("model.intermediate_size", json!(150)),
        ("model.hidden_dropout_prob", json!(0.2)),
        ("model.attention_probs_dropout_prob", json!(0.1)),
        ("train.label_smoothing", json!(0.1)),
    ];
    lab.config("c.json", &changes);
    let mut command = Command::new(env!("CARGO_BIN_EXE_linformer"));
    command.args(["pretrain", "c.json", "--quiet"]).current_dir(lab.path(".")).env("LINFORMER_KERNELS", kernels);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let used = lab.json(&format!("{dir}/environment.json"))["kernels"].clone();
    (used == kernels).then(|| (weights_sha256(&lab.path(&dir), 6), metrics(&lab.path(&dir))))
}

#[test]
fn every_instruction_set_gives_the_same_run() {
    let lab = Lab::new();
    // Heads of 32 go through our attention's kernels, heads of 40 do not.
    for (precision, width) in [("fp32", 80), ("fp32", 64), ("bf16", 80), ("bf16", 64)] {
        let portable = trained_with(&lab, "portable", precision, width).expect("portable kernels run everywhere");
        for kernels in ["avx2", "avx512"] {
            match trained_with(&lab, kernels, precision, width) {
                Some(run) => assert!(run == portable, "{kernels} {precision} {width}: another run than with portable kernels"),
                None => eprintln!("{kernels}: not on this processor"),
            }
        }
    }
}
