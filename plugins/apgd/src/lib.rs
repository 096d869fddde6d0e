//! Auto-PGD (Croce and Hein 2020) on the cross-entropy within an linf ball: PGD with momentum
//! whose step size halves, point by point, when the loss stops rising.

use plugin_api::losses::{correct, cross_entropy};
use plugin_api::tch::{Kind, Tensor};
use plugin_api::{Attack, Error, Norm, Result, Target, ThreatModel, export_attack};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_attack!("apgd", Apgd);

/// The APGD attack.
pub struct Apgd {
    options: Options,
}

/// What can be set.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// Number of iterations.
    #[schemars(range(min = 1))]
    pub steps: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { steps: 100 }
    }
}

/// Share of a window's iterations in which the loss must rise for the step size to stay.
const RHO: f64 = 0.75;

/// Weight of the new step against the momentum.
const MOMENTUM_WEIGHT: f64 = 0.75;

impl Attack for Apgd {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        Ok(Self { options })
    }

    fn supports(&self, threat: &ThreatModel) -> Result<()> {
        match threat.norm {
            Norm::Linf => Ok(()),
            Norm::L2 => Err(Error::new("this attack knows the linf ball only; the threat model is l2")),
        }
    }

    /// The latest misclassified iterate of each point; its start where there is none.
    fn run(&self, target: &Target) -> Result<Tensor> {
        let (natural, threat) = (target.natural, target.threat);
        let mut current = random_start(target)?;
        let mut previous = current.shallow_clone();
        let mut answer = current.shallow_clone();
        let (mut loss, mut gradient) = self.evaluate(target, &current, &mut answer)?;

        let (mut best, mut best_loss, mut best_gradient) =
            (current.shallow_clone(), loss.shallow_clone(), gradient.shallow_clone());
        let mut step_size = (loss.zeros_like() + 2.0 * threat.epsilon).reshape([-1, 1, 1, 1]);
        let mut windows = Windows::new(self.options.steps, &loss);
        // The oldest comparison of the first window is against zero, as in the reference.
        let mut loss_before = loss.zeros_like();

        for iteration in 0..self.options.steps {
            let weight = if iteration == 0 { 1.0 } else { MOMENTUM_WEIGHT };
            let ahead = threat.project(&(&current + &step_size * gradient.sign()), natural);
            let moved = &current + (ahead - &current) * weight + (&current - &previous) * (1.0 - weight);
            previous = current;
            current = threat.project(&moved, natural);

            if iteration + 1 == self.options.steps {
                // Nothing would use the last gradient.
                let logits = target.victim.logits(&current)?;
                answer = keep_fooled(&correct(&logits, target.labels), &current, &answer);
                break;
            }
            (loss, gradient) = self.evaluate(target, &current, &mut answer)?;

            let better = loss.greater_tensor(&best_loss);
            best = choose(&better, &current, &best);
            best_gradient = choose(&better, &gradient, &best_gradient);
            best_loss = loss.maximum(&best_loss);

            if let Some(halve) = windows.after_iteration(&loss.greater_tensor(&loss_before), &best_loss) {
                let pixels = halve.reshape([-1, 1, 1, 1]);
                step_size = (&step_size * 0.5).where_self(&pixels, &step_size);
                current = choose(&halve, &best, &current);
                gradient = choose(&halve, &best_gradient, &gradient);
            }
            loss_before = loss;
        }
        Ok(answer)
    }
}

impl Apgd {
    /// Loss (`[N]`) and its gradient at `images`, where misclassified ones become the answer.
    fn evaluate(&self, target: &Target, images: &Tensor, answer: &mut Tensor) -> Result<(Tensor, Tensor)> {
        let evaluation = target.victim.forward(images)?;
        *answer = keep_fooled(&correct(&evaluation.logits(), target.labels), images, answer);
        evaluation.gradient(|logits| cross_entropy(logits, target.labels))
    }
}

/// A uniform direction stretched until it touches the ball's surface.
fn random_start(target: &Target) -> Result<Tensor> {
    let direction = target.random.uniform(target.natural)? * 2.0 - 1.0;
    let largest = direction.abs().flatten(1, -1).amax([1], false).reshape([-1, 1, 1, 1]);
    let start = target.natural + direction / largest * target.threat.epsilon;
    Ok(target.threat.project(&start, target.natural))
}

