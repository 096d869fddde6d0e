//! Plugins that each break one rule of `host conform`, and a few good ones.

mod objectives;

use plugin_api::abi::{self, SamplerTableRef};
use plugin_api::law::Law;
use plugin_api::losses::cross_entropy;
use plugin_api::metropolis::{Boundary, Judged, Metropolis};
use plugin_api::tch::nn::{self, Module, ModuleT};
use plugin_api::tch::{self, Kind, Tensor};
use plugin_api::{
    Attack, Error, Model, Next, NoOptions, Projection, Result, Sampler, Step, Target, Task, ThreatModel,
    export_attack, export_model, export_plugin, export_sampler,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::ThreadId;

/// A sampler with options, whose `new` and `step` are the functions given.
macro_rules! sampler {
    ($name:literal, $sampler:ident, $options:ty, $new:expr, $step:expr) => {
        export_sampler!($name, $sampler);

        struct $sampler;

        impl Sampler for $sampler {
            type Options = $options;

            fn new(options: $options) -> Result<Self> {
                let new: fn($options) -> Result<()> = $new;
                new(options).map(|()| Self)
            }

            fn step(&self, step: &Step) -> Result<Next> {
                let next: fn(&Step) -> Result<Tensor> = $step;
                next(step).map(Next::from)
            }
        }
    };
    ($name:literal, $sampler:ident, $step:expr) => {
        sampler!($name, $sampler, NoOptions, |_| Ok(()), $step);
    };
}

/// The factor of the loss in the law that the samplers of `gibbs!` declare.
const LAMBDA: f64 = 10.0;

/// A sampler on boxes that declares a Gibbs law, whose `step` and `finish` are the function given. It
/// keeps the numbers of a Metropolis chain, the position that a proposal was made from, and the
/// gradient there.
macro_rules! gibbs {
    ($name:literal, $sampler:ident, $next:expr) => {
        export_sampler!($name, $sampler);

        struct $sampler;

        impl Sampler for $sampler {
            type Options = NoOptions;

            fn new(_: NoOptions) -> Result<Self> {
                Ok(Self)
            }

            fn law(&self) -> Law {
                Law::Gibbs { lambda: LAMBDA }
            }

            fn supports(&self, threat: &ThreatModel) -> Result<()> {
                Boundary::Reflect.supports(threat)
            }

            fn projection(&self) -> Projection {
                Projection::Sampler
            }

            fn numbers(&self) -> Vec<&'static str> {
                Metropolis::NUMBERS.to_vec()
            }

            fn visit_tensors(&self) -> usize {
                2
            }

            fn judges_last_proposal(&self) -> bool {
                true
            }

            fn step(&self, step: &Step) -> Result<Next> {
                let next: fn(&Step) -> Result<Next> = $next;
                next(step)
            }

            fn finish(&self, step: &Step) -> Result<Next> {
                self.step(step)
            }
        }
    };
}

/// Judges the proposal with this factor of the loss, as if proposals were symmetric. The next
/// proposal is `propose` of the position and the gradient there, brought back by `bring_back`.
fn metropolis(
    step: &Step,
    lambda: f64,
    propose: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
    bring_back: impl Fn(&Tensor, &Tensor) -> Tensor,
) -> Result<Next> {
    let [numbers, position, gradient] = step.state else {
        return Err(Error::new("expected 3 state tensors"));
    };
    let chain = Metropolis::new(lambda, TAU, 0, 0.5)?;
    let Judged { accepted, numbers } = chain.judge(step, numbers, position, None)?;
    let position = step.particles.where_self(&accepted, position);
    let gradient = step.gradient.where_self(&accepted, gradient);
    let particles = if step.number == step.of {
        position.copy()
    } else {
        bring_back(&position, &propose(&position, &gradient)?)
    };
    Ok(Next { particles, state: vec![numbers, position, gradient] })
}

/// The standard deviation of the noise of a step.
const TAU: f64 = 0.1;

fn walk(step: &Step, position: &Tensor) -> Result<Tensor> {
    Ok(position + step.random.normal(position)? * TAU)
}

fn langevin(step: &Step, position: &Tensor, gradient: &Tensor) -> Result<Tensor> {
    Ok(walk(step, position)? + gradient * (TAU * TAU / 2.0 * LAMBDA))
}

gibbs!("forgets-to-judge", ForgetsToJudge, |step| {
    let proposal = langevin(step, step.particles, step.gradient)?;
    let (particles, _) = Boundary::Reflect.bring_back(step, step.particles, &proposal);
    Ok(Next { particles, state: step.state.iter().map(Tensor::copy).collect() })
});

