"""Time of the standard suite: this project and the authors' program, one after the other, on the
same points and threads."""

import argparse

import torch

from oracle import MEMBERS, Host, Run, arguments, authors, show


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    chosen = arguments(parser)
    lines = [
        f"{chosen.points} test points, {chosen.threads} threads, batch {chosen.batch}, f32; seconds.",
        "",
        "| run | " + " | ".join(f"{member} ours / oracle" for member in MEMBERS)
        + " | suite ours / oracle | ratio | robust accuracy ours / oracle | other verdicts |",
        "|---" * (len(MEMBERS) + 5) + "|",
    ]
    for folder in chosen.runs:
        run = Run(folder, chosen.device)
        host = Host(run, chosen.threads, chosen.batch)
        saved = host.evaluate(chosen.points, 0, "--suite", "autoattack")
        indices = torch.tensor(saved["verdicts"]["indices"])
        ours = torch.tensor(saved["verdicts"]["attacks"][-1])
        # One member after the other, as in the suite, so that each has its own time.
        stands = torch.ones(len(indices), dtype=torch.bool)
        seconds = []
        for member in MEMBERS:
            left = stands.nonzero().squeeze(1)
            if len(left) == 0:
                seconds.append(0.0)
                continue
            verdicts, _, took = authors(run, [member], 0, indices[left], chosen.batch)
            stands[left] = verdicts
            seconds.append(took)
        mine = [attack["seconds"] for attack in saved["result"]["attacks"]]
        fields = [f"{one:.1f} / {other:.1f}" for one, other in zip(mine, seconds, strict=True)]
        lines.append(
            f"| {run.folder.name} ({run.architecture}) | " + " | ".join(fields)
            + f" | {saved['total_seconds']:.1f} / {sum(seconds):.1f}"
            + f" | {saved['total_seconds'] / sum(seconds):.2f}"
            + f" | {100 * ours.float().mean():.2f} / {100 * stands.float().mean():.2f}"
            + f" | {(ours != stands).sum()} |"
        )
        print(lines[-1], flush=True)
    show(lines, chosen.out)


if __name__ == "__main__":
    main()
