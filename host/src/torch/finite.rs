//! Noticing trouble without asking the device at every step.

use crate::{Error, Result};
use tch::{Device, Kind, Tensor};

/// Something that may go wrong.
struct Concern {
    what: String,
    fix: Option<&'static str>,
    /// The first bad update, or -1.
    first_bad: Tensor,
}

/// Remembers, on the device, the first update at which something went wrong. Reading it
/// waits for the device; noting does not.
pub struct FiniteCheck {
    concerns: Vec<Concern>,
    unit: &'static str,
    number: i64,
    device: Device,
}

impl FiniteCheck {
    /// Nothing has gone wrong yet; what is watched is counted in `unit`s ("update").
    pub fn new(unit: &'static str, device: Device) -> Self {
        Self { concerns: Vec::new(), unit, number: 0, device }
    }

    /// Says which update or step the following notes belong to.
    pub fn at(&mut self, number: u64) {
        self.number = number as i64;
    }

    /// Notes whether a tensor that a plugin returned has NaN or infinite values.
    pub fn finite(&mut self, plugin: &str, values: &Tensor) {
        // One walk through memory: NaN passes through to the extremes.
        let (lowest, highest) = values.aminmax(None, false);
        let finite = lowest.isfinite().logical_and(&highest.isfinite());
        self.note(format!("{plugin} returned NaN or infinite values"), None, &finite);
    }

    /// Notes whether the loss is finite.
    pub fn loss(&mut self, loss: &Tensor) {
        let what = "the loss became NaN or infinite".to_owned();
        self.note(what, Some("lower train.learning_rate"), &loss.isfinite());
    }

    /// Notes whether all particles of a sampler that projects by itself are inside (`[N]`, bool).
    pub fn inside(&mut self, plugin: &str, inside: &Tensor) {
        let what = format!("{plugin} left the threat model, which it declared to project onto itself");
        self.note(what, None, &inside.all());
    }

    fn note(&mut self, what: String, fix: Option<&'static str>, good: &Tensor) {
        let index = self.concerns.iter().position(|known| known.what == what).unwrap_or_else(|| {
            let first_bad = Tensor::full([] as [i64; 0], -1, (Kind::Int64, self.device));
            self.concerns.push(Concern { what, fix, first_bad });
            self.concerns.len() - 1
        });
        let first_bad = &mut self.concerns[index].first_bad;
        let unmarked = first_bad.lt(0).logical_and(&good.logical_not());
        *first_bad = first_bad.masked_fill(&unmarked, self.number);
    }

    /// Waits for the device and reports the earliest trouble noted so far.
    ///
    /// # Errors
    /// If there was any: what and at which update.
    pub fn read(&self) -> Result<()> {
        let marked = self.concerns.iter().map(|concern| (concern.first_bad.int64_value(&[]), concern));
        match marked.filter(|(number, _)| *number >= 0).min_by_key(|(number, _)| *number) {
            None => Ok(()),
            Some((number, Concern { what, fix, .. })) => {
                let error = Error::new(format!("{what} at {} {number}", self.unit)).on_the_way();
                Err(fix.iter().fold(error, Error::fix))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_trouble_is_remembered() {
        let mut watch = FiniteCheck::new("update", Device::Cpu);
        watch.at(1);
        watch.loss(&Tensor::from(1.0));
        assert!(watch.read().is_ok());
        watch.at(2);
        watch.finite("bad", &Tensor::from_slice(&[0.0, f64::INFINITY]));
        watch.at(3);
        watch.loss(&Tensor::from(f64::NAN));
        watch.finite("bad", &Tensor::from_slice(&[f64::NAN]));
        assert_eq!(
            watch.read().expect_err("noted").to_string(),
            "bad returned NaN or infinite values at update 2"
        );
    }
}
