//! Claims about what was measured on a model or a machine: singular values, the theorems' errors, time and memory.

use super::{Judged, State};
use crate::eval::statistics::{Estimate, Test};
use crate::experiments::study::efficiency::{cell, lengths, saved};
use crate::experiments::study::evidence::Evidence;
use crate::experiments::study::page::p_value;
use serde_json::Value;

fn estimate(value: &Value) -> Option<Estimate> {
    serde_json::from_value(value.clone()).ok()
}

/// Spectra of full attention: of trained models, and of untrained ones.
fn spectra(evidence: &Evidence) -> (Vec<&Value>, Vec<&Value>) {
    let full = evidence.of_kind("spectrum").map(|(_, v)| v).filter(|v| v["attention"] == "full");
    full.partition(|v| !v["checkpoint"].is_null())
}

/// Every trained model against the untrained one of its length.
pub fn low_rank(evidence: &Evidence) -> Judged {
    let (trained, untrained) = spectra(evidence);
    let share = |v: &Value| estimate(&v["all"]["cumulative"]);
    let (mut words, mut states) = (Vec::new(), Vec::new());
    for model in &trained {
        let (name, ours) = (model["name"].as_str().unwrap_or_default(), share(model)?);
        let control = untrained.iter().find(|u| u["looked_at"]["length"] == model["looked_at"]["length"]).and_then(|u| share(u));
        let Some(control) = control else {
            words.push(format!("{name} {} (no untrained control of its length)", ours.text(4)));
            continue;
        };
        let se = (ours.se?.powi(2) + control.se?.powi(2)).sqrt();
        let difference = ours.mean - control.mean;
        words.push(format!("{name} {} (untrained {})", ours.text(4), control.text(4)));
        // Hundreds of sequences: the normal quantile serves.
        states.push(match difference / se {
            t if t > 1.96 && ours.mean >= 0.85 => State::Confirmed,
            t if t < -1.96 && ours.mean < 0.85 => State::Contradicted,
            _ => State::NotConfirmed,
        });
    }
    (!words.is_empty()).then(|| (common(&states), format!("the share at n/4: {}", words.join(", "))))
}

/// What all say, or else nothing.
fn common(states: &[State]) -> State {
    match states {
        [first, rest @ ..] if rest.iter().all(|s| s == first) => *first,
        _ => State::NotConfirmed,
    }
}

pub fn depth(evidence: &Evidence) -> Judged {
    let (mut words, mut states) = (Vec::new(), Vec::new());
    for model in spectra(evidence).0 {
        let test: Test = serde_json::from_value(model["depth"]["last_minus_first"].clone()).ok()?;
        let rises = model["depth"]["rises_at_every_layer"] == true;
        states.push(match test.difference.mean {
            d if d > 0.0 && test.p < 0.05 && rises => State::Confirmed,
            d if d < 0.0 && test.p < 0.05 => State::Contradicted,
            _ => State::NotConfirmed,
        });
        let order = if rises { "rises at every layer" } else { "does not rise at every layer" };
        words.push(format!(
            "over {} layers of {} the share {order}, the last less the first {:+.3} (p {})",
            model["layers"],
            model["name"].as_str().unwrap_or_default(),
            test.difference.mean,
            p_value(test.p)
        ));
    }
    (!words.is_empty()).then(|| (common(&states), words.join("; ")))
}

/// The records of theorems that can decide: those in which the bound gives an error, or else the first.
pub fn theorems(evidence: &Evidence) -> Vec<(&str, &Value)> {
    let gives_one = |v: &Value| v["lines"].as_array().is_some_and(|lines| lines.iter().any(|l| !l["bound"].is_null()));
    let deciding: Vec<_> = evidence.of_kind("theorems").filter(|(_, v)| gives_one(v)).collect();
    if deciding.is_empty() {
        evidence.of_kind("theorems").take(1).collect()
    } else {
        deciding
    }
}

pub fn bound_holds(evidence: &Evidence, theorem: u64) -> Judged {
    let judged: Vec<(State, String)> = theorems(evidence).into_iter().filter_map(|(_, record)| bound_holds_in(record, theorem)).collect();
    let (states, words): (Vec<State>, Vec<String>) = judged.into_iter().unzip();
    (!states.is_empty()).then(|| (common(&states), words.join("; ")))
}

fn bound_holds_in(record: &Value, theorem: u64) -> Judged {
    let form = if theorem == 1 { "P R^T R on values" } else { "proof: E = R/n" };
    let lines: Vec<&Value> = record["lines"].as_array()?.iter().filter(|l| l["theorem"] == theorem && l["form"] == form).collect();
    let bounded: Vec<(f64, f64, f64, &Value)> =
        lines.iter().filter_map(|l| Some((l["k"].as_f64()?, l["quantile_95"].as_f64()?, l["bound"].as_f64()?, *l))).collect();
    let name = record["name"].as_str().unwrap_or_default();
    if bounded.is_empty() {
        let last = lines.last()?;
        let least = record["bound"][1]["k"].as_f64().unwrap_or(f64::NAN);
        let measured = last["quantile_95"].as_f64().unwrap_or(f64::NAN);
        return Some((
            State::Untestable,
            format!(
                "the bound says nothing below k = {least:.0}, more than n; at n = {} and k = {} 95 % of the errors are up to {measured:.3}",
                record["n"], last["k"]
            ),
        ));
    }
    let holds = bounded.iter().all(|(_, error, bound, _)| error <= bound);
    // What theorem 2 bounds can be small where the answer is none: zeros have an error of 1 over the norm of what is sought.
    let own = |line: &Value| match line["error"]["mean"].as_f64() {
        Some(error) if theorem == 2 => format!(" (over the norm of what is sought {error:.2}, as zeros have 1)"),
        _ => String::new(),
    };
    let sentence = |(k, error, bound, line): &(f64, f64, f64, &Value)| {
        let beside = if error <= bound { "within" } else { "beyond" };
        format!("at k = {k} 95 % of the errors are up to {error:.3}, {beside} the bound of {bound:.3}{}", own(line))
    };
    let words: Vec<String> = bounded.iter().map(sentence).collect();
    let state = if holds { State::Confirmed } else { State::Contradicted };
    Some((state, format!("for {name}, n = {}, {}", record["n"], words.join(", "))))
}

