//! The rule by which step sizes halve.

use plugin_api::tch::{Kind, Tensor};

/// The checkpoints at which step sizes may halve, and the counts between them.
pub struct Checkpoints {
    rho: f64,
    window: usize,
    shortest: usize,
    shrink: usize,
    iterations: usize,
    /// The loss of the previous iteration, `[M]`.
    loss_before: Tensor,
    /// Number of iterations of this window in which the loss rose, `[M]`.
    rises: Tensor,
    halved_last_time: Tensor,
    best_last_time: Tensor,
}

impl Checkpoints {
    /// For losses like `like`, `[M]`. The first window is 22 % of the steps; each next one is
    /// shorter by 3 % of the steps, down to 6 % (section 3).
    pub fn new(steps: usize, rho: f64, like: &Tensor) -> Self {
        let share = |percent: usize| (percent.saturating_mul(steps) / 100).max(1);
        Self {
            rho,
            window: share(22),
            shortest: share(6),
            shrink: share(3),
            iterations: 0,
            // As in the reference, the first iteration is compared with zero, not with the start.
            loss_before: like.zeros_like(),
            rises: like.zeros_like(),
            // At the first checkpoint only the rises count.
            halved_last_time: like.ones_like().to_kind(Kind::Bool),
            best_last_time: like.zeros_like(),
        }
    }

    /// The tensors with a row for each point.
    pub fn tensors(&mut self) -> [&mut Tensor; 4] {
        [&mut self.loss_before, &mut self.rises, &mut self.halved_last_time, &mut self.best_last_time]
    }

    /// Counts an iteration. At a checkpoint, returns whether each point halves its step size
    /// (`[M]`, bool). A point does so if its loss rose too seldom, or if it kept its step size at
    /// the last checkpoint and its best loss did not improve since then.
    pub fn after_iteration(&mut self, loss: &Tensor, best_loss: &Tensor) -> Option<Tensor> {
        self.rises += loss.greater_tensor(&self.loss_before).to_kind(self.rises.kind());
        self.loss_before = loss.shallow_clone();
        self.iterations += 1;
        if self.iterations < self.window {
            return None;
        }
        let too_seldom = self.rises.le(self.rho * self.window as f64);
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
        let mut checkpoints = Checkpoints::new(100, 0.75, &loss);
        let at: Vec<_> = (1..=100).filter(|_| checkpoints.after_iteration(&loss, &loss).is_some()).collect();
        assert_eq!(at, [22, 41, 57, 70, 80, 87, 93, 99]);
    }

    /// Whether the step size halves after two iterations with these losses. 10 steps give windows
    /// of 2, so with rho = 0.75 the loss must rise in both.
    fn halves(checkpoints: &mut Checkpoints, losses: [f64; 2], best: f64) -> bool {
        let [first, second] = losses.map(|loss| {
            checkpoints.after_iteration(&Tensor::from_slice(&[loss]), &Tensor::from_slice(&[best]))
        });
        assert!(first.is_none());
        bool::try_from(second.expect("a checkpoint").get(0)).expect("a bool")
    }

    fn windows_of_two(rho: f64) -> Checkpoints {
        Checkpoints { shrink: 0, ..Checkpoints::new(10, rho, &Tensor::from_slice(&[0.0])) }
    }

    #[test]
    fn a_step_size_halves_after_too_few_rises_or_without_a_better_loss() {
        let mut checkpoints = windows_of_two(0.75);
        // At the first checkpoint an unchanged best loss has no effect.
        assert!(!halves(&mut checkpoints, [1.0, 2.0], 9.0));
        // The step size was kept last time, and the best loss is unchanged.
        assert!(halves(&mut checkpoints, [3.0, 4.0], 9.0));
        // The step size was halved last time, so an unchanged best loss has no effect.
        assert!(!halves(&mut checkpoints, [5.0, 6.0], 9.0));
        // The best loss is better, but one rise in two iterations is too few.
        assert!(halves(&mut checkpoints, [10.0, 10.0], 10.0));
    }

    #[test]
    fn the_first_loss_is_compared_with_zero() {
        assert!(!halves(&mut windows_of_two(0.75), [1.0, 2.0], 2.0));
        assert!(halves(&mut windows_of_two(0.75), [-2.0, -1.0], -1.0), "one rise in two");
    }

    #[test]
    fn rho_must_be_exceeded() {
        assert!(!halves(&mut windows_of_two(0.4), [-2.0, -1.0], -1.0));
        assert!(halves(&mut windows_of_two(0.5), [-2.0, -1.0], -1.0));
    }
}
