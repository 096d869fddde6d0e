//! Common parts of convolutional networks: normalisation of images, convolutions and batch
//! normalisation, with PyTorch's initialisation.

use crate::{Error, Result, Task};
use tch::nn::init::{FanInOut, NonLinearity, NormalOrUniform};
use tch::nn::{self, Init, ModuleT};
use tch::{Device, Kind, Tensor};

/// Normalises images from the domain of the threat model: (images - mean) / std, channel by
/// channel. This happens inside the model, so that epsilon refers to the images before
/// normalisation.
pub struct Normalization {
    /// Mean and standard deviation, `[1, C, 1, 1]` each; none without normalisation.
    moments: Option<(Tensor, Tensor)>,
}

impl Normalization {
    /// `mean` and `std` have a number for each channel; an empty list means 0 and 1.
    ///
    /// # Errors
    /// If a list has another length, a number is not finite, or a standard deviation is not
    /// above 0.
    pub fn new(mean: &[f64], std: &[f64], task: Task, device: Device) -> Result<Self> {
        for (name, numbers) in [("mean", mean), ("std", std)] {
            if !numbers.is_empty() && numbers.len() as i64 != task.channels {
                return Err(Error::new(format!(
                    "option `{name}`: expected {} numbers, one for each channel, got {numbers:?}",
                    task.channels
                )));
            }
        }
        if let Some(mean) = mean.iter().find(|mean| !mean.is_finite()) {
            return Err(Error::new(format!("option `mean`: expected finite numbers, got {mean}")));
        }
        if let Some(std) = std.iter().find(|std| !(std.is_finite() && **std > 0.0)) {
            return Err(Error::new(format!("option `std`: expected finite numbers above 0, got {std}")));
        }
        let tensor = |numbers: &[f64], default: f64| {
            let default = vec![default; task.channels as usize];
            let numbers = if numbers.is_empty() { &default } else { numbers };
            let numbers: Vec<f32> = numbers.iter().map(|number| *number as f32).collect();
            Tensor::from_slice(&numbers).reshape([1, -1, 1, 1]).to_device(device)
        };
        let given = !(mean.is_empty() && std.is_empty());
        Ok(Self { moments: given.then(|| (tensor(mean, 0.0), tensor(std, 1.0))) })
    }

    /// The normalised images, `[N, C, H, W]`.
    pub fn forward(&self, images: &Tensor) -> Tensor {
        match &self.moments {
            // A traced network follows its images to another device or type.
            Some((mean, std)) => (images - mean.type_as(images)) / std.type_as(images),
            None => images.shallow_clone(),
        }
    }
}

/// PyTorch's initialisation of linear layers, and of convolutions with a bias: weights and biases
/// are uniform in [-b, b], where b is one over the square root of the number of inputs. The
/// initialisation of tch is different.
pub fn uniform_init(inputs: i64) -> Init {
    let bound = 1.0 / (inputs as f64).sqrt();
    Init::Uniform { lo: -bound, up: bound }
}

/// A linear layer, initialised as PyTorch does.
pub fn linear(path: nn::Path, inputs: i64, outputs: i64) -> nn::Linear {
    let init = uniform_init(inputs);
    let config = nn::LinearConfig { ws_init: init, bs_init: Some(init), bias: true };
    nn::linear(path, inputs, outputs, config)
}

/// The mean of every channel: `[N, C]` of features `[N, C, H, W]`.
pub fn global_average(features: &Tensor) -> Tensor {
    features.mean_dim([2i64, 3].as_slice(), false, None::<Kind>)
}

/// A convolution to be used before batch normalisation: without a bias, padded by half its odd
/// `width`. Its weights are normal with variance 2 / (outputs * width^2): kaiming_normal with mode
/// fan_out (He et al. 2015), as in torchvision's residual networks.
pub fn convolution(path: nn::Path, inputs: i64, outputs: i64, width: i64, stride: i64) -> nn::Conv2D {
    let ws_init = Init::Kaiming {
        dist: NormalOrUniform::Normal,
        fan: FanInOut::FanOut,
        non_linearity: NonLinearity::ReLU,
    };
    let config = nn::ConvConfig { stride, padding: width / 2, bias: false, ws_init, ..Default::default() };
    nn::conv2d(path, inputs, outputs, width, config)
}

/// Batch normalisation of images' features (Ioffe and Szegedy 2015) with PyTorch's defaults.
/// Initially the weight is 1 and the bias 0. 1e-5 is added to variances. In training, every batch
/// updates the running mean and the running (unbiased) variance with weight 0.1. Evaluation uses
/// these running statistics.
pub struct BatchNorm {
    layer: nn::BatchNorm,
}

impl BatchNorm {
    /// A layer on features of this many channels.
    pub fn new(path: nn::Path, channels: i64) -> Self {
        let config = nn::BatchNormConfig { ws_init: Init::Const(1.0), ..Default::default() };
        Self { layer: nn::batch_norm2d(path, channels, config) }
    }

