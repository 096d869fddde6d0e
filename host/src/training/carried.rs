//! What goes on from minibatch to minibatch, whatever their points: the perturbation and the state
//! with which each row ended (`Start::Carried`).
//!
//! The rows of a shard are its own, as its points are. What a row carries thus depends neither on the
//! number of processes nor on which of them has the shard.

use super::shards::{Selection, sizes};
use super::store::{Stored, whole_rows};
use crate::Result;
use crate::plugin::Visit;
use plugin_api::abi::StateShape;
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// The rows of all shards of this process. They are kept in the augmented frame: a perturbation goes
/// to another image there.
pub(super) struct Carried {
    /// For each shard, the perturbations of its rows (`[R * K, C, H, W]`, f32), then their state.
    shards: Vec<Vec<Tensor>>,
}

impl Carried {
    /// Rows without perturbation and with states of zeros, shaped like the images `like`
    /// (`[0, C, H, W]`). Each shard has so many of them (R * K), K for each of its points in a
    /// minibatch.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(shards: usize, rows: usize, like: &Tensor, state: &[StateShape]) -> Result<Self> {
        let mut shape = like.size();
        shape[0] = rows as i64;
        let of_shard = |_| -> Result<Vec<Tensor>> {
            let perturbations = Tensor::f_zeros(&shape, (Kind::Float, like.device()))?;
            let states = state.iter().map(|state| state.zeros(&perturbations)).collect::<Vec<_>>();
            Ok([perturbations].into_iter().chain(states).collect())
        };
        Ok(Self { shards: (0..shards).map(of_shard).collect::<Result<_>>()? })
    }

    /// What was left to the rows of a minibatch of K particles a point: perturbations in place of
    /// particles, and the state. A selection with more rows of a shard than a minibatch has, which no
    /// update makes, is given them again from the first one on.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn load(&self, selection: &Selection, copies: usize) -> Result<Stored> {
        let tensors = self.shards.first().map_or(0, Vec::len);
        let joined = |number: usize| -> Result<Tensor> {
            let parts = self.shards.iter().zip(&selection.rows).map(|(shard, rows)| -> Result<Tensor> {
                let (kept, wanted) = (&shard[number], rows.size()[0] * copies as i64);
                let rows = Tensor::f_arange(wanted, (Kind::Int64, kept.device()))?;
                Ok(kept.f_index_select(0, &rows.f_remainder(kept.size()[0].max(1))?)?)
            });
            Ok(Tensor::f_cat(&parts.collect::<Result<Vec<_>>>()?, 0)?)
        };
        Ok(Stored { particles: joined(0)?, state: (1..tensors).map(joined).collect::<Result<_>>()? })
    }

    /// Keeps what the rows of a minibatch ended with. Rows that it does not have stay.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn save(&mut self, selection: &Selection, visit: &Visit) -> Result<()> {
        let perturbations = visit.particles.f_sub(visit.natural)?;
        let mut first = 0;
        for (shard, size) in self.shards.iter_mut().zip(sizes(selection, visit.natural)) {
            for (kept, ended) in shard.iter_mut().zip([&perturbations].into_iter().chain(&visit.state)) {
                kept.f_narrow(0, 0, size)?.f_copy_(&ended.f_narrow(0, first, size)?.f_detach()?)?;
            }
            first += size;
        }
        Ok(())
    }

    /// The tensors of each shard by name, for a checkpoint.
    pub fn state(&self) -> impl Iterator<Item = Vec<(String, Tensor)>> {
        let named = |(number, tensor): (usize, &Tensor)| (name(number), tensor.shallow_clone());
        self.shards.iter().map(move |shard| shard.iter().enumerate().map(named).collect())
    }

    /// Continues from the tensors of a checkpoint for this process's shard of this number.
    ///
    /// # Errors
    /// If one is missing or has another shape.
    pub fn load_state(&mut self, shard: usize, saved: &BTreeMap<String, Tensor>) -> Result<()> {
        for (number, kept) in self.shards[shard].iter_mut().enumerate() {
            let size = kept.size();
            let rows = whole_rows(saved, &name(number), size[0] as usize, &size)?;
            kept.f_copy_(&rows.f_to_device(kept.device())?)?;
        }
        Ok(())
    }
}

