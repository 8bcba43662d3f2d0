//! Start-up of libtorch and facts about it.

use super::{done, NativeError};
use std::ffi::{c_char, c_int, CStr};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use tch::Device;

extern "C" {
    fn linformer_torch_version() -> *const c_char;
    fn linformer_cpu_capability() -> *const c_char;
    fn linformer_kernels() -> *const c_char;
    fn linformer_has_tiles() -> c_int;
    fn linformer_keep_freed_memory();
    fn linformer_give_back_freed_memory();
    #[cfg(test)]
    fn linformer_large_blocks(in_use: *mut i64, kept: *mut i64, most: *mut i64);
    fn linformer_parallel_chunks() -> c_int;
    fn linformer_empty_gpu_cache() -> c_int;
    fn linformer_wait_for_gpu(index: c_int) -> c_int;
    fn linformer_gpu_bytes(index: c_int, starts_anew: c_int, now: *mut i64, most: *mut i64) -> c_int;
}

fn text(pointer: *const c_char) -> String {
    // SAFETY: the shim's version strings are static and NUL-terminated.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// The libtorch that the shim was compiled against, e.g. `2.11.0`.
pub fn torch_version() -> String {
    // SAFETY: no arguments, static result.
    text(unsafe { linformer_torch_version() })
}

/// The vector instructions that libtorch's own kernels chose, e.g. `AVX512`.
pub fn cpu_capability() -> String {
    // SAFETY: no arguments, static result.
    text(unsafe { linformer_cpu_capability() })
}

/// The instruction set that our own row kernels use: `avx512`, `avx2` or `portable`.
pub fn kernels() -> String {
    // SAFETY: no arguments, static result.
    text(unsafe { linformer_kernels() }).trim_start_matches("kernels_").to_string()
}

/// Whether the gradients of weights in bf16 are made in AMX's tiles (`LINFORMER_TILES=off`: not).
pub fn has_tiles() -> bool {
    // SAFETY: no arguments.
    unsafe { linformer_has_tiles() != 0 }
}

/// Whether `at::parallel_for` of the shim really uses several threads (it is compiled with OpenMP).
pub fn shim_is_parallel() -> bool {
    // SAFETY: no arguments.
    tch::get_num_threads() == 1 || unsafe { linformer_parallel_chunks() } > 1
}

/// The folder from which libtorch was loaded, by the process's own map.
pub fn libtorch_folder() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|l| l.ends_with("libtorch_cpu.so"))?;
    let path = PathBuf::from(&line[line.find('/')?..]);
    Some(path.parent()?.parent()?.to_path_buf())
}

/// Loads libtorch's CUDA part, which the linker drops because nothing refers to it. Without a GPU this fails within a
/// millisecond and CPU work goes on; the reason is for `doctor`.
pub fn load_cuda() -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: libtorch_cuda's initialisers register kernels with the libtorch that is already loaded.
    match unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => {
            std::mem::forget(library);
            Ok(())
        }
        Err(error) => Err(super::first_line(&error_chain(&error))),
    }
}

fn error_chain(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| source.to_string())
}

/// The GPUs that libtorch sees once its CUDA part is loaded, and what kept it from that.
pub fn visible_gpus() -> (usize, Option<String>) {
    let reason = load_cuda().err();
    (usize::try_from(tch::Cuda::device_count()).unwrap_or(0), reason)
}

/// So many threads for libtorch; 0: its own choice.
pub fn use_threads(threads: i64) {
    if threads > 0 {
        tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    }
}

/// Whether libtorch_cpu brings c10d's Gloo process group (the engine of distributed training).
pub fn has_gloo() -> bool {
    use libloading::os::unix::Library;
    // SAFETY: the symbol is only looked up, never called.
    unsafe { Library::this().get::<*const ()>(b"_ZTIN4c10d16ProcessGroupGlooE\0").is_ok() }
}

/// Keeps the freed memory of large tensors for others of their size (glibc otherwise maps and clears it anew at every step), with no
/// more in all than were in use at once.
pub fn keep_freed_memory() {
    // SAFETY: sets libtorch's allocator and two malloc parameters; what was allocated before is freed as it was to be.
    unsafe { linformer_keep_freed_memory() }
}

/// Gives freed memory back: [`resident_bytes`] is then what is in use.
fn give_back_freed_memory() {
    // SAFETY: no arguments.
    unsafe { linformer_give_back_freed_memory() }
}

/// OpenMP's workers spin for milliseconds after every operation and so steal the CPU from each other when another process
/// runs. libgomp reads its settings when it is loaded, so the process starts itself anew with a short spin, once.
/// What the user has set is left alone.
pub fn restart_with_short_spin() {
    let set_by_user = ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"].iter().any(|name| std::env::var_os(name).is_some());
    if set_by_user {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        // `exec` returns only if it failed; then the long spin costs speed, nothing else.
        let _ = std::process::Command::new(program).args(std::env::args_os().skip(1)).env("GOMP_SPINCOUNT", "10000").exec();
    }
}

/// Bytes of this process that are in memory now.
fn resident_bytes() -> Option<u64> {
    status_bytes("VmRSS:")
}

