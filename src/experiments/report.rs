//! One table, plots and a page from the folders of finished runs.

use super::paper::FIGURE_3;
use super::runs::{differing, find, folders_below, has_halves, of_defined, over_seeds, reported_score, scored_rows, settings, OF_HALVES};
use crate::durable::replace;
use crate::exchange::source::read_json;
use crate::log::jsonl;
use crate::log::plot::{BarChart, Chart, LineChart, Series};
use crate::log::progress::thousands;
use crate::log::tensorboard::EventFile;
use crate::table::align;
use crate::train::run::{is_setting, read_config, read_summary};
use anyhow::{bail, Context, Result};
use serde_json::{json, Map, Value};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A finished run.
struct Run {
    dir: PathBuf,
    summary: Value,
    /// What must be alike for two runs to be seeds of one thing.
    settings: Map<String, Value>,
}

impl Run {
    fn read(dir: PathBuf, summary: Value) -> Self {
        // Through the type: keys that its program did not know had their defaults. A config of another program's is taken as it stands.
        let as_it_stands = || read_json(&dir.join("config.json")).map(Value::Object).unwrap_or_default();
        let config = read_config(&dir).ok().and_then(|config| serde_json::to_value(config).ok()).unwrap_or_else(as_it_stands);
        let mut settings = settings(&config);
        // By the evaluations there are, a checkpoint is chosen.
        let chooses = |key: &str| ["train.eval_every", "train.early_stopping_patience"].contains(&key);
        settings.retain(|key, _| is_setting(key) || chooses(key));
        settings.shift_remove("train.seed");
        for key in ["run.init_from", "run.projections_from"] {
            if let Some(Value::String(path)) = settings.get_mut(key) {
                *path = without_seed(path);
            }
        }
        Self { dir, summary, settings }
    }

    fn text(&self, key: &str) -> String {
        self.summary[key].as_str().unwrap_or_default().into()
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.summary[key].as_f64()
    }

    /// The name without its seed.
    fn group(&self) -> String {
        without_seed(&self.text("name"))
    }

    fn curve(&self, split: &str, x: &str, y: &str) -> Vec<(f64, f64)> {
        let lines = jsonl::read(&self.dir.join("metrics.jsonl")).unwrap_or_default();
        let of_split = lines.iter().filter(|l| l.get("split").and_then(Value::as_str) == Some(split));
        let number = |line: &Map<String, Value>, key: &str| line.get(key).and_then(Value::as_f64);
        of_split.filter_map(|l| Some((number(l, x)?, number(l, y)?))).collect()
    }
}

/// One line of the table: a pretrained model (over its seeds) and what came of it. A value is None where it is not defined.
struct Line {
    name: String,
    model: Value,
    perplexities: Vec<Option<f64>>,
    unigram: Option<f64>,
    speeds: Vec<Option<f64>>,
    /// Scores by task.
    scores: BTreeMap<String, Vec<Option<f64>>>,
}

impl Line {
    fn has_undefined(&self) -> bool {
        self.perplexities.iter().chain(self.scores.values().flatten()).any(Option::is_none)
    }
}

/// Everything a report says.
pub struct Report {
    runs: Vec<Run>,
    lines: Vec<Line>,
    /// Tasks with their metric and the share of the commonest class.
    tasks: BTreeMap<String, (String, Option<f64>)>,
    /// Runs without a summary: broken off, failed, or at work.
    unfinished: Vec<PathBuf>,
}

impl Report {
    /// From every run below `dirs` that has a summary.
    pub fn read(dirs: &[PathBuf]) -> Result<Self> {
        let finished = |dir: &Path| read_summary(dir).filter(|s| s["kind"].is_string());
        let folders = folders_below(dirs, &|dir| finished(dir).is_some())?;
        let with_summary = folders.into_iter().filter_map(|dir| Some((finished(&dir)?, dir)));
        let runs: Vec<Run> = with_summary.map(|(summary, dir)| Run::read(dir, summary)).collect();
        if runs.is_empty() {
            let all = dirs.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(", ");
            bail!("{all}: no finished run (a folder with summary.json) is here");
        }
        let tasks = runs
            .iter()
            .filter(|r| r.text("kind") == "finetune")
            .map(|r| (r.text("task"), (r.text("metric"), r.number("majority"))))
            .collect();
        let lines = lines(&runs);
        let unfinished = find(dirs)?.into_iter().map(|run| run.path).filter(|path| !runs.iter().any(|r| r.dir == *path)).collect();
        Ok(Self { runs, lines, tasks, unfinished })
    }

