//! Plugins: their specs, finding and opening them, and calls with the checks of the host.

mod attack;
pub mod library;
mod model;
mod sampler;
pub(crate) mod spec;

pub use attack::{Attack, CountedVictim};
pub use library::Record;
pub use model::LoadedModel;
pub use plugin_api::walk::Visit;
pub use sampler::{Sampler, fresh_start};
pub use spec::{PluginSpec, parse};

use crate::{Error, Result};
use plugin_api::first_line;
use tch::Tensor;

/// Calls a method of a plugin. Errors name the plugin and the method. The number of threads is
/// restored after the call. (The caller restores the gradient mode.)
fn call<T>(plugin: &str, method: &str, call: impl FnOnce() -> plugin_api::Result<T>) -> Result<T> {
    let threads = tch::get_num_threads();
    let outcome = call();
    if tch::get_num_threads() != threads {
        tch::set_num_threads(threads);
    }
    outcome.map_err(|error| {
        Error::new(format!("{plugin}: {method}: {}", first_line(&error.to_string()))).on_the_way()
    })
}

/// Refuses a returned tensor that does not have this shape, or the dtype and device of `like`.
fn check_like(plugin: &str, method: &str, got: &Tensor, shape: &[i64], like: &Tensor) -> Result<()> {
    let refused = |what: &str, expected: String, got: String| {
        Err(Error::new(format!("{plugin}: {method} returned a tensor of {what} {got}; expected {expected}"))
            .on_the_way())
    };
    if !got.defined() {
        return refused("shape", format!("{shape:?}"), "none (undefined)".to_owned());
    }
    if got.size() != shape {
        return refused("shape", format!("{shape:?}"), format!("{:?}", got.size()));
    }
    if got.kind() != like.kind() {
        return refused("dtype", format!("{:?}", like.kind()), format!("{:?}", got.kind()));
    }
    if got.device() != like.device() {
        return refused("device", format!("{:?}", like.device()), format!("{:?}", got.device()));
    }
    Ok(())
}
