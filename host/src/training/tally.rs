//! Sums over an epoch.

use crate::run::progress::GradientSums;
use tch::{Device, Kind, Tensor};

/// The sums of losses, of correct particles and of particles.
pub type Sums = (f64, f64, f64);

/// The sums of the sampler's figures, and the particles they were added up over.
pub type Figures = (Vec<f64>, f64);

/// Running sums on the device.
pub struct Tally {
    loss: Tensor,
    correct: Tensor,
    particles: f64,
    /// The sums of the sampler's figures over particles and visits; none yet if undefined.
    figures: Option<Tensor>,
    /// The particles of those visits, each counted at every visit.
    visited: f64,
    /// Lengths of gradients, their sum and the longest, and how many were shortened; none yet if
    /// undefined.
    gradients: Option<[Tensor; 3]>,
    /// The number of those gradients.
    steps: f64,
}

impl Tally {
    /// Sums that begin at these values: loss, number of correct particles, number of particles.
    pub fn new((loss, correct, particles): Sums, device: Device) -> Self {
        let scalar = |value: f64| Tensor::from(value).to_device(device);
        let (loss, correct) = (scalar(loss), scalar(correct));
        Self { loss, correct, particles, figures: None, visited: 0.0, gradients: None, steps: 0.0 }
    }

    /// The same, and sums of the sampler's figures, and the particles they were added up over.
    pub fn with_figures(self, (figures, visited): &Figures) -> Self {
        let device = self.loss.device();
        let figures = (!figures.is_empty()).then(|| Tensor::from_slice(figures).to_device(device));
        Self { figures, visited: *visited, ..self }
    }

    /// The same, and sums of lengths of gradients.
    pub fn with_gradients(self, sums: &GradientSums) -> Self {
        let GradientSums { steps, lengths, longest, shortened } = *sums;
        let device = self.loss.device();
        let scalars = || [lengths, longest, shortened].map(|value| Tensor::from(value).to_device(device));
        Self { gradients: (steps > 0.0).then(scalars), steps, ..self }
    }

    /// Adds the length of a gradient (`[]`), which was shortened if it is above `most`.
    pub fn add_gradient(&mut self, length: &Tensor, most: f64) {
        let length = length.to_kind(Kind::Double);
        let shortened = length.gt(most).to_kind(Kind::Double);
        self.steps += 1.0;
        self.gradients = Some(match self.gradients.take() {
            Some([sum, longest, count]) => [sum + &length, longest.maximum(&length), count + shortened],
            None => [length.shallow_clone(), length, shortened],
        });
    }

    /// The sums over gradients. Waits for the device.
    pub fn read_gradients(&self) -> GradientSums {
        let read = |at: usize| self.gradients.as_ref().map_or(0.0, |sums| sums[at].double_value(&[]));
        GradientSums { steps: self.steps, lengths: read(0), longest: read(1), shortened: read(2) }
    }

    /// Adds the figures of particles after a visit (`[N, figures]`), if their sampler has any.
    pub fn add_figures(&mut self, figures: Option<&Tensor>) {
        let Some(figures) = figures else { return };
        self.visited += figures.size()[0] as f64;
        let sums = figures.sum_dim_intlist([0i64].as_slice(), false, Kind::Double);
        self.figures = Some(match self.figures.take() {
            Some(before) => before + sums,
            None => sums,
        });
    }

    /// The sums of the figures, and the particles they were added up over. Waits for the device.
    pub fn read_figures(&self) -> Figures {
        let read = |sums: &Tensor| (0..sums.size()[0]).map(|at| sums.double_value(&[at])).collect();
        (self.figures.as_ref().map_or_else(Vec::new, read), self.visited)
    }

    /// Adds the losses of an update (`[N]`) and whether each particle was classified correctly
    /// (`[N]`).
    pub fn add(&mut self, losses: &Tensor, correct: &Tensor) {
        self.loss += losses.sum(Kind::Double);
        self.correct += correct.sum(Kind::Double);
        self.particles += losses.size()[0] as f64;
    }

    /// The sums: loss, number of correct particles, number of particles. Waits for the device.
    pub fn read(&self) -> Sums {
        (self.loss.double_value(&[]), self.correct.double_value(&[]), self.particles)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_gradients_are_summed_up_also_after_a_checkpoint() {
        let mut tally = Tally::new((0.0, 0.0, 0.0), Device::Cpu);
        assert_eq!(tally.read_gradients(), GradientSums::default());
        assert_eq!(tally.read_gradients().metrics(), None);
        for length in [0.5f32, 4.0] {
            tally.add_gradient(&Tensor::from(length), 1.0);
        }
        let saved = tally.read_gradients();
        assert_eq!(saved, GradientSums { steps: 2.0, lengths: 4.5, longest: 4.0, shortened: 1.0 });
        let mut resumed = Tally::new((0.0, 0.0, 0.0), Device::Cpu).with_gradients(&saved);
        for tally in [&mut tally, &mut resumed] {
            tally.add_gradient(&Tensor::from(1.5f32), 1.0);
            tally.add_gradient(&Tensor::from(1.0f32), 1.0);
        }
        assert_eq!(resumed.read_gradients(), tally.read_gradients());
        let metrics = tally.read_gradients().metrics().expect("four steps");
        assert_eq!((metrics.mean, metrics.longest, metrics.shortened), (1.75, 4.0, 0.5));
    }
}
