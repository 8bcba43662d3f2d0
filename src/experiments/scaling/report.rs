//! Tables, sentences and plots of a scaling record, from the record alone.

use super::model::{Algorithm, Network, Step};
use super::record::{Load, Measured, Plan, Record, TrainingStep, WORTHWHILE};
use super::Timing;
use crate::durable::replace;
use crate::eval::median;
use crate::log::plot::{Chart, LineChart, Series};
use crate::log::progress::thousands;
use crate::table::align;
use anyhow::{Context, Result};
use std::path::Path;

/// Ranks to look at, as powers of two.
const LARGEST: u32 = 10;
/// The paper pretrained on so many GPUs.
const PAPERS: u64 = 64;
const MIB: f64 = 1048576.0;

fn all_ranks() -> impl Iterator<Item = u64> {
    (0..=LARGEST).map(|power| 1u64 << power)
}

fn percent(step: Step) -> String {
    format!("{:.0} %", 100.0 * step.efficiency())
}

/// The tables to 1,024 ranks, one network below the other.
pub fn table(record: &Record) -> String {
    let plan = &record.plan;
    let header = [
        "network",
        "ranks",
        "same batch: ms a step",
        "exposed ms",
        "efficiency",
        "same load: ms a step",
        "efficiency, ring",
        "efficiency, tree",
        "4 micro-batches",
        "micro-batches for 80 %",
        "tokens/s",
    ];
    let mut rows = vec![header.map(String::from).to_vec()];
    for (network, ranks) in record.networks.iter().flat_map(|n| all_ranks().map(move |r| (n, r))) {
        let step = |algorithm, load| plan.step(network, algorithm, ranks, load);
        let one = Load::MicroBatches(1);
        let text = |step: Option<Step>, of: &dyn Fn(Step) -> String| step.map_or_else(|| "-".to_string(), of);
        let milliseconds = |seconds: f64| format!("{:.1}", seconds * 1e3);
        let same = plan.best(network, ranks, Load::SameBatch);
        let load = plan.best(network, ranks, one);
        rows.push(vec![
            network.name.clone(),
            ranks.to_string(),
            text(same, &|s| milliseconds(s.seconds())),
            text(same, &|s| milliseconds(s.exposed)),
            text(same, &percent),
            text(load, &|s| milliseconds(s.seconds())),
            text(step(Algorithm::Ring, one), &percent),
            text(step(Algorithm::Tree, one), &percent),
            text(plan.best(network, ranks, Load::MicroBatches(4)), &percent),
            plan.micro_batches_needed(network, ranks).to_string(),
            text(load, &|s| thousands(plan.speed(ranks, s.seconds()))),
        ]);
    }
    align(rows)
}

/// What a reader must know to trust the table.
pub fn notes(record: &Record) -> Vec<String> {
    let plan = &record.plan;
    let mut notes = vec![format!(
        "`{}`: {} parameters, {:.0} MiB of gradients in buckets of {:.0} MiB; {:.2} ms a sequence of {} at MFU {} of {} TFLOP/s, whatever the size of the micro-batch: a rank that has only a few sequences is slower than that.",
        plan.config,
        thousands(plan.parameters),
        4.0 * plan.parameters / MIB,
        plan.bucket_bytes / MIB,
        plan.sequence_seconds() * 1e3,
        plan.sequence_length,
        plan.mfu,
        plan.peak_tflops
    )];
    notes.push(format!(
        "Same batch: {} sequences over all ranks, by the better of ring and tree. Same load: {} sequences a rank, so that the batch grows with the ranks. Efficiency: share of the speed without communication.",
        plan.batch_size, plan.micro_batch_size
    ));
    notes.extend(
        record
            .networks
            .iter()
            .filter(|n| !n.source.is_empty())
            .map(|n| format!("{}: {:.1} us, {:.2} GB/s a rank; {}.", n.name, n.alpha * 1e6, n.beta / 1e9, n.source)),
    );
    if let Some(measured) = &record.measured {
        notes.push(format!(
            "What was measured is loopback on {} cores: the ranks share them and their memory, and more ranks than cores take turns (times ranks / cores). It tests the form of the model, alpha and beta; it says nothing of a real network's congestion.",
            measured.cores
        ));
    }
    notes
}

/// Sentences that follow from the numbers.
pub fn findings(record: &Record) -> Vec<String> {
    let mut all = record.measured.as_ref().map(of_measured).unwrap_or_default();
    all.extend(record.networks.iter().map(|network| of_network(&record.plan, network)));
    all.extend(of_buckets(record));
    all.extend(of_sharding(record));
    all
}

