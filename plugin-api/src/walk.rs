//! The host's side of a sampler: a visit of T steps to a batch of chains.
//!
//! A step takes the loss and its gradient at the particles, and moves the particles. After the last
//! step, the `finish` of some samplers takes the loss (and the gradient) at the last proposal, and
//! accepts or rejects it. Training, evaluation and the conformance checks run chains through this module. They compute
//! losses and call the plugin in different ways, and pass both in as closures.

use crate::abi::{SamplerInstance, MOST_STEPS};
use crate::{Next, Projection, Random, RandomSource, Step, ThreatModel};
use tch::Tensor;

/// A batch of chains: B points with K particles each, N = B * K rows. Float tensors share one dtype
/// and device.
pub struct Visit<'a> {
    /// Natural examples, `[N, C, H, W]`.
    pub natural: &'a Tensor,
    /// Labels, `[N]`, i64.
    pub labels: &'a Tensor,
    /// Index of each row's point, length N.
    pub points: &'a [i64],
    /// Particles per point, K.
    pub particles_per_point: usize,
    /// The threat model.
    pub threat: ThreatModel,
    /// The particles, `[N, C, H, W]`.
    pub particles: Tensor,
    /// The state of the particles; see [`Step::state`].
    pub state: Vec<Tensor>,
}

/// The methods of a sampler that move particles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// [`Sampler::begin`](crate::Sampler::begin).
    Begin,
    /// [`Sampler::step`](crate::Sampler::step).
    Step,
    /// [`Sampler::finish`](crate::Sampler::finish).
    Finish,
}

impl Method {
    /// Its name in messages: "begin", "step" or "finish".
    pub const fn name(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::Step => "step",
            Self::Finish => "finish",
        }
    }
}

/// A call to a sampler, ready to be made.
pub struct Call<'a> {
    /// The method to call.
    pub method: Method,
    /// The number of earlier steps in the visit: 0 to T - 1 for a step, 0 for `begin`, T for `finish`.
    pub number: usize,
    /// The chains before the call.
    pub visit: &'a Visit<'a>,
    walk: Walk<'a>,
    loss: &'a Tensor,
    gradient: &'a Tensor,
}

impl Call<'_> {
    /// The tensors that the sampler is lent, with their names in [`Step`]. It must not write to them.
    pub fn lent(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        let Visit { natural, labels, ref particles, ref state, .. } = *self.visit;
        let (loss, gradient) = (self.loss, self.gradient);
        let named = [
            ("natural", natural),
            ("labels", labels),
            ("particles", particles),
            ("loss", loss),
            ("gradient", gradient),
        ];
        named.into_iter().chain(state.iter().map(|state| ("state", state)))
    }

    /// The number of the call's random numbers among those of the visit: 1 to T for the steps, T + 1
    /// for `finish`, and one that no step has for `begin`. Numbers 0 are those of a start that the
    /// host draws.
    pub fn stream(&self) -> usize {
        match self.method {
            Method::Begin => MOST_STEPS + 2,
            Method::Step | Method::Finish => self.number + 1,
        }
    }

    /// Calls the sampler with these random numbers. The result is neither checked nor projected.
    ///
    /// # Errors
    /// Those of the plugin, or if it does not support the norm.
    pub fn make(&self, random: &dyn RandomSource) -> crate::Result<Next> {
        let Walk { sampler, steps } = self.walk;
        let step = Step {
            natural: self.visit.natural,
            labels: self.visit.labels,
            particles: &self.visit.particles,
            loss: self.loss,
            gradient: self.gradient,
            state: &self.visit.state,
            points: self.visit.points,
            particles_per_point: self.visit.particles_per_point,
            number: self.number,
            of: steps,
            threat: self.visit.threat,
            random: Random::new(random),
        };
        match self.method {
            Method::Begin => sampler.begin(&step, random),
            Method::Step => sampler.step(&step, random),
            Method::Finish => sampler.finish(&step, random),
        }
    }
}

