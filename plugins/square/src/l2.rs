//! Proposals in an l2 ball. A proposal puts a bump of change into one square and sets the change in
//! another square to zero. The bump's mass is that of both squares' old change, plus a share of the
//! mass that the ball leaves unused.

use crate::{Ball, Query, signs};
use plugin_api::tch::{Kind, Tensor};
use plugin_api::{Random, Result, ThreatModel};

/// The l2 ball.
pub struct L2;

/// Added to lengths before a division, as in the reference.
const TINY: f64 = 1e-12;

impl Ball for L2 {
    /// A grid of bumps, five or more from top to bottom, each upright or transposed, with a sign
    /// for each channel.
    fn start(&self, natural: &Tensor, threat: &ThreatModel, random: &Random) -> Result<Tensor> {
        let (points, channels, height, width) = natural.size4()?;
        let side = (height / 5).max(1);
        let first = ((height - 5 * side) / 2).max(0);
        let (down, across) = (height / side, width / side);

        let shape = [points, down * across, 1 + channels];
        let numbers = random.uniform(&Tensor::empty(shape, (natural.kind(), natural.device())))?;
        let change = natural.zeros_like();
        for tile in 0..down * across {
            let (top, left) = (first + tile / across * side, first + tile % across * side);
            let numbers = numbers.select(1, tile);
            let bumps = bumps(side, &numbers.narrow(1, 0, 1)).reshape([-1, 1, side, side]);
            let bumps = bumps * signs(&numbers.narrow(1, 1, channels)).reshape([-1, channels, 1, 1]);
            let mut place = change.slice(2, top, top + side, 1).slice(3, left, left + side, 1);
            // The last bumps of a row or column may extend beyond the edge.
            place.copy_(&bumps.narrow(2, 0, place.size()[2]).narrow(3, 0, place.size()[3]));
        }
        Ok(at_surface(natural, change.flatten(2, 3), threat))
    }

    /// Numbers for the places of the two squares, the orientation of the bump, and a sign per
    /// channel.
    fn numbers_per_query(&self, channels: i64) -> i64 {
        5 + channels
    }

    fn side(&self, scheduled: i64) -> i64 {
        scheduled.max(3) | 1
    }

    /// The change in the first square becomes the sum of a bump and the direction of its old
    /// change. The change in the second square becomes zero.
    fn propose(&self, query: &Query) -> (Tensor, Tensor) {
        let Query { natural, current, numbers, side, threat } = query;
        let (points, channels) = (natural.size()[0], natural.size()[1]);
        let (first, second) = (query.square(0), query.square(2));
        let mut change = (*current - *natural).flatten(2, 3);

        // `unused` is a difference of nearly equal numbers, so rounding matters: the root is
        // squared again, as in the reference.
        let used = sum_of_squares(&change, &[1, 2]).sqrt().square();
        let unused = (threat.epsilon.powi(2) - used).clamp_min(0.0);
        let old = change.gather(2, &first, false);
        let _ = change.scatter_value_(2, &first, 0.0);
        let given_up = sum_of_squares(&change.gather(2, &second, false), &[2]);
        let _ = change.scatter_value_(2, &second, 0.0);
        let mass = (unused / channels as f64 + sum_of_squares(&old, &[2]) + given_up).sqrt();

        let bumps =
            bumps(*side, &numbers.narrow(1, 4, 1)) * signs(&numbers.narrow(1, 5, channels)).unsqueeze(2);
        let new = unit(bumps + unit(old, &[2]), &[2]) * mass;
        let _ = change.scatter_(2, &first, &new);
        let all = Tensor::arange(points, (Kind::Int64, natural.device()));
        (all, at_surface(natural, change, threat))
    }
}

/// Natural examples moved by epsilon along `change` (`[M, C, H * W]`), cut to the domain.
fn at_surface(natural: &Tensor, change: Tensor, threat: &ThreatModel) -> Tensor {
    let mut moved = unit(change, &[1, 2]).view_as(natural);
    moved *= threat.epsilon;
    moved += natural;
    moved.clamp_(threat.domain.0, threat.domain.1)
}

/// A bump for each point, transposed where its number (`[M, 1]`) is above one half:
/// `[M, 1, side * side]`.
fn bumps(side: i64, numbers: &Tensor) -> Tensor {
    let upright = bump(side).to_kind(numbers.kind()).to_device(numbers.device());
    let transposed = upright.tr().reshape([1, 1, -1]);
    transposed.where_self(&numbers.gt(0.5).unsqueeze(2), &upright.reshape([1, 1, -1]))
}

/// Two hills, a positive one above a negative one, together of length 1: `[side, side]`, f64.
fn bump(side: i64) -> Tensor {
    let normalised = |change: Tensor| &change / sum_of_squares(&change, &[0, 1]).sqrt();
    let up = normalised(hill(side / 2, side));
    let down = normalised(hill(side - side / 2, side));
    normalised(Tensor::cat(&[up, -down], 0))
}

/// A hill, `[height, width]`, f64. The pixels of the k-th ring around its centre have the value of
/// the sum of 1 / j^2 for j from k to the number of rings.
fn hill(height: i64, width: i64) -> Tensor {
    let rings = height.max(width) / 2 + 1;
    let heights: Vec<f64> = (0..height * width)
        .map(|pixel| {
            let (row, column) = (pixel / width, pixel % width);
            let ring = (row - height / 2).abs().max((column - width / 2).abs()) + 1;
            (ring..=rings).map(|ring| (ring as f64).powi(-2)).sum()
        })
        .collect();
    Tensor::from_slice(&heights).reshape([height, width])
}

