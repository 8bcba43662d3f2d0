//! Several processes that train one model: ranks on one machine or many, over c10d's Gloo and NCCL (see `docs/distributed.md`).
//!
//! [`place`] reads what a launcher says, [`World::join`] lets the ranks meet and agree, [`monitor`] watches over them, [`launch`] starts
//! them on one machine, [`gpu`] gives each its GPU. A process by itself is the world of one rank, which never communicates.
//!
//! All ranks make the same collective calls in the same order. What each of them decides (to stop, to skip a step) they decide from
//! numbers that all have seen.

pub mod gpu;
pub mod launch;
pub mod monitor;
pub mod place;

use crate::config::Ranks;
use crate::native::distributed::{host_name, Group, NetworkDevice, Store};
use crate::native::{runtime, NativeError};
use crate::train::interrupt::Interrupt;
use monitor::{Fault, Monitor};
use place::Place;
use serde_json::{json, Value};
use std::mem::ManuallyDrop;
use std::net::{IpAddr, ToSocketAddrs, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};

/// Why the ranks could not come together, or had to part.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    #[error("{variable}: {message}")]
    Launch { variable: String, message: String },
    #[error("rank {rank} and rank 0 differ in {what}: {other} and {first}; start all ranks with the same program, config and data")]
    Differs { what: String, rank: usize, other: String, first: String },
    #[error("{0}")]
    Parted(Fault),
    #[error("rank {rank}: {source}")]
    Native { rank: usize, source: NativeError },
}

static JOINED: AtomicBool = AtomicBool::new(false);

/// Whether this process has met other ranks.
pub fn joined() -> bool {
    JOINED.load(Ordering::Relaxed)
}

/// How often a rank looks for what it waits for.
const POLL: Duration = Duration::from_millis(20);

/// This process among the ranks.
#[derive(Clone, Default)]
pub struct World {
    joined: Option<Arc<Joined>>,
}

struct Joined {
    place: Place,
    // Both live to the end of the process: gloo does not bear that one rank takes its connections apart while others use theirs.
    group: ManuallyDrop<Group>,
    store: ManuallyDrop<Store>,
    prefix: String,
    /// Of a collective.
    limit: Duration,
    monitor: Monitor,
}

impl World {
    /// Meets the other ranks at the store, finds out whether they fit together, and connects to them.
    pub fn join(place: Place, settings: &Ranks, interrupt: &Interrupt) -> Result<Self, WorldError> {
        let limit = Duration::from_secs_f64(settings.join_timeout);
        let store = open_store(&place, limit)?;
        let prefix = format!("linformer-{}", place.job);
        let device = network_device(&place)?;
        introduce(&store, &prefix, &place, &device, limit)?;
        let monitor = Monitor::start(&place, &prefix, settings, interrupt)?;
        let failed = |source| WorldError::Native { rank: place.rank, source };
        let timeout = Duration::from_secs_f64(settings.collective_timeout);
        let group = Group::new(&store, &format!("{prefix}/gloo"), place.rank, place.size, &device, timeout).map_err(failed)?;
        JOINED.store(true, Ordering::Relaxed);
        let joined = Joined { place, group: ManuallyDrop::new(group), store: ManuallyDrop::new(store), prefix, limit: timeout, monitor };
        Ok(Self { joined: Some(Arc::new(joined)) })
    }

    pub fn rank(&self) -> usize {
        self.joined.as_ref().map_or(0, |j| j.place.rank)
    }

    pub fn size(&self) -> usize {
        self.joined.as_ref().map_or(1, |j| j.place.size)
    }

    pub fn is_single(&self) -> bool {
        self.joined.is_none()
    }

    /// Rank 0 writes checkpoints, metrics and the console.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// None: one process by itself.
    pub fn group(&self) -> Option<&Group> {
        self.joined.as_ref().map(|j| &*j.group)
    }

    /// Tells the others, and the messages of failures, where this rank is.
    pub fn at_step(&self, step: u64) {
        if let Some(joined) = &self.joined {
            joined.monitor.at_step(step);
        }
    }

