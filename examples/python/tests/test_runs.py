"""Runs of every shipped architecture, trained by the host, read by PyTorch. `make python-test`.

The host is `target/release/host`, or what the variable HOST names.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import numpy
import pyautoattack
import torch
import torchattacks
from safetensors.torch import load_file
from torch import nn

REPOSITORY = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPOSITORY / "examples/python"))

import adversarial_transport as at  # noqa: E402

HOST = os.environ.get("HOST", str(REPOSITORY / "target/release/host"))
POINTS, TRAIN_POINTS, SIDE, CLASSES, EPSILON = 1000, 400, 12, 10, 0.1

ARCHITECTURES = {
    "cnn A": "cnn.so,arch=A",
    "cnn B": "cnn.so,arch=B",
    "cnn small": "cnn.so,arch=small",
    "linear": "linear.so",
    "resnet": "resnet.so,depth=18,width=8,mean=[0.4],std=[0.3]",
    "resnet with bottlenecks": "resnet.so,depth=50,width=4",
    "wide-resnet": "wide_resnet.so,depth=10,width=1,dropout=0.2,mean=[0.4],std=[0.3]",
}


def host(*arguments: str, fails: bool = False) -> str:
    """Runs the host; returns its output, or its errors if it must fail."""
    done = subprocess.run([HOST, *arguments], capture_output=True, text=True, cwd=FOLDER.name, check=False)
    if fails != (done.returncode != 0):
        raise AssertionError(f"host {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stderr if fails else done.stdout


FOLDER = tempfile.TemporaryDirectory()


@functools.cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Writes a data set of noisy patterns of 4 x 4 squares; returns its test split."""
    folder, generator = Path(FOLDER.name) / "digits", numpy.random.default_rng(0)
    folder.mkdir()
    patterns = generator.integers(0, 2, (CLASSES, 4, 4)).repeat(SIDE // 4, 1).repeat(SIDE // 4, 2) * 100 + 60
    for split, count in (("train", TRAIN_POINTS), ("t10k", POINTS)):
        labels = generator.integers(0, CLASSES, count, dtype=numpy.uint8)
        images = numpy.clip(patterns[labels] + generator.normal(0, 40, (count, SIDE, SIDE)), 0, 255).astype("u1")
        sizes = numpy.array([2051, count, SIDE, SIDE], ">u4").tobytes()
        (folder / f"{split}-images-idx3-ubyte").write_bytes(sizes + images.tobytes())
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(
            numpy.array([2049, count], ">u4").tobytes() + labels.tobytes()
        )
    return torch.tensor(images).unsqueeze(1) / 255, torch.tensor(labels.astype("i8"))


@functools.cache
def train(model: str, *flags: str) -> Path:
    """Trains a network of this plugin with the host; returns the run's folder."""
    digits()
    name = "".join(letter if letter.isalnum() else "-" for letter in f"{model}{flags}")
    host(
        *("train", "--recipe", "algorithm-1", "--data", "digits", "--model", model, "--epsilon", str(EPSILON)),
        *("--sampler", "langevin.so,step_size=0.05,noise=0.02", "--threads", "1"),
        *("--batch", "20", "--optimizer", "adam", "--learning-rate", "0.003"),
        *(() if "--epochs" in flags else ("--epochs", "3")), *flags, *("--out", name),
    )
    return Path(FOLDER.name) / name


def export(run: Path, form: str, *flags: str) -> Path:
    """`host export` into a file beside the run."""
    out = run.with_suffix(f".{len(list(run.parent.glob('*.out')))}.out")
    host("export", str(run), "--format", form, "--out", str(out), *flags)
    return out


def logits_of_host(run: Path, module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The host's logits at the test points. An older host has no `host predict`: those of the traced
    plugin then."""
    if "predict" in host("--help"):
        out = run.with_suffix(".logits")
        host("predict", str(run), "--out", str(out))
        saved = load_file(out)
        return saved["logits"][saved["points"].argsort()]
    return module(images)


def accuracy(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return (network(images).argmax(1) == labels).float().mean().item()


class Networks(unittest.TestCase):
    """Every architecture in PyTorch is the host's."""

    def test_logits_are_the_hosts(self) -> None:
        images, labels = digits()
        for name, model in ARCHITECTURES.items():
            with self.subTest(name), torch.no_grad():
                run = train(model)
                network, module = at.load(run), torch.jit.load(export(run, "torchscript"))
                expected = logits_of_host(run, module, images)
                self.assertEqual(expected.shape, (POINTS, CLASSES))
                scale = max(1.0, expected.abs().max().item())
                for other in (network, module):
                    self.assertLess((other(images) - expected).abs().max().item(), 1e-5 * scale)
                    # Of any number of images.
                    for count in (1, 7):
                        self.assertLess((other(images[:count]) - expected[:count]).abs().max().item(), 1e-5 * scale)
                self.assertGreater(accuracy(network, images, labels), 2 / CLASSES)

    def test_weights_have_the_same_names_everywhere(self) -> None:
        for name, model in ARCHITECTURES.items():
            with self.subTest(name):
                run = train(model)
                expected = at.state_dict(run)
                saved = torch.load(export(run, "state-dict"), weights_only=True)
                tensors = load_file(export(run, "safetensors"))
                scripted = torch.jit.load(export(run, "torchscript")).state_dict()
                for other in (saved, tensors, scripted):
                    self.assertEqual(set(other), set(expected))
                    for key, tensor in expected.items():
                        self.assertTrue(torch.equal(other[key], tensor), key)
                counters = {key for key in at.load(run).state_dict() if key.endswith("num_batches_tracked")}
                self.assertEqual(set(at.load(run).state_dict()) - counters, set(expected))

    def test_a_traced_network_has_gradients_and_follows_the_dtype(self) -> None:
        images, labels = digits()
        for name, model in ARCHITECTURES.items():
            with self.subTest(name):
                module = torch.jit.load(export(train(model), "torchscript"))
                loss = nn.functional.cross_entropy(module(images[:50]), labels[:50])
                loss.backward()
                self.assertTrue(all(weight.grad is not None for weight in module.parameters()))
                double = module.double()(images[:3].double())
                self.assertEqual(double.dtype, torch.float64)
                short = torch.jit.load(export(train(model), "torchscript")).to(torch.bfloat16)
                self.assertEqual(short(images[:3].to(torch.bfloat16)).dtype, torch.bfloat16)

    def test_a_network_trains_in_pytorch(self) -> None:
        images, _ = digits()
        for name, model in ARCHITECTURES.items():
            with self.subTest(name):
                network = at.load(train(model)).train()
                differs = not torch.equal(network(images[:20]), at.load(train(model))(images[:20]))
                self.assertEqual(differs, name not in ("cnn B", "cnn small", "linear"))


class Attacks(unittest.TestCase):
    """Attacks of other programs on a loaded network."""

    def test_pyautoattack_and_torchattacks_agree_with_the_host(self) -> None:
        images, labels = digits()
        run = train("cnn.so,arch=B")
        attacks = ("--attack", "apgd.so", "--attack", "apgd.so,loss=dlr")
        out = host("eval", str(run), *attacks, "--points", str(POINTS), "--json", "--batch", "200")
        evaluation = json.loads(out)
        verdicts = at.evaluation(run).entry["verdicts"]
        stands = {point: all(row) for point, *row in zip(verdicts["indices"], *verdicts["attacks"], strict=True)}
        by_host = sum(stands.values()) / POINTS
        self.assertLess(abs(evaluation["worst_case"] - by_host), 1e-6)
        for network in (at.load(run), torch.jit.load(export(run, "torchscript"))):
            clean = accuracy(network, images, labels)
            attacks = ["apgd-ce", "apgd-dlr"]
            adversary = pyautoattack.AutoAttack(network, eps=EPSILON, version="custom", attacks=attacks, seed=0)
            fooling, _ = adversary.run_standard_evaluation(images, labels, batch_size=200)
            self.assertLessEqual((fooling - images).abs().max().item(), EPSILON + 1e-6)
            robust = accuracy(network, fooling, labels)
            fooling = torchattacks.PGD(network, eps=EPSILON, alpha=EPSILON / 4, steps=20)(images, labels)
            by_pgd = accuracy(network, fooling, labels)
            self.assertLess(robust, clean)
            self.assertLessEqual(robust, by_pgd + 0.01)
            self.assertLess(abs(robust - by_host), 0.02, f"host {by_host}, pyautoattack {robust}")


class RoundTrip(unittest.TestCase):
    """A network of PyTorch, trained here for an epoch, and attacked elsewhere."""

    def test_a_network_goes_in_and_comes_out(self) -> None:
        if "--init" not in host("train", "--help"):
            self.skipTest("this host has no --init")
        images, labels = digits()
        torch.manual_seed(1)
        begun = at.Cnn("B", 1, 64 * 3 * 3, CLASSES)
        torch.save(begun.state_dict(), Path(FOLDER.name) / "begun.pt")
        run = train("cnn.so,arch=B", "--init", "begun.pt", "--epochs", "1")
        saved = torch.load(export(run, "state-dict"), weights_only=True)
        self.assertFalse(torch.equal(saved["conv1.weight"], begun.state_dict()["conv1.weight"]))
        network = at.Cnn("B", 1, 64 * 3 * 3, CLASSES)
        network.load_state_dict(saved)
        network.eval()
        host("eval", str(run), "--suite", "autoattack", "--points", str(POINTS), "--batch", "200")
        verdicts = at.evaluation(run).entry["verdicts"]
        # In a cascade, a point stands if no attack broke it.
        broken = at.evaluation(run).entry["broken_by"]
        stands = {
            point: clean and by is None
            for point, clean, by in zip(verdicts["indices"], verdicts["clean"], broken, strict=True)
        }
        by_host = torch.tensor([bool(stands[point]) for point in range(200)])
        counts = []
        for seed in (0, 1, 2):
            adversary = pyautoattack.AutoAttack(network, eps=EPSILON, seed=seed)
            fooling, _ = adversary.run_standard_evaluation(images[:200], labels[:200], batch_size=200)
            with torch.no_grad():
                robust = network(fooling).argmax(1) == labels[:200]
            counts.append((int(robust.sum()), int((robust != by_host).sum())))
        print(f"round trip: host eval {int(by_host.sum())} of 200 robust; pyautoattack, three seeds: "
              f"{[count for count, _ in counts]} robust, {[other for _, other in counts]} other verdicts")
        spread = max(count for count, _ in counts) - min(count for count, _ in counts)
        for count, other in counts:
            self.assertLessEqual(abs(count - int(by_host.sum())), max(spread, 1))
            self.assertLessEqual(other, max(2 * spread, 2))


class Files(unittest.TestCase):
    """What a run's folder holds."""

    def test_particles_examples_verdicts_and_metrics(self) -> None:
        images, labels = digits()
        for store, are_distances in (("f32", False), ("u8", True)):
            run = train("linear.so", "--store", store)
            particles = at.particles(run)
            self.assertEqual(particles.values.shape, (TRAIN_POINTS, 1, 1, SIDE, SIDE))
            self.assertEqual(particles.are_distances, are_distances)
            natural = numpy.frombuffer((Path(FOLDER.name) / "digits/train-images-idx3-ubyte").read_bytes()[16:], "u1")
            natural = torch.tensor(natural.reshape(TRAIN_POINTS, 1, 1, SIDE, SIDE).copy()) / 255
            distances = particles.values if are_distances else particles.values - natural
            self.assertLessEqual(distances.abs().max().item(), EPSILON + 1e-6)
            self.assertGreater(distances.abs().mean().item(), EPSILON / 10)
        host("eval", str(run), "--attack", "fgsm.so", "--attack", "pgd.so,steps=5", "--points", "300", "--save-examples")
        evaluation, rows = at.evaluation(run), at.evaluation(run).verdicts
        self.assertEqual(list(rows.columns)[:2] + [rows.columns[-1]], ["point", "clean", "broken_by"])
        self.assertEqual(len(rows), 300)
        self.assertAlmostEqual(rows["clean"].mean(), evaluation.result["clean"])
        self.assertAlmostEqual(rows["pgd.so,steps=5"].mean(), evaluation.result["attacks"][1]["robust"])
        examples, network = at.examples(run), at.load(run)
        self.assertTrue(torch.equal(labels[examples.points], examples.labels))
        self.assertLessEqual((examples.images - images[examples.points]).abs().max().item(), EPSILON + 1e-6)
        self.assertEqual(accuracy(network, examples.images, examples.labels), 0.0)
        self.assertEqual(list(at.metrics(run)["epoch"]), [1, 2, 3])
        self.assertEqual(at.record(run)["experiment"]["model"], "linear.so")
        picture = Path(FOLDER.name) / "run.png"
        script = REPOSITORY / "examples/python/plot_run.py"
        environment = os.environ | {"PYTHONPATH": str(script.parent)}
        subprocess.run([sys.executable, script, run, picture], check=True, env=environment, capture_output=True)
        self.assertTrue(picture.read_bytes().startswith(b"\x89PNG"))

    def test_best_and_averaged_weights(self) -> None:
        run = train("linear.so", "--average", "0.9", "--validation-points", "50", "--select", "best")
        best, last, raw = at.state_dict(run), at.state_dict(run, "last"), at.state_dict(run, "last", average=False)
        self.assertFalse(torch.equal(last["output.weight"], raw["output.weight"]))
        for expected, flags in ((best, []), (last, ["--select", "last"]), (raw, ["--select", "last", "--no-average"])):
            saved = torch.load(export(run, "state-dict", *flags), weights_only=True)
            self.assertTrue(torch.equal(saved["output.weight"], expected["output.weight"]))
        with self.assertRaisesRegex(ValueError, "expected last or best, got newest"):
            at.load(run, "newest")

    def test_a_changed_file_is_refused(self) -> None:
        run = train("linear.so", "--seed", "7")

        def change(path: Path) -> bytes:
            contents = path.read_bytes()
            changed = bytearray(contents)
            changed[len(contents) // 2] ^= 1
            path.write_bytes(bytes(changed))
            return contents

        for name, read in (("metrics.jsonl", at.metrics), ("run.json", at.load)):
            contents = change(run / name)
            with self.assertRaises((at.Damaged, ValueError)):
                read(run)
            (run / name).write_bytes(contents)
        at.load(run)
        for path in run.glob("checkpoints/*/weights.safetensors"):
            change(path)
        with self.assertRaisesRegex(at.Damaged, "no checkpoint in .* is whole"):
            at.load(run)
        with self.assertRaisesRegex(FileNotFoundError, "holds no run"):
            at.load(Path(FOLDER.name) / "digits")


if __name__ == "__main__":
    unittest.main()
