use crate::{Error, Random, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use tch::Tensor;

/// The norm of the distance between an adversarial example and the natural example.
///
/// Command lines, files and reports use the spelling of `Display`; `FromStr` reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Norm {
    /// The largest absolute change of any pixel.
    Linf,
    /// The Euclidean length of the change over all pixels.
    L2,
}

impl Norm {
    /// Every norm.
    pub const ALL: [Self; 2] = [Self::Linf, Self::L2];

    /// Its spelling: `linf` or `l2`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Linf => "linf",
            Self::L2 => "l2",
        }
    }
}

impl fmt::Display for Norm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for Norm {
    type Err = Error;

    /// The norm of this name.
    ///
    /// # Errors
    /// If there is none; the message lists all names.
    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|norm| norm.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(" or ");
            Error::new(format!("unknown norm `{name}`; expected {known}"))
        })
    }
}

/// The threat model: an adversary may move each example within a ball of radius `epsilon` around
/// the natural example, inside the domain. In the paper's terms, it is the support of the
/// adversarial distributions: the inf-Wasserstein ball of radius epsilon around the data.
///
/// Tensors are batches `[N, ...]` of floats; every row is one example.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ThreatModel {
    /// Norm of the ball.
    pub norm: Norm,
    /// Radius of the ball, in units of the domain (MNIST: 0.3; CIFAR-10: 8/255); at least 0.
    pub epsilon: f64,
    /// Smallest and largest value of a pixel.
    pub domain: (f64, f64),
}

impl Default for ThreatModel {
    /// The usual threat model for MNIST: linf, 0.3.
    fn default() -> Self {
        Self { norm: Norm::Linf, epsilon: 0.3, domain: (0.0, 1.0) }
    }
}

impl ThreatModel {
    /// The nearest allowed point: onto the ball first, then onto the domain.
    ///
    /// `candidate` and `natural` have the same shape. `natural` lies inside the domain, so the
    /// second projection does not leave the ball. An allowed point does not change.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn project(&self, candidate: &Tensor, natural: &Tensor) -> Tensor {
        self.project_ball(candidate, natural).clamp_(self.domain.0, self.domain.1)
    }

    fn project_ball(&self, candidate: &Tensor, natural: &Tensor) -> Tensor {
        match self.norm {
            Norm::Linf => candidate.maximum(&(natural - self.epsilon)).minimum(&(natural + self.epsilon)),
            Norm::L2 => {
                let change = candidate - natural;
                let length = row_lengths(&change);
                let inside = length.le(self.epsilon);
                let scaled = natural + change * (self.epsilon / length);
                candidate.where_self(&inside, &scaled)
            }
        }
    }

    /// A uniform draw from the ball around `natural`, cut to the domain.
    ///
    /// # Errors
    /// If the host cannot draw.
    pub fn random_start(&self, natural: &Tensor, random: &Random) -> Result<Tensor> {
        let change = match self.norm {
            Norm::Linf => (random.uniform(natural)? * 2.0 - 1.0) * self.epsilon,
            Norm::L2 => {
                // A normal vector has a uniform direction; the d-th root spreads the radius.
                let direction = random.normal(natural)?;
                let lengths = row_lengths(&direction);
                let dimension = natural.size()[1..].iter().product::<i64>() as f64;
                let radius = random.uniform(&lengths)?.pow_tensor_scalar(1.0 / dimension);
                direction / lengths * radius * self.epsilon
            }
        };
        Ok(self.project(&(natural + change), natural))
    }

    /// The direction of unit length, in this norm, along which a linear function with this
    /// gradient rises fastest: the sign for linf, the normalised gradient for l2. Zero where
    /// the gradient is zero.
    pub fn steepest_ascent(&self, gradient: &Tensor) -> Tensor {
        match self.norm {
            Norm::Linf => gradient.sign(),
            Norm::L2 => {
                // Squares of small gradients underflow in f32: scale the largest entry to 1 first.
                let largest = per_row(&gradient.abs().flatten(1, -1).amax([1], false), gradient);
                let scaled = gradient / largest.where_self(&largest.gt(0.0), &largest.ones_like());
                let lengths = row_lengths(&scaled);
                &scaled / lengths.where_self(&lengths.gt(0.0), &lengths.ones_like())
            }
        }
    }

    /// Distance of each row of `a` from the same row of `b` in this norm: `[N]`.
    pub fn distance(&self, a: &Tensor, b: &Tensor) -> Tensor {
        let change = a - b;
        match self.norm {
            Norm::Linf => change.abs().flatten(1, -1).amax([1], false),
            Norm::L2 => row_lengths(&change).flatten(0, -1),
        }
    }

    /// Whether each row of `candidate` lies in ball and domain: `[N]`, bool. There is a tolerance
    /// for rounding of about 1e-6, f32's precision at the pixels' values. Rows with NaN do not.
    pub fn contains(&self, candidate: &Tensor, natural: &Tensor) -> Tensor {
        let slack = 1e-6 * (1.0 + self.epsilon);
        let rows = candidate.flatten(1, -1);
        self.distance(candidate, natural)
            .le(self.epsilon + slack)
            .logical_and(&rows.amin([1], false).ge(self.domain.0 - slack))
            .logical_and(&rows.amax([1], false).le(self.domain.1 + slack))
    }
}

/// Euclidean length of each row, in the shape `[N, 1, ...]`, so that rows can be divided by it.
fn row_lengths(rows: &Tensor) -> Tensor {
    let squares = rows.flatten(1, -1).square();
    per_row(&squares.sum_dim_intlist([1i64].as_slice(), false, rows.kind()).sqrt(), rows)
}

