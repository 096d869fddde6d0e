use crate::of_points;
use plugin_api::tch::{self, Tensor};
use plugin_api::{Batch, Objective, Outer, Result, export_objective};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_objective!("cvar", Cvar);
export_objective!("kl_dro", KlDro);
export_objective!("chi2_dro", Chi2Dro);

/// The conditional value at risk (Rockafellar and Uryasev 2000): the mean of the largest losses, on a
/// share alpha of the points. If alpha times the number of points is no whole number, the next point
/// counts with the rest.
pub struct Cvar {
    options: CvarOptions,
}

/// Its options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CvarOptions {
    /// Share of the points that count; 1 is the mean.
    #[schemars(range(min = 1e-6, max = 1.0))]
    pub alpha: f64,
}

impl Default for CvarOptions {
    fn default() -> Self {
        Self { alpha: 0.5 }
    }
}

impl Objective for Cvar {
    type Options = CvarOptions;

    fn new(options: CvarOptions) -> Result<Self> {
        Ok(Self { options })
    }

    fn couples_points(&self) -> bool {
        true
    }

    fn outer(&self, batch: &Batch) -> Result<Outer> {
        let losses = of_points(batch)?;
        let points = losses.size()[0];
        // Points that count, and how many of them in whole. At least one counts in part.
        let counting = self.options.alpha * points as f64;
        let whole = (counting.floor() as i64).min(points);
        let (largest, _) = losses.f_topk((whole + 1).min(points), 0, true, true)?;
        let ranks = Tensor::arange(largest.size()[0], (losses.kind(), losses.device()));
        let weights = (counting - ranks).clamp(0.0, 1.0);
        Ok((largest * weights).f_sum(losses.kind())?.f_div_scalar(counting)?.into())
    }
}

/// The KL ball in its Lagrangian form: temperature * log mean exp(loss / temperature), the soft maximum
/// over the points (Hu and Hong 2013; tilted empirical risk minimisation, Li et al. 2021).
pub struct KlDro {
    options: KlDroOptions,
}

/// Its options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct KlDroOptions {
    /// Temperature: near 0 the largest loss counts alone, far above all losses count equally.
    #[schemars(range(min = 1e-4, max = 1e6))]
    pub temperature: f64,
}

impl Default for KlDroOptions {
    fn default() -> Self {
        Self { temperature: 1.0 }
    }
}

impl Objective for KlDro {
    type Options = KlDroOptions;

    fn new(options: KlDroOptions) -> Result<Self> {
        Ok(Self { options })
    }

    fn couples_points(&self) -> bool {
        true
    }

    fn outer(&self, batch: &Batch) -> Result<Outer> {
        let (losses, temperature) = (of_points(batch)?, self.options.temperature);
        let points = losses.size()[0] as f64;
        let sum = (losses / temperature).f_logsumexp([0i64].as_slice(), false)?;
        Ok(((sum - points.ln()) * temperature).into())
    }
}

/// The chi-squared ball (Namkoong and Duchi 2017; Hashimoto et al. 2018): the largest mean loss under
/// weights q on the n points with sum (n q - 1)^2 / (2 n) <= rho. Their form is known: q is in
/// proportion to max(loss - eta, 0), with the eta that solves the dual problem
///
/// ```text
/// min over eta of  c sqrt(mean(max(loss - eta, 0)^2)) + eta,  c = sqrt(1 + 2 rho)
/// ```
pub struct Chi2Dro {
    options: Chi2DroOptions,
}

/// Its options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Chi2DroOptions {
    /// Radius of the ball.
    #[schemars(range(min = 1e-6, max = 1e6))]
    pub rho: f64,
}

impl Default for Chi2DroOptions {
    fn default() -> Self {
        Self { rho: 1.0 }
    }
}

/// Halvings of the interval in which eta lies: more than f32 can tell apart.
const HALVINGS: usize = 40;

impl Chi2Dro {
    /// The worst weights for these losses (`[B]`, without a graph). Nothing waits for the device.
    fn weights(&self, losses: &Tensor) -> Result<Tensor> {
        let (kind, c2) = (losses.kind(), 1.0 + 2.0 * self.options.rho);
        let mean = losses.mean(kind);
        let spread = losses.std(false);
        let largest = losses.max();
        // Below all losses, the condition for eta has a closed form; at the largest loss all weight is
        // there.
        let mut low = losses.min().minimum(&(&mean - spread / (c2 - 1.0).sqrt())) - 1e-6;
        let mut high = &largest - (largest.abs() + 1.0) * 1e-6;
        for _ in 0..HALVINGS {
            let middle = (&low + &high) * 0.5;
            let above = (losses - &middle).clamp_min(0.0);
            // The slope of the dual problem: 1 - c mean / sqrt(mean of squares).
            let falls = (above.mean(kind).square() * c2).gt_tensor(&above.square().mean(kind));
            low = middle.where_self(&falls, &low);
            high = high.where_self(&falls, &middle);
        }
        let above = (losses - low).clamp_min(0.0);
        let sum = above.sum(kind);
        Ok(above.f_div(&sum)?)
    }
}

