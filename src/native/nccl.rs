//! NCCL between ranks on GPUs: a library of our own beside libtorch's CUDA part, built with `make setup CUDA=1` and loaded when
//! ranks ask for GPUs.

use super::distributed::{Group, Store};
use super::{first_line, NativeError};
use libloading::os::unix::{Library, Symbol, RTLD_LOCAL, RTLD_NOW};
use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::time::Duration;

type Text = unsafe extern "C" fn() -> *const c_char;
type Device = unsafe extern "C" fn(c_int) -> *const c_char;
type New = unsafe extern "C" fn(*mut c_void, *const c_char, c_int, c_int, c_int, i64) -> *mut c_void;

/// The library. It stays loaded to the end of the process.
pub struct Nccl {
    version: Symbol<Text>,
    error: Symbol<Text>,
    device: Symbol<Device>,
    new: Symbol<New>,
}

impl Nccl {
    /// Loads it, after libtorch's CUDA part ([`super::runtime::load_cuda`]).
    pub fn load() -> Result<Self, NativeError> {
        let Some(path) = option_env!("LINFORMER_NCCL") else {
            return Err(NativeError::new("this program was built without NCCL: make setup CUDA=1, then make build"));
        };
        let failed = |error: libloading::Error| NativeError::new(&format!("{path}: {}", first_line(&error.to_string())));
        // SAFETY: our own library, built together with this program; its functions have the types above.
        unsafe {
            let library = Library::open(Some(path), RTLD_NOW | RTLD_LOCAL).map_err(failed)?;
            let found = Self {
                version: library.get(b"linformer_nccl_version\0").map_err(failed)?,
                error: library.get(b"linformer_nccl_error\0").map_err(failed)?,
                device: library.get(b"linformer_nccl_device\0").map_err(failed)?,
                new: library.get(b"linformer_nccl_new\0").map_err(failed)?,
            };
            std::mem::forget(library);
            Ok(found)
        }
    }

    fn text(&self, pointer: *const c_char) -> Result<String, NativeError> {
        if pointer.is_null() {
            return Err(self.last_error());
        }
        // SAFETY: the library's texts are NUL-terminated and live until this thread's next call.
        Ok(unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
    }

    fn last_error(&self) -> NativeError {
        // SAFETY: a NUL-terminated text that lives until this thread's next failure.
        let text = unsafe { CStr::from_ptr((self.error)()) }.to_string_lossy().into_owned();
        NativeError::new(&first_line(&text))
    }

    /// NCCL's version.
    pub fn version(&self) -> Result<String, NativeError> {
        // SAFETY: no arguments.
        self.text(unsafe { (self.version)() })
    }

    /// Where a device sits on the bus: one name a device, in all processes of a machine.
    pub fn device(&self, index: usize) -> Result<String, NativeError> {
        // SAFETY: an index that does not exist is an error of the library's.
        self.text(unsafe { (self.device)(index as c_int) })
    }

    /// Lets the group sum, gather and broadcast what lies on GPUs; this rank's is `device`. All ranks call it.
    pub fn join(&self, group: &Group, store: &Store, prefix: &str, rank: usize, device: usize, limit: Duration) -> Result<(), NativeError> {
        let prefix = CString::new(prefix).map_err(|_| NativeError::new("a prefix holds a NUL byte"))?;
        let limit = i64::try_from(limit.as_millis()).unwrap_or(i64::MAX);
        // SAFETY: store and prefix live through the call; the backend keeps the store by its own count.
        let backend = unsafe { (self.new)(store.shared(), prefix.as_ptr(), rank as c_int, group.size() as c_int, device as c_int, limit) };
        if backend.is_null() {
            return Err(self.last_error());
        }
        // SAFETY: the backend was just made by the library, which hands it over.
        unsafe { group.add_cuda(backend) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a GPU there is nothing to join; the library itself must load where it was built.
    #[test]
    fn the_library_loads_where_it_was_built() {
        let loaded = super::super::runtime::load_cuda().map_err(|e| NativeError::new(&e)).and_then(|()| Nccl::load());
        match (option_env!("LINFORMER_NCCL"), loaded) {
            (None, loaded) => assert!(loaded.is_err()),
            (Some(_), loaded) => {
                let version = loaded.and_then(|nccl| nccl.version());
                assert!(version.as_ref().is_ok_and(|v| v.starts_with("2.")), "{version:?}");
            }
        }
    }
}
