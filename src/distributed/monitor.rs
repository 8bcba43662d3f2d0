//! Signs of life: every rank writes one into the store twice a second, and looks for those of the others.
//!
//! A rank that is killed breaks its connections, and the others' collectives fail at once; one that hangs, or whose network is cut,
//! leaves them waiting. Then the monitor ends the process: it is a thread of its own and never waits for a collective.
//! A rank that is asked to stop tells the others here, so that all stop after the same step.

use super::place::Place;
use super::WorldError;
use crate::config::Ranks;
use crate::native::distributed::{host_name, Store};
use crate::native::process::leave;
use crate::native::NativeError;
use crate::train::interrupt::Interrupt;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const BEAT: Duration = Duration::from_millis(500);
/// How long a process that ends waits for what the others know.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long the thread that trains has to end by itself after a failure.
const GRACE: Duration = Duration::from_secs(8);

/// What ended the work of all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    pub rank: usize,
    pub host: String,
    pub pid: u32,
    /// The last step that the rank is known to have begun.
    pub step: u64,
    /// None: it went without a word.
    pub error: Option<String>,
    /// Seconds without a sign of life, if that is how it was found.
    pub silent: Option<f64>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "rank {} ({}, process {})", self.rank, self.host, self.pid)?;
        let when = if self.step == 0 { "before the first step".to_string() } else { format!("in step {}", self.step) };
        match (&self.error, self.silent) {
            (Some(error), _) => write!(f, " failed {when}: {error}"),
            (None, Some(seconds)) => {
                write!(f, " has given no sign of life for {seconds:.0} s, {when}: it hangs, or its machine or network failed; the last checkpoint stands, go on with --resume auto")
            }
            (None, None) => {
                write!(f, " has gone {when}: it was killed, or its machine failed; the last checkpoint stands, go on with --resume auto")
            }
        }
    }
}

impl Fault {
    /// Of this process, with its words.
    pub fn own(place: &Place, step: u64, error: &str) -> Self {
        let (rank, host, pid) = (place.rank, host_name(), std::process::id());
        Self { rank, host, pid, step, error: Some(error.into()), silent: None }
    }
}

/// The failure that ended the work, if there is one.
pub fn read_fault(store: &Store, prefix: &str) -> Result<Option<Fault>, NativeError> {
    Ok(store.find(&format!("{prefix}/fault"))?.and_then(|text| serde_json::from_slice(&text).ok()))
}

/// Tells all ranks; the first failure stands.
pub fn publish(store: &Store, prefix: &str, fault: &Fault) -> Result<(), NativeError> {
    if store.add(&format!("{prefix}/faults"), 1)? > 1 {
        return Ok(());
    }
    store.set(&format!("{prefix}/fault"), serde_json::to_string(fault).unwrap_or_default().as_bytes())
}

/// A sign of life.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Life {
    beat: u64,
    step: u64,
    host: String,
    pid: u32,
}

/// The thread, and what the process tells it.
pub struct Monitor {
    shared: Arc<Shared>,
    place: Place,
    prefix: String,
    peer_timeout: Duration,
}

struct Shared {
    started: Instant,
    step: AtomicU64,
    /// When the store answered last, in milliseconds since `started`.
    reached: AtomicU64,
    /// The work is done; the others may go when they like.
    ending: AtomicBool,
    stop: AtomicBool,
    fault: Mutex<Option<Fault>>,
}

impl Shared {
    fn new() -> Self {
        let flag = || AtomicBool::new(false);
        let number = || AtomicU64::new(0);
        Self { started: Instant::now(), step: number(), reached: number(), ending: flag(), stop: flag(), fault: Mutex::new(None) }
    }

    fn reached_now(&self) {
        self.reached.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn since_reached(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.reached.load(Ordering::Relaxed)))
    }

    fn fault(&self) -> Option<Fault> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_fault(&self, fault: Fault) {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(fault);
    }
}

impl Monitor {
    pub fn start(place: &Place, prefix: &str, settings: &Ranks, interrupt: &Interrupt) -> Result<Self, WorldError> {
        let peer_timeout = Duration::from_secs_f64(settings.peer_timeout);
        let shared = Arc::new(Shared::new());
        let monitor = Self { shared: shared.clone(), place: place.clone(), prefix: prefix.into(), peer_timeout };
        let store = monitor.client(peer_timeout).map_err(|source| WorldError::Native { rank: place.rank, source })?;
        let watch = Watch {
            store,
            shared: shared.clone(),
            place: place.clone(),
            prefix: prefix.into(),
            peer_timeout,
            interrupt: interrupt.clone(),
            host: host_name(),
            beat: 0,
            seen: vec![None; place.size],
            read: false,
        };
        std::thread::spawn(move || watch.run());
        let place = place.clone();
        std::thread::spawn(move || guard(&shared, &place, peer_timeout));
        Ok(monitor)
    }

