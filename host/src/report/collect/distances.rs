//! The distances of a run's particles from their natural examples.

use super::{Collector, Gap, Part, Run};
use crate::data::examples::{Examples, repeat_rows};
use crate::law::faces::{BARS, histogram};
use crate::plugin::Threat;
use crate::run::progress::Progress;
use crate::run::{RunFolder, checkpoint};
use crate::training::setup::split;
use crate::training::shards::{self, Stores};
use crate::{Error, Result};
use plugin_api::Norm;
use tch::{Device, Kind, Tensor};

/// The distances of particles from their natural examples.
pub(crate) struct Distances {
    /// The number of particles.
    pub particles: usize,
    /// In the norm of the threat model, and in others.
    pub measured: Vec<Measured>,
}

/// The distances of particles in one norm, as shares of the largest distance in the ball.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Measured {
    /// The distance and its unit.
    pub name: String,
    /// The share of the particles in each of [`BARS`] equal steps from 0 to 1; the last includes 1.
    pub shares: Vec<f64>,
    /// The mean distance.
    pub mean: f64,
}

impl Collector<'_> {
    /// The distances of the particles in the newest checkpoint; none if the run keeps no particles.
    pub(super) fn distances(
        &mut self,
        folder: &RunFolder,
        run: &Run,
    ) -> std::result::Result<Option<Distances>, Gap> {
        if run.record.experiment.sampler.0.is_none() {
            return Ok(None);
        }
        self.read_distances(folder, run).map_err(|why| Gap {
            part: Part::Distances,
            what: format!("the particles' distances cannot be shown: {}", why.first_line()),
            fix: why.advice().map_or_else(|| run.resume_command(), str::to_owned),
        })
    }

    fn read_distances(&mut self, folder: &RunFolder, run: &Run) -> Result<Option<Distances>> {
        let experiment = &run.record.experiment;
        let groups = shards::groups(shards::PARTICLES, &experiment.train);
        let groups: Vec<_> = groups.iter().map(String::as_str).collect();
        let Some(mut saved) = checkpoint::load::<Progress>(&folder.checkpoints(), &groups)? else {
            return Err(Error::new("there is no checkpoint yet"));
        };
        // Chains that begin anew at every visit are not saved.
        if saved.groups.is_empty() {
            return Ok(None);
        }
        let dataset = self.dataset(&run.record.experiment.data, &run.record.data.checksums)?;
        let (points, _) = split(experiment, &dataset)?;
        let examples = Examples::new(&dataset.train, 0, points, Device::Cpu)?;
        let stores = Stores::of_checkpoint(experiment, folder.path(), &examples, &[], &mut saved.groups)?;
        let threat = experiment.training_threat();
        distances(&stores, &examples, experiment.train.particles, &threat).map(Some)
    }
}

/// The largest distance in a ball of radius 1, with its name: in the ball's own norm, and in l2 or,
/// for balls other than linf, in linf.
fn units(norm: Norm, pixels: i64) -> [(Norm, f64, String); 2] {
    let of_epsilon = |norm: Norm| (norm, 1.0, format!("{norm} distance / epsilon"));
    match norm {
        // The corners of the ball are the farthest in l2.
        Norm::Linf => {
            let name = format!("l2 distance / (epsilon x root of {pixels})");
            [of_epsilon(Norm::Linf), (Norm::L2, (pixels as f64).sqrt(), name)]
        }
        Norm::L2 | Norm::L1 => [of_epsilon(norm), of_epsilon(Norm::Linf)],
    }
}

/// The length of each row of `[N, D]` in a norm.
fn lengths(rows: &Tensor, norm: Norm) -> Tensor {
    match norm {
        Norm::Linf => rows.abs().amax([1i64].as_slice(), false),
        Norm::L2 => rows.norm_scalaropt_dim(2.0, [1i64].as_slice(), false),
        Norm::L1 => rows.norm_scalaropt_dim(1.0, [1i64].as_slice(), false),
    }
}

