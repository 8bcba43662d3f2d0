//! Looking at what every module puts out, to find where numbers go wrong.

use std::cell::RefCell;
use tch::{Kind, Tensor};

/// Takes notes of the outputs of one forward pass, in the order of computation.
#[derive(Debug, Default)]
pub struct Watch {
    seen: RefCell<Vec<Seen>>,
}

/// The output of one module.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// Hugging Face's name of the module.
    pub module: String,
    pub shape: Vec<i64>,
    /// Values that are NaN or infinite.
    pub bad: i64,
    /// Largest absolute value among the finite ones.
    pub largest: f64,
}

impl Watch {
    pub fn see(&self, module: &str, output: &Tensor) {
        self.seen.borrow_mut().push(Seen::new(module, output));
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.borrow().clone()
    }

    /// The first module whose output is not finite.
    pub fn first_bad(&self) -> Option<Seen> {
        self.seen.borrow().iter().find(|s| s.bad > 0).cloned()
    }
}

impl Seen {
    pub fn new(name: &str, tensor: &Tensor) -> Self {
        let _guard = tch::no_grad_guard();
        let values = tensor.detach().to_kind(Kind::Float);
        let finite = values.isfinite();
        let largest = values.abs().where_self(&finite, &values.zeros_like());
        Self {
            module: name.into(),
            shape: values.size(),
            bad: values.numel() as i64 - finite.sum(Kind::Int64).int64_value(&[]),
            largest: if values.numel() == 0 { 0.0 } else { largest.max().double_value(&[]) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_module_that_is_not_finite_is_named() {
        let watch = Watch::default();
        watch.see("a", &Tensor::from_slice(&[1.0f32, -3.0]));
        watch.see("b", &Tensor::from_slice(&[f32::NAN, 2.0, f32::INFINITY]));
        watch.see("c", &Tensor::from_slice(&[f32::NAN]));
        let seen = watch.seen();
        assert_eq!(seen.iter().map(|s| (s.bad, s.largest)).collect::<Vec<_>>(), [(0, 3.0), (2, 2.0), (1, 0.0)]);
        assert_eq!(watch.first_bad().map(|s| s.module), Some("b".into()));
    }
}
