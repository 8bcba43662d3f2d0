//! What the paper says, and what our numbers say to it. No state is typed: each follows from committed numbers by a rule that
//! stands beside the claim.

use super::efficiency::{cell, lengths, saved};
use super::evidence::Evidence;
use super::page::{p_value, sentence};
use crate::eval::statistics::{Estimate, Test};
use crate::experiments::results::{Comparison, Results};
use serde_json::Value;

/// Where a claim stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Confirmed,
    NotConfirmed,
    Contradicted,
    Untestable,
    /// The experiment is there, its numbers are not yet.
    NotRun,
}

impl State {
    pub fn words(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed at small scale",
            Self::NotConfirmed => "not confirmed",
            Self::Contradicted => "contradicted at small scale",
            Self::Untestable => "untestable here",
            Self::NotRun => "not run yet",
        }
    }
}

/// A claim with its state.
pub struct Claim {
    pub place: &'static str,
    pub text: &'static str,
    /// By what the state is decided.
    pub rule: &'static str,
    /// Folder of the evidence, below that of all results.
    pub folder: String,
    pub state: State,
    pub evidence: String,
    /// What would settle it, where this did not or only in small.
    pub would_decide: &'static str,
}

type Judged = Option<(State, String)>;

/// Every claim, in the order of the paper.
pub fn all(evidence: &Evidence) -> Vec<Claim> {
    let claim = |place, text, rule, would_decide, folder: &str, judged: Judged| {
        let (state, words) = judged.unwrap_or((State::NotRun, "no numbers are committed yet".to_string()));
        let measured = match folder {
            "theorems" => theorems(evidence).into_iter().next(),
            _ => evidence.of_kind(folder).find(|(_, v)| folder != "spectrum" || !v["checkpoint"].is_null()),
        };
        let folder = measured.map_or(folder, |(folder, _)| folder).to_string();
        Claim { place, text, rule, folder, state, evidence: words, would_decide }
    };
    let untestable = |why: &str| Some((State::Untestable, why.to_string()));
    let fig3 = evidence.sweep("figure3ab");
    let (longest, on_par_at_longest) = on_par_at_last(evidence, &FIGURE_3A, 0.1);
    vec![
        claim(
            "Section 3, Figure 1",
            "Attention of a trained model is low rank: a quarter of the singular values holds 0.89 to 0.93 of their sum.",
            "confirmed if the share at n/4 of every trained full model is at least 0.85 and above that of the untrained one (two standard errors); contradicted if every one is below 0.85 and below the untrained one",
            "the same of a RoBERTa-base that was trained on masked tokens, at n = 512: linformer import, then linformer spectrum on it and on --untrained 1",
            "spectrum",
            low_rank(evidence),
        ),
        claim(
            "Section 3, Figure 1",
            "Higher layers are of lower rank.",
            "confirmed if in every trained full model the share rises at every layer and from the first to the last (paired over sequences, p < 0.05: a test for each model, not over models); contradicted if in every one the last is below the first",
            "the twelve layers of a RoBERTa-base, over several pretrainings: layers of one model are no sample",
            "spectrum",
            depth(evidence),
        ),
        claim(
            "Theorem 1",
            "P can be replaced by P R^T R with an error eps where k = 5 ln n / (eps^2 - eps^3).",
            "confirmed if the measured error of 95 % of the columns stays below eps |P w| at every k where the bound gives one, contradicted if in every model it does not; untestable if it gives none at k <= n. The lemma that the proof takes up bounds |x R^T R y - x y| by eps |x| |y|; the proof writes eps |x y|, which is less",
            "nothing measured: the step of the proof that writes |x y| where the lemma has |x| |y|",
            "theorems",
            bound_holds(evidence, 1),
        ),
        claim(
            "Theorem 2",
            "softmax(s E^T) F V with E and F of the proof's form has an error of at most eps |softmax(s)| |V|.",
            "confirmed if the measured error of 95 % of the rows stays below eps at every k where the bound gives one, contradicted if in every model it does not; untestable if it gives none at k <= n",
            "an n at which k = 5 ln n / (eps^2 - eps^3) is a small part of n: at n = 65,536 and eps = 1/2 it is 444, with a model trained at that length",
            "theorems",
            bound_holds(evidence, 2),
        ),
        claim(
            "Section 5.1, Figure 3 a",
            "k = 128 at n = 512 is nearly on par with the Transformer.",
            "confirmed if the 95 % interval of the loss difference at k/n = 1/4, after the longest training there is, lies below 0.1 nats (the paper's is about 0.054: perplexities read off its figure, +-0.013 nats)",
            "experiments/paper/figure3ab.json: 250,000 updates at n = 512 on 3.3 billion words; before that, longer runs in small: whether the gap goes on falling",
            longest,
            on_par_at_longest,
        ),
        claim(
            "Section 5.1, Figure 3 b",
            "k = 256 at n = 1024 is nearly on par with the Transformer.",
            "confirmed if the 95 % interval of the loss difference at k/n = 1/4 lies below 0.1 nats (the paper's is about 0.051, read off its figure)",
            "experiments/paper/figure3ab.json, its n1024 rows",
            "figure3ab",
            fig3.and_then(|r| on_par(r, "n128-k32", "n128-full", 0.1)),
        ),
        claim(
            "Section 5.1, Figure 3 a",
            "A larger k has a lower perplexity.",
            "confirmed if k/n = 1/8, 1/4, 1/2 each lower the loss (paired, p < 0.05); contradicted if one raises it",
            "experiments/paper/figure3ab.json",
            "figure3ab",
            fig3.and_then(|r| falling(r, &["n64-k8", "n64-k16", "n64-k32"])),
        ),
        claim(
            "Section 5.1, Figure 3 c",
            "Sharing one projection among all layers almost matches no sharing.",
            "confirmed if the 95 % interval of the loss difference to no sharing lies below 0.03 nats",
            "more seeds, and training that leaves the plateau long before its end; experiments/paper/figure3c.json",
            "figure3c",
            evidence.sweep("figure3c").and_then(|r| on_par(r, "layerwise", "none", 0.03)),
        ),
        claim(
            "Section 5.1, Figure 3 d",
            "With k fixed, the perplexity after convergence is about the same for n = 512 to 4096: quality depends on k, not on n/k.",
            "confirmed if the loss at 8 times the length is at most 0.1 nats higher (95 % interval); the paper's own curves stop about 0.121 nats apart",
            "training until no n falls any more, longer than experiments/paper/figure3d.json (250,000 updates)",
            "figure3d",
            evidence.sweep("figure3d").and_then(|r| Some(beside_convergence(r, &["n256", "n32"], on_par(r, "n256", "n32", 0.1)?))),
        ),
        claim(
            "Section 5.2, Table 2",
            "Fine-tuned, k = 128 is comparable to RoBERTa.",
            "confirmed if on every task the 95 % interval of the score difference to full attention lies above -0.02",
            "experiments/paper/table2-*.json, from pretraining at the paper's scale",
            "table2",
            evidence.sweep("table2").and_then(|r| comparable(r, "k16", "full", 0.02)),
        ),
        claim(
            "Section 5.2, Table 2",
            "Fine-tuned, k = 128 is comparable to RoBERTa: on rows of SST-2, IMDB and QNLI (the last two in splits of our own), after a small pretraining.",
            "confirmed if on each of them pretraining raises full attention's score (paired, p < 0.05) and the 95 % interval of the score difference to it lies above -0.02",
            "experiments/paper/table2-*.json, from pretraining at the paper's scale; in small, a pretraining that full attention gains from on every one of the three tasks",
            "table2-sst2",
            on_real_tasks(evidence, 0.02),
        ),
        claim(
            "Section 5.2, Table 2",
            "Sharing among layers costs nothing in fine-tuning.",
            "confirmed if on every task the 95 % interval of the score difference to the model shared within each layer lies above -0.02",
            "more seeds in small, until the interval is narrower than the margin; experiments/paper/table2-*.json",
            "table2",
            evidence.sweep("table2").and_then(|r| comparable(r, "k16-layerwise", "k16", 0.02)),
        ),
        claim(
            "Section 5.2, Table 2",
            "The scores on SST-2, IMDB, QNLI and QQP are those of RoBERTa-base to within a point.",
            "needs pretraining at the paper's scale (experiments/paper/)",
            "experiments/paper/table2-*.json: linformer info --cluster 8xH100 says what that takes",
            "paper-table2-sst2",
            untestable("3.3 billion words and 250K updates are beyond this machine; linformer info --cluster says what they take"),
        ),
        claim(
            "Section 5.3, Table 3",
            "Inference is faster: 3.4 times at n = 4096, k = 128.",
            "confirmed if a pass takes at most half the time of full attention, both with their scores stored, as in the paper",
            "the same on a GPU of 16 GB, the paper's machine",
            "efficiency",
            faster(evidence, 4096, 2.0),
        ),
        claim(
            "Section 5.3, Table 3",
            "Inference is faster: 20 times at n = 65,536, k = 128.",
            "confirmed if a pass takes at most a tenth of the time of full attention, both with their scores stored; untestable if those of full attention do not fit",
            "a machine with 400 GiB of memory",
            "efficiency",
            faster(evidence, 65536, 10.0),
        ),
        claim(
            "Section 5.3, Table 3",
            "Memory is saved: 14 times at n = 4096, k = 128.",
            "confirmed if the largest batch at n = 4096, k = 128 is at least 7 times that of full attention, both with their scores stored",
            "the same on a GPU of 16 GB, the paper's machine",
            "efficiency",
            smaller(evidence),
        ),
        claim(
            "Section 4, Table 1",
            "Time is linear in n.",
            "confirmed if a token at the longest measured n takes at most 1.5 times what it takes at n = 512 or 1024, at k = 128",
            "a GPU, which short sequences may leave half idle",
            "efficiency",
            linear(evidence),
        ),
        claim(
            "Section 4, \"Nonuniform projected dimension\"",
            "A smaller k in higher layers is the better use of the same sum.",
            "confirmed if k falling with depth has a lower loss than an even k (paired, p < 0.05); contradicted if a higher one",
            "more seeds, and training that leaves the plateau long before its end; experiments/paper/k-by-depth.json",
            "k-by-depth",
            evidence.sweep("k-by-depth").and_then(|r| better(r, "falling", "even")),
        ),
        claim(
            "Long Range Arena (Xiong et al., 2021)",
            "On ListOps Linformer does as well as the Transformer (37.25 and 37.10).",
            "confirmed if the 95 % interval of the score difference at k/n = 1/4 lies above -0.02",
            "experiments/paper/listops.json: the published size, n = 2,048",
            "listops",
            evidence.sweep("listops").and_then(|r| comparable(r, "k32", "full", 0.02)),
        ),
    ]
}

