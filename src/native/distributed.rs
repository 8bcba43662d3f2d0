//! c10d's store, its Gloo process group and the `Reducer` of DistributedDataParallel.

use super::{done, last_error, raw, raw_list, NativeError};
use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::time::Duration;
use tch::{Kind, Tensor};

extern "C" {
    fn linformer_store_open(host: *const c_char, port: *mut c_int, serve: c_int, timeout_ms: i64) -> *mut c_void;
    fn linformer_store_shared(store: *mut c_void) -> *mut c_void;
    fn linformer_store_free(store: *mut c_void);
    fn linformer_store_set(store: *mut c_void, key: *const c_char, value: *const u8, size: i64) -> c_int;
    fn linformer_store_get(store: *mut c_void, key: *const c_char, timeout_ms: i64, size: *mut i64) -> *const u8;
    fn linformer_store_check(store: *mut c_void, key: *const c_char) -> c_int;
    fn linformer_store_add(store: *mut c_void, key: *const c_char, value: i64) -> i64;
    fn linformer_group_new(
        store: *mut c_void,
        prefix: *const c_char,
        rank: c_int,
        size: c_int,
        device: *const c_char,
        by_interface: c_int,
        timeout_ms: i64,
    ) -> *mut c_void;
    fn linformer_group_add_cuda(group: *mut c_void, backend: *mut c_void) -> c_int;
    fn linformer_group_free(group: *mut c_void);
    fn linformer_group_all_gather(group: *mut c_void, output: *mut c_void, input: *mut c_void) -> c_int;
    fn linformer_group_ordered_sum(group: *mut c_void, tensor: *mut c_void) -> c_int;
    fn linformer_group_broadcast(group: *mut c_void, tensor: *mut c_void, root: c_int) -> c_int;
    fn linformer_graph_reaches(root: *mut c_void, leaves: *mut *mut c_void, count: c_int, reached: *mut u8) -> c_int;
    fn linformer_reducer_new(group: *mut c_void, parameters: *mut *mut c_void, count: c_int, first: i64, bucket: i64) -> *mut c_void;
    fn linformer_reducer_free(reducer: *mut c_void);
    fn linformer_reducer_prepare(reducer: *mut c_void) -> c_int;
    fn linformer_reducer_times(reducer: *mut c_void, out: *mut f64) -> c_int;
}

fn text(value: &str) -> Result<CString, NativeError> {
    CString::new(value).map_err(|_| NativeError(format!("{value:?} holds a NUL byte")))
}

fn milliseconds(limit: Duration) -> i64 {
    i64::try_from(limit.as_millis()).unwrap_or(i64::MAX)
}

/// A key-value store that one process serves and all reach (c10d's `TCPStore`). A client's calls go one after the other:
/// use a client of its own where a call may wait long.
pub struct Store {
    pointer: *mut c_void,
    port: u16,
}

