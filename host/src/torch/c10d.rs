//! Processes that work on one run together, by libtorch's own c10d: a store of keys that all of them
//! see, sums over all of them (Gloo; NCCL on GPUs), and gradients that are summed while the backward
//! pass still runs.

use super::device::refusal;
use super::nccl::Nccl;
use crate::util::pulse;
use crate::{Error, Result};
use std::cell::Cell;
use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::time::Duration;
use tch::Tensor;
use torch_sys::C_tensor;

unsafe extern "C" {
    fn host_has_groups() -> bool;
    fn host_store_open(
        address: *const c_char,
        port: u16,
        serves: bool,
        milliseconds: i64,
        opened: *mut *mut c_void,
    ) -> *const c_char;
    fn host_store_close(store: *mut c_void);
    fn host_store_set(
        store: *mut c_void,
        key: *const c_char,
        bytes: *const u8,
        length: usize,
    ) -> *const c_char;
    fn host_store_get(
        store: *mut c_void,
        key: *const c_char,
        bytes: *mut *const u8,
        length: *mut usize,
    ) -> *const c_char;
    fn host_group_open(
        store: *mut c_void,
        prefix: *const c_char,
        rank: c_int,
        size: c_int,
        milliseconds: i64,
        interfaces: *const c_char,
        address: *const c_char,
        opened: *mut *mut c_void,
    ) -> *const c_char;
    fn host_group_shut_down(group: *mut c_void) -> *const c_char;
    fn host_sum_begin(group: *mut c_void, tensor: *mut C_tensor, begun: *mut *mut c_void) -> *const c_char;
    fn host_sum_wait(sum: *mut c_void) -> *const c_char;
    fn host_reducer_open(
        group: *mut c_void,
        parameters: *const *mut C_tensor,
        count: usize,
        first_bytes: usize,
        other_bytes: usize,
        opened: *mut *mut c_void,
    ) -> *const c_char;
    fn host_reducer_close(reducer: *mut c_void);
    fn host_reducer_gradients(
        reducer: *mut c_void,
        loss: *mut C_tensor,
        leaf: *mut C_tensor,
        gradients: *mut *mut C_tensor,
        of_leaf: *mut *mut C_tensor,
        waited: *mut f64,
        waits: *mut u8,
    ) -> *const c_char;
}

/// The bucket of the last layers, whose gradients come first: communication begins early.
const FIRST_BUCKET: usize = 1 << 20;

/// The other buckets, as in PyTorch's DistributedDataParallel.
const OTHER_BUCKETS: usize = 25 << 20;

/// The longest wait for another process inside one operation. A process that is gone or does not
/// move is found otherwise, and much earlier.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// Whether this program was built with Gloo.
pub(crate) fn has_groups() -> bool {
    // SAFETY: the function only returns a constant.
    unsafe { host_has_groups() }
}

/// An error of libtorch's, by what was to be done.
fn checked(what: &str, message: *const c_char) -> Result<()> {
    match refusal(message) {
        None => Ok(()),
        Some(why) => Err(Error::new(format!("cannot {what}: {why}")).on_the_way()),
    }
}

fn text(value: &str) -> Result<CString> {
    CString::new(value).map_err(|_| Error::new("a name has a zero byte"))
}

/// Keys with values that all processes see. One process serves them.
pub(crate) struct Store {
    store: NonNull<c_void>,
    /// Before every key.
    prefix: String,
}

// SAFETY: libtorch's TCPStore guards every operation with a mutex of its own.
unsafe impl Send for Store {}
// SAFETY: the same.
unsafe impl Sync for Store {}

impl Store {
    /// Connects to the store at this address, or serves it there and connects to it. Its keys begin
    /// with `prefix`.
    ///
    /// # Errors
    /// If the port is in use, or nothing answers there for as long as `patience`.
    pub fn open(
        (address, port): (&str, u16),
        serves: bool,
        patience: Duration,
        prefix: String,
    ) -> Result<Self> {
        let (address, mut opened) = (text(address)?, ptr::null_mut());
        let milliseconds = patience.as_millis() as i64;
        // SAFETY: the text outlives the call, and there is room for the answer.
        let message =
            unsafe { host_store_open(address.as_ptr(), port, serves, milliseconds, &raw mut opened) };
        let verb = if serves { "serve" } else { "reach" };
        if let Some(why) = refusal(message) {
            let why = plugin_api::first_line(&why).to_owned();
            return Err(Error::new(format!(
                "cannot {verb} port {port} of {}: {why}",
                address.to_string_lossy()
            )));
        }
        let store = NonNull::new(opened).ok_or_else(|| Error::new("c10d gave no store"))?;
        Ok(Self { store, prefix })
    }

