use super::library::{Opened, open_sampler};
use super::{Owned, PluginSpec, Record, call, check_like};
use crate::torch::finite::FiniteCheck;
use crate::torch::random::Draws;
use crate::{Error, Result};
use plugin_api::abi::{SamplerDeclaration, SamplerInstance, SamplerPlugin};
use plugin_api::law::Law;
use plugin_api::walk::{Call, Method, Visit, Walk};
use plugin_api::{Next, Projection, Random, Start, ThreatModel};
use tch::Tensor;

/// An instance of a sampler plugin, on the host's side.
pub struct Sampler {
    instance: Owned<SamplerInstance>,
    name: String,
    /// Number of steps of a visit.
    pub steps: usize,
    /// The record of the plugin.
    pub record: Record,
}

/// The start of chains that do not continue from the particle store: the natural examples or a
/// uniform draw.
///
/// # Errors
/// If the draw fails.
pub fn fresh_start(start: Start, natural: &Tensor, threat: &ThreatModel, draws: &Draws) -> Result<Tensor> {
    match start {
        Start::Store | Start::Natural | Start::Carried => Ok(natural.shallow_clone()),
        Start::Uniform => {
            threat.random_start(natural, &Random::new(draws)).map_err(|error| Error::new(error).on_the_way())
        }
    }
}

/// The lower and the upper faces of the box around natural examples, in their shape: the linf ball
/// cut to the domain.
pub fn faces(natural: &Tensor, threat: &ThreatModel) -> [Tensor; 2] {
    [f64::NEG_INFINITY, f64::INFINITY].map(|end| threat.project(&natural.full_like(end), natural))
}

/// Draws from the uniform law on the box around natural examples. A start at a uniform draw from the
/// ball ([`ThreatModel::random_start`]) is projected onto the domain instead, which puts half of the
/// coordinates of black pixels on a face.
///
/// # Errors
/// If they cannot be drawn.
pub fn uniform_in_box(natural: &Tensor, threat: &ThreatModel, draws: &Draws) -> Result<Tensor> {
    let share = Random::new(draws).uniform(natural).map_err(|error| Error::new(error).on_the_way())?;
    let [low, high] = faces(natural, threat);
    Ok(&low + (high - &low) * share)
}

impl Sampler {
    /// Makes the sampler that `spec` names.
    ///
    /// # Errors
    /// If the plugin cannot be opened or refuses its options.
    pub fn make(spec: &PluginSpec) -> Result<Self> {
        let Opened { plugin, record, options, .. } = open_sampler(spec)?;
        Self::of_plugin(&plugin, record, spec, &options)
    }

    /// Refuses a sampler whose particles may leave the ball of epsilon.
    ///
    /// # Errors
    /// How far they may go.
    pub fn keeps_to_ball(&self) -> Result<()> {
        let reach = self.declaration().reach;
        if reach == 1.0 {
            return Ok(());
        }
        let message = format!(
            "{}: expected particles within epsilon of their natural examples, got {reach} epsilon",
            self.name
        );
        Err(Error::new(message)
            .note("because", "the sampler declares this reach, which is for training only"))
    }

    /// The names of the options of the sampler that `spec` names.
    ///
    /// # Errors
    /// If the plugin cannot be opened or described.
    pub fn options_of(spec: &PluginSpec) -> Result<Vec<String>> {
        let Opened { plugin, record, .. } = open_sampler(spec)?;
        let description = call(&record.manifest.name, "describe", [], || plugin.describe())?;
        let options = description.options["properties"].as_object();
        Ok(options.map_or_else(Vec::new, |options| options.keys().cloned().collect()))
    }

    /// The sampler linked into the program that `spec` names (`plugin=NAME`).
    #[cfg(test)]
    pub fn linked(spec: &PluginSpec) -> Self {
        let name = spec.name.as_deref().expect("a name");
        let mut samplers = plugin_api::abi::linked().samplers.into_iter();
        let plugin = samplers.find(|sampler| sampler.name == name).expect("a linked sampler");
        let record = Record::linked(super::library::Kind::Sampler, name);
        Self::of_plugin(&plugin, record, spec, &spec.options()).expect("a sampler")
    }

