//! Timed sums, the model of step time, and sweeps whose runs are independent.

use super::*;

#[test]
fn sums_between_ranks_are_timed() {
    let lab = Lab::new();
    let ran = launch(&lab, 3, &["collectives", "--mib", "1", "--repetitions", "3"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let lines: Vec<Value> = ran.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.iter().map(|l| l["bytes"].as_f64().unwrap()).collect::<Vec<_>>(), [4096.0, 16384.0, 65536.0, 262144.0, 1048576.0]);
    assert!(lines.iter().all(|l| l["ranks"] == 3 && l["seconds"].as_f64().unwrap() > 0.0));
}

/// From timed sums and steps to tables, sentences and plots; the numbers are this busy machine's and are not judged.
#[test]
fn a_scaling_report_holds_the_model_against_real_ranks() {
    let lab = Lab::new();
    lab.config("c.json", &[("train.max_steps", json!(12)), ("train.log_every", json!(2)), ("train.eval_every", json!(0))]);
    for ranks in [2, 3] {
        let ran = launch(&lab, ranks, &["collectives", "--mib", "1", "--repetitions", "3"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        lab.write(&format!("sums-{ranks}.jsonl"), ran.stdout);
        let (dir, batch) = (format!("run.dir=steps{ranks}"), format!("train.batch_size={}", 8 * ranks));
        launched(&lab, ranks, &["pretrain", "c.json", &dir, &batch, "--quiet"]);
    }
    let scaling = |rest: &[&str]| {
        let args = ["scaling", "c.json", "--peak-tflops", "1", "--fit-on", "2", "--sums", "sums-2.jsonl", "--sums", "sums-3.jsonl"];
        lab.run(&[&args[..], rest].concat())
    };
    let refused = scaling(&["--run", "steps3"]);
    assert!(refused.code == 1 && refused.stderr.contains("expected a run of one rank"), "{}", refused.stderr);
    lab.ok(&["pretrain", "c.json", "run.dir=steps1", "--quiet"]);
    let made = scaling(&["--run", "steps1", "--run", "steps3", "--out", "results/scaling"]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    let record = lab.json("results/scaling/scaling.json");
    assert_eq!(record["measured"]["steps"].as_array().unwrap().iter().map(|s| &s["ranks"]).collect::<Vec<_>>(), [1, 3]);
    for sentence in ["fitted on the sums of 2 ranks", "Sums of 3 ranks (not fitted)", "A training step of 3 ranks", "ZeRO-1 at 64 ranks"] {
        assert!(made.stdout.contains(sentence), "{sentence}: {}", made.stdout);
    }
    // Four networks of eleven numbers of ranks; more ranks are never more efficient.
    let rows: Vec<&str> = made.stdout.lines().filter(|l| l.starts_with("Ethernet 10 ")).collect();
    assert_eq!(rows.len(), 11, "{}", made.stdout);
    for plot in ["efficiency", "speed", "sums", "steps"] {
        assert!(lab.read_bytes(&format!("results/scaling/{plot}.png")).starts_with(b"\x89PNG"));
        assert!(lab.read(&format!("results/scaling/{plot}.svg")).contains("<svg"));
    }
    // The report makes the page from the same record.
    lab.ok(&["report", "results"]);
    assert!(lab.read("results/scaling/page.md").contains("A training step of 3 ranks"));
}

#[test]
fn a_sweep_makes_several_runs_at_a_time_or_is_an_array() {
    let lab = Lab::new();
    lab.config("c.json", &[]);
    lab.write("s.json", json!({"base": "c.json", "dir": "sweep", "grid": {"train.seed": [0, 1, 2]}}).to_string());
    let script = lab.ok(&["sweep", "s.json", "--emit-slurm", "train.max_steps=4"]).stdout;
    assert!(script.contains("#SBATCH --array=0-2\n") && script.contains("'train.max_steps=4' --only \"$SLURM_ARRAY_TASK_ID\""), "{script}");
    // As a job of the array: one run, whatever the variables of its step say.
    let job = lab
        .command(&["sweep", "s.json", "--only", "1", "train.max_steps=4"])
        .env("SLURM_STEP_NUM_TASKS", "1")
        .env("SLURM_PROCID", "0")
        .output();
    let job = ran(job.unwrap());
    assert_eq!(job.code, 0, "{}", job.stderr);
    assert!(lab.path("sweep/seed=1/summary.json").exists() && !lab.path("sweep/seed=0").exists());
    assert_eq!(lab.run(&["sweep", "s.json", "--only", "3"]).code, 1);
    let all = lab.ok(&["sweep", "s.json", "--at-once", "2", "train.max_steps=4"]);
    assert!(all.stdout.lines().nth(2).unwrap().starts_with("run       3 "), "{}", all.stdout);
    let one = lab.ok(&["pretrain", "c.json", "run.dir=alone", "train.seed=2", "train.max_steps=4", "--quiet"]);
    assert_eq!(weights_sha256(&lab.path("alone"), 4), weights_sha256(&lab.path("sweep/seed=2"), 4), "{}", one.stderr);
}
