//! Signals and the time limit: they ask the loop to stop after its step; a second signal ends the process at once.
//!
//! SIGINT (Ctrl-C), SIGTERM (a scheduler's end) and SIGUSR1 (Slurm's warning before it). Before training begins there is
//! nothing to save, so a signal ends the process at once, with the same exit code.

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

const EXIT: i32 = 130;

/// Set by a signal or by the clock; every loop that lasts looks at it.
#[derive(Clone)]
pub struct Interrupt {
    any: Arc<AtomicBool>,
    terminate: Arc<AtomicBool>,
    /// Another rank was asked to stop. A flag of its own: a first signal after it is no second signal.
    others: Arc<AtomicBool>,
    /// Nothing to save yet.
    early: Arc<AtomicBool>,
    started: Instant,
    limit: Option<Duration>,
}

impl Default for Interrupt {
    /// One that is never set.
    fn default() -> Self {
        let flag = |value| Arc::new(AtomicBool::new(value));
        Self { any: flag(false), terminate: flag(false), others: flag(false), early: flag(true), started: Instant::now(), limit: None }
    }
}

impl Interrupt {
    /// Catches the signals from here on; the clock of [`Self::limited`] starts.
    pub fn install() -> std::io::Result<Self> {
        let interrupt = Self::default();
        for signal in [SIGINT, SIGTERM, SIGUSR1] {
            signal_hook::flag::register_conditional_shutdown(signal, EXIT, interrupt.early.clone())?;
        }
        for signal in [SIGINT, SIGTERM] {
            // Order matters: the shutdown is armed only by an earlier signal. A second SIGUSR1 is no order to leave at
            // once: launchers pass it on to the same process twice.
            signal_hook::flag::register_conditional_shutdown(signal, EXIT, interrupt.any.clone())?;
        }
        for signal in [SIGINT, SIGTERM, SIGUSR1] {
            signal_hook::flag::register(signal, interrupt.any.clone())?;
        }
        for signal in [SIGTERM, SIGUSR1] {
            signal_hook::flag::register(signal, interrupt.terminate.clone())?;
        }
        Ok(interrupt)
    }

    /// From here on there is something to save.
    pub fn wait_for_checkpoint(&self) {
        self.early.store(false, Ordering::Relaxed);
    }

    /// Set as well once this many hours have passed since the start, by the monotonic clock.
    pub fn limited(self, hours: Option<f64>) -> Self {
        let limit = hours.and_then(|hours| Duration::try_from_secs_f64(hours * 3600.0).ok());
        Self { limit, ..self }
    }

    pub fn is_set(&self) -> bool {
        self.any.load(Ordering::Relaxed) || self.is_set_by_others() || self.limit.is_some_and(|limit| self.started.elapsed() >= limit)
    }

    /// Asks this process to stop because another rank is to.
    pub fn set_by_others(&self) {
        self.others.store(true, Ordering::Relaxed);
    }

    pub fn is_set_by_others(&self) -> bool {
        self.others.load(Ordering::Relaxed)
    }

    /// Whether it was SIGTERM or SIGUSR1, which reach this process alone; Ctrl-C reaches its children as well.
    pub fn is_terminate(&self) -> bool {
        self.terminate.load(Ordering::Relaxed)
    }
}
