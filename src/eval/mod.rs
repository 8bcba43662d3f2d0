//! Metrics of GLUE and of language models, on plain numbers.
//!
//! A metric that the data does not define (one class only, constant predictions) is `None`, never a made-up number.

pub mod statistics;

use std::collections::HashMap;
use std::str::FromStr;

/// A task's metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    Accuracy,
    /// F1 of class 1.
    F1,
    /// Mean of the F1 of each class that is true or predicted somewhere.
    F1Macro,
    /// Matthews' correlation of two or more classes.
    Matthews,
    Pearson,
    Spearman,
}

const NAMES: [(Metric, &str); 6] = [
    (Metric::Accuracy, "accuracy"),
    (Metric::F1, "f1"),
    (Metric::F1Macro, "f1_macro"),
    (Metric::Matthews, "matthews"),
    (Metric::Pearson, "pearson"),
    (Metric::Spearman, "spearman"),
];

impl Metric {
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(metric, _)| *metric == self).map_or("", |(_, name)| name)
    }

    /// Its name on one of a task's scored splits: MNLI has two.
    pub fn name_on(self, split: &str) -> &'static str {
        match (self, split) {
            (Metric::Accuracy, "matched") => "accuracy_matched",
            (Metric::Accuracy, "mismatched") => "accuracy_mismatched",
            _ => self.name(),
        }
    }

    /// All names, for messages.
    pub fn names() -> String {
        NAMES.map(|(_, name)| name).join(", ")
    }

    /// Of predictions against truth, paired by position. Classes are whole numbers.
    pub fn compute(self, predicted: &[f64], truth: &[f64]) -> Option<f64> {
        match self {
            Metric::Accuracy => accuracy(predicted, truth),
            Metric::F1 => f1(predicted, truth, 1.0),
            Metric::F1Macro => f1_macro(predicted, truth),
            Metric::Matthews => matthews(predicted, truth),
            Metric::Pearson | Metric::Spearman if is_constant(predicted) || is_constant(truth) => None,
            Metric::Pearson => pearson(predicted, truth),
            // A NaN has no rank: a diverged model must not get a score.
            Metric::Spearman if predicted.iter().chain(truth).any(|v| v.is_nan()) => None,
            Metric::Spearman => pearson(&ranks(predicted), &ranks(truth)),
        }
    }
}

impl FromStr for Metric {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        NAMES.iter().find(|(_, name)| *name == text).map(|(metric, _)| *metric).ok_or(())
    }
}

/// e to the loss in nats.
pub fn perplexity(loss: f64) -> f64 {
    loss.exp()
}

/// The share of the commonest value: what a model that has learned nothing reaches.
pub fn majority_share(truth: &[f64]) -> Option<f64> {
    // Classes are whole numbers from 0: equal ones have equal bits.
    let mut counts: HashMap<u64, usize> = HashMap::new();
    truth.iter().for_each(|value| *counts.entry(value.to_bits()).or_default() += 1);
    counts.into_values().max().map(|most| most as f64 / truth.len() as f64)
}

