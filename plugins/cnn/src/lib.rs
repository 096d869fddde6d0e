//! The paper's two convolutional networks for MNIST and a small one of the field, on images of any
//! size. Initial weights are those of PyTorch, with which the paper's results were made.

use plugin_api::layers::{Normalization, linear, uniform_init};
use plugin_api::tch::nn::{self, Module};
use plugin_api::tch::{Device, Tensor};
use plugin_api::{Error, Model, Result, Task, export_model};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_model!("cnn", Cnn);

/// Up to this number of input channels, the first convolution on a CPU is a product of matrices.
const FEW_CHANNELS: i64 = 4;

/// Architecture A, B or small.
pub struct Cnn {
    arch: Arch,
    normalization: Normalization,
    convolutions: Vec<nn::Conv2D>,
    /// Padding and stride of the first convolution.
    padding: i64,
    stride: i64,
    hidden: nn::Linear,
    output: nn::Linear,
}

/// The options.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct Options {
    /// The layers.
    pub arch: Arch,
    /// Means of the channels, subtracted from the images; 0 if the list is empty. MNIST's is
    /// [0.1307].
    pub mean: Vec<f64>,
    /// Standard deviations of the channels, by which the images are divided; 1 if the list is
    /// empty. MNIST's is [0.3081].
    pub std: Vec<f64>,
}

/// A and B are the paper's architectures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Arch {
    /// Two convolutions of 64 channels and width 5, dropout, a linear layer of 128; no ReLU
    /// between the linear layers. 3.4 million parameters on MNIST.
    A,
    /// Four convolutions of width 3, two of them with stride 2, a linear layer of 100.
    #[default]
    B,
    /// Two convolutions of width 4 and stride 2 with 16 and 32 channels, a linear layer of 100: the
    /// network for MNIST of Wong and Kolter (2018, "Provable Defenses against Adversarial Examples
    /// via the Convex Outer Adversarial Polytope") and of Wong, Rice and Kolter (2020, "Fast is
    /// better than free"). On a CPU, a pass takes a ninth of the time of one of B.
    #[serde(rename = "small")]
    Small,
}

impl Cnn {
    /// The first convolution and its ReLU. On a CPU it is a product of matrices.
    /// libtorch's convolution would pad its few input channels to sixteen in the gradient with
    /// respect to the images, which every attack and sampler needs.
    fn first(&self, images: &Tensor) -> Tensor {
        let convolution = &self.convolutions[0];
        let (shape, padding, stride) = (convolution.ws.size(), self.padding, self.stride);
        let [outputs, channels, width, _] = shape[..] else { return convolution.forward(images) };
        if channels > FEW_CHANNELS || images.device() != Device::Cpu {
            return convolution.forward(images).relu_();
        }
        let sides = images.size();
        let side = |axis: usize| (sides[axis] + 2 * padding - width) / stride + 1;
        let patches = images.im2col([width; 2], [1, 1], [padding; 2], [stride; 2]).transpose(1, 2);
        let products = patches.matmul(&convolution.ws.reshape([outputs, -1]).tr());
        let mut products = match &convolution.bs {
            Some(bias) => products + bias,
            None => products,
        };
        products.relu_().unflatten(1, [side(2), side(3)]).permute([0, 3, 1, 2])
    }
}

impl Model for Cnn {
    type Options = Options;