// SAFETY: c10d's TCPStore guards every operation by a lock.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    /// Serves a store at a port of this machine (0: a free one) and becomes its first client.
    pub fn serve(port: u16, limit: Duration) -> Result<Self, NativeError> {
        Self::open("localhost", port, true, limit)
    }

    /// Becomes a client of the store at `host:port`; tries for `limit`, which is also the limit of later calls.
    pub fn connect(host: &str, port: u16, limit: Duration) -> Result<Self, NativeError> {
        Self::open(host, port, false, limit)
    }

    fn open(host: &str, port: u16, serve: bool, limit: Duration) -> Result<Self, NativeError> {
        let (host, mut bound) = (text(host)?, c_int::from(port));
        // SAFETY: the string and the port live through the call.
        let pointer = unsafe { linformer_store_open(host.as_ptr(), &mut bound, serve.into(), milliseconds(limit)) };
        if pointer.is_null() {
            return Err(last_error());
        }
        Ok(Self { pointer, port: u16::try_from(bound).unwrap_or(port) })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// For the NCCL library: lives as long as the store.
    pub(super) fn shared(&self) -> *mut c_void {
        // SAFETY: made by `open`.
        unsafe { linformer_store_shared(self.pointer) }
    }

    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), NativeError> {
        // SAFETY: key and value live through the call.
        done(unsafe { linformer_store_set(self.pointer, text(key)?.as_ptr(), value.as_ptr(), value.len() as i64) })
    }

    /// Waits for a key up to `limit`.
    pub fn get(&self, key: &str, limit: Duration) -> Result<Vec<u8>, NativeError> {
        let mut size = 0;
        // SAFETY: the shim's buffer lives until this thread's next call and is copied before it.
        let value = unsafe { linformer_store_get(self.pointer, text(key)?.as_ptr(), milliseconds(limit), &mut size) };
        if value.is_null() {
            return Err(last_error());
        }
        // SAFETY: `size` bytes stand there.
        Ok(unsafe { std::slice::from_raw_parts(value, size as usize) }.to_vec())
    }

    /// The value of a key if it is there; does not wait.
    pub fn find(&self, key: &str) -> Result<Option<Vec<u8>>, NativeError> {
        // SAFETY: the key lives through the call.
        let found = unsafe { linformer_store_check(self.pointer, text(key)?.as_ptr()) };
        done(found)?;
        (found == 1).then(|| self.get(key, Duration::from_secs(10))).transpose()
    }

    /// Adds to a counter; what it is then.
    pub fn add(&self, key: &str, value: i64) -> Result<i64, NativeError> {
        // SAFETY: the key lives through the call.
        let now = unsafe { linformer_store_add(self.pointer, text(key)?.as_ptr(), value) };
        if now < 0 {
            return Err(last_error());
        }
        Ok(now)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: made by `open`, freed once.
        unsafe { linformer_store_free(self.pointer) }
    }
}

/// Where this process is reached by the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkDevice {
    /// An address of this machine.
    Address(String),
    /// An interface by name, such as `eth0`.
    Interface(String),
}

/// The processes of one job (c10d's `ProcessGroupGloo`; for what lies on GPUs `ProcessGroupNCCL`). All of them make the same calls in the same order.
pub struct Group {
    pointer: *mut c_void,
    size: usize,
}

// SAFETY: c10d's process groups may be used from any thread.
unsafe impl Send for Group {}
// SAFETY: as above; the callers keep one order.
unsafe impl Sync for Group {}

