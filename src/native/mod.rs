//! The only `unsafe` of the project: a small C++ shim on libtorch and its safe face, one pair of files a concern.
//!
//! | concern | what tch lacks |
//! |---|---|
//! | [`runtime`] | start-up: CUDA library, allocator, versions |
//! | [`dropout`] | dropout as a function of (seed, purpose, step), with its autograd node |
//! | [`fused`]   | blocks of the model in one pass over memory, with their gradients |
//! | [`weight`]  | weights with their bf16 copies |
//! | [`optim`]   | Adam and AdamW with state that can be saved, gradient norms |
//! | [`distributed`] | c10d: the store, Gloo's collectives, gradients reduced while the backward pass runs |
//! | [`nccl`] | the same between GPUs, in a library that is loaded when it is asked for |
//! | [`mapped`]  | a read-only memory map |
//! | [`disk`]    | free room on a file system |
//! | [`process`] | children that end with their parent |
//! | [`profile`] | what runs when, by operation and node of the backward pass |
//! | [`recompute`] | parts that keep their input alone for the backward pass |
//! | [`panics`]  | libtorch's exceptions, which tch turns into panics, as errors |
//!
//! Every C++ exception comes back as [`NativeError`] with the first line of its text (the rest is libtorch's backtrace).
#![allow(unsafe_code)]

pub mod disk;
pub mod distributed;
pub mod dropout;
pub mod fused;
pub mod mapped;
pub mod nccl;
pub mod optim;
pub mod panics;
pub mod process;
pub mod profile;
pub mod recompute;
pub mod runtime;
pub mod weight;

use std::ffi::{c_char, c_int, c_void, CStr};
use tch::Tensor;

/// A failure inside libtorch or the shim.
#[derive(Debug, thiserror::Error)]
#[error("libtorch: {0}")]
pub struct NativeError(String);

impl NativeError {
    /// A failure of this program that is told as libtorch's are.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }
}

extern "C" {
    fn linformer_last_error() -> *const c_char;
}

fn last_error() -> NativeError {
    // SAFETY: the shim returns a NUL-terminated string that lives until the next failure on this thread.
    let text = unsafe { CStr::from_ptr(linformer_last_error()) }.to_string_lossy().into_owned();
    NativeError(first_line(&text))
}

/// What a call of the shim says of itself: negative is a failure.
fn done(status: c_int) -> Result<(), NativeError> {
    if status < 0 {
        Err(last_error())
    } else {
        Ok(())
    }
}

/// A tensor that the shim hands over; null is a failure.
fn taken(pointer: *mut c_void) -> Result<Tensor, NativeError> {
    if pointer.is_null() {
        return Err(last_error());
    }
    // SAFETY: the shim gives tensors of its own making, each once.
    Ok(unsafe { Tensor::from_ptr(pointer as *mut _) })
}

/// libtorch's messages carry a C++ backtrace from the second line on.
pub fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().to_string()
}

/// The pointer under which the shim knows a tensor.
fn raw(tensor: &Tensor) -> *mut c_void {
    tensor.as_ptr() as *mut c_void
}

fn raw_list(tensors: &[Tensor]) -> Vec<*mut c_void> {
    tensors.iter().map(raw).collect()
}
