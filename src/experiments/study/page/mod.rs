//! One experiment: a table, charts, and sentences that follow from the numbers.

mod record;
mod sweep;
mod words;

use super::claims::{Claim, State};
use super::evidence::Evidence;
use crate::log::heatmap::HeatMap;
use crate::log::plot::{Chart, LineChart};
use anyhow::Result;
use record::of_record;
use serde_json::Value;
use std::path::Path;
use sweep::of_sweep;

pub(super) use sweep::CURVES;
pub use words::{p_value, sentence};

/// Folder, title, and what would settle what the numbers leave open, in the order of the report.
pub const TITLES: [(&str, &str, &str); 24] = [
    (
        "spectrum",
        "Figure 1: the spectrum of attention",
        "the same of a RoBERTa-base that was trained on masked tokens, at n = 512 (commands in docs/experiments.md)",
    ),
    ("theorems", "Theorems 1 and 2", "a model trained at an n of which 5 ln n / (eps^2 - eps^3) is a small part"),
    ("figure3ab", "Figure 3 a, b: the price of k", "experiments/paper/figure3ab.json"),
    ("figure3a-long", "Figure 3 a after four times the training", "experiments/paper/figure3ab.json"),
    ("figure3c", "Figure 3 c: sharing", "experiments/paper/figure3c.json"),
    ("figure3d", "Figure 3 d: k fixed, n growing", "experiments/paper/figure3d.json, until no n falls any more"),
    ("table2", "Table 2: fine-tuning, tasks from the embedded text", REAL_TASKS),
    ("table2-sst2", "Table 2: fine-tuning, SST-2", REAL_TASKS),
    ("tasks-pretrain", "Table 2: what SST-2, IMDB and QNLI start from", "experiments/paper/table2-pretrain.json"),
    ("table2-pretrain", "Table 2: what it starts from beside Figure 3's models", "experiments/paper/table2-pretrain.json"),
    ("table2-qqp", "Table 2: fine-tuning, QQP", REAL_TASKS),
    ("table2-imdb", "Table 2: fine-tuning, IMDB reviews", REAL_TASKS),
    ("table2-qnli", "Table 2: fine-tuning, QNLI's dev rows split anew", REAL_TASKS),
    ("efficiency", "Table 3 and Figure 2: time and memory", "the same on a GPU of 16 GB, the paper's machine"),
    (
        "initialisation",
        "How E and F start",
        "experiments/paper/initialisation.json: whether what starts apart stays apart over 250,000 updates",
    ),
    ("projections", "General projections", "more seeds, and experiments/paper/projections.json"),
    ("k-by-depth", "k by depth", "more seeds, and experiments/paper/k-by-depth.json"),
    ("bias", "Where the biases stand", "more seeds, and experiments/paper/bias.json"),
    ("padding", "Padding", "more seeds, and experiments/paper/padding.json"),
    ("shift", "Text that is moved", "the same of a model trained at n = 512 (commands in docs/experiments.md)"),
    ("warm-start", "E and F from singular directions", "more seeds, and experiments/paper/warm-start.json"),
    ("smoothing", "Label smoothing and Adam", "more seeds, and experiments/paper/smoothing.json"),
    ("listops", "Long Range Arena: ListOps", "experiments/paper/listops.json: the published size, n = 2,048"),
    ("scaling", "More ranks: a model of step time", "real ranks on more machines than one: linformer scaling there"),
];

const REAL_TASKS: &str = "experiments/paper/table2-*.json, from pretraining at the paper's scale";

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
    /// What would settle what they leave open, where no claim says it.
    pub open: String,
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
        page.claims = here.map(claim).collect();
        // What a claim says with its state need not be said twice.
        page.findings.retain(|finding| !page.claims.iter().any(|claim| claim.contains(finding.trim_end_matches('.'))));
        let is_papers = page.folder.starts_with(PAPERS);
        page.open = entry(&page.folder).filter(|_| page.claims.is_empty() && !is_papers).map_or("", |(i, _)| TITLES[i].2).into();
    }
    pages.sort_by(|a, b| place(&a.folder).cmp(&place(&b.folder)).then(a.folder.cmp(&b.folder)));
    pages
}

fn claim(c: &Claim) -> String {
    let evidence = c.evidence.trim_end_matches('.');
    format!("{}: {} **{}**: {evidence}. What would settle it: {}.", c.place, c.text, c.state.words(), c.would_decide)
}

/// Folders of results at the paper's scale begin so.
const PAPERS: &str = "paper-";

/// The place of a folder in [`TITLES`], and what its name has beyond that: `spectrum/trained` is the spectrum's `trained`.
fn entry(folder: &str) -> Option<(usize, &str)> {
    let base = folder.strip_prefix(PAPERS).unwrap_or(folder);
    let rest = |name: &str| base.strip_prefix(name).filter(|rest| rest.is_empty() || rest.starts_with(['-', '/']));
    let found = TITLES.iter().enumerate().filter_map(|(i, (name, ..))| Some((i, rest(name)?)));
    // The longest name: table2-sst2 is no table2.
    found.min_by_key(|(_, rest)| rest.len())
}

fn title(folder: &str) -> String {
    let mut title = match entry(folder) {
        Some((i, "")) => TITLES[i].1.to_string(),
        Some((i, rest)) => format!("{}: {}", TITLES[i].1, &rest[1..]),
        None => folder.to_string(),
    };
    if folder.starts_with(PAPERS) {
        title += " (the paper's scale)";
    }
    title
}
