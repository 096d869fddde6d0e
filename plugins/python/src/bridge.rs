//! CPython in this process, and calls of its side of the bridge, `bridge.py`.
//!
//! Few functions of CPython are used, to start it. Everything else goes through one C function that
//! `bridge.py` makes with ctypes, [`Start::dispatch`], which takes Python's global lock itself.
//! Python's torch is the host's libtorch, so that an `at::Tensor*` of one side is valid on the other.

use crate::Options;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use plugin_api::python::interpreter;
use plugin_api::tch::Tensor;
use plugin_api::{Error, Evaluation, Random, Result, Step, Target, Task, ThreatModel, Victim, first_line};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;
use std::{env, fs, thread};

/// Python's side.
const BRIDGE: &str = include_str!("bridge.py");

/// The variable of the environment with the seconds that a file may take to load.
const SECONDS_VARIABLE: &str = "DRO_PYTHON_SECONDS";

/// Seconds that a file may take to load and make its object, unless the variable says otherwise.
const SECONDS: u64 = 120;

/// The calls, in the order of `CALLS` in bridge.py.
#[derive(Debug, Clone, Copy)]
pub enum Method {
    Create,
    Forward,
    Move,
    Run,
    Supports,
    Drop,
    Where,
}

/// The functions by which the two sides call each other, in the order of `Start` in bridge.py.
#[repr(C)]
struct Start {
    give: extern "C" fn(*mut c_void, *const c_void),
    answer: extern "C" fn(*mut c_void, *const c_char, usize),
    fail: extern "C" fn(*mut c_void, *const c_char, usize),
    ask: extern "C" fn(
        *mut c_void,
        c_int,
        i64,
        *const *const c_void,
        usize,
        *mut *const c_void,
    ) -> *const c_char,
    forget: extern "C" fn(*mut c_void, i64),
    /// Set by bridge.py.
    dispatch: Option<Dispatch>,
}

/// Method, object, text, tensors and their number, call. The result is 0, or 1 after an error.
type Dispatch = extern "C" fn(c_int, i64, *const c_char, *const *const c_void, usize, *mut c_void) -> c_int;

/// A call: what Python's side asks for and answers.
struct Call<'a> {
    host: Option<&'a Host<'a>>,
    tensors: Vec<Tensor>,
    text: String,
    error: Option<String>,
    /// The last answer, whose address Python has until it has made a tensor of its own.
    lent: Option<Box<Tensor>>,
    /// Evaluations of the victim by number, until Python needs them no more.
    evaluations: Vec<Option<Evaluation<'a>>>,
    refusal: CString,
}

impl<'a> Call<'a> {
    fn new(host: Option<&'a Host<'a>>) -> Self {
        let (tensors, text, error, lent, evaluations, refusal) = Default::default();
        Self { host, tensors, text, error, lent, evaluations, refusal }
    }
}

/// What Python may ask the host for during a call.
pub struct Host<'a> {
    threat: ThreatModel,
    random: Random<'a>,
    victim: Option<Victim<'a>>,
}

impl<'a> Host<'a> {
    /// The host's side of a step.
    pub fn of_step(step: &Step<'a>) -> Self {
        Self { threat: step.threat, random: step.random, victim: None }
    }

    /// The host's side of an attack.
    pub fn of_attack(target: &Target<'a>) -> Self {
        Self { threat: target.threat, random: target.random, victim: Some(target.victim) }
    }
}

/// What Python answered.
pub struct Answer {
    /// Its tensors.
    pub tensors: Vec<Tensor>,
    text: String,
}

impl Answer {
    /// The one tensor that was expected.
    ///
    /// # Errors
    /// If there is none.
    pub fn one(self) -> Result<Tensor> {
        self.tensors.into_iter().next().ok_or_else(|| Error::new("returned nothing"))
    }
}

/// An object of a class of the user.
pub struct Object {
    number: i64,
}

