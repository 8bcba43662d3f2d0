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
        rates: Default::default(),
        left_out: Vec::new(),
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
fn the_longest_training_decides() {
    let claim = |evidence: &Evidence| all(evidence).into_iter().find(|c| c.text.starts_with("k = 128 at n = 512")).unwrap();
    let mut evidence = Evidence::default();
    let mut add = |folder: &str, (full, k16): (&str, &str), values: &[f64]| {
        evidence.sweeps.insert(folder.into(), results(folder, &[(full, None, &[1.0, 1.1, 1.05]), (k16, Some(full), values)]));
        claim(&evidence)
    };
    let short = add("figure3ab", ("n64-full", "n64-k16"), &[1.5, 1.63, 1.55]);
    assert_eq!((short.state, short.folder.as_str()), (State::NotConfirmed, "figure3ab"));
    let long = add("figure3a-long", ("full", "k16"), &[1.02, 1.13, 1.06]);
    assert_eq!((long.state, long.folder.as_str()), (State::Confirmed, "figure3a-long"));
    assert!(long.evidence.contains("n64-k16 has 0.5100 nats more") && long.evidence.contains("k16 from full"), "{}", long.evidence);
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

/// The claim whose text starts so, on records alone.
fn judged(records: &[(&str, Value)], text: &str) -> (State, String) {
    let mut evidence = Evidence::default();
    for (kind, value) in records {
        evidence.records.insert(kind.to_string(), (kind.split('-').next().unwrap().to_string(), value.clone()));
    }
    let claim = all(&evidence).into_iter().find(|c| c.text.starts_with(text)).unwrap();
    (claim.state, format!("{} {}", claim.folder, claim.evidence))
}

#[test]
fn table_3_is_judged_with_both_scores_stored_and_said_beside_fused_attention() {
    let cell = |n: i64, attention: &str, us: Option<f64>| json!({"n": n, "attention": attention, "microseconds_per_token": us, "largest_batch": us.map(|t| 100.0 / t), "computed_bytes": 206.0 * 1073741824.0});
    let record = |stored: f64| {
        json!({"cells": [cell(4096, "materialised", Some(100.0)), cell(4096, "fused", Some(20.0)), cell(4096, "k=128", Some(10.0)),
            cell(4096, "k=128 stored", Some(stored)), cell(65536, "materialised", None), cell(65536, "fused", Some(300.0)),
            cell(65536, "k=128", Some(10.0)), cell(65536, "k=128 stored", Some(stored))]})
    };
    let at = |stored: f64, text: &str| judged(&[("efficiency", record(stored))], text);
    let (state, words) = at(25.0, "Inference is faster: 3.4 times");
    assert_eq!(state, State::Confirmed);
    assert!(words.contains("4.0 times at n = 4096 (10.0 with this program's") && words.contains("stores no scores, 2.0 times"), "{words}");
    assert_eq!(at(60.0, "Inference is faster: 3.4 times").0, State::NotConfirmed, "a fast kernel is no help to the claim");
    let (state, words) = at(25.0, "Inference is faster: 20 times");
    assert_eq!(state, State::Untestable);
    assert!(words.contains("206 GiB") && words.contains("at n = 4096, the longest that fits, 4.0 times; 30.0 times"), "{words}");
}

#[test]
fn the_theorems_are_judged_where_the_bound_gives_an_error() {
    let line = |k: i64, error: f64, bound: Option<f64>| json!({"theorem": 1, "form": "P R^T R on values", "k": k, "quantile_95": error, "bound": bound});
    let short = json!({"n": 64, "bound": [{}, {"k": 140.0}], "lines": [line(32, 1.7, None)]});
    let long = |error: f64| json!({"name": "m", "n": 256, "bound": [{}, {"k": 187.0}], "lines": [line(128, 0.9, None), line(192, error, Some(0.63))]});
    let text = "P can be replaced";
    assert_eq!(judged(&[("theorems", short.clone())], text).0, State::Untestable);
    let (state, words) = judged(&[("theorems", short.clone()), ("theorems-n256", long(0.5))], text);
    assert_eq!(
        (state, words.as_str()),
        (State::Confirmed, "theorems-n256 for m, n = 256, at k = 192 95 % of the errors are up to 0.500, within the bound of 0.630")
    );
    assert_eq!(judged(&[("theorems", short), ("theorems-n256", long(0.7))], text).0, State::Contradicted);
    assert_eq!(judged(&[("theorems-a", long(0.5)), ("theorems-b", long(0.7))], text).0, State::NotConfirmed, "two models disagree");
}

#[test]
fn a_low_share_contradicts_only_below_the_claim() {
    let record = |trained: Option<&str>, share: f64| {
        json!({"name": "m", "attention": "full", "checkpoint": trained, "layers": 2, "looked_at": {"length": 64},
            "all": {"cumulative": {"mean": share, "se": 0.001, "count": 500}}})
    };
    let state =
        |share: f64| judged(&[("spectrum-a", record(Some("x"), share)), ("spectrum-b", record(None, 0.93))], "Attention of a trained").0;
    assert_eq!([0.95, 0.92, 0.5].map(state), [State::Confirmed, State::NotConfirmed, State::Contradicted]);
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
    for part in [
        "Asked &lt;here&gt; &amp; now.",
        "<svg",
        "prefers-color-scheme: dark",
        "of the same sign; ours is about 4.0 times as large",
        "not stated",
    ] {
        assert!(html.contains(part), "{part}");
    }
    assert!(!html.contains("<script") && !html.contains("src=\"http") && !html.contains("{pages}"));
    let page = read("figure3ab/page.md");
    for part in ["| n64-k16 | 3 |", "Published elsewhere: Others: 4.5 nats (their card).", "3 of the runs are those of elsewhere:"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(read("reproduction.md").contains("3.0 times at n = 4096"), "{}", read("reproduction.md"));
    assert!(
        read("efficiency/page.md")
            .contains("k = 128. **confirmed at small scale**: 3.0 times at n = 4096 (of a Linformer that stores no scores)."),
        "{}",
        read("efficiency/page.md")
    );
    for (name, text) in super::texts(folder.path()).unwrap() {
        assert_eq!(read(&name), text, "{name}");
    }
    for name in ["figure3ab/by_tokens.svg", "figure3ab/by_time.png", "efficiency/time_by_n.svg", "efficiency/table.csv"] {
        assert!(Path::new(&folder.path().join(name)).exists(), "{name}");
    }
}
