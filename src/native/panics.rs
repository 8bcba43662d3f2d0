//! tch panics when libtorch throws (a shape, no memory). Here a panic becomes an error, and nothing is printed on the way.

use super::{first_line, NativeError};
use std::any::Any;
use std::cell::Cell;
use std::panic::{catch_unwind, AssertUnwindSafe};

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f`; a panic inside comes back as an error. What `f` was changing must not be used afterwards.
///
/// Use `tch::no_grad_guard()` inside: the closures `tch::no_grad(..)` leave gradients off when a panic passes them.
pub fn catch<T, E: From<NativeError>>(f: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    silently(f).unwrap_or_else(|text| Err(NativeError(text).into()))
}

/// Runs `f`; a panic inside comes back as the first line of its text. For libraries that panic on bad input.
pub fn silently<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    let before = CATCHING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    CATCHING.set(before);
    result.map_err(|payload| first_line(&text_of(&*payload)))
}

/// Keeps the panic hook silent inside [`catch`]; elsewhere a panic is one line that says it is our fault.
pub fn install_hook() {
    std::panic::set_hook(Box::new(|info| {
        if !CATCHING.get() {
            let place = info.location().map(|l| format!(" at {}:{}", l.file(), l.line())).unwrap_or_default();
            eprintln!("linformer: internal error{place}: {}; please report it", first_line(&text_of(info.payload())));
        }
    }));
}

fn text_of(payload: &dyn Any) -> String {
    let text = payload.downcast_ref::<String>().cloned().or_else(|| payload.downcast_ref::<&str>().map(|s| s.to_string()));
    let text = text.unwrap_or_default();
    // tch: called `Result::unwrap()` on an `Err` value: Torch("MESSAGE\nException raised from ...")
    let inner = text.split_once("Torch(\"").map_or(text.as_str(), |(_, inner)| inner);
    inner.split("\\nException raised").next().unwrap_or(inner).replace("\\n", "\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn a_shape_error_is_one_line_and_gradients_go_on() {
        let a = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        let result: Result<Tensor, NativeError> = catch(|| {
            let _guard = tch::no_grad_guard();
            Ok(a.matmul(&a))
        });
        let message = result.unwrap_err().to_string();
        assert!(message.contains("shapes cannot be multiplied (2x3 and 2x3)") && !message.contains('\n'), "{message}");
        let w = Tensor::ones([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        assert!((&w * 2.0).requires_grad(), "gradients stayed off after a panic inside no_grad");
    }
}
