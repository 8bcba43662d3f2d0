//! libtorch's fused Adam and AdamW on tensors that we own (so that their state can be saved), and gradient norms.

use super::{last_error, raw_list, NativeError};
use std::ffi::{c_int, c_void};
use tch::Tensor;

/// What one call of the fused kernel needs beside the tensors.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AdamSettings {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// Gradients are divided by this: the inverse of the clipping coefficient.
    pub gradient_divisor: f64,
    /// 1: AdamW (decoupled decay); 0: Adam (decay added to the gradient).
    pub decoupled: c_int,
}

extern "C" {
    fn linformer_adam_step(
        parameters: *mut *mut c_void,
        gradients: *mut *mut c_void,
        exp_avg: *mut *mut c_void,
        exp_avg_sq: *mut *mut c_void,
        steps: *mut *mut c_void,
        count: c_int,
        settings: *const AdamSettings,
    ) -> c_int;
    fn linformer_gradient_norms(gradients: *mut *mut c_void, count: c_int, norms: *mut f64) -> c_int;
}

/// The tensors of one weight-decay group; all lists have the same length and order.
pub struct AdamTensors<'a> {
    pub parameters: &'a [Tensor],
    pub gradients: &'a [Tensor],
    pub exp_avg: &'a [Tensor],
    pub exp_avg_sq: &'a [Tensor],
    /// fp32 scalars: steps made; counted up by the call.
    pub steps: &'a [Tensor],
}

/// One optimizer step in place.
pub fn adam_step(tensors: AdamTensors, settings: &AdamSettings) -> Result<(), NativeError> {
    let count = tensors.parameters.len();
    let lists = [tensors.gradients, tensors.exp_avg, tensors.exp_avg_sq, tensors.steps];
    if lists.iter().any(|l| l.len() != count) {
        return Err(NativeError("optimizer lists of different length".into()));
    }
    // SAFETY: the lists hold `count` live tensors each, checked above; the kernel writes to them in place.
    let status = unsafe {
        linformer_adam_step(
            raw_list(tensors.parameters).as_mut_ptr(),
            raw_list(tensors.gradients).as_mut_ptr(),
            raw_list(tensors.exp_avg).as_mut_ptr(),
            raw_list(tensors.exp_avg_sq).as_mut_ptr(),
            raw_list(tensors.steps).as_mut_ptr(),
            count as c_int,
            settings,
        )
    };
    if status == 0 {
        Ok(())
    } else {
        Err(last_error())
    }
}

/// The Euclidean norm of each tensor.
pub fn norms(tensors: &[Tensor]) -> Result<Vec<f64>, NativeError> {
    let mut norms = vec![0.0; tensors.len()];
    // SAFETY: as many live tensors and as much room for norms as `count` says.
    let status = unsafe { linformer_gradient_norms(raw_list(tensors).as_mut_ptr(), tensors.len() as c_int, norms.as_mut_ptr()) };
    if status == 0 {
        Ok(norms)
    } else {
        Err(last_error())
    }
}
