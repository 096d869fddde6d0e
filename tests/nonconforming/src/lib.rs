//! Plugins that each break one rule that `host conform` knows.

use plugin_api::losses::cross_entropy;
use plugin_api::tch::nn::{self, Module};
use plugin_api::tch::{Kind, Tensor};
use plugin_api::{
    Attack, Error, Model, Next, NoOptions, Result, Sampler, Step, Target, Task, export_attack, export_model,
    export_sampler,
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

/// What most of them do when they behave: a step up the loss.
fn ascend(step: &Step) -> Result<Tensor> {
    Ok(step.particles + step.threat.steepest_ascent(step.gradient) * 0.05)
}

// ----------------------------------------------------------------------------------- options

sampler!("no-defaults", NoDefaults, NoOptions, |_| Err(Error::new("an option is needed")), ascend);

/// One option, without help.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
struct Undocumented {
    strength: f64,
}

sampler!("undocumented", UndocumentedSampler, Undocumented, |_| Ok(()), ascend);

/// One option, of a name that is nobody's.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
struct Swallows {
    /// Taken for whatever is misspelt.
    #[serde(rename = "no-such-option")]
    anything: f64,
}

sampler!("swallows-options", SwallowsOptions, Swallows, |_| Ok(()), ascend);

/// One option.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
struct Fragile {
    /// Must not be negative, or else.
    strength: f64,
}

fn abort_if_negative(options: Fragile) -> Result<()> {
    if options.strength < 0.0 {
        std::process::abort();
    }
    Ok(())
}

sampler!("aborts-on-options", AbortsOnOptions, Fragile, abort_if_negative, ascend);

// ----------------------------------------------------------------------------------- tensors

sampler!("writes-inputs", WritesInputs, |step| {
    let _ = step.particles.shallow_clone().clamp_(0.0, 0.5);
    ascend(step)
});

sampler!("returns-input", ReturnsInput, |step| Ok(step.particles.shallow_clone()));

sampler!("ignores-strides", IgnoresStrides, |step| {
    let size = step.particles.size();
    let strides: Vec<i64> = (1..=size.len()).map(|axis| size[axis..].iter().product()).collect();
    let gradient = step.particles.as_strided(size, strides, None);
    Ok(step.particles + (gradient - 0.5) * 0.1 + ascend(step)? * 0.0)
});

sampler!("squeezes", Squeezes, |step| Ok(ascend(step)?.squeeze_dim(0)));

sampler!("needs-somebody", NeedsSomebody, |step| {
    let largest = step.gradient.abs().max();
    Ok(ascend(step)? + largest * 0.0)
});

sampler!("single-precision", SinglePrecision, |step| Ok(ascend(step)?.to_kind(Kind::Float)));

// ------------------------------------------------------------------------------- determinism

sampler!("counts-calls", CountsCalls, |step| {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    Ok(ascend(step)? + CALLS.fetch_add(1, Ordering::Relaxed) as f64 * 1e-3)
});

sampler!(
    "shares-state",
    SharesState,
    NoOptions,
    |_| {
        INSTANCES.fetch_add(1, Ordering::Relaxed);
        Ok(())
    },
    |step| Ok(ascend(step)? + (INSTANCES.load(Ordering::Relaxed) % 2) as f64 * 1e-3)
);

static INSTANCES: AtomicUsize = AtomicUsize::new(0);

sampler!("draws-elsewhere", DrawsElsewhere, |step| {
    let _ = Tensor::rand_like(step.particles);
    ascend(step)
});

sampler!("normalises-batches", NormalisesBatches, |step| {
    Ok(ascend(step)? + step.gradient / step.gradient.abs().sum(step.gradient.kind()).clamp_min(1e-30))
});

// ----------------------------------------------------------------------------------- hygiene

sampler!("leaves-files", LeavesFiles, |step| {
    std::mem::forget(std::fs::File::open("/dev/null"));
    ascend(step)
});

sampler!("leaks-memory", LeaksMemory, |step| {
    std::mem::forget(step.particles.copy());
    ascend(step)
});

// --------------------------------------------------------------------------------- lifecycle

export_sampler!("homesick", Homesick);

/// Works on the thread it was made on only.
struct Homesick {
    home: ThreadId,
}

impl Sampler for Homesick {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self { home: std::thread::current().id() })
    }

    fn step(&self, step: &Step) -> Result<Next> {
        match std::thread::current().id() == self.home {
            true => ascend(step).map(Next::from),
            false => Err(Error::new("this is another thread")),
        }
    }
}

sampler!(
    "runs-out",
    RunsOut,
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

sampler!("never-ends", NeverEnds, |_| {
    loop {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
});

sampler!("talks", Talks, |step| {
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

// ----------------------------------------------------------------------------------- attacks

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

attack!("helps", Helps, |target| {
    let mut images = target.natural.copy();
    for _ in 0..50 {
        let (_, gradient) =
            target.victim.forward(&images)?.gradient(|logits| cross_entropy(logits, target.labels))?;
        images = target.threat.project(&(&images - gradient.sign() * 0.01), target.natural);
    }
    Ok(images)
});

attack!("touches-victim", TouchesVictim, |target| {
    // Goes backward to everything, the victim's weights included, in the midst of its own loss.
    let meddle = |logits: &Tensor| {
        let loss = cross_entropy(logits, target.labels);
        let _ = loss.sum(loss.kind()).f_backward();
        loss
    };
    let _ = target.victim.forward(target.natural)?.gradient(meddle);
    Ok(target.natural.copy())
});

attack!("ten-classes-only", TenClassesOnly, |target| {
    assert!(target.classes == 10, "{} classes", target.classes);
    Ok(target.natural.copy())
});

// ------------------------------------------------------------------------------------ models

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

model!("probabilities", Probabilities, |layer, images| {
    layer.forward(&images.flatten(1, -1)).softmax(1, images.kind())
});

model!("detached", Detached, |layer, images| layer.forward(&images.flatten(1, -1).detach()));

model!("masks-gradients", MasksGradients, |layer, images| {
    // The value of a steep function with the slope of another.
    let flat = images.flatten(1, -1);
    layer.forward(&((&flat * 3.0).sin().detach() + &flat - flat.detach()))
});

model!("takes-anything", TakesAnything, |layer, images| {
    let mean = images.flatten(1, -1).mean_dim([1i64].as_slice(), true, images.kind());
    layer.forward(&mean.expand([-1, layer.ws.size()[1]], false))
});

export_model!("hides-parameters", HidesParameters);

/// Computes with a copy of what it lists.
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
        // Taken at the first call, so that gradients flow to what is listed.
        let weights = self.hidden.take().unwrap_or_else(|| &self.listed.ws * 1.0);
        let logits = images.flatten(1, -1).f_matmul(&weights.tr())?;
        self.hidden.set(Some(weights.detach()));
        Ok(logits)
    }
}
