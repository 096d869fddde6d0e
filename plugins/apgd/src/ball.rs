//! Ball and domain around each point, and the geometry of a step in them.

use crate::NORMS;
use plugin_api::tch::Tensor;
use plugin_api::{Norm, Random, Result, ThreatModel};

/// Keeps directions finite where a vector is zero.
const SMALLEST_LENGTH: f64 = 1e-12;

/// The allowed points around each of M natural examples: the same set as in `ThreatModel::project`.
/// It is prepared once per run, so that an iteration projects in place. The l2 arithmetic is that
/// of the reference.
pub enum Ball {
    /// The smallest and the largest value of every pixel, in ball and domain.
    Linf { lower: Tensor, upper: Tensor },
    /// The ball's centres.
    L2 { natural: Tensor, epsilon: f64, domain: (f64, f64) },
}

impl Ball {
    /// The balls around these natural examples, `[M, C, H, W]`.
    ///
    /// # Errors
    /// If they are balls of another norm.
    pub fn around(natural: Tensor, threat: &ThreatModel) -> Result<Self> {
        let &ThreatModel { norm, epsilon, domain } = threat;
        Ok(match norm {
            Norm::Linf => Self::Linf {
                lower: (&natural - epsilon).clamp_(domain.0, domain.1),
                upper: (&natural + epsilon).clamp_(domain.0, domain.1),
            },
            Norm::L2 => Self::L2 { natural, epsilon, domain },
            Norm::L1 => return Err(Norm::L1.unexpected(&NORMS)),
        })
    }

    /// The tensors with a row for each point.
    pub fn tensors(&mut self) -> Vec<&mut Tensor> {
        match self {
            Self::Linf { lower, upper } => vec![lower, upper],
            Self::L2 { natural, .. } => vec![natural],
        }
    }

    /// The nearest point in the ball, then in the domain; `candidate` is overwritten.
    pub fn project(&self, mut candidate: Tensor) -> Tensor {
        match self {
            Self::Linf { lower, upper } => candidate.clamp_tensor_(Some(lower), Some(upper)),
            Self::L2 { natural, epsilon, domain } => {
                candidate -= natural;
                let length = lengths(&candidate);
                candidate *= length.clamp_max(*epsilon) / (length + SMALLEST_LENGTH);
                candidate += natural;
                candidate.clamp_(domain.0, domain.1)
            }
        }
    }

    /// The direction in which a step of length one raises the loss fastest: the gradient's sign
    /// for linf, the normalised gradient for l2.
    pub fn steepest_ascent(&self, gradient: &Tensor) -> Tensor {
        match self {
            Self::Linf { .. } => gradient.sign(),
            Self::L2 { .. } => gradient / (lengths(gradient) + SMALLEST_LENGTH),
        }
    }
}

/// A random start for these rows (`[M]`, i64) of the natural examples, `[M, C, H, W]`. The
/// direction is uniform in the cube (linf) or on the sphere (l2). It is scaled to the surface of
/// the ball, and the result is cut to the domain.
pub fn random_start(
    threat: &ThreatModel,
    natural: &Tensor,
    rows: &Tensor,
    random: &Random,
) -> Result<Tensor> {
    let &ThreatModel { norm, epsilon, domain } = threat;
    // Numbers are drawn for every example of the call, so that a start does not depend on the other
    // points of the run.
    let direction = match norm {
        Norm::Linf => {
            let direction = random.uniform(natural)?.index_select(0, rows) * 2.0 - 1.0;
            let largest = direction.abs().amax([1, 2, 3], true);
            direction / (largest + SMALLEST_LENGTH)
        }
        Norm::L2 => {
            let draws = random.normal(natural)?.index_select(0, rows);
            let length = lengths(&draws);
            draws / (length + SMALLEST_LENGTH)
        }
        Norm::L1 => return Err(Norm::L1.unexpected(&NORMS)),
    };
    let mut start = direction * epsilon;
    start += natural.index_select(0, rows);
    Ok(start.clamp_(domain.0, domain.1))
}

/// Euclidean length of each row, `[M, 1, 1, 1]`.
fn lengths(images: &Tensor) -> Tensor {
    images.norm_scalaropt_dim(2.0, [1, 2, 3], true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::testing::{FixedNumbers, assert_close};

    fn image(values: &[f64]) -> Tensor {
        Tensor::from_slice(values).reshape([1, 1, 1, -1])
    }

    const LINF: ThreatModel = ThreatModel { norm: Norm::Linf, epsilon: 0.25, domain: (0.0, 1.0) };
    const L2: ThreatModel = ThreatModel { norm: Norm::L2, epsilon: 0.5, domain: (0.0, 1.0) };

    #[test]
    fn projections_are_those_of_the_threat_model() {
        let natural = image(&[0.5, 0.1, 0.9, 0.5]);
        for threat in [LINF, L2] {
            let ball = Ball::around(natural.shallow_clone(), &threat).expect("a ball");
            for candidate in [[1.1, -0.4, 1.3, 0.6], [0.6, 0.2, 0.8, 0.5]].map(|values| image(&values)) {
                let expected: Vec<f64> =
                    Vec::try_from(threat.project(&candidate, &natural).flatten(0, -1)).expect("f64");
                assert_close(&ball.project(candidate), &expected);
            }
        }
    }

    #[test]
    fn a_zero_gradient_gives_a_zero_direction() {
        for threat in [LINF, L2] {
            let ball = Ball::around(image(&[0.5, 0.5]), &threat).expect("a ball");
            assert_close(&ball.steepest_ascent(&image(&[0.0, 0.0])), &[0.0, 0.0]);
        }
        let ball = Ball::around(image(&[0.5, 0.5]), &L2).expect("a ball");
        assert_close(&ball.steepest_ascent(&image(&[3.0, -4.0])), &[0.6, -0.8]);
    }

    fn start(threat: ThreatModel, natural: &[f64], numbers: &[f64]) -> Tensor {
        let (numbers, rows) = (FixedNumbers(numbers.to_vec()), Tensor::from_slice(&[0i64]));
        random_start(&threat, &image(natural), &rows, &Random::new(&numbers)).expect("a start")
    }

    #[test]
    fn starts_lie_on_the_surface_of_the_ball() {
        // 0.75, 0.25, 0.6 become 0.5, -0.5, 0.2. Scaled by 2 and by epsilon = 0.25, they become
        // 0.25, -0.25, 0.1. The second pixel is cut to the domain.
        assert_close(&start(LINF, &[0.5, 0.1, 0.5], &[0.75, 0.25, 0.6]), &[0.75, 0.0, 0.6]);
        // (3, -4) has length 5; half of (0.6, -0.8) is (0.3, -0.4).
        assert_close(&start(L2, &[0.5, 0.5], &[3.0, -4.0]), &[0.8, 0.1]);
        // A direction of zero in every pixel gives the natural example.
        assert_close(&start(LINF, &[0.5], &[0.5]), &[0.5]);
    }
}
