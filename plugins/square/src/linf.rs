//! Proposals in an linf ball: squares of one colour, on the surface of the ball.

use crate::{Ball, Query, rows_where, signs};
use plugin_api::tch::Tensor;
use plugin_api::{Random, Result, ThreatModel};

/// The linf ball.
pub struct Linf;

impl Ball for Linf {
    /// Vertical stripes: a sign for each channel and column.
    fn start(&self, natural: &Tensor, threat: &ThreatModel, random: &Random) -> Result<Tensor> {
        let stripes = signs(&random.uniform(&natural.narrow(2, 0, 1))?);
        Ok(at_surface(natural, &stripes, threat))
    }

    /// Numbers for the place of the square, and a sign per channel.
    fn numbers_per_query(&self, channels: i64) -> i64 {
        2 + channels
    }

    fn side(&self, scheduled: i64) -> i64 {
        scheduled.max(1)
    }

    /// The reference adds 2 epsilon times the sign and cuts the result to ball and domain. Every
    /// pixel is already at epsilon from its natural value, as far as the domain allows. So the
    /// result is epsilon times the sign, which is computed directly here. An unchanged pixel is
    /// then equal to the bit, and a point without a changed pixel can be left out.
    fn propose(&self, query: &Query) -> (Tensor, Tensor) {
        let Query { natural, current, numbers, threat, .. } = query;
        let square = query.square(0);
        let signs = signs(&numbers.narrow(1, 2, natural.size()[1])).unsqueeze(2);
        let colours = at_surface(&natural.flatten(2, 3).gather(2, &square, false), &signs, threat);
        let before = current.flatten(2, 3).gather(2, &square, false);

        let changed = rows_where(&colours.ne_tensor(&before).flatten(1, 2).any_dim(1, false));
        let proposed = current.index_select(0, &changed);
        let [square, colours] = [square, colours].map(|pixels| pixels.index_select(0, &changed));
        let _ = proposed.flatten(2, 3).scatter_(2, &square, &colours);
        (changed, proposed)
    }
}

/// The pixels at distance epsilon from the natural ones, in the direction of the signs, cut to the
/// domain.
fn at_surface(natural: &Tensor, signs: &Tensor, threat: &ThreatModel) -> Tensor {
    (natural + signs * threat.epsilon).clamp_(threat.domain.0, threat.domain.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::Norm;
    use plugin_api::testing::FixedNumbers;

    const THREAT: ThreatModel = ThreatModel { norm: Norm::Linf, epsilon: 0.25, domain: (0.0, 1.0) };

    fn tensor(values: &[f64], shape: &[i64]) -> Tensor {
        Tensor::from_slice(values).reshape(shape)
    }

    #[test]
    fn the_start_is_stripes_of_each_channel_cut_to_the_domain() {
        // Two channels of two rows and three columns; a sign for each channel and column.
        let natural = tensor(&[0.5, 0.5, 0.5, 0.1, 0.9, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.9], &[1, 2, 2, 3]);
        let numbers = FixedNumbers(vec![0.0, 0.5, 0.49, 0.9, 0.1, 0.7]);
        let start = Linf.start(&natural, &THREAT, &Random::new(&numbers)).expect("a start");
        let expected = [0.25, 0.75, 0.25, 0.0, 1.0, 0.25, 0.75, 0.25, 0.75, 0.75, 0.25, 1.0];
        assert_eq!(start, tensor(&expected, &[1, 2, 2, 3]));
    }

    #[test]
    fn a_proposal_is_a_square_of_one_colour_for_points_that_it_changes() {
        // Two points of 3x4 pixels, squares of side 2: 0.9 * (3 - 2) is row 0, 0.5 * (4 - 2) is
        // column 1.
        let natural = tensor(&[0.5; 24], &[2, 1, 3, 4]);
        let current = &natural + 0.25;
        let numbers = tensor(&[0.9, 0.5, 0.3, 0.9, 0.5, 0.8], &[2, 3]);
        let query =
            Query { natural: &natural, current: &current, numbers: &numbers, side: 2, threat: &THREAT };
        let (changed, proposed) = Linf.propose(&query);
        // The second point's square already has this colour.
        assert_eq!(changed, Tensor::from_slice(&[0i64]));
        let (up, down) = (0.75, 0.25);
        let expected = [up, down, down, up, up, down, down, up, up, up, up, up];
        assert_eq!(proposed, tensor(&expected, &[1, 1, 3, 4]));
    }
}
