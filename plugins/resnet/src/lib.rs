//! Residual networks (He et al. 2016) for small images: the stem is one 3x3 convolution with stride
//! 1, and there is no pooling before the blocks. Blocks, names, order and initialisation are those
//! of torchvision's networks (a bottleneck's stride is in its 3x3 convolution).

use plugin_api::layers::{BatchNorm, Normalization, convolution, global_average, linear};
use plugin_api::tch::Tensor;
use plugin_api::tch::nn::{self, Module};
use plugin_api::{Error, Model, Result, Task, export_model};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_model!("resnet", ResNet);

/// The network, on images of any size.
pub struct ResNet {
    normalization: Normalization,
    stem: Normalized,
    blocks: Vec<Block>,
    output: nn::Linear,
}

/// The options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-conform" = {"width": 4}))]
pub struct Options {
    /// Number of layers: 18 or 34 (basic blocks), or 50 (bottlenecks).
    pub depth: i64,
    /// Channels of the first stage; the others have two, four and eight times as many. The
    /// published networks have 64.
    #[schemars(range(min = 1, max = 1000))]
    pub width: i64,
    /// Means of the channels, subtracted from the images; 0 if the list is empty. CIFAR-10's are
    /// [0.4914,0.4822,0.4465].
    pub mean: Vec<f64>,
    /// Standard deviations of the channels, by which the images are divided; 1 if the list is
    /// empty. CIFAR-10's are [0.2470,0.2435,0.2616].
    pub std: Vec<f64>,
}

impl Default for Options {
    fn default() -> Self {
        Self { depth: 18, width: 64, mean: Vec::new(), std: Vec::new() }
    }
}

impl Model for ResNet {
    type Options = Options;

    fn new(options: Options, task: Task, path: &nn::Path) -> Result<Self> {
        let Options { depth, width, mean, std } = options;
        let (counts, bottleneck) = match depth {
            18 => ([2, 2, 2, 2], false),
            34 => ([3, 4, 6, 3], false),
            50 => ([3, 4, 6, 3], true),
            _ => return Err(Error::new(format!("option `depth`: expected 18, 34 or 50, got {depth}"))),
        };
        let stem = Normalized::new(path / "conv1", path / "bn1", (task.channels, width, 3, 1));
        let mut blocks = Vec::new();
        let mut features = width;
        for (stage, count) in counts.into_iter().enumerate() {
            let (layer, width) = (path / format!("layer{}", stage + 1), width << stage);
            for number in 0..count {
                let stride = if stage > 0 && number == 0 { 2 } else { 1 };
                let block = Block::new(&(&layer / number), features, width, stride, bottleneck);
                features = if bottleneck { width * EXPANSION } else { width };
                blocks.push(block);
            }
        }
        Ok(Self {
            normalization: Normalization::new(&mean, &std, task, path.device())?,
            stem,
            blocks,
            output: linear(path / "fc", features, task.classes),
        })
    }

    fn train_differs(&self) -> bool {
        true
    }

    fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        let mut features = self.stem.forward(&self.normalization.forward(images), train)?.relu_();
        for block in &self.blocks {
            features = block.forward(&features, train)?;
        }
        Ok(self.output.forward(&global_average(&features)))
    }
}

/// Factor between the channels of a bottleneck's 3x3 convolution and its output channels.
const EXPANSION: i64 = 4;

/// A convolution and batch normalisation.
struct Normalized {
    convolution: nn::Conv2D,
    norm: BatchNorm,
}

impl Normalized {
    /// `shape`: input channels, output channels, width, stride.
    fn new(convolution_path: nn::Path, norm_path: nn::Path, shape: (i64, i64, i64, i64)) -> Self {
        let (inputs, outputs, width, stride) = shape;
        Self {
            convolution: convolution(convolution_path, inputs, outputs, width, stride),
            norm: BatchNorm::new(norm_path, outputs),
        }
    }

    fn forward(&self, features: &Tensor, train: bool) -> Result<Tensor> {
        self.norm.forward(&self.convolution.forward(features), train)
    }
}

/// A residual block: the sum of a branch and a shortcut.
struct Block {
    branch: Vec<Normalized>,
    /// None if input and output have the same shape.
    shortcut: Option<Normalized>,
}

impl Block {
    fn new(path: &nn::Path, inputs: i64, width: i64, stride: i64, bottleneck: bool) -> Self {
        let (shapes, outputs) = if bottleneck {
            let outputs = width * EXPANSION;
            (vec![(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)], outputs)
        } else {
            (vec![(inputs, width, 3, stride), (width, width, 3, 1)], width)
        };
        let branch = shapes.into_iter().zip(1..).map(|(shape, number)| {
            Normalized::new(path / format!("conv{number}"), path / format!("bn{number}"), shape)
        });
        let shortcut = (stride != 1 || inputs != outputs).then(|| {
            let path = path / "downsample";
            Normalized::new(&path / 0, &path / 1, (inputs, outputs, 1, stride))
        });
        Self { branch: branch.collect(), shortcut }
    }

    fn forward(&self, features: &Tensor, train: bool) -> Result<Tensor> {
        let mut branch = features.shallow_clone();
        for (number, layer) in self.branch.iter().enumerate() {
            branch = if number > 0 { branch.relu_() } else { branch };
            branch = layer.forward(&branch, train)?;
        }
        let shortcut = match &self.shortcut {
            Some(shortcut) => shortcut.forward(features, train)?,
            None => features.shallow_clone(),
        };
        Ok((branch + shortcut).relu_())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::tch::{Device, Kind};

    const CIFAR: Task = Task { channels: 3, height: 32, width: 32, classes: 10 };

    fn parameters(depth: i64) -> usize {
        let variables = nn::VarStore::new(Device::Cpu);
        ResNet::new(Options { depth, ..Options::default() }, CIFAR, &variables.root()).expect("a model");
        variables.trainable_variables().iter().map(Tensor::numel).sum()
    }

    #[test]
    fn the_parameters_are_those_of_the_published_networks() {
        // 50: torchvision's 25,557,032 minus 9,408 and 2,049,000 of its stem and output, plus those
        // here.
        assert_eq!(parameters(18), 11_173_962);
        assert_eq!(parameters(34), 21_282_122);
        assert_eq!(parameters(50), 25_557_032 - 9_408 - 2_049_000 + 1_728 + 20_490);
    }

    #[test]
    fn images_of_any_size_and_channels_give_logits() {
        for (channels, height, width, classes) in [(1, 28, 28, 2), (4, 9, 14, 10), (3, 1, 1, 3)] {
            let task = Task { channels, height, width, classes };
            let variables = nn::VarStore::new(Device::Cpu);
            let options = Options { width: 2, mean: vec![0.5; channels as usize], ..Options::default() };
            let model = ResNet::new(options, task, &variables.root()).expect("a model");
            let images = Tensor::zeros([3, channels, height, width], (Kind::Float, Device::Cpu));
            for train in [false, true] {
                assert_eq!(model.forward(&images, train).expect("logits").size(), [3, classes]);
            }
        }
    }

    #[test]
    fn other_depths_are_refused() {
        let variables = nn::VarStore::new(Device::Cpu);
        let options = Options { depth: 20, ..Options::default() };
        let refused = ResNet::new(options, CIFAR, &variables.root()).err().expect("refused");
        assert_eq!(refused.to_string(), "option `depth`: expected 18, 34 or 50, got 20");
    }
}
