//! One experiment: a table, charts, and sentences that follow from the numbers.

use super::claims::{Claim, State};
use super::efficiency;
use super::evidence::Evidence;
use crate::eval::statistics::Estimate;
use crate::experiments::efficiency::{pass, time_by_n};
use crate::experiments::results::{Comparison, Group, Results};
use crate::experiments::scaling::record::Record;
use crate::experiments::scaling::report;
use crate::experiments::{shift, spectrum, theorems};
use crate::log::heatmap::HeatMap;
use crate::log::plot::{Chart, LineChart, Series};
use crate::log::progress::duration;
use anyhow::Result;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Folder and title, in the order of the report.
pub const TITLES: [(&str, &str); 24] = [
    ("spectrum", "Figure 1: the spectrum of attention"),
    ("theorems", "Theorems 1 and 2"),
    ("figure3ab", "Figure 3 a, b: the price of k"),
    ("figure3a-long", "Figure 3 a after four times the training"),
    ("figure3c", "Figure 3 c: sharing"),
    ("figure3d", "Figure 3 d: k fixed, n growing"),
    ("table2", "Table 2: fine-tuning, tasks from the embedded text"),
    ("table2-sst2", "Table 2: fine-tuning, SST-2"),
    ("tasks-pretrain", "Table 2: what SST-2, IMDB and QNLI start from"),
    ("table2-pretrain", "Table 2: what it starts from beside Figure 3's models"),
    ("table2-qqp", "Table 2: fine-tuning, QQP"),
    ("table2-imdb", "Table 2: fine-tuning, IMDB reviews"),
    ("table2-qnli", "Table 2: fine-tuning, QNLI's dev rows split anew"),
    ("efficiency", "Table 3 and Figure 2: time and memory"),
    ("initialisation", "How E and F start"),
    ("projections", "General projections"),
    ("k-by-depth", "k by depth"),
    ("bias", "Where the biases stand"),
    ("padding", "Padding"),
    ("shift", "Text that is moved"),
    ("warm-start", "E and F from singular directions"),
    ("smoothing", "Label smoothing and Adam"),
    ("listops", "Long Range Arena: ListOps"),
    ("scaling", "More ranks: a model of step time"),
];

/// What a reader sees of an experiment.
pub struct Page {
    /// Below the folder of results.
    pub folder: String,
    pub title: String,
    pub about: String,
    pub table: Vec<Vec<String>>,
    /// Sentences made from the numbers.
    pub findings: Vec<String>,
    /// What the paper's claims come to by these numbers.
    pub claims: Vec<String>,
    /// What a reader must know to trust them.
    pub notes: Vec<String>,
    pub charts: Vec<Picture>,
    pub environment: Value,
}

/// A chart with its file's name.
pub struct Picture {
    pub name: String,
    pub caption: String,
    pub chart: Drawing,
}

pub enum Drawing {
    Lines(LineChart),
    Heat(HeatMap),
}

impl Picture {
    /// Writes PNG and SVG, and gives the SVG.
    pub fn render(&self, folder: &Path) -> Result<String> {
        let path = folder.join(&self.name);
        Ok(match &self.chart {
            Drawing::Lines(chart) => chart.render(&path)?,
            Drawing::Heat(chart) => chart.render(&path)?,
        })
    }
}

/// All pages, in the order of [`TITLES`], others after them by name.
pub fn pages(evidence: &Evidence, claims: &[Claim]) -> Vec<Page> {
    let place = |folder: &str| entry(folder).map_or(TITLES.len(), |(i, _)| i);
    let mut pages: Vec<Page> = evidence.sweeps.iter().map(|(folder, results)| of_sweep(folder, results)).collect();
    pages.extend(evidence.records.iter().filter_map(|(folder, (kind, value))| of_record(evidence, folder, kind, value)));
    for page in &mut pages {
        let here = claims.iter().filter(|c| c.folder == page.folder && !matches!(c.state, State::NotRun));
        page.claims =
            here.map(|c| format!("{}: {} **{}**: {}.", c.place, c.text, c.state.words(), c.evidence.trim_end_matches('.'))).collect();
        // What a claim says with its state need not be said twice.
        page.findings.retain(|finding| !page.claims.iter().any(|claim| claim.contains(finding.trim_end_matches('.'))));
    }
    pages.sort_by(|a, b| place(&a.folder).cmp(&place(&b.folder)).then(a.folder.cmp(&b.folder)));
    pages
}