/// `[N]` as `[N, 1, ...]`, with as many dimensions as `rows`.
fn per_row(values: &Tensor, rows: &Tensor) -> Tensor {
    let mut shape = vec![1; rows.dim()];
    shape[0] = -1;
    values.reshape(shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FixedNumbers;

    fn rows(values: &[f32], width: i64) -> Tensor {
        Tensor::from_slice(values).reshape([-1, width])
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).expect("a tensor of f32")
    }

    const LINF: ThreatModel = ThreatModel { norm: Norm::Linf, epsilon: 0.25, domain: (0.0, 1.0) };
    const L2: ThreatModel = ThreatModel { norm: Norm::L2, epsilon: 0.5, domain: (0.0, 1.0) };

    #[test]
    fn display_from_str_and_serde_spell_every_norm_the_same_way() {
        for norm in Norm::ALL {
            let name = norm.to_string();
            assert_eq!(name.parse(), Ok(norm));
            assert_eq!(serde_json::to_value(norm).expect("JSON"), name.as_str());
            assert_eq!(serde_json::from_value::<Norm>(name.into()).expect("a norm"), norm);
        }
        assert_eq!(format!("[{:>5}]", Norm::L2), "[   l2]", "a width is respected");
    }

    #[test]
    fn an_unknown_norm_is_refused_and_the_known_ones_are_listed() {
        for unknown in ["l1", "Linf", "L2", ""] {
            let error = unknown.parse::<Norm>().expect_err("refused").to_string();
            assert_eq!(error, format!("unknown norm `{unknown}`; expected linf or l2"));
        }
    }

    #[test]
    fn no_norm_is_missing_from_all() {
        // The error of serde lists every variant of the type: "… `?`, expected `linf` or `l2`".
        let error = serde_json::from_str::<Norm>("\"?\"").expect_err("refused").to_string();
        let variants: Vec<_> = error.split('`').skip(1).step_by(2).filter(|name| *name != "?").collect();
        assert_eq!(variants, Norm::ALL.map(Norm::name), "{error}");
    }

    #[test]
    fn linf_projects_onto_the_ball_and_then_the_domain() {
        // By hand: 0.5 + 0.6 is cut to 0.75; 0.125 - 0.5 to -0.125 by the ball, to 0 by the
        // domain; 0.9375 + 0.125 = 1.0625 is inside the ball and cut to 1; 0.5 + 0.1 stays.
        let natural = rows(&[0.5, 0.125, 0.9375, 0.5], 2);
        let candidate = rows(&[1.1, -0.375, 1.0625, 0.6], 2);
        assert_eq!(values(&LINF.project(&candidate, &natural)), [0.75, 0.0, 1.0, 0.6]);
    }

    #[test]
    fn l2_projection_scales_points_outside_the_ball_and_keeps_the_others() {
        // By hand: (0.6, 0.8) has length 1, so 0.5 along it is (0.3, 0.4); (0.3, 0) is inside.
        let natural = rows(&[0.0, 0.0, 0.25, 0.25], 2);
        let candidate = rows(&[0.6, 0.8, 0.55, 0.25], 2);
        let projected = values(&L2.project(&candidate, &natural));
        for (got, expected) in projected.iter().zip([0.3, 0.4, 0.55, 0.25]) {
            assert!((got - expected).abs() < 1e-6, "got {got}, expected {expected}");
        }
    }

    #[test]
    fn contains_tolerates_rounding_and_nothing_else() {
        let natural = rows(&[0.5, 0.5, 0.5, 0.5, 0.1], 1);
        let candidate = rows(&[0.75, 0.7500003, 0.7501, f32::NAN, -0.001], 1);
        let inside: Vec<bool> = Vec::try_from(LINF.contains(&candidate, &natural)).expect("bools");
        assert_eq!(inside, [true, true, false, false, false]);
    }

    #[test]
    fn random_start_spans_the_linf_ball() {
        // Uniform numbers 0, 0.5, 0.75 become -1, 0, 0.5 times epsilon.
        let random = FixedNumbers(vec![0.0, 0.5, 0.75]);
        let natural = rows(&[0.5, 0.5, 0.5], 1);
        let start = LINF.random_start(&natural, &Random::new(&random)).expect("a start");
        assert_eq!(values(&start), [0.25, 0.5, 0.625]);
    }

    #[test]
    fn l2_random_start_has_the_drawn_direction_and_radius() {
        // Direction (0.36, 0.48) / 0.6 = (0.6, 0.8); radius 0.5 * 0.36^(1/2) = 0.3.
        let random = FixedNumbers(vec![0.36, 0.48]);
        let natural = rows(&[0.5, 0.5], 2);
        let start = values(&L2.random_start(&natural, &Random::new(&random)).expect("a start"));
        for (got, expected) in start.iter().zip([0.68, 0.74]) {
            assert!((got - expected).abs() < 1e-6, "got {got}, expected {expected}");
        }
    }

    #[test]
    fn steepest_ascent_is_the_sign_or_the_unit_gradient() {
        let gradient = rows(&[3.0, -4.0, 0.0, 0.0], 2);
        assert_eq!(values(&LINF.steepest_ascent(&gradient)), [1.0, -1.0, 0.0, 0.0]);
        // The length of the gradient does not matter.
        for scale in [1.0, 1e-30] {
            let unit = values(&L2.steepest_ascent(&(&gradient * scale)));
            for (got, expected) in unit.iter().zip([0.6, -0.8, 0.0, 0.0]) {
                assert!((got - expected).abs() < 1e-6, "scale {scale}: got {got}, expected {expected}");
            }
        }
    }
}