    /// Sets a key.
    ///
    /// # Errors
    /// If the process that serves the store is gone.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        let key = text(&format!("{}{key}", self.prefix))?;
        // SAFETY: the store is open, and key and value outlive the call, which copies them.
        let message =
            unsafe { host_store_set(self.store.as_ptr(), key.as_ptr(), value.as_ptr(), value.len()) };
        checked("tell the other processes", message)
    }

    /// The value of a key; none if it is not set.
    ///
    /// # Errors
    /// If the process that serves the store is gone.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let (key, mut bytes, mut length) = (text(&format!("{}{key}", self.prefix))?, ptr::null(), 0);
        // SAFETY: the store is open, the key outlives the call, and there is room for the answers.
        let message =
            unsafe { host_store_get(self.store.as_ptr(), key.as_ptr(), &raw mut bytes, &raw mut length) };
        checked("ask the other processes", message)?;
        if bytes.is_null() {
            return Ok(None);
        }
        // SAFETY: the memory holds `length` bytes and is valid until this thread's next call.
        Ok(Some(unsafe { std::slice::from_raw_parts(bytes, length) }.to_vec()))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: the store is open, and nothing uses it any more.
        unsafe { host_store_close(self.store.as_ptr()) };
    }
}

/// Where the members of a group reach each other.
pub(crate) enum Meeting<'a> {
    /// At the addresses of these network interfaces, separated by commas.
    Interfaces(&'a str),
    /// At this address.
    Address(&'a str),
}

/// Processes that sum tensors. All of them begin the same sums in the same order.
pub(crate) struct Group {
    group: NonNull<c_void>,
}

// SAFETY: a group may be used from any thread, by one thread at a time; it is not shared.
unsafe impl Send for Group {}

impl Group {
    /// Joins the group of this store as number `rank` of `size`.
    ///
    /// # Errors
    /// If the others cannot be reached.
    pub fn open(store: &Store, (rank, size): (usize, usize), meeting: Meeting<'_>) -> Result<Self> {
        let name = text(&format!("{}group", store.prefix))?;
        let (interfaces, address) = match meeting {
            Meeting::Interfaces(interfaces) => (Some(text(interfaces)?), None),
            Meeting::Address(address) => (None, Some(text(address)?)),
        };
        let pointer = |text: &Option<CString>| text.as_ref().map_or(ptr::null(), |text| text.as_ptr());
        let (milliseconds, mut opened) = (LONGEST_WAIT.as_millis() as i64, ptr::null_mut());
        // SAFETY: the store is open, the texts outlive the call, and there is room for the answer.
        // The group keeps what it needs of the store alive.
        let message = unsafe {
            host_group_open(
                store.store.as_ptr(),
                name.as_ptr(),
                rank as c_int,
                size as c_int,
                milliseconds,
                pointer(&interfaces),
                pointer(&address),
                &raw mut opened,
            )
        };
        checked("join the other processes", message)?;
        let group = NonNull::new(opened).ok_or_else(|| Error::new("c10d gave no group"))?;
        Ok(Self { group })
    }

    /// Joins the group of this store whose members sum through NCCL, each on a GPU of its own.
    ///
    /// # Errors
    /// If there is no GPU.
    pub fn open_nccl(store: &Store, place: (usize, usize), nccl: Nccl) -> Result<Self> {
        let (name, milliseconds) = (text(&format!("{}nccl", store.prefix))?, LONGEST_WAIT.as_millis() as i64);
        // SAFETY: the store is open, and both outlive the call.
        let opened = unsafe { nccl.open(store.store.as_ptr(), name.as_ptr(), place, milliseconds) };
        let opened = opened.map_err(|why| {
            let why = plugin_api::first_line(&why).to_owned();
            Error::new(format!("cannot join the other processes through NCCL: {why}")).on_the_way()
        })?;
        let group = NonNull::new(opened).ok_or_else(|| Error::new("c10d gave no group"))?;
        Ok(Self { group })
    }

    /// Ends its threads. It must not be used any more.
    pub fn shut_down(&self) {
        // SAFETY: the group is open. An error would come too late for anything.
        let _ = refusal(unsafe { host_group_shut_down(self.group.as_ptr()) });
    }

    /// Begins to sum a tensor over all processes, in place. It must not be used until the sum is
    /// done.
    ///
    /// # Errors
    /// If libtorch refuses.
    pub fn begin_sum(&self, tensor: Tensor) -> Result<Sum> {
        let mut begun = ptr::null_mut();
        // SAFETY: the group is open; the call takes a reference of its own to the tensor.
        let message =
            unsafe { host_sum_begin(self.group.as_ptr(), tensor.as_ptr().cast_mut(), &raw mut begun) };
        checked("sum over the processes", message)?;
        let sum = NonNull::new(begun).ok_or_else(|| Error::new("c10d began no sum"))?;
        Ok(Sum { sum, tensor })
    }

    /// Sums the gradients of these parameters from now on.
    ///
    /// # Errors
    /// If libtorch refuses.
    pub fn reducer(&self, parameters: &[Tensor]) -> Result<Reducer> {
        let handles: Vec<_> = parameters.iter().map(|tensor| tensor.as_ptr().cast_mut()).collect();
        let mut opened = ptr::null_mut();
        // SAFETY: the group is open; the call takes references of its own to group and tensors.
        let message = unsafe {
            host_reducer_open(
                self.group.as_ptr(),
                handles.as_ptr(),
                handles.len(),
                FIRST_BUCKET,
                OTHER_BUCKETS,
                &raw mut opened,
            )
        };
        checked("sum gradients over the processes", message)?;
        let reducer = NonNull::new(opened).ok_or_else(|| Error::new("c10d gave no reducer"))?;
        Ok(Reducer { reducer, count: parameters.len(), waited: Cell::default() })
    }
}

// A group is not closed: its destructor would wait for processes that may be gone. It ends with the
// process.

/// A sum that has begun.
pub(crate) struct Sum {
    sum: NonNull<c_void>,
    tensor: Tensor,
}

impl Sum {
    /// Waits for the sum.
    ///
    /// # Errors
    /// If another process is gone.
    pub fn wait(self) -> Result<Tensor> {
        // SAFETY: the sum has begun, and is waited for once: the call frees it.
        checked("sum over the processes", unsafe { host_sum_wait(self.sum.as_ptr()) })?;
        Ok(self.tensor)
    }
}

/// Sums gradients over all processes.
pub(crate) struct Reducer {
    reducer: NonNull<c_void>,
    count: usize,
    /// Seconds after backward passes in which this process waited for sums.
    waited: Cell<f64>,
}

impl Reducer {
    /// The gradients of a scalar loss, by one backward pass: with respect to the parameters, summed
    /// over all processes, and with respect to `leaf`, of this process alone. Sums begin while the
    /// backward pass still runs. Without a loss, this process adds zeros. The gradients of
    /// parameters are valid until the next call, which overwrites their memory.
    ///
    /// # Errors
    /// If the loss has no graph, or another process is gone.
    pub fn gradients(
        &self,
        loss: Option<&Tensor>,
        leaf: Option<&Tensor>,
    ) -> Result<(Vec<Tensor>, Option<Tensor>)> {
        let handle =
            |tensor: Option<&Tensor>| tensor.map_or(ptr::null_mut(), |tensor| tensor.as_ptr().cast_mut());
        let mut gradients = vec![ptr::null_mut(); self.count];
        let (mut of_leaf, mut waited) = (ptr::null_mut(), 0.0);
        // SAFETY: the reducer is open, the tensors outlive the call, and there is room for as many
        // gradients as it has parameters. The flag is one byte, 0 or 1, and written atomically.
        let message = unsafe {
            host_reducer_gradients(
                self.reducer.as_ptr(),
                handle(loss),
                handle(leaf),
                gradients.as_mut_ptr(),
                &raw mut of_leaf,
                &raw mut waited,
                pulse::WAITS.as_ptr().cast(),
            )
        };
        checked("sum gradients over the processes", message)?;
        self.waited.set(self.waited.get() + waited);
        // SAFETY: after success these are new handles, which nobody else owns.
        let owned = |handle| unsafe { Tensor::from_ptr(handle) };
        let of_leaf = (!of_leaf.is_null()).then(|| owned(of_leaf));
        Ok((gradients.into_iter().map(owned).collect(), of_leaf))
    }

    /// Seconds in which this process waited for sums of gradients after its backward passes, since
    /// the last call.
    pub fn take_waited(&self) -> f64 {
        self.waited.take()
    }
}

impl Drop for Reducer {
    fn drop(&mut self) {
        // SAFETY: the reducer is open, and nothing uses it any more.
        unsafe { host_reducer_close(self.reducer.as_ptr()) };
    }
}
