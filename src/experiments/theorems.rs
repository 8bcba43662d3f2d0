//! How far is the theory from what is seen? (paper, section 3 and 4, theorems 1 and 2)
//!
//! Theorem 1: P R^T R w for P w, R `[k, n]` of N(0, 1/k), on real attention matrices P and columns w of the real values, and
//! on random w. Theorem 2: softmax(s E^T) F V for softmax(s) V, s a row of the scores, with E and F of the proof's form
//! (delta R and e^-delta R), of the Johnson-Lindenstrauss form (R and R), as mean pooling, and learned for each head on half
//! of the sequences and measured on the other half. Beside them stands the bound, k = 5 ln n / (eps^2 - eps^3).

use super::probe::{Sequences, Source, Subject};
use super::Finished;
use crate::durable::replace;
use crate::eval::statistics::Estimate;
use crate::log::plot::{Chart, LineChart, Series};
use crate::model::attention::Heads;
use crate::model::projection::averages;
use crate::random::{hash_name, Purpose, Stream};
use crate::table::align;
use crate::train::run::environment_at_end;
use anyhow::{bail, Context, Result};
use serde::Serialize;
use serde_json::{json, Value};
use std::io::Write;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    pub model: PathBuf,
    pub untrained: Option<u64>,
    pub source: Source,
    /// Projected dimensions; empty: n/16, n/8, n/4, n/2.
    pub k: Vec<i64>,
    /// Adam steps at each of two rates for the learned E and F of each layer.
    pub steps: i64,
    pub seed: u64,
    pub out: PathBuf,
}

/// The largest value of eps^2 - eps^3, at eps = 2/3: below 33.75 ln n no k satisfies the bound.
const LARGEST: f64 = 4.0 / 27.0;

/// The eps that the bound gives for k: eps^2 - eps^3 = 5 ln n / k; None where there is none.
pub fn bound(n: i64, k: i64) -> Option<f64> {
    let wanted = 5.0 * (n as f64).ln() / k as f64;
    if wanted > LARGEST {
        return None;
    }
    // It grows from 0 to 2/3.
    let (mut low, mut high) = (0.0f64, 2.0 / 3.0);
    for _ in 0..100 {
        let eps = 0.5 * (low + high);
        if eps * eps - eps.powi(3) < wanted {
            low = eps;
        } else {
            high = eps;
        }
    }
    Some(0.5 * (low + high))
}

/// The least k that the bound gives for an error of at most `eps`.
pub fn bound_k(n: i64, eps: f64) -> f64 {
    5.0 * (n as f64).ln() / (eps * eps - eps.powi(3))
}

/// `[k, n]` of N(0, 1/k) in fp64, a function of (seed, what).
pub fn random_projection(k: i64, n: i64, seed: u64, what: &str) -> Tensor {
    let values: Vec<f64> = normal((k * n) as usize, seed, what);
    Tensor::from_slice(&values).view([k, n]) / (k as f64).sqrt()
}

fn normal(count: usize, seed: u64, what: &str) -> Vec<f64> {
    let mut draws = Stream::new(seed, Purpose::Measurement, hash_name(what)).draws();
    let pairs = std::iter::repeat_with(|| draws.normal_pair()).flat_map(|(a, b)| [a, b]);
    pairs.take(count).collect()
}

/// Norms of the columns (dimension -2) or rows (-1) of a tensor.
fn norms(t: &Tensor, dim: i64) -> Tensor {
    (t * t).sum_dim_intlist([dim].as_slice(), false, Kind::Double).sqrt()
}

/// Of every column w of `[.., n, c]`: |P R^T R w - P w| / |P w|, `[.., c]`. P `[.., n, n]`, R `[k, n]`.
pub fn theorem_1(p: &Tensor, r: &Tensor, w: &Tensor) -> Tensor {
    let exact = p.matmul(w);
    let near = p.matmul(&r.transpose(0, 1)).matmul(&r.matmul(w));
    norms(&(near - &exact), -2) / norms(&exact, -2).clamp_min(1e-300)
}

