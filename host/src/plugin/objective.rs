use super::library::{Opened, open_objective};
use super::{Owned, PluginSpec, Record, call, check_like};
use crate::{Error, Result};
use plugin_api::abi::{Minibatch, ObjectiveDeclaration, ObjectiveInstance, ObjectivePlugin};
use plugin_api::{Climbs, NetworkCalls, Outer, Passes, RandomSource, Setting, losses};
use std::cell::Cell;
use tch::{Kind, Tensor};

/// The largest number of numbers in a state tensor of an objective.
const MOST_NUMBERS: usize = 1 << 24;

/// An instance of an objective plugin, on the host's side.
pub struct Objective {
    instance: Owned<ObjectiveInstance>,
    name: String,
    /// The record of the plugin.
    pub record: Record,
}

impl Objective {
    /// Makes the objective that `spec` names.
    ///
    /// # Errors
    /// If the plugin cannot be opened or refuses its options.
    pub fn make(spec: &PluginSpec) -> Result<Self> {
        // Their names in older versions.
        if ["cross-entropy", "trades"].contains(&spec.file.as_str()) {
            let file = spec.file.replace('-', "_");
            return Err(spec
                .error(format!("there is no objective `{}`; objectives are plugins", spec.file))
                .fix(format!("name its library: {file}.so, or {file}.so,option=value")));
        }
        if spec.steps().is_some() {
            return Err(spec.error("option `steps`: samplers and attacks have it, objectives do not"));
        }
        let Opened { plugin, record, options, .. } = open_objective(spec)?;
        Self::of_plugin(&plugin, record, spec, &options)
    }

    /// The objective of this name that is linked into the program.
    #[cfg(test)]
    pub fn linked(name: &str) -> Self {
        let mut objectives = plugin_api::abi::linked().objectives.into_iter();
        let plugin = objectives.find(|objective| objective.name == name).expect("a linked objective");
        let record = Record::linked(super::library::Kind::Objective, name);
        Self::of_plugin(&plugin, record, &name.parse().expect("a spec"), "{}").expect("an objective")
    }

    fn of_plugin(plugin: &ObjectivePlugin, record: Record, spec: &PluginSpec, options: &str) -> Result<Self> {
        let name = record.manifest.name.clone();
        let instance = {
            let _guard = tch::no_grad_guard();
            call(&name, "new", [], || plugin.create(options)).map_err(|error| spec.error(error))?
        };
        Ok(Self { instance: Owned::new(&name, instance), name, record })
    }

