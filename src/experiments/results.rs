//! `results.json`: what a sweep measured, small enough to commit, and everything that a report is made from.
//!
//! A run's curve, its summary and the keys that told it apart; comparisons are made seed by seed.

use super::reuse::taken_from;
use super::runs::reported_score;
use crate::config::sweep::{Published, Sweep, SweepRun};
use crate::digest::sha256;
use crate::eval::median;
use crate::eval::statistics::{Estimate, Test};
use crate::log::jsonl;
use crate::train::run::read_summary;
use anyhow::{bail, Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{json, Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const FORMAT: u32 = 1;

/// The file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    pub format: u32,
    pub experiment: String,
    pub about: String,
    pub command: String,
    /// Of all runs' resolved configs, without folders and threads.
    pub configs_sha256: String,
    /// `loss` or `value`.
    pub measure: String,
    pub silent: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<Published>,
    /// Of the first run.
    pub environment: Value,
    /// Programs and processors that the runs are of, where that is more than one: their speeds are not compared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub programs: Vec<String>,
    /// Runs that the file asks for; fewer are below when it was broken off.
    pub wanted: usize,
    /// Learning rates of the grid that [`Results::with_rates_chosen`] chose from, and the runs that it left out.
    #[serde(skip)]
    pub rates: BTreeSet<String>,
    #[serde(skip)]
    pub left_out: Vec<RunResult>,
    pub runs: Vec<RunResult>,
}

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunResult {
    pub name: String,
    pub group: String,
    pub against: Option<String>,
    pub paper: Option<f64>,
    pub seed: u64,
    /// The run of another sweep, with the same config, that stands here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_from: Option<String>,
    /// Tokens/s of the fastest logged stretch at full length: what other work on the machine disturbs least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<f64>,
    /// Sequence length of the data, and the resolved model's attention.
    pub settings: Value,
    pub summary: Value,
    /// Validation in the course of training.
    pub curve: Vec<Point>,
}

/// One validation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    pub step: u64,
    pub tokens: f64,
    /// Nats; of fine-tuning the score.
    pub value: f64,
}

/// A group of runs that differ in their seed alone.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    pub name: String,
    pub values: Vec<f64>,
    pub seeds: Vec<u64>,
    pub estimate: Estimate,
    pub against: Option<Comparison>,
    /// Mean curve over the seeds that have the point.
    pub curve: Vec<(f64, f64)>,
    /// (tokens, lowest, highest) of its points, of more seeds than one.
    pub spread: Vec<(f64, f64, f64)>,
    /// Tokens from which on the loss stays half a nat below the unigrams'; None: never, in some run.
    pub plateau_tokens: Option<Estimate>,
    /// Runs in which it came to that, of all.
    pub plateaus_left: usize,
    pub runs: usize,
    pub tokens_per_second: Option<f64>,
    /// Half of the runs or more are nearly as fast as the fastest: other work on the machine did not slow them down.
    pub is_steady: bool,
    /// Of the masked text: what compares between vocabularies.
    pub bits_per_byte: Option<Estimate>,
    pub unigram_loss: Option<f64>,
}

impl Group {
    /// By how much the mean curve fell over the last fifth of its tokens, between two points on a line; the learning rate's decay has a
    /// share in it.
    pub fn last_fall(&self) -> Option<f64> {
        let (tokens, last) = *self.curve.last()?;
        let at = 0.8 * tokens;
        let behind = self.curve.iter().position(|(x, _)| *x >= at)?;
        let ((x0, y0), (x1, y1)) = (*self.curve.get(behind.checked_sub(1)?)?, self.curve[behind]);
        Some(y0 + (y1 - y0) * (at - x0) / (x1 - x0) - last)
    }
}

/// A group beside another, seed by seed.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    pub other: String,
    /// Ours less the other's; None for one seed.
    pub test: Option<Test>,
    pub difference: f64,
    /// What the paper has.
    pub paper: Option<f64>,
}

/// Nats below the unigram loss from which on a model has more than the neighbours of a mask: before, curves lie flat and come
/// back.
const PLATEAU_MARGIN: f64 = 0.5;
/// Share of the fastest run's speed.
const STEADY: f64 = 0.8;
/// Keys that say where and how fast a run ran, not what.
const PLACES: [&str; 4] = ["/run/dir", "/run/threads", "/data/cache_dir", "/run/init_from"];