    fn of_plugin(
        plugin: &SamplerPlugin,
        mut record: Record,
        spec: &PluginSpec,
        options: &str,
    ) -> Result<Self> {
        let name = record.manifest.name.clone();
        let instance = {
            let _guard = tch::no_grad_guard();
            call(&name, "new", [], || plugin.create(options)).map_err(|error| spec.error(error))?
        };
        let steps = spec.steps().unwrap_or(instance.declaration().default_steps);
        record.set_steps(steps);
        Ok(Self { instance: Owned::new(&name, instance), name, steps, record })
    }

    /// Its declaration.
    pub fn declaration(&self) -> &SamplerDeclaration {
        self.instance.declaration()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it declares the law of its chain.
    pub fn has_law(&self) -> bool {
        self.declaration().law != Law::Undeclared
    }

    /// Whether it supports this threat model.
    ///
    /// # Errors
    /// The plugin's reason, or that the norm is newer than the plugin.
    pub fn supports(&self, threat: &ThreatModel) -> Result<()> {
        call(&self.name, "supports", [], || self.instance.supports(threat))
    }

    /// Walks chains through visits of [`Sampler::steps`] steps; calls go through
    /// [`Sampler::perform`].
    pub fn walk(&self) -> Walk<'_> {
        Walk { sampler: &self.instance, steps: self.steps }
    }

    /// As [`Sampler::walk`], in visits of one step.
    pub fn walk_of_one_step(&self) -> Walk<'_> {
        Walk { steps: 1, ..self.walk() }
    }

    /// Evaluations of the loss in a visit of so many steps.
    pub fn evaluations(&self, steps: usize) -> usize {
        steps + usize::from(self.judges_last_proposal())
    }

    /// Gradients among them.
    pub fn gradients(&self, steps: usize) -> usize {
        let SamplerDeclaration { uses_gradient, judges_by_gradient, .. } = *self.declaration();
        steps * usize::from(uses_gradient) + usize::from(judges_by_gradient)
    }

    /// Makes a call of a walk, with the random numbers of its step from `draws`, and checks the
    /// shapes, dtypes and devices of the result. `watch` checks for NaN, infinite values and
    /// particles outside the threat model later.
    ///
    /// # Errors
    /// If the plugin fails or its result does not pass the checks.
    pub fn perform(&self, due: &Call, draws: &Draws, watch: &mut FiniteCheck) -> Result<Next> {
        let draws = draws.step(due.stream());
        let next = call(&self.name, due.method.name(), due.lent(), || due.make(&draws))?;
        let Visit { threat, natural, ref particles, .. } = *due.visit;
        self.check(due.method, &next, particles)?;
        watch.finite(&self.name, &next.particles);
        for state in &next.state {
            watch.finite(&self.name, state);
        }
        if self.declaration().projection == Projection::Sampler {
            let ball = self.declaration().ball(&threat);
            watch.inside(&self.name, &ball.contains(&next.particles, natural));
        }
        Ok(next)
    }

    /// Only the start of a visit, if the sampler declares `begins`.
    ///
    /// # Errors
    /// As for [`Sampler::perform`].
    pub fn begin(&self, visit: &mut Visit, draws: &Draws, watch: &mut FiniteCheck) -> Result<()> {
        self.walk().begin(visit, |call| self.perform(call, draws, watch))
    }

    /// Only step `number` (from 0) of a visit, given the loss (`[N]`) and its gradient
    /// (`[N, C, H, W]`) at the particles. The new particles are projected onto the threat model.
    ///
    /// # Errors
    /// As for [`Sampler::perform`].
    pub fn step(
        &self,
        visit: &mut Visit,
        number: usize,
        at: (&Tensor, &Tensor),
        draws: &Draws,
        watch: &mut FiniteCheck,
    ) -> Result<()> {
        self.walk().step(visit, number, at, |call| self.perform(call, draws, watch))
    }

    /// Whether the sampler accepts or rejects its last proposal, given the loss there.
    pub fn judges_last_proposal(&self) -> bool {
        self.declaration().judges_last_proposal
    }

    fn check(&self, method: Method, next: &Next, like: &Tensor) -> Result<()> {
        let method = method.name();
        check_like(&self.name, method, &next.particles, &like.size(), like)?;
        let declared = self.declaration().state();
        if next.state.len() != declared.len() {
            let message = format!(
                "{}: {method} returned {} state tensors; it declares {}",
                self.name,
                next.state.len(),
                declared.len()
            );
            return Err(Error::new(message).on_the_way());
        }
        let mut states = next.state.iter().zip(declared);
        states.try_for_each(|(state, shape)| check_like(&self.name, method, state, &shape.size(like), like))
    }
}