impl Object {
    /// The object with this number, which nobody else has.
    pub fn new(number: i64) -> Self {
        Self { number }
    }

    /// Calls a method of the object.
    ///
    /// # Errors
    /// The error in Python, in one line with file and line number.
    pub fn call<'a>(
        &self,
        method: Method,
        text: &str,
        tensors: &[&Tensor],
        host: Option<&'a Host<'a>>,
    ) -> Result<Answer> {
        call(dispatch()?, method, self.number, text, tensors, host)
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // An object whose destructor fails is gone all the same.
        let _ = self.call(Method::Drop, "", &[], None);
    }
}

/// Makes an object of a class of the user. Returns what Python tells of it, and its tensors.
///
/// # Errors
/// If there is no Python with the host's libtorch, or the file or the class cannot be used.
pub fn create<T: DeserializeOwned>(
    kind: &str,
    options: &Options,
    further: Value,
    tensors: &[&Tensor],
) -> Result<(T, Vec<Tensor>)> {
    let Options { file, class, others } = options;
    if file.is_empty() {
        return Err(Error::new("the option `file` is missing: give file=MY_FILE.py"));
    }
    let mut values = json!({"kind": kind, "file": file, "class": class, "options": others});
    if let (Some(values), Value::Object(further)) = (values.as_object_mut(), further) {
        values.extend(further);
    }
    let dispatch = dispatch()?;
    let answer =
        watched(file, dispatch, || call(dispatch, Method::Create, 0, &values.to_string(), tensors, None))?;
    let told = serde_json::from_str(&answer.text)
        .map_err(|why| Error::new(format!("what the class declares cannot be used: {why}")))?;
    Ok((told, answer.tensors))
}

/// A task as Python's side takes it.
pub fn task(task: Task) -> Value {
    let Task { channels, height, width, classes } = task;
    json!({"channels": channels, "height": height, "width": width, "classes": classes})
}

fn call<'a>(
    dispatch: Dispatch,
    method: Method,
    object: i64,
    text: &str,
    tensors: &[&Tensor],
    host: Option<&'a Host<'a>>,
) -> Result<Answer> {
    let text = CString::new(text).map_err(Error::new)?;
    let pointers: Vec<_> = tensors.iter().map(|tensor| tensor.as_ptr() as *const c_void).collect();
    let mut call = Call::new(host);
    let code = dispatch(
        method as c_int,
        object,
        text.as_ptr(),
        pointers.as_ptr(),
        pointers.len(),
        (&raw mut call).cast(),
    );
    match (code, call.error) {
        (0, None) => Ok(Answer { tensors: call.tensors, text: call.text }),
        (_, Some(error)) => Err(Error::new(error)),
        (code, None) => Err(Error::new(format!("Python ended the call with code {code} and no message"))),
    }
}

/// Runs a call that loads a file, and ends the process if it takes too long: nothing else can stop
/// code that waits for ever inside this process, and no work has begun yet.
fn watched<T>(file: &str, dispatch: Dispatch, run: impl FnOnce() -> T) -> T {
    let given = env::var(SECONDS_VARIABLE).ok().and_then(|seconds| seconds.parse().ok());
    let limit = given.unwrap_or(SECONDS);
    let (ended, watch) = channel::<()>();
    let name = Path::new(file).file_name().unwrap_or_default().display().to_string();
    thread::spawn(move || {
        if watch.recv_timeout(Duration::from_secs(limit)) != Err(RecvTimeoutError::Timeout) {
            return;
        }
        let (tell, told) = channel();
        thread::spawn(move || tell.send(call(dispatch, Method::Where, 0, "", &[], None)));
        let at = told.recv_timeout(Duration::from_secs(5)).ok().and_then(Result::ok);
        let at = at.and_then(|answer| serde_json::from_str::<Value>(&answer.text).ok());
        let at = at.and_then(|at| at["at"].as_str().map(str::to_owned)).filter(|at| !at.is_empty());
        eprintln!(
            "error: {name} did not load within {limit} s; it is at {}\n  fix      find out what it waits \
             for, or set {SECONDS_VARIABLE} to more seconds",
            at.unwrap_or_else(|| "a place that cannot be seen".to_owned())
        );
        // SAFETY: ends the process at once. Nothing is written yet that could be lost.
        unsafe { libc::_exit(2) }
    });
    let result = run();
    drop(ended);
    result
}

