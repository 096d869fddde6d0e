"""Records runs of the reference's APGD, for plugins/apgd/tests/trajectory.rs.

    .setup/python/bin/python tests/parity/record_apgd.py

Needs pyautoattack 0.2.0, torch and safetensors. The reference computes in f64 here. Its random
starts are made from fixed numbers with few bits, which the fixture contains as f16 without loss.

Each fixture `apgd-NORM-CxHxW.safetensors` contains, for N points that the network classifies
correctly,

    conv1.weight ... output.bias   the network, f64
    images, labels, epsilon        [N, C, H, W] f64, [N] i64, [1] f64

and for each loss (ce, dlr, dlr-targeted), for R runs (target classes times restarts):

    LOSS.settings                  [3] i64: steps, restarts, target classes
    LOSS.draws                     [R, N, C, H, W] f16: uniform on [0, 1) for linf, normal for l2
    LOSS.margins                   [R, steps + 1, N] f64: the label's logit minus the largest
                                   other one at every iterate; NaN for points without this run
    LOSS.snapshot_places           [K, 2] i64: run and iterate, ...
    LOSS.snapshots                 [K, N, C, H, W] f64: ... and the images there
    LOSS.fooled                    [N] u8: the reference's verdict
"""

from pathlib import Path
from unittest import mock

import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from safetensors.torch import save_file
from small_net import CLASSES, small_net

FIXTURES = Path(__file__).parent / "fixtures"


def fixed_numbers(norm, shape):
    """Random numbers that f16 holds exactly."""
    if norm == "Linf":
        return torch.randint(0, 1024, shape) / 1024
    return torch.randn(shape).half().double()


class Watch:
    """Records the queries of the reference in each of its runs, and the points of the run."""

    def __init__(self, attack, net, images, draws):
        self.net, self.images, self.draws = net, images, draws
        self.runs = []
        self.halvings = 0
        self.single_run, self.oscillates = attack.attack_single_run, attack.check_oscillation
        attack.model, attack.attack_single_run = self.query, self.run
        attack.check_oscillation = self.check_oscillation
        self.rows, self.queries = [], []

    def query(self, images):
        self.queries.append(images.detach().clone())
        return self.net(images)

    def run(self, x, y):
        same = (self.images.unsqueeze(0) == x.unsqueeze(1)).flatten(2).all(2)
        self.rows, self.queries = same.nonzero()[:, 1], []
        result = self.single_run(x, y)
        self.runs.append((self.rows, torch.stack(self.queries)))
        return result

    def start(self, shape):
        """Replaces torch.rand and torch.randn."""
        draw = self.draws[len(self.runs)][self.rows]
        assert draw.shape == shape
        return draw

    def check_oscillation(self, *arguments, **named):
        halve = self.oscillates(*arguments, **named)
        self.halvings += int(halve.sum())
        return halve


def margin(logits, labels):
    own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    return own - logits.scatter(1, labels.unsqueeze(1), -torch.inf).amax(1)


def record_loss(net, images, labels, norm, epsilon, loss, steps, restarts, targets, places):
    options = {"norm": norm, "n_iter": steps, "n_restarts": restarts, "eps": epsilon}
    if loss == "dlr-targeted":
        attack = APGDAttack_targeted(net, n_target_classes=targets, **options)
    else:
        attack = APGDAttack(net, loss=loss, **options)
    draws = fixed_numbers(norm, (targets * restarts, *images.shape))
    watch = Watch(attack, net, images, draws)
    with (
        mock.patch("torch.rand", watch.start),
        mock.patch("torch.randn", watch.start),
        # The reference turns images into f32.
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        adversarial = attack.perturb(images, labels)

    points = len(images)
    margins = torch.full((targets * restarts, steps + 1, points), torch.nan)
    snapshots = images.unsqueeze(0).repeat(len(places), 1, 1, 1, 1)
    for number, (rows, iterates) in enumerate(watch.runs):
        for iterate, x in enumerate(iterates):
            margins[number, iterate, rows] = margin(net(x), labels[rows])
            if (number, iterate) in places:
                snapshots[places.index((number, iterate)), rows] = x
    fooled = net(adversarial).argmax(1) != labels
    assert watch.halvings > 0 and 0 < fooled.sum() < points
    first = (margins <= 0).flatten(0, 1).to(torch.int).argmax(0)[fooled].tolist()
    print(f"    {loss}: {int(fooled.sum())} of {points} fooled, at queries {first};")
    print(f"        {watch.halvings} halvings; points in each run {[len(rows) for rows, _ in watch.runs]}")
    return {
        f"{loss}.settings": torch.tensor([steps, restarts, targets]),
        f"{loss}.draws": draws.half(),
        f"{loss}.margins": margins,
        f"{loss}.snapshot_places": torch.tensor(places),
        f"{loss}.snapshots": snapshots,
        f"{loss}.fooled": fooled.to(torch.uint8),
    }


def hardest(net, images, labels, norm, epsilon, points):
    """Points whose verdict needs many iterations: after a short attack, they are nearest to the
    decision boundary, on either side."""
    correct = net(images).argmax(1) == labels
    images, labels = images[correct], labels[correct]
    attack = APGDAttack(net, norm=norm, n_iter=20, eps=epsilon)
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        attacked = attack.perturb(images, labels, best_loss=True)
    chosen = margin(net(attacked), labels).abs().argsort()[:points]
    return images[chosen], labels[chosen]


def record(norm, shape, epsilon, points, losses, seed):
    net, images, labels = small_net(shape, seed)
    images, labels = hardest(net, images, labels, norm, epsilon, points)
    tensors = {**net.state_dict(), "images": images, "labels": labels, "epsilon": torch.tensor([epsilon])}
    name = f"apgd-{norm.lower()}-{'x'.join(map(str, shape))}.safetensors"
    print(f"{name}:")
    for loss in losses:
        tensors |= record_loss(net, images, labels, norm, epsilon, *loss)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, FIXTURES / name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    grey, colour = (1, 10, 10), (3, 6, 8)
    # Loss, steps, restarts, target classes, and the iterates whose images are recorded. Checkpoints
    # of 100 steps are after 22, 41, 57 ... iterations.
    losses = [
        ("ce", 100, 1, 1, [(0, 23)]),
        ("dlr", 100, 1, 1, [(0, 100)]),
        ("dlr-targeted", 20, 1, CLASSES - 1, [(8, 20)]),
    ]
    record("Linf", grey, 0.05, 20, losses, seed=1)
    record("L2", grey, 0.4, 20, losses, seed=2)
    losses = [("ce", 20, 2, 1, [(1, 20)]), ("dlr-targeted", 20, 2, 2, [(2, 9)])]
    record("Linf", colour, 0.04, 12, losses, seed=3)
    record("L2", colour, 0.4, 12, losses, seed=4)
