//! Shards: the training points, dealt out. Each shard has an order and particles of its own, and
//! every minibatch takes the same share of each. The order of points thus depends on the number of
//! shards, and not on the number of processes that carry them.

use super::store::{self, ParticleStore, Place, Stored};
use crate::config::{Experiment, Train};
use crate::data::examples::Examples;
use crate::ranks::Ranks;
use crate::run::checkpoint::ReadGroups;
use crate::torch::device::upload;
use crate::torch::random::{Purpose, permutation};
use crate::{Error, Result};
use plugin_api::abi::StateShape;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// The shards of a run, and those of this process. Shard s of S has the points s, s + S, s + 2 S and
/// so on.
#[derive(Debug, Clone)]
pub(super) struct Shards {
    count: usize,
    points: usize,
    own: Vec<usize>,
}

/// The points of an update that this process has.
pub(crate) struct Selection {
    /// The points, shard by shard.
    pub points: Vec<i64>,
    /// The points (`[B]`, i64, on the device).
    pub indices: Tensor,
    /// For each shard of this process, the rows of these points in its store (i64, on the device).
    pub(super) rows: Vec<Tensor>,
    /// The number of points that all processes have in this update.
    pub everywhere: usize,
}

impl Shards {
    /// The shards of this process, of so many in all that hold so many points.
    ///
    /// # Errors
    /// If there are more processes than shards, or the shards do not divide a minibatch.
    pub fn new(count: usize, points: usize, batch: usize, ranks: &Ranks) -> Result<Self> {
        if ranks.size() > count {
            let size = ranks.size();
            return Err(Error::new(format!(
                "train.shards: expected at least {size}, a shard for each of {size} processes, got {count}"
            ))
            .fix(format!("set train.shards (--shards {size}), or start fewer processes")));
        }
        if count > batch || !batch.is_multiple_of(count) {
            return Err(Error::new(format!(
                "train.shards: expected a divisor of train.batch, {batch}, since each minibatch takes the same \
                 number of points from every shard; got {count}"
            ))
            .fix("change --shards or --batch"));
        }
        if count > points {
            return Err(Error::new(format!(
                "train.shards: expected at most {points}, the number of training points, got {count}"
            )));
        }
        Ok(Self { count, points, own: own(count, ranks).collect() })
    }

    /// The numbers of the shards of this process.
    pub fn own(&self) -> &[usize] {
        &self.own
    }

    /// Whether this process has a point.
    pub fn has(&self, point: i64) -> bool {
        self.own.contains(&(point as usize % self.count))
    }

    /// The number of points of a shard.
    fn len(&self, shard: usize) -> usize {
        (self.points - shard).div_ceil(self.count)
    }

    /// The group of a shard in a checkpoint, of its particles ([`PARTICLES`]) or of what its rows carry
    /// ([`CARRIED`]).
    pub fn group(&self, kind: &str, shard: usize) -> String {
        group_of(kind, shard, self.count)
    }

