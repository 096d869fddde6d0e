//! Where particles lie in the ball cut to the domain.
//!
//! An exact draw from a density lies on no face of the box, with probability 1: a share of
//! coordinates on faces shows that a sampler projects, not that the law is adversarial.

use crate::Result;
use plugin_api::{Norm, ThreatModel};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// The number of bars of a histogram over 0 to epsilon.
pub const BARS: usize = 20;

/// Where particles lie.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Places {
    /// The number of particles.
    pub particles: usize,
    /// The mean distance from the natural example, in the norm and unit of the threat model.
    pub mean: f64,
    /// The largest distance.
    pub largest: f64,
    /// The share of the particles by distance / epsilon, in [`BARS`] equal steps from 0 to 1; the
    /// last holds all beyond.
    pub distances: Vec<f64>,
    /// Where the coordinates lie; none for l2, whose ball has no faces.
    pub coordinates: Option<Coordinates>,
}

/// Where the coordinates of particles lie in the box of linf.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Coordinates {
    /// The share of the coordinates exactly on a face of the box.
    pub on_faces: f64,
    /// The share of the coordinates on a face of the domain that does not coincide with one of the
    /// ball; part of `on_faces`. A black pixel that never moved is one of them.
    pub on_domain: f64,
    /// The share of the coordinates in the interior.
    pub interior: f64,
    /// The share of the particles with all coordinates on faces.
    pub at_corners: f64,
    /// The share of the coordinates by |change| / epsilon, in [`BARS`] equal steps from 0 to 1; the
    /// last holds all beyond.
    pub changes: Vec<f64>,
}

/// How the store rounds changes from natural examples: two changes are one to it if the results are
/// equal.
pub type Rounding = Box<dyn Fn(&Tensor) -> Tensor>;

/// Counts over any number of batches.
pub struct Tally {
    threat: ThreatModel,
    rounding: Option<Rounding>,
    particles: usize,
    sum: f64,
    largest: f64,
    distances: Tensor,
    coordinates: f64,
    on_faces: f64,
    on_domain: f64,
    at_corners: f64,
    changes: Tensor,
}

impl Tally {
    /// No particles yet. `rounding` is that of the store which the particles come from; none if it is
    /// exact, or if they were never stored.
    pub fn new(threat: ThreatModel, rounding: Option<Rounding>) -> Self {
        let bars = || Tensor::zeros([BARS as i64], (Kind::Double, Device::Cpu));
        Self {
            threat,
            rounding,
            particles: 0,
            sum: 0.0,
            largest: 0.0,
            distances: bars(),
            coordinates: 0.0,
            on_faces: 0.0,
            on_domain: 0.0,
            at_corners: 0.0,
            changes: bars(),
        }
    }

    /// Counts particles, as the store loads them, around their natural examples: both `[N, C, H, W]`,
    /// f32, in units of the domain.
    ///
    /// A coordinate is on a face if it equals the smallest or largest allowed value in f32, as
    /// [`ThreatModel::project`] computes them. A store that rounds may not return that value: there, a
    /// coordinate is on a face if its change is to the store that of the face. This finds every
    /// coordinate that was on a face, and those nearer to it than the rounding: for a store of bytes,
    /// with steps of epsilon / 127, up to 1.2 % of the coordinates of uniform draws. What uniform
    /// draws have with the same rounding is the share that says nothing.
    ///
    /// # Errors
    /// If there is too little memory.
    pub fn add(&mut self, particles: &Tensor, natural: &Tensor) -> Result<()> {
        let epsilon = self.threat.epsilon.max(f64::MIN_POSITIVE);
        let count = particles.size()[0];
        if count == 0 {
            return Ok(());
        }
        let distances = self.threat.distance(particles, natural).to_kind(Kind::Double);
        self.particles += count as usize;
        self.sum += total(&distances);
        self.largest = self.largest.max(distances.max().double_value(&[]));
        self.distances += histogram(&(distances / epsilon));
        if self.threat.norm != Norm::Linf {
            return Ok(());
        }
        let change = particles.f_sub(natural)?;
        self.coordinates += change.numel() as f64;
        self.changes += histogram(&(change.abs().to_kind(Kind::Double) / epsilon));
        let [low, high] = [f64::NEG_INFINITY, f64::INFINITY]
            .map(|beyond| self.threat.project(&natural.full_like(beyond), natural));
        let is_at = |face: &Tensor| match &self.rounding {
            Some(rounding) => rounding(&change).eq_tensor(&rounding(&(face - natural))),
            None => particles.eq_tensor(face),
        };
        // Nearer to the natural example than the ball's face, by more than rounding.
        let is_of_domain = |face: &Tensor| (face - natural).abs().lt(epsilon - 1e-6 * (1.0 + epsilon));
        let [at_low, at_high] = [is_at(&low), is_at(&high)];
        let on_face = at_low.logical_or(&at_high);
        let on_domain =
            (at_low.logical_and(&is_of_domain(&low))).logical_or(&at_high.logical_and(&is_of_domain(&high)));
        self.on_faces += total(&on_face);
        self.on_domain += total(&on_domain);
        self.at_corners += total(&on_face.flatten(1, -1).all_dim(1, false));
        Ok(())
    }

