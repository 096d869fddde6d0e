//! The boundary between host and plugins: everything that depends on abi_stable.
//!
//! A library exports one root module, [`Library`], that lists its plugins. Each plugin is a table
//! of plain functions over an opaque instance. The tables are prefix types, which can grow: a new
//! field goes after the last one, with `#[sabi(missing_field(option))]`. Plugins that were built
//! earlier or later then still load. Declarations are JSON and can grow too.
//!
//! In order: the types that cross the boundary; the plugin's side, which turns a trait into a table
//! and panics into errors; the host's side, which turns a table into safe methods.

use crate::contract::{self, Version};
use crate::law::Law;
use crate::tensor;
use crate::{
    error::in_one_line, first_line, options, Attack, Batch, Climbs, Distribution, Error, Model, Network,
    NetworkCalls, Next, Norm, Objective, Outer, Passes, Projection, Random, RandomSource, Result, Sampler,
    Setting, Start, Step, Target, Task, ThreatModel, Victim, VictimCalls,
};
use abi_stable::abi_stability::check_layout_compatibility;
use abi_stable::library::{lib_header_from_path, LibHeader, LibraryError, RootModule};
use abi_stable::prefix_type::{PrefixRef, PrefixTypeTrait, WithMetadata};
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{ROption, RResult, RStr, RString, RVec};
use abi_stable::StableAbi;
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::fmt::Display;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;
use tch::{nn, Tensor};

// ------------------------------------------------------------ types that cross the boundary

/// The plugins that a library exports, by kind. A new kind is a new field at the end.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = LibraryRef)))]
pub struct Library {
    models: extern "C" fn() -> RVec<Exported<ModelTableRef>>,
    samplers: extern "C" fn() -> RVec<Exported<SamplerTableRef>>,
    #[sabi(last_prefix_field)]
    attacks: extern "C" fn() -> RVec<Exported<AttackTableRef>>,
    // Since 1.2: the minor number of the contract that the library was built for.
    #[sabi(missing_field(option))]
    minor: u32,
    // Since 1.2, as objectives themselves.
    #[sabi(missing_field(option))]
    objectives: extern "C" fn() -> RVec<Exported<ObjectiveTableRef>>,
}

impl RootModule for LibraryRef {
    abi_stable::declare_root_module_statics! {LibraryRef}
    const BASE_NAME: &'static str = "plugin";
    const NAME: &'static str = "plugin";
    const VERSION_STRINGS: VersionStrings = abi_stable::package_version_strings!();
}

/// A plugin's name and table.
#[repr(C)]
#[derive(StableAbi)]
pub struct Exported<Table> {
    name: RStr<'static>,
    table: Table,
}

/// Functions of a model plugin.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = ModelTableRef)))]
pub struct ModelTable {
    describe: extern "C" fn() -> RString,
    create: extern "C" fn(RStr<'_>, Lent, i64) -> RResult<Instance, RString>,
    parameters: extern "C" fn(Instance) -> RResult<RVec<Parameter>, RString>,
    forward: extern "C" fn(Instance, Lent, bool) -> RResult<Given, RString>,
    #[sabi(last_prefix_field)]
    destroy: extern "C" fn(Instance),
    // Since 1.1.
    #[sabi(missing_field(option))]
    declare: extern "C" fn(Instance) -> RResult<RString, RString>,
}

/// Functions of a sampler plugin.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = SamplerTableRef)))]
pub struct SamplerTable {
    describe: extern "C" fn() -> RString,
    create: extern "C" fn(RStr<'_>) -> RResult<Instance, RString>,
    declare: extern "C" fn(Instance) -> RResult<RString, RString>,
    step: extern "C" fn(Instance, StepCallRef) -> RResult<Moved, RString>,
    finish: extern "C" fn(Instance, StepCallRef) -> RResult<Moved, RString>,
    #[sabi(last_prefix_field)]
    destroy: extern "C" fn(Instance),
    // Since 1.2.
    #[sabi(missing_field(option))]
    supports: extern "C" fn(Instance, u32, f64, f64, f64) -> RResult<(), RString>,
    #[sabi(missing_field(option))]
    begin: extern "C" fn(Instance, StepCallRef) -> RResult<Moved, RString>,
}

/// Functions of an attack plugin.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = AttackTableRef)))]
pub struct AttackTable {
    describe: extern "C" fn() -> RString,
    create: extern "C" fn(RStr<'_>) -> RResult<Instance, RString>,
    supports: extern "C" fn(Instance, u32, f64, f64, f64) -> RResult<(), RString>,
    run: extern "C" fn(Instance, AttackCallRef) -> RResult<Given, RString>,
    #[sabi(last_prefix_field)]
    destroy: extern "C" fn(Instance),
    // Since 1.1.
    #[sabi(missing_field(option))]
    declare: extern "C" fn(Instance) -> RResult<RString, RString>,
    #[sabi(missing_field(option))]
    supports_task: extern "C" fn(Instance, i64, i64, i64, i64) -> RResult<(), RString>,
}

/// Functions of an objective plugin.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = ObjectiveTableRef)))]
pub struct ObjectiveTable {
    describe: extern "C" fn() -> RString,
    create: extern "C" fn(RStr<'_>) -> RResult<Instance, RString>,
    declare: extern "C" fn(Instance) -> RResult<RString, RString>,
    supports: extern "C" fn(Instance, SettingCall) -> RResult<(), RString>,
    state: extern "C" fn(Instance, SettingCall) -> RResult<RVec<Parameter>, RString>,
    outer: extern "C" fn(Instance, BatchCallRef) -> RResult<Descended, RString>,
    inner: extern "C" fn(Instance, BatchCallRef) -> RResult<Given, RString>,
    #[sabi(last_prefix_field)]
    destroy: extern "C" fn(Instance),
}

/// The setting of an objective.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct SettingCall {
    norm: u32,
    epsilon: f64,
    domain_low: f64,
    domain_high: f64,
    particles_per_point: usize,
    classes: i64,
    training_points: usize,
}

/// The inputs of an objective.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = BatchCallRef)))]
pub struct BatchCall {
    logits: Lent,
    natural_logits: ROption<Lent>,
    natural: Lent,
    particles: Lent,
    start: Lent,
    labels: Lent,
    points: *const i64,
    points_length: usize,
    particles_per_point: usize,
    classes: i64,
    norm: u32,
    epsilon: f64,
    domain_low: f64,
    domain_high: f64,
    state: *const Lent,
    state_length: usize,
    host: *const c_void,
    draw: extern "C" fn(*const c_void, u32, Lent) -> RResult<Given, RString>,
    network_logits: extern "C" fn(*const c_void, Lent, bool) -> RResult<Given, RString>,
    #[sabi(last_prefix_field)]
    input_gradient: extern "C" fn(*const c_void, Lent, Lent) -> RResult<Given, RString>,
}

/// The inputs of a sampler's step.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = StepCallRef)))]
pub struct StepCall {
    natural: Lent,
    labels: Lent,
    particles: Lent,
    loss: Lent,
    gradient: Lent,
    state: *const Lent,
    state_length: usize,
    points: *const i64,
    points_length: usize,
    particles_per_point: usize,
    number: usize,
    of: usize,
    norm: u32,
    epsilon: f64,
    domain_low: f64,
    domain_high: f64,
    host: *const c_void,
    #[sabi(last_prefix_field)]
    draw: extern "C" fn(*const c_void, u32, Lent) -> RResult<Given, RString>,
}

/// The inputs of an attack.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = AttackCallRef)))]
pub struct AttackCall {
    natural: Lent,
    labels: Lent,
    points: *const i64,
    points_length: usize,
    classes: i64,
    norm: u32,
    epsilon: f64,
    domain_low: f64,
    domain_high: f64,
    host: *const c_void,
    draw: extern "C" fn(*const c_void, u32, Lent) -> RResult<Given, RString>,
    logits: extern "C" fn(*const c_void, Lent) -> RResult<Given, RString>,
    differentiable: extern "C" fn(*const c_void, Lent) -> RResult<LogitsAndLeaf, RString>,
    #[sabi(last_prefix_field)]
    input_gradient: extern "C" fn(*const c_void, Lent, Lent) -> RResult<Given, RString>,
}

/// A plugin's instance. Only its own library can use the pointer.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy)]
pub struct Instance(*mut c_void);

/// A tensor lent for the length of a call: an `at::Tensor*`.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct Lent {
    pointer: *const c_void,
}

impl Lent {
    /// Lends a tensor, which must outlive the call.
    fn new(tensor: &Tensor) -> Self {
        Self { pointer: tensor::pointer_to(tensor) }
    }

    /// A new reference to the tensor.
    ///
    /// # Safety
    /// The lender's tensor is still alive, and both sides use the same libtorch.
    unsafe fn tensor(self) -> Tensor {
        // SAFETY: the caller's promise.
        unsafe { tensor::new_reference(self.pointer) }
    }
}

/// A tensor given away: an `at::Tensor*` and the function that releases it.
#[repr(C)]
#[derive(StableAbi)]
pub struct Given {
    pointer: *mut c_void,
    release: extern "C" fn(*mut c_void),
}

impl Given {
    /// Gives a tensor away. When either side drops this, the binding of this side releases the
    /// tensor.
    fn new(tensor: Tensor) -> Self {
        extern "C" fn release(pointer: *mut c_void) {
            // SAFETY: called once, by `Given::drop`, with the pointer that `Given::new` made here.
            unsafe { tensor::release(pointer) }
        }
        Self { pointer: tensor::into_pointer(tensor), release }
    }

    /// A new reference to the tensor; the giver's reference is released.
    fn into_tensor(self) -> Tensor {
        // SAFETY: `Given::new` made the pointer, and it is alive until `self` is dropped, after
        // the new reference was taken.
        unsafe { tensor::new_reference(self.pointer) }
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        (self.release)(self.pointer);
    }
}

/// A parameter or buffer of a model: its name, and the tensor itself (not a copy).
#[repr(C)]
#[derive(StableAbi)]
pub struct Parameter {
    name: RString,
    tensor: Given,
}

/// The next particles and their state.
#[repr(C)]
#[derive(StableAbi)]
pub struct Moved {
    particles: Given,
    state: RVec<Given>,
}

/// An outer loss and the next state of the objective.
#[repr(C)]
#[derive(StableAbi)]
pub struct Descended {
    loss: Given,
    state: RVec<Given>,
}

/// Differentiable logits and the images they came from.
#[repr(C)]
#[derive(StableAbi)]
pub struct LogitsAndLeaf {
    logits: Given,
    leaf: Given,
}

/// A plugin's description.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Description {
    /// JSON Schema of the options, with defaults and help.
    pub options: serde_json::Value,
}

/// A sampler's declaration, for given options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SamplerDeclaration {
    /// Where chains begin.
    pub start: Start,
    /// Default number of steps of a visit.
    pub default_steps: usize,
    /// The side that projects.
    pub projection: Projection,
    /// Number of state tensors of a particle.
    pub state_tensors: usize,
    /// Whether `finish` accepts or rejects the last proposal.
    pub judges_last_proposal: bool,
    /// Whether many steps raise the loss; none for a plugin of contract 1.0, which cannot declare
    /// it.
    #[serde(default)]
    pub ascends: Option<bool>,
    /// The law that the chain targets. Since 1.2, as all that follow.
    #[serde(default)]
    pub law: Law,
    /// The names of the numbers that are kept for each particle.
    #[serde(default)]
    pub numbers: Vec<String>,
    /// Those of `numbers` that are averaged over the particles and recorded.
    #[serde(default)]
    pub figures: Vec<String>,
    /// Number of state tensors of a particle that last for one visit.
    #[serde(default)]
    pub visit_tensors: usize,
    /// Whether it uses the gradient.
    #[serde(default = "yes")]
    pub uses_gradient: bool,
    /// Whether `finish` is given the gradient at the last proposal.
    #[serde(default)]
    pub judges_by_gradient: bool,
    /// Whether `begin` decides where a visit begins.
    #[serde(default)]
    pub begins: bool,
    /// Radius of the ball that particles keep to, in units of epsilon.
    #[serde(default = "one")]
    pub reach: f64,
    /// Whether the chains of a batch act on one another.
    #[serde(default)]
    pub interacts: bool,
}

