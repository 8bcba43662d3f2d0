//! The page of a sweep: its table, what a reader must know to trust it, and its curves.

use super::words::{p_value, sentence};
use super::{title, Drawing, Page, Picture};
use crate::eval::statistics::Estimate;
use crate::experiments::results::{Comparison, Group, Results, RunResult};
use crate::experiments::runs::scored_rows;
use crate::log::plot::{LineChart, Series};
use crate::log::progress::thousands;
use std::collections::{BTreeMap, BTreeSet};

/// The page of a sweep.
pub fn of_sweep(folder: &str, results: &Results) -> Page {
    let groups = results.groups();
    let unit = if results.is_of_tasks() { "score" } else { "nats" };
    let findings = groups.iter().filter_map(|g| g.against.as_ref().map(|c| sentence(&g.name, c, unit))).collect();
    Page {
        folder: folder.into(),
        title: title(folder),
        about: results.about.clone(),
        table: table(&groups, results, unit),
        findings,
        claims: Vec::new(),
        open: String::new(),
        notes: notes(&groups, results),
        charts: curves(folder, &groups, results),
        environment: results.environment.clone(),
    }
}

/// One row a model, a header first; pretraining has columns of its own.
fn table(groups: &[Group], results: &Results, unit: &str) -> Vec<Vec<String>> {
    const DIGITS: usize = 4;
    let pretrains = !results.is_of_tasks();
    let mut header = vec!["model", "seeds", unit, "deviation", "against", "difference", "95 % interval", "p", "published"];
    if pretrains {
        header.extend(["perplexity", "bits a byte", "half a nat below unigrams from tokens", "tokens/s"]);
    }
    let row = |group: &Group| {
        let c = group.against.as_ref();
        let test = c.and_then(|c| c.test);
        let dash = || "-".to_string();
        let mut row = vec![
            group.name.clone(),
            group.seeds.len().to_string(),
            group.estimate.text(DIGITS),
            group.estimate.deviation().map_or_else(dash, |d| format!("{d:.DIGITS$}")),
            c.map_or_else(dash, |c| c.other.clone()),
            c.map_or_else(dash, |c| format!("{:+.DIGITS$}{}", c.difference, error(c))),
            test.map_or_else(dash, |t| format!("{:+.DIGITS$} to {:+.DIGITS$}", t.interval().0, t.interval().1)),
            test.map_or_else(dash, |t| p_value(t.p)),
            c.and_then(|c| c.paper).map_or_else(dash, |p| format!("{p:+.DIGITS$}")),
        ];
        if pretrains {
            row.push(format!("{:.2}", group.estimate.mean.exp()));
            row.push(group.bits_per_byte.map_or_else(dash, |b| format!("{:.3}", b.mean)));
            row.push(plateau(group));
            row.push(group.tokens_per_second.map_or_else(dash, |s| format!("{s:.0}")));
        }
        row
    };
    let header = header.into_iter().map(str::to_string).collect();
    std::iter::once(header).chain(groups.iter().map(row)).collect()
}

fn error(c: &Comparison) -> String {
    c.test.and_then(|t| t.difference.se).map(|se| format!(" ± {se:.4}")).unwrap_or_default()
}

fn plateau(group: &Group) -> String {
    match group.plateau_tokens {
        Some(tokens) => format!("{:.1} M", tokens.mean / 1e6),
        None => format!("{} of {} only", group.plateaus_left, group.runs),
    }
}

