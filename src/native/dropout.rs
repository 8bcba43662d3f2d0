//! Stateless dropout with its gradient.

use super::{last_error, raw, NativeError};
use crate::random::Stream;
use std::ffi::{c_int, c_void};
use tch::Tensor;

extern "C" {
    fn linformer_dropout(x: *mut c_void, p: f64, key: u64, nonce: u64, offset: i64, by_tensor_operations: c_int) -> *mut c_void;
}

/// Zeroes each element of `x` with probability `p` and divides the others by `1 - p` (to 1/65536).
///
/// Element i is dropped or kept by `stream` at index `offset + i` alone: give the position of the tensor's first element
/// in the whole batch as `offset`, and the mask does not depend on how the batch is cut into micro-batches.
pub fn dropout(x: &Tensor, p: f64, stream: Stream, offset: i64) -> Result<Tensor, NativeError> {
    call(x, p, stream, offset, false)
}

fn call(x: &Tensor, p: f64, stream: Stream, offset: i64, by_tensor_operations: bool) -> Result<Tensor, NativeError> {
    // SAFETY: `x` is a live tensor; the shim returns null or a tensor that it hands over.
    unsafe {
        let out = linformer_dropout(raw(x), p, stream.key, stream.nonce, offset, by_tensor_operations.into());
        if out.is_null() {
            return Err(last_error());
        }
        Ok(Tensor::from_ptr(out as *mut _))
    }
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

    #[test]
    fn tensor_operations_give_the_same_bits_as_the_kernel() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let x = Tensor::arange(3 * 701, CPU).sin().view([3, 701]).to_kind(kind);
            let a = call(&x, 0.1, stream(9), 12345, false).unwrap();
            let b = call(&x, 0.1, stream(9), 12345, true).unwrap();
            assert!(a.equal(&b), "{kind:?}");
        }
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
