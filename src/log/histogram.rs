//! Histograms of weights and gradients, in the form that TensorBoard shows and `histograms.jsonl` keeps.

use serde_json::{json, Map, Value};

/// Buckets of equal width.
const BUCKETS: usize = 64;

/// How the finite numbers of a tensor are spread.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    pub min: f64,
    pub max: f64,
    pub sum: f64,
    pub sum_squares: f64,
    /// Numbers that are not finite; they are in nothing else here.
    pub not_finite: u64,
    /// Between `min` and `max`; one bucket if these are equal.
    pub counts: Vec<u64>,
}

impl Histogram {
    /// None: there is no finite number.
    pub fn of(values: &[f32]) -> Option<Self> {
        let finite = || values.iter().map(|v| f64::from(*v)).filter(|v| v.is_finite());
        let (min, max) = finite().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        if min > max {
            return None;
        }
        let mut counts = vec![0; if max > min { BUCKETS } else { 1 }];
        let scale = if max > min { BUCKETS as f64 / (max - min) } else { 0.0 };
        let (mut sum, mut sum_squares, mut count) = (0.0, 0.0, 0);
        for value in finite() {
            sum += value;
            sum_squares += value * value;
            count += 1;
            let last = counts.len() - 1;
            counts[(((value - min) * scale) as usize).min(last)] += 1;
        }
        Some(Self { min, max, sum, sum_squares, not_finite: values.len() as u64 - count, counts })
    }

    /// How many numbers are counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The upper end of every bucket.
    pub fn limits(&self) -> Vec<f64> {
        let width = (self.max - self.min) / self.counts.len() as f64;
        let last = self.counts.len() - 1;
        (0..=last).map(|i| if i == last { self.max } else { self.min + width * (i + 1) as f64 }).collect()
    }

    pub fn to_json(&self) -> Value {
        json!({"min": self.min, "max": self.max, "sum": self.sum, "sum_squares": self.sum_squares, "not_finite": self.not_finite, "counts": self.counts})
    }

    /// None: not what [`Self::to_json`] writes.
    pub fn from_json(value: &Value) -> Option<Self> {
        let number = |key: &str| value.get(key)?.as_f64();
        let counts: Vec<u64> = value.get("counts")?.as_array()?.iter().map(Value::as_u64).collect::<Option<_>>()?;
        (!counts.is_empty()).then_some(())?;
        Some(Self {
            min: number("min")?,
            max: number("max")?,
            sum: number("sum")?,
            sum_squares: number("sum_squares")?,
            not_finite: value.get("not_finite")?.as_u64()?,
            counts,
        })
    }
}

/// Histograms of one step as a line of `histograms.jsonl`.
pub fn line(step: u64, time: f64, histograms: &[(String, Histogram)]) -> Map<String, Value> {
    let values: Map<String, Value> = histograms.iter().map(|(tag, histogram)| (tag.clone(), histogram.to_json())).collect();
    [("step", json!(step)), ("time", json!(time)), ("histograms", Value::Object(values))]
        .map(|(k, v)| (k.to_string(), v))
        .into_iter()
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_number_is_in_the_bucket_that_holds_it() {
        let values: Vec<f32> = (0..1000).map(|i| ((i * 37) % 1000) as f32 / 250.0 - 1.5).chain([f32::NAN, f32::INFINITY]).collect();
        let histogram = Histogram::of(&values).unwrap();
        assert_eq!((histogram.count(), histogram.not_finite, histogram.min), (1000, 2, -1.5));
        let limits = histogram.limits();
        let mut low = histogram.min;
        for (limit, count) in limits.iter().zip(&histogram.counts) {
            let within =
                values.iter().map(|v| f64::from(*v)).filter(|v| *v >= low && (*v < *limit || (*limit == histogram.max && *v == *limit)));
            assert!((within.count() as i64 - *count as i64).abs() <= 1, "{low} to {limit}");
            low = *limit;
        }
        assert!((histogram.sum - values[..1000].iter().map(|v| f64::from(*v)).sum::<f64>()).abs() < 1e-9);
        assert_eq!(Histogram::from_json(&histogram.to_json()).unwrap(), histogram);
    }

    #[test]
    fn a_constant_has_one_bucket_and_nothing_has_none() {
        let constant = Histogram::of(&[2.0; 5]).unwrap();
        assert_eq!((constant.counts.as_slice(), constant.limits()), (&[5][..], vec![2.0]));
        assert_eq!(Histogram::of(&[f32::NAN]), None);
        assert_eq!(Histogram::from_json(&json!({"min": 0})), None);
    }
}
