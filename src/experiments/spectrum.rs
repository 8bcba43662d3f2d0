//! How low is the rank of attention? (paper, section 3, Figure 1)
//!
//! The singular values of every head's P `[n, n]` on real sequences. The paper's quantity is the normalised cumulative
//! singular value: the sum of the largest j over the sum of all, not squared. Beside it stand what it leaves open: the
//! effective rank (e to the entropy of the normalised singular values) and the error of the best approximation of a rank.

use super::paper::{FIGURE_1, FIGURE_1_LAYERS};
use super::probe::{Looked, Sequences, Source, Subject};
use super::Finished;
use crate::durable::replace;
use crate::eval::statistics::{Estimate, Test};
use crate::eval::Metric;
use crate::log::heatmap::HeatMap;
use crate::log::plot::{Chart, LineChart, Series};
use crate::model::weights;
use crate::table::align;
use crate::train::run::environment_at_end;
use anyhow::{bail, Context, Result};
use serde::Serialize;
use serde_json::{json, Value};
use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    pub model: PathBuf,
    /// Seed of random weights instead of the model's: the control that the paper lacks.
    pub untrained: Option<u64>,
    pub source: Source,
    /// j of the tables; None: n/4, the paper's 128 of 512.
    pub rank: Option<i64>,
    /// Rows of projections to make from the right singular vectors, one file each.
    pub projections: Vec<i64>,
    pub out: PathBuf,
}

/// Numbers of one matrix P, from its singular values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rank {
    /// Share of the sum of the singular values that the largest `rank` have.
    pub cumulative: f64,
    /// e to the entropy of the normalised singular values.
    pub effective: f64,
    /// |P - P_r| / |P| in Frobenius' norm, P_r the best approximation of rank r.
    pub frobenius_error: f64,
    /// The same in the spectral norm: sigma_(r+1) / sigma_1.
    pub spectral_error: f64,
}

/// Singular values of P `[.., n, m]` in fp64, largest first, `[.., min(n, m)]`.
pub fn singular_values(p: &Tensor) -> Tensor {
    p.to_kind(Kind::Double).svd(true, false).1
}

/// Cumulative shares of singular values `[.., m]`.
pub fn cumulative(values: &Tensor) -> Tensor {
    values.cumsum(-1, Kind::Double) / values.sum_dim_intlist([-1i64].as_slice(), true, Kind::Double)
}

/// Of singular values `[B, h, m]`: one [`Rank`] a matrix, in the order `[B][h]`.
pub fn ranks(values: &Tensor, rank: i64) -> Vec<Vec<Rank>> {
    let count = values.size()[2];
    let rank = rank.clamp(1, count);
    let total = |t: &Tensor| t.sum_dim_intlist([-1i64].as_slice(), false, Kind::Double);
    let shares = values / total(values).unsqueeze(-1);
    let squares = values * values;
    let rest = total(&squares.narrow(2, rank, count - rank));
    let next = if rank < count { values.select(2, rank) } else { values.select(2, 0).zeros_like() };
    let all = [
        cumulative(values).select(2, rank - 1),
        // 0 log 0 is 0.
        (-total(&(&shares * shares.clamp_min(f64::MIN_POSITIVE).log()))).exp(),
        (rest / total(&squares)).sqrt(),
        next / values.select(2, 0),
    ];
    let [cumulative, effective, frobenius, spectral] = all.map(|t| rows(&t));
    let of = |b: usize, h: usize| Rank {
        cumulative: cumulative[b][h],
        effective: effective[b][h],
        frobenius_error: frobenius[b][h],
        spectral_error: spectral[b][h],
    };
    (0..cumulative.len()).map(|b| (0..cumulative[b].len()).map(|h| of(b, h)).collect()).collect()
}

/// A matrix of numbers.
fn rows(t: &Tensor) -> Vec<Vec<f64>> {
    let (height, width) = (t.size()[0] as usize, t.size()[1] as usize);
    let mut flat = vec![0.0f64; height * width];
    t.to_device(tch::Device::Cpu).contiguous().copy_data(&mut flat, height * width);
    flat.chunks(width.max(1)).map(<[f64]>::to_vec).collect()
}

