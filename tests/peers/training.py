"""The time of an update: this project in every mode, the same loops in plain PyTorch, and PGD-40
adversarial training with torchattacks and with ART. All have the same threads, batch, network and
data; f32 unless stated otherwise; tensors in memory, no DataLoader.
"""

import argparse
import inspect
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "parity"))
from oracle import HOST, ROOT, network  # noqa: E402

EPSILON, STEP_SIZE, NOISE, BATCH = 0.3, 0.2, 0.2, 100


def fresh(architecture):
    """A network with PyTorch's initialisation, in training mode, and its optimiser."""
    shapes = {"A": [(64, 1, 5, 5), (64, 64, 5, 5), (128, 64 * 400), (10, 128)],
              "B": [(32, 1, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3), (64, 64, 3, 3), (100, 3136), (10, 100)]}
    names = [f"conv{number + 1}" for number in range(len(shapes[architecture]) - 2)] + ["hidden", "output"]
    weights = {}
    for name, shape in zip(names, shapes[architecture], strict=True):
        bound = numpy.prod(shape[1:]) ** -0.5
        weights[f"{name}.weight"] = torch.empty(shape).uniform_(-bound, bound)
        weights[f"{name}.bias"] = torch.empty(shape[0]).uniform_(-bound, bound)
    net = network(architecture, weights).train()
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    return net, torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)


def descend(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


# --- the loops in plain PyTorch ---------------------------------------------------------------


def clean(net, optimizer, natural, particles, labels):
    descend(optimizer, F.cross_entropy(net(natural), labels))


def algorithm_1(net, optimizer, natural, particles, labels):
    """One Langevin step of the particles, then the weights descend at the new particles."""
    x = particles.clone().requires_grad_(True)
    gradient, = torch.autograd.grad(F.cross_entropy(net(x), labels, reduction="sum"), x)
    particles.copy_(langevin(x.detach(), gradient, natural))
    descend(optimizer, F.cross_entropy(net(particles), labels))


def fused(net, optimizer, natural, particles, labels):
    """One backward for both: the weights descend at the particles, which move along its
    gradient."""
    x = particles.clone().requires_grad_(True)
    descend(optimizer, F.cross_entropy(net(x), labels))
    particles.copy_(langevin(x.detach(), x.grad, natural))


def langevin(x, gradient, natural):
    moved = x + STEP_SIZE * gradient.sign() + NOISE * torch.randn_like(x)
    return torch.clamp(torch.min(torch.max(moved, natural - EPSILON), natural + EPSILON), 0, 1)


def torchattacks_pgd(net, optimizer, natural, particles, labels):
    import torchattacks
    net.eval()
    attack = torchattacks.PGD(net, eps=EPSILON, alpha=0.01, steps=40, random_start=True)
    examples = attack(natural, labels)
    net.train()
    descend(optimizer, F.cross_entropy(net(examples), labels))


def art_pgd(net, optimizer, natural, particles, labels):
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier
    classifier = PyTorchClassifier(net, torch.nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0, 1),
                                   device_type="cpu")
    attack = ProjectedGradientDescentPyTorch(classifier, eps=EPSILON, eps_step=0.01, max_iter=40,
                                             num_random_init=1, batch_size=BATCH, verbose=False)
    examples = torch.from_numpy(attack.generate(natural.numpy(), labels.numpy()))
    net.train()
    descend(optimizer, F.cross_entropy(net(examples), labels))


# --- timing -----------------------------------------------------------------------------------


ON_A_GPU = """On a GPU, `make gpu-peers` (`tests/peers/gpu.py`) compares each mode and precision with PyTorch, eager
and compiled, and a whole suite with pyautoattack, and writes `docs/peers-gpu.md`. It has not been run
on a GPU: `--device cpu --quick` tried the script.
"""

PLAIN = [descend, clean, algorithm_1, fused, langevin, torchattacks_pgd, art_pgd]