    /// A client of its own: calls of one client wait for each other.
    fn client(&self, limit: Duration) -> Result<Store, NativeError> {
        let host = if self.place.rank == 0 && self.place.rank_zero_serves { "localhost" } else { &self.place.host };
        Store::connect(host, self.place.port, limit)
    }

    pub fn at_step(&self, step: u64) {
        self.shared.step.store(step, Ordering::Relaxed);
    }

    pub fn ending(&self) {
        self.shared.ending.store(true, Ordering::Relaxed);
    }

    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    /// See [`super::World::cause`].
    pub fn cause(&self, error: &str) -> Option<Fault> {
        if let Some(fault) = self.shared.fault() {
            return Some(fault);
        }
        let client = self.client(self.peer_timeout.min(PATIENCE));
        if !is_communication(error) {
            let fault = Fault::own(&self.place, self.step(), error);
            if let Ok(store) = &client {
                let _ = publish(store, &self.prefix, &fault);
                // Rank 0 may hold the store.
                let _ = wait_for_readers(store, &self.prefix, &self.place);
            }
            return None;
        }
        let found = client.and_then(|store| self.find_cause(&store));
        let found = found.unwrap_or_else(|_| Some(store_gone(&self.place, self.step())));
        found.inspect(|fault| self.shared.set_fault(fault.clone()))
    }

    fn step(&self) -> u64 {
        self.shared.step.load(Ordering::Relaxed)
    }

    /// A rank that failed with a word has written it; one that was killed beats no more.
    fn find_cause(&self, store: &Store) -> Result<Option<Fault>, NativeError> {
        let others: Vec<usize> = (0..self.place.size).filter(|r| *r != self.place.rank).collect();
        let begun = Instant::now();
        let before = others.iter().map(|r| read_life(store, &self.prefix, *r)).collect::<Result<Vec<_>, _>>()?;
        let mut silent: Vec<(usize, Life)> = others.into_iter().zip(before).filter_map(|(r, life)| Some((r, life?))).collect();
        while begun.elapsed() < 4 * BEAT {
            if let Some(fault) = read_fault(store, &self.prefix)? {
                return Ok(Some(fault));
            }
            std::thread::sleep(BEAT / 5);
            let mut still = Vec::new();
            for (rank, life) in silent {
                if read_life(store, &self.prefix, rank)?.is_some_and(|now| now.beat == life.beat) {
                    still.push((rank, life));
                }
            }
            silent = still;
        }
        let Some((rank, life)) = silent.into_iter().next() else { return Ok(None) };
        // Its last sign of life may be older than the step in which this rank waited for it.
        let step = life.step.max(self.step());
        let fault = Fault { rank, host: life.host, pid: life.pid, step, error: None, silent: None };
        publish(store, &self.prefix, &fault)?;
        Ok(read_fault(store, &self.prefix)?.or(Some(fault)))
    }
}

/// Where rank 0 serves the store, its end is seen by the store's.
fn store_gone(place: &Place, step: u64) -> Fault {
    Fault { rank: 0, host: place.host.clone(), pid: 0, step, error: None, silent: None }
}

/// Whether a failure says that another rank cannot be reached, in c10d's and gloo's words.
fn is_communication(error: &str) -> bool {
    ["onnection", "imed out", "imeout", "gloo", "roken pipe", "NCCL", "TCPStore", "recv", "socket"].iter().any(|word| error.contains(word))
}

fn read_life(store: &Store, prefix: &str, rank: usize) -> Result<Option<Life>, NativeError> {
    Ok(store.find(&format!("{prefix}/alive/{rank}"))?.and_then(|text| serde_json::from_slice(&text).ok()))
}

struct Watch {
    store: Store,
    shared: Arc<Shared>,
    place: Place,
    prefix: String,
    peer_timeout: Duration,
    interrupt: Interrupt,
    host: String,
    beat: u64,
    /// The last sign of life of each rank that is watched, and when it was new.
    seen: Vec<Option<(Life, Instant)>>,
    /// A failure was read, and said to be.
    read: bool,
}

impl Watch {
    fn run(mut self) {
        let mut last = Instant::now();
        while !self.shared.stop.load(Ordering::Relaxed) {
            if last.elapsed() > 4 * BEAT {
                // This process was stopped itself, perhaps with all others: their clocks begin anew.
                self.seen.iter_mut().flatten().for_each(|(_, at)| *at = Instant::now());
            }
            last = Instant::now();
            if self.beat().is_ok() {
                self.shared.reached_now();
            } else if self.shared.ending.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(BEAT);
        }
    }