// ------------------------------------------------------------------- what bridge.py calls

/// # Safety
/// `call` is the pointer that was passed to `dispatch`, which has not returned.
unsafe fn of_pointer<'a>(call: *mut c_void) -> &'a mut Call<'a> {
    // SAFETY: the caller's promise; one thread at a time runs a call.
    unsafe { &mut *call.cast() }
}

/// A new reference to the tensor that Python names.
///
/// # Safety
/// `place` holds the address of a live `TensorImpl`.
unsafe fn tensor_at(place: *const *const c_void) -> Tensor {
    // SAFETY: an `at::Tensor` is one pointer to a `TensorImpl`, so that `place` can be read as one.
    // `clone_from_ptr` takes a new reference and does not change the given one.
    unsafe { Tensor::clone_from_ptr(place as *mut _) }
}

extern "C" fn give(call: *mut c_void, tensor: *const c_void) {
    // SAFETY: bridge.py passes its call, and the `_cdata` of a tensor that it holds.
    unsafe { of_pointer(call).tensors.push(tensor_at(&raw const tensor)) }
}

/// # Safety
/// `text` has `length` bytes.
unsafe fn read(text: *const c_char, length: usize) -> String {
    // SAFETY: the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts(text.cast(), length) };
    String::from_utf8_lossy(bytes).into_owned()
}

extern "C" fn answer(call: *mut c_void, text: *const c_char, length: usize) {
    // SAFETY: bridge.py passes its call, and the bytes of a text with their number.
    unsafe { of_pointer(call).text = read(text, length) }
}

extern "C" fn fail(call: *mut c_void, text: *const c_char, length: usize) {
    // SAFETY: as for `answer`.
    unsafe { of_pointer(call).error = Some(read(text, length)) }
}

extern "C" fn forget(call: *mut c_void, number: i64) {
    // SAFETY: bridge.py passes its call, which has not returned.
    let call = unsafe { of_pointer(call) };
    let number = usize::try_from(number).unwrap_or(usize::MAX);
    if let Some(evaluation) = call.evaluations.get_mut(number) {
        *evaluation = None;
    }
}

/// What Python may ask for, in the order of bridge.py.
const ASKED: [Asked; 10] = [
    Asked::Normal,
    Asked::Uniform,
    Asked::Logits,
    Asked::TrackedLogits,
    Asked::Gradient,
    Asked::Project,
    Asked::RandomStart,
    Asked::SteepestAscent,
    Asked::Distance,
    Asked::Contains,
];

#[derive(Clone, Copy)]
enum Asked {
    Normal,
    Uniform,
    Logits,
    TrackedLogits,
    Gradient,
    Project,
    RandomStart,
    SteepestAscent,
    Distance,
    Contains,
}

extern "C" fn ask(
    pointer: *mut c_void,
    what: c_int,
    number: i64,
    tensors: *const *const c_void,
    count: usize,
    answer: *mut *const c_void,
) -> *const c_char {
    // SAFETY: bridge.py passes its call, an array with the `_cdata` of `count` tensors, and a place
    // for an address.
    let (call, given) = unsafe {
        let given: Vec<_> = (0..count).map(|index| tensor_at(tensors.add(index))).collect();
        (of_pointer(pointer), given)
    };
    let asked = usize::try_from(what).ok().and_then(|what| ASKED.get(what).copied());
    let answered =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| answered(call, asked, number, &given)));
    let refusal = match answered {
        Ok(Ok(tensor)) => {
            let tensor = Box::new(tensor);
            // SAFETY: as above. The tensor is lent until Python asks again.
            unsafe { *answer = tensor.as_ptr() as *const c_void }
            call.lent = Some(tensor);
            return std::ptr::null();
        }
        Ok(Err(error)) => error.to_string(),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str).unwrap_or("it panicked");
            first_line(said).to_owned()
        }
    };
    call.refusal = CString::new(refusal.replace('\0', " ")).unwrap_or_default();
    call.refusal.as_ptr()
}