/// One head of one layer, over the sequences.
#[derive(Clone, Debug, Serialize)]
struct HeadLine {
    layer: usize,
    head: usize,
    cumulative: Estimate,
    effective_rank: Estimate,
    frobenius_error: Estimate,
    spectral_error: Estimate,
}

/// Everything that was measured.
struct Measured {
    /// `[layer][head][sequence]`.
    ranks: Vec<Vec<Vec<Rank>>>,
    /// Cumulative shares, mean over heads and sequences, `[layer][j]`.
    curves: Vec<Vec<f64>>,
    /// Sum over heads and sequences of P^T P, a layer, if projections are wanted.
    gram: Vec<Tensor>,
}

/// Sequences of one pass: P of all their heads stand in memory together.
const BATCH: usize = 4;

fn measure(subject: &Subject, sequences: &[Vec<u32>], rank: i64, with_gram: bool) -> Result<Measured> {
    let (layers, heads) = (subject.model.num_hidden_layers as usize, subject.model.num_attention_heads as usize);
    let mut found = Measured { ranks: vec![vec![Vec::new(); heads]; layers], curves: Vec::new(), gram: Vec::new() };
    let mut sums: Vec<Option<Tensor>> = (0..layers).map(|_| None).collect();
    let mut grams: Vec<Option<Tensor>> = (0..layers).map(|_| None).collect();
    let add = |slot: &mut Option<Tensor>, t: Tensor| {
        *slot = Some(match slot.take() {
            Some(sum) => sum + t,
            None => t,
        })
    };
    for (i, batch) in sequences.chunks(BATCH).enumerate() {
        subject.visit(batch, |layer, attention| {
            let p = attention.probabilities();
            let values = singular_values(&p);
            for sequence in ranks(&values, rank) {
                sequence.into_iter().enumerate().for_each(|(head, r)| found.ranks[layer][head].push(r));
            }
            add(&mut sums[layer], cumulative(&values).sum_dim_intlist([0i64, 1].as_slice(), false, Kind::Double));
            if with_gram {
                let p = p.to_kind(Kind::Double);
                add(&mut grams[layer], p.transpose(2, 3).matmul(&p).sum_dim_intlist([0i64, 1].as_slice(), false, Kind::Double));
            }
        })?;
        let done = (i * BATCH + batch.len()).min(sequences.len());
        if done % 100 < BATCH || done == sequences.len() {
            // A reader that went away is no reason to stop.
            let _ = writeln!(std::io::stderr(), "{}: {done} of {} sequences", subject.name, sequences.len());
        }
    }
    let count = (sequences.len() * heads) as f64;
    found.curves = sums.iter().flatten().map(|sum| rows(&(sum / count).unsqueeze(0)).remove(0)).collect();
    found.gram = grams.into_iter().flatten().collect();
    Ok(found)
}

/// Measures, writes table, JSON and plots into `out`, and gives the table as text.
pub fn run(options: &Options) -> Result<(String, Finished)> {
    let subject = Subject::open(&options.model, options.untrained)?;
    let Sequences { ids: sequences, looked, .. } = subject.sequences(&options.source)?;
    let rank = options.rank.unwrap_or(looked.length / 4).max(1);
    if rank > looked.length {
        bail!("--rank: found {rank}, expected at most the length of the sequences, {}", looked.length);
    }
    if !options.projections.is_empty() && !subject.is_full() {
        bail!("--projections: {} is a Linformer; expected a model with full attention, whose singular vectors they are", subject.name);
    }
    if let Some(k) = options.projections.iter().find(|k| **k < 1 || **k > looked.length) {
        bail!("--projections: found {k}, expected 1 to the length of the sequences, {}", looked.length);
    }
    let measured = measure(&subject, &sequences, rank, !options.projections.is_empty())?;
    let out = &options.out;
    std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    for k in &options.projections {
        save_projections(&measured.gram, *k, &out.join(format!("projections-k{k}.safetensors")))?;
    }
    let record = record(&subject, &looked, rank, &measured);
    let save = |name: &str, text: &str| replace(&out.join(name), text.as_bytes()).with_context(|| out.join(name).display().to_string());
    save("spectrum.json", &(serde_json::to_string_pretty(&record)? + "\n"))?;
    save("spectrum.csv", &csv(&record)?)?;
    let text = draw(&record, out)?;
    save("table.txt", &text)?;
    Ok((text, Finished::Done(record)))
}

