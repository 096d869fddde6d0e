//! A check for NaN and infinite values that does not wait for the device at every step.

use crate::{Error, Result};
use tch::{Device, Kind, Tensor};

/// The number of no update.
const NEVER: i64 = i64::MAX;

/// A condition that is checked.
struct Condition {
    what: String,
    fix: Option<&'static str>,
    /// The first update that violated it, or [`NEVER`].
    first_bad: Tensor,
}

/// Records, on the device, the first update that violated a condition. Reading the record waits for
/// the device; a check does not.
pub struct FiniteCheck {
    conditions: Vec<Condition>,
    unit: &'static str,
    number: i64,
    device: Device,
}

impl FiniteCheck {
    /// An empty record, whose numbers count `unit`s ("update").
    pub(crate) fn new(unit: &'static str, device: Device) -> Self {
        Self { conditions: Vec::new(), unit, number: 0, device }
    }

    /// Sets the number of the update or step that the following checks belong to.
    pub(crate) fn at(&mut self, number: u64) {
        self.number = number as i64;
    }

    /// Checks that a tensor from a plugin is finite.
    pub(crate) fn finite(&mut self, plugin: &str, values: &Tensor) {
        // This reads memory once. The extremes of a tensor with NaN are NaN.
        let (lowest, highest) = values.aminmax(None, false);
        let what = format!("{plugin} returned NaN or infinite values");
        self.note(what, None, &are_zero(&(lowest * 0.0 + highest * 0.0)));
    }

    /// Checks that the loss is finite.
    pub(crate) fn loss(&mut self, loss: &Tensor) {
        let what = "the loss became NaN or infinite".to_owned();
        self.note(what, Some("lower train.learning_rate"), &are_zero(&(loss * 0.0)));
    }

    /// Checks that all particles of a sampler with its own projection are `inside` (`[N]`, bool).
    pub(crate) fn inside(&mut self, plugin: &str, inside: &Tensor) {
        let what = format!("{plugin} left the threat model, which it declared to project onto itself");
        self.note(what, None, &inside.all());
    }

    fn note(&mut self, what: String, fix: Option<&'static str>, good: &Tensor) {
        let index = self.conditions.iter().position(|known| known.what == what).unwrap_or_else(|| {
            let first_bad = Tensor::full([] as [i64; 0], NEVER, (Kind::Int64, self.device));
            self.conditions.push(Condition { what, fix, first_bad });
            self.conditions.len() - 1
        });
        let first_bad = &mut self.conditions[index].first_bad;
        // Numbers rise: the first one is the least.
        *first_bad = first_bad.where_self(good, &first_bad.clamp_max(self.number));
    }

    /// Waits for the device.
    ///
    /// # Errors
    /// If a condition was violated: the one that was violated first, and the number of the update.
    pub(crate) fn read(&self) -> Result<()> {
        let marked =
            self.conditions.iter().map(|condition| (condition.first_bad.int64_value(&[]), condition));
        match marked.filter(|(number, _)| *number < NEVER).min_by_key(|(number, _)| *number) {
            None => Ok(()),
            Some((number, Condition { what, fix, .. })) => {
                let error = Error::new(format!("{what} at {} {number}", self.unit)).on_the_way();
                Err(fix.iter().fold(error, Error::fix))
            }
        }
    }
}

/// Whether products with zero are zero: they are not of NaN and infinite numbers. On a GPU, this takes
/// fewer launches than to ask whether the numbers are finite.
fn are_zero(products: &Tensor) -> Tensor {
    products.eq(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_and_the_least_numbers_are_finite() {
        let mut watch = FiniteCheck::new("update", Device::Cpu);
        watch.at(1);
        watch.finite("good", &Tensor::from_slice(&[f32::MIN, f32::MAX, -0.0, f32::MIN_POSITIVE]));
        watch.loss(&Tensor::from(f64::MAX));
        assert!(watch.read().is_ok());
        watch.finite("bad", &Tensor::from_slice(&[0.0f32, f32::NEG_INFINITY]));
        assert!(watch.read().is_err_and(|why| why.first_line().starts_with("bad returned")));
    }

    #[test]
    fn the_first_violation_is_recorded() {
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
            watch.read().expect_err("recorded").to_string(),
            "bad returned NaN or infinite values at update 2"
        );
    }
}
