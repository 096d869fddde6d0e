"""Verdict parity: every member of AutoAttack by itself, ours beside the authors', on the same
points with several seeds; FGSM and PGD beside foolbox's.

A figure agrees when ours, the mean over seeds, lies within the authors' smallest and largest.
"""

import argparse
import itertools

import foolbox
import numpy
import torch

from oracle import MEMBERS, Host, Run, arguments, authors, show


def fooled_by_foolbox(run, attack, indices, batch, seed):
    torch.manual_seed(seed)
    model = foolbox.PyTorchModel(run.net, bounds=(0, 1), device="cpu")
    stands = []
    for chunk in torch.as_tensor(indices).split(batch):
        images, labels = run.points(chunk)
        _, _, success = attack(model, images, labels, epsilons=run.epsilon)
        stands.append(~success)
    return torch.cat(stands)


def foolbox_attacks():
    pgd = foolbox.attacks.LinfPGD(abs_stepsize=0.01, steps=40, random_start=True)
    return {"fgsm.so": foolbox.attacks.LinfFastGradientAttack(), "pgd.so,steps=40,step_size=0.01": pgd}


def percent(stands):
    return 100 * numpy.mean(stands)


def disagreement(ours, theirs):
    """Mean share of points on which two verdicts differ."""
    return 100 * numpy.mean([numpy.mean(one != other) for one, other in itertools.product(ours, theirs)])


def within(verdicts):
    """The same among the seeds of one side."""
    pairs = list(itertools.combinations(verdicts, 2))
    return 100 * numpy.mean([numpy.mean(one != other) for one, other in pairs]) if pairs else 0.0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--members", nargs="*", default=list(MEMBERS), choices=list(MEMBERS))
    chosen = arguments(parser)
    lines = [
        f"{chosen.points} test points, {chosen.seeds} seeds, batch {chosen.batch}; accuracy in per cent,"
        " mean (smallest to largest);",
        "disagreement: share of points with another verdict, ours against theirs (theirs among themselves).",
        "",
        "| run | attack | ours | oracle | agrees | disagreement |",
        "|---|---|---|---|---|---|",
    ]
    for folder in chosen.runs:
        run = Run(folder)
        host = Host(run, chosen.threads, chosen.batch)
        sides = {member: MEMBERS[member] for member in chosen.members}
        foolboxes = foolbox_attacks() if run.norm == "Linf" else {}
        for name, spec in list(sides.items()) + [(spec, spec) for spec in foolboxes]:
            ours, theirs = [], []
            # FAB without restarts and FGSM draw nothing.
            seeds = 1 if name in ("fab-t", "fgsm.so") else chosen.seeds
            for seed in range(seeds):
                saved = host.evaluate(chosen.points, seed, "--attack", spec)
                indices = torch.tensor(saved["verdicts"]["indices"])
                ours.append(numpy.array(saved["verdicts"]["attacks"][0]))
                if name in foolboxes:
                    stands = fooled_by_foolbox(run, foolboxes[name], indices, chosen.batch, seed)
                else:
                    stands, _ = authors(run, [name], seed, indices, chosen.batch)
                theirs.append(stands.numpy())
            mine, yours = [percent(one) for one in ours], [percent(one) for one in theirs]
            agrees = min(yours) <= numpy.mean(mine) <= max(yours)
            lines.append(
                f"| {run.folder.name} ({run.architecture}) | {name} "
                f"| {numpy.mean(mine):.2f} ({min(mine):.1f} to {max(mine):.1f}) "
                f"| {numpy.mean(yours):.2f} ({min(yours):.1f} to {max(yours):.1f}) "
                f"| {'yes' if agrees else 'no'} | {disagreement(ours, theirs):.2f} ({within(theirs):.2f}) |"
            )
            print(lines[-1], flush=True)
    show(lines, chosen.out)


if __name__ == "__main__":
    main()
