//! Groups of processes with a GPU each, which sum through NCCL. What opens them is a library of its own
//! (`nccl.cpp`), since it needs libtorch's CUDA half; this program carries it, if NCCL's and CUDA's headers
//! were there when it was built.

use super::device::refusal;
use crate::util::files;
use crate::{Error, Result};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use plugin_api::first_line;
use std::ffi::{c_char, c_int, c_void};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::OnceLock;

/// The library; empty if it was not built.
static LIBRARY: &[u8] = include_bytes!(env!("HOST_NCCL"));

/// What was missing to build it.
const LACKS: &str = env!("HOST_NCCL_LACKS");

/// The variable of the environment that leaves NCCL out (0).
const SWITCH: &str = "DRO_NCCL";

type Open = unsafe extern "C" fn(
    store: *mut c_void,
    prefix: *const c_char,
    rank: c_int,
    size: c_int,
    milliseconds: i64,
    opened: *mut *mut c_void,
) -> *const c_char;

/// The way to open such a group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nccl(Open);

impl Nccl {
    /// Opens the library, once in a process. libtorch's CUDA half must be loaded.
    ///
    /// # Errors
    /// If this program was built without it, libtorch's CUDA half is not loaded, or the user does not
    /// want it.
    pub fn find() -> Result<Self> {
        static FOUND: OnceLock<std::result::Result<Open, String>> = OnceLock::new();
        if std::env::var(SWITCH).as_deref() == Ok("0") {
            return Err(Error::new(format!("{SWITCH} is 0")));
        }
        FOUND.get_or_init(open_library).clone().map(Self).map_err(Error::new)
    }

    /// Opens a group of processes that meet in this store. Returns its handle.
    ///
    /// # Safety
    /// The store is open, the prefix ends with a zero, and both outlive the call.
    pub unsafe fn open(
        self,
        store: *mut c_void,
        prefix: *const c_char,
        (rank, size): (usize, usize),
        milliseconds: i64,
    ) -> std::result::Result<*mut c_void, String> {
        let (Self(open), mut opened) = (self, std::ptr::null_mut());
        // SAFETY: as the caller promises; there is room for the answer. The group keeps what it needs of
        // the store alive.
        let message =
            unsafe { open(store, prefix, rank as c_int, size as c_int, milliseconds, &raw mut opened) };
        refusal(message).map_or(Ok(opened), Err)
    }
}

fn open_library() -> std::result::Result<Open, String> {
    if LIBRARY.is_empty() {
        return Err(format!("this program was built without NCCL: {LACKS}"));
    }
    // SAFETY: the name ends with a zero.
    let file = unsafe { libc::memfd_create(c"host_nccl".as_ptr(), libc::MFD_CLOEXEC) };
    if file < 0 {
        return Err(std::io::Error::last_os_error().to_string());
    }
    // SAFETY: the descriptor is new, and nobody else owns it.
    let mut file = unsafe { File::from_raw_fd(file) };
    files::write_all(&mut file, LIBRARY).map_err(|why| why.to_string())?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // SAFETY: opening runs the library's initialisers, which are those of C++ alone. What it needs of
    // libtorch is loaded, or it is not opened.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
    let library = library.map_err(|why| {
        let loader = std::error::Error::source(&why).map_or_else(|| why.to_string(), ToString::to_string);
        first_line(&loader).to_owned()
    })?;
    // SAFETY: the function of this name has this type (nccl.cpp).
    let open = unsafe { library.get::<Open>(b"host_nccl_open\0") }.map(|open| *open);
    let open = open.map_err(|why| why.to_string())?;
    // It stays open as long as the process lives.
    std::mem::forget(library);
    Ok(open)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::c10d::{Group, Store, Sum};
    use crate::torch::device::load_cuda;
    use std::time::Duration;
    use tch::{Device, Tensor};

    /// Without headers there is no library, without NVIDIA's software it cannot be opened, and without a
    /// GPU it opens no group. Where there is one, the sum of one process is its own number.
    #[test]
    fn a_group_is_opened_where_there_is_a_gpu_and_otherwise_the_reason_is_said() {
        let cuda = load_cuda();
        let nccl = match (LIBRARY.is_empty(), &cuda, Nccl::find()) {
            (false, Ok(()), found) => found.expect("it fits libtorch's CUDA half"),
            (is_empty, _, refused) => {
                let refused = refused.expect_err("refused").to_string();
                let expected =
                    if is_empty { "built without NCCL: " } else { "cannot open shared object file" };
                assert!(refused.contains(expected), "{refused}");
                return;
            }
        };
        let patience = Duration::from_secs(10);
        let store = Store::open(("127.0.0.1", 0), true, patience, String::new()).expect("a free port");
        match (Group::open_nccl(&store, (0, 1), nccl), tch::Cuda::device_count()) {
            (Err(why), 0) => assert!(why.first_line().contains("no GPUs found"), "{why}"),
            (group, _) => {
                let group = group.expect("a GPU");
                let numbers = Tensor::from_slice(&[1.5, -2.0]).to_device(Device::Cuda(0));
                let sum = group.begin_sum(numbers).and_then(Sum::wait).expect("a sum");
                assert_eq!(Vec::<f64>::try_from(sum).expect("numbers"), [1.5, -2.0]);
                group.shut_down();
            }
        }
    }
}
