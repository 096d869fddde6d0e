//! The interface between the host and its plugins, for authors of plugins.
//!
//! A plugin is a model, a sampler, an attack or an objective in a shared library that the `host`
//! program loads at run time. Implement [`Model`], [`Sampler`], [`Attack`] or [`Objective`], and export
//! it:
//!
//! ```
//! use plugin_api::{NoOptions, Next, Result, Sampler, Step};
//!
//! /// Moves against the gradient: an example of the interface only.
//! pub struct Descent;
//!
//! impl Sampler for Descent {
//!     type Options = NoOptions;
//!
//!     fn new(_: NoOptions) -> Result<Self> {
//!         Ok(Self)
//!     }
//!
//!     fn step(&self, step: &Step) -> Result<Next> {
//!         Ok((step.particles - step.gradient * 0.1).into())
//!     }
//! }
//!
//! plugin_api::export_sampler!("descent", Descent);
//! # fn main() {}
//! ```
//!
//! The crate is a `cdylib`; its file is the plugin. A library may export any number of plugins of
//! any kind. Use [`tch`] through this crate, so that host and plugin use the same version.
//!
//! Panics inside a plugin are caught at the boundary and become errors. An instance that panicked
//! is not used again.

mod attack;
mod error;
mod model;
mod objective;
mod options;
mod random;
mod sampler;
mod tensor;
mod threat;

pub mod abi;
pub mod contract;
pub mod law;
pub mod layers;
pub mod losses;
pub mod manifest;
pub mod metropolis;
pub mod python;
pub mod testing;
pub mod walk;

pub use attack::{Attack, Evaluation, Target, Victim, VictimCalls};
pub use error::{first_line, Error, Result};
pub use model::{Model, Task};
pub use objective::{Batch, Climbs, Network, NetworkCalls, Objective, Outer, Passes, Setting};
pub use options::{NoOptions, PluginOptions};
pub use random::{Distribution, Random, RandomSource};
pub use sampler::{Next, Projection, Sampler, Start, Step};
pub use tch;
pub use threat::{Norm, ThreatModel};

/// The libtorch this crate was built against, version and build: "2.13.0+cu130".
pub const LIBTORCH: &str = env!("PLUGIN_API_LIBTORCH");