fn efficiency(evidence: &Evidence) -> Option<&Value> {
    evidence.of_kind("efficiency").next().map(|(_, v)| v)
}

/// The Linformer that the paper compares: with its scores stored, or ours where only that was measured.
fn compared(record: &Value) -> &'static str {
    let stored = "k=128 stored";
    let has_it = lengths(record).into_iter().any(|n| cell(record, n, stored).is_some());
    if has_it {
        stored
    } else {
        "k=128"
    }
}

/// The longest n at which full attention was measured with its scores stored, and what one sequence of `n` would need.
fn out_of_memory(record: &Value, n: i64) -> Option<(i64, f64)> {
    let is_measured = |n: &i64| saved(record, *n, "materialised", "materialised").0.is_some();
    let bytes = cell(record, n, "materialised")?["computed_bytes"].as_f64()?;
    Some((lengths(record).into_iter().rev().find(is_measured)?, bytes))
}

/// A ratio to full attention with its scores stored, `of(n, attention, base)`, judged: `wanted` times `what` are enough.
fn saved_times(record: &Value, n: i64, wanted: f64, what: &str, of: impl Fn(i64, &str, &str) -> Option<f64>) -> Judged {
    let linformer = compared(record);
    let fused = of(n, "k=128", "fused");
    let Some(ratio) = of(n, linformer, "materialised") else {
        let (longest, bytes) = out_of_memory(record, n)?;
        let fused = fused.map(|t| format!("; {t:.1} times{what} beside full attention that stores none")).unwrap_or_default();
        let ratio = of(longest, linformer, "materialised")?;
        let need = bytes / 1073741824.0;
        let why = format!("full attention would store {need:.0} GiB a sequence at n = {n}; at n = {longest}, the longest that fits, {ratio:.1} times{fused}");
        return Some((State::Untestable, why));
    };
    let mut words = format!("{ratio:.1} times{what} at n = {n}");
    if linformer == "k=128" {
        words += " (of a Linformer that stores no scores)";
    } else {
        words += &of(n, "k=128", "materialised").map(|t| format!(" ({t:.1} with this program's Linformer)")).unwrap_or_default();
    }
    words += &fused.map(|t| format!("; beside full attention that stores no scores, {t:.1} times")).unwrap_or_default();
    Some((if ratio >= wanted { State::Confirmed } else { State::NotConfirmed }, words))
}

/// So many times faster at n.
pub fn faster(evidence: &Evidence, n: i64, wanted: f64) -> Judged {
    let record = efficiency(evidence)?;
    saved_times(record, n, wanted, "", |n, attention, base| saved(record, n, attention, base).0)
}

/// So many times the batch at n.
pub fn smaller(evidence: &Evidence, n: i64, wanted: f64) -> Judged {
    let record = efficiency(evidence)?;
    saved_times(record, n, wanted, " the batch", |n, attention, base| saved(record, n, attention, base).1)
}

/// The shortest and the longest n of the Linformer at k = 128, and how many times `of(n, cell)` is at the longest what it is at
/// the shortest; at most 1.5 times is linear.
fn grows(record: &Value, of: impl Fn(f64, &Value) -> Option<f64>) -> Option<(State, i64, i64, f64)> {
    let at = |n: i64| of(n as f64, cell(record, n, "k=128")?);
    let measured: Vec<(i64, f64)> = lengths(record).into_iter().filter_map(|n| Some((n, at(n)?))).collect();
    let (first, last) = (measured.first()?, measured.last()?);
    let ratio = last.1 / first.1;
    let state = if last.0 > first.0 && ratio <= 1.5 { State::Confirmed } else { State::NotConfirmed };
    Some((state, first.0, last.0, ratio))
}

pub fn linear(evidence: &Evidence) -> Judged {
    let (state, first, last, ratio) = grows(efficiency(evidence)?, |_, cell| cell["microseconds_per_token"].as_f64())?;
    Some((state, format!("a token takes {ratio:.2} times as long at n = {last} as at n = {first}")))
}

pub fn linear_memory(evidence: &Evidence) -> Judged {
    let (state, first, last, ratio) = grows(efficiency(evidence)?, |n, cell| Some(cell["bytes"].as_f64()? / n))?;
    Some((state, format!("a token of a sequence takes {ratio:.2} times as many bytes at n = {last} as at n = {first}")))
}

pub fn moved(record: &Value) -> Vec<String> {
    let of = |model: &Value| {
        let last = model["moved"].as_array()?.last()?.clone();
        let difference = estimate(&last["difference"])?;
        Some(format!("Moved by {}, {} loses {} nats.", last["by"], model["name"].as_str().unwrap_or_default(), difference.text(4)))
    };
    record["models"].as_array().into_iter().flatten().filter_map(of).collect()
}