    /// Writes `report.html`, plots, `table.csv` and `table.json` into `out`, and gives the table as text.
    pub fn write(&self, out: &Path) -> Result<String> {
        fs::create_dir_all(out).with_context(|| out.display().to_string())?;
        let plots = self.plots(out)?;
        let table = self.table();
        let save = |name: &str, text: &str| replace(&out.join(name), text.as_bytes()).with_context(|| out.join(name).display().to_string());
        let mut csv = csv::Writer::from_writer(Vec::new());
        table.iter().try_for_each(|row| csv.write_record(row))?;
        save("table.csv", &String::from_utf8(csv.into_inner()?)?)?;
        save("table.json", &(serde_json::to_string_pretty(&self.json())? + "\n"))?;
        let text = align(table.clone()) + &self.notes();
        save("table.txt", &text)?;
        save("report.html", &self.page(&table, &plots))?;
        self.events(out, &text).with_context(|| out.join(EVENTS).display().to_string())?;
        Ok(text)
    }

    /// The table and the plots for TensorBoard's tabs Text and Images.
    fn events(&self, out: &Path, table: &str) -> std::io::Result<()> {
        let mut events = EventFile::empty(&out.join(EVENTS))?;
        events.text("report/table", &format!("```\n{table}```"))?;
        for name in PLOTS {
            if let Ok(bytes) = fs::read(out.join(format!("{name}.png"))) {
                events.png(&format!("report/{name}"), bytes)?;
            }
        }
        Ok(())
    }

    fn table(&self) -> Vec<Vec<String>> {
        let head = ["model", "k", "parameters", "valid. perplexity"].map(str::to_string);
        let scores = self.tasks.iter().map(|(task, (metric, _))| format!("{task} {metric}"));
        let header: Vec<String> = head.into_iter().chain(scores).chain(["tokens/s".to_string()]).collect();
        let mut rows = vec![header];
        for line in &self.lines {
            let k = line.model["k"].as_str().unwrap_or("-").to_string();
            let parameters = line.model["parameters"].as_f64().map(thousands).unwrap_or_default();
            let scores = self.tasks.keys().map(|task| cell(line.scores.get(task).map(Vec::as_slice).unwrap_or_default(), 3));
            let head = [line.name.clone(), k, parameters, cell(&line.perplexities, 2)];
            rows.push(head.into_iter().chain(scores).chain([cell(&line.speeds, 0)]).collect());
        }
        let reference = |name: &str, perplexity: Option<f64>, score: &dyn Fn(&Option<f64>) -> String| -> Vec<String> {
            let perplexity = perplexity.map_or_else(|| "-".into(), |p| format!("{p:.2}"));
            let scores = self.tasks.values().map(|(_, majority)| score(majority));
            [name.to_string(), "-".into(), "-".into(), perplexity].into_iter().chain(scores).chain(["-".to_string()]).collect()
        };
        if let Some(unigram) = self.unigram() {
            rows.push(reference("unigram frequencies", Some(unigram), &|_| "-".into()));
        }
        if !self.tasks.is_empty() {
            rows.push(reference("majority class", None, &|m| m.map_or_else(|| "-".into(), |m| format!("{m:.3}"))));
        }
        rows
    }

    fn unigram(&self) -> Option<f64> {
        self.lines.iter().find_map(|l| l.unigram)
    }

    /// What a reader must know to trust the table.
    fn notes(&self) -> String {
        let seeds =
            self.lines.iter().map(|l| l.perplexities.len().max(l.scores.values().map(Vec::len).max().unwrap_or(0))).max().unwrap_or(0);
        let spread = if seeds < 2 {
            "One seed a model: differences of a few per cent may be chance."
        } else {
            "Mean ± standard deviation over seeds."
        };
        let mut notes = vec![spread.to_string()];
        if self.lines.iter().any(Line::has_undefined) {
            notes.push("Where the value of a seed is undefined, a mean is of the others, in the plots too.".into());
        }
        let rows = self.runs.iter().filter_map(|r| scored_rows(&r.summary)).fold(0.0, f64::max);
        if rows > 0.0 {
            let error = (0.16 / rows).sqrt();
            notes.push(format!(
                "Scores on up to {} rows of held-out text: the standard error of an accuracy of 0.8 is at least {error:.3}.",
                thousands(rows)
            ));
        }
        if self.runs.iter().any(|r| has_halves(&r.summary)) {
            notes.push(OF_HALVES.into());
        }
        // Earlier programs' flag was that of the last evaluation.
        let is_constant = |r: &&Run| match r.summary["scores"].as_object() {
            Some(scores) => scores.contains_key("constant_prediction"),
            None => r.summary["constant_prediction"] == true,
        };
        let constant: Vec<String> = self.runs.iter().filter(is_constant).map(|r| r.text("name")).collect();
        if !constant.is_empty() {
            notes.push(format!(
                "One and the same prediction for every row, at the checkpoint that the value is of: {}.",
                constant.join(", ")
            ));
        }
        let mut data: Vec<String> = self.runs.iter().filter(|r| r.text("kind") == "pretrain").map(|r| r.text("data_sha256")).collect();
        data.sort();
        data.dedup();
        if data.len() > 1 {
            notes.push("The runs were pretrained on different data or tokenizers: their perplexities do not compare.".into());
        }
        if !self.unfinished.is_empty() {
            let paths: Vec<String> = self.unfinished.iter().map(|path| path.display().to_string()).collect();
            notes.push(format!("Not finished, and not in the table: {}.", paths.join(", ")));
        }
        notes.join(" ") + "\n"
    }

