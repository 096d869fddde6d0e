//! Wide residual networks (Zagoruyko and Komodakis 2016) for small images: normalisation and ReLU
//! come before each convolution. WRN-28-10 and WRN-34-10 are the usual large networks on CIFAR-10.
//! Names are those of the PyTorch code of published robust models.

use plugin_api::layers::{BatchNorm, Normalization, convolution, global_average, linear};
use plugin_api::tch::Tensor;
use plugin_api::tch::nn::{self, Module};
use plugin_api::{Error, Model, Result, Task, export_model};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

export_model!("wide-resnet", WideResNet);

/// The network, on images of any size.
pub struct WideResNet {
    normalization: Normalization,
    stem: nn::Conv2D,
    blocks: Vec<Block>,
    norm: BatchNorm,
    output: nn::Linear,
}

/// The options.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-conform" = {"depth": 10, "width": 1}))]
pub struct Options {
    /// Number of layers: 6 n + 4 with n blocks in each of the three stages (28, 34, ...).
    #[schemars(range(min = 10, max = 1000))]
    pub depth: i64,
    /// Factor by which the stages are wider than 16, 32 and 64 channels.
    #[schemars(range(min = 1, max = 100))]
    pub width: i64,
    /// Dropout probability between the convolutions of a block.
    #[schemars(range(min = 0.0))]
    pub dropout: f64,
    /// Means of the channels, subtracted from the images; 0 if the list is empty. CIFAR-10's are
    /// [0.4914,0.4822,0.4465].
    pub mean: Vec<f64>,
    /// Standard deviations of the channels, by which the images are divided; 1 if the list is
    /// empty. CIFAR-10's are [0.2470,0.2435,0.2616].
    pub std: Vec<f64>,
}

impl Default for Options {
    fn default() -> Self {
        Self { depth: 28, width: 10, dropout: 0.0, mean: Vec::new(), std: Vec::new() }
    }
}

impl Model for WideResNet {
    type Options = Options;

    fn new(options: Options, task: Task, path: &nn::Path) -> Result<Self> {
        let Options { depth, width, dropout, mean, std } = options;
        if depth % 6 != 4 {
            return Err(Error::new(format!(
                "option `depth`: expected 6 n + 4 (10, 16, 22, 28, 34, ...), got {depth}"
            )));
        }
        if dropout >= 1.0 {
            return Err(Error::new(format!("option `dropout`: expected a share below 1, got {dropout}")));
        }
        let mut blocks = Vec::new();
        let mut features = STEM;
        for stage in 0..3 {
            let (layer, outputs) = (path / format!("block{}", stage + 1) / "layer", (STEM * width) << stage);
            for number in 0..(depth - 4) / 6 {
                let stride = if stage > 0 && number == 0 { 2 } else { 1 };
                blocks.push(Block::new(&(&layer / number), (features, outputs, stride), dropout));
                features = outputs;
            }
        }
        Ok(Self {
            normalization: Normalization::new(&mean, &std, task, path.device())?,
            stem: convolution(path / "conv1", task.channels, STEM, 3, 1),
            blocks,
            norm: BatchNorm::new(path / "bn1", features),
            output: linear(path / "fc", features, task.classes),
        })
    }

    fn train_differs(&self) -> bool {
        true
    }

    fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        let mut features = self.stem.forward(&self.normalization.forward(images));
        for block in &self.blocks {
            features = block.forward(&features, train)?;
        }
        let features = self.norm.forward(&features, train)?.relu_();
        Ok(self.output.forward(&global_average(&features)))
    }
}

/// Channels of the stem.
const STEM: i64 = 16;

/// A residual block: the sum of a branch and a shortcut.
struct Block {
    norms: [BatchNorm; 2],
    convolutions: [nn::Conv2D; 2],
    dropout: f64,
    /// None if input and output have the same shape.
    shortcut: Option<nn::Conv2D>,
}