    /// As many numbers of every rank, in the order of the ranks.
    pub fn gather<const N: usize>(&self, numbers: [f64; N]) -> Result<Vec<[f64; N]>, NativeError> {
        let Some(group) = self.group() else { return Ok(vec![numbers]) };
        let all = numbers_of(&group.all_gather(&Tensor::from_slice(&numbers))?);
        Ok(all.chunks(N).map(|row| std::array::from_fn(|i| row[i])).collect())
    }

    /// Numbers of every rank, of which each may have as many as it likes.
    pub fn gather_lists(&self, numbers: Vec<f64>) -> Result<Vec<Vec<f64>>, NativeError> {
        let Some(group) = self.group() else { return Ok(vec![numbers]) };
        let lengths: Vec<usize> = self.gather([numbers.len() as f64])?.into_iter().map(|[n]| n as usize).collect();
        let mut padded = numbers;
        padded.resize(lengths.iter().copied().max().unwrap_or(0).max(1), 0.0);
        let all = numbers_of(&group.all_gather(&Tensor::from_slice(&padded))?);
        Ok(all.chunks(padded.len()).zip(&lengths).map(|(row, n)| row[..*n].to_vec()).collect())
    }

    /// A text of every rank.
    pub fn gather_texts(&self, text: &str) -> Result<Vec<String>, NativeError> {
        let lists = self.gather_lists(text.bytes().map(f64::from).collect())?;
        Ok(lists.into_iter().map(|l| String::from_utf8_lossy(&l.iter().map(|b| *b as u8).collect::<Vec<_>>()).into_owned()).collect())
    }

