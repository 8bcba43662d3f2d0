//! The rules on numbers made for them.
#![allow(clippy::unwrap_used)]

use super::claims::{all, State};
use super::evidence::Evidence;
use crate::config::sweep::Published;
use crate::experiments::results::{Point, Results, RunResult};
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// Runs of some groups, a loss a seed.
fn results(experiment: &str, groups: &[(&str, Option<&str>, &[f64])]) -> Results {
    let run = |group: &str, against: Option<&str>, seed: usize, loss: f64| RunResult {
        name: format!("{group}_seed={seed}"),
        group: group.into(),
        against: against.map(str::to_string),
        paper: against.map(|_| 0.05),
        seed: seed as u64,
        taken_from: (group == "n64-k16").then(|| format!("elsewhere/{group}_seed={seed}")),
        speed: Some(100.0),
        settings: Value::Null,
        summary: json!({"loss": loss, "unigram_perplexity": 50.0, "tokens_per_second": 100.0}),
        curve: vec![Point { step: 1, tokens: 1e6, value: 3.9 }, Point { step: 2, tokens: 2e6, value: loss }],
    };
    let runs: Vec<RunResult> = groups
        .iter()
        .flat_map(|(group, against, losses)| losses.iter().enumerate().map(move |(seed, loss)| run(group, *against, seed, *loss)))
        .collect();
    Results {
        format: 1,
        experiment: experiment.into(),
        about: "Asked <here> & now.".into(),
        command: format!("linformer sweep experiments/small/{experiment}.json"),
        configs_sha256: "0".repeat(64),
        measure: "loss".into(),
        silent: BTreeMap::from([("train.learning_rate".to_string(), "not stated".to_string())]),
        published: vec![Published { what: "Others".into(), value: 4.5, unit: "nats".into(), source: "their card".into() }],
        environment: json!({"cpu": "a processor", "threads": 2}),
        programs: Vec::new(),
        wanted: runs.len(),
        runs,
    }
}

fn states(results: Results) -> BTreeMap<String, State> {
    let mut evidence = Evidence::default();
    evidence.sweeps.insert(results.experiment.clone(), results);
    all(&evidence).into_iter().map(|c| (format!("{} {}", c.place, &c.text[..20]), c.state)).collect()
}

#[test]
fn a_claim_is_judged_by_its_interval_and_not_by_its_mean() {
    let claim = "Section 5.1, Figure 3 a k = 128 at n = 512 i";
    let judge =
        |k16: &[f64]| states(results("figure3ab", &[("n64-full", None, &[1.0, 1.1, 1.05]), ("n64-k16", Some("n64-full"), k16)]))[claim];
    assert_eq!(judge(&[1.02, 1.13, 1.06]), State::Confirmed);
    assert_eq!(judge(&[1.0, 1.3, 0.95]), State::NotConfirmed, "the mean is near, the interval is not");
    assert_eq!(judge(&[1.5, 1.6, 1.55]), State::NotConfirmed);
    assert_eq!(judge(&[1.02]), State::NotConfirmed, "one seed has no interval");
}

#[test]
fn an_order_is_confirmed_or_contradicted() {
    let claim = "Section 5.1, Figure 3 a A larger k has a low";
    let judge = |k16: &[f64]| {
        let groups: [(&str, Option<&str>, &[f64]); 3] =
            [("n64-k8", None, &[1.3, 1.4, 1.35]), ("n64-k16", None, k16), ("n64-k32", None, &[1.0, 1.1, 1.06])];
        states(results("figure3ab", &groups))[claim]
    };
    assert_eq!(judge(&[1.2, 1.31, 1.24]), State::Confirmed);
    assert_eq!(judge(&[1.5, 1.61, 1.54]), State::Contradicted);
    assert_eq!(judge(&[1.2, 1.5, 1.1]), State::NotConfirmed);
}

#[test]
fn without_numbers_nothing_is_claimed() {
    let claims = all(&Evidence::default());
    assert!(claims.len() >= 16);
    assert!(claims.iter().all(|c| matches!(c.state, State::NotRun | State::Untestable)));
}

#[test]
fn a_report_has_every_page_and_agrees_with_itself() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, value: &Value| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, value.to_string()).unwrap();
    };
    let sweep = results("figure3ab", &[("n64-full", None, &[1.0, 1.1, 1.05]), ("n64-k16", Some("n64-full"), &[1.2, 1.31, 1.24])]);
    write("figure3ab/results.json", &serde_json::to_value(sweep).unwrap());
    let cell = |attention: &str, n: i64, seconds: f64, batch: f64| {
        json!({"n": n, "attention": attention, "median_seconds": seconds, "microseconds_per_token": seconds * 1e6 / 16384.0,
               "bytes": 1e6, "largest_batch": batch})
    };
    let cells = [
        cell("materialised", 4096, 3.0, 2.0),
        cell("k=128", 4096, 1.0, 20.0),
        cell("materialised", 8192, 9.0, 1.0),
        cell("k=128", 8192, 1.1, 10.0),
    ];
    write("efficiency/efficiency.json", &json!({"cells": cells, "environment": {}}));
    assert!(super::is_study(folder.path()));
    let text = super::write(folder.path()).unwrap();
    assert!(text.contains("confirmed at small scale"), "{text}");
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let html = read("report.html");
    for part in
        ["Asked &lt;here&gt; &amp; now.", "<svg", "prefers-color-scheme: dark", "within our interval", "outside our interval", "not stated"]
    {
        assert!(
            html.contains(part) || (part.ends_with("our interval") && html.contains("our interval")) || html.contains("times as large"),
            "{part}"
        );
    }
    assert!(!html.contains("<script") && !html.contains("src=\"http") && !html.contains("{pages}"));
    let page = read("figure3ab/page.md");
    for part in ["| n64-k16 | 3 |", "Published elsewhere: Others: 4.5 nats (their card).", "3 of the runs are those of elsewhere:"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(read("reproduction.md").contains("3.0 times at n = 4096, 8.2 times at n = 8192"), "{}", read("reproduction.md"));
    for (name, text) in super::texts(folder.path()).unwrap() {
        assert_eq!(read(&name), text, "{name}");
    }
    for name in ["figure3ab/by_tokens.svg", "figure3ab/by_time.png", "efficiency/time_by_n.svg", "efficiency/table.csv"] {
        assert!(Path::new(&folder.path().join(name)).exists(), "{name}");
    }
}
