//! Adam and AdamW on tensors that we own (so that their state can be saved), and gradient norms.

use super::weight::Weight;
use super::{last_error, raw, raw_list, NativeError};
use std::ffi::{c_int, c_void};
use tch::Tensor;

/// What a step needs beside the tensors.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AdamSettings {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Gradients are divided by this: the inverse of the clipping coefficient.
    pub gradient_divisor: f64,
    /// 1: AdamW (decoupled decay); 0: Adam (decay added to the gradient).
    pub decoupled: c_int,
}

/// One weight with its gradient and state.
pub struct AdamItem<'a> {
    pub weight: &'a Weight,
    pub gradient: &'a Tensor,
    pub exp_avg: &'a Tensor,
    pub exp_avg_sq: &'a Tensor,
    /// An fp32 scalar: steps made; counted up by the call.
    pub step: &'a Tensor,
    pub weight_decay: f64,
}

#[repr(C)]
struct RawItem {
    tensors: [*mut c_void; 5],
    copy: [*mut c_void; 2],
    weight_decay: f64,
}

extern "C" {
    fn linformer_adam_step(items: *const RawItem, count: c_int, settings: *const AdamSettings) -> c_int;
    fn linformer_gradient_norms(gradients: *mut *mut c_void, count: c_int, norms: *mut f64) -> c_int;
    fn linformer_forget_gradients(tensors: *mut *mut c_void, count: c_int) -> c_int;
}

fn checked(status: c_int) -> Result<(), NativeError> {
    if status == 0 {
        Ok(())
    } else {
        Err(last_error())
    }
}

/// One optimizer step in place, on the weights and on their bf16 copies where there are some.
pub fn adam_step(items: &[AdamItem], settings: &AdamSettings) -> Result<(), NativeError> {
    let raw_items: Vec<RawItem> = items
        .iter()
        .map(|item| RawItem {
            tensors: [item.weight.tensor(), item.gradient, item.exp_avg, item.exp_avg_sq, item.step].map(raw),
            copy: item.weight.copy_pointers(),
            weight_decay: item.weight_decay,
        })
        .collect();
    for item in items {
        let size = item.weight.tensor().size();
        if [item.gradient, item.exp_avg, item.exp_avg_sq].iter().any(|t| t.size() != size) {
            return Err(NativeError("a gradient or a moment is not of its weight's shape".into()));
        }
    }
    // SAFETY: `count` items of live tensors of equal shapes, checked above; the kernel writes to them in place.
    checked(unsafe { linformer_adam_step(raw_items.as_ptr(), raw_items.len() as c_int, settings) })
}

/// The Euclidean norm of each tensor. The order of the sum does not depend on the number of threads.
pub fn norms(tensors: &[Tensor]) -> Result<Vec<f64>, NativeError> {
    let mut norms = vec![0.0; tensors.len()];
    // SAFETY: as many live tensors and as much room for norms as `count` says.
    checked(unsafe { linformer_gradient_norms(raw_list(tensors).as_mut_ptr(), tensors.len() as c_int, norms.as_mut_ptr()) })?;
    Ok(norms)
}

/// Leaves the tensors without gradients: the next backward pass stores its own instead of adding to zeros.
pub fn forget_gradients(tensors: &[&Tensor]) -> Result<(), NativeError> {
    let mut pointers: Vec<*mut c_void> = tensors.iter().map(|t| raw(t)).collect();
    // SAFETY: live tensors.
    checked(unsafe { linformer_forget_gradients(pointers.as_mut_ptr(), pointers.len() as c_int) })
}
