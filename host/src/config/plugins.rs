//! The plugins that an experiment names, by what they are used for.

use super::{Experiment, Train};
use crate::plugin::PluginSpec;

/// What a plugin of an experiment is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The classifier.
    Model,
    /// The adversary while training.
    Sampler,
    /// The attack on the validation points after every epoch.
    Probe,
    /// The attack on test points during training.
    Trace,
    /// An attack of `host eval`; there may be several.
    Attack,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Model, Self::Sampler, Self::Probe, Self::Trace, Self::Attack];

    /// Its key in an experiment.
    pub fn key(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Sampler => "sampler",
            Self::Probe => "train.probe",
            Self::Trace => "train.trace",
            Self::Attack => "eval.attacks",
        }
    }

    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Sampler => "sampler",
            Self::Probe => "probe",
            Self::Trace => "trace",
            Self::Attack => "attack",
        }
    }

    /// Whether its key holds one plugin, not a list of them.
    pub fn is_single(self) -> bool {
        self != Self::Attack
    }
}

impl Experiment {
    /// Every plugin that the experiment names.
    pub fn plugins(&self) -> impl Iterator<Item = (Role, &PluginSpec)> {
        let Train { probe, trace, .. } = &self.train;
        let one = |role, spec: Option<_>| spec.map(|spec| (role, spec));
        [
            one(Role::Model, Some(&self.model)),
            one(Role::Sampler, self.sampler.0.as_ref()),
            one(Role::Probe, probe.as_ref()),
            one(Role::Trace, trace.as_ref()),
        ]
        .into_iter()
        .flatten()
        .chain(self.eval.attacks.iter().map(|attack| (Role::Attack, attack)))
    }

    /// The same, to be changed.
    pub fn plugins_mut(&mut self) -> Vec<(Role, &mut PluginSpec)> {
        let Train { probe, trace, .. } = &mut self.train;
        let mut plugins = vec![(Role::Model, &mut self.model)];
        plugins.extend(self.sampler.0.as_mut().map(|spec| (Role::Sampler, spec)));
        plugins.extend(probe.as_mut().map(|spec| (Role::Probe, spec)));
        plugins.extend(trace.as_mut().map(|spec| (Role::Trace, spec)));
        plugins.extend(self.eval.attacks.iter_mut().map(|spec| (Role::Attack, spec)));
        plugins
    }

    /// Where this experiment names the plugin of this role that is written like `spec`, if it does.
    pub(crate) fn origin_of(&self, role: Role, spec: &PluginSpec) -> Option<String> {
        let written = spec.to_string();
        let mut alike = self.plugins().filter(|(known, it)| *known == role && it.to_string() == written);
        alike.next().and_then(|(_, it)| it.origin.clone())
    }
}
