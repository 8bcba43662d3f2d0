//! Dropout as a function of (seed, purpose, step), with its gradient.

use super::fused::Drop;
use super::{raw, taken, NativeError};
use crate::random::Stream;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use tch::Tensor;

extern "C" {
    fn linformer_dropout(x: *mut c_void, mask: *const Drop, by_generator: c_int) -> *mut c_void;
    fn linformer_attention_with_dropout(
        q: *mut c_void,
        k: *mut c_void,
        v: *mut c_void,
        keep: *mut c_void,
        mask: *const Drop,
    ) -> *mut c_void;
}

/// Zeroes each element of `x` with probability `p` and divides the others by `1 - p`.
///
/// On a CPU (p to 1/65536) element i is dropped or kept by `stream` at index `offset + i` alone: give the position of the tensor's
/// first element in the whole batch as `offset`, and the mask does not depend on how the batch is cut into micro-batches. On
/// another device the mask is drawn by libtorch's generator, started anew from `stream` and `offset`: other bits, and another cut
/// has others, but the same call has the same mask.
pub fn dropout(x: &Tensor, p: f64, stream: Stream, offset: i64) -> Result<Tensor, NativeError> {
    call(x, p, stream, offset, false)
}

fn call(x: &Tensor, p: f64, stream: Stream, offset: i64, by_generator: bool) -> Result<Tensor, NativeError> {
    // SAFETY: `x` is a live tensor.
    taken(unsafe { linformer_dropout(raw(x), &Drop { p, stream, offset }, by_generator.into()) })
}

