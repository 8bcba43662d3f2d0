//! Whether a measurement had the machine to itself.

use anyhow::Result;
use std::time::Instant;

/// Processor time of others, in cores, from which on a measurement is made again.
const MOST_CORES: f64 = 0.1;
/// How often at most.
const TRIES: usize = 4;
/// Clock ticks a second in /proc, on every Linux that libtorch runs on.
const TICKS: f64 = 100.0;

/// Measures again while other processes (or the host of a virtual machine) take more than a tenth of a core, at most three times; of
/// all tries the least disturbed counts. Where /proc does not say, the first.
pub fn undisturbed(measure: impl Fn() -> Result<f64>) -> Result<f64> {
    let mut best: Option<(f64, f64)> = None;
    for _ in 0..TRIES {
        let (before, started) = (foreign_seconds(), Instant::now());
        let measured = measure()?;
        let cores = match (before, foreign_seconds()) {
            // A tick for each of the two counters may be on the wrong side.
            (Some(before), Some(after)) => (after - before - 2.0 / TICKS) / started.elapsed().as_secs_f64(),
            _ => 0.0,
        };
        if best.is_none_or(|(least, _)| cores < least) {
            best = Some((cores, measured));
        }
        if cores < MOST_CORES {
            break;
        }
    }
    Ok(best.map_or(f64::NAN, |(_, measured)| measured))
}

/// Seconds since the start that all cores together were busy with other things than this process.
fn foreign_seconds() -> Option<f64> {
    let machine = busy_ticks(&std::fs::read_to_string("/proc/stat").ok()?)?;
    let own = own_ticks(&std::fs::read_to_string("/proc/self/stat").ok()?)?;
    Some((machine - own) / TICKS)
}

/// Of /proc/stat's first line: user, nice, system, idle, iowait, irq, softirq, steal.
fn busy_ticks(stat: &str) -> Option<f64> {
    let fields: Vec<f64> = stat.lines().next()?.split_whitespace().skip(1).take(8).filter_map(|f| f.parse().ok()).collect();
    (fields.len() == 8).then(|| fields.iter().sum::<f64>() - fields[3] - fields[4])
}

/// Of /proc/self/stat: user and system time of all threads; the program's name before them may hold anything.
fn own_ticks(stat: &str) -> Option<f64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::process::{Command, Stdio};

    #[test]
    fn ticks_are_those_of_the_right_columns() {
        assert_eq!(busy_ticks("cpu  10 1 2 500 30 3 4 5 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"), Some(25.0));
        assert_eq!(own_ticks("7 (a) b) S 1 2 3 4 5 6 7 8 9 10 70 8 0 0"), Some(78.0));
        assert_eq!(busy_ticks("intr 5\n"), None);
    }

    #[test]
    fn what_others_slow_down_is_measured_again() {
        let calls = Cell::new(0);
        let mut other = Command::new("sh").args(["-c", "while :; do :; done"]).stdout(Stdio::null()).spawn().unwrap();
        let measured = undisturbed(|| {
            calls.set(calls.get() + 1);
            std::thread::sleep(std::time::Duration::from_millis(300));
            Ok(f64::from(calls.get()))
        });
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(calls.get(), TRIES as i32);
        assert!((1.0..=TRIES as f64).contains(&measured.unwrap()));
    }
}