/// Reads what the runs of a sweep left.
pub fn collect(sweep: &Sweep) -> Result<Results> {
    let stem = sweep.path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let runs: Vec<RunResult> = sweep.runs.iter().filter_map(|run| collect_run(sweep, run).transpose()).collect::<Result<_>>()?;
    let environments: Vec<Value> =
        sweep.runs.iter().filter_map(|r| read_json(&r.config.run.dir.as_ref()?.join("environment.json"))).collect();
    let of_task = sweep.runs.iter().any(|r| r.config.data.task.is_some());
    let measure = match sweep.file.measure.as_str() {
        "" if of_task => "value",
        "" => "loss",
        named => named,
    };
    Ok(Results {
        format: FORMAT,
        experiment: sweep.file.results.as_deref().and_then(Path::file_name).map_or(stem, |n| n.to_string_lossy().into_owned()),
        about: sweep.file.about.clone(),
        command: format!("linformer sweep {}", sweep.path.display()),
        configs_sha256: configs_sha256(sweep)?,
        measure: measure.into(),
        silent: sweep.file.silent.clone(),
        published: sweep.file.published.clone(),
        programs: programs(&environments),
        environment: environments.into_iter().next().unwrap_or_default(),
        wanted: sweep.runs.len(),
        rates: BTreeSet::new(),
        left_out: Vec::new(),
        runs,
    })
}

/// What the runs were made by, where that is more than one thing.
fn programs(environments: &[Value]) -> Vec<String> {
    let text = |e: &Value, key: &str| e[key].as_str().map(str::to_string);
    // Older runs have no digest of their program.
    let program = |e: &Value| text(e, "program_sha256").map(|digest| digest.chars().take(12).collect()).or_else(|| text(e, "git_revision"));
    let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "unknown".into());
    let all: BTreeSet<String> = environments.iter().map(|e| or_unknown(program(e)) + " on " + &or_unknown(text(e, "cpu"))).collect();
    if all.len() > 1 {
        all.into_iter().collect()
    } else {
        Vec::new()
    }
}

fn configs_sha256(sweep: &Sweep) -> Result<String> {
    let mut text = String::new();
    for run in &sweep.runs {
        let mut config = serde_json::to_value(&run.config)?;
        PLACES.iter().for_each(|place| {
            if let Some(value) = config.pointer_mut(place) {
                *value = Value::Null;
            }
        });
        text += &format!("{} {config}\n", run.name);
    }
    Ok(sha256(text.as_bytes()))
}

/// None: the run is not done.
fn collect_run(sweep: &Sweep, run: &SweepRun) -> Result<Option<RunResult>> {
    let Some(dir) = run.config.run.dir.as_deref() else { return Ok(None) };
    let Some(summary) = read_summary(dir) else { return Ok(None) };
    let lines = jsonl::read(&dir.join("metrics.jsonl")).with_context(|| dir.join("metrics.jsonl").display().to_string())?;
    let (split, key) = if run.config.data.task.is_some() { ("task", "chosen_on") } else { ("valid", "loss") };
    let number = |line: &Map<String, Value>, key: &str| line.get(key).and_then(Value::as_f64);
    let value = |line: &Map<String, Value>| number(line, key).or_else(|| number(line, "accuracy"));
    let tokens = tokens_by_step(&lines);
    let curve = lines.iter().filter(|l| l.get("split").and_then(Value::as_str) == Some(split)).filter_map(|l| {
        let step = l.get("step")?.as_u64()?;
        let tokens = number(l, "tokens").or_else(|| tokens.range(..=step).next_back().map(|(_, t)| *t)).unwrap_or(0.0);
        Some(Point { step, tokens, value: value(l)? })
    });
    let settings = json!({"attention": run.config.model.attention, "sequence_length": run.config.data.sequence_length,
        "learning_rate": run.config.train.learning_rate, "set": changed(sweep, run)});
    Ok(Some(RunResult {
        name: run.name.clone(),
        group: run.group.clone(),
        against: run.against.clone(),
        paper: run.paper,
        seed: run.config.train.seed,
        taken_from: taken_from(dir),
        speed: fastest(&lines, run.config.data.short_steps),
        settings,
        curve: curve.collect(),
        summary: slim(summary),
    }))
}

fn fastest(lines: &[Map<String, Value>], short_steps: u64) -> Option<f64> {
    let is_full = |l: &&Map<String, Value>| l.get("step").and_then(Value::as_u64).is_some_and(|step| step > short_steps);
    lines.iter().filter(is_full).filter_map(|l| l.get("tokens_per_second")?.as_f64()).max_by(f64::total_cmp)
}

