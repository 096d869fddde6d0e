//! TorchScript: a network's forward pass as a file that PyTorch loads without the network's code.

use super::device::refusal;
use crate::{Error, Result};
use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use tch::Tensor;
use torch_sys::C_tensor;

type Forward = extern "C" fn(*mut c_void, *const C_tensor) -> *mut C_tensor;

unsafe extern "C" {
    fn host_trace(
        names: *const *const c_char,
        tensors: *const *const C_tensor,
        count: usize,
        images: *const C_tensor,
        forward: Forward,
        context: *mut c_void,
        file: *mut *mut C_tensor,
        fixed: *mut *const c_char,
    ) -> *const c_char;

    fn host_refill(
        bytes: *const c_char,
        length: usize,
        names: *const *const c_char,
        tensors: *const *const C_tensor,
        count: usize,
        file: *mut *mut C_tensor,
    ) -> *const c_char;
}

/// A traced network.
pub(crate) struct Traced {
    /// The bytes of its file.
    pub file: Vec<u8>,
    /// What is fixed in it and depends on the images with which it was traced: devices, dtypes,
    /// constant tensors.
    pub fixed: Vec<String>,
}

/// The names and handles of tensors, as C++ takes them.
struct Listed {
    names: Vec<CString>,
    tensors: Vec<*const C_tensor>,
}

impl Listed {
    fn new(state: &[(String, Tensor)]) -> Result<Self> {
        let names =
            state.iter().map(|(name, _)| CString::new(name.as_str())).collect::<std::result::Result<_, _>>();
        let names = names.map_err(|_| Error::new("a tensor's name has a zero byte"))?;
        Ok(Self { names, tensors: state.iter().map(|(_, tensor)| tensor.as_ptr()).collect() })
    }

    fn pointers(&self) -> Vec<*const c_char> {
        self.names.iter().map(|name| name.as_ptr()).collect()
    }
}

/// Traces `forward` at these images into a module that has `state` as its parameters (those that
/// need a gradient) and buffers. A name with dots is one of a module inside.
///
/// # Errors
/// That of `forward`, or that libtorch cannot trace it.
pub(crate) fn trace(
    state: &[(String, Tensor)],
    images: &Tensor,
    forward: impl FnMut(&Tensor) -> Result<Tensor>,
) -> Result<Traced> {
    /// What the callback is given, and leaves behind.
    struct Context<F> {
        forward: F,
        failure: Option<Error>,
    }

    extern "C" fn call<F: FnMut(&Tensor) -> Result<Tensor>>(
        context: *mut c_void,
        images: *const C_tensor,
    ) -> *mut C_tensor {
        // SAFETY: `trace` passes the address of its own context, which nothing else uses meanwhile.
        let context = unsafe { &mut *context.cast::<Context<F>>() };
        // SAFETY: the tensor lives during the call; this takes a reference of its own.
        let images = unsafe { Tensor::clone_from_ptr(images.cast_mut()) };
        let result = catch_unwind(AssertUnwindSafe(|| (context.forward)(&images)));
        let logits = result.unwrap_or_else(|_| Err(Error::new("the forward pass panicked")));
        match logits {
            // SAFETY: the tensor lives during the call. The copy of the handle is C++'s own.
            Ok(logits) => unsafe { torch_sys::at_shallow_clone(logits.as_ptr().cast_mut()) },
            Err(why) => {
                context.failure = Some(why);
                std::ptr::null_mut()
            }
        }
    }

    fn callback<F: FnMut(&Tensor) -> Result<Tensor>>(_: &Context<F>) -> Forward {
        call::<F>
    }

    let listed = Listed::new(state)?;
    let (names, mut file, mut fixed) = (listed.pointers(), std::ptr::null_mut(), std::ptr::null());
    let mut context = Context { forward, failure: None };
    let function = callback(&context);
    // SAFETY: names and tensors are as many as said and live during the call, as does the context,
    // which is of the type that the callback expects; the results are written if there is no error.
    let answer = unsafe {
        host_trace(
            names.as_ptr(),
            listed.tensors.as_ptr(),
            state.len(),
            images.as_ptr(),
            function,
            (&raw mut context).cast(),
            &raw mut file,
            &raw mut fixed,
        )
    };
    if let Some(why) = refusal(answer) {
        let untraceable = || Error::new(format!("libtorch cannot trace the network: {why}"));
        return Err(context.failure.unwrap_or_else(untraceable).on_the_way());
    }
    // SAFETY: without an error, `file` is a new handle, and `fixed` a string that is valid until this
    // thread's next call.
    let (file, fixed) = unsafe { (Tensor::from_ptr(file), CStr::from_ptr(fixed)) };
    let fixed = fixed.to_string_lossy().lines().map(str::to_owned).collect();
    Ok(Traced { file: super::tensors::bytes(&file)?, fixed })
}