    /// Its declaration.
    pub fn declaration(&self) -> &ObjectiveDeclaration {
        self.instance.declaration()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it can be used in this setting.
    ///
    /// # Errors
    /// The plugin's reason, or that the norm is newer than the plugin.
    pub fn supports(&self, setting: &Setting) -> Result<()> {
        call(&self.name, "supports", [], || self.instance.supports(setting))
    }

    /// The names and the first values of its state, f32.
    ///
    /// # Errors
    /// If the plugin fails, or a tensor is not f32, not finite, too large or of a name that is used
    /// twice.
    pub fn first_state(&self, setting: &Setting) -> Result<Vec<(String, Tensor)>> {
        let _guard = tch::no_grad_guard();
        let state = call(&self.name, "state", [], || self.instance.state(setting))?;
        for (at, (name, tensor)) in state.iter().enumerate() {
            let refused = |why: String| Err(Error::new(format!("{}: state `{name}` {why}", self.name)));
            if state[..at].iter().any(|(other, _)| other == name) {
                return refused("is declared twice".to_owned());
            }
            if !tensor.defined() || tensor.kind() != Kind::Float {
                return refused("has another dtype than f32".to_owned());
            }
            if tensor.numel() > MOST_NUMBERS {
                return refused(format!("has {} numbers; expected at most {MOST_NUMBERS}", tensor.numel()));
            }
            if tensor.isfinite().all().int64_value(&[]) != 1 {
                return refused("is NaN or infinite".to_owned());
            }
        }
        Ok(state)
    }

    /// The outer loss, with its graph: `[N]`, or `[]` if it couples points; and the next state. The
    /// network has these parameters.
    ///
    /// # Errors
    /// If the plugin fails, or its result does not have the shape, dtype, device or graph that it
    /// must have, or the passes that it took are not those that it declares.
    pub fn outer<'a>(
        &self,
        parameters: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
        minibatch: &'a Minibatch<'a>,
        network: &dyn NetworkCalls,
        random: &dyn RandomSource,
    ) -> Result<Outer> {
        let counted = CountedNetwork { network, rows: Cell::new(0) };
        let lent = minibatch.lent().chain(parameters);
        let outer = tch::with_grad(|| {
            call(&self.name, "outer", lent, || self.instance.outer(minibatch, &counted, random))
        })?;
        let rows = minibatch.points.len();
        let is_one_number =
            outer.loss.defined() && outer.loss.dim() == 0 && self.declaration().couples_points;
        let shape: &[i64] = if is_one_number { &[] } else { &[rows as i64] };
        self.check("outer", &outer.loss, shape, minibatch.logits)?;
        if outer.state.len() != minibatch.state.len() {
            let (got, declared) = (outer.state.len(), minibatch.state.len());
            let message =
                format!("{}: outer returned {got} state tensors; its state has {declared}", self.name);
            return Err(Error::new(message).on_the_way());
        }
        for (next, state) in outer.state.iter().zip(minibatch.state) {
            check_like(&self.name, "outer", next, &state.size(), state)?;
        }
        let Passes { per_point, per_particle } = self.declaration().passes;
        let declared = rows / minibatch.particles_per_point * per_point + rows * per_particle;
        if counted.rows.get() != declared {
            let points = rows / minibatch.particles_per_point;
            return Err(Error::new(format!(
                "{}: outer took {} passes of the network for {points} points with {} particles each; it declares {declared}",
                self.name,
                counted.rows.get(),
                minibatch.particles_per_point,
            ))
            .fix("declare in `passes` what `outer` takes")
            .on_the_way());
        }
        let state = outer.state.iter().map(Tensor::detach).collect();
        Ok(Outer { loss: outer.loss, state })
    }

    /// The loss of each row that the sampler climbs, `[N]`, with its graph.
    ///
    /// # Errors
    /// As for [`Objective::outer`].
    pub fn inner(
        &self,
        minibatch: &Minibatch,
        network: &dyn NetworkCalls,
        random: &dyn RandomSource,
    ) -> Result<Tensor> {
        let climbs = self.declaration().climbs;
        // The host's own function needs no call of the plugin.
        if climbs == Climbs::CrossEntropy {
            return Ok(tch::with_grad(|| losses::cross_entropy(minibatch.logits, minibatch.labels)));
        }
        let compute = || match climbs {
            Climbs::Outer => self.instance.outer(minibatch, network, random).map(|outer| outer.loss),
            _ => self.instance.inner(minibatch, random),
        };
        let loss = tch::with_grad(|| call(&self.name, "inner", minibatch.lent(), compute))?;
        let rows = minibatch.points.len() as i64;
        self.check("inner", &loss, &[rows], minibatch.logits)?;
        Ok(loss)
    }

    fn check(&self, method: &str, loss: &Tensor, shape: &[i64], logits: &Tensor) -> Result<()> {
        check_like(&self.name, method, loss, shape, logits)?;
        // A loss that is only evaluated has no graph.
        if logits.requires_grad() && !loss.requires_grad() {
            let message = format!("{}: {method} returned a loss without a graph", self.name);
            return Err(Error::new(message)
                .note("expected", "a loss that is differentiable with respect to the logits")
                .fix("compute it from the logits, without `detach`")
                .on_the_way());
        }
        Ok(())
    }
}

/// The network of an objective; counts the passes.
struct CountedNetwork<'a> {
    network: &'a dyn NetworkCalls,
    rows: Cell<usize>,
}

impl CountedNetwork<'_> {
    fn count(&self, images: &Tensor) {
        self.rows.set(self.rows.get() + images.size().first().map_or(0, |rows| *rows as usize));
    }
}

impl NetworkCalls for CountedNetwork<'_> {
    fn logits(&self, images: &Tensor, train: bool) -> plugin_api::Result<Tensor> {
        self.count(images);
        self.network.logits(images, train)
    }

    fn input_gradient(&self, loss: &Tensor, images: &Tensor) -> plugin_api::Result<Tensor> {
        self.count(images);
        self.network.input_gradient(loss, images)
    }
}
