//! Claims about models that were trained: losses and scores of sweeps, each with its test.

use super::{Judged, State};
use crate::eval::statistics::Test;
use crate::experiments::results::{Comparison, Results};
use crate::experiments::study::evidence::Evidence;
use crate::experiments::study::page::sentence;

fn compare(results: &Results, name: &str, other: &str) -> Option<(Comparison, String)> {
    let unit = if results.is_of_tasks() { "score" } else { "nats" };
    let paper = results.runs.iter().find(|r| r.group == name && r.against.as_deref() == Some(other)).and_then(|r| r.paper);
    let comparison = results.compare(name, other, paper)?;
    let words = sentence(name, &comparison, unit);
    Some((comparison, words))
}

/// A loss that is hardly higher.
pub fn on_par(results: &Results, name: &str, other: &str, margin: f64) -> Judged {
    let (comparison, words) = compare(results, name, other)?;
    let state = match comparison.test {
        Some(test) if test.interval().1 <= margin => State::Confirmed,
        _ => State::NotConfirmed,
    };
    Some((state, words))
}

/// Figure 3 a's k/n = 1/4 beside full attention, from the shortest training to the longest: folder, models.
pub const FIGURE_3A: [(&str, &str, &str); 2] = [("figure3ab", "n64-k16", "n64-full"), ("figure3a-long", "k16", "full")];

/// [`on_par`] after each training there is; the last one decides. Its folder, or the first's.
pub fn on_par_at_last<'a>(evidence: &Evidence, trainings: &[(&'a str, &str, &str)], margin: f64) -> (&'a str, Judged) {
    let judged = trainings.iter().filter_map(|(folder, name, other)| {
        let results = evidence.sweep(folder)?;
        let (state, words) = on_par(results, name, other, margin)?;
        let tokens = results.group(name)?.curve.last()?.0;
        Some((*folder, (state, format!("After {:.1} M tokens: {words}", tokens / 1e6))))
    });
    match judged.reduce(|(_, (_, before)), (folder, (state, words))| (folder, (state, format!("{before} {words}")))) {
        Some((folder, judged)) => (folder, Some(judged)),
        None => (trainings[0].0, None),
    }
}

/// A claim about models that learn no more: how far ours are from that stands beside it.
pub fn beside_convergence(results: &Results, names: &[&str], (state, words): (State, String)) -> (State, String) {
    let falls: Vec<String> = names.iter().filter_map(|n| Some(format!("{n} by {:.2}", results.group(n)?.last_fall()?))).collect();
    let how_far = format!(" How far from convergence: over the last fifth of their tokens the losses fell, {}.", falls.join(", "));
    (state, words + if falls.is_empty() { "" } else { &how_far })
}

/// Losses that fall from each to the next.
pub fn falling(results: &Results, names: &[&str]) -> Judged {
    let pairs: Vec<(Comparison, String)> = names.windows(2).map(|w| compare(results, w[1], w[0])).collect::<Option<_>>()?;
    let words = pairs.iter().map(|(_, words)| words.as_str()).collect::<Vec<_>>().join(" ");
    let tests: Vec<Option<Test>> = pairs.iter().map(|(c, _)| c.test).collect();
    let down = |t: &Option<Test>| t.is_some_and(|t| t.p < 0.05 && t.difference.mean < 0.0);
    let up = |t: &Option<Test>| t.is_some_and(|t| t.p < 0.05 && t.difference.mean > 0.0);
    let state = if tests.iter().all(down) {
        State::Confirmed
    } else if tests.iter().any(up) {
        State::Contradicted
    } else {
        State::NotConfirmed
    };
    Some((state, words))
}

/// A loss that is lower.
pub fn better(results: &Results, name: &str, other: &str) -> Judged {
    falling(results, &[other, name])
}

/// A model beside another on every task of a grid.
fn on_every_task(results: &Results, name: &str, other: &str) -> Vec<(Comparison, String)> {
    let of =
        |group: &str| group.split_once('_').map_or((group.to_string(), String::new()), |(v, rest)| (v.to_string(), format!("_{rest}")));
    let mut tails: Vec<String> = results.groups().iter().map(|g| of(&g.name)).filter(|(v, _)| v == name).map(|(_, tail)| tail).collect();
    tails.dedup();
    tails.iter().filter_map(|tail| compare(results, &format!("{name}{tail}"), &format!("{other}{tail}"))).collect()
}

/// Scores that are higher than those of every other, on every task of a grid.
pub fn higher(results: &Results, name: &str, others: &[&str]) -> Judged {
    let (comparisons, words): (Vec<Comparison>, Vec<String>) = others.iter().flat_map(|other| on_every_task(results, name, other)).unzip();
    let all = |sign: f64| comparisons.iter().all(|c| c.test.is_some_and(|t| t.p < 0.05 && sign * t.difference.mean > 0.0));
    let state = match () {
        _ if comparisons.is_empty() => return None,
        _ if all(1.0) => State::Confirmed,
        _ if all(-1.0) => State::Contradicted,
        _ => State::NotConfirmed,
    };
    Some((state, words.join(" ")))
}

/// Scores that are hardly lower, on every task of a grid.
pub fn comparable(results: &Results, name: &str, other: &str, margin: f64) -> Judged {
    let pairs = on_every_task(results, name, other);
    if pairs.is_empty() {
        return None;
    }
    let near = |c: &Comparison| c.test.is_some_and(|t| t.interval().0 >= -margin);
    let state = if pairs.iter().all(|(c, _)| near(c)) { State::Confirmed } else { State::NotConfirmed };
    Some((state, pairs.into_iter().map(|(_, words)| words).collect::<Vec<_>>().join(" ")))
}

/// [`comparable`] on the paper's own tasks, as far as pretraining is worth anything there: else two models that learned nothing of
/// use are alike.
pub fn on_real_tasks(evidence: &Evidence, margin: f64) -> Judged {
    let tasks = [("table2-sst2", "SST-2"), ("table2-imdb", "IMDB's reviews"), ("table2-qnli", "QNLI's rows")];
    let (mut states, mut words) = (Vec::new(), Vec::new());
    for (folder, task) in tasks {
        let Some((results, (state, said))) = evidence.sweep(folder).and_then(|r| Some((r, comparable(r, "k32", "full", margin)?))) else {
            words.push(format!("{task}: not run."));
            continue;
        };
        let gain = results.compare("full-random", "full", None).and_then(|c| c.test);
        let is_worth = gain.is_some_and(|t| t.p < 0.05 && t.difference.mean < 0.0);
        let but = if is_worth { "" } else { " But pretraining is not seen to help full attention there, so that this says little." };
        states.push(if is_worth { state } else { State::NotConfirmed });
        words.push(format!("{task}: {said}{but}"));
    }
    let state = if states.iter().all(|s| *s == State::Confirmed) { State::Confirmed } else { State::NotConfirmed };
    (!states.is_empty()).then(|| (state, words.join(" ")))
}
