//! Samplers: bad ones first, then two good ones with state.

use plugin_api::tch::{self, Kind, Tensor};
use plugin_api::{Error, Next, NoOptions, Projection, Result, Sampler, Step, export_sampler};
use std::cell::Cell;

/// A sampler without options or fields whose `step` is the function given.
macro_rules! simple_sampler {
    ($name:literal, $sampler:ident, $step:expr) => {
        export_sampler!($name, $sampler);

        struct $sampler;

        impl Sampler for $sampler {
            type Options = NoOptions;

            fn new(_: NoOptions) -> Result<Self> {
                Ok(Self)
            }

            fn step(&self, step: &Step) -> Result<Next> {
                let next: Result<Tensor> = $step(step);
                next.map(Next::from)
            }
        }
    };
}

simple_sampler!("wrong-shape", WrongShape, |step: &Step| Ok(step.particles.flatten(1, -1)));

simple_sampler!("wrong-dtype", WrongDtype, |step: &Step| Ok(step.particles.to_kind(Kind::Double)));

simple_sampler!("panics", Panics, |step: &Step| panic!("cannot move {} particles", step.points.len()));

/// The number of threads that `changes-threads` sets.
const OTHER_THREADS: i32 = 3;

simple_sampler!("changes-threads", ChangesThreads, |step: &Step| {
    if tch::get_num_threads() == OTHER_THREADS {
        return Err(Error::new("the thread count was not restored after the last call"));
    }
    tch::set_num_threads(OTHER_THREADS);
    Ok(step.particles.copy())
});

simple_sampler!("changes-grad-mode", ChangesGradMode, |step: &Step| {
    // SAFETY: this only sets a flag of the thread, and returns the flag's previous value.
    if unsafe { torch_sys::at_grad_set_enabled(1) } == 1 {
        return Err(Error::new("the grad mode was not restored after the last call"));
    }
    Ok(step.particles.copy())
});

export_sampler!("nan", NotANumber);

/// Returns NaN from its third step on.
struct NotANumber {
    steps: Cell<usize>,
}

impl Sampler for NotANumber {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self { steps: Cell::new(0) })
    }

    fn step(&self, step: &Step) -> Result<Next> {
        self.steps.set(self.steps.get() + 1);
        let change = if self.steps.get() < 3 { 0.0 } else { f64::NAN };
        Ok((step.particles + change).into())
    }
}

export_sampler!("escapes", Escapes);

/// Declares that it stays inside the ball, and leaves it.
struct Escapes;

impl Sampler for Escapes {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self)
    }

    fn projection(&self) -> Projection {
        Projection::Sampler
    }

    fn step(&self, step: &Step) -> Result<Next> {
        Ok((step.natural + 2.0 * step.threat.epsilon).into())
    }
}

export_sampler!("momentum", Momentum);

/// Good: steps along a decaying sum of gradients, which is the state of each particle.
struct Momentum;

impl Sampler for Momentum {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self)
    }

    fn state_tensors(&self) -> usize {
        1
    }

    fn step(&self, step: &Step) -> Result<Next> {
        let velocity = &step.state[0] * 0.9 + step.gradient;
        let particles = step.particles + step.threat.steepest_ascent(&velocity) * 0.05;
        Ok(Next { particles, state: vec![velocity] })
    }
}

export_sampler!("metropolis", Metropolis);

/// Good: a random walk with Metropolis acceptance of its proposals, for the distribution with
/// density proportional to exp(10 loss). The state is the point before the proposal, and the loss
/// there.
struct Metropolis;

impl Metropolis {
    /// The points of the chains, and the loss there, after proposals are accepted or rejected.
    fn accept(step: &Step) -> Result<[Tensor; 2]> {
        let loss = step.loss.reshape([-1, 1, 1, 1]).expand_as(step.particles);
        let [point, point_loss] = step.state else {
            return Err(Error::new(format!("expected 2 state tensors, got {}", step.state.len())));
        };
        let probability = ((step.loss - point_loss.select(1, 0).select(1, 0).select(1, 0)) * 10.0).exp();
        let accepted = step.random.uniform(step.loss)?.less_tensor(&probability).reshape([-1, 1, 1, 1]);
        Ok([step.particles.where_self(&accepted, point), loss.where_self(&accepted, point_loss)])
    }
}

impl Sampler for Metropolis {
    type Options = NoOptions;

    fn new(_: NoOptions) -> Result<Self> {
        Ok(Self)
    }

    fn state_tensors(&self) -> usize {
        2
    }

    fn judges_last_proposal(&self) -> bool {
        true
    }

    fn step(&self, step: &Step) -> Result<Next> {
        // The weights have changed since the last visit, so the first step takes the new loss.
        let state = match step.number {
            0 => {
                let loss = step.loss.reshape([-1, 1, 1, 1]).expand_as(step.particles).copy();
                [step.particles.copy(), loss]
            }
            _ => Self::accept(step)?,
        };
        let particles = &state[0] + step.random.normal(step.particles)? * 0.05;
        Ok(Next { particles, state: state.into() })
    }

    fn finish(&self, proposal: &Step) -> Result<Next> {
        let state = Self::accept(proposal)?;
        Ok(Next { particles: state[0].copy(), state: state.into() })
    }
}
