//! The law of softmax regression with cross-entropy: a mixture of products of exponentials.

use super::exponential::{interval, numbers, TruncatedExponential};
use crate::losses::cross_entropy;
use crate::{Error, Result};
use tch::{Kind, Tensor};

/// The largest number of terms: 10 classes at lambda 10 have 92,378.
const MOST_TERMS: u64 = 200_000;

/// Numbers of a chunk of terms, one for each term and coordinate.
const CHUNK: i64 = 1 << 20;

/// q ∝ exp(lambda * cross-entropy) of softmax regression on a box, for a whole number lambda.
///
/// With logits z = W x + b and label y, exp(lambda * cross-entropy) = (sum over j of
/// exp(z_j - z_y))^lambda. By the multinomial theorem, this is a sum over all ways to choose counts
/// m_j of sum lambda: lambda! / (product of m_j!) * exp(sum over j of m_j * (z_j - z_y)). Each term
/// is the exponential of a linear function, whose mean over the box is known ([`super::LinearLaw`]).
/// So g is a log-sum-exp over the terms, and q is a mixture: an independent draw chooses a term,
/// then every coordinate.
#[derive(Debug)]
pub struct SoftmaxLaw {
    weights: Tensor,
    bias: Tensor,
    label: i64,
    lo: Tensor,
    hi: Tensor,
    lambda: u32,
    /// The counts m_j of each term, `[terms, classes]`.
    counts: Tensor,
    /// The log of each term's mean over the box, `[terms]`.
    log_masses: Tensor,
}

impl SoftmaxLaw {
    /// The law of the network with weights `[classes, d]` and bias `[classes]` at images of this
    /// label in the box `[lo, hi]`, `[d]` each.
    ///
    /// # Errors
    /// If lambda is no whole number of at least 1, there are too many terms, the label is no class,
    /// shapes differ, numbers are not finite or the box is empty.
    pub fn new(
        weights: &Tensor,
        bias: &Tensor,
        label: i64,
        lo: &Tensor,
        hi: &Tensor,
        lambda: f64,
    ) -> Result<Self> {
        let [classes, coordinates] = weights.size()[..] else {
            return Err(Error::new(format!(
                "`weights`: expected the shape [classes, d], got {:?}",
                weights.size()
            )));
        };
        let whole = Self::check(classes, lambda)?;
        if !(0..classes).contains(&label) {
            return Err(Error::new(format!("`label`: expected a class below {classes}, got {label}")));
        }
        let (lo, hi) = interval(lo, hi, coordinates)?;
        let mut law = Self {
            weights: numbers("weights", weights, &[classes, coordinates])?,
            bias: numbers("bias", bias, &[classes])?,
            label,
            lo,
            hi,
            lambda: whole,
            counts: counts(classes as usize, whole),
            log_masses: Tensor::from_slice(&[0.0]),
        };
        let means = law.chunks().map(|(counts, term)| {
            let constant = counts.matmul(&(&law.bias - law.bias.get(label)));
            let multinomial =
                Tensor::from(f64::from(whole) + 1.0).lgamma() - sum(&(counts + 1.0).lgamma(), 1);
            constant + multinomial + sum(&term.log_mean_exp(), 1)
        });
        law.log_masses = Tensor::cat(&means.collect::<Vec<_>>(), 0);
        Ok(law)
    }

    /// Checks that the law of so many classes is known at this lambda, and returns it as a whole
    /// number.
    ///
    /// # Errors
    /// If lambda is no whole number of at least 1, or there are too many terms.
    pub fn check(classes: i64, lambda: f64) -> Result<u32> {
        let whole = lambda as u32;
        if whole == 0 || f64::from(whole) != lambda {
            return Err(Error::new(format!(
                "`lambda`: expected a whole number of at least 1, for which the law of softmax regression is \
                 known, got {lambda}"
            )));
        }
        let terms = number_of_terms(classes as u64, u64::from(whole));
        if terms.is_none_or(|terms| terms > MOST_TERMS) {
            let terms = terms.map_or_else(|| "more than 10^19".to_owned(), |terms| terms.to_string());
            return Err(Error::new(format!(
                "`lambda`: {lambda} with {classes} classes has {terms} terms, expected at most {MOST_TERMS}"
            )));
        }
        Ok(whole)
    }

