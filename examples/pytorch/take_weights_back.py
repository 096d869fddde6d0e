"""Loads what `host export` wrote, and compares the two ways."""

import pathlib
import sys
import types

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from my_net import Net

weights = torch.load(sys.argv[1], weights_only=True)
script = torch.jit.load(sys.argv[2])

# The task is not in the weights: any that fits them.
channels, classes = weights["features.0.weight"].shape[1], len(weights["classifier.2.bias"])
network = Net(types.SimpleNamespace(channels=channels, classes=classes), width=16)
network.load_state_dict(weights)
network.eval()

images = torch.rand(100, channels, 28, 28)
with torch.no_grad():
    difference = (network(images) - script(images)).abs().max().item()
print(f"largest difference of the logits: {difference:.1e}")
assert difference < 1e-5