fn answered(call: &mut Call, asked: Option<Asked>, number: i64, given: &[Tensor]) -> Result<Tensor> {
    let outside = || Error::new("asked the host for something outside a step or an attack");
    let host = call.host.ok_or_else(outside)?;
    let (Some(asked), [tensor, others @ ..]) = (asked, given) else { return Err(outside()) };
    let other = || others.first().ok_or_else(outside);
    match asked {
        Asked::Normal => host.random.normal(tensor),
        Asked::Uniform => host.random.uniform(tensor),
        Asked::Logits => host.victim.ok_or_else(outside)?.logits(tensor),
        Asked::TrackedLogits => {
            let evaluation = host.victim.ok_or_else(outside)?.forward(tensor)?;
            let logits = evaluation.tracked_logits();
            call.evaluations.push(Some(evaluation));
            Ok(logits)
        }
        Asked::Gradient => {
            let evaluation =
                usize::try_from(number).ok().and_then(|number| call.evaluations.get(number)?.as_ref());
            evaluation.ok_or_else(outside)?.gradient_of(tensor)
        }
        Asked::Project => Ok(host.threat.project(tensor, other()?)),
        Asked::RandomStart => host.threat.random_start(tensor, &host.random),
        Asked::SteepestAscent => Ok(host.threat.steepest_ascent(tensor)),
        Asked::Distance => Ok(host.threat.distance(tensor, other()?)),
        Asked::Contains => Ok(host.threat.contains(tensor, other()?)),
    }
}

// ------------------------------------------------------------------------- starting Python

/// Python's side of the bridge. Python is started by the first call and runs as long as the
/// process: it cannot be started twice, also after a failure.
fn dispatch() -> Result<Dispatch> {
    static STARTED: OnceLock<Result<Dispatch>> = OnceLock::new();
    static STARTING: Mutex<()> = Mutex::new(());
    let _lock = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    STARTED.get_or_init(start).clone()
}

