"""The time of an update on a GPU: this project in each mode and precision beside PyTorch, eager and
compiled, on the same card in one run; then the recipe `demo` as a whole, and a whole suite beside the
authors' AutoAttack.

Both sides do the same work: a minibatch is taken from images (one byte a pixel) and particles on the
device, both players move, and the particles are put back. Images are random: the time does not
depend on them. `--device cpu --quick` tries the script on a machine without a GPU, with a narrow
network and few updates; its figures say nothing.
"""

import argparse
import contextlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "examples/python"), str(ROOT / "tests/parity")]
from adversarial_transport.networks import Cnn, ResNet  # noqa: E402

STEP_SIZE, NOISE, CLASSES = 0.2, 0.2, 10

# A mode of training, and the flags that choose it here.
MODES = {
    "clean": ["--sampler", "none"],
    "faithful": ["--sampler", f"langevin.so,step_size={STEP_SIZE},noise={NOISE}"],
    "fused": ["--sampler", f"langevin.so,step_size={STEP_SIZE},noise={NOISE}", "--mode", "fused"],
}


class Network:
    """A network on both sides, with its images."""

    def __init__(self, name, shape, epsilon, plugin, build):
        self.name, self.shape, self.epsilon, self.plugin, self.build = name, shape, epsilon, plugin, build


def networks(quick):
    """MNIST's architecture B, and ResNet-18; the latter is narrow in a quick run."""
    width = 8 if quick else 64
    return [
        Network("MNIST-B", (1, 28, 28), 0.3, "cnn.so,arch=B", lambda: Cnn("B", 1, 3136, CLASSES)),
        Network("ResNet-18", (3, 32, 32), 8 / 255, f"resnet.so,depth=18,width={width}",
                lambda: ResNet(18, width, 3, CLASSES)),
    ]


# --- PyTorch's side ---------------------------------------------------------------------------


class Training:
    """A network with its optimiser, images, labels and particles on a device."""

    def __init__(self, network, data, device, precision, is_compiled):
        images, labels = data
        self.epsilon, self.device, self.precision = network.epsilon, torch.device(device), precision
        self.net = network.build().to(device).train()
        self.forward = torch.compile(self.net) if is_compiled else self.net
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.02, momentum=0.9)
        self.images = torch.from_numpy(images).to(device)
        self.labels = torch.from_numpy(labels).to(device)
        self.particles = self.images.float() / 255

    def logits(self, images):
        if self.precision != "bf16":
            return self.forward(images)
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.forward(images).float()

    def descend(self, loss):
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def langevin(self, x, gradient, natural):
        moved = x + STEP_SIZE * gradient.sign() + NOISE * torch.randn_like(x)
        return torch.clamp(torch.min(torch.max(moved, natural - self.epsilon), natural + self.epsilon), 0, 1)

    def update(self, mode, points):
        natural, labels = self.images[points].float() / 255, self.labels[points]
        if mode == "clean":
            self.descend(F.cross_entropy(self.logits(natural), labels))
            return
        x = self.particles[points].requires_grad_(True)
        if mode == "fused":
            self.descend(F.cross_entropy(self.logits(x), labels))
            self.particles[points] = self.langevin(x.detach(), x.grad, natural)
            return
        # As here by default, the gradient of the particles is taken in evaluation mode.
        self.net.eval()
        gradient, = torch.autograd.grad(F.cross_entropy(self.logits(x), labels, reduction="sum"), x)
        self.net.train()
        moved = self.langevin(x.detach(), gradient, natural)
        self.descend(F.cross_entropy(self.logits(moved), labels))
        self.particles[points] = moved

    def epoch(self, mode, batch):
        for points in torch.randperm(len(self.labels)).to(self.device).split(batch):
            self.update(mode, points)
        if self.device.type == "cuda":
            torch.cuda.synchronize()


@contextlib.contextmanager
def arithmetic(precision):
    """f32 in full, or TF32, for the products and convolutions of this side."""
    allowed = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def of_pytorch(network, data, mode, precision, is_compiled, chosen):
    """Seconds of an update: the median of some epochs after the first, which compiles."""
    with arithmetic(precision):
        training = Training(network, data, chosen.device, precision, is_compiled)
        seconds = []
        for _ in range(chosen.rounds + 1):
            started = time.perf_counter()
            training.epoch(mode, chosen.batch)
            seconds.append((time.perf_counter() - started) / chosen.updates)
    return statistics.median(seconds[1:])


# --- this project's side ----------------------------------------------------------------------


def host(chosen, *words):
    """What `host` with these arguments prints; its error ends the script."""
    command = [str(word) for word in (chosen.host, *words)]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {finished.returncode}:\n{finished.stderr}")
    return finished.stdout


def train(chosen, out, *flags):
    """The lines of the epochs of a training run."""
    common = ["train", "--json", "--device", chosen.device, "--threads", chosen.threads, "--out", out]
    lines = [json.loads(line) for line in host(chosen, *common, *flags).splitlines()]
    return [line for line in lines if "epoch" in line and "seconds" in line]


