//! What a handful of seeds says: means with their standard errors, and tests of a difference.
//!
//! Student's t needs the regularised incomplete beta function, here by its continued fraction (Lentz's method); the numbers
//! are held against scipy.

use serde::{Deserialize, Serialize};

/// A mean and how well it is known.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    pub mean: f64,
    /// Standard error of the mean; None for one value.
    pub se: Option<f64>,
    pub count: usize,
}

impl Estimate {
    /// None for no values.
    pub fn of(values: &[f64]) -> Option<Self> {
        let (mean, deviation) = super::mean_and_deviation(values)?;
        Some(Self { mean, se: deviation.map(|d| d / (values.len() as f64).sqrt()), count: values.len() })
    }

    /// The interval that holds the mean with 95 % confidence, by Student's t; None for one value.
    pub fn interval(&self) -> Option<(f64, f64)> {
        let half = self.se? * t_quantile(0.975, self.count as f64 - 1.0);
        Some((self.mean - half, self.mean + half))
    }

    /// Standard deviation of the values; None for one value.
    pub fn deviation(&self) -> Option<f64> {
        Some(self.se? * (self.count as f64).sqrt())
    }

    /// `0.0123 ± 0.0004`, with the standard error.
    pub fn text(&self, digits: usize) -> String {
        match self.se {
            Some(se) => format!("{:.digits$} ± {se:.digits$}", self.mean),
            None => format!("{:.digits$}", self.mean),
        }
    }
}

/// A test of whether a mean difference is zero, two-sided.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Test {
    /// The difference, a - b.
    pub difference: Estimate,
    pub t: f64,
    pub degrees: f64,
    pub p: f64,
}

impl Test {
    /// Of pairs: the same seed under two conditions. None for fewer than two pairs, or if all differences are one number.
    pub fn paired(a: &[f64], b: &[f64]) -> Option<Self> {
        let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        let difference = Estimate::of(&differences)?;
        let se = difference.se.filter(|se| *se > rounding(a.iter().chain(b)))?;
        Some(Self::new(difference, se, differences.len() as f64 - 1.0))
    }

    /// Of two groups that are not paired and may differ in their spread (Welch).
    pub fn welch(a: &[f64], b: &[f64]) -> Option<Self> {
        let (x, y) = (Estimate::of(a)?, Estimate::of(b)?);
        let (u, v) = (x.se?.powi(2), y.se?.powi(2));
        let se = (u + v).sqrt();
        if se <= rounding(a.iter().chain(b)) {
            return None;
        }
        let degrees = (u + v).powi(2) / (u * u / (a.len() as f64 - 1.0) + v * v / (b.len() as f64 - 1.0));
        let difference = Estimate { mean: x.mean - y.mean, se: Some(se), count: a.len().min(b.len()) };
        Some(Self::new(difference, se, degrees))
    }

    fn new(difference: Estimate, se: f64, degrees: f64) -> Self {
        let t = difference.mean / se;
        Self { difference, t, degrees, p: both_tails(t, degrees) }
    }

    /// The difference's 95 % interval.
    pub fn interval(&self) -> (f64, f64) {
        let half = self.difference.se.unwrap_or(0.0) * t_quantile(0.975, self.degrees);
        (self.difference.mean - half, self.difference.mean + half)
    }
}

/// What numbers of the size of these differ by though they are meant to be one: a spread that is no more is none.
fn rounding<'a>(values: impl Iterator<Item = &'a f64>) -> f64 {
    1e-12 * values.fold(0.0f64, |largest, v| largest.max(v.abs()))
}

/// P(|T| > |t|) of Student's t.
fn both_tails(t: f64, degrees: f64) -> f64 {
    incomplete_beta(0.5 * degrees, 0.5, degrees / (degrees + t * t))
}

/// P(T <= t) of Student's t.
pub fn t_cdf(t: f64, degrees: f64) -> f64 {
    let tail = 0.5 * both_tails(t, degrees);
    if t > 0.0 {
        1.0 - tail
    } else {
        tail
    }
}

