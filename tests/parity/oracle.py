"""Common parts of the comparisons: a trained run in PyTorch, and the attacks of both sides.

The oracle is the authors' AutoAttack (package pyautoattack), and foolbox for FGSM and PGD.
"""

import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy
import torch
from pyautoattack import AutoAttack
from safetensors.torch import load_file
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
HOST = ROOT / "target/release/host"

# The authors' name of each member of the suite, and the name here.
MEMBERS = {
    "apgd-ce": "apgd.so,loss=ce",
    "apgd-t": "apgd.so,loss=dlr-targeted",
    "fab-t": "fab.so",
    "square": "square.so",
}


class Run:
    """A run of `host train` on MNIST with a cnn model, rebuilt in PyTorch."""

    def __init__(self, folder, device):
        self.folder = Path(folder).resolve()
        self.record = json.loads((self.folder / "run.json").read_text())
        self.architecture = "A" if "arch=A" in self.record["experiment"]["model"] else "B"
        threat = self.record["experiment"]["threat"]
        self.epsilon = threat["epsilon"]
        self.norm = {"linf": "Linf", "l2": "L2"}[threat["norm"]]
        newest = max(path for path in (self.folder / "checkpoints").iterdir() if path.name.isdigit())
        # As in `host eval`: the average of the weights if the run has one.
        average = newest / "average.safetensors"
        self.weights = average if average.exists() else newest / "weights.safetensors"
        self.device = device
        self.net = network(self.architecture, load_file(self.weights)).to(device)
        images, labels = test_set(Path(self.record["experiment"]["data"]["folder"]) / "mnist")
        self.images, self.labels = images.to(device), labels.to(device)

    def points(self, indices):
        """Images and labels of these points; the indices are on the CPU."""
        return self.images[indices], self.labels[indices]


def network(architecture, weights):
    """The paper's architecture A or B with these weights, in evaluation mode."""
    if architecture == "A":
        layers = [nn.Conv2d(1, 64, 5), nn.ReLU(), nn.Conv2d(64, 64, 5), nn.ReLU(), nn.Flatten(),
                  nn.Dropout(0.25), nn.Linear(64 * 20 * 20, 128), nn.Dropout(0.5), nn.Linear(128, 10)]
    else:
        layers = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1, stride=2),
                  nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
                  nn.Conv2d(64, 64, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(),
                  nn.Linear(7 * 7 * 64, 100), nn.ReLU(), nn.Linear(100, 10)]
    net = nn.Sequential(*layers).eval()
    trained = [layer for layer in layers if isinstance(layer, (nn.Conv2d, nn.Linear))]
    names = [f"conv{number + 1}" for number in range(len(trained) - 2)] + ["hidden", "output"]
    with torch.no_grad():
        for layer, name in zip(trained, names, strict=True):
            layer.weight.copy_(weights[f"{name}.weight"])
            layer.bias.copy_(weights[f"{name}.bias"])
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return net


def test_set(folder):
    images = numpy.frombuffer((folder / "t10k-images-idx3-ubyte").read_bytes()[16:], numpy.uint8)
    labels = numpy.frombuffer((folder / "t10k-labels-idx1-ubyte").read_bytes()[8:], numpy.uint8)
    images = torch.from_numpy(images.copy()).reshape(-1, 1, 28, 28).float() / 255
    return images, torch.from_numpy(labels.copy()).long()


class Host:
    """This project's side: `host eval` on a run, in a folder with a link to the run's
    checkpoints."""

    def __init__(self, run, threads, batch):
        self.folder = tempfile.TemporaryDirectory()
        self.device, self.threads, self.batch = run.device, threads, batch
        copy = Path(self.folder.name)
        (copy / "run.json").write_text((run.folder / "run.json").read_text())
        (copy / "checkpoints").symlink_to(run.folder / "checkpoints")

    def evaluate(self, points, seed, *flags):
        """The saved evaluation, with `total_seconds` of the whole command."""
        command = [HOST, "eval", self.folder.name, "--json", "--points", str(points), "--seed", str(seed),
                   "--device", self.device, "--threads", str(self.threads), "--batch", str(self.batch), *flags]
        started = time.perf_counter()
        finished = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if finished.returncode:
            raise SystemExit(f"{' '.join(map(str, command))} ended with {finished.returncode}:\n{finished.stderr}")
        saved = json.loads((Path(self.folder.name) / "eval.json").read_text())["evaluations"][-1]
        if saved["examples"]:
            saved["examples"] = str(Path(self.folder.name) / saved["examples"])
        return saved | {"total_seconds": seconds}


def authors(run, members, seed, indices, batch):
    """The verdicts of the authors' attacks `members` on these points, the candidates, and the time
    in seconds."""
    images, labels = run.points(indices)
    attack = AutoAttack(
        run.net, norm=run.norm, eps=run.epsilon, seed=seed, version="standard", device=run.device
    )
    attack.attacks_to_run = list(members)
    started = time.perf_counter()
    candidates, classes = attack.run_standard_evaluation(images, labels, batch_size=batch)
    stands = (classes.to(run.device) == labels).cpu()
    return stands, candidates.cpu(), time.perf_counter() - started


def arguments(parser):
    parser.add_argument("runs", nargs="+", help="folders of runs (MNIST, model cnn.so)")
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", help="device of both sides: cpu or cuda")
    parser.add_argument("--out", type=Path, help="write the table here as Markdown")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    # As in the host: full f32 precision, and deterministic results.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    return chosen


def show(lines, out):
    text = "\n".join(lines) + "\n"
    print(text, end="", flush=True)
    if out:
        out.write_text(text)
