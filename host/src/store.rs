//! The particles of every training point, kept for the whole run.

use crate::data::Split;
use crate::plugin::fresh_start;
use crate::random::{Draws, Purpose};
use crate::{Error, Result};
use plugin_api::{Start, ThreatModel};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

/// Images and labels on the device, one byte a pixel until a batch needs them.
pub struct Examples {
    images: Tensor,
    labels: Tensor,
}

impl Examples {
    /// Points `first..first + count` of a split, on `device`.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(split: &Split, first: usize, count: usize, device: Device) -> Result<Self> {
        let rows = |tensor: &Tensor| tensor.f_narrow(0, first as i64, count as i64)?.f_to_device(device);
        Ok(Self { images: rows(&split.images)?, labels: rows(&split.labels)? })
    }

    /// Number of points.
    pub fn len(&self) -> usize {
        self.images.size()[0] as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Images `[B, C, H, W]` (f32, 0 to 1) and labels `[B]` (i64) of the points whose indices
    /// `[B]` (i64, on the device) are given.
    pub fn batch(&self, points: &Tensor) -> (Tensor, Tensor) {
        (scaled(&self.images.index_select(0, points)), self.labels.index_select(0, points))
    }
}

/// Bytes as f32 from 0 to 1.
fn scaled(images: &Tensor) -> Tensor {
    images.to_kind(Kind::Float) / 255.0
}

/// Each row `copies` times in a row: `[B, ...]` gives `[B * copies, ...]`.
pub fn repeat_rows(rows: &Tensor, copies: usize) -> Tensor {
    match copies {
        1 => rows.shallow_clone(),
        _ => rows.repeat_interleave_self_int(copies as i64, 0, None),
    }
}

/// K particles per training point, and what each remembers.
pub struct ParticleStore {
    /// The particles, then their state tensors: `[n, K, C, H, W]`, f32, on the device.
    tensors: Vec<Tensor>,
}

impl ParticleStore {
    /// All particles at their natural examples, remembering `state_tensors` zeros.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn new(examples: &Examples, particles_per_point: usize, state_tensors: usize) -> Result<Self> {
        let natural = examples.images.f_to_kind(Kind::Float)?.f_divide_scalar_(255.0)?.f_unsqueeze(1)?;
        let mut shape = natural.size();
        shape[1] = particles_per_point as i64;
        let particles = natural.f_expand(&shape, false)?.f_contiguous()?;
        let mut tensors = vec![particles];
        for _ in 0..state_tensors {
            tensors.push(tensors[0].f_zeros_like()?);
        }
        Ok(Self { tensors })
    }

    /// Moves every particle to a uniform draw from its point's ball.
    ///
    /// # Errors
    /// If a draw fails.
    pub fn begin_at_uniform_draws(
        &mut self,
        examples: &Examples,
        threat: &ThreatModel,
        seed: u64,
    ) -> Result<()> {
        const POINTS_AT_A_TIME: i64 = 1000;
        let particles_per_point = self.tensors[0].size()[1] as usize;
        let all = Tensor::arange(examples.len() as i64, (Kind::Int64, self.tensors[0].device()));
        for indices in all.split(POINTS_AT_A_TIME, 0) {
            let (natural, _) = examples.batch(&indices);
            let natural = repeat_rows(&natural, particles_per_point);
            let points: Vec<i64> = Vec::try_from(&indices)?;
            let points: Vec<i64> =
                points.iter().flat_map(|point| std::iter::repeat_n(*point, particles_per_point)).collect();
            let draws = Draws::new(seed, Purpose::Start, 0, &points, particles_per_point);
            let particles = fresh_start(Start::Uniform, &natural, threat, &draws)?;
            self.save(&indices, &particles, &[] as &[Tensor]);
        }
        Ok(())
    }

    /// Particles and their state of the points whose indices `[B]` (i64, on the device) are
    /// given: `[B * K, C, H, W]` each.
    pub fn load(&self, points: &Tensor) -> (Tensor, Vec<Tensor>) {
        let mut rows = self.tensors.iter().map(|tensor| tensor.index_select(0, points).flatten(0, 1));
        let particles = rows.next().unwrap_or_default();
        (particles, rows.collect())
    }

    /// Puts them back.
    pub fn save(&mut self, points: &Tensor, particles: &Tensor, state: &[Tensor]) {
        for (tensor, rows) in self.tensors.iter_mut().zip([particles].into_iter().chain(state)) {
            let mut shape = tensor.size();
            shape[0] = points.size()[0];
            let _ = tensor.index_copy_(0, points, &rows.detach().reshape(shape));
        }
    }

    /// Everything in it by name, for a checkpoint.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let names = (0..).map(|number| match number {
            0 => "particles".to_owned(),
            _ => format!("state.{number}"),
        });
        names.zip(self.tensors.iter().map(Tensor::shallow_clone)).collect()
    }

    /// Takes over saved particles and state.
    ///
    /// # Errors
    /// If one is missing or has another shape.
    pub fn load_state(&mut self, saved: &BTreeMap<String, Tensor>) -> Result<()> {
        for (name, mut tensor) in self.state() {
            match saved.get(&name) {
                Some(saved) if saved.size() == tensor.size() => tensor.copy_(saved),
                _ => return Err(Error::new(format!("the checkpoint's particles do not fit: `{name}`"))),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples() -> Examples {
        let images = Tensor::from_slice(&[0u8, 51, 102, 255]).reshape([4, 1, 1, 1]);
        let split = Split { images, labels: Tensor::from_slice(&[0i64, 1, 2, 3]) };
        Examples::new(&split, 0, 4, Device::Cpu).expect("room")
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).expect("f32")
    }

    #[test]
    fn particles_begin_at_the_natural_examples() {
        let store = ParticleStore::new(&examples(), 2, 1).expect("room");
        let (particles, state) = store.load(&Tensor::from_slice(&[3i64, 1]));
        assert_eq!(particles.size(), [4, 1, 1, 1]);
        assert_eq!(values(&particles), [1.0, 1.0, 0.2, 0.2]);
        assert_eq!(values(&state[0]), [0.0; 4]);
    }

    #[test]
    fn what_is_saved_comes_back_to_its_own_point_and_particle() {
        let mut store = ParticleStore::new(&examples(), 2, 1).expect("room");
        let moved = Tensor::from_slice(&[0.1f32, 0.2, 0.3, 0.4]).reshape([4, 1, 1, 1]);
        store.save(&Tensor::from_slice(&[3i64, 1]), &moved, &[&moved * 10.0]);
        let (particles, state) = store.load(&Tensor::from_slice(&[1i64, 0, 3]));
        assert_eq!(values(&particles), [0.3, 0.4, 0.0, 0.0, 0.1, 0.2]);
        assert_eq!(values(&state[0]), [3.0, 4.0, 0.0, 0.0, 1.0, 2.0]);
    }
}