/// libtorch's attention, softmax(Q K^T / sqrt(d/h)) V with dropout of the probabilities, which are nowhere stored where the device
/// has a fused kernel: q, k, v `[B, h, rows, d/h]`, keep (bool) broadcastable to `[B, h, rows, keys]`. By libtorch's generator, as
/// [`dropout`] on other devices than a CPU.
pub fn attention_with_dropout(q: &Tensor, k: &Tensor, v: &Tensor, keep: Option<&Tensor>, drop: Drop) -> Result<Tensor, NativeError> {
    let keep = keep.map_or(null_mut(), raw);
    // SAFETY: live tensors, or null for keep.
    taken(unsafe { linformer_attention_with_dropout(raw(q), raw(k), raw(v), keep, &drop) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::random::Purpose;
    use tch::{Device, Kind};

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    fn stream(seed: u64) -> Stream {
        Stream::new(seed, Purpose::Dropout, 7)
    }

    /// The mask by the Rust generator: an implementation of its own of the same definition.
    fn expected_keep(stream: Stream, index: u64, p: f64) -> bool {
        let word = stream.block(index / 8)[(index % 8 / 2) as usize];
        let bits = if index % 2 == 1 { word >> 16 } else { word & 0xffff };
        bits >= (p * 65536.0).round() as u32
    }

    #[test]
    fn the_mask_is_the_generators_and_scales_what_it_keeps() {
        let x = Tensor::ones([1000], CPU);
        let out = Vec::<f32>::try_from(dropout(&x, 0.25, stream(3), 0).unwrap()).unwrap();
        for (i, value) in out.iter().enumerate() {
            let keep = expected_keep(stream(3), i as u64, 0.25);
            assert_eq!(*value, if keep { 4.0f32 / 3.0 } else { 0.0 }, "element {i}");
        }
    }

    /// What other devices have, on the CPU's generator.
    #[test]
    fn the_generators_mask_is_a_function_of_its_numbers_alone() {
        let x = Tensor::ones([200, 300], CPU).set_requires_grad(true);
        let drawn = |seed, offset| call(&x, 0.25, stream(seed), offset, true).unwrap();
        let first = drawn(1, 0);
        let _ = drawn(9, 5);
        assert!(first.equal(&drawn(1, 0)), "what was drawn before changes nothing");
        assert!(!first.equal(&drawn(2, 0)) && !first.equal(&drawn(1, 60_000)));
        let values = Vec::<f32>::try_from(first.detach().view(-1)).unwrap();
        assert!(values.iter().all(|v| *v == 0.0 || (v - 4.0 / 3.0).abs() < 1e-6));
        let dropped = values.iter().filter(|v| **v == 0.0).count() as f64 / values.len() as f64;
        // 5 standard deviations of a binomial share.
        assert!((dropped - 0.25).abs() < 5.0 * (0.25f64 * 0.75 / 6e4).sqrt(), "{dropped}");
        first.sum(Kind::Float).backward();
        assert!(x.grad().equal(&first.detach()), "the gradient has the same mask");
    }

    #[test]
    fn attention_with_the_generators_dropout_is_a_function_of_its_numbers_alone() {
        let cpu = (Kind::Double, Device::Cpu);
        let wave = |rows: i64, seed: f64| (Tensor::arange(2 * 2 * rows * 8, cpu) * 0.7391 + seed).sin().view([2, 2, rows, 8]);
        let (q, k, v) = (wave(5, 1.0).set_requires_grad(true), wave(7, 2.0), wave(7, 3.0));
        let keep = Tensor::arange(7, (Kind::Int64, Device::Cpu)).lt_tensor(&Tensor::from_slice(&[4i64, 7]).view([2, 1, 1, 1]));
        let drop = |seed| Drop { p: 0.3, stream: stream(seed), offset: 11 };
        let run = |q: &Tensor, seed| attention_with_dropout(q, &k, &v, Some(&keep), drop(seed)).unwrap();
        assert!(run(&q, 1).equal(&run(&q, 1)) && !run(&q, 1).equal(&run(&q, 2)));
        // The mean over masks is what there is without dropout.
        let whole = Tensor::scaled_dot_product_attention(&q, &k, &v, Some(&keep), 0.0, false, None, false);
        let mean = Tensor::stack(&(0..2000).map(|seed| run(&q, seed).detach()).collect::<Vec<_>>(), 0).mean_dim(
            [0i64].as_slice(),
            false,
            Kind::Double,
        );
        let worst = (mean - &whole).abs().max().double_value(&[]);
        assert!(worst < 0.1, "{worst}");
        // With one mask it is smooth: the gradient is its slope.
        let weights = wave(5, 4.0);
        let loss = |q: &Tensor| (run(q, 3) * &weights).sum(Kind::Double);
        loss(&q).backward();
        let direction = wave(5, 5.0);
        let at = |by: f64| loss(&(q.detach() + &direction * by)).double_value(&[]);
        let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
        let gradient = (q.grad() * &direction).sum(Kind::Double).double_value(&[]);
        assert!((slope - gradient).abs() < 1e-7 * gradient.abs().max(1.0), "{slope} {gradient}");
    }

    #[test]
    fn the_mask_does_not_depend_on_threads_or_on_the_cut_into_micro_batches() {
        let x = Tensor::ones([6, 40001], CPU);
        let threads = tch::get_num_threads();
        let whole = dropout(&x, 0.1, stream(1), 0).unwrap();
        tch::set_num_threads(1);
        let serial = dropout(&x, 0.1, stream(1), 0).unwrap();
        tch::set_num_threads(threads);
        assert!(whole.equal(&serial));
        let second_half = dropout(&x.narrow(0, 3, 3), 0.1, stream(1), 3 * 40001).unwrap();
        assert!(whole.narrow(0, 3, 3).equal(&second_half));
    }

    #[test]
    fn the_gradient_uses_the_same_mask() {
        let x = Tensor::ones([512], CPU).set_requires_grad(true);
        let out = dropout(&x, 0.5, stream(4), 0).unwrap();
        (&out * 3.0).sum(Kind::Float).backward();
        assert!(x.grad().equal(&(out.detach() * 3.0)));
    }

    #[test]
    fn the_share_dropped_is_p_and_seeds_differ() {
        let x = Tensor::ones([1_000_000], CPU);
        let out = dropout(&x, 0.1, stream(5), 0).unwrap();
        let dropped = 1.0 - out.ne(0.0).to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
        // 5 standard deviations of a binomial share.
        assert!((dropped - 0.1).abs() < 5.0 * (0.1f64 * 0.9 / 1e6).sqrt(), "{dropped}");
        assert!(!out.equal(&dropout(&x, 0.1, stream(6), 0).unwrap()));
    }

    #[test]
    fn an_impossible_probability_is_an_error_of_one_line() {
        let message = dropout(&Tensor::ones([2], CPU), 1.0, stream(1), 0).unwrap_err().to_string();
        assert!(message.contains("not in [0, 1)") && !message.contains('\n'), "{message}");
    }
}