/// The same with P replaced by its best approximation of rank k: what no projection of that rank beats in the least squares.
pub fn best_rank(p: &Tensor, k: i64, w: &Tensor) -> Tensor {
    let (u, s, v) = p.svd(true, true);
    let (u, s, v) = (u.narrow(-1, 0, k), s.narrow(-1, 0, k), v.narrow(-1, 0, k));
    let near = (u * s.unsqueeze(-2)).matmul(&v.transpose(-2, -1).matmul(w));
    let exact = p.matmul(w);
    norms(&(near - &exact), -2) / norms(&exact, -2).clamp_min(1e-300)
}

/// softmax(S E^T) F V: S `[.., n, n]`, E and F `[k, n]` or `[h, k, n]`, V `[.., n, c]`.
pub fn compressed(s: &Tensor, e: &Tensor, f: &Tensor, v: &Tensor) -> Tensor {
    s.matmul(&e.transpose(-2, -1)).softmax(-1, None::<Kind>).matmul(&f.matmul(v))
}

/// Errors of every row of softmax(S) V: over its own norm, and over |softmax(s)| |V| as theorem 2 has it (|V| Frobenius').
pub fn theorem_2(s: &Tensor, v: &Tensor, near: &Tensor) -> (Tensor, Tensor) {
    let p = s.softmax(-1, None::<Kind>);
    let exact = p.matmul(v);
    let error = norms(&(near - &exact), -1);
    let of_theorem = norms(&p, -1) * norms(&norms(v, -1), -1).unsqueeze(-1);
    (&error / norms(&exact, -1).clamp_min(1e-300), error / of_theorem.clamp_min(1e-300))
}

/// Scores and values of some sequences in one layer, `[B, h, n, n]` and `[B, h, n, c]`, in fp64.
struct Layer {
    scores: Tensor,
    values: Tensor,
}

/// Rates of the fit: Adam moves every one of n entries by about so much a step, which is little or much by what a row sees.
const RATES: [f64; 2] = [1e-2, 1e-3];

/// E and F `[h, k, n]` of a layer, fitted to three quarters of the training sequences by Adam on the squared error, from mean
/// pools on; the last quarter chooses rate and step, so that no fit is kept that only learned its sequences by heart.
fn learned(train: &Layer, k: i64, steps: i64) -> (Tensor, Tensor) {
    let (count, heads, n) = (train.scores.size()[0], train.scores.size()[1], train.scores.size()[3]);
    let fit = (count * 3 / 4).max(1);
    let part = |first: i64, count: i64| {
        let of = |t: &Tensor| t.narrow(0, first, count).to_kind(Kind::Float);
        let (scores, values) = (of(&train.scores), of(&train.values));
        let exact = scores.softmax(-1, None::<Kind>).matmul(&values);
        Fitted { scores, values, exact }
    };
    let (fitted, choosing) = (part(0, fit), part(fit.min(count - 1), (count - fit).max(1)));
    let start = || averages(k, n).to_kind(Kind::Float).repeat([heads, 1, 1]).set_requires_grad(true);
    let parameters = [start(), start()];
    let mut best = (choosing.loss(&parameters).double_value(&[]), parameters.each_ref().map(|p| p.detach().copy()));
    for rate in RATES {
        descend(&fitted, &choosing, rate, steps, [start(), start()], &mut best);
    }
    let [e, f] = best.1.map(|p| p.to_kind(Kind::Double));
    (e, f)
}

/// Sequences with what is to be approximated, in fp32.
struct Fitted {
    scores: Tensor,
    values: Tensor,
    exact: Tensor,
}

impl Fitted {
    /// Squared error over the mean square of what is approximated.
    fn loss(&self, [e, f]: &[Tensor; 2]) -> Tensor {
        let error = compressed(&self.scores, e, f, &self.values) - &self.exact;
        (&error * &error).mean(Kind::Float) / (&self.exact * &self.exact).mean(Kind::Float).clamp_min(1e-30)
    }
}

