//! Ctrl-C and SIGTERM: the first asks the loop to stop after its step, the second ends the process at once.

use signal_hook::consts::{SIGINT, SIGTERM};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// Set by a signal, read once per step.
#[derive(Clone, Default)]
pub struct Interrupt {
    any: Arc<AtomicBool>,
    terminate: Arc<AtomicBool>,
}

impl Interrupt {
    /// Catches the signals from here on.
    pub fn install() -> std::io::Result<Self> {
        let interrupt = Self::default();
        for signal in [SIGINT, SIGTERM] {
            // Order matters: the shutdown is armed only by an earlier signal.
            signal_hook::flag::register_conditional_shutdown(signal, 130, interrupt.any.clone())?;
            signal_hook::flag::register(signal, interrupt.any.clone())?;
        }
        signal_hook::flag::register(SIGTERM, interrupt.terminate.clone())?;
        Ok(interrupt)
    }

    pub fn is_set(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// Whether it was SIGTERM, which reaches this process alone; Ctrl-C reaches its children as well.
    pub fn is_terminate(&self) -> bool {
        self.terminate.load(Ordering::Relaxed)
    }
}
