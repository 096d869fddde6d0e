"""Records walks of the reference's FAB, for plugins/fab/tests/trajectory.rs.

    .setup/python/bin/python tests/parity/record_fab.py

Needs pyautoattack 0.2.0, torch and safetensors. The reference computes in f64 here. Its random
starts are made from fixed numbers with few bits, which the fixture contains as f16 without loss.

Each fixture `fab-NORM-CxHxW.safetensors` contains, for N points that the network classifies
correctly,

    conv1.weight ... output.bias   the network, f64
    images, labels                 [N, C, H, W] f64, [N] i64

and for each mode (targeted, untargeted), for W walks (target classes times restarts):

    MODE.settings                  [3] i64: steps, restarts, target classes
    MODE.eta                       [1] f64
    MODE.epsilon                   [1] f64
    MODE.fooled                    [N] u8: the reference's verdict at epsilon
    MODE.distances                 [N] f64: the distance of its result from the image
    MODE.draws                     [D, N, C, H, W] f16: for each start except those at the images,
                                   uniform on [0, 1) for linf, normal for l2

Epsilon decides only which points have later walks, and where random starts are. If all walks start
at the images, the following tensors are from a second run, with an epsilon of 1e-6: no point is
fooled, and every walk goes to its end.

    MODE.walked_epsilon            [1] f64
    MODE.margins                   [W, steps, N] f64: the label's logit minus the largest other
                                   one at every classified iterate; NaN for points without this
                                   walk
    MODE.nearest                   [W, N] f64: the smallest distance of a misclassified iterate;
                                   1e10 if there is none, NaN for points without this walk
    MODE.snapshot_places           [K, 2] i64: walk and iterate, ...
    MODE.snapshots                 [K, N, C, H, W] f64: ... and the images there
"""

from pathlib import Path
from unittest import mock

import torch
from pyautoattack.fab_pt import FABAttack_PT
from safetensors.torch import save_file
from small_net import small_net

FIXTURES = Path(__file__).parent / "fixtures"


def fixed_numbers(norm, shape):
    """Random numbers that f16 holds exactly."""
    if norm == "Linf":
        return torch.randint(0, 1024, shape) / 1024
    return torch.randn(shape).half().double()


def margin(logits, labels):
    own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    return own - logits.scatter(1, labels.unsqueeze(1), -torch.inf).amax(1)


def distance(norm, a, b):
    order = {"Linf": torch.inf, "L2": 2}[norm]
    return torch.linalg.vector_norm((a - b).flatten(1), order, dim=1)


class WatchedAttack(FABAttack_PT):
    """The reference, with a record of the classified iterates of each walk."""

    def __init__(self, net, images, draws, **options):
        super().__init__(net, **options)
        self.images, self.draws = images, iter(draws)
        self.rows, self.classified, self.walks = None, [], []

    def _get_predicted_label(self, x):
        self.classified.append(x.clone())
        return super()._get_predicted_label(x)

    def attack_single_run(self, x, *arguments, **named):
        same = (self.images.unsqueeze(0) == x.unsqueeze(1)).flatten(2).all(2)
        self.rows, self.classified = same.nonzero()[:, 1], []
        result = super().attack_single_run(x, *arguments, **named)
        # The first classified point is the image itself.
        self.walks.append((self.rows, self.classified[1:]))
        return result

    def start(self, shape):
        """Replaces torch.rand and torch.randn."""
        draw = next(self.draws)[self.rows]
        assert draw.shape == shape
        return draw

    def attack(self, labels):
        with (
            mock.patch("torch.rand", self.start),
            mock.patch("torch.randn", self.start),
            # The reference turns images into f32.
            mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
        ):
            return self.perturb(self.images, labels)