def theirs(update, architecture, data, updates):
    """Seconds per update: the median of three rounds."""
    images, labels = data
    net, optimizer = fresh(architecture)
    natural, labels = images[:BATCH], labels[:BATCH]
    particles = natural.clone()
    update(net, optimizer, natural, particles, labels)
    rounds = []
    for _ in range(3):
        started = time.perf_counter()
        for _ in range(updates):
            update(net, optimizer, natural, particles, labels)
        rounds.append((time.perf_counter() - started) / updates)
    return sorted(rounds)[1]


def ours(flags, architecture, folder, threads, updates, passes=1):
    """Seconds per update of `host train`: the median over the epochs after the first."""
    points = updates * BATCH
    with tempfile.TemporaryDirectory() as out:
        command = [HOST, "train", "--recipe", "algorithm-1", "--json", "--data-folder", folder, "--threads", threads, "--epochs", 4,
                   "--train-points", points, "--batch", BATCH, "--model", f"cnn.so,arch={architecture}",
                   "--out", f"{out}/run", *flags]
        lines = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
        epochs = [json.loads(line) for line in lines.stdout.splitlines() if '"epoch"' in line]
    seconds = [epoch["seconds"] for epoch in epochs if "seconds" in epoch and "epoch" in epoch]
    rounds = [(after - before) / updates / passes for before, after in zip(seconds, seconds[1:])]
    return sorted(rounds)[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architectures", nargs="*", default=["B", "A"])
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--data-folder", type=Path, default=ROOT / "data")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    from oracle import test_set
    data = test_set(chosen.data_folder / "mnist")
    lines = [f"{chosen.threads} threads, batch {BATCH}; milliseconds of an update, and its ratio to PyTorch's"
             " clean update in f32.", "", "| network | update | side | ms | ratio |", "|---|---|---|---|---|"]
    for architecture in chosen.architectures:
        def mine(*flags):
            return ours(flags, architecture, chosen.data_folder, chosen.threads, chosen.updates)
        long = max(chosen.updates // 15, 2)
        rows = [
            ("clean", "PyTorch", lambda: theirs(clean, architecture, data, chosen.updates)),
            ("clean", "ours", lambda: mine("--sampler", "none")),
            ("Algorithm 1", "PyTorch", lambda: theirs(algorithm_1, architecture, data, chosen.updates)),
            ("Algorithm 1 (faithful)", "ours", lambda: mine("--sampler", "langevin.so")),
            ("fused", "PyTorch", lambda: theirs(fused, architecture, data, chosen.updates)),
            ("fused", "ours", lambda: mine("--sampler", "langevin.so", "--mode", "fused")),
            ("clean, bf16", "ours", lambda: mine("--sampler", "none", "--precision", "bf16")),
            ("faithful, bf16", "ours", lambda: mine("--sampler", "langevin.so", "--precision", "bf16")),
            ("fused, bf16", "ours",
             lambda: mine("--sampler", "langevin.so", "--mode", "fused", "--precision", "bf16")),
            ("PGD-40", "torchattacks", lambda: theirs(torchattacks_pgd, architecture, data, long)),
            ("PGD-40", "ART", lambda: theirs(art_pgd, architecture, data, long)),
        ]
        reference = None
        for update, side, measure in rows:
            try:
                seconds = measure()
            except ModuleNotFoundError as missing:
                lines.append(f"| {architecture} | {update} | {side} | {missing.name} is not installed | |")
                continue
            reference = reference or seconds
            lines.append(f"| {architecture} | {update} | {side} | {1000 * seconds:.1f} | {seconds / reference:.2f} |")
            print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n\n" + ON_A_GPU + "\nPyTorch's side, from `tests/peers/training.py`:\n\n```python\n"
    text += "\n\n".join(map(inspect.getsource, PLAIN)) + "```\n"
    print(text, end="")
    if chosen.out:
        chosen.out.write_text(text)


if __name__ == "__main__":
    main()
