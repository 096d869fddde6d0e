//! Devices, and the settings of libtorch and of the process.

use crate::util::console::warn;
use crate::{Error, Result};
use plugin_api::python::mapped;
use plugin_api::{LIBTORCH, first_line};
use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tch::{Device, Kind, TchError, Tensor};
use torch_sys::C_tensor;

/// A device by its name: `cpu`, `cuda` or `cuda:N`.
///
/// # Errors
/// If the name is another one.
pub fn parse(name: &str) -> std::result::Result<Device, String> {
    let index = |number: &str| number.parse().map(Device::Cuda).ok();
    let device = match name {
        "cpu" => Some(Device::Cpu),
        "cuda" => Some(Device::Cuda(0)),
        _ => name.strip_prefix("cuda:").and_then(index),
    };
    device.ok_or_else(|| format!("expected cpu, cuda or cuda:N, got `{name}`"))
}

unsafe extern "C" {
    fn host_exact_cuda() -> *const c_char;
    fn host_upload(tensor: *const C_tensor, index: i64, copy: *mut *mut C_tensor) -> *const c_char;
}

/// Makes a device usable.
///
/// # Errors
/// For CUDA, if libtorch was built without it, an NVIDIA library is missing, or there is no usable
/// GPU.
pub(crate) fn open(device: Device) -> Result<Device> {
    let Device::Cuda(index) = device else { return Ok(device) };
    load_cuda()?;
    match Tensor::f_zeros([1], (Kind::Float, device)) {
        Ok(_) => Ok(device),
        Err(error) => {
            Err(Error::new(format!("no usable GPU for cuda:{index}: {}", first_line(&error.to_string())))
                .fix("check that `nvidia-smi` lists the GPU, or use --device cpu"))
        }
    }
}

/// Loads libtorch's CUDA library, and turns TF32 off. A program linked to the library would not
/// start on a machine without NVIDIA's libraries. libtorch searches for it once and remembers the
/// result: no CUDA device may have been used before.
///
/// # Errors
/// If libtorch was built without CUDA, or an NVIDIA library is missing.
pub(crate) fn load_cuda() -> Result<()> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // A plugin may have loaded it already, from another folder: Python's torch does.
    let library = match mapped("libtorch_cuda.so") {
        Some(library) => library,
        None => libtorch_folder()?.join("libtorch_cuda.so"),
    };
    if !library.is_file() {
        let what = if LIBTORCH.contains("+cu") {
            "has no CUDA half here (`make install` leaves that of `make setup` out)"
        } else {
            "was built without CUDA"
        };
        return Err(Error::new(format!("this libtorch ({LIBTORCH}) {what}"))
            .note("missing", library.display())
            .fix("set LIBTORCH to a libtorch with CUDA and rebuild, or use --device cpu"));
    }
    // Also if the library cannot be opened now: a plugin may open it later.
    // SAFETY: this sets flags of libtorch's global context.
    if let Some(why) = refusal(unsafe { host_exact_cuda() }) {
        let why = first_line(&why);
        return Err(Error::new(format!("libtorch cannot turn TF32 off on the GPU: {why}")));
    }
    // SAFETY: opening runs the initialisers of libtorch's CUDA library, which register its kernels.
    // It is in the folder of the libtorch that is already loaded, or open already.
    match unsafe { Library::open(Some(&library), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => {
            std::mem::forget(library);
            Ok(())
        }
        Err(error) => {
            let causes =
                std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
            let message = causes.last().map(ToString::to_string).unwrap_or_default();
            let name = message.split(':').next().unwrap_or_default().to_owned();
            Err(Error::new(format!("libtorch's CUDA half cannot be loaded: {name} is missing"))
                .note("loader", first_line(&message))
                .fix("install the CUDA build's NVIDIA libraries (README, section CUDA), or use --device cpu"))
        }
    }
}

/// The folder of the libtorch that this process has loaded.
fn libtorch_folder() -> Result<PathBuf> {
    let folder = mapped("libtorch_cpu.so").and_then(|library| library.parent().map(Path::to_owned));
    folder.ok_or_else(|| Error::new("cannot tell where libtorch was loaded from (/proc/self/maps)"))
}

/// Copies a tensor on the CPU to a device without waiting for the device.
///
/// # Errors
/// If libtorch cannot.
pub(crate) fn upload(tensor: &Tensor, device: Device) -> std::result::Result<Tensor, TchError> {
    match device {
        Device::Cuda(index) => {
            let mut copy = std::ptr::null_mut();
            // SAFETY: the tensor lives during the call.
            match refusal(unsafe { host_upload(tensor.as_ptr(), index as i64, &mut copy) }) {
                // SAFETY: there was no error, so that `copy` is a new tensor without another owner.
                None => Ok(unsafe { Tensor::from_ptr(copy) }),
                Some(why) => Err(TchError::Torch(why)),
            }
        }
        _ => tensor.f_to_device(device),
    }
}

/// The error message that a function of `libtorch.cpp` returned; none if it succeeded.
pub(crate) fn refusal(message: *const c_char) -> Option<String> {
    // SAFETY: the message is a string that is valid until this thread's next call of such a
    // function.
    (!message.is_null()).then(|| unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned())
}

const MOST_THREADS: usize = 1024;

/// Sets the number of threads of libtorch and of random numbers: one for each core unless it is
/// given.
///
/// # Errors
/// If the number is out of range, or the threads cannot be started.
pub(crate) fn set_threads(threads: Option<usize>) -> Result<usize> {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let threads = threads.unwrap_or(cores);
    if !(1..=MOST_THREADS).contains(&threads) {
        return Err(Error::new(format!(
            "threads: expected at least 1 and at most {MOST_THREADS}, got {threads}"
        )));
    }
    if threads > cores {
        warn(format_args!("{threads} threads on {cores} cores are slower than {cores}"));
    }
    tch::set_num_threads(threads as i32);
    // A command that makes a run and then evaluates it asks twice for the same number.
    static STARTED: OnceLock<usize> = OnceLock::new();
    if STARTED.get() != Some(&threads) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        pool.map_err(|why| Error::new(format!("cannot start {threads} threads: {why}")))?;
        let _ = STARTED.set(threads);
    }
    Ok(threads)
}

/// Sets this process up, before it starts any thread: its allocator keeps freed memory, and a file
/// that exceeds its limit is an error of the write, not a signal.
pub fn set_up() {
    keep_freed_memory();
    // SAFETY: no handler is installed; no other thread has started yet.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Keeps freed memory in the process. By default, glibc returns large activations to the kernel
/// after every step, and needs new pages in the next one.
fn keep_freed_memory() {
    const KEPT: libc::c_int = 1 << 30;
    const MOST_OF_OLD_GLIBC: libc::c_int = 32 << 20;
    // SAFETY: mallopt only sets thresholds of the allocator; no other thread has started yet.
    unsafe {
        if libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT) == 0 {
            libc::mallopt(libc::M_MMAP_THRESHOLD, MOST_OF_OLD_GLIBC);
        }
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// libtorch throws a C++ exception here: without a handler it would end the process.
    #[test]
    fn a_copy_to_a_gpu_without_cuda_is_an_error() {
        let refused = upload(&Tensor::from(1.0), Device::Cuda(0)).expect_err("refused");
        assert!(!refused.to_string().is_empty());
    }

    #[test]
    fn devices_are_known_by_name() {
        assert_eq!(parse("cuda"), Ok(Device::Cuda(0)));
        assert_eq!(parse("cuda:3"), Ok(Device::Cuda(3)));
        assert!(parse("cuda:x").is_err_and(|why| why.ends_with("got `cuda:x`")));
    }
}