fn record(subject: &Subject, looked: &Looked, rank: i64, measured: &Measured) -> Value {
    let of = |ranks: &[Rank], what: fn(&Rank) -> f64| Estimate::of(&ranks.iter().map(what).collect::<Vec<_>>());
    let mut heads = Vec::new();
    for (layer, of_layer) in measured.ranks.iter().enumerate() {
        for (head, ranks) in of_layer.iter().enumerate() {
            let line = of(ranks, |r| r.cumulative)
                .zip(of(ranks, |r| r.effective))
                .zip(of(ranks, |r| r.frobenius_error))
                .zip(of(ranks, |r| r.spectral_error));
            heads.extend(line.map(|(((cumulative, effective_rank), frobenius_error), spectral_error)| HeadLine {
                layer,
                head,
                cumulative,
                effective_rank,
                frobenius_error,
                spectral_error,
            }));
        }
    }
    // Heads of one sequence are not independent: a sequence's mean over them is one observation.
    let layers: Vec<Vec<Rank>> = measured.ranks.iter().map(|heads| over_heads(heads)).collect();
    let all = over_heads(&layers);
    let estimates = |ranks: &[Rank]| {
        json!({"cumulative": of(ranks, |r| r.cumulative), "effective_rank": of(ranks, |r| r.effective),
               "frobenius_error": of(ranks, |r| r.frobenius_error), "spectral_error": of(ranks, |r| r.spectral_error)})
    };
    json!({
        "kind": "spectrum",
        "name": subject.name,
        "checkpoint": subject.checkpoint,
        "attention": subject.model.attention.kind,
        "layers": subject.model.num_hidden_layers,
        "heads": subject.model.num_attention_heads,
        "n": subject.model.sequence_length(),
        "looked_at": looked,
        "rank": rank,
        "environment": environment_at_end("cpu"),
        "all": estimates(&all),
        "by_layer": layers.iter().map(|ranks| estimates(ranks)).collect::<Vec<_>>(),
        "by_head": heads,
        "depth": depth(&layers),
        "curves": measured.curves,
    })
}

/// Per sequence the mean over heads (or layers).
fn over_heads(heads: &[Vec<Rank>]) -> Vec<Rank> {
    let count = heads.len().max(1) as f64;
    let sequences = heads.first().map_or(0, Vec::len);
    let mean = |s: usize, what: fn(&Rank) -> f64| heads.iter().map(|h| what(&h[s])).sum::<f64>() / count;
    (0..sequences)
        .map(|s| Rank {
            cumulative: mean(s, |r| r.cumulative),
            effective: mean(s, |r| r.effective),
            frobenius_error: mean(s, |r| r.frobenius_error),
            spectral_error: mean(s, |r| r.spectral_error),
        })
        .collect()
}

/// Is the rank falling with depth? Spearman's correlation of layer and cumulative share, and the last layer against the first.
fn depth(layers: &[Vec<Rank>]) -> Value {
    let series = |layer: &[Rank]| layer.iter().map(|r| r.cumulative).collect::<Vec<f64>>();
    let means: Vec<f64> = layers.iter().filter_map(|l| Estimate::of(&series(l))).map(|e| e.mean).collect();
    let index: Vec<f64> = (0..means.len()).map(|i| i as f64).collect();
    let last = layers.first().zip(layers.last()).and_then(|(first, last)| Test::paired(&series(last), &series(first)));
    json!({"spearman": Metric::Spearman.compute(&means, &index), "last_minus_first": last,
           "rises_at_every_layer": means.windows(2).all(|w| w[1] > w[0])})
}

fn csv(record: &Value) -> Result<String> {
    let mut out = csv::Writer::from_writer(Vec::new());
    let measures = ["cumulative", "effective_rank", "frobenius_error", "spectral_error"];
    let columns = measures.iter().flat_map(|m| [m.to_string(), format!("{m} se")]);
    out.write_record(["layer".to_string(), "head".into()].into_iter().chain(columns))?;
    for line in record["by_head"].as_array().into_iter().flatten() {
        let values = measures.iter().flat_map(|m| [line[m]["mean"].to_string(), line[m]["se"].to_string()]);
        out.write_record([line["layer"].to_string(), line["head"].to_string()].into_iter().chain(values))?;
    }
    Ok(String::from_utf8(out.into_inner()?)?)
}