impl Block {
    /// `shape`: input channels, output channels, stride.
    fn new(path: &nn::Path, shape: (i64, i64, i64), dropout: f64) -> Self {
        let (inputs, outputs, stride) = shape;
        Self {
            norms: [BatchNorm::new(path / "bn1", inputs), BatchNorm::new(path / "bn2", outputs)],
            convolutions: [
                convolution(path / "conv1", inputs, outputs, 3, stride),
                convolution(path / "conv2", outputs, outputs, 3, 1),
            ],
            dropout,
            shortcut: (inputs != outputs)
                .then(|| convolution(path / "convShortcut", inputs, outputs, 1, stride)),
        }
    }

    fn forward(&self, features: &Tensor, train: bool) -> Result<Tensor> {
        let ready = self.norms[0].forward(features, train)?.relu_();
        let branch = self.norms[1].forward(&self.convolutions[0].forward(&ready), train)?.relu_();
        let branch = self.convolutions[1].forward(&branch.dropout(self.dropout, train));
        Ok(match &self.shortcut {
            // If the shape changes, branch and shortcut share the first normalisation.
            Some(shortcut) => branch + shortcut.forward(&ready),
            None => branch + features,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plugin_api::tch::{self, Device, Kind};

    const CIFAR: Task = Task { channels: 3, height: 32, width: 32, classes: 10 };

    fn build(options: Options, task: Task) -> (nn::VarStore, Result<WideResNet>) {
        let variables = nn::VarStore::new(Device::Cpu);
        let model = WideResNet::new(options, task, &variables.root());
        (variables, model)
    }

    fn parameters(depth: i64, width: i64) -> usize {
        let (variables, model) = build(Options { depth, width, ..Options::default() }, CIFAR);
        model.expect("a model");
        variables.trainable_variables().iter().map(Tensor::numel).sum()
    }

    #[test]
    fn the_parameters_are_those_of_the_published_networks() {
        // WRN-10-1 by hand. Convolutions: 3*16*9 in the stem; 2 * 16*16*9; 16*32*9 + 32*32*9 +
        // 16*32; 32*64*9 + 64*64*9 + 32*64. Normalisations, twice 32, 48, 96 and 64. Output: 64*10
        // + 10.
        let convolutions = 432 + 4_608 + (4_608 + 9_216 + 512) + (18_432 + 36_864 + 2_048);
        assert_eq!(parameters(10, 1), convolutions + 2 * (32 + 48 + 96 + 64) + 650);
        assert_eq!(parameters(28, 10), 36_479_194);
        assert_eq!(parameters(34, 10), 46_160_474);
    }

    #[test]
    fn images_of_any_size_and_channels_give_logits() {
        for (channels, height, width, classes) in [(1, 28, 28, 2), (4, 9, 14, 10), (3, 1, 1, 3)] {
            let task = Task { channels, height, width, classes };
            let std = vec![0.25; channels as usize];
            let (_variables, model) = build(Options { depth: 10, width: 1, std, ..Options::default() }, task);
            let images = Tensor::zeros([3, channels, height, width], (Kind::Float, Device::Cpu));
            let model = model.expect("a model");
            for train in [false, true] {
                assert_eq!(model.forward(&images, train).expect("logits").size(), [3, classes]);
            }
        }
    }

    #[test]
    fn dropout_is_active_in_training_only() {
        let (_variables, model) =
            build(Options { depth: 10, width: 1, dropout: 0.5, ..Options::default() }, CIFAR);
        let model = model.expect("a model");
        tch::manual_seed(1);
        let images = Tensor::rand([4, 3, 32, 32], (Kind::Float, Device::Cpu));
        let logits = |train| model.forward(&images, train).expect("logits");
        assert_ne!(logits(true), logits(true));
        assert_eq!(logits(false), logits(false));
    }

    #[test]
    fn invalid_depth_and_dropout_are_refused() {
        let refusal = |options| build(options, CIFAR).1.err().expect("refused").to_string();
        assert_eq!(
            refusal(Options { depth: 18, ..Options::default() }),
            "option `depth`: expected 6 n + 4 (10, 16, 22, 28, 34, ...), got 18"
        );
        assert_eq!(
            refusal(Options { dropout: 1.0, ..Options::default() }),
            "option `dropout`: expected a share below 1, got 1"
        );
    }
}
