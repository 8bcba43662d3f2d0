//! Where the time of a training step goes: a table by part, and a trace for chrome://tracing or Perfetto.

use crate::native::profile::{self, Event, Part, What};
use crate::native::NativeError;
use crate::table::align;
use serde_json::{json, Value};
use std::collections::BTreeMap;

/// Steps made before those that are looked at.
const WARM_UP: u64 = 3;
/// Names of libtorch's matrix products.
const PRODUCTS: [&str; 4] = ["aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"];

/// Looks at some steps of a run.
pub struct Profiler {
    first: u64,
    last: u64,
}

impl Profiler {
    /// `steps` of those behind step `done`, after a few to warm up; fewer if the run ends before.
    pub fn new(steps: u64, done: u64, total: u64) -> Self {
        let last = (done + WARM_UP + steps).min(total);
        Self { first: (last + 1).saturating_sub(steps).max(done + 1), last }
    }

    pub fn before(&self, step: u64) -> Result<(), NativeError> {
        if step == self.first {
            profile::start()?;
        }
        Ok(())
    }

    /// After the last of the steps, what was seen.
    pub fn after(&self, step: u64) -> Result<Option<Profile>, NativeError> {
        if step != self.last {
            return Ok(None);
        }
        Ok(Some(Profile::new(profile::stop()?, self.last + 1 - self.first)))
    }
}

/// Milliseconds of a part in a step.
#[derive(Clone, Copy, Debug, Default)]
struct Time {
    forward: f64,
    backward: f64,
    /// Forward once more, in the backward pass.
    again: f64,
    /// Of all these, libtorch's matrix products (neither the small ones inside our attention kernel nor gradients of weights that
    /// are made in tiles).
    products: f64,
}

impl Time {
    fn all(&self) -> f64 {
        self.forward + self.backward + self.again
    }
}

/// Some steps by part.
pub struct Profile {
    steps: u64,
    events: Vec<Event>,
    parts: BTreeMap<Part, Time>,
}

/// Which direction a moment belongs to.
#[derive(Clone, Copy)]
enum Direction {
    Forward,
    Backward,
    Again,
}

impl Profile {
    fn new(events: Vec<Event>, steps: u64) -> Self {
        let mut parts: BTreeMap<Part, Time> = BTreeMap::new();
        let made = |number: i64| {
            let within = |e: &&Event| matches!(e.what, What::Span { first, last, .. } if first <= number && number < last);
            // The narrowest span: it began last.
            events.iter().rfind(within).and_then(|e| if let What::Span { part, .. } = e.what { Some(part) } else { None })
        };
        // Events in the order of their beginnings; those that are open around the present one, and where their time goes.
        let mut open: Vec<(f64, Part, Direction, bool)> = Vec::new();
        let mut now = 0.0;
        let mut pass = |until: f64, now: &mut f64, open: &[(f64, Part, Direction, bool)]| {
            if let Some((_, part, direction, is_product)) = open.last() {
                let time = parts.entry(*part).or_default();
                let passed = (until - *now) / 1e3 / steps as f64;
                match direction {
                    Direction::Forward => time.forward += passed,
                    Direction::Backward => time.backward += passed,
                    Direction::Again => time.again += passed,
                }
                time.products += if *is_product { passed } else { 0.0 };
            }
            *now = until;
        };
        for event in &events {
            while let Some((end, ..)) = open.last().filter(|(end, ..)| *end <= event.begin) {
                pass(*end, &mut now, &open);
                open.pop();
            }
            pass(event.begin, &mut now, &open);
            let (part, direction, in_product) = open.last().map_or((Part::Rest, Direction::Forward, false), |(_, p, d, m)| (*p, *d, *m));
            let (part, direction) = match event.what {
                What::Span { part: Part::Autograd, .. } => (Part::Autograd, Direction::Backward),
                What::Span { part, .. } if matches!(direction, Direction::Forward) => (part, Direction::Forward),
                What::Span { part, .. } => (part, Direction::Again),
                What::Backward(number) => (made(number).unwrap_or(Part::Autograd), Direction::Backward),
                What::Operation => (part, direction),
            };
            let is_product = in_product || PRODUCTS.contains(&event.name.as_ref());
            open.push((event.end, part, direction, is_product));
        }
        while let Some((end, ..)) = open.last() {
            pass(*end, &mut now, &open);
            open.pop();
        }
        Self { steps, events, parts }
    }

    fn step_milliseconds(&self) -> f64 {
        self.parts.values().map(Time::all).sum()
    }

