"""What a run's folder holds: weights, particles, adversarial examples, verdicts, metrics."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .files import Damaged, Path_, read_json, read_lines, read_tensors
from .networks import build

# Steps of a particle from its point to the edge of the ball, with `--store u8`.
_STEPS = 127


def record(run: Path_) -> dict[str, Any]:
    """The contents of `run.json`: all options with their values, plugins, data, versions.

    Raises:
        FileNotFoundError: if the folder holds no run.
        Damaged: if the file was changed.
    """
    path = Path(run) / "run.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run} holds no run: {path} is missing")
    return read_json(path)


def _checkpoint(folder: Path, group: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of a group in the newest checkpoint that is whole, and its progress."""
    names = [path for path in folder.glob("*") if re.fullmatch(r"[0-9]+", path.name)]
    damaged = []
    for path in sorted(names, key=lambda path: path.name, reverse=True):
        try:
            saved = read_json(path / "progress.json")
            size, digest = saved["files"].get(f"{group}.safetensors", (None, None))
            if digest is None:
                return {}, saved["progress"]
            return read_tensors(path / f"{group}.safetensors", digest, size), saved["progress"]
        except (Damaged, FileNotFoundError, ValueError) as why:
            damaged.append(str(why))
    if damaged:
        raise Damaged(f"no checkpoint in {folder} is whole: {'; '.join(damaged)}")
    raise FileNotFoundError(f"{folder} has no checkpoint yet")


def state_dict(run: Path_, which: str | None = None, average: bool = True) -> dict[str, torch.Tensor]:
    """Parameters and buffers of a run by name, on the CPU.

    Args:
        run: The run's folder.
        which: `last`, or `best` of a run of `host train --select best`; by default the weights that
            `host eval` evaluates.
        average: Whether to take the average of the weights where the run has one.

    Raises:
        FileNotFoundError: if there is no run, or none of its weights of this kind.
        Damaged: if no checkpoint is whole.
        ValueError: if `which` is another word.
    """
    which = which or record(run)["experiment"]["train"]["select"]
    if which not in ("last", "best"):
        raise ValueError(f"which: expected last or best, got {which}")
    folder = Path(run) / ("best" if which == "best" else "checkpoints")
    tensors = _checkpoint(folder, "average")[0] if average else {}
    return tensors or _checkpoint(folder, "weights")[0]


def load(run: Path_, which: str | None = None, average: bool = True) -> nn.Module:
    """The network of a run of one of the shipped architectures, in evaluation mode on the CPU.

    The arguments and errors are those of `state_dict`.

    Raises:
        ValueError: also if the plugin of the run is another one.
    """
    plugin = record(run)["plugins"]["model"]
    name = plugin["manifest"]["name"]
    return build(name, plugin["options"], state_dict(run, which, average))


@dataclass
class Particles:
    """The stored particles of a run."""

    values: torch.Tensor
    """`[points, K, C, H, W]`, f32: where the particles are, or their distances from their points."""

    are_distances: bool
    """Whether the values are distances, as with `--store f16` and `u8`. Add the natural images and
    project on ball and domain to get the particles."""

    state: dict[str, torch.Tensor]
    """What the sampler keeps with the particles, by name, `[points, K, ...]`."""


def particles(run: Path_) -> Particles:
    """The particles of the newest checkpoint, in the order of the training points.

    Raises:
        FileNotFoundError: if there is no run, or it stores no particles.
        Damaged: if no checkpoint is whole.
    """
    experiment = record(run)["experiment"]
    tensors, _ = _checkpoint(Path(run) / "checkpoints", "particles")
    if "particles" not in tensors:
        raise FileNotFoundError(f"{run} stores no particles")
    values, store = tensors.pop("particles"), experiment["train"]["store"]
    if store == "u8":
        epsilon = experiment["threat"]["epsilon"] * experiment["train"]["epsilon_scale"]
        values = (values.float() - _STEPS) * (epsilon / _STEPS)
    return Particles(values.float(), store != "f32", {name: state.float() for name, state in tensors.items()})


@dataclass
class Evaluation:
    """An evaluation of a run, from `eval.json`."""

    entry: dict[str, Any]
    """The whole entry: settings, plugins, versions, and the fields below."""

    @property
    def result(self) -> dict[str, Any]:
        """`clean`, `worst_case` and the accuracy against each of the `attacks`; its caveats."""
        return self.entry["result"]

    @property
    def verdicts(self) -> Any:
        """The verdict on every point, a row for each: `point` (its index in the data), `clean` (whether
        it is classified correctly), whether it stands against each attack, and `broken_by`, the
        number of the attack that broke it (none if it stands, or is misclassified without one)."""
        verdicts = self.entry["verdicts"]
        names = [attack["attack"] for attack in self.result["attacks"]]
        columns = {"point": verdicts["indices"], "clean": verdicts["clean"]}
        columns |= dict(zip(_distinct(names), verdicts["attacks"], strict=True))
        columns["broken_by"] = self.entry["broken_by"]
        return _frame([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])


def _distinct(names: list[str]) -> list[str]:
    """The names, with a number after those that came before."""
    return [name if name not in names[:index] else f"{name} ({index + 1})" for index, name in enumerate(names)]


def evaluations(run: Path_) -> list[Evaluation]:
    """All evaluations of a run, oldest first; none if it was not evaluated yet.

    Raises:
        Damaged: if the file was changed.
    """
    path = Path(run) / "eval.json"
    if not path.exists():
        return []
    return [Evaluation(entry) for entry in read_json(path)["evaluations"]]


def evaluation(run: Path_, number: int = -1) -> Evaluation:
    """One evaluation of a run, by default the newest.

    Raises:
        FileNotFoundError: if the run has none of this number.
    """
    found = evaluations(run)
    try:
        return found[number]
    except IndexError:
        count = len(found)
        raise FileNotFoundError(f"{run} has {count} evaluations, none of number {number}: run `host eval`") from None


@dataclass
class Examples:
    """Adversarial examples that fooled the network."""

    images: torch.Tensor
    """`[M, C, H, W]`."""

    labels: torch.Tensor
    """The true labels, `[M]`, i64."""

    points: torch.Tensor
    """The index of each point in the data, `[M]`, i64."""

    attacks: torch.Tensor
    """The number of the attack in the evaluation, from 0, `[M]`, i64."""


def examples(run: Path_, number: int = -1) -> Examples:
    """The adversarial examples of an evaluation with `--save-examples`, by default the newest of
    these.

    Raises:
        FileNotFoundError: if there is none.
        Damaged: if the file was changed.
    """
    saved = [found.entry for found in evaluations(run) if found.entry.get("examples")]
    try:
        entry = saved[number]
    except IndexError:
        raise FileNotFoundError(
            f"{run} has {len(saved)} saved sets of examples, none of number {number}: run `host eval --save-examples`"
        ) from None
    tensors = read_tensors(Path(run) / entry["examples"], entry.get("examples_sha256"))
    return Examples(tensors["images"], tensors["labels"], tensors["points"], tensors["attacks"])


def metrics(run: Path_) -> Any:
    """The measurements of every epoch (`metrics.jsonl`), a row for each.

    A data frame of pandas if that is installed, otherwise a list of dictionaries.

    Raises:
        Damaged: if the file was changed.
    """
    return _frame(read_lines(Path(run) / "metrics.jsonl"))


def _frame(rows: list[dict[str, Any]]) -> Any:
    try:
        import pandas
    except ImportError:
        return rows
    return pandas.DataFrame(rows)
