//! `results.json`: what a sweep measured, small enough to commit, and everything that a report is made from.
//!
//! A run's curve, its summary and the keys that told it apart; comparisons are made seed by seed.

mod collect;

pub use collect::collect;

use super::runs::reported_score;
use crate::config::sweep::Published;
use crate::eval::median;
use crate::eval::statistics::{Estimate, Test};
use anyhow::{bail, Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
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
mod tests;
