//! Sums over an epoch.

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
}

impl Tally {
    /// Sums that begin at these values: loss, number of correct particles, number of particles.
    pub fn new((loss, correct, particles): Sums, device: Device) -> Self {
        let scalar = |value: f64| Tensor::from(value).to_device(device);
        Self { loss: scalar(loss), correct: scalar(correct), particles, figures: None, visited: 0.0 }
    }

    /// The same, and sums of the sampler's figures, and the particles they were added up over.
    pub fn with_figures(self, (figures, visited): &Figures) -> Self {
        let device = self.loss.device();
        let figures = (!figures.is_empty()).then(|| Tensor::from_slice(figures).to_device(device));
        Self { figures, visited: *visited, ..self }
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