/// How the numbers were made, and what they do not say.
fn notes(groups: &[Group], results: &Results) -> Vec<String> {
    let pretrains = !results.is_of_tasks();
    let mut notes: Vec<String> = models(results).into_iter().collect();
    notes.push("Mean ± standard error over seeds, and their standard deviation; a difference is that of pairs with the same seed, p by a paired t test, not corrected for the number of comparisons.".to_string());
    notes.extend(speeds(groups, results));
    notes.extend(origins(groups, results));
    notes.extend(undefined(results));
    // Fine-tuning ends where it was told to; what starts from nothing is to converge.
    let from_nothing = results.runs.iter().all(|r| r.summary["init_weights"] != true);
    notes.extend(convergence(groups, results).filter(|_| from_nothing));
    notes.extend(commonest(results));
    notes.extend(rates(results));
    notes.extend(rows(results));
    if pretrains {
        notes.push("From which tokens on a model stays half a nat below the unigrams is known to the evaluation: the mean over seeds of the first one after which the loss never comes back.".into());
    }
    notes.extend(results.published.iter().map(|p| format!("Published elsewhere: {}: {} {} ({}).", p.what, p.value, p.unit, p.source)));
    notes.extend(results.silent.iter().map(|(key, why)| format!("The paper is silent on `{key}`: {why}.")));
    let (count, hours) = results.hours();
    notes.push(format!("Wall time: {hours:.2} hours of training steps in {count} runs, each by its own clock."));
    notes.push(format!("Made by `{}`; configs {}.", results.command, &results.configs_sha256.chars().take(16).collect::<String>()));
    notes
}

/// What the speeds are, and whether they can be held against each other.
fn speeds(groups: &[Group], results: &Results) -> Vec<String> {
    if !results.programs.is_empty() {
        let programs = results.programs.join(", ");
        return vec![format!("The runs are of more than one program or processor, so that their speeds are not compared: {programs}.")];
    }
    let mut notes = Vec::new();
    if results.runs.iter().any(|r| r.speed.is_some()) && !results.is_of_tasks() {
        let which = "tokens/s: of each run's fastest logged stretch, which other work on the machine disturbs least; median over seeds.";
        notes.push(which.into());
    }
    let unsteady: Vec<&str> = groups.iter().filter(|g| !g.is_steady).map(|g| g.name.as_str()).collect();
    if !unsteady.is_empty() {
        notes.push(format!("Other work on the machine slowed runs of {} down: nothing is drawn by time.", unsteady.join(", ")));
    }
    notes
}

/// Which runs there are, and whose.
fn origins(groups: &[Group], results: &Results) -> Vec<String> {
    let mut notes = Vec::new();
    if results.runs.len() < results.wanted {
        notes.push(format!("{} of {} runs are done.", results.runs.len(), results.wanted));
    }
    let taken: BTreeSet<&str> = results.runs.iter().filter_map(|r| r.taken_from.as_deref()?.split('/').next()).collect();
    if !taken.is_empty() {
        let count = results.runs.iter().filter(|r| r.taken_from.is_some()).count();
        let from = taken.into_iter().collect::<Vec<_>>().join(", ");
        notes.push(format!("{count} of the runs are those of {from}: the same config gives the same bits, by another program all but rounding, so they were not made again."));
    }
    if groups.iter().any(|g| g.seeds.len() < 2) {
        notes.push("One seed says nothing of chance: differences without an interval are first signs.".into());
    }
    notes
}

fn convergence(groups: &[Group], results: &Results) -> Option<String> {
    let (sign, moved) = if results.is_of_tasks() { (-1.0, "score on the rows that choose rose") } else { (1.0, "loss fell") };
    let falls: Vec<String> = groups.iter().filter_map(|g| Some(format!("{} {:.3}", g.name, sign * g.last_fall()?))).collect();
    let how = "How far from convergence: over the last fifth of its tokens, while the learning rate falls too, the mean";
    (!falls.is_empty()).then(|| format!("{how} {moved} by: {}.", falls.join(", ")))
}

