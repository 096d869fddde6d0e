//! A TorchScript module in Rust: safe methods over `module.cpp`.

use plugin_api::tch::{Device, Tensor};
use plugin_api::{Error, Result};
use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_void};
use torch_sys::C_tensor;

/// A module of the C++ side.
#[repr(C)]
struct Opaque {
    _private: [u8; 0],
}

/// Mirrors `TorchscriptFacts` in module.cpp.
#[repr(C)]
struct RawFacts {
    reads_mode: bool,
    has_modes: bool,
    has_constant_weights: bool,
    devices: *const c_char,
}

type Refusal = *const c_char;
type Found = extern "C" fn(*mut c_void, *const c_char, i32, *mut C_tensor);
type Written = extern "C" fn(*mut c_void, *const c_char, usize);

unsafe extern "C" {
    fn torchscript_records(bytes: *const u8, length: usize, names: *mut *const c_char) -> Refusal;
    fn torchscript_load(bytes: *const u8, length: usize, device: i64, loaded: *mut *mut Opaque) -> Refusal;
    fn torchscript_free(module: *mut Opaque);
    fn torchscript_double(module: *mut Opaque) -> Refusal;
    fn torchscript_tensors(module: *mut Opaque, list: *mut c_void, found: Found) -> Refusal;
    fn torchscript_attributes(module: *mut Opaque, text: *mut *const c_char) -> Refusal;
    fn torchscript_facts(module: *mut Opaque, facts: *mut RawFacts) -> Refusal;
    fn torchscript_set_training(module: *mut Opaque, training: bool) -> Refusal;
    fn torchscript_forward(
        module: *mut Opaque,
        images: *const C_tensor,
        output: *const c_char,
        logits: *mut *mut C_tensor,
    ) -> Refusal;
    fn torchscript_random_state(device: i64, state: *mut *mut C_tensor) -> Refusal;
    fn torchscript_set_random_state(device: i64, state: *const C_tensor) -> Refusal;
    fn torchscript_example(
        first: *const C_tensor,
        second: *const C_tensor,
        file: *mut c_void,
        written: Written,
    ) -> Refusal;
}

/// The result of a call of the C++ side, which returns null or a message.
fn checked(refusal: Refusal) -> Result<()> {
    // SAFETY: the message is a string that is valid until this thread's next call.
    let message = (!refusal.is_null()).then(|| unsafe { text(refusal) });
    message.map_or(Ok(()), |message| Err(Error::new(reason(&message))))
}

/// # Safety
/// `string` is a valid string of C.
unsafe fn text(string: *const c_char) -> String {
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}

/// The reason in an error message of the interpreter, without its traceback, and the line of the
/// Python file that it names last.
fn reason(message: &str) -> String {
    let is_traceback = message.contains("Traceback of TorchScript");
    let lines = || message.lines().map(str::trim).filter(|line| !line.is_empty());
    let raised = || lines().rfind(|line| line.contains("Error: "));
    let why = if is_traceback { raised().or_else(|| lines().next_back()) } else { lines().next() };
    let why = why.unwrap_or("no reason is given");
    let place = lines().rfind(|line| line.starts_with("File \"") && !line.contains("code/__torch__"));
    let place = place.and_then(|line| line.strip_prefix("File ")).map(|line| line.replace('"', ""));
    let why = why.strip_prefix("RuntimeError: ").unwrap_or(why);
    place.map_or_else(|| why.to_owned(), |place| format!("{why} ({place})"))
}

/// The C++ side's number of a device.
fn index(device: Device) -> i64 {
    match device {
        Device::Cuda(index) => index as i64,
        _ => -1,
    }
}

/// The names of the files in an archive of PyTorch's.
///
/// # Errors
/// If it is not whole.
pub(crate) fn records(bytes: &[u8]) -> Result<Vec<String>> {
    let mut names = std::ptr::null();
    // SAFETY: the bytes live during the call.
    checked(unsafe { torchscript_records(bytes.as_ptr(), bytes.len(), &raw mut names) })?;
    // SAFETY: there was no error, so that `names` is a string, valid until the next call.
    Ok(unsafe { text(names) }.lines().map(str::to_owned).collect())
}

/// What a tensor is to the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A parameter.
    Parameter,
    /// A registered buffer.
    Buffer,
    /// A plain attribute.
    Other,
}

/// What the code of `forward` says.
#[derive(Debug)]
pub(crate) struct Facts {
    /// Whether it asks for the mode, training or evaluation.
    pub(crate) reads_mode: bool,
    /// Whether it has dropout or normalisation by statistics.
    pub(crate) has_modes: bool,
    /// Whether it has constant tensors of real numbers with more than one element.
    pub(crate) has_constant_weights: bool,
    /// The devices that it names.
    pub(crate) devices: Vec<String>,
}

/// A module. One thread at a time may use it.
pub(crate) struct Module {
    module: *mut Opaque,
    /// The mode that it was set to last.
    training: Cell<Option<bool>>,
}

// SAFETY: the pointer is this value's own, and nothing of it belongs to a thread.
unsafe impl Send for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `torchscript_load`, and is freed once.
        unsafe { torchscript_free(self.module) }
    }
}