/// What samplers that are older than a declaration mean.
fn yes() -> bool {
    true
}

/// The reach of samplers that are older than its declaration.
fn one() -> f64 {
    1.0
}

/// The shape of a state tensor of N particles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateShape {
    /// That of the particles, `[N, C, H, W]`.
    Particles,
    /// So many numbers for each particle, `[N, numbers]`.
    Numbers(usize),
}

impl SamplerDeclaration {
    /// The threat model with the ball that the particles keep to.
    pub fn ball(&self, threat: &ThreatModel) -> ThreatModel {
        ThreatModel { epsilon: threat.epsilon * self.reach, ..*threat }
    }

    /// The state tensors that are stored with the particles, in order.
    pub fn stored_state(&self) -> Vec<StateShape> {
        let numbers = (!self.numbers.is_empty()).then_some(StateShape::Numbers(self.numbers.len()));
        std::iter::repeat_n(StateShape::Particles, self.state_tensors).chain(numbers).collect()
    }

    /// All state tensors, in order: those that are stored, then those of a visit.
    pub fn state(&self) -> Vec<StateShape> {
        let of_visit = std::iter::repeat_n(StateShape::Particles, self.visit_tensors);
        self.stored_state().into_iter().chain(of_visit).collect()
    }

    /// The state of new chains at these particles (`[N, C, H, W]`): zeros.
    pub fn fresh_state(&self, particles: &Tensor) -> Vec<Tensor> {
        self.state().into_iter().map(|shape| shape.zeros(particles)).collect()
    }

    /// The state with which a visit begins, from the stored one: tensors of the visit are zeros.
    pub fn begin_visit(&self, mut stored: Vec<Tensor>, particles: &Tensor) -> Vec<Tensor> {
        stored.truncate(self.stored_state().len());
        stored.extend((0..self.visit_tensors).map(|_| particles.zeros_like()));
        stored
    }

    /// The figures of each particle, from its state after a visit: `[N, figures]`. None if the
    /// sampler has no figures.
    pub fn figures_of(&self, state: &[Tensor]) -> Option<Tensor> {
        let columns =
            self.figures.iter().filter_map(|figure| self.numbers.iter().position(|name| name == figure));
        let columns: Vec<_> = columns.map(|column| column as i64).collect();
        let numbers = state.get(self.state_tensors).filter(|_| !columns.is_empty())?;
        Some(numbers.index_select(1, &Tensor::from_slice(&columns).to_device(numbers.device())))
    }

    fn check(&self) -> Result<()> {
        check_declared("steps", self.default_steps, 1, MOST_STEPS)?;
        check_declared("state tensors", self.state_tensors, 0, MOST_STATE_TENSORS)?;
        check_declared("state tensors of a visit", self.visit_tensors, 0, MOST_STATE_TENSORS)?;
        check_declared("numbers", self.numbers.len(), 0, MOST_STATE_TENSORS)?;
        if let Law::Gibbs { lambda } = self.law {
            if !(lambda.is_finite() && lambda > 0.0) {
                let expected = "expected a positive, finite number";
                return Err(Error::new(format!("declares a law with lambda = {lambda}; {expected}")));
            }
        }
        let is_repeated = |names: &[String], at: usize| names[..at].contains(&names[at]);
        for (what, names) in [("number", &self.numbers), ("figure", &self.figures)] {
            if let Some(at) = (0..names.len()).find(|at| is_repeated(names, *at)) {
                return Err(Error::new(format!("declares the {what} `{}` twice", in_one_line(&names[at]))));
            }
        }
        if let Some(figure) = self.figures.iter().find(|figure| !self.numbers.contains(figure)) {
            let figure = in_one_line(figure);
            return Err(Error::new(format!("declares the figure `{figure}`, which is none of its numbers")));
        }
        if self.judges_by_gradient && !(self.judges_last_proposal && self.uses_gradient) {
            return Err(Error::new(
                "declares judges_by_gradient without judges_last_proposal and uses_gradient",
            ));
        }
        if !(self.reach.is_finite() && self.reach >= 1.0) {
            let reach = self.reach;
            return Err(Error::new(format!("declares a reach of {reach}; expected a number of at least 1")));
        }
        if self.begins && self.judges_last_proposal {
            return Err(Error::new(
                "declares begins and judges_last_proposal; a chain that is judged goes on where it was accepted",
            ));
        }
        if self.law != Law::Undeclared && (self.begins || self.interacts || self.reach > 1.0) {
            return Err(Error::new(
                "declares a law with begins, interacts or a reach above 1; a law is that of a chain alone, in the \
                 ball of epsilon",
            ));
        }
        Ok(())
    }
}

impl StateShape {
    /// Zeros in this shape for particles `[N, C, H, W]`, in their dtype and on their device.
    pub fn zeros(self, particles: &Tensor) -> Tensor {
        match self {
            Self::Particles => particles.zeros_like(),
            Self::Numbers(_) => {
                particles.new_zeros(self.size(particles), (particles.kind(), particles.device()))
            }
        }
    }

    /// The size for particles `[N, C, H, W]`.
    pub fn size(self, particles: &Tensor) -> Vec<i64> {
        match self {
            Self::Particles => particles.size(),
            Self::Numbers(count) => vec![particles.size()[0], count as i64],
        }
    }
}

/// The declaration of a built model. A plugin of contract 1.0 has no such declaration and gets the
/// default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelDeclaration {
    /// Whether logits in training differ from those in evaluation.
    pub train_differs: Option<bool>,
    /// What a user should know of the network.
    pub notes: Vec<String>,
}

/// An attack's declaration, for given options. A plugin of contract 1.0 has no such declaration and
/// gets the default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AttackDeclaration {
    /// Largest number of forward passes per example.
    pub query_budget: Option<u64>,
}

/// An objective's declaration, for given options.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectiveDeclaration {
    /// What the sampler climbs.
    pub climbs: Climbs,
    /// Whether it needs the logits at the natural examples.
    pub uses_natural: bool,
    /// Whether the outer loss of a row depends on other points.
    pub couples_points: bool,
    /// The passes of the outer loss through the network.
    pub passes: Passes,
}

impl ObjectiveDeclaration {
    fn check(&self) -> Result<()> {
        check_declared("passes of a point", self.passes.per_point, 0, MOST_PASSES)?;
        check_declared("passes of a particle", self.passes.per_particle, 0, MOST_PASSES)?;
        if self.climbs == Climbs::Outer && self.couples_points {
            return Err(Error::new(
                "declares climbs = outer and couples_points: the loss that a particle climbs depends on \
                 this particle only",
            ));
        }
        if self.climbs == Climbs::Outer && (self.uses_natural || self.passes != Passes::default()) {
            return Err(Error::new(
                "declares climbs = outer and further passes: a loss that both problems share has one pass",
            ));
        }
        Ok(())
    }
}

// ----------------------------------------------------------------------- codes of enumerations

/// The code of a norm, which the host sends to the plugin. A code never changes its meaning.
fn norm_code(norm: Norm) -> u32 {
    match norm {
        Norm::Linf => 0,
        Norm::L2 => 1,
        Norm::L1 => 2,
    }
}

/// The code of a distribution, which the plugin sends to the host. A code never changes its
/// meaning.
fn distribution_code(distribution: Distribution) -> u32 {
    match distribution {
        Distribution::Normal => 0,
        Distribution::Uniform => 1,
    }
}

/// On the plugin's side, the threat model that the host sent.
///
/// # Errors
/// If this plugin does not support the norm's code.
fn threat_model(norm: u32, epsilon: f64, low: f64, high: f64) -> Result<ThreatModel> {
    let supported = Norm::ALL.into_iter().find(|candidate| norm_code(*candidate) == norm);
    let norm = supported.ok_or_else(|| {
        Error::new(format!(
            "norm code {norm} is not supported by this plugin (contract {}); rebuild it against the host's plugin-api",
            contract::CURRENT
        ))
    })?;
    Ok(ThreatModel { norm, epsilon, domain: (low, high) })
}

/// On the host's side, the distribution of the numbers that a plugin draws.
///
/// # Errors
/// If this host does not support its code.
fn distribution(code: u32) -> Result<Distribution> {
    let supported = Distribution::ALL.into_iter().find(|candidate| distribution_code(*candidate) == code);
    supported.ok_or_else(|| {
        Error::new(format!(
            "distribution code {code} is not supported by this host (contract {}); use a host that is as new as the plugin",
            contract::CURRENT
        ))
    })
}

// ------------------------------------------------------------------------ panics and errors

thread_local! {
    static CALL_DEPTH: Cell<usize> = const { Cell::new(0) };
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs one side's part of a call. Errors and panics become a message for the other side.
fn guarded<T>(call: impl FnOnce() -> Result<T>) -> RResult<T, RString> {
    remember_panics();
    CALL_DEPTH.set(CALL_DEPTH.get() + 1);
    let outcome = catch_unwind(AssertUnwindSafe(call)).map_err(|payload| {
        let message = PANIC.take().unwrap_or_else(|| "panicked".to_owned());
        discard(payload);
        message
    });
    CALL_DEPTH.set(CALL_DEPTH.get() - 1);
    match outcome {
        Ok(Ok(value)) => RResult::ROk(value),
        Ok(Err(error)) => RResult::RErr(error.to_string().into()),
        Err(message) => RResult::RErr(message.into()),
    }
}

/// Drops what a panic carries. That may panic again, and would end the process here; what the
/// second panic carries is kept.
pub fn discard(payload: Box<dyn Any + Send>) {
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
}

/// Keeps a panic inside a call for the error message, with its place, instead of printing it. Each
/// library has its own copy of std, and therefore its own hook.
fn remember_panics() {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if CALL_DEPTH.get() == 0 {
                return previous(panic);
            }
            let message = panic.payload_as_str().map_or("no message", first_line);
            let place =
                panic.location().map(|at| format!(" at {}:{}", at.file(), at.line())).unwrap_or_default();
            PANIC.set(Some(format!("panicked{place}: {message}")));
        }));
    });
}