gibbs!("forgets-the-way-back", ForgetsTheWayBack, |step| {
    let reflect = |from: &Tensor, proposal: &Tensor| Boundary::Reflect.bring_back(step, from, proposal).0;
    metropolis(step, LAMBDA, |position, gradient| langevin(step, position, gradient), reflect)
});

gibbs!("projects-proposals", ProjectsProposals, |step| {
    let project = |_: &Tensor, proposal: &Tensor| step.threat.project(proposal, step.natural);
    metropolis(step, LAMBDA, |position, _| walk(step, position), project)
});

gibbs!("halves-lambda", HalvesLambda, |step| {
    let reflect = |from: &Tensor, proposal: &Tensor| Boundary::Reflect.bring_back(step, from, proposal).0;
    metropolis(step, LAMBDA / 2.0, |position, _| walk(step, position), reflect)
});

/// An attack without options that runs the function given.
macro_rules! attack {
    ($name:literal, $attack:ident, $run:expr) => {
        export_attack!($name, $attack);

        struct $attack;

        impl Attack for $attack {
            type Options = NoOptions;

            fn new(_: NoOptions) -> Result<Self> {
                Ok(Self)
            }

            fn run(&self, target: &Target) -> Result<Tensor> {
                let run: fn(&Target) -> Result<Tensor> = $run;
                run(target)
            }
        }
    };
}

/// A model without options, of one linear layer, whose forward is the function given.
macro_rules! model {
    ($name:literal, $model:ident, $forward:expr) => {
        export_model!($name, $model);

        struct $model {
            layer: nn::Linear,
        }

        impl Model for $model {
            type Options = NoOptions;

            fn new(_: NoOptions, task: Task, path: &nn::Path) -> Result<Self> {
                let pixels = task.channels * task.height * task.width;
                Ok(Self { layer: nn::linear(path / "layer", pixels, task.classes, Default::default()) })
            }

            fn forward(&self, images: &Tensor, _train: bool) -> Result<Tensor> {
                let forward: fn(&nn::Linear, &Tensor) -> Tensor = $forward;
                Ok(forward(&self.layer, images))
            }
        }
    };
}

/// The correct step of most of these samplers: it raises the loss.
fn ascend(step: &Step) -> Result<Tensor> {
    Ok(step.particles + step.threat.steepest_ascent(step.gradient) * 0.05)
}

// ----------------------------------------------------------------------------------- loading

/// A static initialiser of the library. Its action depends on an environment variable; without it,
/// it does nothing.
extern "C" fn at_load() {
    match std::env::var("NONCONFORMING_AT_LOAD").as_deref() {
        Ok("prints") => println!("welcome"),
        Ok("aborts") => std::process::abort(),
        Ok("never-ends") => sleep_for_ever(),
        Ok("exits") => std::process::exit(0),
        _ => {}
    }
}

#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = at_load;