    /// The number of terms of the mixture.
    pub fn terms(&self) -> i64 {
        self.counts.size()[0]
    }

    /// lambda * g, the log of the mean of exp(lambda * loss) over the box.
    pub fn lambda_g(&self) -> f64 {
        self.log_masses.logsumexp([0i64].as_slice(), false).double_value(&[])
    }

    /// g.
    pub fn g(&self) -> f64 {
        self.lambda_g() / f64::from(self.lambda)
    }

    /// The mean and the variance of each coordinate, `[d]` each.
    pub fn moments(&self) -> (Tensor, Tensor) {
        let shares = self.log_masses.softmax(0, Kind::Double);
        // Distances from the mean of the heaviest term: squares then cancel least.
        let heaviest = self.log_masses.argmax(0, true);
        let origin = self.term(&self.counts.index_select(0, &heaviest)).mean().squeeze_dim(0);
        let (mut first, mut mean, mut square) = (0, self.lo.zeros_like(), self.lo.zeros_like());
        for (counts, term) in self.chunks() {
            let rows = counts.size()[0];
            let share = shares.narrow(0, first, rows);
            first += rows;
            let distance = term.mean() - &origin;
            mean += share.matmul(&distance);
            square += share.matmul(&(term.variance() + distance.square()));
        }
        (origin + &mean, square - mean.square())
    }

    /// Independent draws `[n, d]`. Both arguments are uniform on [0, 1): `choices`, `[n]`, choose
    /// the terms, `uniforms`, `[n, d]`, the coordinates.
    pub fn draws(&self, choices: &Tensor, uniforms: &Tensor) -> Tensor {
        let ends = self.log_masses.softmax(0, Kind::Double).cumsum(0, Kind::Double);
        let choices = (choices.to_kind(Kind::Double) * ends.get(-1)).contiguous();
        let terms = choices.bucketize(&ends, false, true).clamp_max(self.terms() - 1);
        self.term(&self.counts.index_select(0, &terms)).draws(&uniforms.to_kind(Kind::Double))
    }

    /// The cross-entropy at points `[n, d]`: `[n]`, in f64.
    pub fn loss(&self, points: &Tensor) -> Tensor {
        let logits = points.to_kind(Kind::Double).matmul(&self.weights.tr()) + &self.bias;
        let labels = Tensor::full([points.size()[0]], self.label, (Kind::Int64, points.device()));
        cross_entropy(&logits, &labels)
    }

    /// The mean of the loss, estimated from independent draws `[n, d]`, and its standard error. For
    /// this mean, no closed form is known.
    pub fn mean_loss(&self, draws: &Tensor) -> (f64, f64) {
        let losses = self.loss(draws);
        let deviation = losses.std(true).double_value(&[]);
        (losses.mean(Kind::Double).double_value(&[]), deviation / (losses.numel() as f64).sqrt())
    }

    /// The terms with these counts, `[n, classes]`, as product distributions.
    fn term(&self, counts: &Tensor) -> TruncatedExponential<'_> {
        let slopes = &self.weights - self.weights.get(self.label);
        TruncatedExponential { lo: &self.lo, hi: &self.hi, rate: counts.matmul(&slopes) }
    }

    /// All terms with their counts, in chunks that bound the memory.
    fn chunks(&self) -> impl Iterator<Item = (Tensor, TruncatedExponential<'_>)> {
        let rows = (CHUNK / self.lo.numel().max(1) as i64).max(1);
        self.counts.split(rows, 0).into_iter().map(|counts| {
            let term = self.term(&counts);
            (counts, term)
        })
    }
}

/// C(classes - 1 + lambda, lambda), the number of ways to choose the counts; none above 10^19.
fn number_of_terms(classes: u64, lambda: u64) -> Option<u64> {
    (1..=lambda).try_fold(1u64, |terms, drawn| Some(terms.checked_mul(classes - 1 + drawn)? / drawn))
}

/// All lists of counts, one for each class, of sum lambda.
fn counts(classes: usize, lambda: u32) -> Tensor {
    let mut lists = vec![Vec::new()];
    for class in 0..classes {
        let extended = lists.into_iter().flat_map(|list: Vec<u32>| {
            let left = lambda - list.iter().sum::<u32>();
            let least = if class + 1 == classes { left } else { 0 };
            (least..=left).map(move |count| [list.as_slice(), &[count]].concat())
        });
        lists = extended.collect();
    }
    let numbers: Vec<f64> = lists.concat().into_iter().map(f64::from).collect();
    Tensor::from_slice(&numbers).reshape([-1, classes as i64])
}