def record_mode(net, images, labels, norm, epsilon, mode, steps, restarts, targets, eta, places):
    targeted = mode == "targeted"
    points, walks = len(images), restarts * targets if targeted else restarts
    draws = fixed_numbers(norm, (walks - walks // restarts, *images.shape))
    options = {"norm": norm, "targeted": targeted, "n_iter": steps, "n_restarts": restarts, "eta": eta}

    def attack(eps):
        watched = WatchedAttack(net, images, draws, eps=eps, n_target_classes=targets, **options)
        return watched, watched.attack(labels)

    watched, adversarial = attack(epsilon)
    fooled = net(adversarial).argmax(1) != labels
    assert 0 < fooled.sum() < points
    walked_epsilon = 1e-6 if restarts == 1 else epsilon
    if restarts == 1:
        watched, _ = attack(walked_epsilon)
        assert all(len(rows) == points for rows, _ in watched.walks)

    margins = torch.full((walks, steps, points), torch.nan)
    nearest = torch.full((walks, points), torch.nan)
    snapshots = images.unsqueeze(0).repeat(len(places), 1, 1, 1, 1)
    for walk, (rows, classified) in enumerate(watched.walks):
        nearest[walk, rows] = 1e10
        for iterate, x in enumerate(classified):
            margins[walk, iterate, rows] = margin(net(x), labels[rows])
            far = distance(norm, x, images[rows]).where(net(x).argmax(1) != labels[rows], 1e10)
            nearest[walk, rows] = nearest[walk, rows].minimum(far)
            if (walk, iterate) in places:
                snapshots[places.index((walk, iterate)), rows] = x
    # Rounding must not decide whether an iterate moves back.
    assert margins.abs().nan_to_num(1.0).min() > 1e-9
    stay = (margins > 0).sum() / (~margins.isnan()).sum()
    print(f"    {mode}: {int(fooled.sum())} of {points} fooled at epsilon {epsilon}; {stay:.1%} of "
          f"iterates stay; points in each walk {[len(rows) for rows, _ in watched.walks]}")
    return {
        f"{mode}.settings": torch.tensor([steps, restarts, targets]),
        f"{mode}.eta": torch.tensor([eta]),
        f"{mode}.epsilon": torch.tensor([epsilon]),
        f"{mode}.fooled": fooled.to(torch.uint8),
        f"{mode}.distances": distance(norm, adversarial, images),
        f"{mode}.draws": draws.half(),
        f"{mode}.walked_epsilon": torch.tensor([walked_epsilon]),
        f"{mode}.margins": margins,
        f"{mode}.nearest": nearest,
        f"{mode}.snapshot_places": torch.tensor(places),
        f"{mode}.snapshots": snapshots,
    }


def hardest(net, images, labels, norm, epsilon, points):
    """Points whose verdict needs many iterations: the adversarial points that a short attack finds
    are about epsilon away."""
    correct = (net(images).argmax(1) == labels).nonzero()[:200, 0]
    images, labels = images[correct], labels[correct]
    attack = WatchedAttack(net, images, [], norm=norm, n_iter=10, eps=10.0)
    found = distance(norm, attack.attack(labels), images)
    chosen = (found - epsilon).abs().argsort()[:points]
    return images[chosen], labels[chosen]


def record(norm, shape, epsilon, points, modes, seed):
    net, images, labels = small_net(shape, seed)
    images, labels = hardest(net, images, labels, norm, epsilon, points)
    tensors = {**net.state_dict(), "images": images, "labels": labels}
    name = f"fab-{norm.lower()}-{'x'.join(map(str, shape))}.safetensors"
    print(f"{name}:")
    for mode in modes:
        tensors |= record_mode(net, images, labels, norm, epsilon, *mode)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, FIXTURES / name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    grey, colour = (1, 10, 10), (3, 6, 8)
    # Steps, restarts, target classes, eta, and the iterates whose images are recorded. This network
    # is nearly linear: with AutoAttack's eta every iterate is misclassified. With a smaller eta
    # some are classified correctly.
    modes = [
        ("targeted", 100, 1, 2, 1.05, [(0, 0), (1, 99)]),
        ("untargeted", 40, 1, 1, 1.0003, [(0, 39)]),
    ]
    record("Linf", grey, 0.05, 20, modes, seed=1)
    record("L2", grey, 0.4, 20, modes, seed=2)
    modes = [
        ("targeted", 25, 2, 3, 1.0003, [(3, 24)]),
        ("untargeted", 25, 3, 1, 1.05, [(2, 24)]),
    ]
    record("Linf", colour, 0.04, 12, modes, seed=3)
    record("L2", colour, 0.4, 12, modes, seed=4)