    /// Gives all ranks the contents of rank 0's tensors.
    pub fn broadcast<'a>(&self, tensors: impl Iterator<Item = &'a Tensor>) -> Result<(), NativeError> {
        match self.group() {
            Some(group) => tensors.into_iter().try_for_each(|tensor| group.broadcast(tensor, 0)),
            None => Ok(()),
        }
    }

    /// Rank 0 first, the others when it is done: what it made they find. An error of rank 0 ends all.
    pub fn first_then_others<T, E: From<WorldError> + std::fmt::Display>(
        &self,
        key: &str,
        action: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let Some(joined) = &self.joined else { return action() };
        let key = format!("{}/{key}", joined.prefix);
        if self.is_first() {
            let result = action()?;
            joined.store.set(&key, b"done").map_err(|source| self.native(source))?;
            return Ok(result);
        }
        // As long as rank 0 lives, however long it works.
        wait_for(&joined.store, &joined.prefix, &key, None).map_err(|error| self.parted(error))?;
        action()
    }

    /// Rank 0's value, for all.
    pub fn from_first(&self, value: Value) -> Result<Value, WorldError> {
        let text = if self.is_first() { value.to_string() } else { String::new() };
        let texts = self.gather_texts(&text).map_err(|source| self.native(source))?;
        Ok(serde_json::from_str(&texts[0]).unwrap_or_default())
    }

    /// All ranks have to have the same value; the first difference is an error, on all of them.
    pub fn agree(&self, what: &str, value: &Value) -> Result<(), WorldError> {
        let texts = self.gather_texts(&value.to_string()).map_err(|source| self.native(source))?;
        let Some(rank) = texts.iter().position(|text| *text != texts[0]) else { return Ok(()) };
        let [first, other] = [0, rank].map(|r| serde_json::from_str::<Value>(&texts[r]).unwrap_or_default());
        let (key, first, other) = first_difference(&first, &other, what);
        Err(WorldError::Differs { what: key, rank, other, first })
    }

    /// A failure of a collective.
    pub fn native(&self, source: NativeError) -> WorldError {
        WorldError::Native { rank: self.rank(), source }
    }

    fn parted(&self, error: Parting) -> WorldError {
        match error {
            Parting::Fault(fault) => WorldError::Parted(fault),
            Parting::Native(source) => self.native(source),
            Parting::TimedOut => WorldError::Launch { variable: "run.ranks.join_timeout".into(), message: "exceeded".into() },
        }
    }

    /// What a failure of this rank comes from: its own, of which the others are told, or another rank's, if the failure is that
    /// the others cannot be reached. None: its own.
    pub fn cause(&self, error: &str) -> Option<Fault> {
        self.joined.as_ref().and_then(|joined| joined.monitor.cause(error))
    }

    /// The end of the work: waits for the others and lets the monitor go.
    pub fn finish(&self) -> Result<(), NativeError> {
        let Some(joined) = &self.joined else { return Ok(()) };
        joined.monitor.ending();
        self.gather([0.0])?;
        joined.monitor.stop();
        // Rank 0 may hold the store: it leaves when the others need it no longer.
        let gone = format!("{}/gone", joined.prefix);
        joined.store.add(&gone, 1)?;
        let begun = Instant::now();
        while self.is_first() && begun.elapsed() < Duration::from_secs(10) && joined.store.add(&gone, 0)? < self.size() as i64 {
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

fn numbers_of(tensor: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(tensor.to_kind(Kind::Double).view([-1])).unwrap_or_default()
}

/// The first key that has two values, with both.
fn first_difference(first: &Value, other: &Value, key: &str) -> (String, String, String) {
    if let (Value::Object(a), Value::Object(b)) = (first, other) {
        let keys = a.keys().chain(b.keys().filter(|k| !a.contains_key(*k)));
        let null = Value::Null;
        for name in keys {
            let (a, b) = (a.get(name).unwrap_or(&null), b.get(name).unwrap_or(&null));
            if a != b {
                return first_difference(a, b, &format!("{key}.{name}"));
            }
        }
    }
    (key.to_string(), first.to_string(), other.to_string())
}

/// Why waiting ended without what was waited for.
enum Parting {
    Fault(Fault),
    Native(NativeError),
    TimedOut,
}

/// Waits for a key; a rank's failure, or the limit if there is one, ends it.
fn wait_for(store: &Store, prefix: &str, key: &str, limit: Option<Duration>) -> Result<Vec<u8>, Parting> {
    let begun = Instant::now();
    loop {
        if let Some(value) = store.find(key).map_err(Parting::Native)? {
            return Ok(value);
        }
        if let Some(fault) = monitor::read_fault(store, prefix).map_err(Parting::Native)? {
            return Err(Parting::Fault(fault));
        }
        if limit.is_some_and(|limit| begun.elapsed() >= limit) {
            return Err(Parting::TimedOut);
        }
        std::thread::sleep(POLL);
    }
}

/// Rank 0 serves the store, or the launcher does; the others are its clients.
fn open_store(place: &Place, limit: Duration) -> Result<Store, WorldError> {
    let Place { host, port, .. } = place;
    let launch = |variable: &str, message: String| Err(WorldError::Launch { variable: variable.into(), message });
    if let Err(error) = (host.as_str(), *port).to_socket_addrs() {
        return launch(
            "MASTER_ADDR",
            format!("found \"{host}\", which this machine cannot find ({error}); expected the name or address of rank 0's machine"),
        );
    }
    if place.rank == 0 && place.rank_zero_serves {
        return Store::serve(*port, limit).or_else(|error| {
            let text = error.to_string();
            let why = if text.contains("EADDRINUSE") {
                "is taken on this machine, by another job or by one that has not ended yet; give all ranks another one".into()
            } else {
                format!("cannot be opened: {text}")
            };
            launch("MASTER_PORT", format!("port {port} {why}"))
        });
    }
    Store::connect(host, *port, limit).or_else(|error| {
        let text = error.to_string();
        let who = if place.rank_zero_serves { "rank 0" } else { "the launcher" };
        launch(
            "MASTER_ADDR",
            format!(
                "rank {}: {who} does not answer at {host}:{port} after {} s: is it running, and is the port open? ({text})",
                place.rank,
                limit.as_secs()
            ),
        )
    })
}

/// Where the others reach this rank: the interface of GLOO_SOCKET_IFNAME, else the address from which the first machine is reached.
fn network_device(place: &Place) -> Result<NetworkDevice, WorldError> {
    if let Some(name) = std::env::var("GLOO_SOCKET_IFNAME").ok().filter(|name| !name.is_empty()) {
        return Ok(NetworkDevice::Interface(name));
    }
    let local = |address| {
        let socket = UdpSocket::bind(if matches!(address, IpAddr::V4(_)) { "0.0.0.0:0" } else { "[::]:0" })?;
        // Nothing is sent: the kernel only chooses the way.
        socket.connect((address, place.port.max(1)))?;
        socket.local_addr().map(|a| a.ip())
    };
    let addresses = (place.host.as_str(), place.port).to_socket_addrs().map(|a| a.map(|a| a.ip()).collect::<Vec<_>>()).unwrap_or_default();
    let found = addresses.into_iter().find_map(|address| local(address).ok());
    let found = found.ok_or_else(|| WorldError::Launch {
        variable: "MASTER_ADDR".into(),
        message: format!("found \"{}\", to which there is no way from this machine", place.host),
    })?;
    Ok(NetworkDevice::Address(found.to_string()))
}

/// Every rank says who it is; rank 0 looks whether they fit together and tells all.
fn introduce(store: &Store, prefix: &str, place: &Place, device: &NetworkDevice, limit: Duration) -> Result<(), WorldError> {
    let native = |source| WorldError::Native { rank: place.rank, source };
    let (verdict, rank) = (format!("{prefix}/joined"), place.rank);
    if store.add(&format!("{prefix}/rank/{rank}"), 1).map_err(native)? > 1 {
        let error = format!("is there twice: another process has RANK {rank} too, or another job meets at {}:{}", place.host, place.port);
        if store.find(&verdict).map_err(native)?.is_none() {
            monitor::publish(store, prefix, &Fault::own(place, 0, &error)).map_err(native)?;
        }
        return Err(WorldError::Launch { variable: "RANK".into(), message: format!("rank {rank} {error}") });
    }
    let address = match device {
        NetworkDevice::Address(address) => address.clone(),
        NetworkDevice::Interface(name) => name.clone(),
    };
    let who = json!({
        "size": place.size,
        "version": env!("CARGO_PKG_VERSION"),
        "libtorch": runtime::torch_version(),
        "host": host_name(),
        "address": address,
        "pid": std::process::id(),
    });
    store.set(&format!("{prefix}/hello/{rank}"), who.to_string().as_bytes()).map_err(native)?;
    if rank == 0 {
        let checked = check_introductions(store, prefix, place, limit);
        match &checked {
            Ok(()) => store.set(&verdict, b"joined").map_err(native)?,
            Err(WorldError::Parted(_)) => monitor::wait_for_readers(store, prefix, place).map_err(native)?,
            Err(error) => {
                monitor::publish(store, prefix, &Fault::own(place, 0, &error.to_string())).map_err(native)?;
                monitor::wait_for_readers(store, prefix, place).map_err(native)?;
            }
        }
        return checked;
    }
    // Rank 0 gives up first, and says who is missing.
    match wait_for(store, prefix, &verdict, Some(limit + Duration::from_secs(10))) {
        Ok(_) => Ok(()),
        Err(Parting::Fault(fault)) => {
            monitor::has_read(store, prefix).map_err(native)?;
            Err(WorldError::Parted(fault))
        }
        Err(Parting::Native(source)) => Err(native(source)),
        Err(Parting::TimedOut) => Err(WorldError::Launch {
            variable: "MASTER_ADDR".into(),
            message: format!(
                "rank {rank} reaches a store at {}:{}, but no rank 0 came within {} s",
                place.host,
                place.port,
                limit.as_secs()
            ),
        }),
    }
}

fn check_introductions(store: &Store, prefix: &str, place: &Place, limit: Duration) -> Result<(), WorldError> {
    let begun = Instant::now();
    let mut hello: Vec<Option<Value>> = vec![None; place.size];
    while hello.iter().any(Option::is_none) {
        for (rank, slot) in hello.iter_mut().enumerate().filter(|(_, slot)| slot.is_none()) {
            let found = store.find(&format!("{prefix}/hello/{rank}")).map_err(|source| WorldError::Native { rank: 0, source })?;
            let Some(found) = found else { continue };
            let value: Value = serde_json::from_slice(&found).unwrap_or_default();
            if let Some(size) = value["size"].as_u64().filter(|size| *size != place.size as u64) {
                let (other, first) = (size.to_string(), place.size.to_string());
                return Err(WorldError::Differs { what: "WORLD_SIZE".into(), rank, other, first });
            }
            *slot = Some(value);
        }
        if let Some(fault) = monitor::read_fault(store, prefix).map_err(|source| WorldError::Native { rank: 0, source })? {
            return Err(WorldError::Parted(fault));
        }
        if begun.elapsed() >= limit {
            let missing: Vec<String> = (0..place.size).filter(|r| hello[*r].is_none()).map(|r| r.to_string()).collect();
            let message = format!(
                "{} of {} ranks came within {} s (run.ranks.join_timeout); missing: {}. Are they running, with the same MASTER_ADDR and MASTER_PORT?",
                place.size - missing.len(),
                place.size,
                limit.as_secs(),
                missing.join(", ")
            );
            return Err(WorldError::Launch { variable: "WORLD_SIZE".into(), message });
        }
        std::thread::sleep(POLL);
    }
    let hello: Vec<Value> = hello.into_iter().flatten().collect();
    for what in ["version", "libtorch"] {
        if let Some(rank) = (0..place.size).find(|r| hello[*r][what] != hello[0][what]) {
            let [other, first] = [rank, 0].map(|r| hello[r][what].to_string());
            return Err(WorldError::Differs { what: what.into(), rank, other, first });
        }
    }
    check_addresses(&hello)
}

/// A machine whose own name means loopback is not to be found by the others.
fn check_addresses(hello: &[Value]) -> Result<(), WorldError> {
    let several = hello.iter().any(|h| h["host"] != hello[0]["host"]);
    let loopback = |h: &Value| {
        let address = h["address"].as_str().unwrap_or_default();
        address == "lo" || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    };
    match hello.iter().position(loopback) {
        Some(rank) if several => Err(WorldError::Launch {
            variable: "GLOO_SOCKET_IFNAME".into(),
            message: format!(
                "rank {rank} on {} would be reached at {}, which other machines cannot reach: its name or MASTER_ADDR stands for loopback there (/etc/hosts?). Set MASTER_ADDR to an address that all machines reach, or GLOO_SOCKET_IFNAME to the interface between them",
                hello[rank]["host"].as_str().unwrap_or_default(),
                hello[rank]["address"].as_str().unwrap_or_default()
            ),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_key_that_differs_is_named_with_both_values() {
        let a = json!({"train": {"seed": 0, "lr": 1.0}, "run": 1});
        let b = json!({"train": {"seed": 0, "lr": 2.0}, "run": 2});
        assert_eq!(first_difference(&a, &b, "config"), ("config.train.lr".into(), "1.0".into(), "2.0".into()));
    }

    /// Case 48.
    #[test]
    fn loopback_is_refused_between_machines_only() {
        let rank = |host: &str, address: &str| json!({"host": host, "address": address});
        assert!(check_addresses(&[rank("a", "127.0.0.1"), rank("a", "127.0.0.1")]).is_ok());
        assert!(check_addresses(&[rank("a", "10.0.0.1"), rank("b", "10.0.0.2")]).is_ok());
        let error = check_addresses(&[rank("a", "10.0.0.1"), rank("b", "127.0.1.1")]).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("GLOO_SOCKET_IFNAME") && error.contains("rank 1 on b would be reached at 127.0.1.1"), "{error}");
    }
}