/// The plots, and the table as text: everything from the record alone.
pub fn draw(record: &Value, out: &Path) -> Result<String> {
    curve(&[record]).render(&out.join("curve"))?;
    heat_map(record).render(&out.join("heatmap"))?;
    Ok(table(record))
}

/// Normalised cumulative singular value against the share of the singular values, a model a curve.
pub fn curve(records: &[&Value]) -> LineChart {
    let series = |record: &&Value| {
        let curves: Vec<Vec<f64>> = serde_json::from_value(record["curves"].clone()).unwrap_or_default();
        // Layers of different k have different numbers of singular values: curves meet at shares of them.
        let count = curves.iter().map(Vec::len).max().unwrap_or(0);
        let at = |c: &Vec<f64>, j: usize| c.get(((j + 1) * c.len()).div_ceil(count) - 1).copied().unwrap_or(f64::NAN);
        let mean = |j: usize| curves.iter().map(|c| at(c, j)).sum::<f64>() / curves.len().max(1) as f64;
        let points = (0..count).map(|j| ((j + 1) as f64 / count as f64, mean(j))).collect();
        Series::line(record["name"].as_str().unwrap_or_default(), points)
    };
    let mut series: Vec<Series> = records.iter().map(series).collect();
    for paper in FIGURE_1 {
        let name = format!("paper, {} (12 and 24 layers)", paper.text);
        series.push(Series::marked(name, vec![(0.25, paper.base), (0.25, paper.large)]).reference());
    }
    LineChart {
        title: "Singular values of attention".into(),
        x: "j / n".into(),
        y: "normalised cumulative singular value".into(),
        log_x: false,
        log_y: false,
        series,
    }
}

/// The cumulative share at the rank, layer by head.
pub fn heat_map(record: &Value) -> HeatMap {
    let mut rows: Vec<Vec<f64>> = Vec::new();
    for line in record["by_head"].as_array().into_iter().flatten() {
        let layer = line["layer"].as_u64().unwrap_or(0) as usize;
        rows.resize(rows.len().max(layer + 1), Vec::new());
        rows[layer].push(line["cumulative"]["mean"].as_f64().unwrap_or(f64::NAN));
    }
    HeatMap {
        title: format!(
            "{}: cumulative at {} of {}",
            record["name"].as_str().unwrap_or_default(),
            record["rank"],
            record["looked_at"]["length"]
        ),
        x: "head".into(),
        y: "layer".into(),
        rows,
        digits: 3,
    }
}

/// The paper's numbers, where they are of the same share of the singular values.
fn published(record: &Value) -> Option<String> {
    let is_quarter = record["rank"].as_i64()? * 4 == record["looked_at"]["length"].as_i64()?;
    let layers = FIGURE_1_LAYERS.map(|share| format!("{share:.3}")).join(", ");
    let all = FIGURE_1.map(|p| format!("{}: {:.2} (12 layers), {:.2} (24)", p.text, p.base, p.large)).join("; ");
    (is_quarter && record["attention"] == "full").then(|| {
        format!("The paper at n/4 of n = 512, read off its Figure 1, over all: {all}; by layer, 12 layers on Wiki103: {layers}.\n")
    })
}

/// One line a layer.
pub fn table(record: &Value) -> String {
    let rank = &record["rank"];
    let header = ["layer".to_string(), format!("cumulative at {rank}"), "effective rank".into(), format!("relative error of rank {rank}")];
    let text = |value: &Value, digits| serde_json::from_value::<Estimate>(value.clone()).map_or("-".into(), |e| e.text(digits));
    let row = |name: String, values: &Value| {
        vec![name, text(&values["cumulative"], 4), text(&values["effective_rank"], 2), text(&values["frobenius_error"], 4)]
    };
    let layers = record["by_layer"].as_array().into_iter().flatten().enumerate().map(|(i, values)| row(i.to_string(), values));
    let lines = std::iter::once(header.to_vec()).chain(layers).chain([row("all".into(), &record["all"])]);
    let looked = &record["looked_at"];
    align(lines.collect())
        + &format!(
            "{}: {} sequences of {} tokens from {}, {} masked; mean ± standard error over sequences. Relative error: of the best approximation, in Frobenius' norm.\n",
            record["name"].as_str().unwrap_or_default(),
            looked["sequences"],
            looked["length"],
            looked["text"].as_str().unwrap_or_default(),
            looked["masked"],
        )
        + &published(record).unwrap_or_default()
}