    /// The minibatches of an epoch: the points that this process has of each.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn minibatches(
        &self,
        (seed, epoch): (u64, u64),
        batch: usize,
        device: Device,
    ) -> Result<Vec<Selection>> {
        let share = batch / self.count;
        let orders: Vec<_> = self
            .own
            .iter()
            .map(|shard| {
                let step = epoch * self.count as u64 + *shard as u64;
                permutation(seed, Purpose::Shuffle, step, self.len(*shard))
            })
            .collect();
        let chunk = |len: usize, update: usize| (update * share).min(len)..((update + 1) * share).min(len);
        let (mut rows, mut points, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
        let updates = self.points.div_ceil(batch);
        for update in 0..updates {
            let before = points.len();
            for (shard, order) in self.own.iter().zip(&orders) {
                let of_shard = &order[chunk(order.len(), update)];
                rows.extend_from_slice(of_shard);
                points.extend(of_shard.iter().map(|row| row * self.count as i64 + *shard as i64));
                sizes.push(of_shard.len() as i64);
            }
            debug_assert!(points.len() - before <= batch);
        }
        let per_update = self.own.len();
        let of_updates: Vec<i64> = sizes.chunks(per_update).map(|sizes| sizes.iter().sum()).collect();
        let indices = upload(&Tensor::from_slice(&points), device)?.f_split_with_sizes(&of_updates, 0)?;
        let mut on_device = match self.count {
            1 => indices.iter().map(Tensor::shallow_clone).collect(),
            _ => upload(&Tensor::from_slice(&rows), device)?.f_split_with_sizes(&sizes, 0)?,
        }
        .into_iter();
        let mut points = points.into_iter();
        let selections =
            indices.into_iter().zip(of_updates).enumerate().map(|(update, (indices, size))| Selection {
                points: points.by_ref().take(size as usize).collect(),
                indices,
                rows: on_device.by_ref().take(per_update).collect(),
                everywhere: (0..self.count).map(|shard| chunk(self.len(shard), update).len()).sum(),
            });
        Ok(selections.collect())
    }

    /// Those of these points that this process has, shard by shard.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn select(&self, points: &[i64], device: Device) -> Result<Selection> {
        let count = self.count as i64;
        let of_shards: Vec<Vec<i64>> = self
            .own
            .iter()
            .map(|shard| points.iter().copied().filter(|point| point % count == *shard as i64).collect())
            .collect();
        let on_device = |points: &[i64]| upload(&Tensor::from_slice(points), device);
        let rows = of_shards.iter().map(|points| {
            let rows: Vec<_> = points.iter().map(|point| point / count).collect();
            on_device(&rows)
        });
        let rows = rows.collect::<std::result::Result<_, _>>()?;
        let own = of_shards.concat();
        Ok(Selection { indices: on_device(&own)?, points: own, rows, everywhere: points.len() })
    }
}

/// The particles of this process: a store for each of its shards.
pub(crate) struct Stores(Vec<ParticleStore>);

/// The groups of particles in a checkpoint.
pub(crate) const PARTICLES: &str = "particles";

/// The groups of what goes on from minibatch to minibatch.
pub(super) const CARRIED: &str = "carried";

/// The groups of this kind of all shards in the checkpoints of a run.
pub(crate) fn groups(kind: &str, train: &Train) -> Vec<String> {
    (0..train.shards).map(|shard| group_of(kind, shard, train.shards)).collect()
}

fn group_of(kind: &str, shard: usize, count: usize) -> String {
    match count {
        1 => kind.to_owned(),
        _ => format!("{kind}-{}-of-{count}", shard + 1),
    }
}

impl Stores {
    /// A store for each shard of this process, in their order.
    pub fn new(stores: Vec<ParticleStore>) -> Self {
        Self(stores)
    }

    /// The particles of all shards of a run, in memory, as the groups of a checkpoint have them.
    /// `folder` is that of the run.
    ///
    /// # Errors
    /// If a group is missing or does not fit.
    pub(crate) fn of_checkpoint(
        experiment: &Experiment,
        folder: &Path,
        examples: &Examples,
        state: &[StateShape],
        saved: &mut ReadGroups,
    ) -> Result<Self> {
        let (train, threat) = (&experiment.train, experiment.training_threat());
        let of_shard = |shard| {
            let part = examples.part(shard, train.shards);
            let mut store = ParticleStore::new(
                &part,
                train.particles,
                state,
                threat.clone(),
                train.store,
                Place::Memory,
            )?;
            let group = saved.remove(&group_of(PARTICLES, shard, train.shards)).unwrap_or_default();
            store.load_state(&group, store::place(train, folder, shard).as_deref())?;
            Ok(store)
        };
        (0..train.shards).map(of_shard).collect::<Result<_>>().map(Self)
    }

