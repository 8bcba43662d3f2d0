#![allow(clippy::unwrap_used)]

use super::collect::programs;
use super::*;
use serde_json::json;

fn results() -> Results {
    let run = |group: &str, seed: u64, loss: f64| RunResult {
        name: format!("{group}_seed={seed}"),
        group: group.into(),
        against: (group == "k8").then(|| "full".into()),
        paper: (group == "k8").then_some(0.05),
        seed,
        taken_from: None,
        speed: None,
        settings: Value::Null,
        summary: json!({"loss": loss, "unigram_perplexity": 20.0, "tokens_per_second": 10.0}),
        curve: vec![
            Point { step: 1, tokens: 64.0, value: 2.2 },
            Point { step: 2, tokens: 128.0, value: if seed == 0 { 2.7 } else { 2.95 } },
            Point { step: 3, tokens: 192.0, value: loss },
        ],
    };
    // The seeds of the two groups stand in another order, and one has a seed more.
    let runs = vec![run("full", 0, 1.0), run("full", 1, 1.1), run("k8", 1, 1.3), run("k8", 0, 1.25), run("k8", 2, 9.0)];
    Results {
        format: FORMAT,
        experiment: "x".into(),
        about: String::new(),
        command: String::new(),
        configs_sha256: String::new(),
        measure: "loss".into(),
        silent: BTreeMap::new(),
        published: Vec::new(),
        environment: Value::Null,
        programs: Vec::new(),
        wanted: 5,
        rates: BTreeSet::new(),
        left_out: Vec::new(),
        runs,
    }
}

#[test]
fn speeds_of_two_programs_are_not_set_side_by_side() {
    let of = |revision: &str| json!({"git_revision": revision, "cpu": "A"});
    assert!(programs(&[of("one"), of("one")]).is_empty());
    let built = |revision: &str| json!({"git_revision": revision, "program_sha256": "0123456789abcdef", "cpu": "A"});
    assert!(programs(&[built("one"), built("two")]).is_empty(), "a commit makes no other program");
    let mut results = results();
    assert_eq!(results.group("k8").unwrap().tokens_per_second, Some(10.0));
    results.programs = programs(&[of("two"), of("one"), of("two")]);
    assert_eq!(results.programs, ["one on A", "two on A"]);
    assert_eq!(results.group("k8").unwrap().tokens_per_second, None);
    let steady = |speeds: [f64; 3]| {
        results.runs[2..].iter_mut().zip(speeds).for_each(|(run, speed)| run.speed = Some(speed));
        results.group("k8").unwrap().is_steady
    };
    assert_eq!([[100.0, 50.0, 90.0], [100.0, 50.0, 60.0]].map(steady), [true, false]);
}

#[test]
fn groups_are_compared_seed_by_seed() {
    let group = results().group("k8").unwrap();
    let comparison = group.against.unwrap();
    assert!((comparison.difference - 0.225).abs() < 1e-12);
    let test = comparison.test.unwrap();
    assert_eq!(test.difference.count, 2, "seed 2 has no partner");
    assert!((test.t - 0.225 / 0.025).abs() < 1e-9, "{}", test.t);
    assert_eq!(comparison.paper, Some(0.05));
}

#[test]
fn the_rate_that_chose_best_is_reported_on_the_other_half() {
    let mut results = results();
    results.measure = "value".into();
    let run = |rate: f64, seed: u64, chosen: f64, reported: f64| {
        let mut run = results.runs[0].clone();
        run.group = format!("full_task=which_novel_learning_rate={rate}_x=1");
        run.seed = seed;
        run.settings = json!({"learning_rate": rate, "set": {"train.learning_rate": rate}});
        run.summary = json!({"value": chosen, "reported_value": reported, "scores": {"chosen_on": chosen, "reported_on": reported}});
        run
    };
    // The second rate looks better where it was not allowed to.
    results.runs = vec![run(0.1, 0, 0.8, 0.6), run(0.1, 1, 0.9, 0.7), run(0.2, 0, 0.7, 0.95), run(0.2, 1, 0.7, 0.95)];
    results.wanted = 6;
    let chosen = results.with_rates_chosen();
    assert_eq!((chosen.runs.len(), chosen.wanted), (2, 4));
    let group = chosen.group("full_task=which_novel_x=1").unwrap();
    assert!((group.estimate.mean - 0.65).abs() < 1e-12);
    assert_eq!(chosen.left_out.len(), 2);
    assert_eq!(chosen.chosen_rates()["full_task=which_novel_x=1"], "0.1");
}

#[test]
fn a_plateau_is_left_by_all_or_not() {
    let group = results().group("full").unwrap();
    assert_eq!(group.plateau_tokens.unwrap().mean, 192.0, "at 64 it came back");
    assert_eq!(group.spread[1], (128.0, 2.7, 2.95));
    let k8 = results().group("k8").unwrap();
    assert_eq!((k8.plateau_tokens, k8.plateaus_left), (None, 2), "seed 2 never left it");
    assert_eq!(group.curve.len(), 3);
}
