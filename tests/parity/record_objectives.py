"""Records losses and gradients of objectives in PyTorch, for plugins/*/tests/recorded.rs.

    .setup/python/bin/python tests/parity/record_objectives.py

Needs torch and safetensors. The losses are written here from the equations of their papers, in f64,
with PyTorch's own functions (cross_entropy, kl_div, cosine_similarity) and double backward. The
fixture `objectives.safetensors` contains

    hidden, bias, output           the network: output tanh(hidden x + bias)
    natural, particles, draws      [N, 1, 2, 3]; draws are uniform on [0, 1)
    start                          [N, 1, 2, 3]: where the chains of the particles began
    labels                         [N] i64
    epsilon                        [1], radius of the linf ball
    NAME.loss                      [N]: the outer loss of each row
    NAME.hidden, NAME.bias, NAME.output   the gradients of its mean
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

FIXTURE = Path(__file__).parent / "fixtures" / "objectives.safetensors"
ROWS, CLASSES, PIXELS, WIDTH = 6, 4, 6, 5
EPSILON = 0.3


def main():
    torch.set_default_dtype(torch.float64)
    generator = torch.Generator().manual_seed(1)
    uniform = lambda *shape: torch.rand(shape, generator=generator)
    network = {
        "hidden": uniform(WIDTH, PIXELS) * 2 - 1,
        "bias": uniform(WIDTH) - 0.5,
        "output": uniform(CLASSES, WIDTH) * 4 - 2,
    }
    natural, draws = uniform(ROWS, 1, 2, 3), uniform(ROWS, 1, 2, 3)
    offsets = (uniform(ROWS, 1, 2, 3) * 2 - 1) * EPSILON
    particles = (natural + offsets).clamp(0, 1)
    start = (natural - offsets / 2).clamp(0, 1)
    labels = torch.arange(ROWS) % CLASSES
    for tensor in network.values():
        tensor.requires_grad_(True)

    def logits(images):
        return torch.tanh(images.flatten(1) @ network["hidden"].T + network["bias"]) @ network["output"].T

    def divergence():
        log_q = F.log_softmax(logits(particles), dim=1)
        return F.kl_div(log_q, F.softmax(logits(natural), dim=1), reduction="none").sum(1)

    def trades():
        return F.cross_entropy(logits(natural), labels, reduction="none") + 6.0 * divergence()

    def mart():
        q = F.softmax(logits(particles), dim=1)
        others = q.scatter(1, labels[:, None], 0.0)
        boosted = F.cross_entropy(logits(particles), labels, reduction="none")
        boosted = boosted - torch.log(1 - others.max(dim=1).values)
        p = F.softmax(logits(natural), dim=1).gather(1, labels[:, None])[:, 0]
        return boosted + 5.0 * divergence() * (1 - p)

    def gradient(images):
        images = images.clone().requires_grad_(True)
        loss = F.cross_entropy(logits(images), labels, reduction="sum")
        return torch.autograd.grad(loss, images, create_graph=True)[0].flatten(1)

    def grad_align():
        aside = (natural + (draws * 2 - 1) * EPSILON).clamp(0, 1)
        cosine = F.cosine_similarity(gradient(natural), gradient(aside), dim=1, eps=0)
        return F.cross_entropy(logits(particles), labels, reduction="none") + 0.2 * (1 - cosine)

    def prior_guided():
        difference = F.mse_loss(logits(particles), logits(start), reduction="none").mean(1)
        return F.cross_entropy(logits(particles), labels, reduction="none") + 10.0 * difference

    recorded = {
        "natural": natural,
        "particles": particles,
        "start": start,
        "draws": draws,
        "labels": labels,
        "epsilon": torch.tensor([EPSILON]),
        **{name: tensor.detach().clone() for name, tensor in network.items()},
    }
    for loss_of in [trades, mart, grad_align, prior_guided]:
        loss = loss_of()
        recorded[f"{loss_of.__name__}.loss"] = loss.detach()
        gradients = torch.autograd.grad(loss.mean(), list(network.values()))
        for name, tensor in zip(network, gradients):
            recorded[f"{loss_of.__name__}.{name}"] = tensor
    save_file({name: tensor.contiguous() for name, tensor in recorded.items()}, FIXTURE)
    print(f"{FIXTURE}: {len(recorded)} tensors")


if __name__ == "__main__":
    main()