    /// The chains of any points (`[B]`, i64, on the device), in their order, where this process has
    /// all shards. `natural` are their natural examples (`[B * K, C, H, W]`).
    pub(crate) fn load_any(&self, points: &Tensor, natural: &Tensor) -> Stored {
        if let [store] = self.0.as_slice() {
            return store.load(points, natural);
        }
        let (count, copies) = (self.0.len() as i64, natural.size()[0] / points.size()[0].max(1));
        let copy = Tensor::arange(copies, (Kind::Int64, points.device()));
        let (mut places, mut parts) = (Vec::new(), Vec::new());
        for (shard, store) in (0..).zip(&self.0) {
            let there: Tensor = points.remainder(count).eq(shard).nonzero().flatten(0, -1);
            let rows = (there.unsqueeze(1) * copies + &copy).flatten(0, -1);
            let points = points.index_select(0, &there).divide_scalar_mode(count, "floor");
            parts.push(store.load(&points, &natural.index_select(0, &rows)));
            places.push(rows);
        }
        let back = Tensor::cat(&places, 0).argsort(0, false);
        let joined = joined(&parts);
        let in_order = |rows: &Tensor| rows.index_select(0, &back);
        Stored { particles: in_order(&joined.particles), state: joined.state.iter().map(in_order).collect() }
    }

    /// The chains of the points of a minibatch. `natural` are their natural examples (`[B * K, C, H, W]`).
    pub fn load(&self, selection: &Selection, natural: &Tensor) -> Stored {
        if let ([store], [rows]) = (self.0.as_slice(), selection.rows.as_slice()) {
            return store.load(rows, natural);
        }
        let mut first = 0;
        let parts = self.0.iter().zip(&selection.rows).zip(sizes(selection, natural));
        let parts = parts.map(|((store, rows), size)| {
            first += size;
            store.load(rows, &natural.narrow(0, first - size, size))
        });
        joined(&parts.collect::<Vec<_>>())
    }

    /// Puts the chains of these points back.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn save(&mut self, selection: &Selection, natural: &Tensor, stored: &Stored) -> Result<()> {
        if let ([store], [rows]) = (self.0.as_mut_slice(), selection.rows.as_slice()) {
            return store.save(rows, natural, stored);
        }
        let sizes = sizes(selection, natural);
        let mut first = 0;
        for ((store, rows), size) in self.0.iter_mut().zip(&selection.rows).zip(sizes) {
            let part = |tensor: &Tensor| tensor.narrow(0, first, size);
            let particles = part(&stored.particles);
            let state = stored.state.iter().map(part).collect();
            store.save(rows, &part(natural), &Stored { particles, state })?;
            first += size;
        }
        Ok(())
    }

    /// The stores, in the order of the shards of this process.
    pub fn iter(&self) -> std::slice::Iter<'_, ParticleStore> {
        self.0.iter()
    }

    /// The stores, in the order of the shards of this process.
    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, ParticleStore> {
        self.0.iter_mut()
    }
}

/// Chains in one piece.
fn joined(parts: &[Stored]) -> Stored {
    let joined =
        |part: &dyn Fn(&Stored) -> Tensor| Tensor::cat(&parts.iter().map(part).collect::<Vec<_>>(), 0);
    let states = parts.first().map_or(0, |part| part.state.len());
    Stored {
        particles: joined(&|part| part.particles.shallow_clone()),
        state: (0..states).map(|number| joined(&|part| part.state[number].shallow_clone())).collect(),
    }
}

/// The rows of `natural` that belong to each shard's part of a selection.
pub(super) fn sizes<'a>(selection: &'a Selection, natural: &Tensor) -> impl Iterator<Item = i64> + use<'a> {
    let copies = natural.size()[0] / (selection.points.len() as i64).max(1);
    selection.rows.iter().map(move |rows| rows.size()[0] * copies)
}

