//! Which tensor is which: what two handles share, and whether a tensor was written to.

use crate::torch::device::refusal;
use crate::{Error, Result};
use std::ffi::{c_char, c_void};
use tch::Tensor;
use torch_sys::C_tensor;

/// What tells a tensor from another one, and changes if it is written to. Mirrors `HostIdentity` in
/// libtorch.cpp.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The tensor itself: equal for two handles of one tensor, different for a view of it.
    pub tensor: *const c_void,
    /// The address of its first element.
    pub data: *const c_void,
    /// Rises with every operation that writes to the tensor, to a view of it or to a detached
    /// handle of it.
    pub version: i64,
    /// How many tensors, views and saved results of autograd keep its memory alive.
    pub storage_users: u64,
    /// Whether libtorch records operations on it.
    pub requires_grad: bool,
}

unsafe extern "C" {
    fn host_identity(tensor: *const C_tensor, found: *mut Identity) -> *const c_char;
}

impl Identity {
    /// Of this tensor. It reads no memory of the tensor and does not wait for its device.
    ///
    /// # Errors
    /// If libtorch does not answer.
    pub fn of(tensor: &Tensor) -> Result<Self> {
        let mut found = std::mem::MaybeUninit::<Self>::uninit();
        // SAFETY: the tensor lives during the call, and `found` is a `HostIdentity` that the function
        // may write.
        match refusal(unsafe { host_identity(tensor.as_ptr(), found.as_mut_ptr()) }) {
            // SAFETY: the function returned no error, so that it wrote all fields.
            None => Ok(unsafe { found.assume_init() }),
            Some(why) => Err(Error::new(format!("libtorch cannot identify a tensor: {why}")).on_the_way()),
        }
    }

    /// Whether this tensor, identified again later, is the same with the same contents. A write that
    /// goes around libtorch, through the address of the memory, is not seen.
    pub fn is_unchanged(&self, later: &Self) -> bool {
        let Self { tensor, data, version, requires_grad, .. } = *self;
        (tensor, data, version, requires_grad)
            == (later.tensor, later.data, later.version, later.requires_grad)
    }
}

/// The addresses that a tensor with storage occupies: from its first element to behind its last.
///
/// # Errors
/// If libtorch does not answer.
pub(crate) fn extent(tensor: &Tensor) -> Result<std::ops::Range<usize>> {
    let start = Identity::of(tensor)?.data as usize;
    if tensor.numel() == 0 {
        return Ok(start..start);
    }
    let (size, stride) = (tensor.size(), tensor.stride());
    let last: i64 = size.iter().zip(&stride).map(|(size, stride)| (size - 1) * stride).sum();
    Ok(start..start + (last as usize + 1) * tensor.kind().elt_size_in_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn is_noticed(change: impl FnOnce(&Tensor)) -> bool {
        let tensor = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        let before = Identity::of(&tensor).expect("identified");
        change(&tensor);
        !before.is_unchanged(&Identity::of(&tensor).expect("identified"))
    }

    #[test]
    fn every_write_through_libtorch_is_noticed_and_a_read_is_not() {
        assert!(!is_noticed(|tensor| drop(tensor + 1.0)));
        assert!(!is_noticed(|tensor| drop(tensor.copy())));
        assert!(is_noticed(|tensor| drop(tensor.shallow_clone().fill_(1.0))));
        assert!(is_noticed(|tensor| drop(tensor.detach().fill_(1.0))));
        assert!(is_noticed(|tensor| drop(tensor.view([6]).narrow(0, 5, 1).fill_(1.0))));
        assert!(is_noticed(|tensor| tensor.shallow_clone().set_data(&tensor.copy())));
        assert!(is_noticed(|tensor| drop(tensor.set_requires_grad(true))));
    }

    #[test]
    fn handles_of_a_tensor_are_one_and_a_view_is_another_user_of_its_storage() {
        let tensor = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        let identity = || Identity::of(&tensor).expect("identified");
        assert_eq!(identity().storage_users, 1);
        let handle = tensor.shallow_clone();
        assert_eq!(identity(), Identity::of(&handle).expect("identified"));
        let view = tensor.transpose(0, 1);
        assert_ne!(identity().tensor, Identity::of(&view).expect("identified").tensor);
        assert_eq!(identity().storage_users, 2);
        drop(view);
        assert_eq!(identity().storage_users, 1);
    }

    #[test]
    fn an_extent_covers_all_elements() {
        let tensor = Tensor::zeros([4, 3], (Kind::Float, Device::Cpu));
        let whole = extent(&tensor).expect("an extent");
        assert_eq!(whole.len(), 48);
        let row = extent(&tensor.select(0, 1)).expect("an extent");
        assert_eq!((row.start - whole.start, row.len()), (12, 12));
        let column = extent(&tensor.select(1, 2)).expect("an extent");
        assert_eq!((column.start - whole.start, column.end), (8, whole.end));
        assert!(extent(&tensor.narrow(0, 0, 0)).expect("an extent").is_empty());
    }
}