/// Adam on `fitted` at a rate that falls to zero; every tenth step is tried on `choosing`, and the best one kept.
fn descend(fitted: &Fitted, choosing: &Fitted, rate: f64, steps: i64, parameters: [Tensor; 2], best: &mut (f64, [Tensor; 2])) {
    let mut moments: Vec<[Tensor; 2]> = parameters.iter().map(|p| [p.zeros_like(), p.zeros_like()]).collect();
    let (beta1, beta2): (f64, f64) = (0.9, 0.99);
    for step in 1..=steps {
        let gradients = tch::with_grad(|| Tensor::run_backward(&[&fitted.loss(&parameters)], &parameters.each_ref()[..], false, false));
        let decay = 1.0 - (step - 1) as f64 / steps as f64;
        tch::no_grad(|| {
            for ((p, g), m) in parameters.iter().zip(&gradients).zip(&mut moments) {
                m[0] = &m[0] * beta1 + g * (1.0 - beta1);
                m[1] = &m[1] * beta2 + g * g * (1.0 - beta2);
                let (first, second) = (&m[0] / (1.0 - beta1.powi(step as i32)), &m[1] / (1.0 - beta2.powi(step as i32)));
                let _ = p.shallow_clone().subtract_(&(first / (second.sqrt() + 1e-8) * (rate * decay)));
            }
        });
        if step % 10 == 0 || step == steps {
            let reached = tch::no_grad(|| choosing.loss(&parameters).double_value(&[]));
            if reached < best.0 {
                *best = (reached, parameters.each_ref().map(|p| p.detach().copy()));
            }
        }
    }
}

/// One way to approximate, at one k.
#[derive(Clone, Debug, Serialize)]
struct Line {
    theorem: u8,
    form: String,
    k: i64,
    /// Over the norm of what is approximated: an answer of zeros has 1. Mean over sequences.
    error: Option<Estimate>,
    /// As theorem 2 measures it; None for theorem 1.
    error_of_theorem: Option<Estimate>,
    /// Of the error that the theorem bounds: the value that 95 % of all rows or columns stay below.
    quantile_95: f64,
    /// eps of the bound at this k; None where the bound says nothing.
    bound: Option<f64>,
}

/// Errors of one form at one k, gathered over layers.
#[derive(Default)]
struct Errors {
    /// Sum over layers of a sequence's mean, by sequence.
    own: Vec<f64>,
    theorem: Vec<f64>,
    layers: usize,
    /// All errors that the theorem bounds.
    all: Vec<f64>,
}

impl Errors {
    /// Errors `[B, ...]` of one layer.
    fn add(&mut self, own: &Tensor, of_theorem: &Tensor) {
        let by_sequence = |t: &Tensor| numbers(&t.flatten(1, -1).mean_dim([1i64].as_slice(), false, Kind::Double));
        let add = |sums: &mut Vec<f64>, values: Vec<f64>| {
            sums.resize(values.len(), 0.0);
            sums.iter_mut().zip(values).for_each(|(s, v)| *s += v);
        };
        add(&mut self.own, by_sequence(own));
        add(&mut self.theorem, by_sequence(of_theorem));
        self.all.extend(numbers(of_theorem));
        self.layers += 1;
    }

    fn line(mut self, theorem: u8, form: &str, k: i64, n: i64) -> Line {
        let mean = |sums: &[f64]| Estimate::of(&sums.iter().map(|s| s / self.layers.max(1) as f64).collect::<Vec<_>>());
        let (error, of_theorem) = (mean(&self.own), mean(&self.theorem));
        self.all.sort_by(f64::total_cmp);
        let at = (self.all.len() as f64 * 0.95) as usize;
        Line {
            theorem,
            form: form.into(),
            k,
            error,
            error_of_theorem: of_theorem.filter(|_| theorem == 2),
            quantile_95: self.all.get(at.min(self.all.len().saturating_sub(1))).copied().unwrap_or(f64::NAN),
            bound: bound(n, k),
        }
    }
}

fn numbers(t: &Tensor) -> Vec<f64> {
    let flat = t.to_device(tch::Device::Cpu).to_kind(Kind::Double).contiguous().view(-1);
    let mut values = vec![0.0; flat.numel()];
    flat.copy_data(&mut values, flat.numel());
    values
}

