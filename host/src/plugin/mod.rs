//! Plugins: their specs, finding and opening them, and calls with the checks of the host.

mod attack;
mod guard;
pub mod library;
mod model;
mod objective;
pub mod running;
mod sampler;
pub(crate) mod spec;
mod threat;
pub(crate) mod trust;

pub use attack::{Attack, Candidates, CountedVictim};
pub use guard::Guard;
use guard::{Owned, call};
pub use library::Record;
pub use model::LoadedModel;
pub(crate) use model::check_memory;
pub use objective::Objective;
pub use plugin_api::walk::Visit;
pub use sampler::{Sampler, faces, fresh_start, uniform_in_box};
pub use spec::{PluginSpec, parse};
pub(crate) use threat::channel_scale;
pub use threat::{Pixels, SeenModel, Threat};

use crate::{Error, Result};
use tch::Tensor;

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
