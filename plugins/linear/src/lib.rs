//! Softmax regression: one linear layer on the pixels, logits = W x + b, where x may be normalised
//! first.
//!
//! Its cross-entropy is convex in the image, and for whole numbers lambda the distribution with
//! density proportional to exp(lambda * loss) on a box is known exactly (`plugin_api::law`).
//! Initial weights are those of PyTorch.

use plugin_api::layers::{Normalization, linear};
use plugin_api::tch::Tensor;
use plugin_api::tch::nn::{self, Module};
use plugin_api::{Model, Result, Task, export_model};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_model!("linear", Linear);

/// Softmax regression.
pub struct Linear {
    normalization: Normalization,
    output: nn::Linear,
}

/// The options.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// Means of the channels, subtracted from the images; 0 if the list is empty. MNIST's is
    /// [0.1307].
    pub mean: Vec<f64>,
    /// Standard deviations of the channels, by which the images are divided; 1 if the list is
    /// empty. MNIST's is [0.3081].
    pub std: Vec<f64>,
}

impl Model for Linear {
    type Options = Options;

    fn new(options: Options, task: Task, path: &nn::Path) -> Result<Self> {
        let pixels = task.channels * task.height * task.width;
        let normalization = Normalization::new(&options.mean, &options.std, task, path.device())?;
        Ok(Self { normalization, output: linear(path / "output", pixels, task.classes) })
    }

    fn forward(&self, images: &Tensor, _: bool) -> Result<Tensor> {
        Ok(self.output.forward(&self.normalization.forward(images).flatten(1, -1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::tch::{Device, Kind, no_grad};
    use plugin_api::testing::assert_close;

    #[test]
    fn logits_are_the_weighted_pixels_plus_the_bias() {
        let mut variables = nn::VarStore::new(Device::Cpu);
        let task = Task { channels: 1, height: 1, width: 2, classes: 3 };
        let model = Linear::new(Options::default(), task, &variables.root()).expect("a model");
        variables.double();
        let mut named = variables.variables();
        assert_eq!(named.len(), 2);
        no_grad(|| {
            let weights = Tensor::from_slice(&[1.0, 2.0, -1.0, 0.5, 0.0, 4.0]).reshape([3, 2]);
            named.get_mut("output.weight").expect("weights").copy_(&weights);
            named.get_mut("output.bias").expect("a bias").copy_(&Tensor::from_slice(&[0.0, 0.25, -1.0]));
        });
        let images = Tensor::from_slice(&[0.5, 0.25]).reshape([1, 1, 1, 2]).to_kind(Kind::Double);
        // 0.5 + 0.5; -0.5 + 0.125 + 0.25; 1 - 1.
        assert_close(&model.forward(&images, true).expect("logits"), &[1.0, -0.125, 0.0]);
    }
    #[test]
    fn normalised_images_give_the_logits_of_other_weights() {
        let task = Task { channels: 2, height: 1, width: 1, classes: 2 };
        let variables = nn::VarStore::new(Device::Cpu);
        let options = Options { mean: vec![0.5, 0.0], std: vec![0.5, 4.0] };
        let model = Linear::new(options, task, &variables.root()).expect("a model");
        let named = variables.variables();
        assert_eq!(named.len(), 2, "mean and std are no state");
        no_grad(|| {
            let weights = Tensor::from_slice(&[1.0f32, 2.0, -1.0, 8.0]).reshape([2, 2]);
            named["output.weight"].shallow_clone().copy_(&weights);
            let _ = named["output.bias"].shallow_clone().zero_();
        });
        let images = Tensor::from_slice(&[1.0f32, 0.5]).reshape([1, 2, 1, 1]);
        // Normalised: 1 and 0.125.
        assert_close(&model.forward(&images, true).expect("logits"), &[1.25, 0.0]);
    }
}