impl Objective for Chi2Dro {
    type Options = Chi2DroOptions;

    fn new(options: Chi2DroOptions) -> Result<Self> {
        Ok(Self { options })
    }

    fn couples_points(&self) -> bool {
        true
    }

    fn outer(&self, batch: &Batch) -> Result<Outer> {
        let losses = of_points(batch)?;
        // The gradient of the largest mean is that at its weights (Danskin's theorem).
        let weights = tch::no_grad(|| self.weights(&losses.detach()))?;
        Ok((losses * weights).f_sum(batch.logits.kind())?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::with_losses;
    use plugin_api::testing::{Round, assert_close};

    fn outer(objective: &impl Objective, round: &Round) -> Tensor {
        objective.outer(&round.batch()).expect("a loss").loss.detach()
    }

    #[test]
    fn cvar_is_the_mean_of_the_largest_losses() {
        let cvar = |alpha| Cvar { options: CvarOptions { alpha } };
        let round = with_losses(&[1.0, 4.0, 2.0, 3.0]);
        for (alpha, expected) in [(1.0, 2.5), (0.5, 3.5), (0.25, 4.0), (0.1, 4.0), (0.375, 5.5 / 1.5)] {
            assert_close(&outer(&cvar(alpha), &round), &[expected]);
        }
        // Points count, not particles: means 2.5 and 2.5.
        let round = Round { particles_per_point: 2, ..with_losses(&[1.0, 4.0, 2.0, 3.0]) };
        assert_close(&outer(&cvar(0.5), &round), &[2.5]);
    }

    #[test]
    fn kl_dro_is_a_soft_maximum() {
        let round = with_losses(&[2f64.ln(), 4f64.ln()]);
        let kl = |temperature| KlDro { options: KlDroOptions { temperature } };
        assert_close(&outer(&kl(1.0), &round), &[3f64.ln()]);
        // exp(2 loss) is 4 and 16.
        assert_close(&outer(&kl(0.5), &round), &[0.5 * 10f64.ln()]);
    }

    #[test]
    fn chi2_dro_is_the_mean_plus_deviations_while_all_weights_are_positive() {
        // With all weights positive, the largest mean is mean + sqrt(2 rho variance).
        let losses = [1.0, 2.0, 3.0, 4.0];
        let (mean, variance) = (2.5, 1.25f64);
        let chi2 = |rho| Chi2Dro { options: Chi2DroOptions { rho } };
        let round = with_losses(&losses);
        for rho in [0.01, 0.1] {
            let got = outer(&chi2(rho), &round).double_value(&[]);
            let expected = mean + (2.0 * rho * variance).sqrt();
            assert!((got - expected).abs() < 1e-6, "rho {rho}: got {got}, expected {expected}");
        }
        // q = (0, 0, 0, 1) has sum (4 q - 1)^2 / 8 = 12 / 8: a ball of that radius reaches the maximum.
        let got = outer(&chi2(1.6), &round).double_value(&[]);
        assert!((got - 4.0).abs() < 1e-5, "got {got}");
        // Equal losses have equal weights.
        let got = outer(&chi2(1.0), &with_losses(&[2.0, 2.0])).double_value(&[]);
        assert!((got - 2.0).abs() < 1e-9, "got {got}");
    }

    #[test]
    fn chi2_weights_are_the_best_of_all_on_the_ball() {
        // Brute force over three points, on a grid of weights.
        let losses = [0.5, 1.0, 3.0];
        let rho = 0.4;
        let mut best: f64 = 0.0;
        let steps = 400;
        for one in 0..=steps {
            for two in 0..=steps - one {
                let q = [one, two, steps - one - two].map(|share| f64::from(share) / f64::from(steps));
                let distance: f64 = q.iter().map(|q| (3.0 * q - 1.0).powi(2)).sum::<f64>() / 6.0;
                if distance <= rho {
                    best = best.max(q.iter().zip(losses).map(|(q, loss)| q * loss).sum());
                }
            }
        }
        let got =
            outer(&Chi2Dro { options: Chi2DroOptions { rho } }, &with_losses(&losses)).double_value(&[]);
        assert!((got - best).abs() < 0.01 && got > best - 1e-9, "got {got}, the grid {best}");
    }
}