/// The t that a share `p` lies below, by bisection.
pub fn t_quantile(p: f64, degrees: f64) -> f64 {
    if p < 0.5 {
        return -t_quantile(1.0 - p, degrees);
    }
    let (mut low, mut high) = (0.0, 1.0);
    while t_cdf(high, degrees) < p && high < 1e12 {
        high *= 2.0;
    }
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if t_cdf(middle, degrees) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// I_x(a, b).
fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (1.0 - x).ln()).exp();
    // The fraction converges fast below the mean; above it the other tail does.
    if x < (a + 1.0) / (a + b + 2.0) {
        front * beta_fraction(a, b, x) / a
    } else {
        1.0 - front * beta_fraction(b, a, 1.0 - x) / b
    }
}

fn beta_fraction(a: f64, b: f64, x: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let away_from_zero = |v: f64| if v.abs() < TINY { TINY } else { v };
    let mut c = 1.0;
    let mut d = 1.0 / away_from_zero(1.0 - (a + b) * x / (a + 1.0));
    let mut fraction = d;
    for m in 1..300 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut step = 1.0;
        for term in [even, odd] {
            d = 1.0 / away_from_zero(1.0 + term * d);
            c = away_from_zero(1.0 + term / c);
            step = d * c;
            fraction *= step;
        }
        if (step - 1.0).abs() < 1e-15 {
            break;
        }
    }
    fraction
}

/// ln Gamma(x) for x > 0, by Stirling's series from 10 on.
fn ln_gamma(x: f64) -> f64 {
    let mut shift = 0.0;
    let mut x = x;
    while x < 10.0 {
        shift -= x.ln();
        x += 1.0;
    }
    let series = 1.0 / (12.0 * x) - 1.0 / (360.0 * x.powi(3)) + 1.0 / (1260.0 * x.powi(5)) - 1.0 / (1680.0 * x.powi(7));
    shift + (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// scipy's `t.cdf`, `t.ppf`, `ttest_rel`, `ttest_ind(equal_var=False)` and `sem`; `make.py` beside the fixture made them.
    #[test]
    fn the_same_numbers_as_scipy() {
        let fixture: Value = serde_json::from_str(include_str!("../../tests/fixtures/statistics/statistics.json")).unwrap();
        let close = |found: f64, expected: &Value, what: &str| {
            let expected = expected.as_f64().unwrap();
            assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1e-3), "{what}: {found} {expected}");
        };
        for case in fixture["t"].as_array().unwrap() {
            let [t, degrees] = ["t", "degrees"].map(|key| case[key].as_f64().unwrap());
            close(t_cdf(t, degrees), &case["cdf"], "cdf");
            // Far out, many t have one and the same share to the last digit.
            if t.abs() < 3.0 {
                close(t_quantile(t_cdf(t, degrees), degrees), &case["t"], "quantile");
            }
        }
        for case in fixture["samples"].as_array().unwrap() {
            let numbers = |key: &str| case[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect::<Vec<_>>();
            let (a, b) = (numbers("a"), numbers("b"));
            close(Estimate::of(&a).unwrap().se.unwrap(), &case["sem_a"], "sem");
            let (paired, welch) = (Test::paired(&a, &b).unwrap(), Test::welch(&a, &b).unwrap());
            close(paired.t, &case["paired"]["t"], "paired t");
            close(paired.p, &case["paired"]["p"], "paired p");
            close(paired.interval().0, &case["paired"]["low"], "paired low");
            close(paired.interval().1, &case["paired"]["high"], "paired high");
            close(welch.t, &case["welch"]["t"], "welch t");
            close(welch.p, &case["welch"]["p"], "welch p");
            close(welch.degrees, &case["welch"]["df"], "welch df");
        }
    }

    #[test]
    fn what_one_seed_cannot_say_is_none() {
        assert_eq!(Estimate::of(&[]), None);
        assert_eq!(Estimate::of(&[3.0]).unwrap().se, None);
        assert_eq!(Test::paired(&[1.0], &[2.0]), None);
        assert_eq!(Test::paired(&[1.0, 2.0], &[0.0, 1.0]), None, "differences without any spread have no t");
        // The same differences, but for what rounding makes of them.
        assert_eq!(Test::paired(&[0.80, 0.83], &[0.77, 0.80]), None);
        assert_eq!(Test::paired(&[0.59; 3], &[0.41; 3]), None);
        assert_eq!(Test::welch(&[0.1 + 0.2, 0.3], &[0.1, 0.1]), None);
    }
}