/// An instance, and whether it panicked before. The state of an instance that panicked may be
/// inconsistent.
struct Guarded<T> {
    plugin: T,
    panicked: Cell<bool>,
}

impl<T> Guarded<T> {
    fn instance(plugin: T) -> Instance {
        Instance(Box::into_raw(Box::new(Self { plugin, panicked: Cell::new(false) })) as *mut c_void)
    }

    /// # Safety
    /// `instance` was made by `Guarded::<T>::instance` and not destroyed; one thread at a
    /// time uses it.
    unsafe fn call<R>(instance: Instance, call: impl FnOnce(&T) -> Result<R>) -> RResult<R, RString> {
        // SAFETY: the caller's promise.
        let guarded_plugin = unsafe { &*(instance.0 as *const Self) };
        if guarded_plugin.panicked.replace(true) {
            return RResult::RErr("an earlier call panicked; this instance cannot be used any more".into());
        }
        guarded(|| {
            let result = call(&guarded_plugin.plugin);
            guarded_plugin.panicked.set(false);
            result
        })
    }

    extern "C" fn destroy(instance: Instance) {
        // SAFETY: called once per instance, by the host's owner of it.
        let owned = unsafe { Box::from_raw(instance.0 as *mut Self) };
        let _: RResult<(), RString> = guarded(|| {
            drop(owned);
            Ok(())
        });
    }
}

extern "C" fn described<O: options::PluginOptions>() -> RString {
    let schema = guarded(|| Ok(options::schema::<O>()))
        .unwrap_or_else(|message| serde_json::json!({"error": message.as_str()}));
    serde_json::json!({ "options": schema }).to_string().into()
}

// ------------------------------------------------------------------------ the plugin's side

/// Every model this library exports.
#[doc(hidden)]
#[linkme::distributed_slice]
pub static MODELS: [Export<ModelTableRef>];

/// Every sampler this library exports.
#[doc(hidden)]
#[linkme::distributed_slice]
pub static SAMPLERS: [Export<SamplerTableRef>];

/// Every attack this library exports.
#[doc(hidden)]
#[linkme::distributed_slice]
pub static ATTACKS: [Export<AttackTableRef>];

/// Every objective this library exports.
#[doc(hidden)]
#[linkme::distributed_slice]
pub static OBJECTIVES: [Export<ObjectiveTableRef>];

/// The record that an export macro adds to a library.
#[doc(hidden)]
pub struct Export<Table> {
    pub name: &'static str,
    /// Keeps the manifest in the file: the linker drops data without a reference to it.
    pub manifest: &'static [u8],
    pub table: fn() -> Table,
}

#[abi_stable::export_root_module]
fn root_module() -> LibraryRef {
    extern "C" fn models() -> RVec<Exported<ModelTableRef>> {
        exported(&MODELS)
    }
    extern "C" fn samplers() -> RVec<Exported<SamplerTableRef>> {
        exported(&SAMPLERS)
    }
    extern "C" fn attacks() -> RVec<Exported<AttackTableRef>> {
        exported(&ATTACKS)
    }
    extern "C" fn objectives() -> RVec<Exported<ObjectiveTableRef>> {
        exported(&OBJECTIVES)
    }
    Library { models, samplers, attacks, minor: contract::CURRENT.minor, objectives }.leak_into_prefix()
}

fn declared<T: Serialize>(declaration: &T) -> Result<RString> {
    serde_json::to_string(declaration).map(RString::from).map_err(Error::new)
}

fn owned(names: Vec<&'static str>) -> Vec<String> {
    names.into_iter().map(str::to_owned).collect()
}

fn exported<Table>(exports: &'static [Export<Table>]) -> RVec<Exported<Table>> {
    exports
        .iter()
        .filter(|export| !export.manifest.is_empty())
        .map(|export| Exported { name: export.name.into(), table: (export.table)() })
        .collect()
}

struct BuiltModel<M> {
    model: M,
    variables: nn::VarStore,
}

#[doc(hidden)]
pub fn model_table<M: Model>() -> ModelTableRef {
    extern "C" fn create<M: Model>(
        given: RStr<'_>,
        images: Lent,
        classes: i64,
    ) -> RResult<Instance, RString> {
        guarded(|| {
            // SAFETY: the host lends the tensor for the length of this call.
            let images = unsafe { images.tensor() };
            let (_, channels, height, width) = images.size4()?;
            let mut variables = nn::VarStore::new(images.device());
            if images.kind() == tch::Kind::Double {
                variables.set_kind(tch::Kind::Double);
            }
            let task = Task { channels, height, width, classes };
            let model = M::new(options::parse(given.as_str())?, task, &variables.root())?;
            // Those that the model made in f32 on its own.
            if images.kind() == tch::Kind::Double {
                variables.double();
            }
            Ok(Guarded::instance(BuiltModel { model, variables }))
        })
    }
    extern "C" fn parameters<M: Model>(instance: Instance) -> RResult<RVec<Parameter>, RString> {
        // SAFETY: the host calls this with an instance of this table.
        unsafe {
            Guarded::<BuiltModel<M>>::call(instance, |built| {
                let mut variables: Vec<_> = built.variables.variables().into_iter().collect();
                variables.sort_by(|(one, _), (other, _)| one.cmp(other));
                let parameters = variables.into_iter();
                Ok(parameters
                    .map(|(name, tensor)| Parameter { name: name.into(), tensor: Given::new(tensor) })
                    .collect())
            })
        }
    }
    extern "C" fn forward<M: Model>(
        instance: Instance,
        images: Lent,
        train: bool,
    ) -> RResult<Given, RString> {
        // SAFETY: the host calls this with an instance of this table, and lends the tensor.
        unsafe {
            Guarded::<BuiltModel<M>>::call(instance, |built| {
                built.model.forward(&images.tensor(), train).map(Given::new)
            })
        }
    }
    extern "C" fn declare<M: Model>(instance: Instance) -> RResult<RString, RString> {
        // SAFETY: the host calls this with an instance of this table.
        unsafe {
            Guarded::<BuiltModel<M>>::call(instance, |built| {
                declared(&ModelDeclaration {
                    train_differs: Some(built.model.train_differs()),
                    notes: built.model.notes(),
                })
            })
        }
    }
    ModelTable {
        describe: described::<M::Options>,
        create: create::<M>,
        parameters: parameters::<M>,
        forward: forward::<M>,
        destroy: Guarded::<BuiltModel<M>>::destroy,
        declare: declare::<M>,
    }
    .leak_into_prefix()
}

#[doc(hidden)]
pub fn sampler_table<S: Sampler>() -> SamplerTableRef {
    extern "C" fn create<S: Sampler>(given: RStr<'_>) -> RResult<Instance, RString> {
        guarded(|| Ok(Guarded::instance(S::new(options::parse(given.as_str())?)?)))
    }
    extern "C" fn declare<S: Sampler>(instance: Instance) -> RResult<RString, RString> {
        // SAFETY: the host calls this with an instance of this table.
        unsafe {
            Guarded::<S>::call(instance, |sampler| {
                declared(&SamplerDeclaration {
                    start: sampler.start(),
                    default_steps: sampler.default_steps(),
                    projection: sampler.projection(),
                    state_tensors: sampler.state_tensors(),
                    judges_last_proposal: sampler.judges_last_proposal(),
                    ascends: Some(sampler.ascends()),
                    law: sampler.law(),
                    numbers: owned(sampler.numbers()),
                    figures: owned(sampler.figures()),
                    visit_tensors: sampler.visit_tensors(),
                    uses_gradient: sampler.uses_gradient(),
                    judges_by_gradient: sampler.judges_by_gradient(),
                    begins: sampler.begins(),
                    reach: sampler.reach(),
                    interacts: sampler.interacts(),
                })
            })
        }
    }
    extern "C" fn step<S: Sampler>(instance: Instance, call: StepCallRef) -> RResult<Moved, RString> {
        // SAFETY: the host calls this with an instance of this table and a call that is
        // alive until it returns.
        unsafe { Guarded::<S>::call(instance, |sampler| on_step(call, |step| sampler.step(step))) }
    }
    extern "C" fn finish<S: Sampler>(instance: Instance, call: StepCallRef) -> RResult<Moved, RString> {
        // SAFETY: as for `step`.
        unsafe { Guarded::<S>::call(instance, |sampler| on_step(call, |step| sampler.finish(step))) }
    }
    extern "C" fn supports<S: Sampler>(
        instance: Instance,
        norm: u32,
        epsilon: f64,
        low: f64,
        high: f64,
    ) -> RResult<(), RString> {
        // SAFETY: the host calls this with an instance of this table.
        unsafe {
            Guarded::<S>::call(instance, |sampler| sampler.supports(&threat_model(norm, epsilon, low, high)?))
        }
    }
    extern "C" fn begin<S: Sampler>(instance: Instance, call: StepCallRef) -> RResult<Moved, RString> {
        // SAFETY: as for `step`.
        unsafe { Guarded::<S>::call(instance, |sampler| on_step(call, |step| sampler.begin(step))) }
    }
    SamplerTable {
        describe: described::<S::Options>,
        create: create::<S>,
        declare: declare::<S>,
        step: step::<S>,
        finish: finish::<S>,
        destroy: Guarded::<S>::destroy,
        supports: supports::<S>,
        begin: begin::<S>,
    }
    .leak_into_prefix()
}

/// # Safety
/// Everything `call` points to is alive until this returns.
unsafe fn on_step(call: StepCallRef, take: impl FnOnce(&Step) -> Result<Next>) -> Result<Moved> {
    let source = HostRandom { host: call.host(), draw: call.draw() };
    // SAFETY: the caller's promise; slices are never null, also when empty.
    let (natural, labels, particles, loss, gradient, state, points) = unsafe {
        (
            call.natural().tensor(),
            call.labels().tensor(),
            call.particles().tensor(),
            call.loss().tensor(),
            call.gradient().tensor(),
            std::slice::from_raw_parts(call.state(), call.state_length())
                .iter()
                .map(|tensor| tensor.tensor())
                .collect::<Vec<_>>(),
            std::slice::from_raw_parts(call.points(), call.points_length()),
        )
    };
    let next = take(&Step {
        natural: &natural,
        labels: &labels,
        particles: &particles,
        loss: &loss,
        gradient: &gradient,
        state: &state,
        points,
        particles_per_point: call.particles_per_point(),
        number: call.number(),
        of: call.of(),
        threat: threat_model(call.norm(), call.epsilon(), call.domain_low(), call.domain_high())?,
        random: Random::new(&source),
    })?;
    Ok(Moved {
        particles: Given::new(next.particles),
        state: next.state.into_iter().map(Given::new).collect(),
    })
}