fn sleep_for_ever() -> ! {
    loop {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

// Two plugins of one name.
sampler!("twins", FirstTwin, ascend);
sampler!("twins", SecondTwin, ascend);

export_plugin!("sampler", "changes-its-table", abi::SAMPLERS, SamplerTableRef, changes_its_table);

/// Returns the table of another plugin from the second call on.
fn changes_its_table() -> SamplerTableRef {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    match CALLS.fetch_add(1, Ordering::Relaxed) {
        0 => abi::sampler_table::<FirstTwin>(),
        _ => abi::sampler_table::<Descends>(),
    }
}

sampler!("uses-environment", UsesEnvironment, |step| {
    // The first copy of the library in the process sets an environment variable, which changes the
    // results of every other copy.
    static MINE: AtomicUsize = AtomicUsize::new(0);
    const NAME: &str = "NONCONFORMING_OWNER";
    let me = (&raw const MINE).addr().to_string();
    if std::env::var(NAME).is_err() {
        // SAFETY: no other thread of this process reads or writes its environment.
        unsafe { std::env::set_var(NAME, &me) };
    }
    let mine = std::env::var(NAME).is_ok_and(|owner| owner == me);
    Ok(ascend(step)? * if mine { 1.0 } else { 0.5 })
});

// ----------------------------------------------------------------------------------- options

sampler!("no-defaults", NoDefaults, NoOptions, |_| Err(Error::new("an option is needed")), ascend);

/// One option without help.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
struct Undocumented {
    strength: f64,
}

sampler!("undocumented", UndocumentedSampler, Undocumented, |_| Ok(()), ascend);

/// One option, with the name that the check uses for an unknown option.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
struct Swallows {
    /// Ignored.
    #[serde(rename = "no-such-option")]
    anything: f64,
}

sampler!("accepts-unknown-option", AcceptsUnknownOption, Swallows, |_| Ok(()), ascend);

/// One option.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
struct Fragile {
    /// A negative value aborts the process.
    strength: f64,
}

fn abort_if_negative(options: Fragile) -> Result<()> {
    if options.strength < 0.0 {
        std::process::abort();
    }
    Ok(())
}

sampler!("aborts-on-options", AbortsOnOptions, Fragile, abort_if_negative, ascend);

/// One option that must be given.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
struct File {
    /// A file that exists.
    file: String,
}

fn need_a_file(options: File) -> Result<()> {
    std::fs::File::open(&options.file).map(drop).map_err(Error::new)
}

// Good, if it is given a file.
sampler!("needs-a-file", NeedsAFile, File, need_a_file, ascend);

export_sampler!("asks-to-be-small", AsksToBeSmall);

/// Good: works in a large size, too, but not in the time of the checks.
struct AsksToBeSmall {
    is_large: bool,
}

/// One option, and its value for the checks.
#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-conform" = {"large": false}))]
struct Size {
    /// Whether to be large.
    large: bool,
}

impl Default for Size {
    fn default() -> Self {
        Self { large: true }
    }
}

impl Sampler for AsksToBeSmall {
    type Options = Size;

    fn new(options: Size) -> Result<Self> {
        Ok(Self { is_large: options.large })
    }

    fn step(&self, step: &Step) -> Result<Next> {
        if self.is_large {
            return Err(Error::new("too large for the checks"));
        }
        ascend(step).map(Next::from)
    }
}

// ----------------------------------------------------------------------------------- tensors

sampler!("writes-inputs", WritesInputs, |step| {
    let _ = step.particles.shallow_clone().clamp_(0.0, 0.5);
    ascend(step)
});

sampler!("reuses-its-result", ReusesItsResult, |step| {
    thread_local! {
        static RESULT: Cell<Option<Tensor>> = const { Cell::new(None) };
    }
    let next = ascend(step)?;
    let result = match RESULT.take().filter(|kept| (kept.size(), kept.kind()) == (next.size(), next.kind())) {
        Some(mut kept) => {
            kept.copy_(&next);
            kept
        }
        None => next,
    };
    RESULT.set(Some(result.shallow_clone()));
    Ok(result)
});

sampler!("returns-input", ReturnsInput, |step| Ok(step.particles.shallow_clone()));

sampler!("ignores-strides", IgnoresStrides, |step| {
    let size = step.particles.size();
    let strides: Vec<i64> = (1..=size.len()).map(|axis| size[axis..].iter().product()).collect();
    let gradient = step.particles.as_strided(size, strides, None);
    Ok(step.particles + (gradient - 0.5) * 0.1 + ascend(step)? * 0.0)
});

sampler!("ignores-channels-last", IgnoresChannelsLast, |step| {
    // Reads the values as if each channel were contiguous in memory.
    let (channels, size) = (step.particles.size()[1], step.particles.size());
    let raw = match step.particles.stride()[1] {
        1 if channels > 1 => step.particles.permute([0, 2, 3, 1]).contiguous().reshape(size),
        _ => step.particles.shallow_clone(),
    };
    Ok(ascend(step)? + raw * 0.1)
});

sampler!("squeezes", Squeezes, |step| Ok(ascend(step)?.squeeze_dim(0)));

sampler!("needs-a-row", NeedsARow, |step| {
    let largest = step.gradient.abs().max();
    Ok(ascend(step)? + largest * 0.0)
});

sampler!("single-precision", SinglePrecision, |step| Ok(ascend(step)?.to_kind(Kind::Float)));

// ---------------------------------------------------------------------- starts and neighbours

/// A sampler without options that declares more than a step: a start of its own (`begin`), a reach,
/// or interaction.
macro_rules! declaring {
    ($name:literal, $sampler:ident, $begin:expr, $reach:expr, $interacts:expr, $step:expr) => {
        export_sampler!($name, $sampler);

        struct $sampler;

        impl Sampler for $sampler {
            type Options = NoOptions;

            fn new(_: NoOptions) -> Result<Self> {
                Ok(Self)
            }

            fn reach(&self) -> f64 {
                $reach
            }

            fn interacts(&self) -> bool {
                $interacts
            }

            fn begins(&self) -> bool {
                let begin: Option<fn(&Step) -> Tensor> = $begin;
                begin.is_some()
            }

            fn begin(&self, start: &Step) -> Result<Next> {
                let begin: Option<fn(&Step) -> Tensor> = $begin;
                Ok(begin.map_or_else(|| start.particles.copy(), |begin| begin(start)).into())
            }

            fn step(&self, step: &Step) -> Result<Next> {
                let next: fn(&Step) -> Result<Tensor> = $step;
                next(step).map(Next::from)
            }
        }
    };
}

/// The mean over the batch, in every row.
fn mean_of_rows(images: &Tensor) -> Tensor {
    images.mean_dim([0i64].as_slice(), true, images.kind()).expand_as(images)
}

declaring!(
    "begins-among-its-neighbours",
    BeginsAmongItsNeighbours,
    Some(|start| start.natural * 0.9 + mean_of_rows(start.natural) * 0.1),
    1.0,
    false,
    ascend
);

declaring!("reaches-nowhere", ReachesNowhere, None, 2.0, false, |step| {
    Ok(step.threat.project(&ascend(step)?, step.natural))
});

declaring!("interacts-in-order", InteractsInOrder, None, 1.0, true, |step| {
    let rows = step.particles.size()[0];
    let order = Tensor::arange(rows, (step.particles.kind(), step.particles.device()));
    Ok(ascend(step)? + order.reshape([-1, 1, 1, 1]) * 1e-3)
});

declaring!("interacts-with-nobody", InteractsWithNobody, None, 1.0, true, ascend);

// Good: its chains come together.
declaring!("gathers", Gathers, Some(|start| start.natural.copy()), 1.5, true, |step| {
    Ok(ascend(step)? + (mean_of_rows(step.particles) - step.particles) * 0.2)
});

// ------------------------------------------------------------------------------- determinism

sampler!("counts-calls", CountsCalls, |step| {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    Ok(ascend(step)? + CALLS.fetch_add(1, Ordering::Relaxed) as f64 * 1e-3)
});

sampler!("wastes-draws", WastesDraws, |step| {
    let _ = step.random.normal(step.particles)?;
    ascend(step)
});

export_sampler!("serves-one-instance", ServesOneInstance);

/// Gives other results for every instance except the latest one.
struct ServesOneInstance {
    number: usize,
}

static INSTANCES: AtomicUsize = AtomicUsize::new(0);

impl Sampler for ServesOneInstance {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self { number: INSTANCES.fetch_add(1, Ordering::Relaxed) + 1 })
    }

    fn step(&self, step: &Step) -> Result<Next> {
        let newest = INSTANCES.load(Ordering::Relaxed) == self.number;
        Ok((ascend(step)? + if newest { 0.0 } else { 1e-3 }).into())
    }
}