/// The middle value, of an even number the upper one of the two; None of none.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// Mean and sample standard deviation (`None` for fewer than two values).
pub fn mean_and_deviation(values: &[f64]) -> Option<(f64, Option<f64>)> {
    let n = values.len() as f64;
    let mean = (n > 0.0).then(|| values.iter().sum::<f64>() / n)?;
    let deviation = (n > 1.0).then(|| (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt());
    Some((mean, deviation))
}

fn accuracy(predicted: &[f64], truth: &[f64]) -> Option<f64> {
    let right = predicted.iter().zip(truth).filter(|(p, t)| p == t).count();
    (!truth.is_empty()).then(|| right as f64 / truth.len() as f64)
}

fn f1(predicted: &[f64], truth: &[f64], class: f64) -> Option<f64> {
    let count = |values: &[f64]| values.iter().filter(|v| **v == class).count();
    let hits = predicted.iter().zip(truth).filter(|(p, t)| **p == class && **t == class).count();
    let total = count(predicted) + count(truth);
    (total > 0).then(|| 2.0 * hits as f64 / total as f64)
}

/// Classes that are true or predicted somewhere, ascending.
fn classes(predicted: &[f64], truth: &[f64]) -> Vec<f64> {
    let mut classes = [predicted, truth].concat();
    classes.sort_by(f64::total_cmp);
    classes.dedup();
    classes
}

fn f1_macro(predicted: &[f64], truth: &[f64]) -> Option<f64> {
    let of_classes: Vec<f64> = classes(predicted, truth).into_iter().filter_map(|class| f1(predicted, truth, class)).collect();
    mean_and_deviation(&of_classes).map(|(mean, _)| mean)
}

/// Gorodkin's form for any number of classes; of two classes it is the usual one.
fn matthews(predicted: &[f64], truth: &[f64]) -> Option<f64> {
    let n = truth.len() as f64;
    let right = predicted.iter().zip(truth).filter(|(p, t)| p == t).count() as f64;
    let (mut both, mut of_predicted, mut of_truth) = (0.0, 0.0, 0.0);
    for class in classes(predicted, truth) {
        let count = |values: &[f64]| values.iter().filter(|v| **v == class).count() as f64;
        let (p, t) = (count(predicted), count(truth));
        both += p * t;
        of_predicted += p * p;
        of_truth += t * t;
    }
    let product = (n * n - of_predicted) * (n * n - of_truth);
    (product > 0.0).then(|| (right * n - both) / product.sqrt())
}

/// Whether values differ by no more than the rounding of a network's fp32 outputs: equal rows at different places of a batch
/// may differ by that much, and a correlation would be one with noise.
pub fn is_constant(values: &[f64]) -> bool {
    let largest = values.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    values.iter().all(|v| (v - values[0]).abs() <= 1e-5 * largest)
}

fn pearson(a: &[f64], b: &[f64]) -> Option<f64> {
    let n = a.len() as f64;
    let (mean_a, mean_b) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let sum = |f: &dyn Fn(f64, f64) -> f64| a.iter().zip(b).map(|(x, y)| f(x - mean_a, y - mean_b)).sum::<f64>();
    let (covariance, var_a, var_b) = (sum(&|x, y| x * y), sum(&|x, _| x * x), sum(&|_, y| y * y));
    // Asked of the values: the mean of equal values is rounded, so their variance need not be exactly 0.
    let varies = |values: &[f64]| values.iter().any(|v| *v != values[0]);
    (varies(a) && varies(b) && var_a > 0.0 && var_b > 0.0).then(|| covariance / (var_a * var_b).sqrt())
}

/// Ranks from 1, ties sharing their mean rank.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    for tied in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let first = order.partition_point(|i| values[*i] < values[tied[0]]);
        tied.iter().for_each(|i| ranks[*i] = first as f64 + (tied.len() as f64 + 1.0) / 2.0);
    }
    ranks
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn close(found: Option<f64>, expected: f64) {
        assert!((found.unwrap() - expected).abs() < 1e-9, "{found:?} {expected}");
    }

    /// Expected numbers by hand from the confusion counts 3, 1, 1, 3, and
    /// by the textbook sums in plain Python for the correlations below.
    #[test]
    fn classification_metrics() {
        let truth = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0];
        let predicted = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0];
        close(Metric::Accuracy.compute(&predicted, &truth), 0.75);
        close(Metric::F1.compute(&predicted, &truth), 0.75);
        close(Metric::Matthews.compute(&predicted, &truth), 0.5);
    }

    #[test]
    fn correlations_with_ties() {
        let a = [1.0, 2.0, 2.0, 4.0, 5.0];
        let b = [2.0, 1.0, 3.0, 3.0, 7.0];
        close(Metric::Pearson.compute(&a, &b), 0.813_984_781_842_526_2);
        close(Metric::Spearman.compute(&a, &b), 0.763_157_894_736_842_1);
    }

    #[test]
    fn what_is_undefined_is_none() {
        assert_eq!(Metric::Pearson.compute(&[1.0, 1.0, 1.0], &[1.0, 2.0, 3.0]), None);
        assert_eq!(Metric::Pearson.compute(&[0.1, 0.100_000_01, 0.1], &[1.0, 2.0, 3.0]), None);
        assert_eq!(Metric::Spearman.compute(&[0.1, 0.100_000_01, 0.1], &[1.0, 2.0, 3.0]), None);
        assert!(Metric::Pearson.compute(&[0.1, 0.101, 0.102], &[1.0, 2.0, 3.0]).is_some());
        assert_eq!(Metric::Matthews.compute(&[1.0, 1.0], &[1.0, 0.0]), None);
        assert_eq!(Metric::Accuracy.compute(&[], &[]), None);
        assert_eq!(mean_and_deviation(&[2.0]), Some((2.0, None)));
    }

    /// Numbers of scikit-learn and scipy; `make.py` beside the fixture made them.
    #[test]
    fn the_same_numbers_as_the_python_libraries() {
        let fixture: serde_json::Value = serde_json::from_str(include_str!("../../tests/fixtures/metrics/metrics.json")).unwrap();
        let mut compared = 0;
        for case in fixture["cases"].as_array().unwrap() {
            let numbers = |key: &str| case[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect::<Vec<_>>();
            let (predicted, truth) = (numbers("predicted"), numbers("truth"));
            for (name, expected) in case["values"].as_object().unwrap() {
                let found = name.parse::<Metric>().unwrap().compute(&predicted, &truth);
                match (found, expected.as_f64()) {
                    (Some(found), Some(expected)) => {
                        assert!((found - expected).abs() < 1e-9, "{}: {name} {found} {expected}", case["name"])
                    }
                    (found, expected) => assert_eq!(found, expected, "{}: {name}", case["name"]),
                }
                compared += 1;
            }
        }
        assert_eq!(compared, 37);
    }

    #[test]
    fn a_diverged_model_has_no_correlation() {
        let (predicted, truth) = ([f64::NAN, 1.0, 2.0], [1.0, 2.0, 3.0]);
        assert_eq!(Metric::Pearson.compute(&predicted, &truth), None);
        assert_eq!(Metric::Spearman.compute(&predicted, &truth), None);
    }

    #[test]
    fn majority() {
        assert_eq!(majority_share(&[1.0, 0.0, 1.0, 2.0]), Some(0.5));
        assert_eq!(majority_share(&[]), None);
    }
}
