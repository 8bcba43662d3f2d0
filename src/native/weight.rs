//! A weight matrix in fp32, with a copy in bf16 for products in bf16.

use super::{done, raw, NativeError};
use std::ffi::{c_int, c_void};
use tch::{Device, Kind, Tensor};

/// An fp32 parameter and its bf16 copy. The copy is made when it is first used and again whenever the parameter has changed
/// in another way than by the optimizer, which writes both.
#[derive(Debug)]
pub struct Weight {
    parameter: Tensor,
    copy: Tensor,
    /// `[1]` int64: the version of the parameter that was copied.
    version: Tensor,
}

/// As it crosses to the shim.
#[repr(C)]
pub(super) struct WeightPointers {
    parameter: *mut c_void,
    copy: *mut c_void,
    version: *mut c_void,
}

extern "C" {
    fn linformer_make_copy(weight: *const WeightPointers) -> c_int;
}

impl Weight {
    pub fn new(parameter: Tensor) -> Self {
        let copy = Tensor::empty([0], (Kind::BFloat16, parameter.device()));
        Self { parameter, copy, version: Tensor::full([1], -1, (Kind::Int64, Device::Cpu)) }
    }

    /// Another handle on the same weight.
    pub fn shallow_clone(&self) -> Self {
        Self { parameter: self.parameter.shallow_clone(), copy: self.copy.shallow_clone(), version: self.version.shallow_clone() }
    }

    /// The fp32 parameter.
    pub fn tensor(&self) -> &Tensor {
        &self.parameter
    }

    /// Makes the bf16 copy now.
    pub fn make_copy(&self) -> Result<(), NativeError> {
        // SAFETY: live tensors.
        done(unsafe { linformer_make_copy(&self.pointers()) })
    }

    /// The parameter cast where it is used, with the cast in the graph.
    pub fn cast(&self, kind: Kind) -> Tensor {
        self.parameter.to_kind(kind)
    }

    pub(super) fn pointers(&self) -> WeightPointers {
        WeightPointers { parameter: raw(&self.parameter), copy: raw(&self.copy), version: raw(&self.version) }
    }

    /// The copy and its version, for the optimizer.
    pub(super) fn copy_pointers(&self) -> [*mut c_void; 2] {
        [raw(&self.copy), raw(&self.version)]
    }
}
