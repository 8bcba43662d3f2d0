//! A record of what runs when: spans that the program marks, libtorch's operations, and the nodes of the backward pass.
//!
//! Off, a span costs one load of a flag. A backward node is matched with the span in which it was made by its sequence number.

use super::{last_error, NativeError};
use std::borrow::Cow;
use std::ffi::{c_char, c_int, CStr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;
use std::time::Instant;

type OnBegin = extern "C" fn(*const c_char, i64, c_int);
type OnEnd = extern "C" fn();

extern "C" {
    fn linformer_profile(begin: Option<OnBegin>, end: Option<OnEnd>) -> c_int;
    fn linformer_next_sequence() -> i64;
}

/// The part of a training step that a span belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    DataWait,
    Embedding,
    Attention,
    FeedForward,
    Head,
    /// The graph's own work: gradients added up, and nodes of no other part.
    Autograd,
    GradientNorm,
    Optimizer,
    /// What no other span covers.
    Rest,
}

impl Part {
    pub fn name(self) -> &'static str {
        match self {
            Self::DataWait => "data wait",
            Self::Embedding => "embedding",
            Self::Attention => "attention block",
            Self::FeedForward => "feed-forward block",
            Self::Head => "head and loss",
            Self::Autograd => "autograd",
            Self::GradientNorm => "gradient norm",
            Self::Optimizer => "optimizer",
            Self::Rest => "rest",
        }
    }
}

/// What an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Marked by [`span`]; nodes of the graph made in it have numbers from `first` to below `last`.
    Span { part: Part, first: i64, last: i64 },
    /// A node of the backward pass, by its number.
    Backward(i64),
    /// An operation of libtorch.
    Operation,
}

/// Something that ran, in microseconds since the start. Events nest: what begins later within another ends before it.
#[derive(Clone, Debug)]
pub struct Event {
    pub name: Cow<'static, str>,
    pub what: What,
    pub begin: f64,
    pub end: f64,
}

static ON: AtomicBool = AtomicBool::new(false);
static RECORD: Mutex<Option<Record>> = Mutex::new(None);

struct Record {
    started: Instant,
    events: Vec<Event>,
    /// Indices of those that have not ended.
    open: Vec<usize>,
}

impl Record {
    fn begin(&mut self, name: Cow<'static, str>, what: What) {
        self.open.push(self.events.len());
        let begin = self.started.elapsed().as_secs_f64() * 1e6;
        self.events.push(Event { name, what, begin, end: begin });
    }

    fn end(&mut self) {
        if let Some(event) = self.open.pop().and_then(|i| self.events.get_mut(i)) {
            event.end = self.started.elapsed().as_secs_f64() * 1e6;
            if let What::Span { last, .. } = &mut event.what {
                // SAFETY: reads a number of this thread.
                *last = unsafe { linformer_next_sequence() };
            }
        }
    }
}

fn with_record(f: impl FnOnce(&mut Record)) {
    if let Ok(mut record) = RECORD.lock() {
        if let Some(record) = record.as_mut() {
            f(record);
        }
    }
}

extern "C" fn on_begin(name: *const c_char, sequence: i64, is_backward: c_int) {
    // SAFETY: libtorch gives a NUL-terminated name that lives as long as the call.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
    let what = if is_backward == 1 { What::Backward(sequence) } else { What::Operation };
    with_record(|record| record.begin(name.into(), what));
}

extern "C" fn on_end() {
    with_record(Record::end);
}

/// Ends its event when it is dropped.
#[must_use]
pub struct Span(bool);

impl Drop for Span {
    fn drop(&mut self) {
        if self.0 {
            with_record(Record::end);
        }
    }
}

/// Marks what runs until the result is dropped.
pub fn span(part: Part) -> Span {
    if !ON.load(Ordering::Relaxed) {
        return Span(false);
    }
    // SAFETY: reads a number of this thread.
    let first = unsafe { linformer_next_sequence() };
    with_record(|record| record.begin(part.name().into(), What::Span { part, first, last: first }));
    Span(true)
}

/// Begins to record what this thread does. No span may be open.
pub fn start() -> Result<(), NativeError> {
    if let Ok(mut record) = RECORD.lock() {
        *record = Some(Record { started: Instant::now(), events: Vec::new(), open: Vec::new() });
    }
    ON.store(true, Ordering::Relaxed);
    // SAFETY: functions that live as long as the program and do not unwind.
    match unsafe { linformer_profile(Some(on_begin), Some(on_end)) } {
        0 => Ok(()),
        _ => Err(last_error()),
    }
}

/// Ends the record and gives it. No span may be open.
pub fn stop() -> Result<Vec<Event>, NativeError> {
    ON.store(false, Ordering::Relaxed);
    // SAFETY: no functions: ends the calls.
    if unsafe { linformer_profile(None, None) } != 0 {
        return Err(last_error());
    }
    Ok(RECORD.lock().ok().and_then(|mut record| record.take()).map(|record| record.events).unwrap_or_default())
}