fn of_sweep(folder: &str, results: &Results) -> Page {
    let groups = results.groups();
    let unit = if results.is_of_tasks() { "score" } else { "nats" };
    let digits = 4;
    let mut header = vec![
        "model".to_string(),
        "seeds".into(),
        unit.into(),
        "against".into(),
        "difference".into(),
        "95 % interval".into(),
        "p".into(),
        "published".into(),
    ];
    let plateau = !results.is_of_tasks();
    if plateau {
        header.extend(["perplexity".into(), "bits a byte".into(), "half a nat below unigrams from tokens".into(), "tokens/s".into()]);
    }
    let row = |group: &Group| {
        let c = group.against.as_ref();
        let test = c.and_then(|c| c.test);
        let dash = || "-".to_string();
        let mut row = vec![
            group.name.clone(),
            group.seeds.len().to_string(),
            group.estimate.text(digits),
            c.map_or_else(dash, |c| c.other.clone()),
            c.map_or_else(dash, |c| format!("{:+.digits$}", c.difference)),
            test.map_or_else(dash, |t| format!("{:+.digits$} to {:+.digits$}", t.interval().0, t.interval().1)),
            test.map_or_else(dash, |t| p_value(t.p)),
            c.and_then(|c| c.paper).map_or_else(dash, |p| format!("{p:+.digits$}")),
        ];
        if plateau {
            row.push(format!("{:.2}", group.estimate.mean.exp()));
            row.push(group.bits_per_byte.map_or_else(dash, |b| format!("{:.3}", b.mean)));
            row.push(group.plateau_tokens.map_or_else(|| "not all".into(), |e| format!("{:.1} M", e.mean / 1e6)));
            row.push(group.tokens_per_second.map_or_else(dash, |s| format!("{s:.0}")));
        }
        row
    };
    let findings = groups.iter().filter_map(|g| g.against.as_ref().map(|c| sentence(&g.name, c, unit))).collect();
    let mut notes = vec!["Mean ± standard error over seeds; a difference is that of pairs with the same seed, p by a paired t test, not corrected for the number of comparisons.".to_string()];
    if !results.programs.is_empty() {
        notes.push(format!(
            "The runs are of more than one program or processor, so that their speeds are not compared: {}.",
            results.programs.join(", ")
        ));
    } else if results.runs.iter().any(|r| r.speed.is_some()) && plateau {
        notes.push(
            "tokens/s: of each run's fastest logged stretch, which other work on the machine disturbs least; median over seeds.".into(),
        );
    }
    let unsteady: Vec<&str> = groups.iter().filter(|g| !g.is_steady).map(|g| g.name.as_str()).collect();
    if !unsteady.is_empty() && results.programs.is_empty() {
        notes.push(format!("Other work on the machine slowed runs of {} down: nothing is drawn by time.", unsteady.join(", ")));
    }
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
    let falls: Vec<String> = groups.iter().filter_map(|g| Some(format!("{} {:.3}", g.name, g.last_fall()?))).collect();
    if plateau && !falls.is_empty() {
        notes.push(format!(
            "How far from convergence: over the last fifth of its tokens, while the learning rate falls too, the mean loss fell by: {}.",
            falls.join(", ")
        ));
    }
    notes.extend(rates(results));
    notes.extend(rows(results));
    if plateau {
        notes.push("From which tokens on a model stays half a nat below the unigrams is known to the evaluation: the mean over seeds of the first one after which the loss never comes back.".into());
    }
    notes.extend(results.published.iter().map(|p| format!("Published elsewhere: {}: {} {} ({}).", p.what, p.value, p.unit, p.source)));
    notes.extend(results.silent.iter().map(|(key, why)| format!("The paper is silent on `{key}`: {why}.")));
    let (count, hours) = results.hours();
    notes.push(format!("Wall time: {hours:.2} hours of training steps in {count} runs, each by its own clock."));
    notes.push(format!("Made by `{}`; configs {}.", results.command, &results.configs_sha256.chars().take(16).collect::<String>()));
    Page {
        folder: folder.into(),
        title: title(folder),
        about: results.about.clone(),
        table: std::iter::once(header).chain(groups.iter().map(row)).collect(),
        findings,
        claims: Vec::new(),
        notes,
        charts: curves(folder, &groups, results),
        environment: results.environment.clone(),
    }
}

