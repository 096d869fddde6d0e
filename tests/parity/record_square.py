"""Records searches of the reference's Square Attack, for plugins/square/tests/trajectory.rs.

    .setup/python/bin/python tests/parity/record_square.py

Needs pyautoattack 0.2.0, torch, numpy and safetensors. The reference draws one square for all
points of a batch, so every point is attacked alone. Its random numbers are replaced by fixed
numbers of 8 bits, so that fixtures are small and both sides compute the same positions. The fixture
contains them in the order of the draws.

Each fixture `square-NORM-CxHxW.safetensors` contains, for P points, Q proposals and K snapshots:

    conv1.weight ... output.bias   the network, f64
    images, labels, epsilon        [P, C, H, W] f64, [P] i64, [1] f64
    rescale_schedule               [1] u8
    start_numbers, query_numbers   [P, ...], [P, Q, ...] u8, in units of 1/256; zeros where
                                   the reference drew none
    queries                        [P] i64: number of proposals
    changed, accepted              [P, Q] u8: proposals that differed from the best image so
                                   far, and those that replaced it
    snapshot_queries, snapshots    [K] i64, [P, K, C, H, W] f64: best images after these numbers
                                   of proposals, or at the end of a shorter search
    fooled                         [P] u8: the reference's verdict
"""

import sys
from pathlib import Path
from unittest import mock

import numpy
import torch
from pyautoattack.square import SquareAttack
from safetensors.torch import save_file
from small_net import CLASSES, small_net

FIXTURES = Path(__file__).parent / "fixtures"

# Images with a smaller difference are the same: the reference adds and cuts pixels that do not
# change.
ROUNDING = 1e-12


class FixedNumbers:
    """Replaces torch.rand by numbers of 8 bits, and records them. They are never one half, since
    the reference's sign of one half is zero."""

    def __init__(self, seed):
        self.generator = numpy.random.default_rng(seed)
        self.bytes = []

    def __call__(self, *shape):
        shape = tuple(shape[0]) if not isinstance(shape[0], int) else shape
        drawn = self.generator.integers(0, 256, shape)
        drawn[drawn == 128] = 129
        self.bytes.extend(drawn.flatten().tolist())
        return torch.from_numpy(drawn / 256)


class WatchedAttack(SquareAttack):
    """The reference, with a record of its proposals and of the best images."""

    def margin_and_loss(self, x, y):
        # The best image so far is a local variable of the caller.
        self.best.append(sys._getframe(1).f_locals["x_best"][0].clone())
        self.tried.append(x[0].clone())
        return super().margin_and_loss(x, y)

    def attack_single_run(self, x, y):
        queries, x_best = super().attack_single_run(x, y)
        # The reference counts the start as a query.
        self.proposals = int(queries) - 1
        self.best.append(x_best[0].clone())
        return queries, x_best


def differ(one, other):
    return int((one - other).abs().max() > ROUNDING)


def record(norm, shape, epsilon, points, queries, rescale, snapshot_queries, seed):
    net, images, labels = small_net(shape, seed)
    channels, height, width = shape
    if norm == "Linf":
        start_shape, per_query = (channels, 1, width), 2 + channels
    else:
        side = height // 5
        start_shape, per_query = ((height // side) * (width // side), 1 + channels), 5 + channels

    correct = (net(images).argmax(1) == labels).nonzero()[:points, 0]
    images, labels = images[correct], labels[correct]
    # The first point is misclassified without an attack.
    labels[0] = (labels[0] + 1) % CLASSES

    start_numbers = torch.zeros(points, *start_shape, dtype=torch.uint8)
    query_numbers = torch.zeros(points, queries, per_query, dtype=torch.uint8)
    changed, accepted = torch.zeros(2, points, queries, dtype=torch.uint8)
    used = torch.zeros(points, dtype=torch.int64)
    snapshots = images.unsqueeze(1).repeat(1, len(snapshot_queries), 1, 1, 1)
    fooled = torch.zeros(points, dtype=torch.uint8)
    for point in range(points):
        x, y = images[point : point + 1], labels[point : point + 1]
        attack = WatchedAttack(net, norm=norm, n_queries=queries, eps=epsilon, resc_schedule=rescale)
        attack.best, attack.tried, attack.proposals = [], [], 0
        numbers = FixedNumbers([seed, point])
        # The reference multiplies the margin by an f32 indicator. For a batch of one, this would
        # round the margin to f32.
        double = mock.patch("torch.Tensor.float", torch.Tensor.double)
        with mock.patch("torch.rand", numbers), double:
            adversarial = attack.perturb(x, y)
        fooled[point] = int(net(adversarial).argmax() != y)
        used[point] = attack.proposals
        if not attack.best:
            continue

        drawn = torch.tensor(numbers.bytes, dtype=torch.uint8)
        start, rest = drawn.tensor_split([start_numbers[point].numel()])
        start_numbers[point] = start.reshape(start_shape)
        query_numbers[point, : used[point]] = rest.reshape(-1, per_query)
        # best[0] and best[1] are the start; best[q + 1] is the best image after q proposals.
        best = attack.best
        for query in range(used[point]):
            changed[point, query] = differ(attack.tried[query + 1], best[query + 1])
            accepted[point, query] = differ(best[query + 2], best[query + 1])
        for number, query in enumerate(snapshot_queries):
            snapshots[point, number] = best[min(query, int(used[point])) + 1]

    tensors = {
        **net.state_dict(),
        "images": images,
        "labels": labels,
        "epsilon": torch.tensor([epsilon]),
        "rescale_schedule": torch.tensor([rescale], dtype=torch.uint8),
        "start_numbers": start_numbers,
        "query_numbers": query_numbers,
        "queries": used,
        "changed": changed,
        "accepted": accepted,
        "snapshot_queries": torch.tensor(snapshot_queries),
        "snapshots": snapshots,
        "fooled": fooled,
    }
    name = f"square-{norm.lower()}-{channels}x{height}x{width}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, FIXTURES / name)
    print(f"{name}: {int(fooled.sum())} of {points} fooled, proposals {used.tolist()},")
    print(f"    accepted {accepted.sum(1).tolist()}, no change in {1 - changed.sum() / used.sum():.1%}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    grey, colour = (1, 10, 10), (3, 6, 8)
    record("Linf", grey, 0.12, 20, 520, False, [11, 520], seed=1)
    record("L2", grey, 1.2, 20, 520, False, [11, 520], seed=2)
    # The rescaled schedule has all nine halvings in few proposals.
    record("Linf", colour, 0.12, 12, 120, True, [12, 120], seed=3)
    record("L2", colour, 2.0, 12, 120, True, [12, 120], seed=4)
