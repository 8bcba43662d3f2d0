//! Whether a measurement had the machine to itself.

use crate::native::runtime::{self, TICKS};
use anyhow::Result;
use std::time::Instant;

/// Processor time of others, in cores, from which on a measurement is made again.
const MOST_CORES: f64 = 0.1;
/// How often at most.
const TRIES: usize = 4;

/// What was measured, and whether others slowed it down.
pub struct Measured {
    pub value: f64,
    pub is_disturbed: bool,
}

/// Measures again while other processes (or the host of a virtual machine) take more than a tenth of a core, at most three times; of
/// all tries the least disturbed counts. Where /proc does not say, the first.
pub fn undisturbed(measure: impl Fn() -> Result<f64>) -> Result<Measured> {
    least_disturbed(|| {
        let (before, started) = (foreign_seconds(), Instant::now());
        let measured = measure()?;
        let cores = match (before, foreign_seconds()) {
            // A tick for each of the two counters may be on the wrong side.
            (Some(before), Some(after)) => (after - before - 2.0 / TICKS) / started.elapsed().as_secs_f64(),
            _ => 0.0,
        };
        Ok((cores, measured))
    })
}

/// Tries, each with the cores that others had meanwhile, until one has the machine to itself.
fn least_disturbed(mut attempt: impl FnMut() -> Result<(f64, f64)>) -> Result<Measured> {
    let mut best = attempt()?;
    for _ in 1..TRIES {
        if best.0 < MOST_CORES {
            break;
        }
        let next = attempt()?;
        if next.0 < best.0 {
            best = next;
        }
    }
    Ok(Measured { value: best.1, is_disturbed: best.0 >= MOST_CORES })
}

/// Seconds since the start that all cores together were busy with other things than this process.
fn foreign_seconds() -> Option<f64> {
    Some(busy_ticks(&std::fs::read_to_string("/proc/stat").ok()?)? / TICKS - runtime::processor_seconds()?)
}

/// Of /proc/stat's first line: user, nice, system, idle, iowait, irq, softirq, steal.
fn busy_ticks(stat: &str) -> Option<f64> {
    let fields: Vec<f64> = stat.lines().next()?.split_whitespace().skip(1).take(8).filter_map(|f| f.parse().ok()).collect();
    (fields.len() == 8).then(|| fields.iter().sum::<f64>() - fields[3] - fields[4])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn ticks_are_those_of_the_right_columns() {
        assert_eq!(busy_ticks("cpu  10 1 2 500 30 3 4 5 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"), Some(25.0));
        assert_eq!(busy_ticks("intr 5\n"), None);
    }

    #[test]
    fn of_all_tries_the_least_disturbed_counts() {
        let of = |tries: &[(f64, f64)]| {
            let mut made = 0;
            let measured = least_disturbed(|| {
                made += 1;
                Ok(tries[made - 1])
            })
            .unwrap();
            (made, measured.value, measured.is_disturbed)
        };
        assert_eq!(of(&[(0.05, 1.0)]), (1, 1.0, false));
        assert_eq!(of(&[(0.5, 1.0), (0.01, 2.0)]), (2, 2.0, false));
        assert_eq!(of(&[(0.5, 1.0), (0.4, 2.0), (0.3, 3.0), (0.9, 4.0)]), (4, 3.0, true));
    }

    #[test]
    fn a_busy_process_is_noticed_and_ones_own_work_is_not() {
        let spin = || {
            let started = Instant::now();
            while started.elapsed().as_secs_f64() < 0.3 {}
        };
        let before = runtime::processor_seconds().unwrap();
        spin();
        assert!(runtime::processor_seconds().unwrap() - before > 0.1);
        let mut other = Command::new("sh").args(["-c", "while :; do :; done"]).stdout(Stdio::null()).spawn().unwrap();
        let before = foreign_seconds().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(500));
        let foreign = foreign_seconds().unwrap() - before;
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(foreign > 0.05, "{foreign}");
    }
}
