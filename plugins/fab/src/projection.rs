//! Projection onto a hyperplane inside the domain (Croce and Hein 2020, Sect. 2).
//!
//! The smallest change in the norm that reaches `<normal, z> = offset` moves every coordinate
//! towards the hyperplane, each at its own pace: in linf all paces are equal; in l2 they are
//! proportional to the normal's coordinates. A coordinate stops at the domain's bound. The unknown
//! is the time of the movement. After time t the point is nearer to the hyperplane by
//!
//! ```text
//! sum over i of |normal_i| * min(t * pace_i, reach_i)
//! ```
//!
//! where `reach_i` is the distance to the bound. This function is concave and piecewise linear in
//! t, so Newton's method from t = 0 rises to the solution and never passes it. It is exact as soon
//! as no further coordinate stops. It takes a few steps and needs no sorting.

use crate::NORMS;
use crate::row_sums;
use plugin_api::tch::Tensor;
use plugin_api::{Norm, Result, ThreatModel};

/// In l2, coordinates whose normal is not larger than this do not move, as in the reference.
const SMALLEST_L2_NORMAL: f64 = 1e-8;

/// Smallest divisor. If no coordinate moves any more, the time may be large but must stay finite in
/// f32.
const SMALLEST_SPEED: f64 = 1e-20;

/// Larger than any pixel, finite in f32.
const FAR: f64 = 1e30;

/// The smallest changes `[S, M, D]`, in the threat model's norm, that move `points` onto the
/// hyperplanes with these `normals` (`[M, D]`), inside the domain. `points` is `[S, M, D]`: S
/// points for each of M hyperplanes. `residuals` (`[S, M, 1]`) is `<normal, point> - offset`.
///
/// If the hyperplane lies outside the domain, the change goes as near to it as possible: every
/// coordinate with a normal goes to its bound.
///
/// # Errors
/// If the norm is another one.
pub fn changes_to_hyperplanes(
    points: &Tensor,
    residuals: &Tensor,
    normals: &Tensor,
    threat: &ThreatModel,
) -> Result<Tensor> {
    let (normals, paces) = match threat.norm {
        Norm::Linf => (normals.shallow_clone(), Tensor::ones([1], (points.kind(), points.device()))),
        Norm::L2 => {
            let normals = normals * normals.abs().gt(SMALLEST_L2_NORMAL);
            let paces = normals.abs();
            (normals, paces)
        }
        Norm::L1 => return Err(Norm::L1.unexpected(&NORMS)),
    };
    // Arithmetic instead of `where`, which libtorch does not vectorise on a CPU.
    let directions = residuals.sign().neg() * normals.sign();
    let bounds = (&directions * FAR).clamp_(threat.domain.0, threat.domain.1);
    let reaches = (bounds - points) * &directions;
    let times = times_to_hyperplanes(&residuals.abs(), &normals.abs(), &paces, &reaches);
    Ok(reaches.minimum(&(times * paces)) * directions)
}