/// The distances in both norms.
fn distances(
    stores: &Stores,
    examples: &Examples,
    particles_per_point: usize,
    threat: &Threat,
) -> Result<Distances> {
    const POINTS_AT_A_TIME: i64 = 1000;
    let epsilon = threat.epsilon.max(f64::MIN_POSITIVE);
    let none = examples.batch(&Tensor::from_slice::<i64>(&[]))?.0;
    let pixels = threat.changing_channels(none.size()[1]) * none.size()[2..].iter().product::<i64>();
    let units = units(threat.norm, pixels);
    let mut tallies = [(); 2].map(|()| (Tensor::zeros([BARS as i64], (Kind::Double, Device::Cpu)), 0.0));
    let mut particles = 0;
    for points in Tensor::arange(examples.len() as i64, (Kind::Int64, Device::Cpu)).split(POINTS_AT_A_TIME, 0)
    {
        let images = repeat_rows(&examples.batch(&points)?.0, particles_per_point);
        let natural = threat.natural(&images);
        let seen = threat.pixels(&images, &natural, particles_per_point);
        let moved = seen.of_changing(&stores.load_any(&points, &natural).particles, &natural);
        let difference = (moved - natural).flatten(1, -1).to_kind(Kind::Double);
        particles += difference.size()[0] as usize;
        for ((counts, sum), (norm, largest, _)) in tallies.iter_mut().zip(&units) {
            let shares = lengths(&difference, *norm) / epsilon / *largest;
            *counts += histogram(&shares);
            *sum += shares.sum(Kind::Double).double_value(&[]);
        }
    }
    let measured = units.into_iter().zip(tallies).map(|((_, _, name), (counts, sum))| {
        let shares = Vec::try_from(counts / particles as f64)?;
        Ok(Measured { name, shares, mean: sum / particles as f64 })
    });
    Ok(Distances { particles, measured: measured.collect::<Result<_>>()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Format;
    use crate::data::Split;
    use crate::training::store::{ParticleStore, Place, Stored};

    #[test]
    fn distances_are_in_units_of_epsilon_in_every_format() {
        // Two pixels at 102 / 255 = 0.4, four points; epsilon 0.2.
        let images = Tensor::full([4, 1, 1, 2], 102, (Kind::Uint8, Device::Cpu));
        let split = Split { images, labels: Tensor::zeros([4], (Kind::Int64, Device::Cpu)) };
        let examples = Examples::new(&split, 0, 4, Device::Cpu).expect("room");
        let points = Tensor::arange(4, (Kind::Int64, Device::Cpu));
        let (natural, _) = examples.batch(&points).expect("in memory");
        // One pixel moves, or both as far: by 0, 0.27, 0.52 and 0.94 of epsilon.
        let moves = [[0.0f32, 0.0], [0.054, 0.0], [-0.104, 0.104], [0.188, 0.0]].concat();
        let half = 0.5f64.sqrt();
        let (linf, linf_mean) = ([0, 5, 10, 18], (0.27 + 0.52 + 0.94) / 4.0);
        for (norm, bars, means) in [
            // The largest l2 distance in the linf ball is epsilon times the root of 2: the shares
            // are 0.27, 0.94 of the root of a half (0.19, 0.66), and 0.52.
            (Norm::Linf, [linf, [0, 3, 10, 13]], [linf_mean, (0.27 * half + 0.52 + 0.94 * half) / 4.0]),
            // In the l2 ball it is epsilon: 0.27, 0.52 times the root of 2 (0.735), 0.94.
            (Norm::L2, [[0, 5, 14, 18], linf], [(0.27 + 0.52 / half + 0.94) / 4.0, linf_mean]),
        ] {
            let threat = Threat { norm, epsilon: 0.2, ..Threat::default() };
            let moved = &natural + Tensor::from_slice(&moves).reshape([4, 1, 1, 2]);
            for format in [Format::F32, Format::F16, Format::U8] {
                let mut store =
                    ParticleStore::new(&examples.part(0, 1), 1, &[], threat.clone(), format, Place::Memory)
                        .expect("room");
                let stored = Stored { particles: moved.shallow_clone(), state: Vec::new() };
                store.save(&points, &natural, &stored).expect("saved");
                let found = distances(&Stores::new(vec![store]), &examples, 1, &threat).expect("distances");
                for ((measured, bars), mean) in found.measured.iter().zip(bars).zip(means) {
                    let mut expected = [0.0; BARS];
                    bars.iter().for_each(|bar| expected[*bar] += 0.25);
                    assert_eq!(measured.shares, expected, "{norm:?} {format:?} {}", measured.name);
                    assert!((measured.mean - mean).abs() < 0.005, "{format:?}: {} for {mean}", measured.mean);
                }
                assert_eq!(found.particles, 4);
            }
        }
    }
}