#[doc(hidden)]
pub fn attack_table<A: Attack>() -> AttackTableRef {
    extern "C" fn create<A: Attack>(given: RStr<'_>) -> RResult<Instance, RString> {
        guarded(|| Ok(Guarded::instance(A::new(options::parse(given.as_str())?)?)))
    }
    extern "C" fn supports<A: Attack>(
        instance: Instance,
        norm: u32,
        epsilon: f64,
        low: f64,
        high: f64,
    ) -> RResult<(), RString> {
        // SAFETY: the host calls this with an instance of this table.
        unsafe {
            Guarded::<A>::call(instance, |attack| attack.supports(&threat_model(norm, epsilon, low, high)?))
        }
    }
    extern "C" fn run<A: Attack>(instance: Instance, call: AttackCallRef) -> RResult<Given, RString> {
        let source = HostRandom { host: call.host(), draw: call.draw() };
        let victim = HostVictim { call };
        // SAFETY: the host calls this with an instance of this table; everything the call
        // points to is alive until it returns; slices are never null.
        unsafe {
            Guarded::<A>::call(instance, |attack| {
                let target = Target {
                    natural: &call.natural().tensor(),
                    labels: &call.labels().tensor(),
                    points: std::slice::from_raw_parts(call.points(), call.points_length()),
                    classes: call.classes(),
                    threat: threat_model(call.norm(), call.epsilon(), call.domain_low(), call.domain_high())?,
                    victim: Victim::new(&victim),
                    random: Random::new(&source),
                };
                attack.run(&target).map(Given::new)
            })
        }
    }
    extern "C" fn declare<A: Attack>(instance: Instance) -> RResult<RString, RString> {
        // SAFETY: the host calls this with an instance of this table.
        unsafe {
            Guarded::<A>::call(instance, |attack| {
                declared(&AttackDeclaration { query_budget: attack.query_budget() })
            })
        }
    }
    extern "C" fn supports_task<A: Attack>(
        instance: Instance,
        channels: i64,
        height: i64,
        width: i64,
        classes: i64,
    ) -> RResult<(), RString> {
        let task = Task { channels, height, width, classes };
        // SAFETY: the host calls this with an instance of this table.
        unsafe { Guarded::<A>::call(instance, |attack| attack.supports_task(&task)) }
    }
    AttackTable {
        describe: described::<A::Options>,
        create: create::<A>,
        supports: supports::<A>,
        run: run::<A>,
        destroy: Guarded::<A>::destroy,
        declare: declare::<A>,
        supports_task: supports_task::<A>,
    }
    .leak_into_prefix()
}

#[doc(hidden)]
pub fn objective_table<O: Objective>() -> ObjectiveTableRef {
    extern "C" fn create<O: Objective>(given: RStr<'_>) -> RResult<Instance, RString> {
        guarded(|| Ok(Guarded::instance(O::new(options::parse(given.as_str())?)?)))
    }
    extern "C" fn declare<O: Objective>(instance: Instance) -> RResult<RString, RString> {
        // SAFETY: the host calls this with an instance of this table.
        unsafe {
            Guarded::<O>::call(instance, |objective| {
                declared(&ObjectiveDeclaration {
                    climbs: objective.climbs(),
                    uses_natural: objective.uses_natural(),
                    couples_points: objective.couples_points(),
                    passes: objective.passes(),
                })
            })
        }
    }
    extern "C" fn supports<O: Objective>(instance: Instance, call: SettingCall) -> RResult<(), RString> {
        // SAFETY: the host calls this with an instance of this table.
        unsafe { Guarded::<O>::call(instance, |objective| objective.supports(&setting(call)?)) }
    }
    extern "C" fn state<O: Objective>(
        instance: Instance,
        call: SettingCall,
    ) -> RResult<RVec<Parameter>, RString> {
        // SAFETY: the host calls this with an instance of this table.
        unsafe {
            Guarded::<O>::call(instance, |objective| {
                let state = objective.state(&setting(call)?).into_iter();
                Ok(state
                    .map(|(name, tensor)| Parameter { name: name.into(), tensor: Given::new(tensor) })
                    .collect())
            })
        }
    }
    extern "C" fn outer<O: Objective>(instance: Instance, call: BatchCallRef) -> RResult<Descended, RString> {
        // SAFETY: the host calls this with an instance of this table and a call that is
        // alive until it returns.
        unsafe {
            Guarded::<O>::call(instance, |objective| {
                let Outer { loss, state } = on_batch(call, |batch| objective.outer(batch))?;
                Ok(Descended { loss: Given::new(loss), state: state.into_iter().map(Given::new).collect() })
            })
        }
    }
    extern "C" fn inner<O: Objective>(instance: Instance, call: BatchCallRef) -> RResult<Given, RString> {
        // SAFETY: as for `outer`.
        unsafe {
            Guarded::<O>::call(instance, |objective| {
                on_batch(call, |batch| objective.inner(batch)).map(Given::new)
            })
        }
    }
    ObjectiveTable {
        describe: described::<O::Options>,
        create: create::<O>,
        declare: declare::<O>,
        supports: supports::<O>,
        state: state::<O>,
        outer: outer::<O>,
        inner: inner::<O>,
        destroy: Guarded::<O>::destroy,
    }
    .leak_into_prefix()
}

/// On the plugin's side, the setting that the host sent.
fn setting(call: SettingCall) -> Result<Setting> {
    Ok(Setting {
        threat: threat_model(call.norm, call.epsilon, call.domain_low, call.domain_high)?,
        particles_per_point: call.particles_per_point,
        classes: call.classes,
        training_points: call.training_points,
    })
}

/// # Safety
/// Everything `call` points to is alive until this returns.
unsafe fn on_batch<T>(call: BatchCallRef, compute: impl FnOnce(&Batch) -> Result<T>) -> Result<T> {
    let source = HostRandom { host: call.host(), draw: call.draw() };
    let network = HostNetwork { call };
    // SAFETY: the caller's promise; slices are never null, also when empty.
    let (logits, natural_logits, natural, particles, start, labels, state, points) = unsafe {
        (
            call.logits().tensor(),
            call.natural_logits().into_option().map(|logits| logits.tensor()),
            call.natural().tensor(),
            call.particles().tensor(),
            call.start().tensor(),
            call.labels().tensor(),
            std::slice::from_raw_parts(call.state(), call.state_length())
                .iter()
                .map(|tensor| tensor.tensor())
                .collect::<Vec<_>>(),
            std::slice::from_raw_parts(call.points(), call.points_length()),
        )
    };
    compute(&Batch {
        logits: &logits,
        natural_logits: natural_logits.as_ref(),
        natural: &natural,
        particles: &particles,
        start: &start,
        labels: &labels,
        points,
        particles_per_point: call.particles_per_point(),
        classes: call.classes(),
        threat: threat_model(call.norm(), call.epsilon(), call.domain_low(), call.domain_high())?,
        state: &state,
        network: Network::new(&network),
        random: Random::new(&source),
    })
}

/// The host's network, on the objective's side.
struct HostNetwork {
    call: BatchCallRef,
}

impl NetworkCalls for HostNetwork {
    fn logits(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        received(self.call.network_logits()(self.call.host(), Lent::new(images), train))
            .map(Given::into_tensor)
    }

    fn input_gradient(&self, loss: &Tensor, images: &Tensor) -> Result<Tensor> {
        received(self.call.input_gradient()(self.call.host(), Lent::new(loss), Lent::new(images)))
            .map(Given::into_tensor)
    }
}

/// The host's random numbers, on the plugin's side.
struct HostRandom {
    host: *const c_void,
    draw: extern "C" fn(*const c_void, u32, Lent) -> RResult<Given, RString>,
}

impl RandomSource for HostRandom {
    fn draw(&self, distribution: Distribution, like: &Tensor) -> Result<Tensor> {
        received((self.draw)(self.host, distribution_code(distribution), Lent::new(like)))
            .map(Given::into_tensor)
    }
}

/// The host's model, on the attack's side.
struct HostVictim {
    call: AttackCallRef,
}

impl VictimCalls for HostVictim {
    fn logits(&self, images: &Tensor) -> Result<Tensor> {
        received(self.call.logits()(self.call.host(), Lent::new(images))).map(Given::into_tensor)
    }

    fn differentiable(&self, images: &Tensor) -> Result<(Tensor, Tensor)> {
        let both = received(self.call.differentiable()(self.call.host(), Lent::new(images)))?;
        Ok((both.logits.into_tensor(), both.leaf.into_tensor()))
    }

    fn input_gradient(&self, loss: &Tensor, leaf: &Tensor) -> Result<Tensor> {
        received(self.call.input_gradient()(self.call.host(), Lent::new(loss), Lent::new(leaf)))
            .map(Given::into_tensor)
    }
}

fn received<T>(result: RResult<T, RString>) -> Result<T> {
    result.into_result().map_err(|message| Error::new(in_one_line(&message)))
}

/// Exports a model plugin: `export_model!("name", Type);`.
#[macro_export]
macro_rules! export_model {
    ($name:literal, $model:ty) => {
        $crate::export_plugin!(
            "model",
            $name,
            $crate::abi::MODELS,
            $crate::abi::ModelTableRef,
            $crate::abi::model_table::<$model>
        );
    };
}

/// Exports a sampler plugin: `export_sampler!("name", Type);`.
#[macro_export]
macro_rules! export_sampler {
    ($name:literal, $sampler:ty) => {
        $crate::export_plugin!(
            "sampler",
            $name,
            $crate::abi::SAMPLERS,
            $crate::abi::SamplerTableRef,
            $crate::abi::sampler_table::<$sampler>
        );
    };
}

/// Exports an attack plugin: `export_attack!("name", Type);`.
#[macro_export]
macro_rules! export_attack {
    ($name:literal, $attack:ty) => {
        $crate::export_plugin!(
            "attack",
            $name,
            $crate::abi::ATTACKS,
            $crate::abi::AttackTableRef,
            $crate::abi::attack_table::<$attack>
        );
    };
}

