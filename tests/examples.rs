//! The examples, run.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

#[path = "../examples/attention.rs"]
mod attention;
#[path = "../examples/encoder.rs"]
mod encoder;
#[path = "../examples/trainer.rs"]
mod trainer;

#[test]
fn attention_alone() {
    let shown = attention::run().unwrap();
    assert_eq!(shown.output, [1, 40, 64]);
    assert_eq!(shown.projection_weights, 2 * 16 * 128);
    assert!(shown.padding_difference < 1e-6, "{:e}", shown.padding_difference);
}

#[test]
fn an_encoder_from_a_config_and_from_a_run() {
    let drawn = encoder::run(None).unwrap();
    assert!(drawn.len() == 5 && drawn.windows(2).all(|w| w[0].1 >= w[1].1), "{drawn:?}");
    let lab = common::Lab::new();
    lab.config("c.json", &[]);
    lab.ok(&["pretrain", "c.json", "--quiet", "train.max_steps=2", "data.sequence_length=32"]);
    let trained = encoder::run(Some(&lab.path("run"))).unwrap();
    assert!(trained.len() == 5 && trained.iter().all(|(_, p)| *p > 0.0 && *p < 1.0), "{trained:?}");
    assert!(encoder::run(Some(&lab.path("text"))).unwrap_err().to_string().contains("config.json"));
}

#[test]
fn a_trainer_on_a_task_of_ones_own_learns_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (run, whole) = (folder.path().join("run"), folder.path().join("whole"));
    let chance = 1.0 / 16.0;
    let learned = trainer::run(&run, 250).unwrap();
    assert!(learned > 3.0 * chance, "{learned}");
    // Done already: the summary is read. Longer: it goes on, and is the run that was never stopped.
    assert_eq!(trainer::run(&run, 250).unwrap(), learned);
    trainer::run(&run, 260).unwrap();
    trainer::run(&whole, 260).unwrap();
    assert_eq!(common::weights_sha256(&run, 260), common::weights_sha256(&whole, 260));
}
