//! The cells as a table, as JSON, and as a picture.

use super::{Cell, Efficiency, Timed, Variant};
use crate::eval::median;
use crate::experiments::paper::Table3;
use crate::log::plot::{LineChart, Series};
use serde_json::{json, Value};

pub(super) const NOTE: &str =
    "~: no memory for it here; time a token as a line in n through the two longest that were measured, bytes as computed.\n";

/// Microseconds a token of a cell of stored scores that did not fit: scores of n x n cost n a token, all else is flat.
pub(super) fn extrapolated(cells: &[&Cell], cell: &Cell) -> Option<f64> {
    if cell.variant != Variant::Materialised || !cell.seconds.is_empty() {
        return None;
    }
    let mut points: Vec<(f64, f64)> =
        cells.iter().filter(|c| c.variant == cell.variant).filter_map(|c| Some((c.n as f64, c.microseconds_per_token()?))).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    match points[..] {
        [.., (n1, t1), (n2, t2)] if (cell.n as f64) > n2 => Some(t2 + (t2 - t1) / (n2 - n1) * (cell.n as f64 - n2)),
        _ => None,
    }
}

impl Cell {
    fn largest_batch(&self, efficiency: &Efficiency) -> Option<f64> {
        self.bytes.filter(|b| *b > 0.0).map(|bytes| (efficiency.memory_gib * 1073741824.0 / bytes).floor())
    }

    pub(super) fn json(&self, efficiency: &Efficiency, extrapolated: Option<f64>) -> Value {
        json!({"n": self.n, "attention": self.variant.name(), "tokens": self.tokens, "seconds": self.seconds, "disturbed_passes": self.disturbed, "median_seconds": median(&self.seconds),
            "microseconds_per_token": self.microseconds_per_token(), "extrapolated_microseconds_per_token": extrapolated,
            "floor_seconds": self.floor_seconds, "over_floor": self.over_floor(), "bytes": self.bytes, "computed_bytes": self.computed_bytes,
            "largest_batch": self.largest_batch(efficiency)})
    }
}

/// A number, or none; ~ before it: not measured.
fn number((value, is_measured): (Option<f64>, bool), digits: usize) -> String {
    value.map_or_else(|| "-".to_string(), |v| format!("{}{v:.digits$}", if is_measured { "" } else { "~" }))
}

pub(super) fn table(cells: &[&Cell], timed: Timed) -> Vec<Vec<String>> {
    let header = [
        "n",
        "attention",
        "us/token",
        "/ products",
        "x materialised",
        "paper",
        "x fused",
        "MiB/sequence",
        "computed",
        "memory saved",
        "paper",
    ]
    .map(str::to_string);
    let time = |c: &Cell| match c.microseconds_per_token() {
        Some(time) => (Some(time), true),
        None => (extrapolated(cells, c), false),
    };
    let bytes = |c: &Cell| (Some(c.bytes.unwrap_or(c.computed_bytes)), c.bytes.is_some());
    let row = |cell: &Cell| {
        let of = |variant: Variant| cells.iter().find(|c| c.n == cell.n && c.variant == variant).copied();
        // How many times more the other variant takes.
        let ratio = |of_what: &dyn Fn(&Cell) -> (Option<f64>, bool), variant| {
            let Some((other, is_measured)) = of(variant).map(of_what) else { return (None, true) };
            (other.zip(of_what(cell).0).map(|(other, own)| other / own), is_measured && of_what(cell).1)
        };
        let paper = match cell.variant {
            // The paper has inference alone.
            Variant::Linformer(k) | Variant::Stored(k) if timed == Timed::Forward => Table3::cell(cell.n, k),
            _ => (None, None),
        };
        let mebibytes = |bytes: f64| Some(bytes / 1048576.0);
        vec![
            cell.n.to_string(),
            cell.variant.name(),
            if cell.seconds.is_empty() { format!("out of memory, {}", number(time(cell), 0)) } else { number(time(cell), 2) },
            number((cell.over_floor(), true), 2),
            number(ratio(&time, Variant::Materialised), 2),
            number((paper.0, true), 1),
            number(ratio(&time, Variant::Fused), 2),
            number((cell.bytes.and_then(mebibytes), true), 1),
            number((mebibytes(cell.computed_bytes), true), 1),
            number(ratio(&bytes, Variant::Materialised), 1),
            number((paper.1, true), 1),
        ]
    };
    std::iter::once(header.to_vec()).chain(cells.iter().copied().map(row)).collect()
}

/// Whether a record is of a forward and backward pass.
pub fn is_training(record: &Value) -> bool {
    record["efficiency"]["pass"] == "forward_backward"
}

/// What was timed, in words.
pub fn pass(record: &Value) -> &'static str {
    if is_training(record) {
        "forward and backward pass"
    } else {
        "forward pass"
    }
}

/// Time a token against n, a curve an attention, from the record that `linformer efficiency` writes.
pub fn time_by_n(record: &Value) -> LineChart {
    let mut series: Vec<Series> = Vec::new();
    for cell in record["cells"].as_array().into_iter().flatten() {
        let (Some(n), Some(y)) = (cell["n"].as_f64(), cell["microseconds_per_token"].as_f64()) else { continue };
        let name = cell["attention"].as_str().unwrap_or_default();
        match series.iter_mut().find(|s| s.name == name) {
            Some(series) => series.points.push((n, y)),
            // The paper's own comparison has its place in the table: here it would hide the curves that matter.
            None if name.ends_with(" stored") => {}
            None => {
                let series_of = Series::marked(name, vec![(n, y)]);
                series.push(if name == "materialised" { series_of.reference() } else { series_of });
            }
        }
    }
    let settings = &record["efficiency"];
    let mut pass = pass(record).to_string();
    pass[..1].make_ascii_uppercase();
    let (layers, width) = (&settings["model"]["num_hidden_layers"], &settings["model"]["hidden_size"]);
    LineChart {
        title: format!("{pass}, {layers} layer(s), d = {width}, {}", settings["precision"].as_str().unwrap_or_default()),
        x: "n, tokens in a sequence".into(),
        y: "microseconds a token".into(),
        log_x: true,
        log_y: true,
        series,
    }
}