/// The file of a TorchScript module with other values of the parameters and buffers named.
///
/// # Errors
/// If the bytes are no such file, or it has no tensor of a name, or one of another shape.
pub(crate) fn refill(bytes: &[u8], state: &[(String, Tensor)]) -> Result<Vec<u8>> {
    let listed = Listed::new(state)?;
    let (names, mut file) = (listed.pointers(), std::ptr::null_mut());
    // SAFETY: as in `trace`.
    let answer = unsafe {
        host_refill(
            bytes.as_ptr().cast(),
            bytes.len(),
            names.as_ptr(),
            listed.tensors.as_ptr(),
            state.len(),
            &raw mut file,
        )
    };
    match refusal(answer) {
        Some(why) => Err(Error::new(format!("libtorch cannot put the weights into the module: {why}"))),
        // SAFETY: without an error, this is a new handle.
        None => super::tensors::bytes(&unsafe { Tensor::from_ptr(file) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{CModule, Device, Kind};

    /// A weight in a module inside, and a buffer.
    fn state() -> Vec<(String, Tensor)> {
        let weight = Tensor::from_slice(&[1.0f32, 2.0, 3.0, -1.0]).reshape([2, 2]).set_requires_grad(true);
        vec![("layer.0.weight".to_owned(), weight), ("scale".to_owned(), Tensor::from_slice(&[2.0f32]))]
    }

    fn forward(state: &[(String, Tensor)], images: &Tensor) -> Tensor {
        images.matmul(&state[0].1.tr()) * &state[1].1
    }

    fn images(count: i64) -> Tensor {
        Tensor::arange(2 * count, (Kind::Float, Device::Cpu)).reshape([count, 2])
    }

    fn fixed(forward: impl Fn(&Tensor) -> Tensor) -> Vec<String> {
        tch::no_grad(|| trace(&state(), &images(2), |images| Ok(forward(images)))).expect("traced").fixed
    }

    #[test]
    fn a_traced_network_takes_any_batch_and_has_its_tensors() {
        let state = state();
        let traced = tch::no_grad(|| trace(&state, &images(2), |images| Ok(forward(&state, images))));
        let traced = traced.expect("traced");
        assert!(traced.fixed.is_empty(), "{:?}", traced.fixed);
        let module = CModule::load_data(&mut traced.file.as_slice()).expect("TorchScript");
        for count in [1, 2, 5] {
            let got = module.forward_ts(&[images(count)]).expect("logits");
            assert_eq!(got, forward(&state, &images(count)));
        }
        let named = module.named_parameters().expect("parameters");
        assert_eq!(named.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["layer.0.weight"]);
        assert!(named[0].1.requires_grad());
    }

    #[test]
    fn other_weights_are_put_into_a_file() {
        let state = state();
        let traced = tch::no_grad(|| trace(&state, &images(2), |images| Ok(forward(&state, images))));
        let file = traced.expect("traced").file;
        let other: Vec<_> =
            state.iter().map(|(name, tensor)| (name.clone(), tensor.detach() * 3.0)).collect();
        let refilled = refill(&file, &other).expect("refilled");
        let module = CModule::load_data(&mut refilled.as_slice()).expect("TorchScript");
        let got = module.forward_ts(&[images(3)]).expect("logits");
        assert_eq!(got, forward(&state, &images(3)) * 9.0);
        assert!(module.named_parameters().expect("parameters")[0].1.requires_grad());

        let refused = |state: &[(String, Tensor)]| refill(&file, state).expect_err("refused").to_string();
        let unknown = [("other".to_owned(), Tensor::zeros([2, 2], (Kind::Float, Device::Cpu)))];
        assert!(refused(&unknown).contains("no tensor of the name other"), "{}", refused(&unknown));
        let shape = [("scale".to_owned(), Tensor::zeros([3], (Kind::Float, Device::Cpu)))];
        assert!(refused(&shape).contains("scale has another shape"), "{}", refused(&shape));
        assert!(refill(b"no TorchScript", &[]).is_err());
    }

    #[test]
    fn what_a_network_fixes_is_found() {
        let constant = Tensor::from_slice(&[1.0f32, 2.0]);
        assert!(fixed(|images| images * 2.0).is_empty());
        assert!(fixed(|images| images * constant.type_as(images)).is_empty());
        assert_eq!(fixed(|images| images * &constant), ["a constant tensor in aten::mul"]);
        let dtype = fixed(|images| images.to_kind(Kind::Double).relu());
        assert!(dtype.iter().any(|found| found.starts_with("the dtype Double in ")), "{dtype:?}");
        let device = fixed(|images| images + Tensor::ones([2], (Kind::Float, Device::Cpu)));
        assert!(device.iter().any(|found| found.starts_with("the device cpu in ")), "{device:?}");
    }

    #[test]
    fn a_failure_of_the_network_is_the_error() {
        let failed = trace(&state(), &images(2), |_| Err(Error::new("no such layer"))).err().expect("failed");
        assert_eq!(failed.first_line(), "no such layer");
        let panicked = trace(&state(), &images(2), |_| panic!("at the disco")).err().expect("failed");
        assert_eq!(panicked.first_line(), "the forward pass panicked");
        // The next trace is not disturbed.
        assert!(fixed(|images| images * 2.0).is_empty());
    }
}