/// Measures, writes table, JSON and plots into `out`, and gives the table as text.
pub fn run(options: &Options) -> Result<(String, Finished)> {
    let subject = Subject::open(&options.model, options.untrained)?;
    if !subject.is_full() {
        bail!("{}: a Linformer, expected a model with full attention: the theorems approximate its P", subject.name);
    }
    let Sequences { ids: sequences, looked, .. } = subject.sequences(&options.source)?;
    let n = looked.length;
    let k = if options.k.is_empty() { [16, 8, 4, 2].map(|part| (n / part).max(1)).to_vec() } else { options.k.clone() };
    if let Some(k) = k.iter().find(|k| **k < 1 || **k > n) {
        bail!("-k: found {k}, expected 1 to the length of the sequences, {n}");
    }
    if sequences.len() < 4 {
        bail!("found {} sequences, expected at least 4: half of them are for fitting E and F", sequences.len());
    }
    let (train, test) = sequences.split_at(sequences.len() / 2);
    let layers = subject.model.num_hidden_layers as usize;
    let (train, test) = (gather(&subject, train, layers)?, gather(&subject, test, layers)?);
    let mut lines = Vec::new();
    for k in k {
        lines.extend(at(&train, &test, k, n, options));
        // A reader that went away is no reason to stop.
        let _ = writeln!(std::io::stderr(), "k = {k}: measured");
    }
    let least = |eps: f64| json!({"eps": eps, "k": bound_k(n, eps)});
    let record = json!({
        "kind": "theorems",
        "name": subject.name,
        "checkpoint": subject.checkpoint,
        "layers": layers,
        "n": n,
        "looked_at": looked,
        "measured_on": sequences.len() - sequences.len() / 2,
        "learning_steps": options.steps,
        "learning_rates": RATES,
        "seed": options.seed,
        "environment": environment_at_end("cpu"),
        "bound": [least(0.5), least(2.0 / 3.0)],
        "lines": lines,
    });
    let out = &options.out;
    std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    let save = |name: &str, text: &str| replace(&out.join(name), text.as_bytes()).with_context(|| out.join(name).display().to_string());
    save("theorems.json", &(serde_json::to_string_pretty(&record)? + "\n"))?;
    let text = draw(&record, out)?;
    save("table.txt", &text)?;
    Ok((text, Finished::Done(record)))
}

/// Scores and values of every layer.
fn gather(subject: &Subject, sequences: &[Vec<u32>], layers: usize) -> Result<Vec<Layer>> {
    let mut parts: Vec<Vec<(Tensor, Tensor)>> = (0..layers).map(|_| Vec::new()).collect();
    for batch in sequences.chunks(4) {
        subject.visit(batch, |layer, heads: Heads| {
            parts[layer].push((heads.scores().to_kind(Kind::Double), heads.v.to_kind(Kind::Double)));
        })?;
    }
    let join = |parts: Vec<(Tensor, Tensor)>| {
        let (scores, values): (Vec<Tensor>, Vec<Tensor>) = parts.into_iter().unzip();
        Layer { scores: Tensor::cat(&scores, 0), values: Tensor::cat(&values, 0) }
    };
    Ok(parts.into_iter().map(join).collect())
}

/// Every form at one k.
fn at(train: &[Layer], test: &[Layer], k: i64, n: i64, options: &Options) -> Vec<Line> {
    let _guard = tch::no_grad_guard();
    let mut forms: Vec<(u8, &str, Errors)> = [
        (1, "P R^T R on values"),
        (1, "P R^T R on random vectors"),
        (1, "best rank k on values"),
        (2, "proof: E = R/n"),
        (2, "JL: E = F = R"),
        (2, "mean pool"),
        (2, "learned"),
    ]
    .map(|(theorem, form)| (theorem, form, Errors::default()))
    .into();
    for (i, (train, test)) in train.iter().zip(test).enumerate() {
        let r = random_projection(k, n, options.seed, &format!("R {k} {i}"));
        let p = test.scores.softmax(-1, None::<Kind>);
        let width = test.values.size()[3];
        let random = Tensor::from_slice(&normal((n * width) as usize, options.seed, &format!("w {i}"))).view([n, width]);
        let first = [theorem_1(&p, &r, &test.values), theorem_1(&p, &r, &random), best_rank(&p, k, &test.values)];
        // Appendix B takes delta small: 1/2^n in one place, of the order 1/n in another.
        let delta = 1.0 / n as f64;
        let pool = averages(k, n);
        let near = |e: &Tensor, f: &Tensor| theorem_2(&test.scores, &test.values, &compressed(&test.scores, e, f, &test.values));
        let (e, f) = learned(train, k, options.steps);
        let second = [near(&(&r * delta), &(&r * (-delta).exp())), near(&r, &r), near(&pool, &pool), near(&e, &f)];
        let all = first.into_iter().map(|e| (e.shallow_clone(), e)).chain(second);
        forms.iter_mut().zip(all).for_each(|((_, _, errors), (own, of_theorem))| errors.add(&own, &of_theorem));
    }
    forms.into_iter().map(|(theorem, form, errors)| errors.line(theorem, form, k, n)).collect()
}

