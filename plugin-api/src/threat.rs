use crate::{Error, Random, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use tch::{Kind, Tensor};

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
    /// The sum of the absolute changes of all pixels. Since contract 1.2.
    L1,
}

impl Norm {
    /// Every norm.
    pub const ALL: [Self; 3] = [Self::Linf, Self::L2, Self::L1];

    /// Its spelling: `linf`, `l2` or `l1`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Linf => "linf",
            Self::L2 => "l2",
            Self::L1 => "l1",
        }
    }

    /// The error of arithmetic that has only the norms `known`.
    pub fn unexpected(self, known: &[Self]) -> Error {
        let known: Vec<_> = known.iter().map(|norm| norm.name()).collect();
        Error::new(format!("expected norm {}, got {self}", known.join(" or ")))
    }

    /// Checks that it is one of the norms `known`.
    ///
    /// # Errors
    /// If not: both.
    pub fn expect_one_of(self, known: &[Self]) -> Result<()> {
        if known.contains(&self) {
            Ok(())
        } else {
            Err(self.unexpected(known))
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
    /// An allowed point near `candidate`. In linf and l2: onto the ball first, then onto the domain.
    /// `natural` lies inside the domain, so the second projection does not leave the ball. In l1: the
    /// nearest point of the ball cut to the domain (the order of the two would matter). An allowed
    /// point does not change.
    ///
    /// `candidate` and `natural` have the same shape.
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
            Norm::L1 => {
                let [low, high] = [self.domain.0, self.domain.1].map(|end| (natural * -1.0 + end).abs());
                let change = candidate - natural;
                let room = high.where_self(&change.gt(0.0), &low);
                let shrunk = natural + l1_change(&change, &room, self.epsilon);
                let inside = row_sums(&change.abs().minimum(&room)).le(self.epsilon);
                candidate.where_self(&inside, &shrunk)
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
            Norm::L1 => {
                // Laplace numbers over the sum of their sizes and of one further exponential number.
                let direction = random.laplace(natural)?;
                let lengths = row_sums(&direction.abs());
                let further: Tensor = 1.0 - random.uniform(&lengths)?;
                direction / (lengths - further.log()) * self.epsilon
            }
        };
        Ok(self.project(&(natural + change), natural))
    }

    /// The direction of unit length, in this norm, along which a linear function with this
    /// gradient rises fastest: the sign for linf, the normalised gradient for l2. Zero where
    /// the gradient is zero.
    ///
    /// In l1 the fastest direction is a single pixel, which soon meets the end of the domain. It is
    /// therefore the signs of the largest 5 % of the entries (at least one), in equal parts: sparse
    /// l1 descent (SLIDE, Tramèr and Boneh 2019).
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
            Norm::L1 => {
                let sizes = gradient.abs().flatten(1, -1);
                let values = sizes.size()[1];
                let count = (values as f64 * STEEPEST_SHARE).ceil().max(1.0) as i64;
                let (_, largest) = sizes.topk(count.min(values), 1, true, true);
                let chosen = sizes.zeros_like().scatter_value(1, &largest, 1.0).reshape(gradient.size());
                let signs = gradient.sign() * chosen;
                let parts = row_sums(&signs.abs());
                &signs / parts.clamp_min(1.0)
            }
        }
    }

    /// Distance of each row of `a` from the same row of `b` in this norm: `[N]`.
    pub fn distance(&self, a: &Tensor, b: &Tensor) -> Tensor {
        let change = a - b;
        match self.norm {
            Norm::Linf => change.abs().flatten(1, -1).amax([1], false),
            Norm::L2 => row_lengths(&change).flatten(0, -1),
            Norm::L1 => row_sums(&change.abs()).flatten(0, -1),
        }
    }

    /// Whether each row of `candidate` lies in ball and domain: `[N]`, bool. There is a tolerance
    /// for rounding of about 1e-6, f32's precision at the pixels' values; in l1, where the roundings
    /// of all pixels add up, of 1e-7 for each of them, too. Rows with NaN do not.
    pub fn contains(&self, candidate: &Tensor, natural: &Tensor) -> Tensor {
        let slack = 1e-6 * (1.0 + self.epsilon);
        let rows = candidate.flatten(1, -1);
        let slack_of_sums = match self.norm {
            Norm::Linf | Norm::L2 => 0.0,
            Norm::L1 => {
                1e-7 * rows.size()[1] as f64 * (1.0f64).max(self.domain.0.abs()).max(self.domain.1.abs())
            }
        };
        self.distance(candidate, natural)
            .le(self.epsilon + slack + slack_of_sums)
            .logical_and(&rows.amin([1], false).ge(self.domain.0 - slack))
            .logical_and(&rows.amax([1], false).le(self.domain.1 + slack))
    }
}

/// The share of the entries along which [`ThreatModel::steepest_ascent`] moves in l1.
const STEEPEST_SHARE: f64 = 0.05;

