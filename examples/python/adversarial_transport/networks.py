"""The networks of the host's model plugins, in plain PyTorch, with the same names of tensors.

Images are `[N, C, H, W]` in the domain of the threat model, usually [0, 1]. The sizes of layers that
depend on the images are those of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn


class Normalization(nn.Module):
    """(images - mean) / std, channel by channel; an empty list means 0 and 1.

    Mean and standard deviation belong to the options of a network, not to its weights.
    """

    def __init__(self, channels: int, mean: Sequence[float] = (), std: Sequence[float] = ()) -> None:
        super().__init__()
        self.is_given = bool(mean or std)
        for name, numbers, default in (("mean", mean, 0.0), ("std", std, 1.0)):
            if numbers and len(numbers) != channels:
                raise ValueError(f"{name}: expected {channels} numbers, one for each channel, got {list(numbers)}")
            tensor = torch.tensor(list(numbers) or [default] * channels, dtype=torch.float32)
            self.register_buffer(name, tensor.reshape(1, -1, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The normalised images, `[N, C, H, W]`."""
        return (images - self.mean) / self.std if self.is_given else images


class Cnn(nn.Module):
    """The convolutional networks for MNIST (plugin `cnn`): the paper's A and B, and `small`."""

    def __init__(
        self,
        arch: str,
        channels: int,
        features: int,
        classes: int,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> None:
        """`features`: the numbers that the convolutions give for an image."""
        super().__init__()
        self.normalization = Normalization(channels, mean, std)
        # Input channels, output channels, width, stride, padding.
        shapes = {
            "A": [(channels, 64, 5, 1, 0), (64, 64, 5, 1, 0)],
            "B": [(channels, 32, 3, 1, 1), (32, 64, 3, 2, 1), (64, 64, 3, 1, 1), (64, 64, 3, 2, 1)],
            "small": [(channels, 16, 4, 2, 1), (16, 32, 4, 2, 1)],
        }
        if arch not in shapes:
            raise ValueError(f"arch: expected A, B or small, got {arch}")
        self.arch = arch
        self.convolutions = len(shapes[arch])
        for number, shape in enumerate(shapes[arch], 1):
            self.add_module(f"conv{number}", nn.Conv2d(*shape))
        hidden = 128 if arch == "A" else 100
        self.hidden = nn.Linear(features, hidden)
        self.output = nn.Linear(hidden, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits `[N, classes]`."""
        features = self.normalization(images)
        for number in range(1, self.convolutions + 1):
            features = self.get_submodule(f"conv{number}")(features).relu()
        flat = features.flatten(1)
        if self.arch == "A":
            hidden = self.hidden(nn.functional.dropout(flat, 0.25, self.training))
            return self.output(nn.functional.dropout(hidden, 0.5, self.training))
        return self.output(self.hidden(flat).relu())


class Linear(nn.Module):
    """Softmax regression (plugin `linear`)."""

    def __init__(
        self, channels: int, pixels: int, classes: int, mean: Sequence[float] = (), std: Sequence[float] = ()
    ) -> None:
        super().__init__()
        self.normalization = Normalization(channels, mean, std)
        self.output = nn.Linear(pixels, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits `[N, classes]`."""
        return self.output(self.normalization(images).flatten(1))


class _Residual(nn.Module):
    """A block of `ResNet`: two 3x3 convolutions, or three with a bottleneck."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        shapes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        if bottleneck:
            shapes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        self.layers = len(shapes)
        for number, (before, after, size, step) in enumerate(shapes, 1):
            convolution = nn.Conv2d(before, after, size, step, padding=size // 2, bias=False)
            self.add_module(f"conv{number}", convolution)
            self.add_module(f"bn{number}", nn.BatchNorm2d(after))
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        branch = features
        for number in range(1, self.layers + 1):
            branch = branch.relu() if number > 1 else branch
            branch = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(branch))
        shortcut = features if self.downsample is None else self.downsample(features)
        return (branch + shortcut).relu()


class ResNet(nn.Module):
    """Residual networks for small images (plugin `resnet`), with the names of torchvision's."""

    def __init__(
        self,
        depth: int,
        width: int,
        channels: int,
        classes: int,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> None:
        super().__init__()
        counts = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3]}
        if depth not in counts:
            raise ValueError(f"depth: expected 18, 34 or 50, got {depth}")
        bottleneck = depth == 50
        self.normalization = Normalization(channels, mean, std)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        features = width
        for stage, count in enumerate(counts[depth]):
            blocks = []
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(_Residual(features, width << stage, stride, bottleneck))
                features = (width << stage) * (4 if bottleneck else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(features, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits `[N, classes]`."""
        features = self.bn1(self.conv1(self.normalization(images))).relu()
        for stage in range(1, 5):
            features = self.get_submodule(f"layer{stage}")(features)
        return self.fc(features.mean((2, 3)))


class _Wide(nn.Module):
    """A block of `WideResNet`."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.dropout = dropout
        self.convShortcut: nn.Module | None = None
        if inputs != outputs:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        ready = self.bn1(features).relu()
        branch = self.bn2(self.conv1(ready)).relu()
        branch = self.conv2(nn.functional.dropout(branch, self.dropout, self.training))
        return branch + (features if self.convShortcut is None else self.convShortcut(ready))


class _Stage(nn.Module):
    def __init__(self, blocks: list[_Wide]) -> None:
        super().__init__()
        self.layer = nn.Sequential(*blocks)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layer(features)


class WideResNet(nn.Module):
    """Wide residual networks (plugin `wide-resnet`), with the names of published robust models."""

    def __init__(
        self,
        depth: int,
        width: int,
        channels: int,
        classes: int,
        dropout: float = 0.0,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth: expected 6 n + 4 (10, 16, 22, 28, 34, ...), got {depth}")
        self.normalization = Normalization(channels, mean, std)
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        features = 16
        for stage in range(3):
            blocks, outputs = [], (16 * width) << stage
            for number in range((depth - 4) // 6):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(_Wide(features, outputs, stride, dropout))
                features = outputs
            self.add_module(f"block{stage + 1}", _Stage(blocks))
        self.bn1 = nn.BatchNorm2d(features)
        self.fc = nn.Linear(features, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits `[N, classes]`."""
        features = self.conv1(self.normalization(images))
        for stage in range(1, 4):
            features = self.get_submodule(f"block{stage}")(features)
        return self.fc(self.bn1(features).relu().mean((2, 3)))


def build(
    plugin: str, options: Mapping[str, Any], state: Mapping[str, torch.Tensor], channels: int | None = None
) -> nn.Module:
    """The network of a model plugin with these options and weights, in evaluation mode.

    Args:
        plugin: `cnn`, `linear`, `resnet` or `wide-resnet`.
        options: The options of the plugin with all of their values, as `run.json` has them.
        state: Its parameters and buffers by name, for example of `host export --format state-dict`.
        channels: Of the images; only softmax regression on images of several channels needs it.

    Raises:
        ValueError: if the plugin is another one, or an option is not valid.
        RuntimeError: if the weights are not those of the network.
    """
    options = dict(options)
    moments = {name: options.get(name) or () for name in ("mean", "std")}
    network: nn.Module
    if plugin == "cnn":
        channels, features = state["conv1.weight"].shape[1], state["hidden.weight"].shape[1]
        network = Cnn(options["arch"], channels, features, len(state["output.bias"]), **moments)
    elif plugin == "linear":
        classes, pixels = state["output.weight"].shape
        channels = channels or max(len(moments["mean"]), len(moments["std"]), 1)
        network = Linear(channels, pixels, classes, **moments)
    elif plugin == "resnet":
        channels, classes = state["conv1.weight"].shape[1], len(state["fc.bias"])
        network = ResNet(options["depth"], options["width"], channels, classes, **moments)
    elif plugin == "wide-resnet":
        channels, classes = state["conv1.weight"].shape[1], len(state["fc.bias"])
        sizes = (options["depth"], options["width"], channels, classes)
        network = WideResNet(*sizes, options.get("dropout", 0.0), **moments)
    else:
        raise ValueError(
            f"the network of plugin {plugin} is not known here; expected cnn, linear, resnet or wide-resnet. "
            "Write it with `host export --format torchscript`, and load that with torch.jit.load"
        )
    # Batches are not counted by the host; PyTorch then takes 0.
    network.load_state_dict(dict(state))
    return network.eval()