/// The plots, and the table as text: everything from the record alone.
pub fn draw(record: &Value, out: &Path) -> Result<String> {
    for theorem in [1, 2] {
        plot(record, theorem).render(&out.join(format!("theorem_{theorem}")))?;
    }
    Ok(table(record))
}

/// Errors against k, log-log, with the bound where there is one.
pub fn plot(record: &Value, theorem: u64) -> LineChart {
    let lines: Vec<&Value> = record["lines"].as_array().into_iter().flatten().filter(|l| l["theorem"] == theorem).collect();
    let key = if theorem == 1 { "error" } else { "error_of_theorem" };
    let mut series: Vec<Series> = Vec::new();
    for line in &lines {
        let form = line["form"].as_str().unwrap_or_default();
        let Some(point) = line["k"].as_f64().zip(line[key]["mean"].as_f64()) else { continue };
        match series.iter_mut().find(|s| s.name == form) {
            Some(series) => series.points.push(point),
            None => series.push(Series::marked(form, vec![point])),
        }
    }
    let mut bounds: Vec<(f64, f64)> = lines.iter().filter_map(|l| l["k"].as_f64().zip(l["bound"].as_f64())).collect();
    bounds.dedup();
    if !bounds.is_empty() {
        series.push(Series::marked("bound", bounds).reference());
    }
    LineChart {
        title: format!("Theorem {theorem}: {}", record["name"].as_str().unwrap_or_default()),
        x: "k".into(),
        y: if theorem == 1 { "relative error" } else { "error / (|softmax(s)| |V|)" }.into(),
        log_x: true,
        log_y: true,
        series,
    }
}

