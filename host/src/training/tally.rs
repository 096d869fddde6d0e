//! Sums over an epoch.

use tch::{Device, Kind, Tensor};

/// Running sums on the device.
pub struct Tally {
    loss: Tensor,
    correct: Tensor,
    particles: f64,
}

impl Tally {
    /// Sums that go on from these: loss, correct particles, particles.
    pub fn new((loss, correct, particles): (f64, f64, f64), device: Device) -> Self {
        let scalar = |value: f64| Tensor::from(value).to_device(device);
        Self { loss: scalar(loss), correct: scalar(correct), particles }
    }

    /// Adds an update's losses (`[N]`) and which particles were classified correctly (`[N]`).
    pub fn add(&mut self, losses: &Tensor, correct: &Tensor) {
        self.loss += losses.sum(Kind::Double);
        self.correct += correct.sum(Kind::Double);
        self.particles += losses.size()[0] as f64;
    }

    /// Loss, correct particles, particles. Waits for the device.
    pub fn read(&self) -> (f64, f64, f64) {
        (self.loss.double_value(&[]), self.correct.double_value(&[]), self.particles)
    }
}
