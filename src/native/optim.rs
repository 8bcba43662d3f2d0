//! Adam and AdamW on tensors that we own (so that their state can be saved), and gradient norms.

use super::weight::Weight;
use super::{done, raw, raw_list, NativeError};
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
    fn linformer_adam_step(items: *const RawItem, count: c_int, settings: *const AdamSettings, by_libtorch: c_int) -> c_int;
    fn linformer_gradient_norms(gradients: *mut *mut c_void, count: c_int, norms: *mut f64, by_libtorch: c_int) -> c_int;
    fn linformer_forget_gradients(tensors: *mut *mut c_void, count: c_int) -> c_int;
}

/// One optimizer step in place, on the weights and on their bf16 copies where there are some.
pub fn adam_step(items: &[AdamItem], settings: &AdamSettings) -> Result<(), NativeError> {
    step_by(items, settings, false)
}

fn step_by(items: &[AdamItem], settings: &AdamSettings, by_libtorch: bool) -> Result<(), NativeError> {
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
    done(unsafe { linformer_adam_step(raw_items.as_ptr(), raw_items.len() as c_int, settings, by_libtorch.into()) })
}

/// The Euclidean norm of each tensor. The order of the sum does not depend on the number of threads.
pub fn norms(tensors: &[Tensor]) -> Result<Vec<f64>, NativeError> {
    norms_by(tensors, false)
}

fn norms_by(tensors: &[Tensor], by_libtorch: bool) -> Result<Vec<f64>, NativeError> {
    let mut norms = vec![0.0; tensors.len()];
    let count = tensors.len() as c_int;
    // SAFETY: as many live tensors and as much room for norms as `count` says.
    done(unsafe { linformer_gradient_norms(raw_list(tensors).as_mut_ptr(), count, norms.as_mut_ptr(), by_libtorch.into()) })?;
    Ok(norms)
}

/// Leaves the tensors without gradients: the next backward pass stores its own instead of adding to zeros.
pub fn forget_gradients(tensors: &[&Tensor]) -> Result<(), NativeError> {
    let mut pointers: Vec<*mut c_void> = tensors.iter().map(|t| raw(t)).collect();
    // SAFETY: live tensors.
    done(unsafe { linformer_forget_gradients(pointers.as_mut_ptr(), pointers.len() as c_int) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    fn wave(seed: f64) -> Tensor {
        (Tensor::arange(40_000, CPU) * 0.7391 + seed).sin().view([200, 200])
    }

    /// What other devices do, on the CPU.
    #[test]
    fn libtorchs_step_is_ours() {
        for decoupled in [0, 1] {
            let run = |by_libtorch: bool| {
                let weights = [1.0, 2.0, 3.0].map(|seed| Weight::new(wave(seed)));
                let state = [0; 3].map(|_| [wave(0.0).zeros_like(), wave(0.0).zeros_like(), Tensor::zeros([], CPU)]);
                for step in 0..4 {
                    let gradients = [5.0, 6.0, 7.0].map(|seed| wave(seed + f64::from(step)));
                    let settings = AdamSettings { lr: 0.01, beta1: 0.9, beta2: 0.98, eps: 1e-3, gradient_divisor: 3.0, decoupled };
                    let items: Vec<AdamItem> = (0..3)
                        .map(|i| {
                            let [exp_avg, exp_avg_sq, step] = &state[i];
                            // Two of one decay, with another between them.
                            let weight_decay = [0.1, 0.0, 0.1][i];
                            AdamItem { weight: &weights[i], gradient: &gradients[i], exp_avg, exp_avg_sq, step, weight_decay }
                        })
                        .collect();
                    step_by(&items, &settings, by_libtorch).unwrap();
                }
                (weights.map(|w| w.tensor().copy()), state)
            };
            let (ours, theirs) = (run(false), run(true));
            for i in 0..3 {
                assert!(ours.0[i].allclose(&theirs.0[i], 1e-5, 1e-6, false), "weight {i}, decoupled {decoupled}");
                assert!(!ours.0[i].allclose(&wave(i as f64 + 1.0), 1e-3, 1e-3, false), "weight {i} stayed");
                assert!(ours.1[i][1].allclose(&theirs.1[i][1], 1e-5, 1e-7, false), "moment {i}, decoupled {decoupled}");
                assert_eq!(theirs.1[i][2].double_value(&[]), 4.0);
            }
        }
    }

    #[test]
    fn libtorchs_norms_are_ours() {
        let tensors = [wave(1.0), wave(2.0) * 1e-3, Tensor::zeros([3], CPU)];
        let (ours, theirs) = (norms(&tensors).unwrap(), norms_by(&tensors, true).unwrap());
        ours.iter().zip(&theirs).for_each(|(a, b)| assert!((a - b).abs() <= 1e-5 * a, "{a} {b}"));
        let _ = tensors[1].get(7).fill_(f64::NAN);
        assert!(norms_by(&tensors, true).unwrap()[1].is_nan() && norms(&tensors).unwrap()[1].is_nan());
    }
}