/// Exports an objective plugin: `export_objective!("name", Type);`.
#[macro_export]
macro_rules! export_objective {
    ($name:literal, $objective:ty) => {
        $crate::export_plugin!(
            "objective",
            $name,
            $crate::abi::OBJECTIVES,
            $crate::abi::ObjectiveTableRef,
            $crate::abi::objective_table::<$objective>
        );
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! export_plugin {
    ($kind:literal, $name:literal, $slice:path, $table:ty, $make:expr) => {
        const _: () = {
            const VERSION: &str = env!("CARGO_PKG_VERSION");
            #[unsafe(link_section = ".dro.manifest")]
            static MANIFEST: [u8; $crate::manifest::length($kind, $name, VERSION)] =
                $crate::manifest::text($kind, $name, VERSION);

            #[$crate::abi::linkme::distributed_slice($slice)]
            #[linkme(crate = $crate::abi::linkme)]
            static EXPORT: $crate::abi::Export<$table> =
                $crate::abi::Export { name: $name, manifest: &MANIFEST, table: || $make() };
        };
    };
}

#[doc(hidden)]
pub use linkme;

// --------------------------------------------------------------------------- the host's side

/// The plugins of a loaded library, by kind.
pub struct Plugins {
    /// Its models.
    pub models: Vec<ModelPlugin>,
    /// Its samplers.
    pub samplers: Vec<SamplerPlugin>,
    /// Its attacks.
    pub attacks: Vec<AttackPlugin>,
    /// Its objectives.
    pub objectives: Vec<ObjectivePlugin>,
}

/// Reads the root module of a library that is already open and is never closed.
///
/// # Errors
/// If the library exports no root module, or one of another layout.
pub fn plugins(path: &Path) -> Result<Plugins> {
    // `load_from_file` keeps one module per type: a second library would silently get the module
    // of the first one.
    let library = lib_header_from_path(path)
        .and_then(|header| match header.init_root_module::<LibraryRef>() {
            Err(LibraryError::AbiInstability(_)) if is_older(header) => {
                // SAFETY: every field of the library has the same layout in this host. The fields
                // that it lacks come after these, and their accessors check the library's own table
                // first.
                unsafe { header.init_root_module_with_unchecked_layout() }
            }
            module => module,
        })
        .map_err(|error| Error::new(layout_message(&error)))?;
    Ok(from_library(library))
}

/// Whether a library was built before some of this host's fields were added. abi_stable accepts
/// only libraries with more fields than the host; a library with fewer fields is just as safe.
fn is_older(library: &LibHeader) -> bool {
    library.layout().is_some_and(|layout| check_layout_compatibility(layout, LibraryRef::LAYOUT).is_ok())
}

/// The plugins that are linked into this program itself, through the tables they export.
pub fn linked() -> Plugins {
    from_library(root_module())
}

fn from_library(library: LibraryRef) -> Plugins {
    let stated = library.minor().map(Version::one);
    Plugins {
        models: named(library.models()(), |name, table| ModelPlugin { name, table }),
        samplers: named(library.samplers()(), |name, table| SamplerPlugin { name, table, stated }),
        attacks: named(library.attacks()(), |name, table| AttackPlugin { name, table, stated }),
        objectives: named(
            library.objectives().map_or_else(RVec::new, |objectives| objectives()),
            |name, table| ObjectivePlugin { name, table, stated },
        ),
    }
}

/// The version of the contract that a plugin was built for. Libraries state it since 1.2; an older
/// plugin is recognised by the additions of 1.1.
fn built_for(stated: Option<Version>, has_additions_of_1_1: bool) -> Version {
    stated.unwrap_or(Version::one(u32::from(has_additions_of_1_1)))
}

fn layout_message(error: &LibraryError) -> String {
    match error {
        LibraryError::AbiInstability(_) => {
            "its layout is not the one this host was built with; rebuild both against the same plugin-api"
                .to_owned()
        }
        other => first_line(&other.to_string()).to_owned(),
    }
}

fn named<Table, Plugin>(
    list: RVec<Exported<Table>>,
    plugin: impl Fn(String, Table) -> Plugin,
) -> Vec<Plugin> {
    list.into_iter().map(|exported| plugin(exported.name.to_string(), exported.table)).collect()
}

/// The largest number of bytes of a plugin's declaration or description.
const MOST_BYTES: usize = 1 << 20;

/// The largest number of steps or replays of a visit.
pub const MOST_STEPS: usize = 65_534;

/// The largest number of notes of a model.
const MOST_NOTES: usize = 16;

/// The largest number of state tensors of a particle.
const MOST_STATE_TENSORS: usize = 64;

/// The largest number of passes that an objective declares for each point or particle.
const MOST_PASSES: usize = 1000;

/// The largest query budget.
const MOST_QUERIES: u64 = 1_000_000_000;

/// The declaration of an instance.
fn declaration<T: serde::de::DeserializeOwned>(
    declare: extern "C" fn(Instance) -> RResult<RString, RString>,
    instance: Instance,
) -> Result<T> {
    read_json("declaration", &received(declare(instance))?)
}

fn description(text: &RString) -> Result<Description> {
    read_json("description", text)
}

fn read_json<T: serde::de::DeserializeOwned>(what: &str, text: &str) -> Result<T> {
    if text.len() > MOST_BYTES {
        let bytes = text.len();
        return Err(Error::new(format!("its {what} has {bytes} bytes; expected at most {MOST_BYTES}")));
    }
    serde_json::from_str(text).map_err(|error| {
        Error::new(format!("its {what} cannot be read: {}", in_one_line(&error.to_string())))
    })
}

/// Refuses a number that a plugin declares outside the given range.
fn check_declared<N: PartialOrd + Display>(what: &str, number: N, least: N, most: N) -> Result<()> {
    if (&least..=&most).contains(&&number) {
        return Ok(());
    }
    Err(Error::new(format!("declares {number} {what}; expected {least} to {most}")))
}

/// A model that can be built.
pub struct ModelPlugin {
    /// Its name.
    pub name: String,
    table: ModelTableRef,
}

impl ModelPlugin {
    /// Its description.
    ///
    /// # Errors
    /// If its description is not valid.
    pub fn describe(&self) -> Result<Description> {
        description(&self.table.describe()())
    }

    /// Builds it with these options (a JSON object) for images with the shape, dtype and device of
    /// `images` (`[0, C, H, W]`).
    ///
    /// # Errors
    /// Those of the plugin.
    pub fn create(&self, options: &str, images: &Tensor, classes: i64) -> Result<ModelInstance> {
        let instance = received(self.table.create()(options.into(), Lent::new(images), classes))?;
        Ok(ModelInstance { table: self.table, instance })
    }
}

/// A model that was built.
pub struct ModelInstance {
    table: ModelTableRef,
    instance: Instance,
}

// SAFETY: `Model: Send`, and an instance is used by one thread at a time (it is not Sync).
unsafe impl Send for ModelInstance {}

impl ModelInstance {
    /// Its parameters and buffers, by name; the tensors are not copies.
    ///
    /// # Errors
    /// If the instance panicked before.
    pub fn parameters(&self) -> Result<Vec<(String, Tensor)>> {
        let parameters = received(self.table.parameters()(self.instance))?;
        Ok(parameters
            .into_iter()
            .map(|parameter| (parameter.name.into_string(), parameter.tensor.into_tensor()))
            .collect())
    }

    /// Its declaration.
    ///
    /// # Errors
    /// If the instance panicked before.
    pub fn declaration(&self) -> Result<ModelDeclaration> {
        let Some(declare) = self.table.declare() else { return Ok(ModelDeclaration::default()) };
        let mut declared: ModelDeclaration = declaration(declare, self.instance)?;
        declared.notes.truncate(MOST_NOTES);
        declared.notes.iter_mut().for_each(|note| *note = in_one_line(note));
        Ok(declared)
    }

    /// Logits of images, with a graph if gradients are tracked.
    ///
    /// # Errors
    /// Those of the plugin.
    pub fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        received(self.table.forward()(self.instance, Lent::new(images), train)).map(Given::into_tensor)
    }
}

impl Drop for ModelInstance {
    fn drop(&mut self) {
        self.table.destroy()(self.instance);
    }
}

/// A sampler that can be made.
pub struct SamplerPlugin {
    /// Its name.
    pub name: String,
    table: SamplerTableRef,
    /// The contract that its library states.
    stated: Option<Version>,
}

impl SamplerPlugin {
    /// Its description.
    ///
    /// # Errors
    /// If its description is not valid.
    pub fn describe(&self) -> Result<Description> {
        description(&self.table.describe()())
    }

    /// Makes it with these options (a JSON object).
    ///
    /// # Errors
    /// Those of the plugin.
    pub fn create(&self, options: &str) -> Result<SamplerInstance> {
        let instance = received(self.table.create()(options.into()))?;
        // Whatever follows, the instance is destroyed.
        let made = Destroyed { instance, destroy: self.table.destroy() };
        let declaration: SamplerDeclaration = declaration(self.table.declare(), instance)?;
        declaration.check()?;
        let contract = built_for(self.stated, declaration.ascends.is_some());
        Ok(SamplerInstance { table: self.table, instance: made, contract, declaration })
    }
}

/// A sampler that was made.
pub struct SamplerInstance {
    table: SamplerTableRef,
    instance: Destroyed,
    contract: Version,
    declaration: SamplerDeclaration,
}

/// An instance that is destroyed when this is dropped.
struct Destroyed {
    instance: Instance,
    destroy: extern "C" fn(Instance),
}

impl Drop for Destroyed {
    fn drop(&mut self) {
        (self.destroy)(self.instance);
    }
}

// SAFETY: `Sampler: Send`, and an instance is used by one thread at a time (it is not Sync).
unsafe impl Send for SamplerInstance {}

impl SamplerInstance {
    /// Its declaration.
    pub fn declaration(&self) -> &SamplerDeclaration {
        &self.declaration
    }

    /// The version of the contract that it was built for.
    pub fn contract(&self) -> Version {
        self.contract
    }

    /// Whether it supports this threat model.
    ///
    /// # Errors
    /// The plugin's reason. A plugin that was built before the norm was added to the contract is
    /// not called, and the error names both versions; one of contract 1.0 or 1.1 has no other reason.
    pub fn supports(&self, threat: &ThreatModel) -> Result<()> {
        contract::check_norm(threat.norm, self.contract)?;
        let ThreatModel { norm, epsilon, domain: (low, high) } = *threat;
        self.table.supports().map_or(Ok(()), |supports| {
            received(supports(self.instance.instance, norm_code(norm), epsilon, low, high))
        })
    }

    /// One step. Random numbers come from `random`.
    ///
    /// # Errors
    /// Those of the plugin, or if it was built before the norm was added to the contract.
    pub fn step(&self, step: &Step, random: &dyn RandomSource) -> Result<Next> {
        self.call(self.table.step(), step, random)
    }

    /// Where a visit begins, if it declares `begins`.
    ///
    /// # Errors
    /// As for [`SamplerInstance::step`], or if the plugin's table has no such function.
    pub fn begin(&self, start: &Step, random: &dyn RandomSource) -> Result<Next> {
        let missing = || Error::new("declares begins, but exports no function `begin`");
        self.call(self.table.begin().ok_or_else(missing)?, start, random)
    }

    /// Accepts or rejects the last proposal.
    ///
    /// # Errors
    /// As for [`SamplerInstance::step`].
    pub fn finish(&self, proposal: &Step, random: &dyn RandomSource) -> Result<Next> {
        self.call(self.table.finish(), proposal, random)
    }

    fn call(
        &self,
        function: extern "C" fn(Instance, StepCallRef) -> RResult<Moved, RString>,
        step: &Step,
        random: &dyn RandomSource,
    ) -> Result<Next> {
        contract::check_norm(step.threat.norm, self.contract)?;
        let state: Vec<Lent> = step.state.iter().map(Lent::new).collect();
        let call = WithMetadata::new(StepCall {
            natural: Lent::new(step.natural),
            labels: Lent::new(step.labels),
            particles: Lent::new(step.particles),
            loss: Lent::new(step.loss),
            gradient: Lent::new(step.gradient),
            state: state.as_ptr(),
            state_length: state.len(),
            points: step.points.as_ptr(),
            points_length: step.points.len(),
            particles_per_point: step.particles_per_point,
            number: step.number,
            of: step.of,
            norm: norm_code(step.threat.norm),
            epsilon: step.threat.epsilon,
            domain_low: step.threat.domain.0,
            domain_high: step.threat.domain.1,
            host: &raw const random as *const c_void,
            draw: draw_for_step,
        });
        // SAFETY: `call` outlives the plugin's use of it, which ends when the function returns.
        let moved = received(function(
            self.instance.instance,
            StepCallRef(unsafe { PrefixRef::from_raw(&raw const call) }),
        ))?;
        Ok(Next {
            particles: moved.particles.into_tensor(),
            state: moved.state.into_iter().map(Given::into_tensor).collect(),
        })
    }
}

extern "C" fn draw_for_step(host: *const c_void, distribution: u32, like: Lent) -> RResult<Given, RString> {
    // SAFETY: `host` is the pointer that `SamplerInstance::call` put into this call.
    let source = unsafe { *(host as *const &dyn RandomSource) };
    drawn(source, distribution, like)
}

fn drawn(source: &dyn RandomSource, distribution: u32, like: Lent) -> RResult<Given, RString> {
    guarded(|| {
        let distribution = self::distribution(distribution)?;
        // SAFETY: the plugin lends the tensor for the length of this call.
        source.draw(distribution, &unsafe { like.tensor() }).map(Given::new)
    })
}

/// An attack that can be made.
pub struct AttackPlugin {
    /// Its name.
    pub name: String,
    table: AttackTableRef,
    /// The contract that its library states.
    stated: Option<Version>,
}

impl AttackPlugin {
    /// Its description.
    ///
    /// # Errors
    /// If its description is not valid.
    pub fn describe(&self) -> Result<Description> {
        description(&self.table.describe()())
    }

    /// Makes it with these options (a JSON object).
    ///
    /// # Errors
    /// Those of the plugin.
    pub fn create(&self, options: &str) -> Result<AttackInstance> {
        let instance = received(self.table.create()(options.into()))?;
        let contract = built_for(self.stated, self.table.declare().is_some());
        Ok(AttackInstance { table: self.table, instance, contract })
    }
}

/// An attack that was made.
pub struct AttackInstance {
    table: AttackTableRef,
    instance: Instance,
    contract: Version,
}

// SAFETY: `Attack: Send`, and an instance is used by one thread at a time (it is not Sync).
unsafe impl Send for AttackInstance {}

/// The host's side of an attack's callbacks.
struct AttackHost<'a> {
    random: &'a dyn RandomSource,
    victim: &'a dyn VictimCalls,
}

