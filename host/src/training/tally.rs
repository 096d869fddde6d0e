//! Sums over an epoch.

use tch::{Device, Kind, Tensor};

/// Running sums on the device.
pub struct Tally {
    loss: Tensor,
    correct: Tensor,
    particles: f64,
}

impl Tally {
    /// Sums that begin at these values: loss, number of correct particles, number of particles.
    pub fn new((loss, correct, particles): (f64, f64, f64), device: Device) -> Self {
        let scalar = |value: f64| Tensor::from(value).to_device(device);
        Self { loss: scalar(loss), correct: scalar(correct), particles }
    }

    /// Adds the losses of an update (`[N]`) and whether each particle was classified correctly
    /// (`[N]`).
    pub fn add(&mut self, losses: &Tensor, correct: &Tensor) {
        self.loss += losses.sum(Kind::Double);
        self.correct += correct.sum(Kind::Double);
        self.particles += losses.size()[0] as f64;
    }

    /// The sums: loss, number of correct particles, number of particles. Waits for the device.
    pub fn read(&self) -> (f64, f64, f64) {
        (self.loss.double_value(&[]), self.correct.double_value(&[]), self.particles)
    }
}
