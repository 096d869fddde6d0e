"""Verdict parity: compares every member of AutoAttack with the authors' program, on the same points
and with several seeds, and FGSM and PGD with foolbox.

For an attack with random numbers, the two sides agree if this project's robust accuracy, the mean
over seeds, is between the authors' smallest and largest. FAB without restarts and FGSM draw no
random numbers, so the verdict on every point should be the same: the number of equal verdicts is
printed, and every difference is listed.

It takes two hours of one core. The results of each run and attack are stored in --keep, and are
used again as long as the network, the settings and the programs do not change. An interrupted
comparison therefore continues. Several processes with different --members can share the work; a
last one without --members makes the table.
"""

import argparse
import hashlib
import itertools
import json
from pathlib import Path

import foolbox
import numpy
import torch
from safetensors.torch import load_file

from oracle import HOST, MEMBERS, ROOT, Host, Run, arguments, authors, show


def fooled_by_foolbox(run, attack, indices, batch, seed):
    torch.manual_seed(seed)
    model = foolbox.PyTorchModel(run.net, bounds=(0, 1), device=run.device)
    stands, candidates = [], []
    for chunk in torch.as_tensor(indices).split(batch):
        images, labels = run.points(chunk)
        _, clipped, success = attack(model, images, labels, epsilons=run.epsilon)
        stands.append(~success.cpu())
        candidates.append(clipped.cpu())
    return torch.cat(stands), torch.cat(candidates)


def foolbox_attacks():
    pgd = foolbox.attacks.LinfPGD(abs_stepsize=0.01, steps=40, random_start=True)
    return {"fgsm.so": foolbox.attacks.LinfFastGradientAttack(), "pgd.so,steps=40,step_size=0.01": pgd}


def where(device):
    return "a CPU" if device == "cpu" else torch.cuda.get_device_name(device)


def percent(stands):
    return 100 * numpy.mean(stands)


def disagreement(ours, theirs):
    """Mean percentage of points with different verdicts of the two sides."""
    return 100 * numpy.mean([numpy.mean(one != other) for one, other in itertools.product(ours, theirs)])


def within(verdicts):
    """Mean percentage of points with different verdicts for two seeds of one side."""
    pairs = list(itertools.combinations(verdicts, 2))
    return 100 * numpy.mean([numpy.mean(one != other) for one, other in pairs]) if pairs else 0.0


# Attacks that draw no random numbers with the settings used here.
DETERMINISTIC = ("fab-t", "fgsm.so")


def differing(run, name, saved, theirs, candidates):
    """A row for each point with different verdicts of a deterministic attack: the side whose
    example fools the network, the example's margin and its distance from the natural example."""
    examples = load_file(saved["examples"])
    ours = dict(zip(examples["points"].tolist(), examples["images"], strict=True))
    rows = []
    for row, index in enumerate(saved["verdicts"]["indices"]):
        if saved["verdicts"]["attacks"][0][row] == theirs[row]:
            continue
        side, example = ("ours", ours[index]) if theirs[row] else ("oracle's", candidates[row])
        image, label = (tensor.cpu() for tensor in run.points(index))
        with torch.no_grad():
            logits = run.net(example.unsqueeze(0).to(run.device))[0].cpu()
        others = logits.clone()
        others[label] = -torch.inf
        order = torch.inf if run.norm == "Linf" else 2
        distance = torch.linalg.vector_norm(example - image, ord=order)
        rows.append(
            f"| {run.folder.name} ({run.architecture}) | {name} | {index} | {side} "
            f"| {logits[label] - others.max():.2e} | {distance / run.epsilon:.5f} |"
        )
    return rows


