"""Reads the folders of runs that `host train` writes into PyTorch.

    import adversarial_transport as at

    network = at.load("runs/demo")          # an nn.Module in evaluation mode
    logits = network(images)                # images [N, C, H, W] in [0, 1]
    at.metrics("runs/demo")                 # a row for every epoch
    at.evaluation("runs/demo").verdicts     # which points stand
    at.particles("runs/demo").values        # the stored particles
    at.examples("runs/demo").images         # adversarial examples of `host eval --save-examples`

Files are compared with their digests when they are read; one that was changed or is not whole raises
`Damaged`.
"""

from .files import Damaged
from .networks import Cnn, Linear, Normalization, ResNet, WideResNet, build
from .runs import (
    Evaluation,
    Examples,
    Particles,
    evaluation,
    evaluations,
    examples,
    load,
    metrics,
    particles,
    record,
    state_dict,
)

__all__ = [
    "Cnn",
    "Damaged",
    "Evaluation",
    "Examples",
    "Linear",
    "Normalization",
    "Particles",
    "ResNet",
    "WideResNet",
    "build",
    "evaluation",
    "evaluations",
    "examples",
    "load",
    "metrics",
    "particles",
    "record",
    "state_dict",
]