    /// Features `[N, channels, H, W]`, normalised by the statistics of the batch in training and by
    /// the running statistics in evaluation.
    ///
    /// # Errors
    /// If a batch in training has a single number per channel, which has no variance.
    pub fn forward(&self, features: &Tensor, train: bool) -> Result<Tensor> {
        if let (true, [1, _, 1, 1]) = (train, features.size().as_slice()) {
            return Err(Error::new(
                "batch normalisation in training needs two numbers per channel, got one: a batch of a single \
                 image whose features are one pixel; choose a batch size that leaves no single image over",
            ));
        }
        Ok(self.layer.forward_t(features, train))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::nn::VarStore;

    const TASK: Task = Task { channels: 2, height: 1, width: 2, classes: 2 };

    #[test]
    fn images_are_normalised_channel_by_channel() {
        let images = Tensor::from_slice(&[0.5f32, 1.0, 0.5, 1.0]).reshape([1, 2, 1, 2]);
        let normalised = |mean: &[f64], std: &[f64]| {
            let normalization = Normalization::new(mean, std, TASK, Device::Cpu).expect("valid");
            Vec::<f32>::try_from(normalization.forward(&images).flatten(0, -1)).expect("numbers")
        };
        assert_eq!(normalised(&[0.5, 0.25], &[0.5, 0.25]), [0.0, 1.0, 1.0, 3.0]);
        assert_eq!(normalised(&[0.5, 0.0], &[]), [0.0, 0.5, 0.5, 1.0]);
        assert_eq!(normalised(&[], &[]), [0.5, 1.0, 0.5, 1.0]);
    }

    #[test]
    fn invalid_means_and_standard_deviations_are_refused() {
        let refusal = |mean: &[f64], std: &[f64]| {
            Normalization::new(mean, std, TASK, Device::Cpu).err().expect("refused").to_string()
        };
        assert_eq!(
            refusal(&[0.5], &[]),
            "option `mean`: expected 2 numbers, one for each channel, got [0.5]"
        );
        assert_eq!(refusal(&[], &[1.0, 0.0]), "option `std`: expected finite numbers above 0, got 0");
        assert_eq!(refusal(&[0.0, f64::NAN], &[]), "option `mean`: expected finite numbers, got NaN");
    }

    #[test]
    fn a_batch_enters_the_running_statistics_with_weight_one_tenth() {
        let variables = VarStore::new(Device::Cpu);
        let norm = BatchNorm::new(variables.root(), 1);
        // Mean 2, unbiased variance 2, biased 1.
        let features = Tensor::from_slice(&[1.0f32, 3.0]).reshape([2, 1, 1, 1]);
        let close = |tensor: &Tensor, expected: f64| (tensor.double_value(&[0]) - expected).abs() < 1e-6;
        let trained = norm.forward(&features, true).expect("features").flatten(0, -1);
        assert!(close(&trained, -1.0 / 1.00001f64.sqrt()), "{trained:?}");
        let state = variables.variables();
        // 0.9 * 0 + 0.1 * 2 and 0.9 * 1 + 0.1 * 2.
        assert!(close(&state["running_mean"], 0.2) && close(&state["running_var"], 1.1));
        let evaluated = norm.forward(&features, false).expect("features").flatten(0, -1);
        assert!(close(&evaluated, 0.8 / 1.10001f64.sqrt()), "{evaluated:?}");
        assert!(close(&state["running_mean"], 0.2), "evaluation does not change it");
    }

    #[test]
    fn a_single_number_per_channel_is_refused_in_training() {
        let variables = VarStore::new(Device::Cpu);
        let norm = BatchNorm::new(variables.root(), 3);
        let features = |rows: i64| Tensor::ones([rows, 3, 1, 1], (Kind::Float, Device::Cpu));
        let refused = norm.forward(&features(1), true).expect_err("refused").to_string();
        assert!(refused.contains("needs two numbers per channel"), "{refused}");
        assert!(norm.forward(&features(1), false).is_ok() && norm.forward(&features(2), true).is_ok());
    }

    #[test]
    fn initial_weights_are_those_of_pytorch() {
        tch::manual_seed(1);
        let variables = VarStore::new(Device::Cpu);
        let root = variables.root();
        let convolution = convolution(&root / "convolution", 8, 64, 3, 1);
        // sqrt(2 / (64 * 9)) = 0.0589; 4608 numbers, five standard errors are 5 %.
        let deviation = convolution.ws.std(true).double_value(&[]);
        assert!((deviation / 0.0589 - 1.0).abs() < 0.05, "{deviation}");
        assert!(convolution.bs.is_none());
        let linear = linear(&root / "linear", 100, 50);
        let largest = linear.ws.abs().max().double_value(&[]);
        assert!((0.099..=0.1).contains(&largest), "{largest}");
    }
}