impl Group {
    /// Meets the others through the store, under keys that begin with `prefix`. A collective that takes longer than `limit` fails.
    pub fn new(
        store: &Store,
        prefix: &str,
        rank: usize,
        size: usize,
        device: &NetworkDevice,
        limit: Duration,
    ) -> Result<Self, NativeError> {
        let (name, by_interface) = match device {
            NetworkDevice::Address(name) => (name, false),
            NetworkDevice::Interface(name) => (name, true),
        };
        let (prefix, name) = (text(prefix)?, text(name)?);
        // SAFETY: store and strings live through the call; the group keeps the store by its own count.
        let pointer = unsafe {
            linformer_group_new(
                store.pointer,
                prefix.as_ptr(),
                rank as c_int,
                size as c_int,
                name.as_ptr(),
                by_interface.into(),
                milliseconds(limit),
            )
        };
        if pointer.is_null() {
            return Err(last_error());
        }
        Ok(Self { pointer, size })
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// What carries tensors on GPUs from now on.
    ///
    /// # Safety
    /// `backend` was made by the NCCL library and not used before.
    pub(super) unsafe fn add_cuda(&self, backend: *mut c_void) -> Result<(), NativeError> {
        // SAFETY: the caller's promise; the shim frees it.
        done(unsafe { linformer_group_add_cuda(self.pointer, backend) })
    }

    /// Every rank's `[m]` as `[size, m]`; contiguous, on the input's device.
    pub fn all_gather(&self, input: &Tensor) -> Result<Tensor, NativeError> {
        let input = input.contiguous().view([-1]);
        let output = Tensor::empty([self.size as i64 * input.numel() as i64], (input.kind(), input.device()));
        // SAFETY: both tensors live through the call.
        done(unsafe { linformer_group_all_gather(self.pointer, raw(&output), raw(&input)) })?;
        Ok(output.view([self.size as i64, -1]))
    }

    /// Sums a contiguous tensor over the ranks in place, in the order of the ranks: the bits of one process that adds up
    /// the same parts.
    pub fn ordered_sum(&self, tensor: &Tensor) -> Result<(), NativeError> {
        // SAFETY: the tensor lives through the call.
        done(unsafe { linformer_group_ordered_sum(self.pointer, raw(tensor)) })
    }

    /// Gives all ranks the contents of `root`'s tensor.
    pub fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<(), NativeError> {
        // SAFETY: the tensor lives through the call.
        done(unsafe { linformer_group_broadcast(self.pointer, raw(tensor), root as c_int) })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed once; a reducer holds the group by its own count.
        unsafe { linformer_group_free(self.pointer) }
    }
}

/// Which of the leaves a loss depends on.
pub fn reached(loss: &Tensor, leaves: &[Tensor]) -> Result<Vec<bool>, NativeError> {
    let mut reached = vec![0u8; leaves.len()];
    let mut list = raw_list(leaves);
    // SAFETY: the lists have the same length and live through the call.
    done(unsafe { linformer_graph_reaches(raw(loss), list.as_mut_ptr(), leaves.len() as c_int, reached.as_mut_ptr()) })?;
    Ok(reached.into_iter().map(|r| r == 1).collect())
}

/// Gradients on their way while the backward pass still runs (c10d's `Reducer`): summed over the ranks, not averaged.
pub struct Reducer {
    pointer: *mut c_void,
}

/// What the communication of one backward pass cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ReducerTimes {
    /// Seconds in which gradients were on the way.
    pub busy: f64,
    /// Of these: after the last gradient was known. The rest was hidden behind the backward pass.
    pub exposed: f64,
    /// Bytes of gradients.
    pub bytes: f64,
}

impl Reducer {
    /// For fp32 weights each of which gets a gradient in every backward pass. The gradients live in buckets of about
    /// `bucket_bytes`; the first that is sent is of `first_bytes`.
    pub fn new(group: &Group, weights: &[Tensor], first_bytes: usize, bucket_bytes: usize) -> Result<Self, NativeError> {
        debug_assert!(weights.iter().all(|w| w.kind() == Kind::Float));
        let mut list = raw_list(weights);
        // SAFETY: the tensors live through the call, the reducer keeps them by their own counts.
        let pointer = unsafe {
            linformer_reducer_new(group.pointer, list.as_mut_ptr(), weights.len() as c_int, first_bytes as i64, bucket_bytes as i64)
        };
        if pointer.is_null() {
            return Err(last_error());
        }
        Ok(Self { pointer })
    }

    /// The next backward pass sums what stands in the gradients, over all ranks. Passes without this call before them only
    /// add to the gradients.
    pub fn prepare(&self) -> Result<(), NativeError> {
        // SAFETY: made by `new`.
        done(unsafe { linformer_reducer_prepare(self.pointer) })
    }

    /// Of the last reducing pass.
    pub fn times(&self) -> Result<ReducerTimes, NativeError> {
        let mut out = [0.0; 3];
        // SAFETY: room for the three numbers.
        done(unsafe { linformer_reducer_times(self.pointer, out.as_mut_ptr()) })?;
        Ok(ReducerTimes { busy: out[0], exposed: out[1], bytes: out[2] })
    }
}

impl Drop for Reducer {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed once.
        unsafe { linformer_reducer_free(self.pointer) }
    }
}

