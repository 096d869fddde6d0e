//! The options of an evaluation.

use crate::config::{Experiment, norm_alone, norm_parser};
use crate::plugin::{PluginSpec, Threat, channel_scale};
use crate::run::moved::Moved;
use crate::util::number::Reals;
use crate::{Error, Result};
use clap::Args;
use plugin_api::Norm;
use std::path::PathBuf;

/// The options of an evaluation.
#[derive(Debug, Clone, Default, Args)]
pub struct EvaluationOptions {
    /// Attack or sampler plugin; may be repeated [default: those of the run's config]
    #[arg(long = "attack", value_name = "PLUGIN")]
    pub attacks: Vec<PluginSpec>,
    /// autoattack, autoattack-plus, autoattack-rand, or a TOML file with a list `attacks`
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "attacks")]
    pub suite: Option<String>,
    /// Radius, or rising radii, to judge at; may be fractions: 4/255,8/255. A point that fell at a
    /// smaller radius counts as fallen at a larger one [default: as in the run]
    #[arg(long, value_name = "RADIUS,...")]
    pub epsilon: Option<Reals>,
    /// Norm of these radii [default: as in the run, else linf]
    #[arg(long, value_parser = norm_parser())]
    pub norm: Option<Norm>,
    /// Radius of each channel, as a multiple of these radii: 0 to 1, the largest 1; 1 alone is one radius
    /// for all [default: as in the run, else 1]
    #[arg(long, value_name = "SCALE,...")]
    pub channel_scale: Option<Reals>,
    /// Make the examples on this other run's model, with attacks that continue after they fooled
    /// it: samplers, or apgd.so,keep_climbing=true
    #[arg(long, value_name = "RUN")]
    pub source: Option<PathBuf>,
    /// Number of points: a random subset, the same for every run and seed [default: as in the run's
    /// config, else all; with --validation all]
    #[arg(id = "points", long = "points", value_name = "N")]
    pub count: Option<usize>,
    /// Evaluate on the training points that the run held out, to choose among runs without the test
    /// set
    #[arg(long)]
    pub validation: bool,
    /// Times each attack runs with new random numbers; the worst case counts
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub restarts: Option<u16>,
    /// Examples per forward pass; a stop loses the batch under way [default: as in the run's config,
    /// else 32 on a CPU and 250 on a GPU]
    #[arg(long, value_name = "N", value_parser = crate::util::at_least_one)]
    pub batch: Option<usize>,
    /// Seed of the attacks [default: the run's]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Write the adversarial examples that fooled the model into the run's folder, as safetensors
    #[arg(long)]
    pub save_examples: bool,
    /// Show the result of this very evaluation if the run has it already, instead of repeating it
    #[arg(long, conflicts_with = "save_examples")]
    pub once: bool,
    /// Where the data and the plugins of the run are now
    #[command(flatten)]
    pub moved: Moved,
    /// cpu, cuda or cuda:N [default: as in the run]
    #[arg(long)]
    pub device: Option<String>,
    /// Threads of libtorch [default: as in the run]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

impl EvaluationOptions {
    /// The name of the points, for people.
    pub fn points_name(&self) -> &'static str {
        if self.validation { "held-out training points" } else { "test points" }
    }

    /// The threat models to judge a run at, whose own is `base`: one for each radius.
    ///
    /// # Errors
    /// If a radius is no number of at least 0, they do not rise, or another norm has none.
    pub(crate) fn threats(&self, base: &Threat) -> Result<Vec<Threat>> {
        let norm = self.norm.unwrap_or(base.norm);
        let radii: Vec<f64> = match &self.epsilon {
            Some(radii) => radii.clone().into(),
            None if norm == base.norm => vec![base.epsilon],
            None => return Err(norm_alone(base, norm.name())),
        };
        let is_radius = |radius: &f64| *radius >= 0.0 && radius.is_finite();
        if !radii.iter().all(is_radius) || !radii.is_sorted_by(|one, next| one < next) {
            return Err(Error::new(format!(
                "--epsilon: expected radii of at least 0, each above the one before it; got {radii:?}"
            )));
        }
        let scale = match &self.channel_scale {
            None => base.channel_scale.clone(),
            given => channel_scale(given.clone()),
        };
        let at = |epsilon| Threat { norm, epsilon, channel_scale: scale.clone(), ..*base };
        let threats: Vec<_> = radii.into_iter().map(at).collect();
        threats.iter().try_for_each(Threat::check_channel_scale)?;
        Ok(threats)
    }

    /// The number of points, if one is given. A run's config gives a number of test points.
    pub(super) fn count(&self, experiment: &Experiment) -> Option<usize> {
        self.count.or(experiment.eval.points.filter(|_| !self.validation))
    }
}