/// The place of a folder in [`TITLES`], and what its name has beyond that: `spectrum/trained` is the spectrum's `trained`.
fn entry(folder: &str) -> Option<(usize, &str)> {
    let base = folder.strip_prefix("paper-").unwrap_or(folder);
    let rest = |name: &str| base.strip_prefix(name).filter(|rest| rest.is_empty() || rest.starts_with(['-', '/']));
    let found = TITLES.iter().enumerate().filter_map(|(i, (name, _))| Some((i, rest(name)?)));
    // The longest name: table2-sst2 is no table2.
    found.min_by_key(|(_, rest)| rest.len())
}

fn title(folder: &str) -> String {
    let mut title = match entry(folder) {
        Some((i, "")) => TITLES[i].1.to_string(),
        Some((i, rest)) => format!("{}: {}", TITLES[i].1, &rest[1..]),
        None => folder.to_string(),
    };
    if folder.starts_with("paper-") {
        title += " (the paper's scale)";
    }
    title
}

/// Rates that were chosen from a grid.
fn rates(results: &Results) -> Option<String> {
    let chosen = results.chosen_rates();
    if chosen.is_empty() {
        return None;
    }
    let words: Vec<String> = chosen.iter().map(|(group, rate)| format!("{group} {rate}")).collect();
    let tried = results.rates.iter().cloned().collect::<Vec<_>>().join(", ");
    Some(format!("Learning rates, of {tried}, chosen on the rows that are not reported: {}.", words.join(", ")))
}

