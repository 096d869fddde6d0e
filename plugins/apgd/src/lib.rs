//! Auto-PGD: PGD with momentum whose step size halves, point by point, when the loss stops
//! rising (Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble
//! of diverse parameter-free attacks", section 3), on the cross-entropy, the difference of
//! logits ratio (DLR), or the targeted DLR of each likely class in turn (section 4).
//! AutoAttack's apgd-ce is the default, its apgd-t `loss=dlr-targeted`.

mod ball;
mod checkpoints;
mod iterate;
mod loss;

use iterate::{Search, climb};
pub use loss::Loss;
use loss::Objective;
use plugin_api::losses::correct;
use plugin_api::tch::Tensor;
use plugin_api::{Attack, Error, Norm, Result, Target, Task, ThreatModel, export_attack};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_attack!("apgd", Apgd);

/// The norms that it has arithmetic for.
const NORMS: [Norm; 2] = [Norm::Linf, Norm::L2];

/// The APGD attack.
pub struct Apgd {
    options: Options,
}

/// The options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// The loss that is maximised.
    pub loss: Loss,
    /// Number of iterations of a run.
    #[schemars(range(min = 1))]
    pub steps: usize,
    /// Number of runs, each from another random start; with dlr-targeted, for each target class.
    #[schemars(range(min = 1))]
    pub restarts: usize,
    /// For dlr-targeted: number of target classes, in the order of their logits at the natural
    /// example; at most all classes except the true one.
    #[schemars(range(min = 1))]
    pub target_classes: usize,
    /// Number of passes over which a gradient is averaged, for randomised models. With more than
    /// one, the run continues for misclassified points, as another pass may classify them
    /// correctly.
    #[schemars(range(min = 1))]
    pub gradient_averages: usize,
    /// A step size halves at a checkpoint if the loss rose in at most this share of the iterations
    /// since the last checkpoint.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub rho: f64,
    /// Continue with misclassified points up to the iterate of highest loss: for examples that must
    /// fool another model than the attacked one.
    pub keep_climbing: bool,
}

impl Default for Options {
    /// The settings of AutoAttack's apgd-ce.
    fn default() -> Self {
        Self {
            loss: Loss::Ce,
            steps: 100,
            restarts: 1,
            target_classes: 9,
            gradient_averages: 1,
            rho: 0.75,
            keep_climbing: false,
        }
    }
}

impl Attack for Apgd {
    type Options = Options;

    fn new(options: Options) -> Result<Self> {
        Ok(Self { options })
    }

    fn supports(&self, threat: &ThreatModel) -> Result<()> {
        threat.norm.expect_one_of(&NORMS)
    }

    fn supports_task(&self, task: &Task) -> Result<()> {
        let (name, needed) = (self.options.loss.name(), self.options.loss.least_classes());
        if task.classes >= needed {
            return Ok(());
        }
        Err(Error::new(format!(
            "loss={name} needs at least {needed} classes, got a task with {}: use loss=ce, which works with 2",
            task.classes
        )))
    }

    fn query_budget(&self) -> Option<u64> {
        let Options { steps, restarts, target_classes, gradient_averages, .. } = self.options;
        // The last iterate of a run needs no gradient, only one forward pass.
        let run = steps.saturating_mul(gradient_averages).saturating_add(1);
        let queries = match self.options.loss {
            Loss::Ce | Loss::Dlr => restarts.saturating_mul(run),
            // One more pass at the natural example, to choose the targets.
            Loss::DlrTargeted => {
                target_classes.saturating_mul(restarts).saturating_mul(run).saturating_add(1)
            }
        };
        Some(queries as u64)
    }

    /// The first misclassified iterate of each point. With averaged gradients, it is the latest one
    /// of the first run that found any. A point without a misclassified iterate gets its iterate of
    /// highest loss over all runs. (Values of the targeted DLR for different targets are
    /// comparable: each is a scaled margin, positive if the model predicts the target.)
    ///
    /// The reference always runs to the end and keeps the latest misclassified iterate. For a
    /// deterministic model the result is the same: whether the point is fooled. A random model may
    /// classify the first misclassified iterate correctly in another pass, and so may another
    /// model. For transfer there is `keep_climbing`: every point then gets its iterate of highest
    /// loss.
    fn run(&self, target: &Target) -> Result<Tensor> {
        let mut search = Search::new(target.natural);
        for objective in self.objectives(target, &mut search)? {
            for _ in 0..self.options.restarts {
                if search.standing.numel() > 0 {
                    climb(&self.options, target, &objective, &mut search)?;
                }
            }
        }
        Ok(search.candidates)
    }
}

impl Apgd {
    /// The losses to maximise, one after the other. The choice of targets takes a pass at the
    /// natural examples. Points that are misclassified there are fooled, unless misclassified
    /// points continue.
    fn objectives(&self, target: &Target, search: &mut Search) -> Result<Vec<Objective>> {
        match self.options.loss {
            Loss::Ce => Ok(vec![Objective::CrossEntropy]),
            Loss::Dlr => Ok(vec![Objective::Dlr]),
            Loss::DlrTargeted => {
                let logits = target.victim.logits(target.natural)?;
                if !self.options.keep_climbing && self.options.gradient_averages == 1 {
                    search.standing = correct(&logits, target.labels).nonzero().squeeze_dim(1);
                }
                // The true class is last in the order, so it is no target.
                let (_, ascending) =
                    logits.scatter_value(1, &target.labels.unsqueeze(1), f64::INFINITY).sort(1, false);
                let targets = (self.options.target_classes as i64).min(target.classes - 1);
                let target_of_rank = |rank: i64| Objective::TargetedDlr(ascending.select(1, -1 - rank));
                Ok((1..=targets).map(target_of_rank).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attack(options: Options) -> Apgd {
        Apgd::new(options).expect("an attack")
    }

    #[test]
    fn a_loss_that_needs_more_classes_is_refused() {
        let refusal = |loss, classes| {
            let attack = attack(Options { loss, ..Options::default() });
            let task = Task { channels: 1, height: 4, width: 4, classes };
            attack.supports_task(&task).err().map(|error| error.to_string())
        };
        assert_eq!(
            [(Loss::Ce, 2), (Loss::Dlr, 3), (Loss::DlrTargeted, 4)].map(|(l, n)| refusal(l, n)),
            [None, None, None]
        );
        assert_eq!(
            refusal(Loss::Dlr, 2).expect("refused"),
            "loss=dlr needs at least 3 classes, got a task with 2: use loss=ce, which works with 2"
        );
        assert_eq!(
            refusal(Loss::DlrTargeted, 3).expect("refused"),
            "loss=dlr-targeted needs at least 4 classes, got a task with 3: use loss=ce, which works with 2"
        );
    }

    #[test]
    fn the_budget_is_the_number_of_passes_of_a_point_that_is_never_fooled() {
        let budget = |options: Options| attack(options).query_budget().expect("a budget");
        assert_eq!(budget(Options::default()), 101);
        // AutoAttack's apgd-t, and the apgd-dlr of its version for randomised models.
        assert_eq!(budget(Options { loss: Loss::DlrTargeted, ..Options::default() }), 1 + 9 * 101);
        assert_eq!(budget(Options { loss: Loss::Dlr, gradient_averages: 20, ..Options::default() }), 2001);
        assert_eq!(budget(Options { steps: usize::MAX, restarts: 2, ..Options::default() }), u64::MAX);
    }
}