/// The change nearest to `change` whose sizes sum up to at most `radius` and are each at most `room`
/// (at least 0); all of one shape, row by row.
///
/// Each entry keeps its sign and has the size min(max(|change| - t, 0), room), with the smallest
/// t >= 0 that is enough (the conditions of optimality; the threshold of Duchi et al. 2008 with
/// bounds). With a = |change| and b = max(a - room, 0), the sum of the sizes is that of max(a - t, 0)
/// less that of max(b - t, 0). It is linear in t between any two of the numbers a, b and 0, so t is
/// found exactly where, of these numbers in falling order, the sum first reaches the radius. In f64.
fn l1_change(change: &Tensor, room: &Tensor, radius: f64) -> Tensor {
    let sizes = change.abs().flatten(1, -1).to_kind(Kind::Double);
    let room = room.flatten(1, -1).to_kind(Kind::Double);
    let saturated = (&sizes - &room).clamp_min(0.0);
    let zero = sizes.new_zeros([sizes.size()[0], 1], (Kind::Double, sizes.device()));
    let signs = Tensor::cat(&[sizes.ones_like(), -saturated.ones_like(), zero.zeros_like()], 1);
    let (knots, order) = Tensor::cat(&[&sizes, &saturated, &zero], 1).sort(1, true);
    let signs = signs.gather(1, &order, false);
    let (counts, totals) = (signs.cumsum(1, Kind::Double), (&signs * &knots).cumsum(1, Kind::Double));
    let sums = &totals - &counts * &knots;
    // Of the knots before the sum reaches the radius: the last one. Before the first, the sum is 0.
    let below = sums.lt(radius).to_kind(Kind::Int64).sum_dim_intlist([1i64].as_slice(), true, Kind::Int64);
    let last = (below - 1).clamp_min(0);
    let (count, total) = (counts.gather(1, &last, false), totals.gather(1, &last, false));
    let threshold = ((total - radius) / count.clamp_min(1.0)).clamp_min(0.0);
    let size = (sizes - threshold).clamp_min(0.0).minimum(&room);
    change.sign() * size.reshape(change.size()).to_kind(change.kind())
}

