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
use plugin_api::{Attack, Error, Result, Target, Task, export_attack};
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
    /// What is maximised.
    pub loss: Loss,
    /// Number of iterations of a run.
    #[schemars(range(min = 1))]
    pub steps: usize,
    /// Number of runs, each from a random start of its own; with dlr-targeted, for each target
    /// class.
    #[schemars(range(min = 1))]
    pub restarts: usize,
    /// For dlr-targeted: how many classes are tried as target, in the order of their logits at
    /// the natural example; all but the true one where there are fewer.
    #[schemars(range(min = 1))]
    pub target_classes: usize,
    /// Number of passes over which a gradient is averaged; for models that are randomised. With more
    /// than one, a point that has fallen climbs on, as another draw may classify it aright.
    #[schemars(range(min = 1))]
    pub gradient_averages: usize,
    /// A step size halves at a checkpoint if the loss rose in at most this share of the
    /// iterations since the last one.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub rho: f64,
    /// Whether points go on climbing once they have fallen, to the iterate of highest loss: for
    /// examples that are to fool another model than the one attacked.
    pub keep_climbing: bool,
}

impl Default for Options {
    /// AutoAttack's apgd-ce.
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
        // Where a run ends no gradient is needed, and one pass is enough for the verdict.
        let run = steps.saturating_mul(gradient_averages).saturating_add(1);
        let queries = match self.options.loss {
            Loss::Ce | Loss::Dlr => restarts.saturating_mul(run),
            // One more at the natural example, to choose the targets.
            Loss::DlrTargeted => {
                target_classes.saturating_mul(restarts).saturating_mul(run).saturating_add(1)
            }
        };
        Some(queries as u64)
    }

    /// The first misclassified iterate of each point, or, where gradients are averaged, the latest
    /// of the run in which there was one; where there is none, the iterate of highest loss over all
    /// runs (values of the targeted DLR for different targets are comparable: each is a scaled
    /// margin, positive where the target wins).
    ///
    /// The reference always runs to the end and keeps the latest misclassified iterate. On a model that
    /// answers the same every time the verdict is the same, since nothing takes it back; a random
    /// one may see the first aright when it is asked again. Another model may, too: for transfer
    /// there is `keep_climbing`, with which nothing falls and every point gets its iterate of highest
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
    /// What is maximised, in turn. Choosing targets takes a pass at the natural examples; those
    /// that are misclassified fall there, unless who has fallen climbs on.
    fn objectives(&self, target: &Target, search: &mut Search) -> Result<Vec<Objective>> {
        match self.options.loss {
            Loss::Ce => Ok(vec![Objective::CrossEntropy]),
            Loss::Dlr => Ok(vec![Objective::Dlr]),
            Loss::DlrTargeted => {
                let logits = target.victim.logits(target.natural)?;
                if !self.options.keep_climbing && self.options.gradient_averages == 1 {
                    search.standing = correct(&logits, target.labels).nonzero().squeeze_dim(1);
                }
                // The true class, put last, is no target.
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
    fn a_loss_that_compares_more_classes_than_there_are_is_refused() {
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
    fn the_budget_is_the_number_of_passes_of_a_point_that_never_falls() {
        let budget = |options: Options| attack(options).query_budget().expect("a budget");
        assert_eq!(budget(Options::default()), 101);
        // AutoAttack's apgd-t, and its apgd-dlr of the version for randomised models.
        assert_eq!(budget(Options { loss: Loss::DlrTargeted, ..Options::default() }), 1 + 9 * 101);
        assert_eq!(budget(Options { loss: Loss::Dlr, gradient_averages: 20, ..Options::default() }), 2001);
        assert_eq!(budget(Options { steps: usize::MAX, restarts: 2, ..Options::default() }), u64::MAX);
    }
}