/// The most bytes of this process that were in memory since its start, or since its peak was last reset.
pub fn peak_bytes() -> Option<u64> {
    status_bytes("VmHWM:")
}

fn reset_peak_memory() -> std::io::Result<()> {
    std::fs::write("/proc/self/clear_refs", "5")
}

fn status_bytes(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

/// Waits until the device has done what it was given; a CPU has.
pub fn wait_for(device: Device) -> Result<(), NativeError> {
    match device {
        // SAFETY: a plain number.
        Device::Cuda(index) => done(unsafe { linformer_wait_for_gpu(index as c_int) }),
        _ => Ok(()),
    }
}

/// Gives freed memory back, that of the device too.
pub fn give_back_memory_of(device: Device) -> Result<(), NativeError> {
    give_back_freed_memory();
    match device {
        // SAFETY: no arguments.
        Device::Cuda(_) => done(unsafe { linformer_empty_gpu_cache() }),
        _ => Ok(()),
    }
}

/// Bytes that are in use on the device now, with its peak counted anew from here on: of this process on a CPU, of what libtorch handed
/// out on a GPU.
pub fn start_peak_of(device: Device) -> Result<u64, NativeError> {
    if let Device::Cuda(index) = device {
        return gpu_bytes(index, true).map(|(now, _)| now);
    }
    give_back_freed_memory();
    let before = resident_bytes().ok_or_else(|| NativeError::new("/proc/self/status does not say what is resident"))?;
    reset_peak_memory().map_err(|e| NativeError::new(&format!("/proc/self/clear_refs: {e}")))?;
    Ok(before)
}

/// The most bytes on the device since [`start_peak_of`].
pub fn peak_of(device: Device) -> Result<u64, NativeError> {
    match device {
        Device::Cuda(index) => gpu_bytes(index, false).map(|(_, most)| most),
        _ => peak_bytes().ok_or_else(|| NativeError::new("/proc/self/status does not say what the peak was")),
    }
}

fn gpu_bytes(index: usize, starts_anew: bool) -> Result<(u64, u64), NativeError> {
    let (mut now, mut most) = (0, 0);
    // SAFETY: room for two numbers.
    done(unsafe { linformer_gpu_bytes(index as c_int, starts_anew.into(), &mut now, &mut most) })?;
    Ok((now.max(0) as u64, most.max(0) as u64))
}

/// Asks a child to stop, as `kill PID` does.
pub fn terminate(child: &std::process::Child) {
    // SAFETY: a signal to a process that is a child of this one and has not been waited for.
    unsafe {
        libc::kill(child.id() as libc::pid_t, libc::SIGTERM);
    }
}

/// Clock ticks a second in /proc, on every Linux that libtorch runs on.
pub const TICKS: f64 = 100.0;

/// Processor time of all threads of this process, user and system.
pub fn processor_seconds() -> Option<f64> {
    Some((own_field(11)? + own_field(12)?) / TICKS)
}

/// Since this process started.
pub fn seconds_since_start() -> Option<f64> {
    let uptime: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split_whitespace().next()?.parse().ok()?;
    Some(uptime - own_field(19)? / TICKS)
}

/// A number of /proc/self/stat, counted from the state on: the program's name before it may hold anything.
fn own_field(at: usize) -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    text.rsplit_once(')')?.1.split_whitespace().nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shim_uses_the_threads_of_libtorch() {
        assert!(shim_is_parallel());
    }

    /// In use, kept, the most in use, of all tests' large tensors.
    fn blocks() -> (i64, i64, i64) {
        let (mut in_use, mut kept, mut most) = (0, 0, 0);
        // SAFETY: room for three numbers.
        unsafe { linformer_large_blocks(&mut in_use, &mut kept, &mut most) };
        (in_use, kept, most)
    }

    #[test]
    fn large_tensors_take_the_memory_of_others_and_never_more_than_was_in_use() {
        use tch::{Kind, Tensor};
        keep_freed_memory();
        let of = |mib: i64| Tensor::ones([mib << 18], (Kind::Float, Device::Cpu));
        let large = of(50);
        assert!(blocks().0 >= 50 << 20);
        drop(large);
        // Sizes that grow and shrink, many at once and few: what a heap is torn by.
        for round in 0..200i64 {
            let held: Vec<Tensor> = (0..1 + round % 7).map(|i| of(1 + (round * 13 + i * 5) % 23)).collect();
            for t in &held {
                assert_eq!(t.mean(Kind::Double).double_value(&[]), 1.0);
                let _ = t.shallow_clone().fill_(2.0);
            }
            let (in_use, kept, most) = blocks();
            assert!(in_use + kept <= most + most / 16, "round {round}: {in_use} in use, {kept} kept, at most {most}");
        }
        let pointer = of(37).data_ptr();
        assert_eq!(of(37).data_ptr(), pointer, "the next of its size has the same memory");
        give_back_freed_memory();
        assert!(blocks().1 < 30 << 20, "{} kept", blocks().1);
    }

    #[test]
    fn version_is_the_pinned_one() {
        assert!(torch_version().starts_with("2.11."), "{}", torch_version());
    }
}
