"""The small network of the recorded fixtures, and images for it.

`replay::SmallNet` is the same network in Rust.
"""

import torch
from torch import nn

CLASSES = 10


def small_net(shape, seed):
    """A network trained on noisy copies of ten smooth images, and further copies with their
    labels."""
    torch.manual_seed(seed)
    channels, height, width = shape
    coarse = torch.rand(CLASSES, channels, 4, 4)
    patterns = nn.functional.interpolate(coarse, (height, width), mode="bilinear")

    def copies(count):
        labels = torch.arange(count) % CLASSES
        return (patterns[labels] + 0.25 * torch.randn(count, *shape)).clamp(0, 1), labels

    features = 8 * ((height + 1) // 2) * ((width + 1) // 2)
    layers = {
        "conv1": nn.Conv2d(channels, 8, 3, padding=1),
        "relu1": nn.ReLU(),
        "conv2": nn.Conv2d(8, 8, 3, padding=1, stride=2),
        "relu2": nn.ReLU(),
        "flat": nn.Flatten(),
        "output": nn.Linear(features, CLASSES),
    }
    net = nn.Sequential()
    for name, layer in layers.items():
        net.add_module(name, layer)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    images, labels = copies(500)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return net.requires_grad_(False), *copies(1000)
