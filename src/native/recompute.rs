//! Recomputation: a part of the model that keeps its input alone and is run forward once more in the backward pass.

use super::panics::catch;
use super::{raw, raw_list, taken, NativeError};
use std::ffi::{c_char, c_int, c_void};
use tch::Tensor;

/// What is run, now and in the backward pass: the same bits from the same input each time.
pub type Part = Box<dyn Fn(Tensor) -> Result<Tensor, NativeError>>;

extern "C" {
    fn linformer_recompute(
        x: *mut c_void,
        weights: *mut *mut c_void,
        count: c_int,
        closure: *mut c_void,
        run: extern "C" fn(*mut c_void, *mut c_void) -> *mut c_void,
        drop: extern "C" fn(*mut c_void),
    ) -> *mut c_void;
    fn linformer_fail(text: *const c_char, length: i64);
}

extern "C" fn run(closure: *mut c_void, x: *mut c_void) -> *mut c_void {
    // SAFETY: the closure that `recompute` gave away, which lives until `release`, and a tensor that is handed over.
    let (part, x) = unsafe { (&*(closure as *const Part), Tensor::from_ptr(x as *mut _)) };
    match catch(|| part(x)) {
        Ok(out) => {
            let pointer = raw(&out);
            std::mem::forget(out);
            pointer
        }
        Err(NativeError(text)) => {
            // SAFETY: as many bytes as said.
            unsafe { linformer_fail(text.as_ptr() as *const c_char, text.len() as i64) };
            std::ptr::null_mut()
        }
    }
}

extern "C" fn release(closure: *mut c_void) {
    // SAFETY: made by `Box::into_raw` below, and dropped once.
    drop(unsafe { Box::from_raw(closure as *mut Part) });
}

/// part(x), of which x alone is kept for the backward pass. `weights`: all that the part learns. The graph can be used once.
///
/// The backward pass runs the part on the thread that owns the graph, or while that thread waits for it.
pub fn recompute(x: &Tensor, weights: &[Tensor], part: Part) -> Result<Tensor, NativeError> {
    let closure = Box::into_raw(Box::new(part)) as *mut c_void;
    // SAFETY: live tensors; the closure is the shim's, which drops it by `release`.
    taken(unsafe { linformer_recompute(raw(x), raw_list(weights).as_mut_ptr(), weights.len() as c_int, closure, run, release) })
}