/// Sum of each row, in the shape `[N, 1, ...]`.
fn row_sums(rows: &Tensor) -> Tensor {
    per_row(&rows.flatten(1, -1).sum_dim_intlist([1i64].as_slice(), false, rows.kind()), rows)
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
    const L1: ThreatModel = ThreatModel { norm: Norm::L1, epsilon: 0.5, domain: (0.0, 1.0) };

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
        for unknown in ["l0", "Linf", "L2", ""] {
            let error = unknown.parse::<Norm>().expect_err("refused").to_string();
            assert_eq!(error, format!("unknown norm `{unknown}`; expected linf or l2 or l1"));
        }
    }

    #[test]
    fn a_norm_that_arithmetic_does_not_have_is_refused() {
        let known = [Norm::Linf, Norm::L2];
        assert_eq!(Norm::L2.expect_one_of(&known), Ok(()));
        let error = Norm::L1.expect_one_of(&known).expect_err("refused").to_string();
        assert_eq!(error, "expected norm linf or l2, got l1");
    }

    #[test]
    fn no_norm_is_missing_from_all() {
        // The error of serde lists every variant of the type: "… `?`, expected one of `linf`, `l2`, `l1`".
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

    #[track_caller]
    fn assert_near(tensor: &Tensor, expected: &[f32]) {
        let got = values(tensor);
        let near = got.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-6);
        assert!(near && got.len() == expected.len(), "got {got:?}, expected {expected:?}");
    }

    #[test]
    fn l1_projection_lowers_all_changes_alike_within_the_domain() {
        // By hand. Changes (0.5, -0.25, 0.125) sum up to 0.875: t = 0.125 leaves (0.375, -0.125, 0).
        let natural = rows(&[0.5, 0.5, 0.5], 3);
        let projected = L1.project(&rows(&[1.0, 0.25, 0.625], 3), &natural);
        assert_near(&projected, &[0.875, 0.375, 0.5]);
        // Room for 0.1 only in the first pixel: of (2, 0.6, 0.2), t = 0.2 leaves (0.1, 0.4, 0).
        let natural = rows(&[0.9, 0.25, 0.5], 3);
        let projected = L1.project(&rows(&[2.9, 0.85, 0.7], 3), &natural);
        assert_near(&projected, &[1.0, 0.65, 0.5]);
        // Inside the ball once the pixel is in the domain: the others do not change.
        let projected = L1.project(&rows(&[1.9, 0.45, 0.5], 3), &natural);
        assert_eq!(values(&projected), [1.0, 0.45, 0.5]);
        let point = ThreatModel { epsilon: 0.0, ..L1 };
        assert_eq!(values(&point.project(&rows(&[1.9, 0.45, 0.5], 3), &natural)), [0.9, 0.25, 0.5]);
    }

    /// The largest value of the sum of slope * change over all changes of the l1 ball that stay in the
    /// domain: the steepest pixels are moved first, as far as there is room.
    fn most_along(slopes: &[f64], natural: &[f64], threat: &ThreatModel) -> f64 {
        let mut order: Vec<usize> = (0..slopes.len()).collect();
        order.sort_by(|one, other| slopes[*other].abs().total_cmp(&slopes[*one].abs()));
        let (mut left, mut most) = (threat.epsilon, 0.0);
        for pixel in order {
            let (low, high) = threat.domain;
            let room = if slopes[pixel] > 0.0 { high - natural[pixel] } else { natural[pixel] - low };
            most += slopes[pixel].abs() * room.min(left);
            left -= room.min(left);
        }
        most
    }

    #[test]
    fn no_allowed_point_is_nearer_than_the_l1_projection() {
        // A point p of a convex set is the nearest one to c if and only if no point of the set is
        // farther along c - p than p itself.
        tch::manual_seed(5);
        let uniform =
            |low: f64, high: f64| Tensor::rand([200, 12], tch::kind::DOUBLE_CPU) * (high - low) + low;
        for (epsilon, domain) in
            [(0.01, (0.0, 1.0)), (0.7, (0.0, 1.0)), (3.0, (-1.0, 1.0)), (20.0, (-1.0, 1.0))]
        {
            let threat = ThreatModel { norm: Norm::L1, epsilon, domain };
            let natural = uniform(domain.0, domain.1);
            let candidate = &natural + uniform(-1.5, 1.5);
            let projected = threat.project(&candidate, &natural);
            let numbers = |tensor: &Tensor| Vec::<Vec<f64>>::try_from(tensor).expect("rows of f64");
            let rows = [&candidate, &projected, &natural].map(numbers);
            for ((candidate, projected), natural) in rows[0].iter().zip(&rows[1]).zip(&rows[2]) {
                let change = || projected.iter().zip(natural).map(|(to, from)| to - from);
                assert!(change().map(f64::abs).sum::<f64>() <= epsilon + 1e-12, "in the ball");
                assert!(projected.iter().all(|pixel| (domain.0..=domain.1).contains(pixel)), "in the domain");
                let slopes: Vec<f64> = candidate.iter().zip(projected).map(|(c, p)| c - p).collect();
                let reached: f64 = slopes.iter().zip(change()).map(|(slope, change)| slope * change).sum();
                let most = most_along(&slopes, natural, &threat);
                assert!((most - reached).abs() < 1e-9, "{reached} along c - p, where {most} is allowed");
            }
        }
    }

    #[test]
    fn what_is_projected_onto_a_large_l1_ball_in_f32_lies_in_it() {
        tch::manual_seed(6);
        let natural = Tensor::rand([4, 3, 32, 32], tch::kind::FLOAT_CPU);
        let threat = ThreatModel { epsilon: 12.0, ..L1 };
        let projected = threat.project(&Tensor::rand([4, 3, 32, 32], tch::kind::FLOAT_CPU), &natural);
        assert!(bool::try_from(threat.contains(&projected, &natural).all()).expect("a bool"));
        let outside = natural.narrow(1, 0, 1).fill(0.0).expand([4, 3, 32, 32], false).contiguous();
        assert!(!bool::try_from(threat.contains(&outside, &natural).any()).expect("a bool"));
    }

    #[test]
    fn l1_random_start_is_a_laplace_draw_over_its_length_and_one_more() {
        // Uniform numbers 0.75, 0.25 are the Laplace numbers ln 2, -ln 2; the further exponential one
        // is -ln(1 - 0.75) = 2 ln 2. Each change is thus a quarter of the radius of 0.5.
        let random = FixedNumbers(vec![0.75, 0.25]);
        let start = L1.random_start(&rows(&[0.5, 0.5], 2), &Random::new(&random)).expect("a start");
        assert_near(&start, &[0.625, 0.375]);
    }

    #[test]
    fn l1_steepest_ascent_moves_the_largest_twentieth_in_equal_parts() {
        // One of two entries; two of 40, of which one is zero in the second row.
        assert_eq!(values(&L1.steepest_ascent(&rows(&[3.0, -4.0, 0.0, 0.0], 2))), [0.0, -1.0, 0.0, 0.0]);
        let mut gradient = vec![0.0f32; 80];
        (gradient[7], gradient[30], gradient[35], gradient[50]) = (-2.0, 5.0, 1.0, 1.0);
        let direction = values(&L1.steepest_ascent(&rows(&gradient, 40)));
        let moved: Vec<_> = direction.iter().enumerate().filter(|(_, part)| **part != 0.0).collect();
        assert_eq!(moved, [(7, &-0.5), (30, &0.5), (50, &1.0)]);
        let natural = rows(&[0.5, 0.5], 2);
        assert_near(&L1.distance(&rows(&[0.75, 0.25], 2), &natural), &[0.5]);
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