/// The name of this machine.
pub fn host_name() -> String {
    let mut name = [0u8; 256];
    // SAFETY: the buffer's size is passed and one byte is left for the NUL.
    unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len() - 1) };
    CStr::from_bytes_until_nul(&name).map_or_else(|_| "unknown".into(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tch::Device;

    const LIMIT: Duration = Duration::from_secs(20);

    /// Runs `body` as each rank of a group, every rank in a thread of its own. gloo does not bear that one rank of a process
    /// takes its group apart while another one still uses its own: the groups go after all are done.
    fn ranks<T: Send>(size: usize, body: impl Fn(usize, &Group) -> T + Sync) -> Vec<T> {
        let server = Store::serve(0, LIMIT).unwrap();
        let port = server.port();
        let rank = |rank: usize| {
            let store = Store::connect("localhost", port, LIMIT).unwrap();
            let group = Group::new(&store, "test", rank, size, &NetworkDevice::Address("127.0.0.1".into()), LIMIT).unwrap();
            let result = body(rank, &group);
            (result, group, store)
        };
        let rank = &rank;
        let ended: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..size).map(|r| scope.spawn(move || rank(r))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        ended.into_iter().map(|(result, _, _)| result).collect()
    }

    fn part(rank: usize, count: i64) -> Tensor {
        (Tensor::arange(count, (Kind::Float, Device::Cpu)) * 0.1 + rank as f64 * 0.37).sin() * 10f64.powi(rank as i32)
    }

    #[test]
    fn a_store_waits_counts_and_says_what_it_lacks() {
        let server = Store::serve(0, LIMIT).unwrap();
        let client = Store::connect("localhost", server.port(), LIMIT).unwrap();
        assert_eq!(client.find("a").unwrap(), None);
        server.set("a", b"x\0y").unwrap();
        assert_eq!(client.get("a", LIMIT).unwrap(), b"x\0y");
        assert_eq!((client.add("n", 1).unwrap(), server.add("n", 2).unwrap()), (1, 3));
        assert!(client.get("b", Duration::from_millis(50)).is_err());
        let taken = Store::serve(server.port(), LIMIT).err().unwrap().to_string();
        assert!(taken.contains("EADDRINUSE"), "{taken}");
    }

    /// 10 elements do not divide by 3 or 4; 2 are fewer than 3 ranks.
    #[test]
    fn sums_have_the_bits_of_one_process_that_adds_in_the_order_of_ranks() {
        for (size, count) in [(2, 10), (3, 10), (4, 10), (3, 2), (4, 4096)] {
            let sums = ranks(size, |rank, group| {
                let tensor = part(rank, count);
                group.ordered_sum(&tensor).unwrap();
                tensor
            });
            let expected = (1..size).fold(part(0, count), |sum, rank| sum + part(rank, count));
            assert!(sums.iter().all(|sum| sum.equal(&expected)), "{size} ranks, {count} elements");
        }
    }

    #[test]
    fn gathered_in_the_order_of_ranks_and_broadcast_from_one() {
        for out in ranks(3, |rank, group| {
            let all = group.all_gather(&Tensor::from_slice(&[rank as f64, 0.5])).unwrap();
            let given = Tensor::from_slice(&[rank as i64]);
            group.broadcast(&given, 2).unwrap();
            (Vec::<f64>::try_from(all.view([-1])).unwrap(), given.int64_value(&[0]))
        }) {
            assert_eq!(out, (vec![0.0, 0.5, 1.0, 0.5, 2.0, 0.5], 2));
        }
    }

    #[test]
    fn what_a_loss_does_not_reach_is_found() {
        let leaf = || Tensor::ones([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let (a, b, c) = (leaf(), leaf(), leaf());
        let loss = ((&a * 2.0) + c.detach()).sum(Kind::Float) + c.sum(Kind::Float);
        assert_eq!(reached(&loss, &[a, b, c]).unwrap(), [true, false, true]);
    }
}