fn of_measured(measured: &Measured) -> Vec<String> {
    let Some(network) = measured.network() else { return Vec::new() };
    let list = |ranks: &[u64]| ranks.iter().map(u64::to_string).collect::<Vec<_>>().join(" and ");
    let mut all = vec![format!(
        "Measured between processes of one machine: alpha = {:.0} us, beta = {:.2} GB/s a rank, fitted on the sums of {} ranks.",
        network.alpha * 1e6,
        network.beta / 1e9,
        list(&measured.fit_on)
    )];
    let mut counts: Vec<u64> = measured.sums.iter().map(|t| t.ranks).collect();
    counts.dedup();
    for ranks in counts {
        let sums = measured.sums.iter().filter(|t| t.ranks == ranks);
        let ratios: Vec<f64> = sums.map(|t| measured.sum(&network, t) / t.seconds).collect();
        let by = |choose: fn(f64, f64) -> f64| ratios.iter().copied().reduce(choose);
        let (Some(low), Some(high), Some(middle)) = (by(f64::min), by(f64::max), median(&ratios)) else { continue };
        let fitted = if measured.fit_on.contains(&ranks) { "fitted" } else { "not fitted" };
        all.push(format!(
            "Sums of {ranks} ranks ({fitted}): the model has {low:.2} to {high:.2} times what was measured, median {middle:.2}."
        ));
    }
    for step in measured.steps.iter().filter(|s| s.ranks > 1) {
        let Some(predicted) = measured.step(&network, step) else { continue };
        all.push(format!(
            "A training step of {} ranks, none of them fitted, takes {:.1} ms ({:.1} ms of communication, {:.1} ms exposed); from the step of one rank and the sums the model says {:.1} ms ({:+.0} %).",
            step.ranks,
            step.seconds * 1e3,
            step.communication * 1e3,
            step.exposed * 1e3,
            predicted * 1e3,
            100.0 * (predicted / step.seconds - 1.0)
        ));
    }
    all
}

/// The last number of ranks before the efficiency falls below what is worthwhile.
fn last_worthwhile(plan: &Plan, network: &Network, load: Load) -> u64 {
    let worth = |ranks: &u64| plan.best(network, *ranks, load).is_some_and(|s| s.efficiency() >= WORTHWHILE);
    all_ranks().take_while(worth).last().unwrap_or(1)
}

fn up_to(ranks: u64) -> String {
    if ranks == 1 {
        "with one rank alone".into()
    } else {
        format!("up to {ranks} ranks")
    }
}

fn of_network(plan: &Plan, network: &Network) -> String {
    let most = 1u64 << LARGEST;
    let paper = plan.best(network, PAPERS, Load::SameBatch).map_or_else(|| "-".into(), percent);
    let needed = plan.micro_batches_needed(network, most);
    let remedy = if needed == 1 {
        "one micro-batch a rank keeps 80 %".to_string()
    } else {
        format!(
            "80 % takes {needed} micro-batches a rank (a batch of {})",
            thousands((most * needed * plan.micro_batch_size as u64) as f64)
        )
    };
    format!(
        "{}: 80 % and more {} with the batch of {}, and {} with {} sequences a rank; {paper} at {PAPERS} ranks, the paper's number, with that batch. At {most} ranks {remedy}.",
        network.name,
        up_to(last_worthwhile(plan, network, Load::SameBatch)),
        thousands(plan.batch_size as f64),
        up_to(last_worthwhile(plan, network, Load::MicroBatches(1))),
        plan.micro_batch_size
    )
}

/// Where the first byte of every bucket costs more than the bytes.
fn of_buckets(record: &Record) -> Option<String> {
    let plan = &record.plan;
    let ranks = 1u64 << LARGEST;
    let larger = Plan { bucket_bytes: 4.0 * plan.bucket_bytes, ..plan.clone() };
    let ring = |plan: &Plan, n: &Network| plan.step(n, Algorithm::Ring, ranks, Load::MicroBatches(1)).map_or(0.0, |s| s.efficiency());
    let gain = |n: &&Network| ring(&larger, n) - ring(plan, n);
    let network = record.networks.iter().max_by(|a, b| gain(a).total_cmp(&gain(b)))?;
    let tree = plan.step(network, Algorithm::Tree, ranks, Load::MicroBatches(1))?;
    (gain(&network) > 0.01).then(|| {
        format!(
            "Buckets of {:.0} MiB instead of {:.0} bring a ring of {ranks} ranks on {} from {:.0} to {:.0} %; a tree has {}.",
            larger.bucket_bytes / MIB,
            plan.bucket_bytes / MIB,
            network.name,
            100.0 * ring(plan, network),
            100.0 * ring(&larger, network),
            percent(tree)
        )
    })
}

/// ZeRO-1: what it saves and what it costs.
fn of_sharding(record: &Record) -> Option<String> {
    let (plan, network) = (&record.plan, record.networks.iter().find(|n| n.name.starts_with("InfiniBand")).or(record.networks.last())?);
    let saved = 8.0 * plan.parameters * (1.0 - 1.0 / PAPERS as f64) / MIB;
    // The weights are gathered when they are known: half of a ring, and not hidden.
    let cost = 0.5 * Algorithm::Ring.seconds(network, PAPERS, 4.0 * plan.parameters);
    Some(format!(
        "ZeRO-1 at {PAPERS} ranks frees {saved:.0} MiB of a rank's memory, room for larger micro-batches, and costs {:.1} ms more a step on {}: it saves memory, not time.",
        cost * 1e3,
        network.name
    ))
}