fn tokens_by_step(lines: &[Map<String, Value>]) -> BTreeMap<u64, f64> {
    lines.iter().filter_map(|l| Some((l.get("step")?.as_u64()?, l.get("tokens")?.as_f64()?))).collect()
}

/// The keys of the file's variants and grid, as this run has them.
fn changed(sweep: &Sweep, run: &SweepRun) -> Value {
    let keys = sweep.file.grid.keys().chain(sweep.file.variants.iter().flat_map(|v| v.set.keys()));
    let config = serde_json::to_value(&run.config).unwrap_or_default();
    let of = |key: &String| Some((key.clone(), config.pointer(&format!("/{}", key.replace('.', "/")))?.clone()));
    Value::Object(keys.filter_map(of).collect())
}

/// Without what a report never reads and what differs from machine to machine.
fn slim(mut summary: Value) -> Value {
    if let Some(object) = summary.as_object_mut() {
        for key in ["data", "pretraining_overlap", "init_from"] {
            object.shift_remove(key);
        }
    }
    summary
}

fn read_json(path: &Path) -> Option<Value> {
    serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
}

impl Results {
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let results: Self = serde_json::from_str(&text).with_context(|| format!("{}: not the results of a sweep", path.display()))?;
        if results.format != FORMAT {
            bail!("{}: format {}, expected {FORMAT}", path.display(), results.format);
        }
        Ok(results)
    }

    /// A grid of learning rates made one: of each group the runs at the rate with the best mean on the rows that choose (or,
    /// of pretraining, the least loss), under the group's name without the rate.
    pub fn with_rates_chosen(mut self) -> Self {
        let chosen = self.chosen_rates();
        if chosen.is_empty() {
            return self;
        }
        let missing = self.wanted.saturating_sub(self.runs.len());
        self.rates = self.runs.iter().map(|r| r.settings["learning_rate"].to_string()).collect();
        let is_chosen = |r: &RunResult| chosen.get(&without_rate(&r.group)) == Some(&r.settings["learning_rate"].to_string());
        (self.runs, self.left_out) = std::mem::take(&mut self.runs).into_iter().partition(is_chosen);
        self.wanted = self.runs.len() + missing;
        for run in &mut self.runs {
            run.group = without_rate(&run.group);
            run.against = run.against.as_deref().map(without_rate);
        }
        self
    }

    /// The rate of each group, where the sweep has a grid of them.
    pub fn chosen_rates(&self) -> BTreeMap<String, String> {
        let mut means: BTreeMap<String, BTreeMap<String, Vec<Option<f64>>>> = BTreeMap::new();
        for run in self.runs.iter().filter(|r| !r.settings["set"]["train.learning_rate"].is_null()) {
            let score = if self.is_of_tasks() { run.summary["value"].as_f64() } else { run.summary["loss"].as_f64().map(|l| -l) };
            let rates = means.entry(without_rate(&run.group)).or_default();
            rates.entry(run.settings["learning_rate"].to_string()).or_default().push(score);
        }
        // A rate at which the score of some seeds is not defined is no better for that.
        let best = |rates: BTreeMap<String, Vec<Option<f64>>>| {
            let judged = rates.into_iter().filter_map(|(rate, scores)| {
                let defined: Vec<f64> = scores.iter().flatten().copied().collect();
                Some((scores.len() - defined.len(), Estimate::of(&defined)?.mean, rate))
            });
            judged.max_by(|a, b| b.0.cmp(&a.0).then(a.1.total_cmp(&b.1))).map(|(_, _, rate)| rate)
        };
        means.into_iter().filter_map(|(group, rates)| Some((group, best(rates)?))).collect()
    }

    pub fn is_of_tasks(&self) -> bool {
        self.measure == "value"
    }

    /// What a run is judged by: the loss, or the score of the half of the rows that chose nothing, if there is one.
    pub fn value(&self, run: &RunResult) -> Option<f64> {
        if self.is_of_tasks() {
            reported_score(&run.summary)
        } else {
            run.summary["loss"].as_f64()
        }
    }

    /// Of the runs that were made for this sweep, those that were not chosen among them: how many, and the sum of the hours that
    /// their training took.
    pub fn hours(&self) -> (usize, f64) {
        let own = self.runs.iter().chain(&self.left_out).filter(|r| r.taken_from.is_none()).filter_map(|r| r.summary["seconds"].as_f64());
        own.fold((0, 0.0), |(count, hours), seconds| (count + 1, hours + seconds / 3600.0))
    }

    /// Groups in the order of the file.
    pub fn groups(&self) -> Vec<Group> {
        let mut names: Vec<&str> = Vec::new();
        self.runs.iter().for_each(|r| {
            if !names.contains(&r.group.as_str()) {
                names.push(&r.group);
            }
        });
        names.into_iter().filter_map(|name| self.group(name)).collect()
    }

    pub fn group(&self, name: &str) -> Option<Group> {
        let runs: Vec<&RunResult> = self.runs.iter().filter(|r| r.group == name).collect();
        let pairs: Vec<(u64, f64)> = runs.iter().filter_map(|r| Some((r.seed, self.value(r)?))).collect();
        let values: Vec<f64> = pairs.iter().map(|p| p.1).collect();
        let first = runs.first()?;
        let speeds: Vec<f64> = runs.iter().filter_map(|r| r.speed).collect();
        let left: Vec<f64> = runs.iter().filter_map(|r| plateau(r)).collect();
        let of_summary = |key: &str| runs.iter().filter_map(|r| r.summary[key].as_f64()).collect::<Vec<f64>>();
        Some(Group {
            name: name.into(),
            estimate: Estimate::of(&values)?,
            seeds: pairs.iter().map(|p| p.0).collect(),
            values,
            against: first.against.as_ref().and_then(|other| self.compare(name, other, first.paper)),
            curve: of_curve(&runs, |values| values.iter().sum::<f64>() / values.len() as f64),
            spread: spread(&runs),
            plateau_tokens: Estimate::of(&left).filter(|e| e.count == runs.len()),
            plateaus_left: left.len(),
            runs: runs.len(),
            tokens_per_second: match self.programs.is_empty() {
                true => median(&speeds).or_else(|| Estimate::of(&of_summary("tokens_per_second")).map(|e| e.mean)),
                false => None,
            },
            is_steady: {
                let fastest = speeds.iter().copied().fold(0.0, f64::max);
                median(&speeds).is_none_or(|speed| speed >= STEADY * fastest)
            },
            bits_per_byte: Estimate::of(&of_summary("bits_per_byte")),
            unigram_loss: first.summary["unigram_perplexity"].as_f64().map(f64::ln),
        })
    }

    /// Over the seeds that both groups have.
    pub fn compare(&self, name: &str, other: &str, paper: Option<f64>) -> Option<Comparison> {
        let of = |group: &str| -> BTreeMap<u64, f64> {
            self.runs.iter().filter(|r| r.group == group).filter_map(|r| Some((r.seed, self.value(r)?))).collect()
        };
        let (ours, theirs) = (of(name), of(other));
        let (a, b): (Vec<f64>, Vec<f64>) = ours.iter().filter_map(|(seed, v)| Some((*v, *theirs.get(seed)?))).unzip();
        let difference = a.iter().zip(&b).map(|(a, b)| a - b).sum::<f64>() / a.len() as f64;
        (!a.is_empty()).then(|| Comparison { other: other.into(), test: Test::paired(&a, &b), difference, paper })
    }
}