/// The times (`[S, M, 1]`) in which coordinates with these `paces` cover the `distances`
/// (`[S, M, 1]`). No coordinate moves further than its reach (`[S, M, D]`).
fn times_to_hyperplanes(distances: &Tensor, sizes: &Tensor, paces: &Tensor, reaches: &Tensor) -> Tensor {
    let speeds = sizes * paces;
    let gains = reaches * sizes;
    let mut times = distances / row_sums(&speeds).clamp_min(SMALLEST_SPEED);
    let (moving, stopped) = (reaches.empty_like(), reaches.empty_like());
    loop {
        let limits = &times * paces;
        let _ = reaches.gt_tensor_out(&moving, &limits);
        let _ = reaches.le_tensor_out(&stopped, &limits);
        // The two sums are computed separately: near the hyperplane, the difference of larger sums
        // would be lost to rounding.
        let speed = row_sums(&(&speeds * &moving)).clamp_min_(SMALLEST_SPEED);
        let next = (distances - row_sums(&(&gains * &stopped))) / speed;
        // The loop ends: times only grow, and each iteration stops further coordinates.
        if next.gt_tensor(&times).any().int64_value(&[]) == 0 {
            return times;
        }
        times = times.maximum(&next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::tch::{self, Device, Kind};

    const UNIT: (f64, f64) = (0.0, 1.0);

    /// The change of one point.
    fn change(norm: Norm, domain: (f64, f64), point: &[f64], residual: f64, normal: &[f64]) -> Vec<f64> {
        let rows = |values: &[f64], rows: &[i64]| Tensor::from_slice(values).reshape(rows);
        let width = point.len() as i64;
        let changes = changes_to_hyperplanes(
            &rows(point, &[1, 1, width]),
            &rows(&[residual], &[1, 1, 1]),
            &rows(normal, &[1, width]),
            &ThreatModel { norm, epsilon: 0.1, domain },
        );
        Vec::try_from(changes.expect("a norm").flatten(0, -1)).expect("f64")
    }

    #[track_caller]
    fn assert_close(got: &[f64], expected: &[f64]) {
        let close = got.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-12);
        assert!(close && got.len() == expected.len(), "got {got:?}, expected {expected:?}");
    }

    #[test]
    fn inside_the_domain_the_change_is_the_projection_onto_the_hyperplane() {
        // 3 x - y = 2 from (0.5, 0.5), where 3 x - y = 1. In linf both coordinates change by 1 / (3
        // + 1); in l2 the point moves by 1 / (9 + 1) of the normal.
        let (point, normal) = ([0.5, 0.5], [3.0, -1.0]);
        assert_close(&change(Norm::Linf, UNIT, &point, -1.0, &normal), &[0.25, -0.25]);
        assert_close(&change(Norm::L2, UNIT, &point, -1.0, &normal), &[0.3, -0.1]);
        // And from the other side.
        assert_close(&change(Norm::Linf, UNIT, &point, 1.0, &normal), &[-0.25, 0.25]);
        assert_close(&change(Norm::L2, UNIT, &point, 1.0, &normal), &[-0.3, 0.1]);
    }

    #[test]
    fn other_coordinates_compensate_for_one_that_reaches_its_bound() {
        // The distance is 0.8. The first coordinate can change by 0.1, which is less than 0.8 / (2
        // + 1 + 3) and 2 * 0.8 / (4 + 1 + 9). It contributes 0.2; the others contribute 0.6.
        let (point, normal) = ([0.9, 0.5, 0.5], [2.0, 1.0, 3.0]);
        assert_close(&change(Norm::Linf, UNIT, &point, -0.8, &normal), &[0.1, 0.15, 0.15]);
        assert_close(&change(Norm::L2, UNIT, &point, -0.8, &normal), &[0.1, 0.06, 0.18]);
        // A coordinate that reaches its bound exactly at the hyperplane.
        assert_close(&change(Norm::Linf, UNIT, &[0.75, 0.0], -0.5, &[1.0, 1.0]), &[0.25, 0.25]);
        assert_close(&change(Norm::L2, UNIT, &[0.75, 0.0], -0.5, &[1.0, 1.0]), &[0.25, 0.25]);
        // In a wider domain: 0.8 / 6 per coordinate in linf, 0.8 / 14 of the normal in l2.
        let wide = (-1.0, 2.0);
        assert_close(&change(Norm::Linf, wide, &point, -0.8, &normal), &[0.8 / 6.0; 3]);
        assert_close(&change(Norm::L2, wide, &point, -0.8, &normal), &[1.6 / 14.0, 0.8 / 14.0, 2.4 / 14.0]);
    }

    #[test]
    fn if_the_hyperplane_is_out_of_reach_coordinates_go_to_their_bounds() {
        // The distance is 3; the coordinates can contribute 0.5 * 1 + 0.25 * 2.
        for norm in [Norm::Linf, Norm::L2] {
            let got = change(norm, UNIT, &[0.5, 0.25, 0.5], -3.0, &[1.0, -2.0, 0.0]);
            assert_close(&got, &[0.5, -0.25, 0.0]);
            let got = change(norm, (-1.0, 2.0), &[0.5, 0.25, 0.5], 9.0, &[1.0, -2.0, 0.0]);
            assert_close(&got, &[-1.5, 1.75, 0.0]);
            // The hyperplane is reached exactly at the bounds.
            let got = change(norm, UNIT, &[0.5, 0.25, 0.5], -1.0, &[1.0, -2.0, 0.0]);
            assert_close(&got, &[0.5, -0.25, 0.0]);
        }
    }

    #[test]
    fn a_point_on_the_hyperplane_or_with_a_zero_normal_does_not_move() {
        for norm in [Norm::Linf, Norm::L2] {
            assert_eq!(change(norm, UNIT, &[0.5, 1.0], 0.0, &[1.0, 2.0]), [0.0, 0.0]);
            assert_eq!(change(norm, UNIT, &[0.5, 1.0], 2.0, &[0.0, 0.0]), [0.0, 0.0]);
        }
        // In l2 a normal of 1e-8 counts as none.
        assert_close(&change(Norm::L2, UNIT, &[0.5, 0.5], 0.1, &[1.0, 1e-8]), &[-0.1, 0.0]);
        assert_close(&change(Norm::Linf, UNIT, &[0.5, 0.5], 0.1, &[1.0, 1e-8]), &[-0.1 / (1.0 + 1e-8); 2]);
    }

    #[test]
    fn changes_of_many_coordinates_agree_with_bisection() {
        tch::manual_seed(0);
        let options = (Kind::Double, Device::Cpu);
        let points = Tensor::rand([2, 50, 200], options);
        // A third of the coordinates start at a bound.
        let points = (points * 1.5 - 0.25).clamp(0.0, 1.0);
        let normals = Tensor::randn([50, 200], options);
        // Distances from near zero to out of reach.
        let gains = row_sums(&(normals.abs() * 0.5));
        let residuals = Tensor::randn([2, 50, 1], options) * gains;
        for norm in [Norm::Linf, Norm::L2] {
            let threat = ThreatModel { norm, epsilon: 0.1, domain: UNIT };
            let got = changes_to_hyperplanes(&points, &residuals, &normals, &threat).expect("a norm");

            let paces = if norm == Norm::Linf { normals.sign() } else { normals.shallow_clone() };
            let directions = -residuals.sign() * paces;
            let change = |times: &Tensor| (&points + &directions * times).clamp(0.0, 1.0) - &points;
            let (mut low, mut high) = (residuals.zeros_like(), residuals.ones_like() * 1e6);
            for _ in 0..100 {
                let middle = (&low + &high) / 2.0;
                let left = &residuals + row_sums(&(change(&middle) * &normals));
                let short = (left * &residuals).gt(0.0);
                low = middle.where_self(&short, &low);
                high = high.where_self(&short, &middle);
            }
            let apart = (got - change(&high)).abs().max().double_value(&[]);
            assert!(apart < 1e-9, "{norm:?}: {apart} apart");
        }
    }

    #[test]
    fn near_the_hyperplane_f32_agrees_with_f64() {
        tch::manual_seed(0);
        let options = (Kind::Float, Device::Cpu);
        let points = (Tensor::rand([1, 50, 784], options) * 1.5 - 0.25).clamp(0.0, 1.0);
        let normals = Tensor::randn([50, 784], options);
        let residuals = row_sums(&normals.abs()) * 1e-4;
        for norm in [Norm::Linf, Norm::L2] {
            let threat = ThreatModel { norm, epsilon: 0.1, domain: UNIT };
            let changes = |kind: Kind| {
                let [points, residuals, normals] =
                    [&points, &residuals, &normals].map(|tensor| tensor.to_kind(kind));
                changes_to_hyperplanes(&points, &residuals, &normals, &threat)
                    .expect("a norm")
                    .to_kind(Kind::Double)
            };
            let exact = changes(Kind::Double);
            let apart = ((changes(Kind::Float) - &exact).abs().max() / exact.abs().max()).double_value(&[]);
            assert!(apart < 1e-5, "{norm:?}: {apart} apart, relative");
        }
    }
}
