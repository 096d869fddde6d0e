//! Calls of plugins, and what must be as before after them.

use super::running;
use crate::torch::identity::Identity;
use crate::torch::process::ProcessState;
use crate::{Error, Result};
use std::ops::Deref;
use tch::Tensor;

/// What the host sees of itself before a call: the settings of the process, and the tensors that the
/// plugin is lent.
pub struct Guard<'a> {
    process: ProcessState,
    lent: Vec<(&'a str, &'a Tensor, Identity)>,
}

impl<'a> Guard<'a> {
    /// The state before a call. It does not wait for the device.
    ///
    /// # Errors
    /// If libtorch does not answer.
    pub fn before(lent: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<Self> {
        let identified = lent.into_iter().map(|(name, tensor)| Ok((name, tensor, Identity::of(tensor)?)));
        Ok(Self { lent: identified.collect::<Result<_>>()?, process: ProcessState::current()? })
    }

    /// The state after `what` ("langevin: step").
    ///
    /// # Errors
    /// If anything changed: what, and who did it.
    pub fn after(&self, what: &str) -> Result<()> {
        for (name, tensor, before) in &self.lent {
            if !before.is_unchanged(&Identity::of(tensor)?) {
                return Err(Error::new(format!(
                    "{what} wrote to `{name}`; expected tensors that stay as they are"
                ))
                .note("because", "the host goes on with them: results after this call would be wrong")
                .fix("copy a tensor before an operation in place (conformance check tensors-inputs)")
                .on_the_way());
            }
        }
        match self.process.difference(&ProcessState::current()?) {
            None => Ok(()),
            Some(changed) => Err(Error::new(format!("{what} changed the process and left it so: {changed}"))
                .note("because", "all other code of the process depends on it")
                .fix("restore it before the call returns (conformance check hygiene-process)")
                .on_the_way()),
        }
    }
}

/// An instance of a plugin. While it is dropped, code of the plugin runs, too.
pub(super) struct Owned<T> {
    plugin: String,
    instance: Option<T>,
}

impl<T> Owned<T> {
    /// An instance of the plugin of this name.
    pub fn new(plugin: &str, instance: T) -> Self {
        Self { plugin: plugin.to_owned(), instance: Some(instance) }
    }
}

impl<T> Deref for Owned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.instance.as_ref().expect("an instance, until it is dropped")
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        running::run(format!("{}: drop", self.plugin), || drop(self.instance.take()));
    }
}

/// Calls a method of a plugin, which is lent these tensors. Errors name the plugin and the method.
/// The number of threads is restored after the call. (The caller restores the gradient mode.)
///
/// # Errors
/// That of the plugin, or if it wrote to a tensor or changed the process.
pub(super) fn call<'a, T>(
    plugin: &str,
    method: &str,
    lent: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    call: impl FnOnce() -> plugin_api::Result<T>,
) -> Result<T> {
    let what = || format!("{plugin}: {method}");
    let threads = tch::get_num_threads();
    let guard = Guard::before(lent)?;
    let outcome = running::run(what(), call);
    if tch::get_num_threads() != threads {
        tch::set_num_threads(threads);
    }
    let value = outcome.map_err(|error| Error::new(format!("{}: {error}", what())).on_the_way())?;
    guard.after(&what())?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn refusal(change: impl FnOnce(&Tensor)) -> Option<String> {
        let natural = Tensor::zeros([2], (Kind::Float, Device::Cpu));
        let outcome = call("bad", "step", [("natural", &natural)], || {
            change(&natural);
            Ok(())
        });
        outcome.err().map(|error| error.first_line().to_owned())
    }

    #[test]
    fn a_write_to_a_lent_tensor_is_refused_and_named() {
        assert_eq!(refusal(|natural| drop(natural + 1.0)), None);
        let refused = refusal(|natural| drop(natural.shallow_clone().fill_(1.0)));
        let expected = "bad: step wrote to `natural`; expected tensors that stay as they are";
        assert_eq!(refused.as_deref(), Some(expected));
        assert_eq!(refusal(|natural| drop(natural.set_requires_grad(true))).as_deref(), Some(expected));
    }

    #[test]
    fn the_error_of_the_plugin_comes_first() {
        let natural = Tensor::zeros([2], (Kind::Float, Device::Cpu));
        let outcome: Result<()> = call("bad", "step", [("natural", &natural)], || {
            let _ = natural.shallow_clone().fill_(1.0);
            Err(plugin_api::Error::new("no"))
        });
        assert_eq!(outcome.expect_err("refused").to_string(), "bad: step: no");
    }
}