/// An evaluation of the loss that a visit needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// The number of earlier steps in the visit: 0 to T - 1 before a step, T before `finish`.
    pub number: usize,
    /// Whether the gradient is needed, too.
    pub gradient: bool,
}

/// A sampler and the length of its visits.
///
/// Each method takes the closure `perform`, which makes the call to the plugin ([`Call::make`],
/// with the random numbers of [`Call::stream`]), checks the result and returns it. It runs without
/// gradient tracking; a change of this setting by the plugin has no effect.
#[derive(Clone, Copy)]
pub struct Walk<'a> {
    /// The sampler.
    pub sampler: &'a SamplerInstance,
    /// Steps of a visit, T; at least 1.
    pub steps: usize,
}

impl Walk<'_> {
    /// A whole visit: `begin` if the sampler declares `begins`, T steps, then `finish` if it declares
    /// `judges_last_proposal`.
    ///
    /// `evaluate` returns the loss (`[N]`) at the particles and, if it is due, the gradient of its
    /// sum (`[N, C, H, W]`).
    ///
    /// # Errors
    /// The first error of a closure; particles and state are then those before the closure was
    /// called.
    pub fn run<E>(
        self,
        visit: &mut Visit,
        evaluate: impl FnMut(Due, &Visit) -> Result<(Tensor, Option<Tensor>), E>,
        mut perform: impl FnMut(&Call) -> Result<Next, E>,
    ) -> Result<(), E> {
        self.begin(visit, &mut perform)?;
        self.steps(visit, evaluate, perform)
    }

    /// The rest of a visit that has begun.
    ///
    /// # Errors
    /// As for [`Walk::run`].
    pub fn steps<E>(
        self,
        visit: &mut Visit,
        mut evaluate: impl FnMut(Due, &Visit) -> Result<(Tensor, Option<Tensor>), E>,
        mut perform: impl FnMut(&Call) -> Result<Next, E>,
    ) -> Result<(), E> {
        let declaration = self.sampler.declaration();
        let steps = (0..self.steps).map(|number| (Method::Step, number, declaration.uses_gradient));
        let judgement = (Method::Finish, self.steps, declaration.judges_by_gradient);
        let judgement = declaration.judges_last_proposal.then_some(judgement);
        for (method, number, gradient) in steps.chain(judgement) {
            let (loss, gradient) = evaluate(Due { number, gradient }, visit)?;
            let gradient = gradient.unwrap_or_else(|| visit.particles.zeros_like());
            self.advance(method, visit, number, (&loss, &gradient), &mut perform)?;
        }
        Ok(())
    }

    /// Only the start of a visit: `begin`, if the sampler declares `begins`.
    ///
    /// # Errors
    /// Those of `perform`; the particles are then unchanged.
    pub fn begin<E>(self, visit: &mut Visit, perform: impl FnMut(&Call) -> Result<Next, E>) -> Result<(), E> {
        if !self.sampler.declaration().begins {
            return Ok(());
        }
        let gradient = visit.particles.zeros_like();
        let loss = gradient.new_zeros([gradient.size()[0]], (gradient.kind(), gradient.device()));
        self.advance(Method::Begin, visit, 0, (&loss, &gradient), perform)
    }

    /// Only step `number` (from 0), given the loss (`[N]`) and the gradient of its sum
    /// (`[N, C, H, W]`) at the particles. The result is projected if the sampler leaves projection
    /// to the host.
    ///
    /// # Errors
    /// Those of `perform`; the particles are then unchanged.
    pub fn step<E>(
        self,
        visit: &mut Visit,
        number: usize,
        (loss, gradient): (&Tensor, &Tensor),
        perform: impl FnMut(&Call) -> Result<Next, E>,
    ) -> Result<(), E> {
        self.advance(Method::Step, visit, number, (loss, gradient), perform)
    }

    fn advance<E>(
        self,
        method: Method,
        visit: &mut Visit,
        number: usize,
        (loss, gradient): (&Tensor, &Tensor),
        mut perform: impl FnMut(&Call) -> Result<Next, E>,
    ) -> Result<(), E> {
        let _guard = tch::no_grad_guard();
        let next = perform(&Call { method, number, visit, walk: self, loss, gradient })?;
        let declaration = self.sampler.declaration();
        visit.particles = match declaration.projection {
            Projection::Host => declaration.ball(&visit.threat).project(&next.particles, visit.natural),
            Projection::Sampler => next.particles,
        };
        visit.state = next.state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, FixedNumbers};
    use crate::{abi, export_sampler, Error, Norm, Result, Sampler};
    use std::cell::RefCell;
    use tch::Kind;

    export_sampler!("recorder", Recorder);

    /// Adds the gradient and a random number to its particles. Its state holds the inputs of the
    /// last call: method (0 for step, 1 for finish, 2 for begin), number, number of steps, and loss.
    struct Recorder {
        options: Options,
    }

    #[derive(Default, Clone, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
    struct Options {
        /// Whether `finish` is called.
        judges: bool,
        /// Whether the sampler projects.
        projects: bool,
        /// Whether steps use no gradient.
        #[serde(default)]
        without_gradient: bool,
        /// Whether `finish` is given the gradient.
        #[serde(default)]
        judges_by_gradient: bool,
        /// Whether `begin` is called.
        #[serde(default)]
        begins: bool,
        /// How far particles may move beyond the ball, in units of epsilon.
        #[serde(default)]
        beyond: f64,
    }

    impl Recorder {
        fn next(step: &Step, method: f64) -> Result<Next> {
            let of_call = [method, step.number as f64, step.of as f64];
            let record = Tensor::cat(&[Tensor::from_slice(&of_call), step.loss.shallow_clone()], 0);
            let moved = step.particles + step.gradient + step.random.normal(step.particles)?;
            Ok(Next { particles: moved, state: vec![record] })
        }
    }

    impl Sampler for Recorder {
        type Options = Options;

        fn new(options: Options) -> Result<Self> {
            Ok(Self { options })
        }

        fn state_tensors(&self) -> usize {
            1
        }

        fn judges_last_proposal(&self) -> bool {
            self.options.judges
        }

        fn uses_gradient(&self) -> bool {
            !self.options.without_gradient
        }

        fn judges_by_gradient(&self) -> bool {
            self.options.judges_by_gradient
        }

        fn projection(&self) -> Projection {
            if self.options.projects {
                Projection::Sampler
            } else {
                Projection::Host
            }
        }

        fn begins(&self) -> bool {
            self.options.begins
        }

        fn reach(&self) -> f64 {
            1.0 + self.options.beyond
        }

        fn begin(&self, start: &Step) -> Result<Next> {
            Self::next(start, 2.0)
        }

        fn step(&self, step: &Step) -> Result<Next> {
            Self::next(step, 0.0)
        }

        fn finish(&self, proposal: &Step) -> Result<Next> {
            Self::next(proposal, 1.0)
        }
    }

    fn recorder(options: Options) -> SamplerInstance {
        let samplers = abi::linked().samplers;
        let plugin = samplers.iter().find(|sampler| sampler.name == "recorder").expect("exported above");
        plugin.create(&serde_json::to_string(&options).expect("JSON")).expect("a sampler")
    }

    /// One image of one pixel at 0, in the ball of radius 1.
    struct Pixel {
        natural: Tensor,
        labels: Tensor,
    }

    impl Pixel {
        fn new() -> Self {
            let natural = Tensor::zeros([1, 1, 1, 1], (Kind::Double, tch::Device::Cpu));
            Self { natural, labels: Tensor::from_slice(&[0i64]) }
        }

        fn visit(&self) -> Visit<'_> {
            Visit {
                natural: &self.natural,
                labels: &self.labels,
                points: &[0],
                particles_per_point: 1,
                threat: ThreatModel { norm: Norm::Linf, epsilon: 1.0, domain: (-2.0, 2.0) },
                particles: self.natural.copy(),
                state: vec![self.natural.zeros_like()],
            }
        }
    }

    /// The loss: ten times the particle.
    fn loss(visit: &Visit) -> Tensor {
        visit.particles.flatten(0, -1) * 10.0
    }

    /// Makes a visit of two steps and returns the names of the calls, in order. The random number
    /// of each call is a hundredth of the call's number from 1. The gradient is 0.25.
    fn walked(sampler: &SamplerInstance, visit: &mut Visit) -> Vec<String> {
        let events = RefCell::new(Vec::new());
        let note = |event: String| events.borrow_mut().push(event);
        let outcome = Walk { sampler, steps: 2 }.run(
            visit,
            |due, visit| {
                let what = if due.gradient { "gradient" } else { "loss" };
                note(format!("{what} {}", due.number));
                let gradient = due.gradient.then(|| visit.particles.full_like(0.25));
                Ok::<_, Error>((loss(visit), gradient))
            },
            |call| {
                note(format!("{} {}", call.method.name(), call.number));
                call.make(&FixedNumbers(vec![(call.number + 1) as f64 / 100.0]))
            },
        );
        outcome.expect("a visit");
        events.into_inner()
    }

    #[test]
    fn a_visit_makes_its_steps_in_order() {
        let (pixel, sampler) = (Pixel::new(), recorder(Options::default()));
        let mut visit = pixel.visit();
        assert_eq!(walked(&sampler, &mut visit), ["gradient 0", "step 0", "gradient 1", "step 1"]);
        // 0.25 + 0.01, then 0.25 + 0.02; the second step is number 1 of 2, at a loss of 2.6.
        assert_close(&visit.particles, &[0.53]);
        assert_close(&visit.state[0], &[0.0, 1.0, 2.0, 2.6]);
    }

    #[test]
    fn begin_moves_the_start_before_the_first_loss() {
        let pixel = Pixel::new();
        let sampler = recorder(Options { begins: true, ..Options::default() });
        let mut visit = pixel.visit();
        let events = walked(&sampler, &mut visit);
        assert_eq!(events, ["begin 0", "gradient 0", "step 0", "gradient 1", "step 1"]);
        // 0.01 without a gradient, then 0.25 + 0.01 and 0.25 + 0.02.
        assert_close(&visit.particles, &[0.54]);
        assert_close(&visit.state[0], &[0.0, 1.0, 2.0, 2.7]);

        let walk = Walk { sampler: &sampler, steps: 2 };
        let mut visit = pixel.visit();
        let mut streams = Vec::new();
        let begun = walk.begin(&mut visit, |call| {
            streams.push(call.stream());
            call.make(&FixedNumbers(vec![5.0]))
        });
        assert_eq!(begun, Ok(()));
        assert_close(&visit.particles, &[1.0]);
        assert_close(&visit.state[0], &[2.0, 0.0, 2.0, 0.0]);
        assert_eq!(streams, [MOST_STEPS + 2], "that of no step");
        let without = recorder(Options::default());
        let begun = Walk { sampler: &without, steps: 2 }.begin(&mut visit, |_| panic!("not called"));
        assert_eq!(begun, Ok::<_, Error>(()));
    }

    #[test]
    fn particles_are_projected_onto_the_ball_that_the_sampler_declares() {
        let pixel = Pixel::new();
        let sampler = recorder(Options { beyond: 0.5, ..Options::default() });
        let mut visit = pixel.visit();
        let at = (&loss(&visit), &visit.particles.full_like(3.0));
        let step = Walk { sampler: &sampler, steps: 1 }
            .step(&mut visit, 0, at, |call| call.make(&FixedNumbers(vec![0.0])));
        assert_eq!(step, Ok(()));
        assert_close(&visit.particles, &[1.5]);
    }

    #[test]
    fn finish_gets_the_loss_at_the_last_proposal_and_a_zero_gradient() {
        let (pixel, sampler) = (Pixel::new(), recorder(Options { judges: true, ..Options::default() }));
        let mut visit = pixel.visit();
        let events = walked(&sampler, &mut visit);
        assert_eq!(events[..4], ["gradient 0", "step 0", "gradient 1", "step 1"]);
        assert_eq!(events[4..], ["loss 2", "finish 2"]);
        // The third random number, and no gradient; `finish` is number 2 of 2, at a loss of 5.3.
        assert_close(&visit.particles, &[0.53 + 0.03]);
        assert_close(&visit.state[0], &[1.0, 2.0, 2.0, 5.3]);
    }

    #[test]
    fn gradients_are_asked_for_where_the_sampler_uses_them() {
        let options = Options { judges: true, ..Options::default() };
        let by_gradient = recorder(Options { judges_by_gradient: true, ..options.clone() });
        let pixel = Pixel::new();
        let mut visit = pixel.visit();
        let events = walked(&by_gradient, &mut visit);
        assert_eq!(events[4..], ["gradient 2", "finish 2"]);
        // Three gradients of 0.25, and random numbers of 0.01, 0.02 and 0.03.
        assert_close(&visit.particles, &[0.81]);
        let gradient_free = recorder(Options { without_gradient: true, ..options });
        let mut visit = pixel.visit();
        let events = walked(&gradient_free, &mut visit);
        assert_eq!(events, ["loss 0", "step 0", "loss 1", "step 1", "loss 2", "finish 2"]);
        assert_close(&visit.particles, &[0.06]);
    }

    #[test]
    fn particles_are_projected_unless_the_sampler_projects() {
        for (projects, expected) in [(false, 1.0), (true, 3.01)] {
            let (pixel, sampler) = (Pixel::new(), recorder(Options { projects, ..Options::default() }));
            let mut visit = pixel.visit();
            let at = (&loss(&visit), &visit.particles.full_like(3.0));
            let step = Walk { sampler: &sampler, steps: 1 }
                .step(&mut visit, 0, at, |call| call.make(&FixedNumbers(vec![0.01])));
            assert_eq!(step, Ok(()));
            assert_close(&visit.particles, &[expected]);
        }
    }

    #[test]
    fn gradients_are_tracked_for_losses_and_not_for_calls() {
        let (pixel, sampler) = (Pixel::new(), recorder(Options { judges: true, ..Options::default() }));
        let tracks = |visit: &Visit| {
            let leaf = visit.particles.copy().set_requires_grad(true);
            (leaf * 2.0).requires_grad()
        };
        let outcome = Walk { sampler: &sampler, steps: 2 }.run(
            &mut pixel.visit(),
            |_, visit| {
                assert!(tracks(visit));
                Ok::<_, Error>((loss(visit), None))
            },
            |call| {
                assert!(!tracks(call.visit));
                call.make(&FixedNumbers(vec![0.0]))
            },
        );
        assert_eq!(outcome, Ok(()));
    }

    #[test]
    fn an_error_ends_the_visit_and_keeps_the_particles() {
        let (pixel, sampler) = (Pixel::new(), recorder(Options { judges: true, ..Options::default() }));
        let walk = Walk { sampler: &sampler, steps: 2 };
        let refuse = |refused: bool, what: &str| {
            if refused {
                Err(Error::new(what))
            } else {
                Ok(())
            }
        };
        // The closure or call that fails, and the particle after the failure.
        for (failing, expected) in
            [("evaluation 1", 0.25), ("step 1", 0.25), ("evaluation 2", 0.5), ("finish 2", 0.5)]
        {
            let mut visit = pixel.visit();
            let outcome = walk.run(
                &mut visit,
                |due, visit| {
                    refuse(failing == format!("evaluation {}", due.number), failing)?;
                    Ok((loss(visit), Some(visit.particles.full_like(0.25))))
                },
                |call| {
                    refuse(failing == format!("{} {}", call.method.name(), call.number), failing)?;
                    call.make(&FixedNumbers(vec![0.0]))
                },
            );
            assert_eq!(outcome, Err(Error::new(failing)));
            assert_close(&visit.particles, &[expected]);
        }
    }
}