/// The name of a tensor in a checkpoint.
fn name(number: usize) -> String {
    match number {
        0 => "perturbations".to_owned(),
        _ => format!("state.{number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks::Ranks;
    use crate::training::shards::Shards;
    use plugin_api::ThreatModel;
    use tch::Device;

    /// A minibatch of these points in two shards (even and odd numbers), with two particles each,
    /// whose natural examples are the numbers of their points.
    fn minibatch(points: &[i64]) -> (Selection, Tensor) {
        let shards = Shards::new(2, 8, 4, &Ranks::alone()).expect("valid");
        let selection = shards.select(points, Device::Cpu).expect("a selection");
        let rows: Vec<f32> = selection.points.iter().flat_map(|point| [*point as f32; 2]).collect();
        let natural = Tensor::from_slice(&rows).reshape([-1, 1, 1, 1]);
        (selection, natural)
    }

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).expect("f32")
    }

    fn carried() -> Carried {
        let like = Tensor::zeros([0, 1, 1, 1], tch::kind::FLOAT_CPU);
        Carried::new(2, 4, &like, &[StateShape::Numbers(1)]).expect("room")
    }

    /// Ends a minibatch with these perturbations, and a tenth of them as state.
    fn end(carried: &mut Carried, points: &[i64], perturbations: &[f32]) {
        let (selection, natural) = minibatch(points);
        let perturbations = Tensor::from_slice(perturbations).reshape([-1, 1, 1, 1]);
        let visit = Visit {
            natural: &natural,
            labels: &Tensor::zeros([natural.size()[0]], (Kind::Int64, Device::Cpu)),
            points: &selection.points,
            particles_per_point: 2,
            threat: ThreatModel::default(),
            particles: &natural + &perturbations,
            state: vec![(perturbations / 10.0).flatten(1, -1)],
        };
        carried.save(&selection, &visit).expect("saved");
    }

    #[test]
    fn a_row_goes_on_from_the_same_row_of_its_shard() {
        let mut carried = carried();
        let load = |carried: &Carried, points: &[i64]| {
            let Stored { particles, state } = carried.load(&minibatch(points).0, 2).expect("loaded");
            (numbers(&particles), numbers(&state[0]))
        };
        assert_eq!(load(&carried, &[0, 2, 1, 3]), (vec![0.0; 8], vec![0.0; 8]));
        end(&mut carried, &[0, 2, 1, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        let (perturbations, state) = load(&carried, &[6, 4, 7, 5]);
        assert_eq!(perturbations, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        assert_eq!(state, perturbations.iter().map(|number| number / 10.0).collect::<Vec<_>>());
        // The last minibatch is smaller: the other rows wait.
        end(&mut carried, &[4, 7], &[-1.0, -2.0, -5.0, -6.0]);
        assert_eq!(load(&carried, &[0, 2, 1, 3]).0, [-1.0, -2.0, 3.0, 4.0, -5.0, -6.0, 7.0, 8.0]);
        assert_eq!(load(&carried, &[0, 2, 4]).0, [-1.0, -2.0, 3.0, 4.0, -1.0, -2.0]);
    }

    #[test]
    fn a_checkpoint_has_all_of_it() {
        let mut one = carried();
        end(&mut one, &[0, 2, 1, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        let mut other = carried();
        for (shard, tensors) in one.state().enumerate() {
            other.load_state(shard, &tensors.into_iter().collect()).expect("loaded");
        }
        let loaded = |carried: &Carried| carried.load(&minibatch(&[0, 2, 1, 3]).0, 2).expect("loaded");
        assert_eq!(loaded(&one).particles, loaded(&other).particles);
        assert_eq!(loaded(&one).state, loaded(&other).state);
        let error = other.load_state(0, &BTreeMap::new()).expect_err("refused").to_string();
        assert!(error.contains("`perturbations` is missing or has another shape"), "{error}");
    }
}
