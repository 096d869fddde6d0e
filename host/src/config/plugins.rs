//! The plugins of an experiment, by role.

use super::{Experiment, Train};
use crate::plugin::PluginSpec;

/// The role of a plugin in an experiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The classifier.
    Model,
    /// The training adversary.
    Sampler,
    /// The losses of both problems.
    Objective,
    /// The attack on the validation points after every epoch.
    Probe,
    /// The attack on test points during training.
    Trace,
    /// An attack of `host eval`; there may be several.
    Attack,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 6] =
        [Self::Model, Self::Sampler, Self::Objective, Self::Probe, Self::Trace, Self::Attack];

    /// Its key in an experiment.
    pub fn key(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Sampler => "sampler",
            Self::Objective => "train.objective",
            Self::Probe => "train.probe",
            Self::Trace => "train.trace",
            Self::Attack => "eval.attacks",
        }
    }

    /// Its name, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Sampler => "sampler",
            Self::Objective => "objective",
            Self::Probe => "probe",
            Self::Trace => "trace",
            Self::Attack => "attack",
        }
    }

    /// Whether its key holds one plugin rather than a list.
    pub fn is_single(self) -> bool {
        self != Self::Attack
    }
}

impl Experiment {
    /// All plugins of the experiment.
    pub fn plugins(&self) -> impl Iterator<Item = (Role, &PluginSpec)> {
        let Train { objective, probe, trace, .. } = &self.train;
        let one = |role, spec: Option<_>| spec.map(|spec| (role, spec));
        [
            one(Role::Model, Some(&self.model)),
            one(Role::Sampler, self.sampler.0.as_ref()),
            one(Role::Objective, Some(objective)),
            one(Role::Probe, probe.as_ref()),
            one(Role::Trace, trace.as_ref()),
        ]
        .into_iter()
        .flatten()
        .chain(self.eval.attacks.iter().map(|attack| (Role::Attack, attack)))
    }

    /// All plugins of the experiment, mutable.
    pub fn plugins_mut(&mut self) -> Vec<(Role, &mut PluginSpec)> {
        let Train { objective, probe, trace, .. } = &mut self.train;
        let mut plugins = vec![(Role::Model, &mut self.model)];
        plugins.extend(self.sampler.0.as_mut().map(|spec| (Role::Sampler, spec)));
        plugins.push((Role::Objective, objective));
        plugins.extend(probe.as_mut().map(|spec| (Role::Probe, spec)));
        plugins.extend(trace.as_mut().map(|spec| (Role::Trace, spec)));
        plugins.extend(self.eval.attacks.iter_mut().map(|spec| (Role::Attack, spec)));
        plugins
    }

    /// The origin of the plugin with this role and the same text as `spec`, if the experiment has
    /// one.
    pub(crate) fn origin_of(&self, role: Role, spec: &PluginSpec) -> Option<String> {
        let written = spec.to_string();
        let mut alike = self.plugins().filter(|(known, it)| *known == role && it.to_string() == written);
        alike.next().and_then(|(_, it)| it.origin.clone())
    }
}