/// The k rows that keep most of P in the least squares: leading eigenvectors of the sum of P^T P, as `[k, n]`, by layer and
/// for all layers together, under the names that a Linformer's projections have.
fn save_projections(gram: &[Tensor], k: i64, path: &Path) -> Result<()> {
    let rows = |gram: &Tensor| -> Tensor {
        let (_, vectors) = gram.linalg_eigh("L");
        let n = vectors.size()[1];
        // Ascending; a row each, the largest first, its sum not negative.
        let rows = vectors.narrow(1, n - k, k).flip([1i64]).transpose(0, 1);
        let sign = rows.sum_dim_intlist([1i64].as_slice(), true, Kind::Double).ge(0.0).to_kind(Kind::Double) * 2.0 - 1.0;
        (rows * sign).to_kind(Kind::Float).contiguous()
    };
    let mut tensors = Vec::new();
    for (layer, gram) in gram.iter().enumerate() {
        let e = rows(gram);
        for part in ["key", "value"] {
            tensors.push((format!("roberta.encoder.layer.{layer}.attention.self.{part}_projection"), e.shallow_clone()));
        }
    }
    if let Some(all) = gram.iter().map(Tensor::shallow_clone).reduce(|a, b| a + b) {
        tensors.push(("roberta.encoder.shared_projection".into(), rows(&all)));
    }
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    Ok(weights::save(path, tensors.iter().map(|(name, t)| (name.clone(), t)), metadata)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::model::weights::WeightsFile;

    /// numpy's `linalg.svd` on the same matrices; `make.py` beside the fixture made them.
    #[test]
    fn the_same_numbers_as_numpy() {
        let file = WeightsFile::open(Path::new("tests/fixtures/spectrum/matrices.safetensors")).unwrap();
        let expected: Value = serde_json::from_str(include_str!("../../tests/fixtures/spectrum/expected.json")).unwrap();
        for case in expected.as_array().unwrap() {
            let p = file.tensor(case["name"].as_str().unwrap(), None).unwrap();
            let values = singular_values(&p);
            for (rank, expected) in case["ranks"].as_object().unwrap() {
                let found = ranks(&values, rank.parse().unwrap());
                for (b, sequence) in found.iter().enumerate() {
                    for (h, r) in sequence.iter().enumerate() {
                        let pairs = [
                            ("cumulative", r.cumulative),
                            ("effective", r.effective),
                            ("frobenius", r.frobenius_error),
                            ("spectral", r.spectral_error),
                        ];
                        for (name, found) in pairs {
                            let wanted = expected[name][b][h].as_f64().unwrap();
                            assert!((found - wanted).abs() < 1e-7 * wanted.abs().max(1.0), "{case:?} {rank} {name} {found} {wanted}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn projections_keep_a_matrix_of_their_rank() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e.safetensors");
        let cpu = (Kind::Double, tch::Device::Cpu);
        let a = (Tensor::arange(24, cpu) * 0.7).sin().view([8, 3]);
        let p = a.matmul(&(Tensor::arange(18, cpu) * 1.3).cos().view([3, 6]));
        save_projections(&[p.transpose(0, 1).matmul(&p)], 3, &path).unwrap();
        let e = WeightsFile::open(&path).unwrap().tensor("roberta.encoder.layer.0.attention.self.key_projection", Some(&[3, 6])).unwrap();
        let e = e.to_kind(Kind::Double);
        let worst = (p.matmul(&e.transpose(0, 1)).matmul(&e) - &p).abs().max().double_value(&[]);
        assert!(worst < 1e-5, "{worst}");
        let unit = (e.matmul(&e.transpose(0, 1)) - Tensor::eye(3, cpu)).abs().max().double_value(&[]);
        assert!(unit < 1e-5, "{unit}");
    }
}
