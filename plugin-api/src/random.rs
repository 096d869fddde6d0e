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
}
