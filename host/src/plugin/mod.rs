//! Plugins: how users name them, how they are found and opened, and their calls with
//! everything that the host checks around each.

mod attack;
pub mod library;
mod model;
mod sampler;
mod spec;

pub use attack::{Attack, CountedVictim};
pub use library::Record;
pub use model::Model;
pub use plugin_api::walk::Visit;
pub use sampler::{Sampler, fresh_start};
pub use spec::{PluginSpec, parse};

use crate::{Error, Result};
use plugin_api::first_line;
use tch::Tensor;

/// Calls into a plugin: names it in errors, and restores the thread count afterwards. (Grad
/// mode is restored by whoever sets it for the call.)
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

/// Refuses a returned tensor of another shape, dtype or device than expected.
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
