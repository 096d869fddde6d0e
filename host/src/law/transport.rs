//! The inf-Wasserstein distance between particles and data.
//!
//! `W_inf` is the smallest radius within which the mass of the data can be moved onto the particles.
//! With K particles per natural point, all of the same mass, it is the value of a bottleneck
//! assignment in which every point takes K particles. If every particle stays with its own point,
//! the farthest has moved by the largest own distance, so only pairs that are closer than this can
//! improve on it.

use crate::Result;
use crate::util::matching::largest_matching;
use plugin_api::{Norm, ThreatModel};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// The distance between particles and data.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Distance {
    /// The largest distance of a particle from its own natural point.
    pub own: f64,
    /// The inf-Wasserstein distance; at most `own`.
    pub w_infinity: f64,
    /// The number of pairs of a particle with a point of another that are closer than `own`. If there
    /// are none, `w_infinity` equals `own`. There are none if all particles are within epsilon of
    /// their points, and the points more than 2 epsilon apart (Assumption 3.1 of the paper).
    pub other_pairs: usize,
}

/// The inf-Wasserstein distance between particles `[N * K, ...]` and natural points `[N, ...]` (f32);
/// the particles of a point follow each other. The time grows with N² K.
///
/// # Errors
/// If there is too little memory.
pub fn distance(particles: &Tensor, natural: &Tensor, threat: &ThreatModel) -> Result<Distance> {
    let points = natural.size()[0];
    let per_point = particles.size()[0] / points.max(1);
    let own = threat.distance(particles, &natural.f_repeat_interleave_self_int(per_point, 0, None)?);
    let own: Vec<f64> = Vec::try_from(own.to_kind(Kind::Double))?;
    let largest = own.iter().copied().fold(0.0, f64::max);
    let others = closer_pairs(particles, natural, threat, largest)?;
    let other_pairs = others.len();
    let w_infinity = match other_pairs {
        0 => largest,
        _ => {
            let own = own.into_iter().enumerate();
            let own = own.map(|(particle, distance)| (particle, particle / per_point as usize, distance));
            let pairs: Vec<_> = own.chain(others).collect();
            // There is an assignment: each particle to its own point.
            bottleneck(points as usize, per_point as usize, &pairs).unwrap_or(largest)
        }
    };
    Ok(Distance { own: largest, w_infinity, other_pairs })
}

/// All pairs (particle, point of another particle, distance) that are closer than a radius.
fn closer_pairs(
    particles: &Tensor,
    natural: &Tensor,
    threat: &ThreatModel,
    radius: f64,
) -> Result<Vec<(usize, usize, f64)>> {
    /// Particles, and pairs, that are compared at a time: about 100 MB for MNIST.
    const AT_A_TIME: i64 = 256;
    const PAIRS_AT_A_TIME: i64 = 1 << 14;
    /// What rounding in f32 may add to a distance of means.
    const SLACK: f64 = 1e-5;
    let per_point = particles.size()[0] / natural.size()[0].max(1);
    // The distance of means over groups of pixels is at most that of the images: most pairs are told
    // apart by it at a small part of the cost.
    let (means_of_natural, weight) = means(natural, threat.norm);
    let power = match threat.norm {
        Norm::Linf => f64::INFINITY,
        Norm::L2 => 2.0,
        Norm::L1 => 1.0,
    };
    let mut pairs = Vec::new();
    let mut first = 0;
    for block in particles.split(AT_A_TIME, 0) {
        // Mode 2 computes differences, whose rounding is small where distances are.
        let means = means(&block, threat.norm).0;
        let distances = Tensor::f_cdist(&means, &means_of_natural, power, Some(2i64))? * weight;
        let near = distances.le(radius + SLACK * (1.0 + radius)).nonzero();
        for near in near.split(PAIRS_AT_A_TIME, 0) {
            let (rows, points) = (near.select(1, 0), near.select(1, 1));
            let exact = threat.distance(&block.index_select(0, &rows), &natural.index_select(0, &points));
            let exact: Vec<f64> = Vec::try_from(exact.to_kind(Kind::Double))?;
            let [rows, points] = [rows, points].map(Vec::<i64>::try_from);
            let found = rows?.into_iter().zip(points?).zip(exact);
            let found = found.map(|((row, point), distance)| (first + row, point, distance));
            let closer = found
                .filter(|(particle, point, distance)| *distance < radius && particle / per_point != *point);
            pairs.extend(
                closer.map(|(particle, point, distance)| (particle as usize, point as usize, distance)),
            );
        }
        first += block.size()[0];
    }
    Ok(pairs)
}

