//! Models, samplers and attacks that are written in Python: `python.so,file=my_net.py`.
//!
//! CPython runs inside the host's process. Tensors are handed over without a copy, with their
//! autograd graph. The torch of the interpreter must be the host's libtorch (`make python`). An
//! idea is tried here in minutes, and ported to Rust when it works; docs/pytorch.md shows both.

mod attack;
mod bridge;
mod model;
mod sampler;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

plugin_api::export_model!("python-model", model::PythonModel);
plugin_api::export_sampler!("python-sampler", sampler::PythonSampler);
plugin_api::export_attack!("python-attack", attack::PythonAttack);

/// The options.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// The Python file.
    #[schemars(extend("x-file" = "code"))]
    pub file: String,
    /// The class in the file, or a function that makes an object; needed if several classes fit.
    #[serde(default)]
    pub class: Option<String>,
    /// Every other option goes to the class, by name.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}
