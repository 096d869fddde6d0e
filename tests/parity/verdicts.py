"""Verdict parity: every member of AutoAttack by itself, ours beside the authors', on the same
points with several seeds; FGSM and PGD beside foolbox's.

A figure of an attack that draws random numbers agrees when ours, the mean over seeds, lies
within the authors' smallest and largest. FAB without restarts and FGSM draw none, so that the
verdict on every point should be the same: how many are is told, and each that is not is listed.

It takes two hours of one core. What a run's attack led to is kept in --keep, and found again while the
network, the settings and our programs stay as they are: a comparison that was interrupted goes on,
and --members deals it out to several processes, which a last one without it puts together.
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
    """Mean share of points on which two verdicts differ."""
    return 100 * numpy.mean([numpy.mean(one != other) for one, other in itertools.product(ours, theirs)])


def within(verdicts):
    """The same among the seeds of one side."""
    pairs = list(itertools.combinations(verdicts, 2))
    return 100 * numpy.mean([numpy.mean(one != other) for one, other in pairs]) if pairs else 0.0


# They draw no random numbers, as used here.
DETERMINISTIC = ("fab-t", "fgsm.so")


def differing(run, name, saved, theirs, candidates):
    """A row for each point on which the verdicts of an attack without chance differ: the example
    that fools the network, its margin and its distance from the natural one."""
    kept = load_file(saved["examples"])
    ours = dict(zip(kept["points"].tolist(), kept["images"], strict=True))
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
    """The verdicts of both sides on the points, for every seed, and the rows of those that differ
    where nothing was drawn."""
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
    """What `compare` says, now or before."""
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
    """What is said of the points on which attacks without chance differ."""
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
