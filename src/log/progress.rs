//! On a terminal a bar with step, tokens/s, loss and time left; elsewhere sparse plain lines.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Progress of one run, on stderr.
pub struct Progress {
    bar: Option<ProgressBar>,
    /// Of a rank beside the first: nothing is shown.
    silent: bool,
    name: String,
    total: u64,
    first: u64,
    started: Instant,
}

impl Progress {
    /// For steps `first + 1 ..= total`.
    pub fn new(name: &str, first: u64, total: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| make_bar(name, first, total));
        Self { bar, silent: false, name: name.into(), total, first, started: Instant::now() }
    }

    /// Shows nothing: another rank does.
    pub fn silent() -> Self {
        Self { bar: None, silent: true, name: String::new(), total: 0, first: 0, started: Instant::now() }
    }

    /// Moves to a step.
    pub fn step(&self, step: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(step);
        }
    }

    /// What stands behind the bar; without a terminal, a line of its own.
    pub fn report(&self, step: u64, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_string()),
            None => self.plain(&format!("{}: step {step}/{} ({}) {text}", self.name, self.total, self.time_left(step))),
        }
    }

    /// A line that stays.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(format!("{}: {text}", self.name)),
            None => self.plain(&format!("{}: {text}", self.name)),
        }
    }

    pub fn warn(&self, text: &str) {
        self.note(&format!("warning: {text}"));
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn plain(&self, line: &str) {
        if self.silent {
            return;
        }
        // A reader that went away is no reason to stop.
        let _ = writeln!(std::io::stderr(), "{line}");
    }

    fn time_left(&self, step: u64) -> String {
        let done = step.saturating_sub(self.first);
        if done == 0 {
            return "time left unknown".into();
        }
        let left = self.started.elapsed().as_secs_f64() / done as f64 * self.total.saturating_sub(step) as f64;
        format!("{} left", duration(left))
    }
}

fn make_bar(name: &str, first: u64, total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(5));
    let template = "{prefix} {bar:24.cyan/blue} {pos}/{len} {eta} left  {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar.set_prefix(name.to_string());
    bar.set_position(first);
    bar.reset_eta();
    bar
}

/// `42 s`, `3 min 05 s`, `2 h 10 min`.
pub fn duration(seconds: f64) -> String {
    let s = seconds.round().max(0.0) as u64;
    match s {
        0..=59 => format!("{s} s"),
        60..=3599 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

/// `1,234,567`.
pub fn thousands(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let grouped: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|chunk| std::str::from_utf8(chunk).ok()).collect();
    format!("{}{}", if number < 0.0 { "-" } else { "" }, grouped.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_people_read_them() {
        assert_eq!(thousands(1_234_567.4), "1,234,567");
        assert_eq!(thousands(999.0), "999");
        assert_eq!(duration(59.6), "1 min 00 s");
        assert_eq!(duration(7_830.0), "2 h 10 min");
    }
}