/// What the rows of each task add to the noise of its seeds.
fn rows(results: &Results) -> Option<String> {
    let mut tasks: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for run in &results.runs {
        let s = &run.summary;
        let rows = s["dev_rows"].as_f64().map(|rows| if s["reported_value"].is_null() { rows } else { rows / 2.0 });
        if let (Some(task), Some("accuracy"), Some(rows), Some(score)) =
            (s["task"].as_str(), s["metric"].as_str(), rows, results.value(run))
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

pub fn p_value(p: f64) -> String {
    if p < 0.001 {
        "< 0.001".into()
    } else {
        format!("{p:.3}")
    }
}

/// A comparison in words; none of them is chosen by hand.
pub fn sentence(name: &str, c: &Comparison, unit: &str) -> String {
    let Some(test) = c.test else {
        let paper = c.paper.map(|p| format!(" (published: {p:+.3})")).unwrap_or_default();
        return format!("{name} differs from {} by {:+.4} {unit}{paper}: seeds too few, or too alike, to say more.", c.other, c.difference);
    };
    let (low, high) = test.interval();
    let seeds = test.difference.count;
    let seen = if low > 0.0 || high < 0.0 {
        let more = if c.difference > 0.0 { "more" } else { "less" };
        format!("{name} has {:.4} {unit} {more} than {} ({seeds} seeds, p {})", c.difference.abs(), c.other, p_with_sign(test.p))
    } else {
        format!("{seeds} seeds do not tell {name} from {} ({:+.4} {unit}, {low:+.4} to {high:+.4})", c.other, c.difference)
    };
    let Some(paper) = c.paper else { return seen + "." };
    let beside = if (low..=high).contains(&paper) {
        "within our interval".to_string()
    } else if paper != 0.0 && c.difference / paper > 0.0 && (low > 0.0 || high < 0.0) {
        let ratio = c.difference / paper;
        let digits = usize::from(ratio < 10.0);
        format!("of the same sign; ours is about {ratio:.digits$} times as large")
    } else {
        "outside our interval".to_string()
    };
    format!("{seen}; the published {paper:+.3} is {beside}.")
}

fn p_with_sign(p: f64) -> String {
    if p < 0.001 {
        "< 0.001".into()
    } else {
        format!("= {p:.3}")
    }
}

/// A point of a group's curve, moved; None: left out.
type Scale<'a> = &'a dyn Fn(&Group, (f64, f64)) -> Option<(f64, f64)>;

/// Beginnings of the names of pictures of curves, which are not always all drawn.
pub(super) const CURVES: [&str; 2] = ["by_tokens", "by_time"];

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

fn of_record(evidence: &Evidence, folder: &str, kind: &str, value: &Value) -> Option<Page> {
    let (table, charts, about) = match kind {
        "spectrum" => {
            let first = evidence.of_kind("spectrum").next().map(|(folder, _)| folder) == Some(folder);
            let mut charts = vec![Picture {
                name: "heatmap".into(),
                caption: "Share of the sum of the singular values that the largest have, layer by head.".into(),
                chart: Drawing::Heat(spectrum::heat_map(value)),
            }];
            if first {
                let all: Vec<&Value> = evidence.of_kind("spectrum").map(|(_, v)| v).collect();
                let caption = "Normalised cumulative singular value, mean over heads, layers and sequences. The grey marks are read off the paper's Figure 1.";
                charts.insert(0, Picture { name: "curves".into(), caption: caption.into(), chart: Drawing::Lines(spectrum::curve(&all)) });
            }
            (spectrum::table(value), charts, "Singular values of attention matrices on real text (linformer spectrum).")
        }
        "theorems" => {
            let picture = |theorem: u64, name: &str| Picture {
                name: name.into(),
                caption: format!("Errors of theorem {theorem}'s approximation, beside the bound where it says anything."),
                chart: Drawing::Lines(theorems::plot(value, theorem)),
            };
            let charts = vec![picture(1, "theorem_1"), picture(2, "theorem_2")];
            (theorems::table(value), charts, "Errors of the paper's approximations on real attention (linformer theorems).")
        }
        "shift" => {
            let caption = "The same masked tokens, the text moved to the right, positions with it: they are counted from the first real token, so that full attention cannot notice.".into();
            let charts = vec![Picture { name: "shift".into(), caption, chart: Drawing::Lines(shift::plot(value)) }];
            (shift::table(value), charts, "How bound to positions is a model? (linformer shift)")
        }
        "efficiency" => {
            let caption = "Time a token against the length of a sequence, log-log.".into();
            let charts = vec![Picture { name: "time_by_n".into(), caption, chart: Drawing::Lines(time_by_n(value)) }];
            return Some(Page {
                folder: folder.into(),
                title: title(folder),
                about: format!("Time and memory of a {} (linformer efficiency).", pass(value)),
                findings: super::claims::of_record(kind, value),
                claims: Vec::new(),
                table: efficiency::table(value),
                notes: efficiency::notes(value).into_iter().chain(made_by(value)).collect(),
                charts,
                environment: value["environment"].clone(),
            });
        }
        "scaling" => return of_scaling(folder, value),
        _ => return None,
    };
    let (table, mut notes) = cells(&table);
    notes.extend(made_by(value));
    Some(Page {
        folder: folder.into(),
        title: title(folder),
        about: about.into(),
        findings: super::claims::of_record(kind, value),
        claims: Vec::new(),
        table,
        notes,
        charts,
        environment: value["environment"].clone(),
    })
}

/// The command behind a measurement, and how long it took.
fn made_by(record: &Value) -> Option<String> {
    let environment = &record["environment"];
    let words: Vec<&str> = environment["command"].as_array()?.iter().skip(1).filter_map(Value::as_str).collect();
    // A long table of time and memory is made in pieces.
    let call = if record["efficiency"].is_object() { "the last call in" } else { "in" };
    let time = environment["wall_seconds"].as_f64().map(|s| format!(", {call} {}", duration(s))).unwrap_or_default();
    Some(format!("Made by `linformer {}`{time}.", words.join(" ")))
}

fn of_scaling(folder: &str, value: &Value) -> Option<Page> {
    let record: Record = serde_json::from_value(value.clone()).ok()?;
    let pictures = report::charts(&record).into_iter().map(|(name, caption, chart)| Picture {
        name: name.into(),
        caption,
        chart: Drawing::Lines(chart),
    });
    Some(Page {
        folder: folder.into(),
        title: title(folder),
        about: "What 1 to 1,024 ranks would bring to the paper's model, and the model of step time behind it, held against real ranks (linformer scaling).".into(),
        table: cells(&report::table(&record)).0,
        findings: report::findings(&record),
        claims: Vec::new(),
        notes: report::notes(&record),
        charts: pictures.collect(),
        environment: record.environment,
    })
}

/// A table of text as cells, and what stands below it.
fn cells(text: &str) -> (Vec<Vec<String>>, Vec<String>) {
    let (mut rows, mut notes) = (Vec::new(), Vec::new());
    let columns = text.lines().next().map_or(0, |line| split(line).len());
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.starts_with('─')) {
        let row = split(line);
        if i == 0 || row.len() == columns {
            rows.push(row);
        } else {
            notes.push(line.to_string());
        }
    }
    (rows, notes)
}

/// Columns stand two spaces apart.
fn split(line: &str) -> Vec<String> {
    line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_string).collect()
}