sampler!("uses-libtorchs-generator", UsesLibtorchsGenerator, |step| {
    let _ = Tensor::rand_like(step.particles);
    ascend(step)
});

sampler!("normalises-batches", NormalisesBatches, |step| {
    Ok(ascend(step)? + step.gradient / step.gradient.abs().sum(step.gradient.kind()).clamp_min(1e-30))
});

// ----------------------------------------------------------------------------------- hygiene

sampler!("switches-cudnn-off", SwitchesCudnnOff, |step| {
    tch::Cuda::set_user_enabled_cudnn(false);
    ascend(step)
});

unsafe extern "C" {
    #[link_name = "_ZN2at13globalContextEv"]
    fn global_context() -> *mut std::ffi::c_void;
    #[link_name = "_ZN2at7Context20setUserEnabledMkldnnEb"]
    fn enable_onednn(context: *mut std::ffi::c_void, on: bool);
}

sampler!("switches-onednn-off", SwitchesOnednnOff, |step| {
    // SAFETY: these are `at::globalContext()` and `at::Context::setUserEnabledMkldnn(bool)`.
    unsafe { enable_onednn(global_context(), false) };
    ascend(step)
});

sampler!("changes-the-directory", ChangesTheDirectory, |step| {
    std::env::set_current_dir("/").map_err(Error::new)?;
    ascend(step)
});

sampler!("sets-a-variable", SetsAVariable, |step| {
    // SAFETY: no other thread of this process reads or writes its environment.
    unsafe { std::env::set_var("NONCONFORMING_VARIABLE", "set") };
    ascend(step)
});

sampler!("takes-a-signal", TakesASignal, |step| {
    // SAFETY: the signal is ignored from now on.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    ascend(step)
});

sampler!("closes-the-output", ClosesTheOutput, |step| {
    // SAFETY: nothing in this library owns the descriptor.
    unsafe { libc::close(1) };
    ascend(step)
});

model!("leaves-no-grad", LeavesNoGrad, |layer, images| {
    let logits = layer.forward(&images.flatten(1, -1));
    std::mem::forget(tch::no_grad_guard());
    logits
});

sampler!("leaves-files", LeavesFiles, |step| {
    std::mem::forget(std::fs::File::open("/dev/null"));
    ascend(step)
});

/// Takes a while to be dropped.
struct Slow;