impl AttackInstance {
    /// The version of the contract that it was built for.
    pub fn contract(&self) -> Version {
        self.contract
    }

    /// Whether it supports this threat model.
    ///
    /// # Errors
    /// The plugin's reason. A plugin that was built before the norm was added to the contract is
    /// not called, and the error names both versions.
    pub fn supports(&self, threat: &ThreatModel) -> Result<()> {
        contract::check_norm(threat.norm, self.contract)?;
        let ThreatModel { norm, epsilon, domain: (low, high) } = *threat;
        received(self.table.supports()(self.instance, norm_code(norm), epsilon, low, high))
    }

    /// Whether it can attack models of this task. An attack of contract 1.0 has no such method, and
    /// fails when it runs.
    ///
    /// # Errors
    /// The plugin's reason.
    pub fn supports_task(&self, task: &Task) -> Result<()> {
        let Task { channels, height, width, classes } = *task;
        self.table
            .supports_task()
            .map_or(Ok(()), |supports| received(supports(self.instance, channels, height, width, classes)))
    }

    /// Its declaration.
    ///
    /// # Errors
    /// If the instance panicked before, or declares more queries than any attack can make.
    pub fn declaration(&self) -> Result<AttackDeclaration> {
        let Some(declare) = self.table.declare() else { return Ok(AttackDeclaration::default()) };
        let declared: AttackDeclaration = declaration(declare, self.instance)?;
        check_declared("queries", declared.query_budget.unwrap_or(0), 0, MOST_QUERIES)?;
        Ok(declared)
    }

    /// Candidates for these examples. Random numbers come from `random`, logits and
    /// gradients from `victim`.
    ///
    /// # Errors
    /// Those of the plugin, or if it was built before the norm was added to the contract.
    pub fn run(
        &self,
        (natural, labels): (&Tensor, &Tensor),
        points: &[i64],
        classes: i64,
        threat: ThreatModel,
        victim: &dyn VictimCalls,
        random: &dyn RandomSource,
    ) -> Result<Tensor> {
        contract::check_norm(threat.norm, self.contract)?;
        let host = AttackHost { random, victim };
        let call = WithMetadata::new(AttackCall {
            natural: Lent::new(natural),
            labels: Lent::new(labels),
            points: points.as_ptr(),
            points_length: points.len(),
            classes,
            norm: norm_code(threat.norm),
            epsilon: threat.epsilon,
            domain_low: threat.domain.0,
            domain_high: threat.domain.1,
            host: &raw const host as *const c_void,
            draw: draw_for_attack,
            logits: victim_logits,
            differentiable: victim_differentiable,
            input_gradient: victim_input_gradient,
        });
        // SAFETY: `call` outlives the plugin's use of it, which ends when the function returns.
        let call = AttackCallRef(unsafe { PrefixRef::from_raw(&raw const call) });
        received(self.table.run()(self.instance, call)).map(Given::into_tensor)
    }
}

impl Drop for AttackInstance {
    fn drop(&mut self) {
        self.table.destroy()(self.instance);
    }
}

/// # Safety
/// `host` is the pointer that `AttackInstance::run` put into a call still in progress.
unsafe fn attack_host<'a>(host: *const c_void) -> &'a AttackHost<'a> {
    // SAFETY: the caller's promise.
    unsafe { &*(host as *const AttackHost) }
}

extern "C" fn draw_for_attack(host: *const c_void, distribution: u32, like: Lent) -> RResult<Given, RString> {
    // SAFETY: the plugin passes back the host pointer of its call.
    drawn(unsafe { attack_host(host) }.random, distribution, like)
}

extern "C" fn victim_logits(host: *const c_void, images: Lent) -> RResult<Given, RString> {
    // SAFETY: the plugin passes back the host pointer of its call, and lends the tensor.
    guarded(|| unsafe { attack_host(host).victim.logits(&images.tensor()) }.map(Given::new))
}

extern "C" fn victim_differentiable(host: *const c_void, images: Lent) -> RResult<LogitsAndLeaf, RString> {
    guarded(|| {
        // SAFETY: the plugin passes back the host pointer of its call, and lends the tensor.
        let (logits, leaf) = unsafe { attack_host(host).victim.differentiable(&images.tensor()) }?;
        Ok(LogitsAndLeaf { logits: Given::new(logits), leaf: Given::new(leaf) })
    })
}

extern "C" fn victim_input_gradient(host: *const c_void, loss: Lent, leaf: Lent) -> RResult<Given, RString> {
    guarded(|| {
        // SAFETY: the plugin passes back the host pointer of its call, and lends the tensors.
        let (host, loss, leaf) = unsafe { (attack_host(host), loss.tensor(), leaf.tensor()) };
        host.victim.input_gradient(&loss, &leaf).map(Given::new)
    })
}

/// An objective that can be made.
pub struct ObjectivePlugin {
    /// Its name.
    pub name: String,
    table: ObjectiveTableRef,
    /// The contract that its library states.
    stated: Option<Version>,
}

impl ObjectivePlugin {
    /// Its description.
    ///
    /// # Errors
    /// If its description is not valid.
    pub fn describe(&self) -> Result<Description> {
        description(&self.table.describe()())
    }

    /// Makes it with these options (a JSON object).
    ///
    /// # Errors
    /// Those of the plugin.
    pub fn create(&self, options: &str) -> Result<ObjectiveInstance> {
        let instance = received(self.table.create()(options.into()))?;
        // Whatever follows, the instance is destroyed.
        let made = Destroyed { instance, destroy: self.table.destroy() };
        let declaration: ObjectiveDeclaration = declaration(self.table.declare(), instance)?;
        declaration.check()?;
        let contract = self.stated.unwrap_or(contract::CURRENT);
        Ok(ObjectiveInstance { table: self.table, instance: made, contract, declaration })
    }
}

/// An objective that was made.
pub struct ObjectiveInstance {
    table: ObjectiveTableRef,
    instance: Destroyed,
    contract: Version,
    declaration: ObjectiveDeclaration,
}

// SAFETY: `Objective: Send`, and an instance is used by one thread at a time (it is not Sync).
unsafe impl Send for ObjectiveInstance {}

/// The inputs of an objective on the host's side, but for the network and the random numbers: see
/// [`Batch`].
#[derive(Clone, Copy)]
pub struct Minibatch<'a> {
    /// [`Batch::logits`].
    pub logits: &'a Tensor,
    /// [`Batch::natural_logits`].
    pub natural_logits: Option<&'a Tensor>,
    /// [`Batch::natural`].
    pub natural: &'a Tensor,
    /// [`Batch::particles`].
    pub particles: &'a Tensor,
    /// [`Batch::start`].
    pub start: &'a Tensor,
    /// [`Batch::labels`].
    pub labels: &'a Tensor,
    /// [`Batch::points`].
    pub points: &'a [i64],
    /// [`Batch::particles_per_point`].
    pub particles_per_point: usize,
    /// [`Batch::classes`].
    pub classes: i64,
    /// [`Batch::threat`].
    pub threat: ThreatModel,
    /// [`Batch::state`].
    pub state: &'a [Tensor],
}

impl Minibatch<'_> {
    /// The tensors that the objective is lent, with their names in [`Batch`].
    pub fn lent(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        let Self { logits, natural_logits, natural, particles, start, labels, state, .. } = *self;
        let named = [
            ("logits", logits),
            ("natural", natural),
            ("particles", particles),
            ("start", start),
            ("labels", labels),
        ];
        let natural_logits = natural_logits.map(|logits| ("natural_logits", logits));
        named.into_iter().chain(natural_logits).chain(state.iter().map(|state| ("state", state)))
    }
}

/// The host's side of an objective's callbacks.
struct ObjectiveHost<'a> {
    random: &'a dyn RandomSource,
    network: &'a dyn NetworkCalls,
}

impl ObjectiveInstance {
    /// Its declaration.
    pub fn declaration(&self) -> &ObjectiveDeclaration {
        &self.declaration
    }

    /// Whether it can be used in this setting.
    ///
    /// # Errors
    /// The plugin's reason. A plugin that was built before the norm was added to the contract is
    /// not called, and the error names both versions.
    pub fn supports(&self, setting: &Setting) -> Result<()> {
        received(self.table.supports()(self.instance.instance, self.setting_call(setting)?))
    }

    /// The names and the first values of its state.
    ///
    /// # Errors
    /// As for [`ObjectiveInstance::supports`], or if there are too many tensors.
    pub fn state(&self, setting: &Setting) -> Result<Vec<(String, Tensor)>> {
        let state = received(self.table.state()(self.instance.instance, self.setting_call(setting)?))?;
        check_declared("state tensors", state.len(), 0, MOST_STATE_TENSORS)?;
        let named = state.into_iter().map(|state| (state.name.into_string(), state.tensor.into_tensor()));
        Ok(named.collect())
    }

    fn setting_call(&self, setting: &Setting) -> Result<SettingCall> {
        let Setting { threat, particles_per_point, classes, training_points } = *setting;
        contract::check_norm(threat.norm, self.contract)?;
        let ThreatModel { norm, epsilon, domain: (domain_low, domain_high) } = threat;
        Ok(SettingCall {
            norm: norm_code(norm),
            epsilon,
            domain_low,
            domain_high,
            particles_per_point,
            classes,
            training_points,
        })
    }

