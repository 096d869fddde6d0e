"""Records logits and running statistics of residual networks, for plugins/resnet and
plugins/wide-resnet.

    .setup/python/bin/python tests/parity/record_networks.py

Needs torch, torchvision and safetensors. The oracle of the residual networks is torchvision's own
code, with another stem. No package contains the wide networks: here they are implemented from the
paper (Zagoruyko and Komodakis 2016) with torch.nn.functional, without the plugin's structure.

Weights are filled by a formula of their place in the sorted list of names, so a missing name or
another order changes the results. Each fixture `NAME.safetensors` contains, in f64, for four images
that are filled by the same formula,

    evaluation    [4, 10]: logits in evaluation
    training      [4, 10]: logits in training
    first, last   the running mean and variance of the first and the last normalisation after that,
                  concatenated
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torchvision.models import resnet

FIXTURES = Path(__file__).parent / "fixtures"
IMAGES = (4, 3, 12, 12)


def waves(shape, phase):
    """Numbers between -1 and 1 that look like noise."""
    places = torch.arange(math.prod(shape))
    return torch.sin(places * places % 1009 + torch.tensor(phase, dtype=torch.float64)).reshape(shape)


def filled(name, shape, place):
    numbers = waves(shape, place)
    if len(shape) > 1:
        return numbers * (2 / math.prod(shape[1:])) ** 0.5
    if name.endswith(("weight", "running_var")):
        return 1 + numbers / 4
    return numbers / 4


def fill(shapes):
    return {name: filled(name, shapes[name], place) for place, name in enumerate(sorted(shapes))}


def record(name, forward, state, first, last):
    """`forward(images, train)` uses the tensors of `state` and updates its running statistics."""
    images = (waves(IMAGES, 0.5) + 1) / 2
    with torch.no_grad():
        tensors = {"evaluation": forward(images, False), "training": forward(images, True)}
    for which, norm in (("first", first), ("last", last)):
        moments = [state()[f"{norm}.running_{moment}"] for moment in ("mean", "var")]
        tensors[which] = torch.cat(moments)[:64].clone()
    save_file({key: value.contiguous() for key, value in tensors.items()}, FIXTURES / f"{name}.safetensors")
    print(name, {key: tuple(value.shape) for key, value in tensors.items()}, tensors["evaluation"][0, :3])


def residual(depth, block, counts, last):
    net = resnet.ResNet(block, counts, num_classes=10).double()
    net.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False).double()
    net.maxpool = torch.nn.Identity()
    tracked = {key: value for key, value in net.state_dict().items() if "num_batches" not in key}
    # `strict` checks that no tensor is missing; PyTorch does not require the key
    # num_batches_tracked.
    net.load_state_dict(fill({key: tuple(value.shape) for key, value in tracked.items()}), strict=True)

    def forward(images, train):
        return net.train(train)(images)

    record(f"resnet-{depth}", forward, net.state_dict, "bn1", last)


def wide(depth, width):
    blocks = [(stage, number) for stage in (1, 2, 3) for number in range((depth - 4) // 6)]
    channels = {0: 16} | {stage: 16 * width * 2 ** (stage - 1) for stage in (1, 2, 3)}
    shapes = {"conv1.weight": (16, 3, 3, 3), "fc.weight": (10, channels[3]), "fc.bias": (10,)}

    def norm(name, size):
        shapes.update({f"{name}.{part}": (size,) for part in ("weight", "bias", "running_mean", "running_var")})

    norm("bn1", channels[3])
    for stage, number in blocks:
        name = f"block{stage}.layer.{number}"
        before, after = channels[stage - 1 if number == 0 else stage], channels[stage]
        norm(f"{name}.bn1", before)
        norm(f"{name}.bn2", after)
        shapes[f"{name}.conv1.weight"] = (after, before, 3, 3)
        shapes[f"{name}.conv2.weight"] = (after, after, 3, 3)
        if before != after:
            shapes[f"{name}.convShortcut.weight"] = (after, before, 1, 1)
    state = fill(shapes)

    def forward(images, train):
        def act(x, name):
            get = lambda part: state[f"{name}.{part}"]
            return F.relu(F.batch_norm(x, get("running_mean"), get("running_var"), get("weight"), get("bias"), train))

        x = F.conv2d(images, state["conv1.weight"], padding=1)
        for stage, number in blocks:
            name = f"block{stage}.layer.{number}"
            stride = 2 if stage > 1 and number == 0 else 1
            a = act(x, f"{name}.bn1")
            y = F.conv2d(a, state[f"{name}.conv1.weight"], padding=1, stride=stride)
            y = F.conv2d(act(y, f"{name}.bn2"), state[f"{name}.conv2.weight"], padding=1)
            shortcut = state.get(f"{name}.convShortcut.weight")
            x = y + (x if shortcut is None else F.conv2d(a, shortcut, stride=stride))
        x = act(x, "bn1").mean((2, 3))
        return F.linear(x, state["fc.weight"], state["fc.bias"])

    record(f"wide-resnet-{depth}-{width}", forward, lambda: state, "block1.layer.0.bn1", "bn1")


residual(18, resnet.BasicBlock, [2, 2, 2, 2], "layer4.1.bn2")
residual(50, resnet.Bottleneck, [3, 4, 6, 3], "layer4.2.bn3")
wide(16, 1)
wide(16, 2)