    /// The table.
    pub fn text(&self) -> String {
        let header =
            ["part", "forward ms", "backward ms", "again ms", "ms", "% of step", "products ms", "% products"].map(str::to_string).to_vec();
        let whole = self.step_milliseconds();
        let row = |name: &str, time: &Time| {
            let numbers = [
                time.forward,
                time.backward,
                time.again,
                time.all(),
                100.0 * time.all() / whole,
                time.products,
                100.0 * time.products / time.all().max(1e-9),
            ];
            std::iter::once(name.to_string()).chain(numbers.iter().map(|v| format!("{v:.2}"))).collect::<Vec<_>>()
        };
        let sum = self.parts.values().fold(Time::default(), |a, b| Time {
            forward: a.forward + b.forward,
            backward: a.backward + b.backward,
            again: a.again + b.again,
            products: a.products + b.products,
        });
        let rows = self.parts.iter().map(|(part, time)| row(part.name(), time)).chain([row("step", &sum)]);
        align(std::iter::once(header).chain(rows).collect())
    }

    /// The same numbers.
    pub fn json(&self) -> Value {
        let part = |(part, time): (&Part, &Time)| {
            json!({"part": part.name(), "forward_ms": time.forward, "backward_ms": time.backward, "recomputed_ms": time.again,
                "ms": time.all(), "share": time.all() / self.step_milliseconds(), "products_ms": time.products})
        };
        json!({"steps": self.steps, "step_ms": self.step_milliseconds(), "parts": self.parts.iter().map(part).collect::<Vec<_>>()})
    }

    /// Complete events of the Trace Event Format, in JSON.
    pub fn trace(&self) -> String {
        let event = |e: &Event| {
            let category = match e.what {
                What::Span { .. } => "part",
                What::Backward(_) => "backward",
                What::Operation => "operation",
            };
            json!({"name": short(&e.name), "cat": category, "ph": "X", "ts": e.begin, "dur": e.end - e.begin, "pid": 1, "tid": 1})
                .to_string()
        };
        let name = |what: &str| json!({"name": what, "ph": "M", "pid": 1, "tid": 1, "args": {"name": "linformer"}}).to_string();
        let lines: Vec<String> = ["process_name", "thread_name"].map(name).into_iter().chain(self.events.iter().map(event)).collect();
        format!("{{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n{}\n]}}\n", lines.join(",\n"))
    }
}

/// `torch::autograd::CppNode<(anonymous namespace)::FeedForward>` is FeedForward.
fn short(name: &str) -> &str {
    name.rsplit("::").next().filter(|_| name.contains("CppNode<")).map_or(name, |last| last.trim_end_matches('>'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &'static str, what: What, begin: f64, end: f64) -> Event {
        Event { name: name.into(), what, begin: begin * 1e3, end: end * 1e3 }
    }

    /// One step of 10 ms: a span with a product in it, its node in the backward pass, and in that the span once more.
    #[test]
    fn time_goes_to_the_innermost_part_and_nodes_to_the_span_that_made_them() {
        let span = |part, first, last| What::Span { part, first, last };
        let events = vec![
            event("rest", span(Part::Rest, 0, 9), 0.0, 10.0),
            event("attention", span(Part::Attention, 2, 4), 1.0, 4.0),
            event("aten::mm", What::Operation, 2.0, 3.0),
            event("autograd", span(Part::Autograd, 5, 9), 5.0, 9.0),
            event("Recompute", What::Backward(3), 6.0, 8.0),
            event("attention", span(Part::Attention, 6, 7), 6.5, 7.0),
            event("Heads", What::Backward(6), 7.25, 7.75),
            event("AccumulateGrad", What::Backward(-1), 8.0, 8.5),
        ];
        let profile = Profile::new(events, 1);
        let of = |part| profile.parts[&part];
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
        close(of(Part::Attention).forward, 3.0);
        close(of(Part::Attention).products, 1.0);
        close(of(Part::Attention).again, 0.5);
        close(of(Part::Attention).backward, 1.5);
        close(of(Part::Autograd).backward, 2.0);
        close(of(Part::Rest).forward, 3.0);
        close(profile.step_milliseconds(), 10.0);
        assert_eq!(short("torch::autograd::CppNode<(anonymous namespace)::FeedForward>"), "FeedForward");
    }

    #[test]
    fn a_run_that_ends_early_is_looked_at_as_far_as_it_goes() {
        for (steps, done, total, first, last) in
            [(5, 0, 100, 4, 8), (5, 90, 100, 94, 98), (5, 96, 100, 97, 100), (5, 0, 4, 1, 4), (5, 0, 6, 2, 6)]
        {
            let profiler = Profiler::new(steps, done, total);
            assert_eq!((profiler.first, profiler.last), (first, last), "{steps} {done} {total}");
        }
    }
}