/// What the models are, where the runs say it.
fn models(results: &Results) -> Option<String> {
    let of = |key: &str| -> Vec<String> {
        let number =
            |r: &RunResult| r.summary.pointer(key).filter(|v| !v.is_null()).map(|v| v.as_f64().map_or_else(|| v.to_string(), thousands));
        let mut values: Vec<String> = results.runs.iter().filter_map(number).collect();
        let mut seen = BTreeSet::new();
        values.retain(|v| seen.insert(v.clone()));
        values
    };
    let joined = |key: &str| Some(of(key)).filter(|v| !v.is_empty()).map(|v| v.join(", "));
    let parameters: Vec<f64> = results.runs.iter().filter_map(|r| r.summary["model"]["parameters"].as_f64()).collect();
    let (least, most) = parameters.iter().fold((f64::INFINITY, 0.0f64), |(l, m), p| (l.min(*p), m.max(*p)));
    let range = if least == most { thousands(least) } else { format!("{} to {}", thousands(least), thousands(most)) };
    Some(format!(
        "Models: {} layers of width {}, n = {}, a vocabulary of {}, {range} parameters; {} steps at most a run, {}.",
        joined("/model/layers")?,
        joined("/model/hidden_size")?,
        joined("/model/n")?,
        joined("/model/vocab_size")?,
        joined("/total_steps").or_else(|| joined("/steps"))?,
        joined("/precision")?.replace('"', ""),
    ))
}

/// Seeds that have no number, which means would hide.
fn undefined(results: &Results) -> Option<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let without = results.runs.iter().filter(|r| results.value(r).is_none_or(f64::is_nan));
    without.for_each(|r| *counts.entry(&r.group).or_default() += 1);
    let words: Vec<String> = counts.iter().map(|(group, count)| format!("{group} {count}")).collect();
    let which = "Seeds without a defined number (diverged, or one class for every row), which the means and tests leave out";
    (!words.is_empty()).then(|| format!("{which}: {}.", words.join(", ")))
}

/// What a model without any learning would score.
fn commonest(results: &Results) -> Option<String> {
    let of = |r: &RunResult| Some((r.summary["task"].as_str()?.to_string(), format!("{:.3}", r.summary["majority"].as_f64()?)));
    let tasks: BTreeMap<String, String> = results.runs.iter().filter_map(of).collect();
    let words: Vec<String> = tasks.into_iter().map(|(task, share)| format!("{task} {share}")).collect();
    (!words.is_empty()).then(|| format!("Always the commonest class: {}.", words.join(", ")))
}

/// Rates that were chosen from a grid.
fn rates(results: &Results) -> Option<String> {
    let chosen = results.chosen_rates();
    if chosen.is_empty() {
        return None;
    }
    let words: Vec<String> = chosen.iter().map(|(group, rate)| format!("{group} {rate}")).collect();
    let tried = results.rates.iter().cloned().collect::<Vec<_>>().join(", ");
    let number = |rate: &String| rate.parse::<f64>().unwrap_or(f64::NAN);
    let largest = results.rates.iter().map(number).fold(f64::NEG_INFINITY, f64::max);
    let at_end = chosen.values().filter(|rate| number(rate) == largest).count();
    let end = match at_end {
        0 => String::new(),
        count => format!(" The largest was chosen for {count} of {}: the best one may be larger still.", chosen.len()),
    };
    Some(format!("Learning rates, of {tried}, chosen on the rows that are not reported: {}.{end}", words.join(", ")))
}

/// What the rows of each task add to the noise of its seeds.
fn rows(results: &Results) -> Option<String> {
    let mut tasks: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for run in &results.runs {
        let s = &run.summary;
        if let (Some(task), Some("accuracy"), Some(rows), Some(score)) =
            (s["task"].as_str(), s["metric"].as_str(), scored_rows(s), results.value(run))
        {
            tasks.entry(task).or_default().push((rows, score));
        }
    }
    let words = tasks.into_iter().filter_map(|(task, runs)| {
        let (rows, scores): (Vec<f64>, Vec<f64>) = runs.into_iter().unzip();
        let (rows, score) = (Estimate::of(&rows)?.mean, Estimate::of(&scores)?.mean);
        Some(format!("{task} about {rows:.0} rows, {:.3}", (score * (1.0 - score) / rows).sqrt()))
    });
    let words = words.collect::<Vec<_>>().join("; ");
    let starts_alike = results.runs.iter().any(|r| r.summary["init_weights"] == true);
    let same = if starts_alike {
        " Every seed of a model starts from the same pretrained weights: differences between pretrainings are not in ± either."
    } else {
        ""
    };
    let noise = format!("All models are scored on the same rows; that others would have been drawn is worth a standard error that ± over seeds does not hold ({words}).{same}");
    (!words.is_empty()).then_some(noise)
}

