//! Which values of an experiment are refused. The range of a single option of `train` stands where
//! the option is declared.

use super::choices::name_of;
use super::{Experiment, Mode, ModelMode, Objective, Shape, Train};
use crate::torch::device;
use crate::{Error, Result};
use plugin_api::ThreatModel;

/// A condition, the key that it is about, what is expected and what was got.
type Rule<'a> = (bool, &'a str, &'a str, String);

fn rule<'a>(is_kept: bool, key: &'a str, expected: &'a str, got: impl ToString) -> Rule<'a> {
    (is_kept, key, expected, got.to_string())
}

fn refused(key: &str, expected: &str, got: &str) -> Error {
    Error::new(format!("{key}: expected {expected}, got {got}"))
}

impl Experiment {
    /// Refuses values that cannot work.
    ///
    /// # Errors
    /// Names the key, what was expected and what was got.
    pub fn validate(&self) -> Result<()> {
        if let Some(option) = self.train.out_of_range() {
            return Err(refused(option.key, option.expected, &option.got));
        }
        let ThreatModel { epsilon, domain: (low, high), .. } = self.threat;
        let (train, eval, adversarial) = (&self.train, &self.eval, self.sampler.0.is_some());
        let (fused, epochs) = (train.mode == Mode::Fused, train.epochs as f64);
        let holds_images = low <= 0.0 && high >= 1.0 && low.is_finite() && high.is_finite();
        let has_divergence = match train.objective {
            Objective::CrossEntropy => false,
            Objective::Trades => true,
        };
        let objective = name_of(train.objective);
        #[rustfmt::skip]
        let rules: [Rule; 13] = [
            rule(epsilon >= 0.0 && epsilon.is_finite(), "threat.epsilon", "a number of at least 0", epsilon),
            rule(holds_images, "threat.domain", "bounds that hold all images, which lie in [0, 1]", format!("[{low}, {high}]")),
            rule((0.0..=epochs).contains(&train.warmup_epochs), "train.warmup_epochs", "a number from 0 to train.epochs", train.warmup_epochs),
            rule((0.0..=epochs).contains(&train.warmup_epsilon), "train.warmup_epsilon", "a number from 0 to train.epochs", train.warmup_epsilon),
            rule(fused || train.replay == 1, "train.replay", "1 (only mode fused replays a minibatch; `--recipe algorithm-1` is Algorithm 1)", train.replay),
            rule(!fused || train.sampler_gradient != Some(ModelMode::Eval), "train.sampler_gradient", "train (in mode fused the pass that gives the sampler's gradient trains the weights too)", "eval"),
            rule(!fused || !train.objective.has_its_own_inner_loss(), "train.objective", "cross-entropy (mode fused takes both gradients from one backward of one loss, and trades has an inner loss of its own)", &objective),
            rule(adversarial || !has_divergence, "train.objective", "cross-entropy (without a sampler no prediction diverges from the natural one)", &objective),
            rule(has_divergence || train.trades_beta.is_none(), "train.trades_beta", "nothing (only objective trades has a divergence to weigh)", train.trades_beta()),
            rule(adversarial || train.particles == 1, "train.particles", "1 (without a sampler a point has one particle, its natural example)", train.particles),
            rule(self.validation_points() > 0 || !self.is_scored(), "data.validation_points", "at least 1, since a score on them is asked for (train.probe, train.select)", 0),
            rule(eval.batch >= 1, "eval.batch", "at least 1", eval.batch),
            rule(eval.restarts >= 1, "eval.restarts", "at least 1", eval.restarts),
        ];
        if let Some((_, key, expected, got)) = rules.into_iter().find(|(is_kept, ..)| !is_kept) {
            return Err(refused(key, expected, &got));
        }
        self.refuse_unused()?;
        let device =
            device::parse(&train.device).map_err(|why| Error::new(format!("train.device: {why}")))?;
        if train.store_file.is_some() && device != tch::Device::Cpu {
            return Err(Error::new(format!(
                "train.store_file: particles in a file are for the CPU; train.device is {}",
                train.device
            )));
        }
        Ok(())
    }

    /// Refuses options that nothing would use.
    fn refuse_unused(&self) -> Result<()> {
        let train = &self.train;
        let Train { schedule, ref milestones, step_factor, peak_at, warmup_epochs, .. } = *train;
        let of_schedules = [
            ("milestones", milestones.is_some(), Shape::Step),
            ("step_factor", step_factor.is_some(), Shape::Step),
            ("peak_at", peak_at.is_some(), Shape::OneCycle),
        ];
        if let Some((key, _, shape)) =
            of_schedules.into_iter().find(|(_, is_set, shape)| *is_set && schedule != *shape)
        {
            let shape = name_of(shape);
            return Err(Error::new(format!("train.{key}: only the {shape} schedule uses it"))
                .fix(format!("set train.schedule = \"{shape}\", or leave train.{key} away")));
        }
        if schedule == Shape::OneCycle && warmup_epochs > 0.0 {
            return Err(Error::new("train.warmup_epochs: the one-cycle schedule rises from 0 by itself")
                .fix("set train.peak_at, the share of the run over which it rises, instead"));
        }
        let of_traces =
            [("trace_points", train.trace_points.is_some()), ("trace_at", train.trace_at.is_some())];
        if let Some((key, _)) = of_traces.into_iter().find(|(_, is_set)| *is_set && train.trace.is_none()) {
            return Err(Error::new(format!("train.{key}: there is nothing to trace"))
                .fix(format!("set train.trace, the attack to try, or leave train.{key} away")));
        }
        if train.swa_from.is_some() && train.average > 0.0 {
            return Err(Error::new(
                "train.swa_from and train.average: weights are averaged equally or exponentially, not both",
            )
            .fix("leave one of the two away"));
        }
        if train.patience.is_some() && !self.is_scored() {
            return Err(Error::new("train.patience: there is no score to wait for")
                .fix("set train.probe, an attack to score every epoch by, or train.select = \"best\""));
        }
        Ok(())
    }
}