    fn json(&self) -> Value {
        let line = |l: &Line| json!({"name": l.name, "model": l.model, "perplexity": l.perplexities, "unigram_perplexity": l.unigram, "scores": l.scores, "tokens_per_second": l.speeds});
        json!({
            "models": self.lines.iter().map(line).collect::<Vec<_>>(),
            "tasks": self.tasks.iter().map(|(name, (metric, majority))| json!({"task": name, "metric": metric, "majority": majority})).collect::<Vec<_>>(),
        })
    }

    /// Draws what there is data for; gives each plot's SVG and a caption.
    fn plots(&self, out: &Path) -> Result<Vec<(String, &'static str)>> {
        let mut plots = Vec::new();
        plots.extend(draw(self.perplexity_by_tokens(), &out.join(PLOTS[0]))?.map(|svg| {
            (svg, "Validation perplexity while training. The grey line is what token frequencies alone reach. A rise early on comes from training on sequences shorter than those of validation.")
        }));
        plots.extend(draw(self.perplexity_by_k(), &out.join(PLOTS[1]))?.map(|svg| {
            (svg, "The price of k: perplexity relative to full attention. The grey curves are read off the paper's Figure 3 a and b.")
        }));
        plots.extend(
            draw(self.scores(), &out.join(PLOTS[2]))?
                .map(|svg| (svg, "Scores on held-out documents after fine-tuning. Thin lines: always answering the commonest class.")),
        );
        Ok(plots)
    }

    fn perplexity_by_tokens(&self) -> Option<LineChart> {
        let mut runs: Vec<&Run> = self.runs.iter().filter(|r| r.text("kind") == "pretrain").collect();
        runs.sort_by(|a, b| cost(&b.summary["model"]).total_cmp(&cost(&a.summary["model"])));
        let mut series: Vec<Series> = runs.iter().map(|r| Series::line(r.text("name"), r.curve("valid", "tokens", "perplexity"))).collect();
        let ends = |s: &Series| s.points.last().map(|p| p.0);
        let (last, unigram) = (series.iter().filter_map(ends).fold(0.0, f64::max), self.unigram()?);
        let first = series.iter().filter_map(|s| s.points.first().map(|p| p.0)).fold(f64::INFINITY, f64::min);
        series.push(Series::line("unigram", vec![(first, unigram), (last, unigram)]).reference());
        Some(LineChart {
            title: "Masked-LM pretraining".into(),
            x: "tokens".into(),
            y: "validation perplexity".into(),
            log_x: false,
            log_y: true,
            series,
        })
    }

    /// Perplexity over that of full attention, against k/n.
    fn perplexity_by_k(&self) -> Option<LineChart> {
        let mean = |l: &Line| mean(&l.perplexities);
        let full = self.lines.iter().filter(|l| l.model["attention"] == "full").find_map(mean)?;
        let mut starts: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        for line in self.lines.iter().filter(|l| l.model["attention"] == "linformer") {
            let k = line.model["k"].as_str().and_then(|k| k.parse::<f64>().ok());
            if let (Some(k), Some(n), Some(perplexity)) = (k, line.model["n"].as_f64(), mean(line)) {
                let start = line.model["projection_init"].as_str().unwrap_or_default();
                starts.entry(format!("ours, E starts as {start}")).or_default().push((k / n, perplexity / full));
            }
        }
        let mut series: Vec<Series> = starts
            .into_iter()
            .map(|(name, mut points)| {
                points.sort_by(|a, b| a.0.total_cmp(&b.0));
                Series::marked(name, points)
            })
            .collect();
        if series.is_empty() {
            return None;
        }
        for figure in FIGURE_3 {
            let points = figure.linformer.iter().map(|(k, p)| (*k as f64 / figure.n as f64, p / figure.full)).collect();
            series.push(Series::marked(format!("paper, n = {}", figure.n), points).reference());
        }
        Some(LineChart {
            title: "Projected dimension".into(),
            x: "k / n".into(),
            y: "perplexity / perplexity of full attention".into(),
            log_x: false,
            log_y: true,
            series,
        })
    }

