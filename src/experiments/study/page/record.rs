//! The page of a measurement.

use super::{title, Drawing, Page, Picture};
use crate::experiments::efficiency::{pass, time_by_n};
use crate::experiments::scaling::record::Record;
use crate::experiments::scaling::report;
use crate::experiments::study::claims::of_record as findings;
use crate::experiments::study::efficiency;
use crate::experiments::study::evidence::Evidence;
use crate::experiments::{shift, spectrum, theorems};
use crate::log::progress::duration;
use serde_json::Value;

pub fn of_record(evidence: &Evidence, folder: &str, kind: &str, value: &Value) -> Option<Page> {
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
            let picture = |theorem: u64, name: &str| {
                Picture {
                name: name.into(),
                caption: format!("Mean errors of theorem {theorem}'s approximation, beside the bound where it says anything; the claim is judged by 95 % of them, in the table."),
                chart: Drawing::Lines(theorems::plot(value, theorem)),
            }
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
                findings: findings(kind, value),
                claims: Vec::new(),
                open: String::new(),
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
        findings: findings(kind, value),
        claims: Vec::new(),
        open: String::new(),
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
        open: String::new(),
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