/// `change` divided by its length over these dimensions.
fn unit(mut change: Tensor, dimensions: &[i64]) -> Tensor {
    change /= sum_of_squares(&change, dimensions).sqrt() + TINY;
    change
}

fn sum_of_squares(change: &Tensor, dimensions: &[i64]) -> Tensor {
    change.square().sum_dim_intlist(dimensions, true, change.kind())
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::Norm;
    use plugin_api::tch::Device;
    use plugin_api::testing::FixedNumbers;

    const THREAT: ThreatModel = ThreatModel { norm: Norm::L2, epsilon: 1.0, domain: (-1.0, 1.0) };

    fn zeros(shape: &[i64]) -> Tensor {
        Tensor::zeros(shape, (Kind::Double, Device::Cpu))
    }

    #[track_caller]
    fn assert_close(got: &Tensor, expected: &Tensor) {
        assert_eq!(got.size(), expected.size());
        let distance = (got - expected).abs().max().double_value(&[]);
        assert!(distance < 1e-11, "got {got:?}, expected {expected:?}, {distance:.3e} apart");
    }

    /// The bump of side 3, computed by hand: rings of 1 + 1/4 and 1/4. The upper row and the two
    /// lower rows have length 1 each, and are then scaled to length 1 together.
    fn bump_of_three() -> Tensor {
        let (upper, lower) = ((2.0 * 27.0f64 / 16.0).sqrt(), (2.0 * 30.0f64 / 16.0).sqrt());
        let rows = [
            [0.25 / upper, 1.25 / upper, 0.25 / upper],
            [-0.25 / lower; 3],
            [-0.25 / lower, -1.25 / lower, -0.25 / lower],
        ];
        Tensor::from_slice(rows.as_flattened()).reshape([3, 3])
    }

    #[test]
    fn a_bump_is_a_positive_and_a_negative_hill() {
        assert_close(&bump(3), &bump_of_three());
        assert_close(&bump(1), &Tensor::from_slice(&[-1.0]).reshape([1, 1]));
    }

    #[test]
    fn the_start_is_a_grid_of_bumps_of_length_epsilon() {
        // Images of 5x5 pixels have bumps of one pixel, which is -1; every second bump has the sign
        // -1.
        let natural = zeros(&[1, 1, 5, 5]);
        let numbers = FixedNumbers(vec![0.0, 0.9, 0.0, 0.1]);
        let start = L2.start(&natural, &THREAT, &Random::new(&numbers)).expect("a start");
        let signs: Vec<f64> = (0..25).map(|pixel| if pixel % 2 == 0 { -0.2 } else { 0.2 }).collect();
        assert_close(&start, &Tensor::from_slice(&signs).reshape([1, 1, 5, 5]));
    }

    #[test]
    fn bumps_that_extend_beyond_the_edge_are_cut() {
        // Height 12: bumps of side 2 from row 1 on; the sixth row and column of bumps are cut.
        let natural = zeros(&[1, 3, 12, 12]);
        let numbers = FixedNumbers(vec![0.1, 0.9, 0.7]);
        let start = L2.start(&natural, &THREAT, &Random::new(&numbers)).expect("a start");
        let length = sum_of_squares(&start, &[1, 2, 3]).sqrt().double_value(&[0, 0, 0, 0]);
        assert!((length - 1.0).abs() < 1e-11, "{length}");
        let touched = start.ne(0.0).sum(Kind::Int64).int64_value(&[]);
        assert_eq!(touched, 3 * 11 * 11, "all but the first row and column");
    }

    #[test]
    fn a_proposal_moves_mass_from_the_second_square_to_the_first() {
        // 3x7 pixels, squares of side 3 at columns 0 and 0.75 * (7 - 3) = 3. The old change has
        // length 1: 0.6 in the second square, 0.8 outside both squares.
        let natural = zeros(&[1, 1, 3, 7]);
        let pixel = |row: i64, column: i64, value: f64| {
            let image = natural.copy();
            let _ = image.narrow(2, row, 1).narrow(3, column, 1).fill_(value);
            image
        };
        let kept = pixel(2, 6, 0.8);
        let current = pixel(1, 4, 0.6) + &kept;
        for (lies, bump) in [(0.5, bump_of_three()), (0.6, bump_of_three().tr())] {
            // The last number makes the sign -1.
            let numbers = Tensor::from_slice(&[0.3, 0.0, 0.3, 0.75, lies, 0.1]).reshape([1, 6]);
            let query =
                Query { natural: &natural, current: &current, numbers: &numbers, side: 3, threat: &THREAT };
            let (changed, proposed) = L2.propose(&query);
            assert_eq!(changed, Tensor::from_slice(&[0i64]));
            let expected = kept.copy();
            expected.narrow(3, 0, 3).copy_(&(bump * -0.6));
            assert_close(&proposed, &expected);
        }
    }

    #[test]
    fn a_bump_has_the_unused_mass_of_the_ball_and_the_direction_of_the_old_change() {
        // One square covers the whole image. The old change is 0.5 of the upright bump. The
        // proposed bump is the same, so the direction does not change and the length becomes
        // epsilon.
        let natural = zeros(&[1, 1, 3, 3]);
        let current = bump_of_three().reshape([1, 1, 3, 3]) * 0.5;
        let numbers = Tensor::from_slice(&[0.3, 0.0, 0.3, 0.7, 0.2, 0.9]).reshape([1, 6]);
        let query =
            Query { natural: &natural, current: &current, numbers: &numbers, side: 3, threat: &THREAT };
        let (_, proposed) = L2.propose(&query);
        assert_close(&proposed, &bump_of_three().reshape([1, 1, 3, 3]));
    }
}