/// The numbers of the shards of this process, out of so many.
pub(super) fn own(count: usize, ranks: &Ranks) -> impl Iterator<Item = usize> + use<> {
    let (rank, size) = (ranks.rank(), ranks.size());
    (0..count).filter(move |shard| shard % size == rank)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Format;
    use crate::data::Split;
    use crate::plugin::Threat;
    use std::collections::BTreeSet;

    fn shards(count: usize, points: usize, batch: usize) -> Shards {
        Shards::new(count, points, batch, &Ranks::alone()).expect("valid")
    }

    fn minibatches(shards: &Shards, epoch: u64, batch: usize) -> Vec<Selection> {
        shards.minibatches((7, epoch), batch, Device::Cpu).expect("minibatches")
    }

    #[test]
    fn one_shard_is_the_permutation_of_all_points() {
        let batches = minibatches(&shards(1, 10, 4), 3, 4);
        let points: Vec<_> = batches.iter().flat_map(|selection| selection.points.clone()).collect();
        assert_eq!(points, permutation(7, Purpose::Shuffle, 3, 10));
        assert_eq!(batches.iter().map(|selection| selection.everywhere).collect::<Vec<_>>(), [4, 4, 2]);
    }

    #[test]
    fn every_point_is_in_one_minibatch_and_each_takes_the_same_share_of_every_shard() {
        let shards = shards(4, 201, 8);
        for epoch in 0..2 {
            let batches = minibatches(&shards, epoch, 8);
            assert_eq!(batches.len(), 26);
            for (selection, number) in batches.iter().zip(0..) {
                assert_eq!(selection.everywhere, selection.points.len());
                assert_eq!(Vec::<i64>::try_from(&selection.indices).expect("i64"), selection.points);
                for (rows, shard) in selection.rows.iter().zip(0..) {
                    assert!(number == 25 || rows.size() == [2]);
                    let rows: Vec<i64> = rows.try_into().expect("i64");
                    assert!(rows.iter().all(|row| selection.points.contains(&(4 * row + shard))));
                }
            }
            let all: BTreeSet<_> =
                batches.iter().flat_map(|selection| selection.points.iter().copied()).collect();
            assert_eq!(all, (0..201).collect());
        }
        let [first, second] = [0, 1].map(|epoch| minibatches(&shards, epoch, 8)[0].points.clone());
        assert_ne!(first, second);
    }

    #[test]
    fn chains_of_several_shards_are_those_of_one() {
        let images = Tensor::arange(7, (Kind::Uint8, Device::Cpu)).reshape([7, 1, 1, 1]);
        let split = Split { images, labels: Tensor::zeros([7], (Kind::Int64, Device::Cpu)) };
        let examples = Examples::new(&split, 0, 7, Device::Cpu).expect("room");
        let stores = |count: usize| {
            let of_shard = |shard| {
                let part = examples.part(shard, count);
                let state = [StateShape::Particles];
                let threat = Threat::default();
                ParticleStore::new(&part, 2, &state, threat, Format::F32, Place::Memory).expect("room")
            };
            Stores::new((0..count).map(of_shard).collect())
        };
        let natural = |points: &Tensor| {
            examples.batch(points).expect("in memory").0.repeat_interleave_self_int(2, 0, None)
        };
        let read = |stores: &Stores| {
            let points = Tensor::from_slice(&[6i64, 1, 3, 0, 5, 2, 4]);
            let Stored { particles, state } = stores.load_any(&points, &natural(&points));
            assert_eq!(state.len(), 1);
            [particles, state[0].shallow_clone()]
                .map(|rows| Vec::<f32>::try_from(rows.flatten(0, -1)).expect("f32"))
        };
        let [one, three] = [1, 3].map(|count| {
            let (shards, mut stores) = (shards(count, 7, 3), stores(count));
            assert_eq!(read(&stores)[0][..4], [6.0f32, 6.0, 1.0, 1.0].map(|pixel| pixel / 255.0));
            for selection in minibatches(&shards, 0, 3) {
                let natural = natural(&selection.indices);
                let before = stores.load(&selection, &natural);
                // Each particle moves by a number of its own.
                let own = &natural * 3.0
                    + Tensor::arange(2, (Kind::Float, Device::Cpu))
                        .repeat([selection.points.len() as i64])
                        .reshape([-1, 1, 1, 1]);
                let moved = Stored { particles: &before.particles + &own, state: vec![own * 2.0] };
                stores.save(&selection, &natural, &moved).expect("saved");
            }
            read(&stores)
        });
        assert_eq!(one, three);
        assert_ne!(one[0][0], one[0][1]);
    }
}