    fn new(options: Options, task: Task, path: &nn::Path) -> Result<Self> {
        let Task { channels, height, width, classes } = task;
        let (name, least) = match options.arch {
            Arch::A => ("A", 9),
            Arch::B => ("B", 1),
            Arch::Small => ("small", 4),
        };
        if height < least || width < least {
            return Err(Error::new(format!(
                "architecture {name} takes images of at least {least}x{least} pixels, got {height}x{width}"
            )));
        }
        // Input channels, output channels, width, padding, stride.
        let (layers, features, hidden): (&[_], _, _) = match options.arch {
            Arch::A => (&[(channels, 64, 5, 0, 1), (64, 64, 5, 0, 1)], 64 * (height - 8) * (width - 8), 128),
            Arch::B => {
                let quarter = |side: i64| (side + 3) / 4;
                (
                    &[(channels, 32, 3, 1, 1), (32, 64, 3, 1, 2), (64, 64, 3, 1, 1), (64, 64, 3, 1, 2)],
                    64 * quarter(height) * quarter(width),
                    100,
                )
            }
            Arch::Small => {
                (&[(channels, 16, 4, 1, 2), (16, 32, 4, 1, 2)], 32 * (height / 4) * (width / 4), 100)
            }
        };
        let convolutions =
            layers.iter().enumerate().map(|(number, &(input, output, width, padding, stride))| {
                let init = uniform_init(input * width * width);
                let config =
                    nn::ConvConfig { stride, padding, ws_init: init, bs_init: init, ..Default::default() };
                nn::conv2d(path / format!("conv{}", number + 1), input, output, width, config)
            });
        Ok(Self {
            arch: options.arch,
            normalization: Normalization::new(&options.mean, &options.std, task, path.device())?,
            convolutions: convolutions.collect(),
            padding: layers[0].3,
            stride: layers[0].4,
            hidden: linear(path / "hidden", features, hidden),
            output: linear(path / "output", hidden, classes),
        })
    }

    /// Architecture A has dropout.
    fn train_differs(&self) -> bool {
        self.arch == Arch::A
    }

    fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        let mut features = self.first(&self.normalization.forward(images));
        for (number, convolution) in self.convolutions[1..].iter().enumerate() {
            features = convolution.forward(&if number == 0 { features } else { features.relu_() });
        }
        // The last ReLU comes after the copy that flattens: on a CPU, the gradient of a ReLU is
        // slow if its layout differs from that of the ReLU's input.
        let flat = features.flatten(1, -1).relu_();
        Ok(match self.arch {
            Arch::A => {
                let hidden = self.hidden.forward(&flat.dropout(0.25, train));
                self.output.forward(&hidden.dropout(0.5, train))
            }
            Arch::B | Arch::Small => self.output.forward(&self.hidden.forward(&flat).relu_()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::tch::Kind;

    const MNIST: Task = Task { channels: 1, height: 28, width: 28, classes: 10 };

    fn parameters(arch: Arch, task: Task) -> (usize, Vec<i64>) {
        let variables = nn::VarStore::new(Device::Cpu);
        let model =
            Cnn::new(Options { arch, ..Options::default() }, task, &variables.root()).expect("a model");
        let images = Tensor::zeros([3, task.channels, task.height, task.width], (Kind::Float, Device::Cpu));
        let logits = model.forward(&images, false).expect("logits");
        (variables.trainable_variables().iter().map(Tensor::numel).sum(), logits.size())
    }

    #[test]
    fn the_layers_are_those_of_the_papers() {
        // A: 64*26 + 64*1601 + 128*25601 + 10*129. B: 32*10 + 64*289 + 2*64*577 + 100*3137 +
        // 10*101. Small: 16*17 + 32*257 + 100*1569 + 10*101.
        assert_eq!(parameters(Arch::A, MNIST), (3_382_346, vec![3, 10]));
        assert_eq!(parameters(Arch::B, MNIST), (407_382, vec![3, 10]));
        assert_eq!(parameters(Arch::Small, MNIST), (166_406, vec![3, 10]));
    }

    #[test]
    fn the_first_layer_equals_libtorchs_convolution() {
        let three = Task { channels: 3, height: 11, width: 14, classes: 3 };
        let pairs = [Arch::A, Arch::B, Arch::Small].map(|arch| [(arch, MNIST), (arch, three)]);
        for (arch, task) in pairs.into_iter().flatten() {
            let mut variables = nn::VarStore::new(Device::Cpu);
            let model =
                Cnn::new(Options { arch, ..Options::default() }, task, &variables.root()).expect("a model");
            variables.double();
            let images =
                Tensor::rand([3, task.channels, task.height, task.width], (Kind::Double, Device::Cpu));
            let gradients = |layer: &dyn Fn(&Tensor) -> Tensor| {
                let leaf = images.detach().set_requires_grad(true);
                let features = layer(&leaf);
                let weights = Tensor::arange(features.numel() as i64, (Kind::Double, Device::Cpu)).sin();
                let sum = (&features * weights.view_as(&features)).sum(Kind::Double);
                let convolution = &model.convolutions[0];
                let inputs = [&leaf, &convolution.ws, convolution.bs.as_ref().expect("a bias")];
                let gradients = Tensor::run_backward(&[sum], &inputs, false, false);
                [features].into_iter().chain(gradients).collect::<Vec<_>>()
            };
            let of_products = gradients(&|images| model.first(images));
            let of_libtorch = gradients(&|images| model.convolutions[0].forward(images).relu());
            for (got, expected) in of_products.iter().zip(&of_libtorch) {
                assert_eq!(got.size(), expected.size());
                assert!((got - expected).abs().max().double_value(&[]) < 1e-12, "{arch:?} {task:?}");
            }
        }
    }

    #[test]
    fn mean_and_std_normalise_the_images_and_name_no_tensor() {
        let task = Task { channels: 2, height: 9, width: 9, classes: 3 };
        let made = |mean: &[f64], std: &[f64]| {
            let variables = nn::VarStore::new(Device::Cpu);
            let options = Options { mean: mean.into(), std: std.into(), ..Options::default() };
            let model = Cnn::new(options, task, &variables.root()).expect("a model");
            (model, variables)
        };
        let names = |variables: &nn::VarStore| {
            let mut names: Vec<_> = variables.variables().into_keys().collect();
            names.sort();
            names
        };
        let (plain, variables) = made(&[], &[]);
        let (normalising, mut same) = made(&[0.5, 0.25], &[0.5, 2.0]);
        assert_eq!(names(&variables), names(&same));
        // Seeds are no help: other tests draw from the same generator at the same time.
        same.copy(&variables).expect("copied");
        let images = Tensor::rand([4, 2, 9, 9], (Kind::Float, Device::Cpu));
        let per_channel = |numbers: &[f32]| Tensor::from_slice(numbers).reshape([1, 2, 1, 1]);
        let by_hand = (&images - per_channel(&[0.5, 0.25])) / per_channel(&[0.5, 2.0]);
        let logits = |model: &Cnn, images: &Tensor| model.forward(images, false).expect("logits");
        assert_eq!(logits(&normalising, &images), logits(&plain, &by_hand));
        assert_ne!(logits(&normalising, &images), logits(&plain, &images));
    }

    #[test]
    fn images_of_other_sizes_work_or_are_refused() {
        let wide = Task { channels: 3, height: 9, width: 14, classes: 3 };
        assert_eq!(parameters(Arch::A, wide).1, [3, 3]);
        assert_eq!(parameters(Arch::B, wide).1, [3, 3]);
        assert_eq!(parameters(Arch::Small, wide).1, [3, 3]);
        assert_eq!(parameters(Arch::Small, Task { height: 4, width: 7, ..wide }).1, [3, 3]);
        let variables = nn::VarStore::new(Device::Cpu);
        let small = Task { height: 8, ..MNIST };
        let tiny = Task { height: 3, ..MNIST };
        for (arch, task, sizes) in
            [(Arch::A, small, "9x9 pixels, got 8x28"), (Arch::Small, tiny, "4x4 pixels, got 3x28")]
        {
            let refused = Cnn::new(Options { arch, ..Options::default() }, task, &variables.root())
                .err()
                .expect("refused");
            assert!(refused.to_string().contains(&format!("at least {sizes}")), "{refused}");
        }
    }
}