/// One line a form and k.
pub fn table(record: &Value) -> String {
    let header =
        ["form", "k", "error / norm", "error / (|softmax(s)| |V|)", "95 % of what is bounded below", "bound"].map(str::to_string).to_vec();
    let estimate = |v: &Value| serde_json::from_value::<Estimate>(v.clone()).map_or("-".into(), |e| e.text(4));
    let row = |l: &Value| {
        vec![
            format!("{}: {}", l["theorem"], l["form"].as_str().unwrap_or_default()),
            l["k"].to_string(),
            estimate(&l["error"]),
            estimate(&l["error_of_theorem"]),
            l["quantile_95"].as_f64().map_or("-".into(), |q| format!("{q:.4}")),
            l["bound"].as_f64().map_or("none".into(), |b| format!("{b:.3}")),
        ]
    };
    let lines = record["lines"].as_array().into_iter().flatten().map(row);
    let error_at = |form: &str, k: &Value| {
        let mut lines = record["lines"].as_array().into_iter().flatten();
        lines.find(|l| l["form"] == form && l["k"] == *k).map(|l| l["error"]["mean"].clone())
    };
    // The start went through fp32.
    let is_near = |a: &Value, b: &Value| a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| (a - b).abs() < 1e-6 * b.abs());
    let is_start =
        |l: &&Value| l["form"] == "learned" && error_at("mean pool", &l["k"]).is_some_and(|pool| is_near(&pool, &l["error"]["mean"]));
    let starts: Vec<String> = record["lines"].as_array().into_iter().flatten().filter(is_start).map(|l| l["k"].to_string()).collect();
    let start = match starts.is_empty() {
        true => String::new(),
        false => {
            format!(" At k = {} learning found nothing better than the mean pool it starts from, on sequences apart.", starts.join(", "))
        }
    };
    let at = |i: usize| record["bound"][i]["k"].as_f64().unwrap_or(f64::NAN);
    align(std::iter::once(header).chain(lines).collect())
        + &format!(
            "The bound 5 ln n / (eps^2 - eps^3) at n = {}: k = {:.0} for eps = 0.5, and none below k = {:.0}. Mean ± standard error over {} sequences; an answer of zeros has an error of 1 over its norm. Theorem 1 bounds the error over the norm of P w, theorem 2 that over |softmax(s)| |V|; none: at this k the bound gives no error.{start}\n",
            record["n"],
            at(0),
            at(1),
            record["measured_on"]
        )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::model::weights::WeightsFile;

    /// The same in numpy on the same numbers; `make.py` beside the fixture made them.
    #[test]
    fn the_same_numbers_as_numpy() {
        let folder = Path::new("tests/fixtures/theorems");
        let file = WeightsFile::open(&folder.join("inputs.safetensors")).unwrap();
        let expected: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("expected.json")).unwrap()).unwrap();
        let tensor = |name: &str| file.tensor(name, None).unwrap().to_kind(Kind::Double);
        let (s, v, r) = (tensor("s"), tensor("v"), tensor("r"));
        let p = s.softmax(-1, None::<Kind>);
        let (k, n) = (r.size()[0], r.size()[1]);
        let delta = 1.0 / n as f64;
        let near = |e: &Tensor, f: &Tensor| theorem_2(&s, &v, &compressed(&s, e, f, &v));
        let pool = averages(k, n);
        let pairs = [("proof", near(&(&r * delta), &(&r * (-delta).exp()))), ("jl", near(&r, &r)), ("mean_pool", near(&pool, &pool))];
        let mut found = vec![("theorem_1".to_string(), theorem_1(&p, &r, &v)), ("best_rank".to_string(), best_rank(&p, k, &v))];
        for (name, (own, of_theorem)) in pairs {
            found.extend([(format!("{name}_own"), own), (format!("{name}_theorem"), of_theorem)]);
        }
        for (name, values) in found {
            let wanted: Vec<f64> = serde_json::from_value(expected[&name].clone()).unwrap();
            for (found, wanted) in numbers(&values).iter().zip(&wanted) {
                assert!((found - wanted).abs() < 1e-9 * wanted.abs().max(1.0), "{name}: {found} {wanted}");
            }
            assert_eq!(values.numel(), wanted.len(), "{name}");
        }
    }

    #[test]
    fn the_bound_is_the_paper_s() {
        assert_eq!(bound_k(512, 0.5).round(), 250.0);
        assert_eq!(bound_k(4096, 0.5).round(), 333.0);
        assert!((bound(512, 250).unwrap() - 0.5).abs() < 2e-3);
        assert_eq!(bound(512, 128), None, "at the paper's own k the theorem says nothing");
    }

    #[test]
    fn random_projections_keep_lengths_on_average() {
        let r = random_projection(64, 200, 1, "test");
        let x = Tensor::ones([200, 1], (Kind::Double, tch::Device::Cpu)) / 200f64.sqrt();
        let length = norms(&r.matmul(&x), -2).double_value(&[0]);
        assert!((length - 1.0).abs() < 0.3, "{length}");
    }

    /// A fit must beat where it starts.
    #[test]
    fn learning_lowers_the_error() {
        let cpu = (Kind::Double, tch::Device::Cpu);
        // Four sequences that look at the same places.
        let common = ((Tensor::arange(2 * 16 * 16, cpu) * 0.37).sin() * 3.0).view([1, 2, 16, 16]);
        let scores = common + (Tensor::arange(4 * 2 * 16 * 16, cpu) * 1.7).sin().view([4, 2, 16, 16]) * 0.1;
        let values = (Tensor::arange(4 * 2 * 16 * 4, cpu) * 0.73).cos().view([4, 2, 16, 4]);
        let layer = Layer { scores, values };
        let error = |e: &Tensor, f: &Tensor| {
            let near = compressed(&layer.scores, e, f, &layer.values);
            theorem_2(&layer.scores, &layer.values, &near).0.mean(Kind::Double).double_value(&[])
        };
        let pool = averages(4, 16);
        let (e, f) = learned(&layer, 4, 100);
        assert!(error(&e, &f) < 0.8 * error(&pool, &pool), "{} {}", error(&e, &f), error(&pool, &pool));
    }
}