impl Drop for Slow {
    fn drop(&mut self) {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

// Good: waits for its thread, which drops its thread-local values after its result is there.
sampler!("joins-threads", JoinsThreads, |step| {
    thread_local! {
        static SLOW: Slow = const { Slow };
    }
    std::thread::scope(|scope| {
        scope.spawn(|| SLOW.with(|_| ()));
    });
    ascend(step)
});

sampler!("leaves-threads", LeavesThreads, |step| {
    // Too few threads for another check to notice.
    static LEFT: AtomicUsize = AtomicUsize::new(0);
    if LEFT.fetch_add(1, Ordering::Relaxed) < 200 {
        std::thread::spawn(|| sleep_for_ever());
    }
    ascend(step)
});

sampler!("leaks-memory", LeaksMemory, |step| {
    std::mem::forget(step.particles.copy());
    ascend(step)
});

// ------------------------------------------------------------------------------------ errors

sampler!("aborts-on-rank", AbortsOnRank, |step| {
    if step.particles.defined() && step.particles.dim() != 4 {
        std::process::abort();
    }
    ascend(step)
});

sampler!("aborts-on-dtype", AbortsOnDtype, |step| {
    if !step.particles.defined() || !step.particles.is_floating_point() {
        std::process::abort();
    }
    ascend(step)
});

sampler!("ignores-random-errors", IgnoresRandomErrors, |step| {
    let noise = step.random.normal(step.particles).unwrap_or_else(|_| step.particles.zeros_like());
    Ok(ascend(step)? + noise * 0.01)
});

attack!("ignores-victim-errors", IgnoresVictimErrors, |target| {
    // Ignores the error of a failing victim.
    let _ = target.victim.logits(target.natural);
    Ok(target.natural.copy())
});

sampler!("leaves-files-at-errors", LeavesFilesAtErrors, |step| {
    let file = std::fs::File::open("/dev/null").map_err(Error::new)?;
    let moved = step.particles.f_add(&step.threat.steepest_ascent(step.gradient).f_mul_scalar(0.05)?);
    if moved.is_err() {
        std::mem::forget(file);
    }
    Ok(moved?)
});

export_sampler!("aborts-in-drop", AbortsInDrop);

/// Aborts when an instance that failed is dropped.
struct AbortsInDrop {
    failed: Cell<bool>,
}

impl Sampler for AbortsInDrop {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self { failed: Cell::new(false) })
    }

    fn step(&self, step: &Step) -> Result<Next> {
        let moved = step.particles.f_add(&step.threat.steepest_ascent(step.gradient).f_mul_scalar(0.05)?);
        self.failed.set(self.failed.get() || moved.is_err());
        Ok(moved?.into())
    }
}

impl Drop for AbortsInDrop {
    fn drop(&mut self) {
        if self.failed.get() {
            std::process::abort();
        }
    }
}

// --------------------------------------------------------------------------------- lifecycle

export_model!("unlisted-buffer", UnlistedBuffer);

/// Draws a temperature that is neither a parameter nor a buffer.
struct UnlistedBuffer {
    layer: nn::Linear,
    temperature: Tensor,
}

impl Model for UnlistedBuffer {
    type Options = NoOptions;

    fn new(_: NoOptions, task: Task, path: &nn::Path) -> Result<Self> {
        let pixels = task.channels * task.height * task.width;
        let temperature = Tensor::rand([], (Kind::Float, path.device())) + 0.5;
        Ok(Self { layer: nn::linear(path / "layer", pixels, task.classes, Default::default()), temperature })
    }

    fn forward(&self, images: &Tensor, _train: bool) -> Result<Tensor> {
        Ok(self.layer.forward(&images.flatten(1, -1)) / &self.temperature)
    }
}

export_sampler!("needs-its-thread", NeedsItsThread);

/// Works only on the thread that made it.
struct NeedsItsThread {
    home: ThreadId,
}

impl Sampler for NeedsItsThread {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self { home: std::thread::current().id() })
    }

    fn step(&self, step: &Step) -> Result<Next> {
        if std::thread::current().id() != self.home {
            return Err(Error::new("this is another thread"));
        }
        ascend(step).map(Next::from)
    }
}

sampler!(
    "limits-instances",
    LimitsInstances,
    NoOptions,
    |_| {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        match MADE.fetch_add(1, Ordering::Relaxed) {
            0..500 => Ok(()),
            _ => Err(Error::new("no more instances")),
        }
    },
    ascend
);

// ---------------------------------------------------------------------------------- processes

sampler!("aborts", Aborts, |_| std::process::abort());

sampler!("never-ends", NeverEnds, |_| sleep_for_ever());

