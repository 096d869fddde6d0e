use super::library::{Opened, open_sampler};
use super::{PluginSpec, Record, call, check_like};
use crate::torch::finite::FiniteCheck;
use crate::torch::random::Draws;
use crate::{Error, Result};
use plugin_api::abi::{SamplerDeclaration, SamplerInstance, SamplerPlugin};
use plugin_api::{Next, Projection, Random, Start, Step, ThreatModel};
use tch::Tensor;

/// A sampler plugin, made: the host's side of it.
pub struct Sampler {
    instance: SamplerInstance,
    name: String,
    /// How many steps each visit takes.
    pub steps: usize,
    /// Which it is.
    pub record: Record,
}

/// Where chains begin that do not continue from the particle store: at the natural examples or
/// at a uniform draw.
///
/// # Errors
/// If the draw fails.
pub fn fresh_start(start: Start, natural: &Tensor, threat: &ThreatModel, draws: &Draws) -> Result<Tensor> {
    match start {
        Start::Store | Start::Natural => Ok(natural.shallow_clone()),
        Start::Uniform => {
            threat.random_start(natural, &Random::new(draws)).map_err(|error| Error::new(error).on_the_way())
        }
    }
}

/// A batch of chains on the move: B points with K particles each, N = B * K rows.
pub struct Visit<'a> {
    /// Natural examples, `[N, C, H, W]`.
    pub natural: &'a Tensor,
    /// Labels, `[N]`, i64.
    pub labels: &'a Tensor,
    /// Index of each row's point, length N.
    pub points: &'a [i64],
    /// K.
    pub particles_per_point: usize,
    /// What the adversary may do.
    pub threat: ThreatModel,
    /// Where the particles are, `[N, C, H, W]`.
    pub particles: Tensor,
    /// What they remember, `[N, C, H, W]` each.
    pub state: Vec<Tensor>,
}

impl Sampler {
    /// Makes the sampler that `spec` names.
    ///
    /// # Errors
    /// If the plugin cannot be opened or refuses its options.
    pub fn make(spec: &PluginSpec) -> Result<Self> {
        let Opened { plugin, record } = open_sampler(spec)?;
        Self::of_plugin(&plugin, record, spec)
    }

    /// The sampler linked into the program that `spec` names (`plugin=NAME`).
    #[cfg(test)]
    pub fn linked(spec: &PluginSpec) -> Self {
        let name = spec.name.as_deref().expect("a name");
        let mut samplers = plugin_api::abi::linked().samplers.into_iter();
        let plugin = samplers.find(|sampler| sampler.name == name).expect("a linked sampler");
        Self::of_plugin(&plugin, Record::linked(super::library::Kind::Sampler, name), spec)
            .expect("a sampler")
    }

    fn of_plugin(plugin: &SamplerPlugin, record: Record, spec: &PluginSpec) -> Result<Self> {
        let name = record.manifest.name.clone();
        let instance = {
            let _guard = tch::no_grad_guard();
            call(&name, "new", || plugin.create(&spec.options())).map_err(|error| spec.error(error))?
        };
        let steps = spec.steps().unwrap_or(instance.declaration().default_steps);
        if steps == 0 {
            return Err(spec.error(format!("{name}: declares 0 steps; expected at least 1")));
        }
        Ok(Self { instance, name, steps, record })
    }

    /// What it declared.
    pub fn declaration(&self) -> SamplerDeclaration {
        self.instance.declaration()
    }

    /// What fresh chains remember: zeros.
    pub fn fresh_state(&self, natural: &Tensor) -> Vec<Tensor> {
        (0..self.declaration().state_tensors).map(|_| natural.zeros_like()).collect()
    }

    /// Step `number` of a visit, given the loss (`[N]`) and its gradient (`[N, C, H, W]`) at
    /// the particles: moves them and projects them onto the threat model.
    ///
    /// # Errors
    /// If the plugin fails or returns something else.
    pub fn step(
        &self,
        visit: &mut Visit,
        number: usize,
        (loss, gradient): (&Tensor, &Tensor),
        draws: &Draws,
        watch: &mut FiniteCheck,
    ) -> Result<()> {
        self.advance("step", visit, number, (loss, gradient), draws, watch)
    }

    /// Whether [`Sampler::finish`] is to follow the last step.
    pub fn judges_last_proposal(&self) -> bool {
        self.declaration().judges_last_proposal
    }

    /// After the last step: lets a sampler that asked for it judge its last proposal, given
    /// the loss there (`[N]`).
    ///
    /// # Errors
    /// If the plugin fails or returns something else.
    pub fn finish(
        &self,
        visit: &mut Visit,
        loss: &Tensor,
        draws: &Draws,
        watch: &mut FiniteCheck,
    ) -> Result<()> {
        let no_gradient = visit.particles.zeros_like();
        self.advance("finish", visit, self.steps, (loss, &no_gradient), draws, watch)
    }

    fn advance(
        &self,
        method: &str,
        visit: &mut Visit,
        number: usize,
        (loss, gradient): (&Tensor, &Tensor),
        draws: &Draws,
        watch: &mut FiniteCheck,
    ) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let step = Step {
            natural: visit.natural,
            labels: visit.labels,
            particles: &visit.particles,
            loss,
            gradient,
            state: &visit.state,
            points: visit.points,
            particles_per_point: visit.particles_per_point,
            number,
            of: self.steps,
            threat: visit.threat,
            random: Random::new(draws),
        };
        let next = call(&self.name, method, || match method {
            "finish" => self.instance.finish(&step, draws),
            _ => self.instance.step(&step, draws),
        })?;
        self.check(method, &next, &visit.particles)?;
        watch.finite(&self.name, &next.particles);
        for state in &next.state {
            watch.finite(&self.name, state);
        }
        visit.particles = match self.declaration().projection {
            Projection::Host => visit.threat.project(&next.particles, visit.natural),
            Projection::Sampler => {
                watch.inside(&self.name, &visit.threat.contains(&next.particles, visit.natural));
                next.particles
            }
        };
        visit.state = next.state;
        Ok(())
    }

    fn check(&self, method: &str, next: &Next, like: &Tensor) -> Result<()> {
        check_like(&self.name, method, &next.particles, &like.size(), like)?;
        let declared = self.declaration().state_tensors;
        if next.state.len() != declared {
            let message = format!(
                "{}: {method} returned {} state tensors; it declares {declared}",
                self.name,
                next.state.len()
            );
            return Err(Error::new(message).on_the_way());
        }
        next.state.iter().try_for_each(|state| check_like(&self.name, method, state, &like.size(), like))
    }
}