def of_host(network, file, mode, precision, chosen):
    """Seconds of an update: the median of some epochs after the first."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--recipe", "algorithm-1", "--data", file, "--model", network.plugin, "--epsilon", network.epsilon,
                 "--batch", chosen.batch, "--epochs", chosen.rounds + 1, "--precision", precision, *MODES[mode]]
        seconds = [epoch["seconds"] for epoch in train(chosen, f"{folder}/run", *flags)]
    return statistics.median(after - before for before, after in zip(seconds, seconds[1:])) / chosen.updates


# --- tables -----------------------------------------------------------------------------------


def random_data(network, points, folder):
    """Random images and labels, `[N, C, H, W]` (uint8) and `[N]` (i64), also in a file for `host`."""
    generator = numpy.random.default_rng(0)
    images = generator.integers(0, 256, (points, *network.shape), dtype=numpy.uint8)
    labels = numpy.arange(points, dtype=numpy.int64) % CLASSES
    file = Path(folder) / f"{network.name}.npz"
    last = images.transpose(0, 2, 3, 1)
    last = last[..., 0] if network.shape[0] == 1 else last
    numpy.savez(file, x_train=last, y_train=labels, x_test=last[:100], y_test=labels[:100])
    return (images, labels), file


def update_table(chosen):
    """Milliseconds of an update, and the ratio to PyTorch's eager time in the same precision."""
    lines = ["| network | update | precision | PyTorch eager | torch.compile | ours | ours / eager |", "|---" * 7 + "|"]
    with tempfile.TemporaryDirectory() as folder:
        for network in networks(chosen.quick):
            data, file = random_data(network, chosen.updates * chosen.batch, folder)
            for precision in chosen.precisions:
                for mode in MODES:
                    eager = of_pytorch(network, data, mode, precision, False, chosen)
                    compiled = math.nan
                    if not chosen.without_compile:
                        compiled = of_pytorch(network, data, mode, precision, True, chosen)
                    ours = of_host(network, file, mode, precision, chosen)
                    times = " | ".join("" if math.isnan(time) else f"{1000 * time:.2f}"
                                       for time in (eager, compiled, ours))
                    lines.append(f"| {network.name} | {mode} | {precision} | {times} | {ours / eager:.2f} |")
                    print(lines[-1], flush=True)
    return lines


def suite_lines(chosen):
    """The recipe `demo` as a whole, and the standard suite on its network on both sides."""
    from oracle import MEMBERS, Run, authors
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        few = ["--train-points", 500, "--epochs", 1, "--warmup-epsilon", 0] if chosen.quick else []
        epochs = train(chosen, run, "--recipe", "demo", "--data-folder", chosen.data_folder, *few)
        lines = [f"MNIST-B's recipe `demo`: {epochs[-1]['seconds']:.1f} s of training."]
        print(lines[-1], flush=True)
        evaluate = ["eval", run, "--json", "--suite", "autoattack", "--points", chosen.points, "--batch", chosen.points,
                    "--device", chosen.device, "--threads", chosen.threads]
        started = time.perf_counter()
        printed = json.loads(host(chosen, *evaluate))
        ours = time.perf_counter() - started
        verdicts = json.loads((run / "eval.json").read_text())["evaluations"][-1]["verdicts"]
        stands, _, theirs = authors(Run(run, chosen.device), list(MEMBERS), 0, torch.tensor(verdicts["indices"]),
                                    chosen.points)
        lines.append(
            f"Suite `autoattack` on {chosen.points} points in one batch, f32: ours {ours:.1f} s (the start of the program"
            f" included), pyautoattack {theirs:.1f} s, ratio {ours / theirs:.2f}; robust accuracy"
            f" {100 * printed['worst_case']:.1f} and {100 * stands.float().mean():.1f} %."
        )
        print(lines[-1], flush=True)
    return lines


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="device of both sides: cuda, cuda:N, or cpu for a trial")
    parser.add_argument("--quick", action="store_true", help="few updates and points: tries the script")
    parser.add_argument("--precisions", nargs="*", choices=["f32", "tf32", "bf16"])
    parser.add_argument("--batch", type=int)
    parser.add_argument("--updates", type=int, help="updates of an epoch")
    parser.add_argument("--points", type=int, help="test points of the suite")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--without-compile", action="store_true")
    parser.add_argument("--without-suite", action="store_true")
    parser.add_argument("--data-folder", type=Path, default=ROOT / "data", help="folder that has MNIST")
    parser.add_argument("--host", type=Path, default=ROOT / "target/release/host")
    parser.add_argument("--out", type=Path, help="write the tables here as Markdown")
    chosen = parser.parse_args()
    on_gpu = chosen.device.startswith("cuda")
    if on_gpu and not torch.cuda.is_available():
        parser.error(f"--device {chosen.device}: this PyTorch ({torch.__version__}) finds no CUDA device; "
                     "run it on a machine with a GPU, or try the script with --device cpu --quick")
    if not on_gpu and not chosen.quick:
        parser.error(f"--device {chosen.device}: this is a comparison on a GPU; a trial without one needs --quick")
    if not on_gpu and "tf32" in (chosen.precisions or []):
        parser.error("--precisions tf32: only GPUs have TF32")
    chosen.precisions = chosen.precisions or (["f32", "tf32", "bf16"] if on_gpu else ["f32", "bf16"])
    chosen.batch = chosen.batch or (8 if chosen.quick else 128)
    chosen.updates = chosen.updates or (2 if chosen.quick else 200)
    chosen.points = chosen.points or (8 if chosen.quick else 1000)
    chosen.rounds = 1 if chosen.quick else 3
    torch.set_num_threads(chosen.threads)
    return chosen


def main():
    chosen = arguments()
    where = torch.cuda.get_device_name(chosen.device) if chosen.device.startswith("cuda") else "the CPU"
    head = f"{where}, PyTorch {torch.__version__}, batch {chosen.batch}, {chosen.updates} updates an epoch, median of" \
           f" {chosen.rounds} epochs; milliseconds of an update."
    if chosen.quick:
        head += " A trial of the script: its figures say nothing."
    print(head, flush=True)
    lines = [head, "", *update_table(chosen)]
    if not chosen.without_suite:
        lines += ["", *suite_lines(chosen)]
    text = "\n".join(lines) + "\n"
    if chosen.out:
        chosen.out.write_text(text)


if __name__ == "__main__":
    main()