fn start() -> Result<Dispatch> {
    let python = interpreter()?;
    let program = python.program.display().to_string();
    python.check_torch()?;
    let library = python.library.as_ref().ok_or_else(|| {
        Error::new(format!(
            "{program} (Python {}) was built without a shared library; expected one that can be embedded \
             (--enable-shared), as those of Linux distributions, pyenv and conda",
            python.version
        ))
    })?;
    // Python keeps its address.
    let start = Box::leak(Box::new(Start { give, answer, fail, ask, forget, dispatch: None }));
    // SAFETY: extension modules take the symbols of libpython from the whole process, so it is opened
    // globally, and never closed. The functions have had these types in every version of Python 3.
    // `Py_DecodeLocale` allocates a string that lives as long as the process, as `Py_SetProgramName`
    // needs it. `PyRun_SimpleString` runs text of this plugin, which takes `start` by its address;
    // `start` stays where it is. The thread state is released at the end, so that any thread can take
    // the lock.
    unsafe {
        let opened = Library::open(Some(library), RTLD_NOW | RTLD_GLOBAL)
            .map_err(|why| Error::new(format!("{} cannot be opened: {why}", library.display())))?;
        let opened: &'static Library = Box::leak(Box::new(opened));
        let missing = |why| Error::new(format!("{} is not as expected: {why}", library.display()));
        let decode = opened
            .get::<unsafe extern "C" fn(*const c_char, *mut usize) -> *mut c_void>(b"Py_DecodeLocale\0")
            .map_err(missing)?;
        let set_name =
            opened.get::<unsafe extern "C" fn(*mut c_void)>(b"Py_SetProgramName\0").map_err(missing)?;
        let initialize = opened.get::<unsafe extern "C" fn(c_int)>(b"Py_InitializeEx\0").map_err(missing)?;
        let run = opened
            .get::<unsafe extern "C" fn(*const c_char) -> c_int>(b"PyRun_SimpleString\0")
            .map_err(missing)?;
        let release =
            opened.get::<unsafe extern "C" fn() -> *mut c_void>(b"PyEval_SaveThread\0").map_err(missing)?;
        let is_running =
            opened.get::<unsafe extern "C" fn() -> c_int>(b"Py_IsInitialized\0").map_err(missing)?;
        let lock = opened.get::<unsafe extern "C" fn() -> c_int>(b"PyGILState_Ensure\0").map_err(missing)?;
        let unlock = opened.get::<unsafe extern "C" fn(c_int)>(b"PyGILState_Release\0").map_err(missing)?;
        let text = text_of_bridge((&raw mut *start).addr())?;
        let handlers = handlers_of_signals();
        if is_running() == 0 {
            let name = CString::new(program.clone()).map_err(Error::new)?;
            set_name(decode(name.as_ptr(), std::ptr::null_mut()));
            initialize(0);
            run(text.as_ptr());
            release();
        } else {
            // Another copy of this library has started Python.
            let state = lock();
            run(text.as_ptr());
            unlock(state);
        }
        restore_handlers(&handlers);
    }
    let dispatch = start.dispatch.ok_or_else(|| {
        Error::new(format!("the Python of {program} cannot import torch; it printed why above"))
    })?;
    check_one_libtorch()?;
    Ok(dispatch)
}

/// Python text that runs bridge.py in a module of its own.
fn text_of_bridge(address: usize) -> Result<CString> {
    // A string of JSON in ASCII is one of Python, too.
    let bridge = serde_json::to_string(BRIDGE).map_err(Error::new)?;
    let name = format!("dro_bridge_{address:x}");
    let text = format!(
        "import sys, types\n{name} = sys.modules['{name}'] = types.ModuleType('{name}')\n\
         {name}.address = {address}\nexec(compile({bridge}, 'bridge.py', 'exec'), vars({name}))"
    );
    CString::new(text).map_err(Error::new)
}

/// What happens on each signal.
fn handlers_of_signals() -> Vec<(c_int, libc::sigaction)> {
    let handler = |signal| {
        let mut action = std::mem::MaybeUninit::zeroed();
        // SAFETY: without a new action, the call only writes the present one.
        let asked = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
        // SAFETY: zeros are a valid action, and the call has written another one.
        (asked == 0).then(|| (signal, unsafe { action.assume_init() }))
    };
    (1..libc::SIGRTMIN()).filter_map(handler).collect()
}

/// Gives signals their handlers back: `signal`, which torch imports, takes that of Ctrl-C.
fn restore_handlers(handlers: &[(c_int, libc::sigaction)]) {
    for (signal, action) in handlers {
        // SAFETY: the action is one that this process had before.
        unsafe { libc::sigaction(*signal, action, std::ptr::null_mut()) };
    }
}

/// Refuses a second libtorch in this process: each would have its own tensors, and a crash would
/// follow.
fn check_one_libtorch() -> Result<()> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let paths = maps.lines().filter_map(|line| line.get(line.find('/')?..));
    let mut found: Vec<_> = paths.filter(|path| path.ends_with("/libtorch_cpu.so")).collect();
    found.dedup();
    match found.as_slice() {
        [one, other, ..] => Err(Error::new(format!(
            "Python opened a second libtorch, {other}, beside the host's, {one}; expected one (`make python` \
             sets such an environment up)"
        ))),
        _ => Ok(()),
    }
}
