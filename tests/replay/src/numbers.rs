use plugin_api::tch::Tensor;
use plugin_api::{Distribution, Error, RandomSource, Result};
use std::cell::Cell;

/// Recorded random numbers, returned draw by draw in their order. A draw must have the recorded
/// shape; dtype and device are adapted.
#[derive(Debug)]
pub struct ReplayedNumbers {
    draws: Vec<Tensor>,
    handed_out: Cell<usize>,
}

impl ReplayedNumbers {
    /// These draws, each with one row per example of the call.
    pub fn new(draws: Vec<Tensor>) -> Self {
        Self { draws, handed_out: Cell::new(0) }
    }

    /// The same draws from the first one on, for a call with only these examples.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn rows(&self, rows: &[i64]) -> Self {
        let rows = Tensor::from_slice(rows);
        Self::new(
            self.draws.iter().map(|draw| draw.index_select(0, &rows.to_device(draw.device()))).collect(),
        )
    }

    /// The number of draws returned so far.
    pub fn handed_out(&self) -> usize {
        self.handed_out.get()
    }
}

impl RandomSource for ReplayedNumbers {
    fn draw(&self, _: Distribution, like: &Tensor) -> Result<Tensor> {
        let number = self.handed_out.replace(self.handed_out.get() + 1);
        match self.draws.get(number) {
            Some(draw) if draw.size() == like.size() => {
                Ok(draw.to_kind(like.kind()).to_device(like.device()).copy())
            }
            Some(draw) => Err(Error::new(format!(
                "draw {number}: recorded with shape {:?}, requested with shape {:?}",
                draw.size(),
                like.size()
            ))),
            None => {
                Err(Error::new(format!("{} draws are recorded, one more was requested", self.draws.len())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::tch::{Device, Kind};

    #[test]
    fn recorded_numbers_are_returned_in_order_for_the_chosen_rows() {
        let draws = [[1.0f64, 2.0], [3.0, 4.0]].map(|draw| Tensor::from_slice(&draw).reshape([2, 1]));
        let numbers = ReplayedNumbers::new(draws.into()).rows(&[1]);
        let like = Tensor::zeros([1, 1], (Kind::Float, Device::Cpu));
        let draw = || numbers.draw(Distribution::Uniform, &like);
        assert_eq!(draw().expect("the first"), Tensor::from_slice(&[2.0f32]).reshape([1, 1]));
        assert_eq!(draw().expect("the second"), Tensor::from_slice(&[4.0f32]).reshape([1, 1]));
        assert!(draw().is_err(), "nothing is left");
        assert!(numbers.rows(&[0, 0]).draw(Distribution::Uniform, &like).is_err(), "two rows");
    }
}