    /// The outer loss and the next state, with gradient tracking as it is. Random numbers come from
    /// `random`, further logits from `network`.
    ///
    /// # Errors
    /// Those of the plugin, or if it was built before the norm was added to the contract.
    pub fn outer(
        &self,
        minibatch: &Minibatch,
        network: &dyn NetworkCalls,
        random: &dyn RandomSource,
    ) -> Result<Outer> {
        let outer = self.table.outer();
        let descended = self.call(minibatch, network, random, outer)?;
        Ok(Outer {
            loss: descended.loss.into_tensor(),
            state: descended.state.into_iter().map(Given::into_tensor).collect(),
        })
    }

    /// The inner loss of each row, with gradient tracking as it is.
    ///
    /// # Errors
    /// As for [`ObjectiveInstance::outer`].
    pub fn inner(&self, minibatch: &Minibatch, random: &dyn RandomSource) -> Result<Tensor> {
        self.call(minibatch, &NoNetwork, random, self.table.inner()).map(Given::into_tensor)
    }

    fn call<T>(
        &self,
        minibatch: &Minibatch,
        network: &dyn NetworkCalls,
        random: &dyn RandomSource,
        function: extern "C" fn(Instance, BatchCallRef) -> RResult<T, RString>,
    ) -> Result<T> {
        let threat = minibatch.threat;
        contract::check_norm(threat.norm, self.contract)?;
        let state: Vec<Lent> = minibatch.state.iter().map(Lent::new).collect();
        let host = ObjectiveHost { random, network };
        let call = WithMetadata::new(BatchCall {
            logits: Lent::new(minibatch.logits),
            natural_logits: minibatch.natural_logits.map(Lent::new).into(),
            natural: Lent::new(minibatch.natural),
            particles: Lent::new(minibatch.particles),
            start: Lent::new(minibatch.start),
            labels: Lent::new(minibatch.labels),
            points: minibatch.points.as_ptr(),
            points_length: minibatch.points.len(),
            particles_per_point: minibatch.particles_per_point,
            classes: minibatch.classes,
            norm: norm_code(threat.norm),
            epsilon: threat.epsilon,
            domain_low: threat.domain.0,
            domain_high: threat.domain.1,
            state: state.as_ptr(),
            state_length: state.len(),
            host: &raw const host as *const c_void,
            draw: draw_for_objective,
            network_logits: objective_logits,
            input_gradient: objective_input_gradient,
        });
        // SAFETY: `call` outlives the plugin's use of it, which ends when the function returns.
        let call = BatchCallRef(unsafe { PrefixRef::from_raw(&raw const call) });
        received(function(self.instance.instance, call))
    }
}

/// The network of an inner loss, which may not call it.
struct NoNetwork;

impl NetworkCalls for NoNetwork {
    fn logits(&self, _: &Tensor, _: bool) -> Result<Tensor> {
        Err(Error::new("the network can be called in `outer` only"))
    }

    fn input_gradient(&self, _: &Tensor, _: &Tensor) -> Result<Tensor> {
        Err(Error::new("the network can be called in `outer` only"))
    }
}

/// # Safety
/// `host` is the pointer that `ObjectiveInstance::call` put into a call still in progress.
unsafe fn objective_host<'a>(host: *const c_void) -> &'a ObjectiveHost<'a> {
    // SAFETY: the caller's promise.
    unsafe { &*(host as *const ObjectiveHost) }
}

extern "C" fn draw_for_objective(
    host: *const c_void,
    distribution: u32,
    like: Lent,
) -> RResult<Given, RString> {
    // SAFETY: the plugin passes back the host pointer of its call.
    drawn(unsafe { objective_host(host) }.random, distribution, like)
}

extern "C" fn objective_logits(host: *const c_void, images: Lent, train: bool) -> RResult<Given, RString> {
    // SAFETY: the plugin passes back the host pointer of its call, and lends the tensor.
    guarded(|| unsafe { objective_host(host).network.logits(&images.tensor(), train) }.map(Given::new))
}