    fn beat(&mut self) -> Result<(), NativeError> {
        self.beat += 1;
        let life = Life { beat: self.beat, step: self.step(), host: self.host.clone(), pid: std::process::id() };
        let text = serde_json::to_string(&life).unwrap_or_default();
        self.store.set(&format!("{}/alive/{}", self.prefix, self.place.rank), text.as_bytes())?;
        let stop = format!("{}/stop", self.prefix);
        if self.interrupt.is_set() && !self.interrupt.is_set_by_others() {
            self.store.set(&stop, b"stop")?;
        } else if self.store.find(&stop)?.is_some() {
            self.interrupt.set_by_others();
        }
        if let Some(fault) = read_fault(&self.store, &self.prefix)? {
            self.shared.set_fault(fault);
            if !std::mem::replace(&mut self.read, true) {
                self.store.add(&readers(&self.prefix), 1)?;
            }
            return Ok(());
        }
        self.look_for_the_silent()
    }

    fn step(&self) -> u64 {
        self.shared.step.load(Ordering::Relaxed)
    }

    /// Rank 0 watches all, the others watch rank 0.
    fn look_for_the_silent(&mut self) -> Result<(), NativeError> {
        let watched = if self.place.rank == 0 { 1..self.place.size } else { 0..1 };
        for rank in watched {
            let Some(life) = read_life(&self.store, &self.prefix, rank)? else { continue };
            match &mut self.seen[rank] {
                Some((before, at)) if before.beat == life.beat => {
                    if at.elapsed() > self.peer_timeout && !self.shared.ending.load(Ordering::Relaxed) {
                        let silent = Some(at.elapsed().as_secs_f64());
                        let fault = Fault { rank, host: life.host, pid: life.pid, step: life.step, error: None, silent };
                        publish(&self.store, &self.prefix, &fault)?;
                    }
                }
                slot => *slot = Some((life, Instant::now())),
            }
        }
        Ok(())
    }
}

/// Ends the process when the others have failed and the thread that trains waits for them, or when the store does not answer: a
/// call to it may wait without an end when the network is cut.
fn guard(shared: &Shared, place: &Place, peer_timeout: Duration) {
    let (mut last, mut faulted) = (Instant::now(), None);
    while !shared.stop.load(Ordering::Relaxed) {
        if last.elapsed() > 4 * BEAT {
            // This process was stopped itself.
            shared.reached_now();
        }
        last = Instant::now();
        let silent = shared.since_reached();
        if silent > peer_timeout {
            if shared.ending.load(Ordering::Relaxed) {
                return;
            }
            shared.set_fault(Fault { silent: Some(silent.as_secs_f64()), ..store_gone(place, shared.step.load(Ordering::Relaxed)) });
        }
        if let Some(fault) = shared.fault() {
            // One that hangs is found by nobody else.
            let grace = if fault.silent.is_some() { 2 * BEAT } else { GRACE };
            if faulted.get_or_insert_with(Instant::now).elapsed() >= grace && !shared.stop.load(Ordering::Relaxed) {
                let _ = writeln!(std::io::stderr(), "linformer: {fault}");
                leave(1);
            }
        }
        std::thread::sleep(BEAT);
    }
}

fn readers(prefix: &str) -> String {
    format!("{prefix}/readers")
}

/// Says that this rank has read of the failure.
pub fn has_read(store: &Store, prefix: &str) -> Result<(), NativeError> {
    store.add(&readers(prefix), 1).map(|_| ())
}

/// The process that serves the store waits a short time until the others know why it ends.
pub fn wait_for_readers(store: &Store, prefix: &str, place: &Place) -> Result<(), NativeError> {
    let begun = Instant::now();
    while place.rank == 0 && place.rank_zero_serves && begun.elapsed() < PATIENCE {
        if store.add(&readers(prefix), 0)? >= place.size as i64 - 1 {
            break;
        }
        std::thread::sleep(BEAT / 10);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_says_who_when_and_why() {
        let fault = Fault { rank: 2, host: "n1".into(), pid: 7, step: 17, error: None, silent: Some(30.2) };
        assert!(fault.to_string().starts_with("rank 2 (n1, process 7) has given no sign of life for 30 s, in step 17"));
        let failed = Fault { error: Some("out of memory".into()), silent: None, step: 0, ..fault };
        assert_eq!(failed.to_string(), "rank 2 (n1, process 7) failed before the first step: out of memory");
    }

    #[test]
    fn the_words_of_a_lost_peer() {
        assert!(is_communication("[pair.cc:534] Connection closed by peer [127.0.0.1]:4242"));
        assert!(!is_communication("mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)"));
    }
}