def compare(run, host, name, spec, chosen):
    """The verdicts of both sides on the points, for every seed; for a deterministic attack, also
    the rows of the points with different verdicts."""
    ours, theirs, close_calls = [], [], []
    for seed in range(1 if name in DETERMINISTIC else chosen.seeds):
        saved = host.evaluate(chosen.points, seed, "--attack", spec, "--save-examples")
        indices = torch.tensor(saved["verdicts"]["indices"])
        ours.append(saved["verdicts"]["attacks"][0])
        if name in MEMBERS:
            stands, candidates, _ = authors(run, [name], seed, indices, chosen.batch)
        else:
            attack = foolbox_attacks()[name]
            stands, candidates = fooled_by_foolbox(run, attack, indices, chosen.batch, seed)
        theirs.append(stands.tolist())
        if name in DETERMINISTIC:
            close_calls = differing(run, name, saved, theirs[0], candidates)
    return {"ours": ours, "theirs": theirs, "close_calls": close_calls}


def digest(*paths):
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def kept(run, host, name, spec, chosen):
    """The result of `compare`, stored in --keep."""
    libraries = [HOST.parent / f"lib{plugin}.so" for plugin in (spec.split(".so")[0], "cnn")]
    decided_by = [digest(run.weights, HOST, *libraries), run.folder.name, run.norm, run.epsilon, name, spec]
    decided_by += [chosen.points, chosen.seeds, chosen.batch, chosen.threads, chosen.device]
    path = chosen.keep / f"{hashlib.sha256(json.dumps(decided_by).encode()).hexdigest()[:16]}.json"
    if not path.exists():
        found = compare(run, host, name, spec, chosen)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".new")
        unfinished.write_text(json.dumps(found))
        unfinished.rename(path)
    return json.loads(path.read_text())


def row(run, name, found, points):
    ours, theirs = (numpy.array(found[side]) for side in ("ours", "theirs"))
    mine, yours = [percent(one) for one in ours], [percent(one) for one in theirs]
    if name in DETERMINISTIC:
        agrees = f"on {numpy.sum(ours[0] == theirs[0])} of {points} points"
    else:
        agrees = "yes" if min(yours) <= numpy.mean(mine) <= max(yours) else "no"
    return (
        f"| {run.folder.name} ({run.architecture}) | {name} "
        f"| {numpy.mean(mine):.2f} ({min(mine):.1f} to {max(mine):.1f}) "
        f"| {numpy.mean(yours):.2f} ({min(yours):.1f} to {max(yours):.1f}) "
        f"| {agrees} | {disagreement(ours, theirs):.2f} ({within(theirs):.2f}) |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    attacks = MEMBERS | {spec: spec for spec in foolbox_attacks()}
    parser.add_argument("--members", nargs="*", default=list(attacks), choices=list(attacks))
    parser.add_argument("--keep", type=Path, default=ROOT / "target/parity")
    chosen = arguments(parser)
    lines = [
        f"{chosen.points} test points, {chosen.seeds} seeds, batch {chosen.batch}, on {where(chosen.device)}; accuracy in per cent,"
        " mean (smallest to largest);",
        "disagreement: per cent of points with another verdict, ours against theirs (theirs among themselves).",
        "",
        "| run | attack | ours | oracle | agrees | disagreement |",
        "|---|---|---|---|---|---|",
    ]
    close_calls = []
    for folder in chosen.runs:
        run = Run(folder, chosen.device)
        host = Host(run, chosen.threads, chosen.batch)
        for name in chosen.members:
            if name not in MEMBERS and run.norm != "Linf":
                continue
            found = kept(run, host, name, attacks[name], chosen)
            close_calls += found["close_calls"]
            lines.append(row(run, name, found, chosen.points))
            print(lines[-1], flush=True)
    lines += ["", *explanation(close_calls)]
    show(lines, chosen.out)


def explanation(close_calls):
    """The text about points with different verdicts of deterministic attacks."""
    if not close_calls:
        return ["Attacks that draw no random numbers have the same verdict on every point."]
    return [
        "Attacks that draw no random numbers start alike on both sides, and f32 sums are taken in another",
        "order: a sign differs at a gradient that is nearly zero, and iterates go apart from there. A margin",
        "near 0 or a distance near epsilon is such a close call. These are all the points with two verdicts,",
        "each with the example that fools the network:",
        "",
        "| run | attack | point | falls to | margin | distance / epsilon |",
        "|---|---|---|---|---|---|",
        *close_calls,
    ]


if __name__ == "__main__":
    main()
