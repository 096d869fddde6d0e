//! A multilayer perceptron.

use plugin_api::tch::Tensor;
use plugin_api::tch::nn::{self, Module};
use plugin_api::{Model, Result, Task, export_model};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_model!("my-model", MyModel);

/// The network.
pub struct MyModel {
    layers: nn::Sequential,
}

/// The options.
#[derive(Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// Number of units of each hidden layer.
    #[schemars(range(min = 1))]
    pub hidden: i64,
    /// Number of hidden layers.
    pub depth: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { hidden: 256, depth: 2 }
    }
}

impl Model for MyModel {
    type Options = Options;

    fn new(options: Options, task: Task, path: &nn::Path) -> Result<Self> {
        let mut layers = nn::seq();
        let mut width = task.channels * task.height * task.width;
        for number in 0..options.depth {
            let layer = nn::linear(path / format!("hidden{number}"), width, options.hidden, Default::default());
            layers = layers.add(layer).add_fn(Tensor::relu);
            width = options.hidden;
        }
        let layers = layers.add(nn::linear(path / "output", width, task.classes, Default::default()));
        Ok(Self { layers })
    }

    fn forward(&self, images: &Tensor, _train: bool) -> Result<Tensor> {
        Ok(self.layers.forward(&images.flatten(1, -1)))
    }
}
