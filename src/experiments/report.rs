//! One table, plots and a page from the folders of finished runs.

use super::paper::FIGURE_3;
use super::runs::folders_below;
use crate::durable::replace;
use crate::eval::mean_and_deviation;
use crate::log::jsonl;
use crate::log::plot::{BarChart, Chart, LineChart, Series};
use crate::log::progress::thousands;
use crate::log::tensorboard::EventFile;
use crate::table::align;
use crate::train::run::read_summary;
use anyhow::{bail, Context, Result};
use serde_json::{json, Map, Value};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A finished run.
struct Run {
    dir: PathBuf,
    summary: Value,
}

impl Run {
    fn text(&self, key: &str) -> String {
        self.summary[key].as_str().unwrap_or_default().into()
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.summary[key].as_f64()
    }

    /// The name without its seed.
    fn group(&self) -> String {
        let name = self.text("name");
        let parts: Vec<&str> = name.split('_').filter(|part| !part.starts_with("seed=")).collect();
        parts.join("_")
    }

    fn curve(&self, split: &str, x: &str, y: &str) -> Vec<(f64, f64)> {
        let lines = jsonl::read(&self.dir.join("metrics.jsonl")).unwrap_or_default();
        let of_split = lines.iter().filter(|l| l.get("split").and_then(Value::as_str) == Some(split));
        let number = |line: &Map<String, Value>, key: &str| line.get(key).and_then(Value::as_f64);
        of_split.filter_map(|l| Some((number(l, x)?, number(l, y)?))).collect()
    }
}

/// One line of the table: a pretrained model (over its seeds) and what came of it.
struct Line {
    name: String,
    model: Value,
    perplexities: Vec<f64>,
    unigram: Option<f64>,
    speeds: Vec<f64>,
    /// Scores by task.
    scores: BTreeMap<String, Vec<f64>>,
}

/// Everything a report says.
pub struct Report {
    runs: Vec<Run>,
    lines: Vec<Line>,
    /// Tasks with their metric and the share of the commonest class.
    tasks: BTreeMap<String, (String, Option<f64>)>,
}

impl Report {
    /// From every run below `dirs` that has a summary.
    pub fn read(dirs: &[PathBuf]) -> Result<Self> {
        let finished = |dir: &Path| read_summary(dir).filter(|s| s["kind"].is_string());
        let folders = folders_below(dirs, &|dir| finished(dir).is_some())?;
        let runs: Vec<Run> = folders.into_iter().filter_map(|dir| Some(Run { summary: finished(&dir)?, dir })).collect();
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
        Ok(Self { runs, lines, tasks })
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
            let scores = self.tasks.keys().map(|task| spread(line.scores.get(task), 3));
            let head = [line.name.clone(), k, parameters, spread(Some(&line.perplexities), 2)];
            rows.push(head.into_iter().chain(scores).chain([spread(Some(&line.speeds), 0)]).collect());
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
        let number = |key: &str| self.runs.iter().filter_map(|r| r.number(key)).fold(0.0, f64::max);
        let rows = number("dev_rows");
        if rows > 0.0 {
            let error = (0.16 / rows).sqrt();
            notes.push(format!(
                "Scores on up to {} rows of held-out text: the standard error of an accuracy of 0.8 is at least {error:.3}.",
                thousands(rows)
            ));
        }
        let constant: Vec<String> = self.runs.iter().filter(|r| r.summary["constant_prediction"] == true).map(|r| r.text("name")).collect();
        if !constant.is_empty() {
            notes.push(format!("One and the same prediction for every row at the end: {}.", constant.join(", ")));
        }
        let mut data: Vec<String> = self.runs.iter().filter(|r| r.text("kind") == "pretrain").map(|r| r.text("data_sha256")).collect();
        data.sort();
        data.dedup();
        if data.len() > 1 {
            notes.push("The runs were pretrained on different data or tokenizers: their perplexities do not compare.".into());
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
        let mean = |l: &Line| mean_and_deviation(&l.perplexities).map(|m| m.0);
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
        let groups: Vec<(String, Vec<Option<f64>>)> = lines
            .iter()
            .map(|l| {
                (l.name.clone(), self.tasks.keys().map(|t| l.scores.get(t).and_then(|s| mean_and_deviation(s)).map(|m| m.0)).collect())
            })
            .collect();
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

/// `12.30` or `12.30 ± 0.15`; `-` for nothing.
fn spread(values: Option<&Vec<f64>>, digits: usize) -> String {
    let number = |v: f64| if digits == 0 { thousands(v) } else { format!("{v:.digits$}") };
    match values.and_then(|v| mean_and_deviation(v)) {
        None => "-".into(),
        Some((mean, None)) => number(mean),
        Some((mean, Some(deviation))) => format!("{} ± {}", number(mean), number(deviation)),
    }
}

/// Pretrained models in the order of their cost, each with the scores of what was fine-tuned from it; then models that
/// were fine-tuned from random weights.
fn lines(runs: &[Run]) -> Vec<Line> {
    let mut lines: Vec<(String, Line)> = Vec::new();
    for run in runs.iter().filter(|r| r.text("kind") == "pretrain") {
        let key = run.dir.with_file_name(run.group()).display().to_string();
        let line = line_of(&mut lines, key, run.group(), run);
        line.perplexities.extend(run.number("perplexity"));
        line.speeds.extend(run.number("tokens_per_second"));
        line.unigram = run.number("unigram_perplexity");
    }
    for run in runs.iter().filter(|r| r.text("kind") == "finetune") {
        let from = run.summary["init_from"].as_str().map(PathBuf::from);
        let parent = from.as_ref().and_then(|dir| runs.iter().find(|r| same(&r.dir, dir)));
        let (key, name) = match (parent, run.summary["init_weights"] == true) {
            (Some(parent), true) => (parent.dir.with_file_name(parent.group()).display().to_string(), parent.group()),
            (Some(parent), false) => (format!("random {}", parent.group()), format!("{} from random weights", parent.group())),
            (None, _) => (run.group(), run.group()),
        };
        let line = line_of(&mut lines, key, name, run);
        line.scores.entry(run.text("task")).or_default().extend(run.number("value"));
    }
    let mut lines: Vec<Line> = lines.into_iter().map(|(_, line)| line).collect();
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

fn line_of<'a>(lines: &'a mut Vec<(String, Line)>, key: String, name: String, run: &Run) -> &'a mut Line {
    let at = lines.iter().position(|(k, _)| *k == key).unwrap_or_else(|| {
        let line = Line {
            name,
            model: run.summary["model"].clone(),
            perplexities: Vec::new(),
            unigram: None,
            speeds: Vec::new(),
            scores: BTreeMap::new(),
        };
        lines.push((key, line));
        lines.len() - 1
    });
    &mut lines[at].1
}