sampler!("prints", Prints, |step| {
    for _ in 0..2_000 {
        println!(r#"{{"check":"tensors-result","outcome":"passed"}}"#);
    }
    ascend(step)
});

// ---------------------------------------------------------------------------------- samplers

export_sampler!("forgets-state", ForgetsState);

/// Declares a state tensor and returns none.
struct ForgetsState;

impl Sampler for ForgetsState {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self)
    }

    fn state_tensors(&self) -> usize {
        1
    }

    fn step(&self, step: &Step) -> Result<Next> {
        ascend(step).map(Next::from)
    }
}

sampler!("divides-by-zero", DividesByZero, |step| {
    Ok(step.particles
        + step.gradient / step.gradient.abs().flatten(1, -1).amax([1], false).reshape([-1, 1, 1, 1]))
});

sampler!("descends", Descends, |step| {
    Ok(step.particles - step.threat.steepest_ascent(step.gradient) * 0.05)
});

export_sampler!("explores", Explores);

/// Good: does not raise the loss, and declares it.
struct Explores;

impl Sampler for Explores {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self)
    }

    fn ascends(&self) -> bool {
        false
    }

    fn step(&self, step: &Step) -> Result<Next> {
        Ok((step.natural + step.random.normal(step.natural)? * 0.01).into())
    }
}

export_sampler!("keeps-state-in-field", KeepsStateInField);

/// Keeps its velocity in a field, by place in the batch instead of by point.
struct KeepsStateInField {
    velocity: Cell<Option<Tensor>>,
}

impl Sampler for KeepsStateInField {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self { velocity: Cell::new(None) })
    }

    fn step(&self, step: &Step) -> Result<Next> {
        let before = self.velocity.take().filter(|velocity| velocity.size() == step.gradient.size());
        let velocity = before.unwrap_or_else(|| step.gradient.zeros_like()) * 0.9 + step.gradient;
        let particles = step.particles + step.threat.steepest_ascent(&velocity) * 0.02;
        self.velocity.set(Some(velocity));
        Ok(particles.into())
    }
}

// ----------------------------------------------------------------------------------- attacks

attack!("lowers-the-loss", LowersTheLoss, |target| {
    let mut images = target.natural.copy();
    for _ in 0..50 {
        let (_, gradient) =
            target.victim.forward(&images)?.gradient(|logits| cross_entropy(logits, target.labels))?;
        images = target.threat.project(&(&images - gradient.sign() * 0.01), target.natural);
    }
    Ok(images)
});

attack!("writes-natural", WritesNatural, |target| {
    let mut images = target.natural.shallow_clone();
    images += target.threat.epsilon;
    Ok(target.threat.project(&images, target.natural))
});

attack!("detaches-logits", DetachesLogits, |target| {
    let evaluation = target.victim.forward(target.natural)?;
    evaluation.gradient(|logits| cross_entropy(&logits.detach(), target.labels)).map(|(_, gradient)| gradient)
});

attack!("changes-the-victim", ChangesTheVictim, |target| {
    // The loss runs a backward pass of its own, which adds gradients to the victim's weights.
    let with_backward = |logits: &Tensor| {
        let loss = cross_entropy(logits, target.labels);
        let _ = loss.sum(loss.kind()).f_backward();
        loss
    };
    let _ = target.victim.forward(target.natural)?.gradient(with_backward);
    Ok(target.natural.copy())
});

attack!("ten-classes-only", TenClassesOnly, |target| {
    assert!(target.classes == 10, "{} classes", target.classes);
    Ok(target.natural.copy())
});

export_attack!("exceeds-its-budget", ExceedsItsBudget);

/// Declares a budget of one query and makes two.
struct ExceedsItsBudget;

impl Attack for ExceedsItsBudget {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self)
    }

    fn query_budget(&self) -> Option<u64> {
        Some(1)
    }

    fn run(&self, target: &Target) -> Result<Tensor> {
        for _ in 0..2 {
            let _ = target.victim.logits(target.natural)?;
        }
        Ok(target.natural.copy())
    }
}

attack!("ignores-the-domain", IgnoresTheDomain, |target| {
    let evaluation = target.victim.forward(target.natural)?;
    let (_, gradient) = evaluation.gradient(|logits| cross_entropy(logits, target.labels))?;
    let ahead = target.natural + target.threat.steepest_ascent(&gradient) * target.threat.epsilon;
    Ok(ahead.clamp(0.0, 1.0))
});

// ------------------------------------------------------------------------------------ models

model!("probabilities", Probabilities, |layer, images| {
    layer.forward(&images.flatten(1, -1)).softmax(1, images.kind())
});

