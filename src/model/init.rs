//! Initial values, drawn without state from (seed, name of the weight).

use crate::random::{hash_name, Purpose, Stream};
use std::ops::Range;
use tch::Tensor;

/// How a weight starts.
#[derive(Clone, Debug)]
pub enum Init {
    Zeros,
    Ones,
    /// N(0, std^2).
    Normal {
        std: f64,
    },
    /// Uniform in [-bound, bound).
    Uniform {
        bound: f64,
    },
    /// N(0, std^2) with one row zero (the padding token).
    NormalWithZeroRow {
        std: f64,
        row: i64,
    },
    /// sin and cos of geometrically spaced frequencies times `amplitude`; position p stands in row p + `first_row`.
    Sinusoidal {
        amplitude: f64,
        base: f64,
        first_row: i64,
    },
    /// `[.., k, n]` whose row j is 1/sqrt(w) on its window of w positions ([`pooled`]), plus N(0, std^2).
    MeanPool {
        std: f64,
    },
    /// `[.., w]` of 1/sqrt(w), plus N(0, std^2): one window of the above.
    Kernel {
        std: f64,
    },
}

/// Values of one weight.
pub fn draw(init: Init, shape: &[i64], seed: u64, name: &str) -> Tensor {
    let count = shape.iter().product::<i64>() as usize;
    let stream = Stream::new(seed, Purpose::Initialisation, hash_name(name));
    let columns = shape.last().copied().unwrap_or(1) as usize;
    let values: Vec<f32> = match init {
        Init::Zeros => vec![0.0; count],
        Init::Ones => vec![1.0; count],
        Init::Normal { std } => normal(stream, count, std),
        Init::Uniform { bound } => {
            let mut draws = stream.draws();
            (0..count).map(|_| ((2.0 * draws.uniform() - 1.0) * bound) as f32).collect()
        }
        Init::NormalWithZeroRow { std, row } => {
            let mut values = normal(stream, count, std);
            values.iter_mut().skip(row as usize * columns).take(columns).for_each(|v| *v = 0.0);
            values
        }
        Init::Sinusoidal { amplitude, base, first_row } => sinusoidal(count, columns, amplitude, base, first_row as usize),
        Init::MeanPool { std } => {
            let rows = shape[shape.len() - 2] as usize;
            let mut values = normal(stream, count, std);
            for (number, row) in values.chunks_mut(columns).enumerate() {
                let window = pooled(number % rows, rows, columns);
                let level = (1.0 / (window.len().max(1) as f64).sqrt()) as f32;
                row[window].iter_mut().for_each(|value| *value += level);
            }
            values
        }
        Init::Kernel { std } => {
            let level = (1.0 / (columns as f64).sqrt()) as f32;
            normal(stream, count, std).into_iter().map(|v| v + level).collect()
        }
    };
    Tensor::from_slice(&values).view(shape)
}

/// Columns that a row of a mean pool `[rows, columns]` sees: every column belongs to one row, and windows differ by one column at
/// most, so that no row is left without any where the rows do not divide the columns.
pub fn pooled(row: usize, rows: usize, columns: usize) -> Range<usize> {
    (row * columns).div_ceil(rows)..((row + 1) * columns).div_ceil(rows)
}

fn normal(stream: Stream, count: usize, std: f64) -> Vec<f32> {
    let mut draws = stream.draws();
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        let (a, b) = draws.normal_pair();
        values.extend([(a * std) as f32, (b * std) as f32]);
    }
    values.truncate(count);
    values
}

/// Vaswani et al. (2017), section 3.5, sines in the first half of the columns and cosines in the second.
fn sinusoidal(count: usize, columns: usize, amplitude: f64, base: f64, first_row: usize) -> Vec<f32> {
    let half = columns / 2;
    (0..count)
        .map(|i| {
            let (row, column) = (i / columns, i % columns);
            if row < first_row || column >= 2 * half {
                return 0.0;
            }
            let frequency = (-base.ln() * (column % half) as f64 / half as f64).exp();
            let angle = (row - first_row) as f64 * frequency;
            (amplitude * if column < half { angle.sin() } else { angle.cos() }) as f32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    fn moments(t: &Tensor) -> (f64, f64) {
        (t.mean(Kind::Float).double_value(&[]), t.var(true).double_value(&[]))
    }

    #[test]
    fn normal_has_its_variance() {
        let (mean, variance) = moments(&draw(Init::Normal { std: 0.02 }, &[500, 400], 1, "w"));
        assert!(mean.abs() < 5.0 * 0.02 / 200_000f64.sqrt());
        assert!((variance / 0.0004 - 1.0).abs() < 5.0 * (2.0 / 200_000f64).sqrt(), "{variance}");
    }

    #[test]
    fn a_mean_pool_row_has_unit_length_and_sees_its_window() {
        let e = draw(Init::MeanPool { std: 0.0 }, &[2, 4, 16], 1, "e");
        let lengths = e.square().sum_dim_intlist([-1i64].as_slice(), false, Kind::Float);
        assert!(lengths.allclose(&Tensor::ones_like(&lengths), 1e-6, 1e-6, false));
        assert_eq!(e.double_value(&[1, 2, 8]), 0.5);
        assert_eq!(e.double_value(&[1, 2, 12]), 0.0);
    }

    #[test]
    fn every_row_of_a_mean_pool_has_a_window() {
        for (rows, columns) in [(4, 16), (20, 64), (28, 64), (192, 256), (5, 5)] {
            let windows: Vec<_> = (0..rows).map(|row| pooled(row, rows, columns)).collect();
            assert!(windows.windows(2).all(|w| w[0].end == w[1].start), "{windows:?}");
            assert_eq!((windows[0].start, windows[rows - 1].end), (0, columns));
            assert!(windows.iter().all(|w| w.len() == columns / rows || w.len() == columns.div_ceil(rows)), "{windows:?}");
        }
        let e = draw(Init::MeanPool { std: 0.0 }, &[20, 64], 1, "e");
        assert!(e.square().sum_dim_intlist([-1i64].as_slice(), false, Kind::Float).allclose(
            &Tensor::ones([20], tch::kind::FLOAT_CPU),
            1e-6,
            1e-6,
            false
        ));
    }

    #[test]
    fn sinusoidal_starts_after_the_padding_rows() {
        let p = draw(Init::Sinusoidal { amplitude: 0.5, base: 100.0, first_row: 2 }, &[5, 4], 1, "p");
        assert_eq!(p.narrow(0, 0, 2).abs().max().double_value(&[]), 0.0);
        assert_eq!(Vec::<f32>::try_from(p.get(2)).ok(), Some(vec![0.0, 0.0, 0.5, 0.5]));
        assert!((p.double_value(&[3, 0]) - 0.5 * 1f64.sin()).abs() < 1e-6);
        assert!((p.double_value(&[3, 1]) - 0.5 * 0.1f64.sin()).abs() < 1e-6);
    }
}