fn sum(tensor: &Tensor, dimension: i64) -> Tensor {
    tensor.sum_dim_intlist([dimension].as_slice(), false, Kind::Double)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_moments, assert_near, numbers as values, uniforms};
    use super::*;

    /// Three classes in two dimensions.
    fn plane(lambda: f64) -> SoftmaxLaw {
        let weights = Tensor::from_slice(&[1.0, -2.0, 0.5, 3.0, -4.0, 1.0]).reshape([3, 2]);
        let bias = Tensor::from_slice(&[0.25, -0.5, 0.125]);
        let (lo, hi) = (Tensor::from_slice(&[0.0, 0.125]), Tensor::from_slice(&[0.5, 1.0]));
        SoftmaxLaw::new(&weights, &bias, 1, &lo, &hi, lambda).expect("a law")
    }

    /// Random weights of this many classes and coordinates, on the box [0.2, 0.8].
    fn random(classes: i64, coordinates: i64, scale: f64, lambda: f64) -> SoftmaxLaw {
        let weights = (uniforms(3, &[classes, coordinates]) - 0.5) * scale;
        let bias = uniforms(4, &[classes]);
        let (lo, hi) = (weights.get(0).full_like(0.2), weights.get(0).full_like(0.8));
        SoftmaxLaw::new(&weights, &bias, 0, &lo, &hi, lambda).expect("a law")
    }

    #[test]
    fn two_classes_at_lambda_one_are_a_constant_and_an_exponential() {
        // z = (0, 2x) and label 0 on [0, 1]: exp(loss) = 1 + exp(2x), whose mean is (e^2 + 1) / 2;
        // the integral of x (1 + exp(2x)) is 1/2 + (e^2 + 1) / 4.
        let weights = Tensor::from_slice(&[0.0, 2.0]).reshape([2, 1]);
        let (zero, one) = (Tensor::from_slice(&[0.0]), Tensor::from_slice(&[1.0]));
        let law = SoftmaxLaw::new(&weights, &Tensor::from_slice(&[0.0, 0.0]), 0, &zero, &one, 1.0);
        let law = law.expect("a law");
        let mass = (1f64.exp().powi(2) + 1.0) / 2.0;
        assert_eq!(law.terms(), 2);
        assert_near(law.g(), mass.ln(), 1e-14);
        assert_near(law.moments().0.double_value(&[0]), (0.5 + mass / 2.0) / mass, 1e-14);
    }

    #[test]
    fn two_dimensions_agree_with_scipy() {
        // scipy 1.17.1, integrate.dblquad of exp(lambda * loss) with tolerance 1e-13: g, means,
        // variances and the mean loss.
        let records = [
            (
                1.0,
                [
                    0.44704291950367875,
                    0.2367919922040223,
                    0.49506856898598545,
                    0.021215299134922063,
                    0.06554485505278726,
                ],
                0.4908112974917093,
            ),
            (
                3.0,
                [
                    0.5405164088521898,
                    0.20697872504740591,
                    0.35654736910575663,
                    0.02134252953583799,
                    0.05032055993655734,
                ],
                0.6845872145088878,
            ),
            (
                10.0,
                [
                    0.7984002341857038,
                    0.10930840641312464,
                    0.17418951037621366,
                    0.013884054369670686,
                    0.0034018256668796477,
                ],
                1.044475823592838,
            ),
        ];
        for (lambda, expected, loss) in records {
            let law = plane(lambda);
            let (mean, variance) = law.moments();
            let got = [vec![law.g()], values(&mean), values(&variance)].concat();
            for (got, expected) in got.into_iter().zip(expected) {
                assert_near(got, expected, 1e-12);
            }
            let draws = law.draws(&uniforms(1, &[40_000]), &uniforms(2_000_000, &[40_000, 2]));
            assert_moments(&draws, &mean, &variance);
            let (mean, error) = law.mean_loss(&draws);
            assert_near(mean, loss, 5.0 * error);
        }
    }

    #[test]
    fn g_agrees_with_a_trapezoid_sum_over_the_plane() {
        for lambda in [1.0, 2.0, 10.0] {
            let law = plane(lambda);
            let nodes = |lo: f64, hi: f64| Tensor::linspace(lo, hi, 801, (Kind::Double, tch::Device::Cpu));
            let grid = Tensor::meshgrid_indexing(&[nodes(0.0, 0.5), nodes(0.125, 1.0)], "ij");
            let points = Tensor::stack(&grid, -1).reshape([-1, 2]);
            let heights = (law.loss(&points) * lambda).exp().reshape([801, 801]);
            let integral = Tensor::trapz_dx(&Tensor::trapz_dx(&heights, 1.0 / 800.0, -1), 1.0 / 800.0, -1);
            assert_near(law.g(), integral.double_value(&[]).ln() / lambda, 1e-5);
        }
    }

    #[test]
    fn g_agrees_with_uniform_draws_in_twenty_dimensions() {
        for lambda in [1.0, 3.0] {
            let law = random(4, 20, 2.0, lambda);
            let points = uniforms(7, &[200_000, 20]) * 0.6 + 0.2;
            let heights = (law.loss(&points) * lambda).exp();
            let mean = heights.mean(Kind::Double).double_value(&[]);
            let error = heights.std(true).double_value(&[]) / 200_000f64.sqrt();
            assert_near(law.lambda_g().exp(), mean, 5.0 * error);
        }
    }

    #[test]
    fn the_mean_loss_of_draws_lies_between_differences_of_lambda_g() {
        // lambda * g is convex in lambda, with the mean loss as its derivative.
        for lambda in [1.0, 3.0, 10.0] {
            let at = |lambda: f64| if lambda == 0.0 { 0.0 } else { random(3, 150, 3.0, lambda).lambda_g() };
            let law = random(3, 150, 3.0, lambda);
            let draws = law.draws(&uniforms(1, &[20_000]), &uniforms(5_000_000, &[20_000, 150]));
            assert_moments(&draws, &law.moments().0, &law.moments().1);
            let (mean, error) = law.mean_loss(&draws);
            let (below, above) = (law.lambda_g() - at(lambda - 1.0), at(lambda + 1.0) - law.lambda_g());
            assert!(below - 5.0 * error < mean && mean < above + 5.0 * error, "{below} {mean} {above}");
            // The order of the uniform mean, g and the mean loss.
            let uniform = law.loss(&(uniforms(9, &[20_000, 150]) * 0.6 + 0.2));
            assert!(uniform.mean(Kind::Double).double_value(&[]) < law.g() && law.g() < mean);
        }
    }

    #[test]
    fn ten_classes_at_lambda_ten_have_92378_terms() {
        let law = random(10, 30, 1.0, 10.0);
        assert_eq!(law.terms(), 92_378);
        let sums = sum(&law.counts, 1);
        assert_eq!((sums.min().double_value(&[]), sums.max().double_value(&[])), (10.0, 10.0));
        let points = uniforms(7, &[100_000, 30]) * 0.6 + 0.2;
        let heights = (law.loss(&points) * 10.0).exp();
        let mean = heights.mean(Kind::Double).double_value(&[]);
        let error = heights.std(true).double_value(&[]) / 100_000f64.sqrt();
        assert_near(law.lambda_g().exp(), mean, 5.0 * error);
    }

    #[test]
    fn wrong_arguments_are_refused() {
        let weights = Tensor::from_slice(&[0.0; 10]).reshape([10, 1]);
        let (zero, one) = (Tensor::from_slice(&[0.0]), Tensor::from_slice(&[1.0]));
        let refusal = |label: i64, lambda: f64| {
            let law = SoftmaxLaw::new(&weights, &weights.flatten(0, -1), label, &zero, &one, lambda);
            law.expect_err("refused").to_string()
        };
        for lambda in [0.0, -1.0, 2.5, f64::NAN, f64::INFINITY, 1e12] {
            let refused = refusal(0, lambda);
            assert!(refused.starts_with("`lambda`: expected a whole number of at least 1"), "{refused}");
        }
        assert_eq!(
            refusal(0, 12.0),
            "`lambda`: 12 with 10 classes has 293930 terms, expected at most 200000"
        );
        assert_eq!(refusal(10, 1.0), "`label`: expected a class below 10, got 10");
    }
}