model!("detached", Detached, |layer, images| layer.forward(&images.flatten(1, -1).detach()));

model!("without-a-graph", WithoutAGraph, |layer, images| layer.forward(&images.flatten(1, -1)).detach());

model!("wrong-gradients", WrongGradients, |layer, images| {
    // The value of one function with the gradient of another.
    let flat = images.flatten(1, -1);
    layer.forward(&((&flat * 3.0).sin().detach() + &flat - flat.detach()))
});

model!("accepts-any-shape", AcceptsAnyShape, |layer, images| {
    let mean = images.flatten(1, -1).mean_dim([1i64].as_slice(), true, images.kind());
    layer.forward(&mean.expand([-1, layer.ws.size()[1]], false))
});

export_model!("reuses-its-output", ReusesItsOutput);

/// Returns the same tensor in every call without gradients.
struct ReusesItsOutput {
    layer: nn::Linear,
    output: Cell<Option<Tensor>>,
}

impl Model for ReusesItsOutput {
    type Options = NoOptions;

    fn new(_: NoOptions, task: Task, path: &nn::Path) -> Result<Self> {
        let pixels = task.channels * task.height * task.width;
        let layer = nn::linear(path / "layer", pixels, task.classes, Default::default());
        Ok(Self { layer, output: Cell::new(None) })
    }

    fn forward(&self, images: &Tensor, _train: bool) -> Result<Tensor> {
        let logits = self.layer.forward(&images.flatten(1, -1));
        if logits.requires_grad() {
            return Ok(logits);
        }
        let kept =
            self.output.take().filter(|kept| (kept.size(), kept.kind()) == (logits.size(), logits.kind()));
        let output = match kept {
            Some(mut kept) => {
                kept.copy_(&logits);
                kept
            }
            None => logits,
        };
        self.output.set(Some(output.shallow_clone()));
        Ok(output)
    }
}

/// A convolution and a linear layer on its features.
struct Convolution {
    weights: Tensor,
    output: nn::Linear,
}

impl Convolution {
    fn new(task: Task, path: &nn::Path) -> Self {
        let pixels = task.height * task.width;
        Self {
            weights: path.kaiming_uniform("weights", &[4, task.channels, 3, 3]),
            output: nn::linear(path / "output", 4 * pixels, task.classes, Default::default()),
        }
    }

    fn forward(&self, weights: &Tensor, images: &Tensor) -> Result<Tensor> {
        let features = images.f_conv2d::<Tensor>(weights, None, 1, 1, 1, 1)?.relu();
        Ok(self.output.forward(&features.flatten(1, -1)))
    }
}

export_model!("keeps-an-alias", KeepsAnAlias);

/// Good: evaluates with a handle of its own of the weights, without their gradient.
struct KeepsAnAlias {
    network: Convolution,
    weights: Tensor,
}

impl Model for KeepsAnAlias {
    type Options = NoOptions;

    fn new(_: NoOptions, task: Task, path: &nn::Path) -> Result<Self> {
        let network = Convolution::new(task, path);
        Ok(Self { weights: network.weights.detach(), network })
    }

    fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        let weights = if train { &self.network.weights } else { &self.weights };
        self.network.forward(weights, images)
    }
}

export_model!("once", Network<false>);
export_model!("ties-weights", Network<true>);

/// Good: lists each tensor under one name, or with `TIED` its weights under two.
struct Network<const TIED: bool>(Convolution);

impl<const TIED: bool> Model for Network<TIED> {
    type Options = NoOptions;

    fn new(_: NoOptions, task: Task, path: &nn::Path) -> Result<Self> {
        let network = Convolution::new(task, path);
        if TIED {
            let _ = path.add("tied", network.weights.shallow_clone(), true);
        }
        Ok(Self(network))
    }

    fn forward(&self, images: &Tensor, _train: bool) -> Result<Tensor> {
        self.0.forward(&self.0.weights, images)
    }
}

export_model!("lists-an-alias", ListsAnAlias);

/// Lists another handle of its weights as a second parameter.
struct ListsAnAlias {
    network: Convolution,
    alias: Tensor,
}

impl Model for ListsAnAlias {
    type Options = NoOptions;

    fn new(_: NoOptions, task: Task, path: &nn::Path) -> Result<Self> {
        let network = Convolution::new(task, path);
        let alias = path.add("alias", network.weights.detach(), true);
        Ok(Self { network, alias })
    }

    fn forward(&self, images: &Tensor, _train: bool) -> Result<Tensor> {
        let (one, other) = (&self.network.weights, &self.alias);
        Ok(self.network.forward(one, images)? + self.network.forward(other, images)?)
    }
}

export_model!("undeclared-dropout", UndeclaredDropout);

