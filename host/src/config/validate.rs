//! Validation of an experiment. The range of a single option of `train` is in its declaration.

use super::choices::name_of;
use super::{Experiment, Mode, ModelMode, Select, Shape, Train};
use crate::plugin::Threat;
use crate::torch::device;
use crate::torch::precision::Precision;
use crate::{Error, Result};

/// A condition, its key, the expected value and the actual value.
type Rule<'a> = (bool, &'a str, &'a str, String);

fn rule<'a>(is_kept: bool, key: &'a str, expected: &'a str, got: impl ToString) -> Rule<'a> {
    (is_kept, key, expected, got.to_string())
}

fn refused(key: &str, expected: &str, got: &str) -> Error {
    Error::new(format!("{key}: expected {expected}, got {got}"))
}

impl Experiment {
    /// Refuses invalid values.
    ///
    /// # Errors
    /// If a value is invalid. The error names the key, and in most cases the expected and the
    /// actual value.
    pub fn validate(&self) -> Result<()> {
        if let Some(option) = self.train.out_of_range() {
            return Err(refused(option.key, option.expected, &option.got));
        }
        let Threat { epsilon, domain: (low, high), ref channel_scale, .. } = self.threat;
        let (train, eval, adversarial) = (&self.train, &self.eval, self.sampler.0.is_some());
        let (fused, epochs, trains) = (train.mode == Mode::Fused, train.epochs as f64, train.epochs > 0);
        let holds_images = low <= 0.0 && high >= 1.0 && low.is_finite() && high.is_finite();
        #[rustfmt::skip]
        let rules: [Rule; 16] = [
            rule(trains || train.init.is_some(), "train.epochs", "at least 1 (0 only with train.init, which gives weights)", train.epochs),
            rule(trains || train.select == Select::Last, "train.select", "last (a run of 0 epochs scores none)", "best"),
            rule(trains || train.trace.is_none(), "train.trace", "no value (a run of 0 epochs does not train)", "an attack"),
            rule(epsilon >= 0.0 && epsilon.is_finite(), "threat.epsilon", "a number of at least 0", epsilon),
            rule(holds_images, "threat.domain", "bounds that include [0, 1], the range of all images", format!("[{low}, {high}]")),
            rule(!trains || (0.0..=epochs).contains(&train.warmup_epochs), "train.warmup_epochs", "a number from 0 to train.epochs", train.warmup_epochs),
            rule(!trains || (0.0..=epochs).contains(&train.warmup_epsilon), "train.warmup_epsilon", "a number from 0 to train.epochs", train.warmup_epsilon),
            rule(fused || train.replay == 1, "train.replay", "1 (only mode fused replays a minibatch)", train.replay),
            rule(!fused || train.sampler_gradient != Some(ModelMode::Eval), "train.sampler_gradient", "train (in mode fused, the pass of the sampler's gradient also trains the weights)", "eval"),
            rule(!fused || train.awp.is_none(), "train.awp", "no value (in mode fused, one backward serves weights and particles)", train.awp.unwrap_or_default()),
            rule(adversarial || !train.domain_only, "train.domain_only", "false (without a sampler there are no particles)", true),
            rule(adversarial || train.particles == 1, "train.particles", "1 (without a sampler, the only particle of a point is its natural example)", train.particles),
            rule(self.validation_points() > 0 || !self.is_scored(), "data.validation_points", "at least 1 (train.probe and train.select = \"best\" score the validation points)", 0),
            rule(train.precision != Precision::Tf32 || train.device != "cpu", "train.precision", "f32 or bf16 (only a GPU has TF32: --device cuda)", "tf32"),
            rule(eval.batch.is_none_or(|n| n >= 1), "eval.batch", "at least 1", eval.batch.unwrap_or_default()),
            rule(eval.restarts >= 1, "eval.restarts", "at least 1", eval.restarts),
        ];
        if let Some((_, key, expected, got)) = rules.into_iter().find(|(is_kept, ..)| !is_kept) {
            let error = refused(key, expected, &got);
            // The likely reason: a flag laid over a recipe of another mode.
            return Err(if key == "train.awp" {
                error.fix("use Algorithm 1 (--recipe algorithm-1, train.mode = \"faithful\")")
            } else if key == "train.replay" && !fused {
                error.fix("set train.replay = 1 (--replay 1), or use Algorithm 1 (--recipe algorithm-1)")
            } else {
                error
            });
        }
        if train.domain_only && (train.epsilon_scale != 1.0 || train.warmup_epsilon != 0.0) {
            return Err(Error::new(format!(
                "train.domain_only: expected no ball to scale or to grow, got train.epsilon_scale {} and \
                 train.warmup_epsilon {}",
                train.epsilon_scale, train.warmup_epsilon
            ))
            .fix("add --epsilon-scale 1 --warmup-epsilon 0, which a recipe may have set otherwise"));
        }
        if train.domain_only && channel_scale.is_some() {
            return Err(Error::new(
                "train.domain_only and threat.channel_scale: without a ball, channels have no radius",
            )
            .fix("remove one of the two"));
        }
        self.threat.check_channel_scale()?;
        self.training_threat().check_channel_scale()?;
        if train.scale.is_some() && train.crop > 0 {
            return Err(Error::new("train.crop and train.scale: both cut a window, expected one of them")
                .fix("remove one of the two"));
        }
        self.refuse_unused()?;
        let device =
            device::parse(&train.device).map_err(|why| Error::new(format!("train.device: {why}")))?;
        if train.store_file.is_some() && device != tch::Device::Cpu {
            return Err(Error::new(format!(
                "train.store_file: particles in a file need train.device = \"cpu\", got {}",
                train.device
            )));
        }
        Ok(())
    }

    /// Refuses options that would have no effect.
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
                .fix(format!("set train.schedule = \"{shape}\", or remove train.{key}")));
        }
        if schedule == Shape::OneCycle && warmup_epochs > 0.0 {
            return Err(Error::new("train.warmup_epochs: the one-cycle schedule already rises from 0")
                .fix("use train.peak_at instead, the share of the run over which it rises"));
        }
        let of_traces =
            [("trace_points", train.trace_points.is_some()), ("trace_at", train.trace_at.is_some())];
        if let Some((key, _)) = of_traces.into_iter().find(|(_, is_set)| *is_set && train.trace.is_none()) {
            return Err(Error::new(format!("train.{key}: there is no trace"))
                .fix(format!("set train.trace (the attack of the trace), or remove train.{key}")));
        }
        if train.swa_from.is_some() && train.average > 0.0 {
            return Err(Error::new(
                "train.swa_from and train.average: weights are averaged equally or exponentially, not both",
            )
            .fix("remove one of the two"));
        }
        if train.patience.is_some() && !self.is_scored() {
            return Err(Error::new("train.patience: the epochs are not scored")
                .fix("set train.probe (the attack that scores every epoch), or train.select = \"best\""));
        }
        Ok(())
    }
}