fn compare(results: &Results, name: &str, other: &str) -> Option<(Comparison, String)> {
    let unit = if results.is_of_tasks() { "score" } else { "nats" };
    let paper = results.runs.iter().find(|r| r.group == name && r.against.as_deref() == Some(other)).and_then(|r| r.paper);
    let comparison = results.compare(name, other, paper)?;
    let words = sentence(name, &comparison, unit);
    Some((comparison, words))
}

/// A loss that is hardly higher.
fn on_par(results: &Results, name: &str, other: &str, margin: f64) -> Judged {
    let (comparison, words) = compare(results, name, other)?;
    let state = match comparison.test {
        Some(test) if test.interval().1 <= margin => State::Confirmed,
        _ => State::NotConfirmed,
    };
    Some((state, words))
}

/// Figure 3 a's k/n = 1/4 beside full attention, from the shortest training to the longest: folder, models.
const FIGURE_3A: [(&str, &str, &str); 2] = [("figure3ab", "n64-k16", "n64-full"), ("figure3a-long", "k16", "full")];

/// [`on_par`] after each training there is; the last one decides. Its folder, or the first's.
fn on_par_at_last<'a>(evidence: &Evidence, trainings: &[(&'a str, &str, &str)], margin: f64) -> (&'a str, Judged) {
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
fn beside_convergence(results: &Results, names: &[&str], (state, words): (State, String)) -> (State, String) {
    let falls: Vec<String> = names.iter().filter_map(|n| Some(format!("{n} by {:.2}", results.group(n)?.last_fall()?))).collect();
    let how_far = format!(" How far from convergence: over the last fifth of their tokens the losses fell, {}.", falls.join(", "));
    (state, words + if falls.is_empty() { "" } else { &how_far })
}

/// Losses that fall from each to the next.
fn falling(results: &Results, names: &[&str]) -> Judged {
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
fn better(results: &Results, name: &str, other: &str) -> Judged {
    falling(results, &[other, name])
}

/// Scores that are hardly lower, on every task of a grid.
fn comparable(results: &Results, name: &str, other: &str, margin: f64) -> Judged {
    let of =
        |group: &str| group.split_once('_').map_or((group.to_string(), String::new()), |(v, rest)| (v.to_string(), format!("_{rest}")));
    let mut tails: Vec<String> = results.groups().iter().map(|g| of(&g.name)).filter(|(v, _)| v == name).map(|(_, tail)| tail).collect();
    tails.dedup();
    let pairs: Vec<(Comparison, String)> =
        tails.iter().filter_map(|tail| compare(results, &format!("{name}{tail}"), &format!("{other}{tail}"))).collect();
    if pairs.is_empty() {
        return None;
    }
    let near = |c: &Comparison| c.test.is_some_and(|t| t.interval().0 >= -margin);
    let state = if pairs.iter().all(|(c, _)| near(c)) { State::Confirmed } else { State::NotConfirmed };
    Some((state, pairs.into_iter().map(|(_, words)| words).collect::<Vec<_>>().join(" ")))
}

/// [`comparable`] on the paper's own tasks, as far as pretraining is worth anything there: else two models that learned nothing of
/// use are alike.
fn on_real_tasks(evidence: &Evidence, margin: f64) -> Judged {
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

fn estimate(value: &Value) -> Option<Estimate> {
    serde_json::from_value(value.clone()).ok()
}

/// Spectra of full attention: of trained models, and of untrained ones.
fn spectra(evidence: &Evidence) -> (Vec<&Value>, Vec<&Value>) {
    let full = evidence.of_kind("spectrum").map(|(_, v)| v).filter(|v| v["attention"] == "full");
    full.partition(|v| !v["checkpoint"].is_null())
}

/// Every trained model against the untrained one of its length.
fn low_rank(evidence: &Evidence) -> Judged {
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

fn depth(evidence: &Evidence) -> Judged {
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
fn theorems(evidence: &Evidence) -> Vec<(&str, &Value)> {
    let gives_one = |v: &Value| v["lines"].as_array().is_some_and(|lines| lines.iter().any(|l| !l["bound"].is_null()));
    let deciding: Vec<_> = evidence.of_kind("theorems").filter(|(_, v)| gives_one(v)).collect();
    if deciding.is_empty() {
        evidence.of_kind("theorems").take(1).collect()
    } else {
        deciding
    }
}

fn bound_holds(evidence: &Evidence, theorem: u64) -> Judged {
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
                "the bound says nothing below k = {least:.0}, more than n; at n = {} and k = {} the error of 95 % is below {measured:.3}",
                record["n"], last["k"]
            ),
        ));
    }
    let holds = bounded.iter().all(|(_, error, bound, _)| error <= bound);
    // What theorem 2 bounds can be small where the answer is none: zeros have an error of 1 over the norm of what is sought.
    let own = |line: &Value| match line["error"]["mean"].as_f64() {
        Some(error) if theorem == 2 => format!("; over the norm of what is sought {error:.2}, as zeros have 1"),
        _ => String::new(),
    };
    let sentence = |(k, error, bound, line): &(f64, f64, f64, &Value)| {
        format!("the error of 95 % is below {error:.3} at k = {k} (bound {bound:.3}{})", own(line))
    };
    let words: Vec<String> = bounded.iter().map(sentence).collect();
    let state = if holds { State::Confirmed } else { State::Contradicted };
    Some((state, format!("at n = {} of {name} {}", record["n"], words.join(", "))))
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

fn faster(evidence: &Evidence, n: i64, wanted: f64) -> Judged {
    let record = efficiency(evidence)?;
    let linformer = compared(record);
    let time = |n: i64, name: &str, base: &str| saved(record, n, name, base).0;
    let Some(ratio) = time(n, linformer, "materialised") else {
        let longest = lengths(record).into_iter().rev().find_map(|n| Some((n, time(n, linformer, "materialised")?)))?;
        let bytes = cell(record, n, "materialised")?["computed_bytes"].as_f64()?;
        let fused = time(n, "k=128", "fused").map(|t| format!("; {t:.1} times beside full attention that stores none")).unwrap_or_default();
        let why = format!(
            "full attention would store {:.0} GiB a sequence at n = {n}; at n = {}, the longest that fits, {:.1} times{fused}",
            bytes / 1073741824.0,
            longest.0,
            longest.1
        );
        return Some((State::Untestable, why));
    };
    let mut words = format!("{ratio:.1} times at n = {n}");
    if linformer == "k=128" {
        words += " (of a Linformer that stores no scores)";
    } else {
        words += &time(n, "k=128", "materialised").map(|t| format!(" ({t:.1} with this program's Linformer)")).unwrap_or_default();
    }
    words += &time(n, "k=128", "fused").map(|t| format!("; beside full attention that stores no scores, {t:.1} times")).unwrap_or_default();
    Some((if ratio >= wanted { State::Confirmed } else { State::NotConfirmed }, words))
}

fn smaller(evidence: &Evidence) -> Judged {
    let record = efficiency(evidence)?;
    let batch = |name: &str, base: &str| saved(record, 4096, name, base).1;
    let ratio = batch(compared(record), "materialised")?;
    let fused = batch("k=128", "fused").map(|t| format!("; beside full attention that stores no scores, {t:.1} times")).unwrap_or_default();
    let which = if compared(record) == "k=128" { " (of a Linformer that stores no scores)" } else { "" };
    Some((
        if ratio >= 7.0 { State::Confirmed } else { State::NotConfirmed },
        format!("{ratio:.1} times the batch at n = 4096{which}{fused}"),
    ))
}

fn linear(evidence: &Evidence) -> Judged {
    let record = efficiency(evidence)?;
    let times: Vec<(i64, f64)> = record["cells"]
        .as_array()?
        .iter()
        .filter(|c| c["attention"] == "k=128")
        .filter_map(|c| Some((c["n"].as_i64()?, c["microseconds_per_token"].as_f64()?)))
        .collect();
    let (first, last) = (times.first()?, times.last()?);
    let ratio = last.1 / first.1;
    let state = if last.0 > first.0 && ratio <= 1.5 { State::Confirmed } else { State::NotConfirmed };
    Some((state, format!("a token takes {ratio:.2} times as long at n = {} as at n = {}", last.0, first.0)))
}

/// Findings of a single measurement, for its page.
pub fn of_record(kind: &str, value: &Value) -> Vec<String> {
    let mut only = Evidence::default();
    only.records.insert(kind.into(), (kind.into(), value.clone()));
    let sentences = match kind {
        "spectrum" if value["attention"] == "full" => vec![depth(&only)],
        "theorems" => vec![bound_holds(&only, 1), bound_holds(&only, 2)],
        "efficiency" => vec![faster(&only, 4096, 2.0), smaller(&only), linear(&only)],
        "shift" => return moved(value),
        _ => Vec::new(),
    };
    sentences.into_iter().flatten().map(|(_, words)| words + ".").collect()
}

fn moved(record: &Value) -> Vec<String> {
    let of = |model: &Value| {
        let last = model["moved"].as_array()?.last()?.clone();
        let difference = estimate(&last["difference"])?;
        Some(format!("Moved by {}, {} loses {} nats.", last["by"], model["name"].as_str().unwrap_or_default(), difference.text(4)))
    };
    record["models"].as_array().into_iter().flatten().filter_map(of).collect()
}