/// Has dropout and does not declare it.
struct UndeclaredDropout {
    layer: nn::Linear,
}

impl Model for UndeclaredDropout {
    type Options = NoOptions;

    fn new(_: NoOptions, task: Task, path: &nn::Path) -> Result<Self> {
        let pixels = task.channels * task.height * task.width;
        Ok(Self { layer: nn::linear(path / "layer", pixels, task.classes, Default::default()) })
    }

    fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        Ok(self.layer.forward(&images.flatten(1, -1).dropout(0.25, train)))
    }
}

/// A small network with batch normalisation.
struct Normalised {
    convolution: nn::Conv2D,
    normalisation: nn::BatchNorm,
    output: nn::Linear,
}

impl Normalised {
    fn new(task: Task, path: &nn::Path) -> Self {
        let config = nn::ConvConfig { padding: 1, ..Default::default() };
        Self {
            convolution: nn::conv2d(path / "convolution", task.channels, 4, 3, config),
            normalisation: nn::batch_norm2d(path / "normalisation", 4, Default::default()),
            output: nn::linear(
                path / "output",
                4 * task.height * task.width,
                task.classes,
                Default::default(),
            ),
        }
    }

    fn forward(&self, images: &Tensor, train: bool) -> Tensor {
        let features = self.normalisation.forward_t(&self.convolution.forward(images), train).relu();
        self.output.forward(&features.flatten(1, -1))
    }
}

export_model!("batch-norm", BatchNorm);

/// Good: training differs from evaluation, as declared.
struct BatchNorm(Normalised);

impl Model for BatchNorm {
    type Options = NoOptions;

    fn new(_: NoOptions, task: Task, path: &nn::Path) -> Result<Self> {
        Ok(Self(Normalised::new(task, path)))
    }

    fn train_differs(&self) -> bool {
        true
    }

    fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        Ok(self.0.forward(images, train))
    }
}

export_model!("always-trains", AlwaysTrains);

/// Uses the statistics of the batch in evaluation, too.
struct AlwaysTrains(Normalised);

impl Model for AlwaysTrains {
    type Options = NoOptions;

    fn new(_: NoOptions, task: Task, path: &nn::Path) -> Result<Self> {
        Ok(Self(Normalised::new(task, path)))
    }

    fn train_differs(&self) -> bool {
        true
    }

    fn forward(&self, images: &Tensor, _train: bool) -> Result<Tensor> {
        Ok(self.0.forward(images, true))
    }
}

export_model!("unusual-parameters", UnusualParameters);

/// Good: has a parameter without elements, and one whose gradients are sparse.
struct UnusualParameters {
    layer: nn::Linear,
    empty: Tensor,
    biases: nn::Embedding,
}

impl Model for UnusualParameters {
    type Options = NoOptions;

    fn new(_: NoOptions, task: Task, path: &nn::Path) -> Result<Self> {
        let pixels = task.channels * task.height * task.width;
        let config = nn::EmbeddingConfig { sparse: true, ..Default::default() };
        Ok(Self {
            layer: nn::linear(path / "layer", pixels, task.classes, Default::default()),
            empty: path.zeros("empty", &[0, task.classes]),
            biases: nn::embedding(path / "biases", 1, task.classes, config),
        })
    }

    fn forward(&self, images: &Tensor, _train: bool) -> Result<Tensor> {
        let logits = self.layer.forward(&images.flatten(1, -1));
        let first = Tensor::zeros([1], (Kind::Int64, images.device()));
        Ok(logits + self.biases.forward(&first) + self.empty.sum(images.kind()))
    }
}

export_model!("hides-parameters", HidesParameters);

/// Computes with a copy of the listed parameters.
struct HidesParameters {
    listed: nn::Linear,
    hidden: Cell<Option<Tensor>>,
}

impl Model for HidesParameters {
    type Options = NoOptions;

    fn new(_: NoOptions, task: Task, path: &nn::Path) -> Result<Self> {
        let pixels = task.channels * task.height * task.width;
        let config = nn::LinearConfig { bias: false, ..Default::default() };
        let listed = nn::linear(path / "layer", pixels, task.classes, config);
        Ok(Self { listed, hidden: Cell::new(None) })
    }

    fn forward(&self, images: &Tensor, _train: bool) -> Result<Tensor> {
        // The first call makes the copy with a graph, so that gradients reach the listed
        // parameters.
        let weights = self.hidden.take().unwrap_or_else(|| &self.listed.ws * 1.0);
        let logits = images.flatten(1, -1).f_matmul(&weights.tr())?;
        self.hidden.set(Some(weights.detach()));
        Ok(logits)
    }
}