/// `new` in the rows chosen (`[N]`, bool), `old` in the others.
fn choose(rows: &Tensor, new: &Tensor, old: &Tensor) -> Tensor {
    new.where_self(&rows.reshape([-1, 1, 1, 1]), old)
}

fn keep_fooled(correct: &Tensor, images: &Tensor, answer: &Tensor) -> Tensor {
    choose(&correct.logical_not(), images, answer)
}

/// The checkpoints at which step sizes may halve, and what is counted between them.
struct Windows {
    window: usize,
    shortest: usize,
    shrink: usize,
    iterations: usize,
    /// In how many iterations of this window the loss rose, `[N]`.
    rises: Tensor,
    halved_last_time: Tensor,
    best_last_time: Tensor,
}

impl Windows {
    /// Windows of 22 % of the steps at first, each 3 % shorter than the last, down to 6 %.
    fn new(steps: usize, start_loss: &Tensor) -> Self {
        let share = |percent: usize| (percent * steps / 100).max(1);
        Self {
            window: share(22),
            shortest: share(6),
            shrink: share(3),
            iterations: 0,
            rises: start_loss.zeros_like(),
            halved_last_time: start_loss.ones_like().to_kind(Kind::Bool),
            best_last_time: start_loss.shallow_clone(),
        }
    }

    /// Counts an iteration; at a checkpoint, says which points halve their step size (`[N]`,
    /// bool): those whose loss rose too seldom, and those that found nothing better since a
    /// checkpoint at which they kept it.
    fn after_iteration(&mut self, rose: &Tensor, best_loss: &Tensor) -> Option<Tensor> {
        self.rises += rose.to_kind(self.rises.kind());
        self.iterations += 1;
        if self.iterations < self.window {
            return None;
        }
        let too_seldom = self.rises.le(RHO * self.window as f64);
        let no_better = self.best_last_time.greater_equal_tensor(best_loss);
        let halve = too_seldom.logical_or(&no_better.logical_and(&self.halved_last_time.logical_not()));
        self.halved_last_time = halve.shallow_clone();
        self.best_last_time = best_loss.shallow_clone();
        self.rises = self.rises.zeros_like();
        self.iterations = 0;
        self.window = self.window.saturating_sub(self.shrink).max(self.shortest);
        Some(halve)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_of_a_hundred_steps_are_the_references() {
        let loss = Tensor::from_slice(&[0.0]);
        let mut windows = Windows::new(100, &loss);
        let rose = Tensor::from_slice(&[true]);
        let checkpoints: Vec<_> =
            (1..=100).filter(|_| windows.after_iteration(&rose, &loss).is_some()).collect();
        assert_eq!(checkpoints, [22, 41, 57, 70, 80, 87, 93, 99]);
    }

    #[test]
    fn a_point_halves_when_it_rises_too_seldom_or_finds_nothing_better() {
        let halves = |windows: &mut Windows, rises: [bool; 2], best: f64| {
            let outcomes = rises.map(|rose| {
                windows.after_iteration(&Tensor::from_slice(&[rose]), &Tensor::from_slice(&[best]))
            });
            outcomes[1].as_ref().map(|halve| bool::try_from(halve.get(0)).expect("a bool"))
        };
        // Windows of 2 (10 steps: 22 %), so 1.5 rises are asked for.
        let mut windows = Windows { shrink: 0, ..Windows::new(10, &Tensor::from_slice(&[1.0])) };
        // At the first checkpoint an unchanged best loss counts for nothing.
        assert_eq!(halves(&mut windows, [true, true], 1.0), Some(false));
        // Kept last time and no better since.
        assert_eq!(halves(&mut windows, [true, true], 1.0), Some(true));
        // Halved last time, so an unchanged best loss is forgiven once.
        assert_eq!(halves(&mut windows, [true, true], 1.0), Some(false));
        // Better, but one rise in two iterations is too seldom.
        assert_eq!(halves(&mut windows, [true, false], 2.0), Some(true));
    }
}