/// Tokens from which on a run has left the unigram plateau for good.
fn plateau(run: &RunResult) -> Option<f64> {
    let limit = run.summary["unigram_perplexity"].as_f64()?.ln() - PLATEAU_MARGIN;
    let after = run.curve.iter().rposition(|p| p.value.is_nan() || p.value >= limit).map_or(0, |last| last + 1);
    run.curve.get(after).map(|p| p.tokens)
}

/// A group's name without its learning rate.
fn without_rate(group: &str) -> String {
    const KEY: &str = "_learning_rate=";
    let Some((before, after)) = group.split_once(KEY) else { return group.into() };
    before.to_string() + after.find('_').map_or("", |at| &after[at..])
}

/// (mean tokens, something of the values) at each step that all runs have.
fn of_curve<T>(runs: &[&RunResult], of: impl Fn(&[f64]) -> T) -> Vec<(f64, T)> {
    let mut by_step: BTreeMap<u64, (f64, Vec<f64>)> = BTreeMap::new();
    for point in runs.iter().flat_map(|r| &r.curve) {
        let (tokens, values) = by_step.entry(point.step).or_default();
        *tokens += point.tokens;
        values.push(point.value);
    }
    let full = by_step.into_values().filter(|(_, values)| values.len() == runs.len());
    full.map(|(tokens, values)| (tokens / runs.len() as f64, of(&values))).collect()
}

fn spread(runs: &[&RunResult]) -> Vec<(f64, f64, f64)> {
    if runs.len() < 2 {
        return Vec::new();
    }
    let ends = of_curve(runs, |values| values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v))));
    ends.into_iter().map(|(tokens, (low, high))| (tokens, low, high)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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
}