/// Means over groups of neighbouring pixels, `[N, groups]`, and what their distance is multiplied by
/// to be a lower bound of the images' distance.
fn means(images: &Tensor, norm: Norm) -> (Tensor, f64) {
    const MOST_GROUPS: i64 = 64;
    let rows = images.flatten(1, -1);
    let size = (rows.size()[1] as u64).div_ceil(MOST_GROUPS as u64).max(1) as i64;
    let groups = rows.size()[1] / size;
    let means = rows.narrow(1, 0, groups * size).reshape([-1, groups, size]).mean_dim(
        [2i64].as_slice(),
        false,
        Kind::Float,
    );
    match norm {
        Norm::Linf => (means, 1.0),
        Norm::L2 => (means, (size as f64).sqrt()),
        Norm::L1 => (means, size as f64),
    }
}

/// The bottleneck assignment: the smallest radius such that every particle is assigned to a point
/// within the radius, and every point to at most `capacity` particles.
///
/// `pairs` are the candidates (particle, point, distance); there are `points * capacity` particles.
/// None if no assignment along these pairs exists. The radius is found by binary search over the
/// distances, with a maximum matching at each try.
pub fn bottleneck(points: usize, capacity: usize, pairs: &[(usize, usize, f64)]) -> Option<f64> {
    let particles = points * capacity;
    let mut radii: Vec<f64> = pairs.iter().map(|(_, _, distance)| *distance).collect();
    radii.sort_by(f64::total_cmp);
    radii.dedup();
    let mut candidates = vec![Vec::new(); particles];
    for (particle, point, distance) in pairs {
        candidates[*particle].push((*distance, *point));
    }
    // A matching finds more at its first try if the nearest point comes first.
    candidates.iter_mut().for_each(|list| list.sort_by(|(a, _), (b, _)| a.total_cmp(b)));
    let suffices = |radius: &f64| {
        let places_within = |list: &Vec<(f64, usize)>| {
            let points = list.iter().take_while(|(distance, _)| distance <= radius).map(|(_, point)| *point);
            points.flat_map(|point| (point * capacity) as u32..((point + 1) * capacity) as u32).collect()
        };
        let places: Vec<Vec<u32>> = candidates.iter().map(places_within).collect();
        places.iter().all(|places| !places.is_empty()) && largest_matching(&places, particles) == particles
    };
    let smallest = radii.partition_point(|radius| !suffices(radius));
    match particles {
        0 => Some(0.0),
        _ => radii.get(smallest).copied(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chacha20::ChaCha8Rng;
    use chacha20::rand_core::{Rng, SeedableRng};

    const LINF: ThreatModel = ThreatModel { norm: Norm::Linf, epsilon: 0.3, domain: (0.0, 1.0) };
    const L2: ThreatModel = ThreatModel { norm: Norm::L2, epsilon: 0.3, domain: (0.0, 1.0) };

    fn uniform(generator: &mut ChaCha8Rng) -> f64 {
        (generator.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// The smallest largest distance over all assignments, particle by particle.
    fn brute_force(distances: &[Vec<f64>], room: &mut [usize], particle: usize) -> f64 {
        if particle == distances.len() {
            return 0.0;
        }
        let mut best = f64::INFINITY;
        for point in 0..room.len() {
            if room[point] > 0 {
                room[point] -= 1;
                let rest = brute_force(distances, room, particle + 1);
                best = best.min(rest.max(distances[particle][point]));
                room[point] += 1;
            }
        }
        best
    }

    #[test]
    fn the_bottleneck_is_that_of_all_permutations() {
        let mut generator = ChaCha8Rng::seed_from_u64(1);
        let mut without = 0;
        for trial in 0..400 {
            let (points, capacity) = [(1, 1), (2, 1), (4, 1), (6, 1), (7, 1), (2, 3), (3, 2)][trial % 7];
            // In every other trial, some pairs are no candidates.
            let is_candidate = |share: f64| trial % 2 == 0 || share < 0.5;
            let mut row = || -> Vec<f64> {
                let distance = |_| {
                    if is_candidate(uniform(&mut generator)) {
                        // Equal distances occur.
                        (uniform(&mut generator) * 20.0).floor() / 20.0
                    } else {
                        f64::INFINITY
                    }
                };
                (0..points).map(distance).collect()
            };
            let distances: Vec<Vec<f64>> = (0..points * capacity).map(|_| row()).collect();
            let pairs: Vec<_> = distances
                .iter()
                .enumerate()
                .flat_map(|(particle, row)| {
                    row.iter().enumerate().map(move |(point, distance)| (particle, point, *distance))
                })
                .filter(|(_, _, distance)| distance.is_finite())
                .collect();
            let expected = brute_force(&distances, &mut vec![capacity; points], 0);
            let found = bottleneck(points, capacity, &pairs);
            assert_eq!(found, Some(expected).filter(|radius| radius.is_finite()), "{distances:?}");
            without += usize::from(found.is_none());
        }
        assert!((10..200).contains(&without), "{without} trials without an assignment");
    }

    fn images(pixels: &[f32], width: i64) -> Tensor {
        Tensor::from_slice(pixels).reshape([-1, 1, 1, width])
    }

    #[test]
    fn particles_that_stay_have_the_distance_of_the_farthest() {
        let natural = images(&[0.0, 0.0, 0.875, 0.875], 2);
        let particles = images(&[0.25, 0.0, 0.0, 0.125, 0.875, 0.75, 0.875, 0.875], 2);
        for threat in [LINF, L2] {
            let found = distance(&particles, &natural, &threat).expect("a distance");
            assert_eq!(found, Distance { own: 0.25, w_infinity: 0.25, other_pairs: 0 });
            let found = distance(&natural, &natural, &threat).expect("a distance");
            assert_eq!(found, Distance { own: 0.0, w_infinity: 0.0, other_pairs: 0 });
        }
    }

    #[test]
    fn exchanged_particles_are_assigned_to_the_points_that_they_are_at() {
        // The points are nearer to each other than 2 epsilon, and each particle is at the other's.
        let natural = images(&[0.25, 0.25, 0.5, 0.25, 1.0, 1.0], 2);
        let particles = images(&[0.5, 0.1875, 0.25, 0.25, 1.0, 0.875], 2);
        for threat in [LINF, L2] {
            let found = distance(&particles, &natural, &threat).expect("a distance");
            assert!((found.own - 0.25).abs() < 0.01, "{found:?}");
            assert_eq!((found.w_infinity, found.other_pairs), (0.125, 2));
        }
    }

    #[test]
    fn the_distance_of_images_is_that_of_all_pairs() {
        // 130 pixels are compared by means of three at first, and the last is in no group. Points
        // come in pairs, near enough for exchanges.
        let mut generator = ChaCha8Rng::seed_from_u64(2);
        let mut exchanged = 0;
        for (threat, capacity) in [(LINF, 1), (LINF, 2), (L2, 1), (L2, 2)] {
            for _ in 0..10 {
                let scale = if threat.norm == Norm::Linf { 1.0 } else { 0.1 };
                let mut noise = |count: usize, scale: f64| -> Tensor {
                    let values: Vec<f32> =
                        (0..count).map(|_| ((uniform(&mut generator) - 0.5) * scale) as f32).collect();
                    images(&values, 130)
                };
                let centres = noise(2 * 130, 2.0).repeat_interleave_self_int(2, 0, None);
                let natural = &centres + noise(4 * 130, 0.2 * scale);
                let particles = centres.repeat_interleave_self_int(capacity as i64, 0, None)
                    + noise(4 * capacity * 130, 0.2 * scale);
                let row = |particle: i64| {
                    let one = particles.narrow(0, particle, 1).expand_as(&natural);
                    Vec::<f32>::try_from(threat.distance(&one, &natural)).expect("distances")
                };
                let all: Vec<Vec<f64>> = (0..4 * capacity as i64)
                    .map(|particle| row(particle).into_iter().map(f64::from).collect())
                    .collect();
                let expected = brute_force(&all, &mut [capacity; 4], 0);
                let found = distance(&particles, &natural, &threat).expect("a distance");
                assert!((found.w_infinity - expected).abs() < 1e-6, "{found:?}, expected {expected}");
                exchanged += usize::from(found.w_infinity < found.own);
            }
        }
        assert!(exchanged > 5, "{exchanged} instances with an exchange");
    }
}