extern "C" fn objective_input_gradient(
    host: *const c_void,
    loss: Lent,
    images: Lent,
) -> RResult<Given, RString> {
    guarded(|| {
        // SAFETY: the plugin passes back the host pointer of its call, and lends the tensors.
        let (host, loss, images) = unsafe { (objective_host(host), loss.tensor(), images.tensor()) };
        host.network.input_gradient(&loss, &images).map(Given::new)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FixedNumbers;
    use crate::NoOptions;

    /// A sampler that does not move its particles, and an attack that returns the natural examples.
    struct Idle;

    impl Sampler for Idle {
        type Options = NoOptions;

        fn new(_: NoOptions) -> Result<Self> {
            Ok(Self)
        }

        fn step(&self, step: &Step) -> Result<Next> {
            Ok(step.particles.copy().into())
        }
    }

    impl Attack for Idle {
        type Options = NoOptions;

        fn new(_: NoOptions) -> Result<Self> {
            Ok(Self)
        }

        fn run(&self, target: &Target) -> Result<Tensor> {
            Ok(target.natural.copy())
        }
    }

    /// A code that has no meaning yet.
    const UNKNOWN: u32 = 3;

    #[test]
    fn every_norm_and_distribution_is_read_back_from_its_code() {
        for norm in Norm::ALL {
            let threat = ThreatModel { norm, epsilon: 0.5, domain: (-1.0, 2.0) };
            assert_eq!(threat_model(norm_code(norm), 0.5, -1.0, 2.0), Ok(threat));
        }
        for known in Distribution::ALL {
            assert_eq!(distribution(distribution_code(known)), Ok(known));
        }
        // Built plugins contain these numbers.
        assert_eq!([Norm::Linf, Norm::L2, Norm::L1].map(norm_code), [0, 1, 2]);
        assert_eq!([Distribution::Normal, Distribution::Uniform].map(distribution_code), [0, 1]);
    }

    #[test]
    fn a_norm_that_a_plugin_does_not_support_is_an_error() {
        let expected =
            format!("norm code 3 is not supported by this plugin (contract {})", contract::CURRENT);
        let error = threat_model(UNKNOWN, 0.3, 0.0, 1.0).expect_err("refused").to_string();
        assert!(error.starts_with(&expected), "{error}");

        let table = attack_table::<Idle>();
        let instance = received(table.create()("{}".into())).expect("an instance");
        let supports = |norm| received(table.supports()(instance, norm, 0.3, 0.0, 1.0));
        assert_eq!(supports(norm_code(Norm::L2)), Ok(()));
        let error = supports(UNKNOWN).expect_err("refused").to_string();
        assert!(error.starts_with(&expected), "{error}");
        table.destroy()(instance);
    }

    #[test]
    fn a_step_in_a_norm_that_a_sampler_does_not_support_is_an_error() {
        let (images, labels) =
            (Tensor::zeros([1, 1, 2, 2], tch::kind::FLOAT_CPU), Tensor::from_slice(&[0i64]));
        let points = [0i64];
        let numbers = FixedNumbers(vec![0.0]);
        let random: &dyn RandomSource = &numbers;
        let call = |norm| {
            WithMetadata::new(StepCall {
                natural: Lent::new(&images),
                labels: Lent::new(&labels),
                particles: Lent::new(&images),
                loss: Lent::new(&images),
                gradient: Lent::new(&images),
                state: std::ptr::dangling(),
                state_length: 0,
                points: points.as_ptr(),
                points_length: points.len(),
                particles_per_point: 1,
                number: 0,
                of: 1,
                norm,
                epsilon: 0.3,
                domain_low: 0.0,
                domain_high: 1.0,
                host: &raw const random as *const c_void,
                draw: draw_for_step,
            })
        };
        let table = sampler_table::<Idle>();
        let instance = received(table.create()("{}".into())).expect("an instance");
        let step = |norm| {
            let call = call(norm);
            // SAFETY: `call` outlives the function's use of it, which ends when it returns.
            let moved = table.step()(instance, StepCallRef(unsafe { PrefixRef::from_raw(&raw const call) }));
            received(moved).map(|moved| moved.particles.into_tensor())
        };
        assert_eq!(step(norm_code(Norm::Linf)), Ok(images.shallow_clone()));
        let error = step(UNKNOWN).expect_err("refused").to_string();
        assert!(error.starts_with("norm code 3 is not supported by this plugin"), "{error}");
        table.destroy()(instance);
    }

    #[test]
    fn a_distribution_that_the_host_does_not_support_is_an_error() {
        let numbers = FixedNumbers(vec![0.5]);
        let like = Tensor::zeros([2], tch::kind::FLOAT_CPU);
        let draw = |code| received(drawn(&numbers, code, Lent::new(&like))).map(Given::into_tensor);
        assert_eq!(draw(1), Ok(Tensor::from_slice(&[0.5f32, 0.5])));
        let error = draw(UNKNOWN).expect_err("refused").to_string();
        let expected =
            format!("distribution code 3 is not supported by this host (contract {})", contract::CURRENT);
        assert!(error.starts_with(&expected), "{error}");
    }

    /// A sampler plugin of a library that states this contract, or none.
    fn sampler(stated: Option<Version>) -> SamplerPlugin {
        SamplerPlugin { name: "idle".to_owned(), table: sampler_table::<Idle>(), stated }
    }

    #[test]
    fn the_contract_is_stated_by_the_library_or_recognised_by_the_additions_of_1_1() {
        let version = |minor| Some(Version::one(minor));
        assert_eq!(root_module().minor(), Some(contract::CURRENT.minor));
        for (stated, expected) in [(None, "1.1"), (version(2), "1.2"), (version(7), "1.7")] {
            let attack = AttackPlugin { name: "idle".to_owned(), table: attack_table::<Idle>(), stated };
            let attack = attack.create("{}").expect("an attack");
            let sampler = sampler(stated).create("{}").expect("a sampler");
            assert_eq!(
                [attack.contract(), sampler.contract()].map(|version| version.to_string()),
                [expected; 2]
            );
        }
        assert_eq!(built_for(None, false).to_string(), "1.0");
    }

    #[test]
    fn a_plugin_that_is_older_than_a_norm_is_not_called_with_it() {
        // Older than every norm.
        let stated = Some(Version { major: 0, minor: 9 });
        let attack = AttackPlugin { name: "idle".to_owned(), table: attack_table::<Idle>(), stated };
        let attack = attack.create("{}").expect("an attack");
        let sampler = sampler(stated).create("{}").expect("a sampler");

        let (images, labels) =
            (Tensor::zeros([1, 1, 2, 2], tch::kind::FLOAT_CPU), Tensor::from_slice(&[0i64]));
        let (points, numbers, threat) = ([0i64], FixedNumbers(vec![0.0]), ThreatModel::default());
        let step = Step {
            natural: &images,
            labels: &labels,
            particles: &images,
            loss: &images,
            gradient: &images,
            state: &[],
            points: &points,
            particles_per_point: 1,
            number: 0,
            of: 1,
            threat,
            random: Random::new(&numbers),
        };
        let outcomes = [
            attack.supports(&threat),
            attack.run((&images, &labels), &points, 2, threat, &NoVictim, &numbers).map(drop),
            sampler.supports(&threat),
            sampler.step(&step, &numbers).map(drop),
            sampler.finish(&step, &numbers).map(drop),
        ];
        for outcome in outcomes {
            let error = outcome.expect_err("refused").to_string();
            for part in ["built for contract 0.9", "the norm linf", "contract 1.0 added"] {
                assert!(error.contains(part), "{error}");
            }
        }
    }

    /// Declares numbers from its options.
    struct Declares(Numbers);

    #[derive(Default, Serialize, Deserialize, schemars::JsonSchema)]
    #[serde(default)]
    struct Numbers {
        steps: usize,
        states: usize,
        queries: u64,
    }

    impl Sampler for Declares {
        type Options = Numbers;

        fn new(numbers: Numbers) -> Result<Self> {
            Ok(Self(numbers))
        }

        fn default_steps(&self) -> usize {
            self.0.steps
        }

        fn state_tensors(&self) -> usize {
            self.0.states
        }

        fn step(&self, step: &Step) -> Result<Next> {
            Ok(step.particles.copy().into())
        }
    }

    impl Attack for Declares {
        type Options = Numbers;

        fn new(numbers: Numbers) -> Result<Self> {
            Ok(Self(numbers))
        }

        fn query_budget(&self) -> Option<u64> {
            Some(self.0.queries)
        }

        fn run(&self, target: &Target) -> Result<Tensor> {
            Ok(target.natural.copy())
        }
    }

    #[test]
    fn declared_numbers_outside_their_range_are_errors() {
        let sampler =
            SamplerPlugin { name: "declares".to_owned(), table: sampler_table::<Declares>(), stated: None };
        let attack =
            AttackPlugin { name: "declares".to_owned(), table: attack_table::<Declares>(), stated: None };
        let samplers = |options: &str| sampler.create(options).map(drop);
        let attacks = |options: &str| attack.create(options)?.declaration().map(drop);
        assert_eq!(samplers(r#"{"steps": 65534, "states": 64}"#), Ok(()));
        assert_eq!(attacks(r#"{"queries": 1000000000}"#), Ok(()));
        for (outcome, expected) in [
            (samplers(r#"{"steps": 0}"#), "declares 0 steps; expected 1 to 65534"),
            (samplers(r#"{"steps": 65535}"#), "declares 65535 steps; expected 1 to 65534"),
            (
                samplers(r#"{"steps": 1, "states": 18446744073709551615}"#),
                "declares 18446744073709551615 state tensors; expected 0 to 64",
            ),
            (attacks(r#"{"queries": 1000000001}"#), "declares 1000000001 queries; expected 0 to 1000000000"),
        ] {
            assert_eq!(outcome.expect_err("refused").to_string(), expected);
        }
    }

    /// A declaration with its default values, changed.
    fn declaration_with(change: impl FnOnce(&mut serde_json::Value)) -> SamplerDeclaration {
        let mut declaration = serde_json::json!({
            "start": "store", "default_steps": 1, "projection": "host", "state_tensors": 1,
            "judges_last_proposal": true,
        });
        change(&mut declaration);
        serde_json::from_value(declaration).expect("a declaration")
    }

    #[test]
    fn a_declaration_of_the_first_contract_means_what_it_meant() {
        let first = declaration_with(|_| {});
        assert_eq!(first.check(), Ok(()));
        assert!(first.uses_gradient && !first.judges_by_gradient);
        assert!(!first.begins && !first.interacts && first.reach == 1.0);
        assert_eq!(first.law, Law::Undeclared);
        assert_eq!(first.state(), [StateShape::Particles]);
    }

    #[test]
    fn the_state_of_a_visit_is_what_is_stored_and_then_zeros() {
        let declaration = declaration_with(|declaration| {
            declaration["numbers"] = serde_json::json!(["step", "acceptance"]);
            declaration["figures"] = serde_json::json!(["acceptance"]);
            declaration["visit_tensors"] = 1.into();
        });
        assert_eq!(declaration.check(), Ok(()));
        assert_eq!(declaration.stored_state(), [StateShape::Particles, StateShape::Numbers(2)]);
        let particles = Tensor::ones([3, 1, 2, 2], tch::kind::FLOAT_CPU);
        let numbers = Tensor::from_slice(&[1f32, 0.5, 2.0, 0.25, 3.0, 0.0]).reshape([3, 2]);
        let of_another_visit = particles.shallow_clone();
        let state = declaration.begin_visit(
            vec![particles.shallow_clone(), numbers.shallow_clone(), of_another_visit],
            &particles,
        );
        assert_eq!(state, [particles.shallow_clone(), numbers, particles.zeros_like()]);
        let figures = declaration.figures_of(&state).expect("figures");
        assert_eq!(figures, Tensor::from_slice(&[0.5f32, 0.25, 0.0]).reshape([3, 1]));
        assert_eq!(declaration_with(|_| {}).figures_of(&state), None);
    }

    #[test]
    fn declarations_that_contradict_themselves_are_errors() {
        for (key, value, expected) in [
            ("numbers", serde_json::json!(["a", "a"]), "declares the number `a` twice"),
            ("figures", serde_json::json!(["a"]), "declares the figure `a`, which is none of its numbers"),
            ("visit_tensors", 65.into(), "declares 65 state tensors of a visit; expected 0 to 64"),
            (
                "law",
                serde_json::json!({"gibbs": {"lambda": 0.0}}),
                "declares a law with lambda = 0; expected a positive, finite number",
            ),
        ] {
            let refused = declaration_with(|declaration| declaration[key] = value).check();
            assert_eq!(refused.expect_err("refused").to_string(), expected);
        }
        for needed in ["judges_last_proposal", "uses_gradient"] {
            let refused = declaration_with(|declaration| {
                declaration["judges_by_gradient"] = true.into();
                declaration[needed] = false.into();
            });
            let error = refused.check().expect_err("refused").to_string();
            assert!(error.starts_with("declares judges_by_gradient without"), "{error}");
        }
    }

    #[test]
    fn a_start_of_its_own_a_reach_and_interaction_are_checked() {
        let with = |changes: &[(&str, serde_json::Value)]| {
            declaration_with(|declaration| {
                declaration["judges_last_proposal"] = false.into();
                changes.iter().for_each(|(key, value)| declaration[key] = value.clone());
            })
        };
        let law = || ("law", serde_json::json!({"gibbs": {"lambda": 1.0}}));
        let wide = with(&[("reach", 3.0.into()), ("begins", true.into()), ("interacts", true.into())]);
        assert_eq!(wide.check(), Ok(()));
        let threat = ThreatModel { epsilon: 0.25, ..ThreatModel::default() };
        assert_eq!(wide.ball(&threat), ThreatModel { epsilon: 0.75, ..threat });
        for (changes, expected) in [
            (vec![("reach", 0.5.into())], "declares a reach of 0.5; expected a number of at least 1"),
            (vec![("reach", 2.0.into()), law()], "declares a law with begins, interacts or a reach above 1"),
            (vec![("begins", true.into()), law()], "declares a law with begins,"),
            (vec![("interacts", true.into()), law()], "declares a law with begins,"),
            (
                vec![("begins", true.into()), ("judges_last_proposal", true.into())],
                "declares begins and judges_last_proposal",
            ),
        ] {
            let error = with(&changes).check().expect_err("refused").to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn descriptions_are_limited_and_their_errors_show_no_control_character() {
        let schema = |text: &str| description(&format!("{{\"options\": \"{text}\"}}").into());
        assert!(schema(&"x".repeat(1000)).is_ok());
        let error = schema(&"x".repeat(MOST_BYTES)).expect_err("refused").to_string();
        assert_eq!(error, "its description has 1048591 bytes; expected at most 1048576");
        let error = read_json::<Start>("declaration", "\"\\u001b[31m\"").expect_err("refused").to_string();
        assert!(error.contains("unknown variant `\u{fffd}[31m`"), "{error}");
    }

    /// Panics when it is dropped, and so does what that panic carries.
    struct PanicsInDrop(usize);

    impl Drop for PanicsInDrop {
        fn drop(&mut self) {
            if self.0 > 0 {
                std::panic::panic_any(PanicsInDrop(self.0 - 1));
            }
        }
    }

    #[test]
    fn a_panic_that_panics_again_when_it_is_dropped_is_an_error_with_the_place_of_the_first() {
        let line = line!() + 1;
        let outcome: RResult<(), RString> = guarded(|| std::panic::panic_any(PanicsInDrop(3)));
        let message = outcome.into_result().expect_err("an error").to_string();
        assert_eq!(message, format!("panicked at {}:{line}: no message", file!()));
        let next: RResult<(), RString> = guarded(|| panic!("another"));
        assert!(next.into_result().expect_err("an error").ends_with("another"));
    }

    /// A victim whose calls all fail.
    struct NoVictim;

    impl VictimCalls for NoVictim {
        fn logits(&self, _: &Tensor) -> Result<Tensor> {
            Err(Error::new("no logits"))
        }

        fn differentiable(&self, _: &Tensor) -> Result<(Tensor, Tensor)> {
            Err(Error::new("no logits"))
        }

        fn input_gradient(&self, _: &Tensor, _: &Tensor) -> Result<Tensor> {
            Err(Error::new("no gradient"))
        }
    }

    /// Types of contract 1.0. The derive makes accessors that nothing calls.
    #[allow(dead_code)]
    mod first {
        use super::*;

        /// The functions of an attack plugin as contract 1.0 had them.
        #[repr(C)]
        #[derive(StableAbi)]
        #[sabi(kind(Prefix(prefix_ref = FirstAttackTableRef)))]
        pub struct FirstAttackTable {
            pub describe: extern "C" fn() -> RString,
            pub create: extern "C" fn(RStr<'_>) -> RResult<Instance, RString>,
            pub supports: extern "C" fn(Instance, u32, f64, f64, f64) -> RResult<(), RString>,
            pub run: extern "C" fn(Instance, AttackCallRef) -> RResult<Given, RString>,
            #[sabi(last_prefix_field)]
            pub destroy: extern "C" fn(Instance),
        }
    }

    #[test]
    fn an_attack_of_the_first_contract_is_recognised_by_its_shorter_table() {
        let table = attack_table::<Idle>();
        let first = first::FirstAttackTable {
            describe: table.describe(),
            create: table.create(),
            supports: table.supports(),
            run: table.run(),
            destroy: table.destroy(),
        };
        // SAFETY: the fields of the first table have the same layout, and the accessors of the
        // other fields check how many fields the table has.
        let table = unsafe {
            std::mem::transmute::<first::FirstAttackTableRef, AttackTableRef>(first.leak_into_prefix())
        };
        let attack = AttackPlugin { name: "idle".to_owned(), table, stated: None };
        let attack = attack.create("{}").expect("an attack");
        assert_eq!(attack.contract(), Version::one(0));
        for norm in Norm::ALL {
            let supported = attack.supports(&ThreatModel { norm, ..ThreatModel::default() });
            assert_eq!(supported.is_ok(), contract::norm_since(norm) == Version::one(0), "{norm}");
        }
    }
}
