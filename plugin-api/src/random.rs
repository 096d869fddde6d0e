use crate::Result;
use tch::Tensor;

/// The distribution of random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distribution {
    /// Mean 0, variance 1.
    Normal,
    /// Between 0 (included) and 1 (excluded).
    Uniform,
}

impl Distribution {
    /// Every distribution.
    pub(crate) const ALL: [Self; 2] = [Self::Normal, Self::Uniform];
}

/// A source of random numbers: the host's generator, or fixed numbers of a test.
pub trait RandomSource {
    /// Numbers in the shape, dtype and device of `like`, whose rows are the call's examples.
    ///
    /// # Errors
    /// If the rows of `like` are not the call's examples.
    fn draw(&self, distribution: Distribution, like: &Tensor) -> Result<Tensor>;
}

/// The host's random numbers, the only ones a plugin uses.
///
/// Every row has its own stream, keyed by the run's seed, the purpose, the step, the point and the
/// particle. A draw therefore does not depend on the rest of the batch, on other calls, or on
/// whether the run was resumed. Two draws within one call are independent.
#[derive(Clone, Copy)]
pub struct Random<'a> {
    source: &'a dyn RandomSource,
}

impl<'a> Random<'a> {
    /// Random numbers from this source.
    pub fn new(source: &'a dyn RandomSource) -> Self {
        Self { source }
    }

    /// Standard normal numbers in the shape, dtype and device of `like` (`[N, ...]`, N rows
    /// as in the call's examples).
    ///
    /// # Errors
    /// If `like` has another number of rows.
    pub fn normal(&self, like: &Tensor) -> Result<Tensor> {
        self.source.draw(Distribution::Normal, like)
    }

    /// Numbers uniform on [0, 1) in the shape, dtype and device of `like` (`[N, ...]`).
    ///
    /// # Errors
    /// If `like` has another number of rows.
    pub fn uniform(&self, like: &Tensor) -> Result<Tensor> {
        self.source.draw(Distribution::Uniform, like)
    }

    /// Numbers of the Laplace distribution with scale 1 (density exp(-|z|) / 2) in the shape, dtype
    /// and device of `like` (`[N, ...]`), from uniform ones by inversion.
    ///
    /// # Errors
    /// If `like` has another number of rows.
    pub fn laplace(&self, like: &Tensor) -> Result<Tensor> {
        // On [-1, 1); the 24 bits of a uniform number keep the largest result finite.
        let both_sides = self.uniform(like)? * 2.0 - 1.0;
        let tail: Tensor = 1.0 - both_sides.abs().clamp_max(1.0 - 2f64.powi(-24));
        Ok(tail.log() * both_sides.sign().neg())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, FixedNumbers};

    #[test]
    fn laplace_numbers_are_those_of_the_inverse_distribution_function() {
        // F(z) = 1 - exp(-z) / 2 for z > 0, and by symmetry below: F(ln 2) = 0.75, F(-ln 4) = 0.125.
        let numbers = FixedNumbers(vec![0.75, 0.5, 0.125, 0.0]);
        let like = Tensor::zeros([4], tch::kind::DOUBLE_CPU);
        let drawn = Random::new(&numbers).laplace(&like).expect("numbers");
        let (two, four) = (2f64.ln(), 4f64.ln());
        assert_close(&drawn, &[two, 0.0, -four, -24.0 * two]);
    }
}