impl Module {
    /// Loads the contents of a file onto a device. Tied weights are one tensor under several names.
    ///
    /// # Errors
    /// If libtorch cannot load it, or it has no method `forward`.
    pub(crate) fn load(bytes: &[u8], device: Device) -> Result<Self> {
        let mut module = std::ptr::null_mut();
        // SAFETY: the bytes live during the call.
        checked(unsafe { torchscript_load(bytes.as_ptr(), bytes.len(), index(device), &raw mut module) })?;
        Ok(Self { module, training: Cell::new(None) })
    }

    /// Turns every f32 tensor of the module into f64, in place.
    pub(crate) fn double(&self) -> Result<()> {
        // SAFETY: the module is alive.
        checked(unsafe { torchscript_double(self.module) })
    }

    /// Its tensors by name: parameters, buffers, then plain attributes. They are not copies.
    pub(crate) fn tensors(&self) -> Result<Vec<(String, Role, Tensor)>> {
        extern "C" fn found(list: *mut c_void, name: *const c_char, role: i32, tensor: *mut C_tensor) {
            // SAFETY: `list` is the vector below, `name` a string; the tensor is this side's own.
            let (list, name, tensor) = unsafe {
                (&mut *list.cast::<Vec<(String, Role, Tensor)>>(), text(name), Tensor::from_ptr(tensor))
            };
            let role = match role {
                0 => Role::Parameter,
                1 => Role::Buffer,
                _ => Role::Other,
            };
            list.push((name, role, tensor));
        }
        let mut list: Vec<(String, Role, Tensor)> = Vec::new();
        // SAFETY: the module is alive, and `found` gets the list that it expects.
        checked(unsafe { torchscript_tensors(self.module, (&raw mut list).cast(), found) })?;
        Ok(list)
    }

    /// Its attributes that are no tensors, with their values, one a line.
    pub(crate) fn attributes(&self) -> Result<String> {
        let mut lines = std::ptr::null();
        // SAFETY: the module is alive.
        checked(unsafe { torchscript_attributes(self.module, &raw mut lines) })?;
        // SAFETY: there was no error, so that `lines` is a string, valid until the next call.
        Ok(unsafe { text(lines) })
    }

    /// What the code of `forward` says.
    pub(crate) fn facts(&self) -> Result<Facts> {
        let mut raw = RawFacts {
            reads_mode: false,
            has_modes: false,
            has_constant_weights: false,
            devices: std::ptr::null(),
        };
        // SAFETY: the module is alive, and there is room for the answer.
        checked(unsafe { torchscript_facts(self.module, &raw mut raw) })?;
        let RawFacts { reads_mode, has_modes, has_constant_weights, devices } = raw;
        // SAFETY: there was no error, so that `devices` is a string, valid until the next call.
        let devices = unsafe { text(devices) };
        let devices = devices.split(", ").filter(|device| !device.is_empty()).map(str::to_owned).collect();
        Ok(Facts { reads_mode, has_modes, has_constant_weights, devices })
    }

    /// What `forward` returns for images, in a mode; `output` names the element of a result that has
    /// several.
    ///
    /// # Errors
    /// Those of the module, or if the result is not a tensor.
    pub(crate) fn forward(&self, images: &Tensor, train: bool, output: Option<&CString>) -> Result<Tensor> {
        if self.training.get() != Some(train) {
            // SAFETY: the module is alive.
            checked(unsafe { torchscript_set_training(self.module, train) })?;
            self.training.set(Some(train));
        }
        let output = output.map_or(std::ptr::null(), |output| output.as_ptr());
        let mut logits = std::ptr::null_mut();
        // SAFETY: module, images and output are alive during the call.
        checked(unsafe { torchscript_forward(self.module, images.as_ptr(), output, &raw mut logits) })?;
        // SAFETY: there was no error, so that `logits` is a new tensor without another owner.
        Ok(unsafe { Tensor::from_ptr(logits) })
    }
}

/// Sets the random numbers of a device back to where they were, when it is dropped.
pub(crate) struct RandomState {
    device: Device,
    state: Tensor,
}

impl RandomState {
    /// The present state.
    pub(crate) fn keep(device: Device) -> Result<Self> {
        let mut state = std::ptr::null_mut();
        // SAFETY: there is room for the answer.
        checked(unsafe { torchscript_random_state(index(device), &raw mut state) })?;
        // SAFETY: there was no error, so that `state` is a new tensor without another owner.
        Ok(Self { device, state: unsafe { Tensor::from_ptr(state) } })
    }
}

impl Drop for RandomState {
    fn drop(&mut self) {
        // SAFETY: the state is a tensor that this generator gave. It cannot refuse it.
        let _ = checked(unsafe { torchscript_set_random_state(index(self.device), self.state.as_ptr()) });
    }
}

/// The contents of a file with a network of two linear layers, whose weights are `first` `[hidden,
/// features]` and `second` `[classes, hidden]`.
pub(crate) fn example(first: &Tensor, second: &Tensor) -> Result<Vec<u8>> {
    extern "C" fn written(file: *mut c_void, bytes: *const c_char, length: usize) {
        // SAFETY: `file` is the vector below, and there are so many bytes.
        let (file, bytes) =
            unsafe { (&mut *file.cast::<Vec<u8>>(), std::slice::from_raw_parts(bytes.cast::<u8>(), length)) };
        file.extend_from_slice(bytes);
    }
    let mut file: Vec<u8> = Vec::new();
    // SAFETY: the tensors live during the call, and `written` gets the vector that it expects.
    checked(unsafe {
        torchscript_example(first.as_ptr(), second.as_ptr(), (&raw mut file).cast(), written)
    })?;
    Ok(file)
}