/// A point of a group's curve, moved; None: left out.
type Scale<'a> = &'a dyn Fn(&Group, (f64, f64)) -> Option<(f64, f64)>;

/// Beginnings of the names of pictures of curves, which are not always all drawn (`curves`: of the first spectrum alone).
pub const CURVES: [&str; 3] = ["by_tokens", "by_time", "curves"];

/// Curves of all groups, or where those are too many to be told apart, of each task.
fn curves(folder: &str, groups: &[Group], results: &Results) -> Vec<Picture> {
    let task_of = |group: &Group| results.runs.iter().find(|r| r.group == group.name)?.settings["set"]["data.task"].as_str();
    let mut parts: BTreeMap<&str, Vec<&Group>> = BTreeMap::new();
    for group in groups {
        let task = task_of(group).filter(|_| groups.len() > MOST_CURVES).unwrap_or_default();
        parts.entry(task).or_default().push(group);
    }
    let is_steady = groups.iter().all(|g| g.is_steady);
    parts.into_iter().flat_map(|(task, groups)| curves_of(folder, task, &groups, results, is_steady)).collect()
}

fn curves_of(folder: &str, task: &str, groups: &[&Group], results: &Results, is_steady: bool) -> Vec<Picture> {
    let with = |mark: &str| if task.is_empty() { String::new() } else { format!("{mark}{task}") };
    let (tail, of) = (with("-"), with(", "));
    let series = |scale: Scale| -> Vec<Series> {
        let of = |g: &&Group| {
            let points = g.curve.iter().filter_map(|p| scale(g, *p)).collect();
            let band = g.spread.iter().filter_map(|(x, low, high)| Some((scale(g, (*x, 0.0))?.0, *low, *high))).collect();
            let name = g.name.strip_suffix(&with("_task=")).unwrap_or(&g.name);
            Series { band, ..Series::line(name, points) }
        };
        groups.iter().map(of).filter(|s| s.points.len() > 1).collect()
    };
    let y = if results.is_of_tasks() { "score on the rows that choose" } else { "validation loss in nats" };
    let chart = |title: &str, x: &str, series: Vec<Series>| LineChart {
        title: title.into(),
        x: x.into(),
        y: y.into(),
        log_x: false,
        log_y: false,
        series,
    };
    let mut pictures = Vec::new();
    let mut by_tokens = series(&|_, p| Some(p));
    if by_tokens.is_empty() || by_tokens.len() > MOST_CURVES {
        return pictures;
    }
    if let Some(unigram) = groups.iter().find_map(|g| g.unigram_loss) {
        let last = by_tokens.iter().flat_map(|s| s.points.last()).map(|p| p.0).fold(0.0, f64::max);
        by_tokens.push(Series::line("unigram", vec![(0.0, unigram), (last, unigram)]).reference());
    }
    let caption = format!("Mean over seeds, and from the lowest to the highest of them{of}.");
    pictures.push(Picture {
        name: format!("by_tokens{tail}"),
        caption,
        chart: Drawing::Lines(chart(&format!("{}{of}, by tokens", title(folder)), "tokens", by_tokens)),
    });
    let by_time = series(&|g, p| Some((p.0 / g.tokens_per_second?, p.1)));
    if !by_time.is_empty() && is_steady {
        let caption = format!("The same by time, at each model's tokens/s of the table, on the machine below{of}.");
        pictures.push(Picture {
            name: format!("by_time{tail}"),
            caption,
            chart: Drawing::Lines(chart(&format!("{}{of}, by time", title(folder)), "seconds", by_time)),
        });
    }
    pictures
}

/// More cannot be told apart.
const MOST_CURVES: usize = 12;