/// The charts, with their files' names and captions.
pub fn charts(record: &Record) -> Vec<(&'static str, String, LineChart)> {
    let mut all = vec![
        (
            "efficiency",
            format!("Share of the ideal speed with the batch of {}, by the better of ring and tree.", record.plan.batch_size),
            efficiency(record),
        ),
        ("speed", format!("Tokens a second with {} sequences a rank.", record.plan.micro_batch_size), speed(record)),
    ];
    if let Some(measured) = &record.measured {
        all.extend(sums(measured).map(|chart| ("sums", "Sums between processes of this machine; grey: the model.".to_string(), chart)));
        all.extend(steps(measured).map(|chart| {
            (
                "steps",
                "A training step with the same load a rank; the model knows only the step of one rank, and the sums.".to_string(),
                chart,
            )
        }));
    }
    all
}

fn efficiency(record: &Record) -> LineChart {
    let of = |n: &Network| {
        let point = |ranks: u64| Some((ranks as f64, record.plan.best(n, ranks, Load::SameBatch)?.efficiency()));
        Series::marked(&n.name, all_ranks().filter_map(point).collect())
    };
    LineChart {
        title: "Where it stops scaling".into(),
        x: "ranks".into(),
        y: "efficiency".into(),
        log_x: true,
        log_y: false,
        series: record.networks.iter().map(of).collect(),
    }
}

fn speed(record: &Record) -> LineChart {
    let plan = &record.plan;
    let of = |n: &Network| {
        let point = |ranks: u64| Some((ranks as f64, plan.speed(ranks, plan.best(n, ranks, Load::MicroBatches(1))?.seconds())));
        Series::marked(&n.name, all_ranks().filter_map(point).collect())
    };
    let one = plan.sequence_seconds() * plan.micro_batch_size as f64;
    let ideal = Series::line("ideal", all_ranks().map(|r| (r as f64, plan.speed(r, one))).collect()).reference();
    LineChart {
        title: "The same load a rank".into(),
        x: "ranks".into(),
        y: "tokens a second".into(),
        log_x: true,
        log_y: true,
        series: record.networks.iter().map(of).chain([ideal]).collect(),
    }
}

fn sums(measured: &Measured) -> Option<LineChart> {
    let network = measured.network()?;
    let mut counts: Vec<u64> = measured.sums.iter().map(|t| t.ranks).collect();
    counts.dedup();
    let of = |ranks: u64, y: &dyn Fn(&Timing) -> f64| -> Vec<(f64, f64)> {
        measured.sums.iter().filter(|t| t.ranks == ranks).map(|t| (t.bytes / 1024.0, y(t) * 1e3)).collect()
    };
    let mut series: Vec<Series> = counts
        .iter()
        .map(|ranks| {
            let fitted = if measured.fit_on.contains(ranks) { "" } else { ", not fitted" };
            Series::marked(format!("{ranks} ranks{fitted}"), of(*ranks, &|t| t.seconds))
        })
        .collect();
    series.extend(
        counts.iter().map(|ranks| Series::line(format!("model, {ranks} ranks"), of(*ranks, &|t| measured.sum(&network, t))).reference()),
    );
    Some(LineChart { title: "Sums of gradients".into(), x: "KiB".into(), y: "ms".into(), log_x: true, log_y: true, series })
}

fn steps(measured: &Measured) -> Option<LineChart> {
    let network = measured.network()?;
    let mut steps = measured.steps.clone();
    steps.sort_by_key(|s| s.ranks);
    let points = |of: &dyn Fn(&TrainingStep) -> Option<f64>| -> Vec<(f64, f64)> {
        steps.iter().filter_map(|s| Some((s.ranks as f64, of(s)? * 1e3))).collect()
    };
    let series =
        vec![Series::marked("measured", points(&|s| Some(s.seconds))), Series::marked("model", points(&|s| measured.step(&network, s)))];
    (steps.len() > 1).then(|| LineChart {
        title: "A training step".into(),
        x: "ranks".into(),
        y: "ms".into(),
        log_x: false,
        log_y: false,
        series,
    })
}

/// Table, sentences and notes as text.
pub fn text(record: &Record) -> String {
    let below = findings(record).into_iter().chain(notes(record)).map(|line| format!("- {line}\n"));
    format!("{}\n{}", table(record), below.collect::<String>())
}

/// Writes `scaling.json`, `table.txt` and the plots.
pub fn write(record: &Record, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let save = |name: &str, text: &str| replace(&out.join(name), text.as_bytes()).with_context(|| out.join(name).display().to_string());
    save("scaling.json", &(serde_json::to_string_pretty(record)? + "\n"))?;
    save("table.txt", &table(record))?;
    charts(record).into_iter().try_for_each(|(name, _, chart)| chart.render(&out.join(name)).map(|_| ())).map_err(Into::into)
}