    /// What was counted; none without particles.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn places(&self) -> Result<Option<Places>> {
        if self.particles == 0 {
            return Ok(None);
        }
        let particles = self.particles as f64;
        let coordinates = match self.threat.norm {
            Norm::L2 | Norm::L1 => None,
            Norm::Linf => Some(Coordinates {
                on_faces: self.on_faces / self.coordinates,
                on_domain: self.on_domain / self.coordinates,
                interior: 1.0 - self.on_faces / self.coordinates,
                at_corners: self.at_corners / particles,
                changes: Vec::try_from(&self.changes / self.coordinates)?,
            }),
        };
        Ok(Some(Places {
            particles: self.particles,
            mean: self.sum / particles,
            largest: self.largest,
            distances: Vec::try_from(&self.distances / particles)?,
            coordinates,
        }))
    }
}

fn total(values: &Tensor) -> f64 {
    values.sum(Kind::Double).double_value(&[])
}

/// The number of values in each of [`BARS`] equal steps from 0 to 1, on the CPU; the last holds all
/// beyond.
pub fn histogram(values: &Tensor) -> Tensor {
    let bar = (values.flatten(0, -1) * BARS as f64).floor().clamp(0.0, BARS as f64 - 1.0);
    bar.to_kind(Kind::Int64)
        .bincount::<&Tensor>(None, BARS as i64)
        .to_kind(Kind::Double)
        .to_device(Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINF: ThreatModel = ThreatModel { norm: Norm::Linf, epsilon: 0.25, domain: (0.0, 1.0) };

    fn rows(pixels: &[f32]) -> Tensor {
        Tensor::from_slice(pixels).reshape([-1, 1, 1, 4])
    }

    fn places(threat: ThreatModel, particles: &Tensor, natural: &Tensor) -> Places {
        let mut tally = Tally::new(threat, None);
        // In two batches, and one without particles.
        for (particles, natural) in particles.split(1, 0).iter().zip(natural.split(1, 0)) {
            tally.add(particles, &natural).expect("counted");
        }
        tally.add(&particles.narrow(0, 0, 0), &natural.narrow(0, 0, 0)).expect("counted");
        tally.places().expect("shares").expect("particles")
    }

    #[test]
    fn faces_are_those_of_the_ball_and_of_the_domain() {
        let natural = rows(&[0.5, 0.0, 0.9375, 0.5, 0.5, 0.0, 1.0, 0.5]);
        // The first: a face of the ball, one of the domain that never moved, one of the domain, the
        // interior. The second: all on faces, two of them of the domain.
        let particles = rows(&[0.75, 0.0, 1.0, 0.625, 0.25, 0.25, 1.0, 0.75]);
        let found = places(LINF, &particles, &natural);
        let coordinates = found.coordinates.expect("linf");
        assert_eq!((coordinates.on_faces, coordinates.interior), (7.0 / 8.0, 1.0 / 8.0));
        assert_eq!((coordinates.on_domain, coordinates.at_corners), (3.0 / 8.0, 0.5));
        // Changes in units of epsilon: 1, 0, 0.25, 0.5, and 1, 1, 0, 1.
        let mut changes = [0.0; BARS];
        for (bar, share) in [(0, 0.25), (5, 0.125), (10, 0.125), (19, 0.5)] {
            changes[bar] = share;
        }
        assert_eq!(coordinates.changes, changes);
        assert_eq!((found.particles, found.mean, found.largest), (2, 0.25, 0.25));
        assert_eq!(found.distances[BARS - 1], 1.0);
    }

    #[test]
    fn the_face_is_the_number_to_which_the_host_projects() {
        // In f32, 0.1 + 0.3 and 0.7 - 0.3 are no round numbers.
        let threat = ThreatModel { epsilon: 0.3, ..LINF };
        let natural = rows(&[0.1, 0.7, 0.2, 0.9, 0.3, 0.6, 0.123, 0.456]);
        let projected =
            threat.project(&(&natural + rows(&[1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0])), &natural);
        assert_eq!(places(threat, &projected, &natural).coordinates.expect("linf").on_faces, 1.0);
        // The next number inside is no face.
        let bits = |value: &f32, up: bool| f32::from_bits(value.to_bits() + u32::from(up) - u32::from(!up));
        let values: Vec<f32> = Vec::try_from(projected.flatten(0, -1)).expect("f32");
        let inside: Vec<f32> =
            values.iter().enumerate().map(|(at, value)| bits(value, at % 2 == 1)).collect();
        assert_eq!(places(threat, &rows(&inside), &natural).coordinates.expect("linf").on_faces, 0.0);
    }

    #[test]
    fn in_l2_there_are_distances_alone() {
        let threat = ThreatModel { norm: Norm::L2, epsilon: 0.5, domain: (0.0, 1.0) };
        let natural = rows(&[0.5; 8]);
        let particles = rows(&[0.5, 0.5, 0.5, 0.5, 0.75, 0.75, 0.75, 0.75]);
        let found = places(threat, &particles, &natural);
        assert_eq!((found.mean, found.largest, found.coordinates), (0.25, 0.5, None));
        assert_eq!((found.distances[0], found.distances[BARS - 1]), (0.5, 0.5));
    }

    #[test]
    fn without_particles_there_is_nothing() {
        assert_eq!(Tally::new(LINF, None).places().expect("none"), None);
    }

    #[test]
    fn without_a_radius_every_coordinate_is_on_a_face() {
        let natural = rows(&[0.5; 4]);
        let found = places(ThreatModel { epsilon: 0.0, ..LINF }, &natural, &natural);
        assert_eq!((found.largest, found.coordinates.expect("linf").on_faces), (0.0, 1.0));
    }
}