    fn scores(&self) -> Option<BarChart> {
        let lines: Vec<&Line> = self.lines.iter().filter(|l| !l.scores.is_empty()).collect();
        let means = |l: &Line| self.tasks.keys().map(|task| l.scores.get(task).and_then(|scores| mean(scores))).collect();
        let groups: Vec<(String, Vec<Option<f64>>)> = lines.iter().map(|l| (l.name.clone(), means(l))).collect();
        let metrics: Vec<&str> = self.tasks.values().map(|(metric, _)| metric.as_str()).collect();
        let y = if metrics.iter().all(|m| *m == "accuracy") { "accuracy" } else { "score" };
        (!groups.is_empty()).then(|| BarChart {
            title: "Fine-tuning".into(),
            y: y.into(),
            groups,
            series: self.tasks.keys().cloned().collect(),
            baselines: self.tasks.values().map(|(_, majority)| *majority).collect(),
            y_range: (0.0, 1.15),
        })
    }

    fn page(&self, table: &[Vec<String>], plots: &[(String, &'static str)]) -> String {
        let cells = |row: &Vec<String>, tag: &str| row.iter().map(|c| format!("<{tag}>{}</{tag}>", escape(c))).collect::<String>();
        let head = table.first().map(|row| cells(row, "th")).unwrap_or_default();
        let body: String = table.iter().skip(1).map(|row| format!("<tr>{}</tr>\n", cells(row, "td"))).collect();
        let figures: String =
            plots.iter().map(|(svg, caption)| format!("<figure>{svg}<figcaption>{}</figcaption></figure>\n", escape(caption))).collect();
        let environment = self.runs.first().and_then(|r| fs::read_to_string(r.dir.join("environment.json")).ok()).unwrap_or_default();
        let folders: String = self.runs.iter().map(|r| format!("<li><code>{}</code></li>", escape(&r.dir.display().to_string()))).collect();
        PAGE.replace("{table}", &format!("<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"))
            .replace("{notes}", &escape(&self.notes()))
            .replace("{figures}", &figures)
            .replace("{environment}", &escape(&environment))
            .replace("{runs}", &folders)
    }
}

/// Where TensorBoard finds the report, below the report's folder (not the folder of a run's own events).
const EVENTS: &str = "tensorboard-report";
const PLOTS: [&str; 3] = ["perplexity_by_tokens", "perplexity_by_k", "scores"];

const PAGE: &str = include_str!("report.html");

/// Draws a chart, or takes away what an earlier report drew in its place: neither a reader nor TensorBoard shall see that.
fn draw(chart: Option<impl Chart>, path: &Path) -> Result<Option<String>> {
    if let Some(chart) = chart {
        return Ok(Some(chart.render(path)?));
    }
    for ending in ["png", "svg"] {
        let _ = fs::remove_file(path.with_extension(ending));
    }
    Ok(None)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn cell(values: &[Option<f64>], digits: usize) -> String {
    over_seeds(values, |v| if digits == 0 { thousands(v) } else { format!("{v:.digits$}") })
}

/// Of what is defined.
fn mean(values: &[Option<f64>]) -> Option<f64> {
    of_defined(values).0
}

/// A run's name or path without the seeds in it: `runs/k/full_seed=0` is `runs/k/full`.
fn without_seed(path: &str) -> String {
    let of_name = |name: &str| name.split('_').filter(|part| !part.starts_with("seed=")).collect::<Vec<_>>().join("_");
    path.split('/').map(of_name).collect::<Vec<_>>().join("/")
}

/// A run on its way to a line of the table.
struct Entry<'a> {
    run: &'a Run,
    /// Of the line: the folder and the name without the seed, of the run or of its parent.
    key: String,
    name: String,
    settings: Map<String, Value>,
}

impl<'a> Entry<'a> {
    fn of(run: &'a Run) -> Self {
        let key = run.dir.with_file_name(run.group()).display().to_string();
        Self { run, key, name: run.group(), settings: run.settings.clone() }
    }

    /// On the line of the model that the run was fine-tuned from, if that is among `runs`.
    fn of_finetune(run: &'a Run, runs: &'a [Run], pretrained: &[Self]) -> Self {
        let own = Self::of(run);
        let from = run.summary["init_from"].as_str().map(Path::new);
        let Some(parent) = from.and_then(|from| runs.iter().find(|r| same(&r.dir, from))) else { return own };
        let line = pretrained.iter().find(|entry| entry.run.dir == parent.dir);
        let (key, name) = line.map_or_else(|| (Self::of(parent).key, parent.group()), |line| (line.key.clone(), line.name.clone()));
        let how = if run.summary["init_weights"] == true { "" } else { " from random weights" };
        let mut settings = own.settings;
        settings.shift_remove("run.init_from");
        Self { run, key: key + how, name: name + how, settings }
    }

    /// What of its settings other runs of its line and task do not share: nothing where they differ in their seed alone.
    fn apart_from(&self, entries: &[Self]) -> String {
        let beside = entries.iter().filter(|e| e.key == self.key && e.run.text("task") == self.run.text("task"));
        let all: Vec<&Map<String, Value>> = [self].into_iter().chain(beside).map(|e| &e.settings).collect();
        let own = |(key, values): (String, Vec<Value>)| match &values[0] {
            Value::String(text) => format!("{key}={text}"),
            other => format!("{key}={other}"),
        };
        let keys: Vec<String> = differing(&all).into_iter().map(own).collect();
        match keys.is_empty() {
            true => String::new(),
            false => format!(" with {}", keys.join(", ")),
        }
    }
}

/// Runs of a line that are not seeds of one thing come to lines of their own, which say in what they differ.
fn tell_apart(entries: &mut [Entry]) {
    let differences: Vec<String> = entries.iter().map(|entry| entry.apart_from(entries)).collect();
    for (entry, difference) in entries.iter_mut().zip(differences) {
        entry.key += &difference;
        entry.name += &difference;
    }
}

/// Pretrained models in the order of their cost, each with the scores of what was fine-tuned from it; then what has scores
/// alone: models that were fine-tuned from random weights, or in several settings.
fn lines(runs: &[Run]) -> Vec<Line> {
    let of_kind = |kind: &'static str| runs.iter().filter(move |r| r.text("kind") == kind);
    let mut pretrained: Vec<Entry> = of_kind("pretrain").map(Entry::of).collect();
    tell_apart(&mut pretrained);
    let mut finetuned: Vec<Entry> = of_kind("finetune").map(|run| Entry::of_finetune(run, runs, &pretrained)).collect();
    tell_apart(&mut finetuned);
    let mut lines: Vec<(String, Line)> = Vec::new();
    for entry in &pretrained {
        let line = line_of(&mut lines, entry);
        line.perplexities.push(entry.run.number("perplexity"));
        line.speeds.push(entry.run.number("tokens_per_second"));
        line.unigram = entry.run.number("unigram_perplexity");
    }
    for entry in &finetuned {
        let line = line_of(&mut lines, entry);
        line.scores.entry(entry.run.text("task")).or_default().push(reported_score(&entry.run.summary));
    }
    let names: Vec<String> = lines.iter().map(|(_, line)| line.name.clone()).collect();
    let is_twice = |name: &String| names.iter().filter(|other| *other == name).count() > 1;
    // Models of one name in two folders are named with their folders.
    let named = |(key, line): (String, Line)| if is_twice(&line.name) { Line { name: key, ..line } } else { line };
    let mut lines: Vec<Line> = lines.into_iter().map(named).collect();
    lines.sort_by(|a, b| {
        a.perplexities.is_empty().cmp(&b.perplexities.is_empty()).then(cost(&b.model).total_cmp(&cost(&a.model))).then(a.name.cmp(&b.name))
    });
    lines
}

/// Orders models: full attention first, then by k.
fn cost(model: &Value) -> f64 {
    model["k"].as_str().and_then(|k| k.split("..").next()?.parse().ok()).unwrap_or(f64::INFINITY)
}

fn same(a: &Path, b: &Path) -> bool {
    a == b || a.canonicalize().ok().is_some_and(|a| b.canonicalize().ok() == Some(a))
}

fn line_of<'a>(lines: &'a mut Vec<(String, Line)>, entry: &Entry) -> &'a mut Line {
    let at = lines.iter().position(|(key, _)| *key == entry.key).unwrap_or_else(|| {
        let line = Line {
            name: entry.name.clone(),
            model: entry.run.summary["model"].clone(),
            perplexities: Vec::new(),
            unigram: None,
            speeds: Vec::new(),
            scores: BTreeMap::new(),
        };
        lines.push((entry.key.clone(), line));
        lines.len() - 1
    });
    &mut lines[at].1
}
