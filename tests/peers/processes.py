"""The time of an update as the number of processes grows, one thread each, on one machine. The
points of a minibatch are shared: two processes should take half the time of one.

Each row is the second epoch of runs of `host train`, alone and under `host launch`, in turn; the
median of rounds. `waiting` is the share of that time in which process 0 waited for gradients after
its own backward pass.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOST = ROOT / "target/release/host"
MODES = {
    "faithful": ["--recipe", "algorithm-1"],
    "fused": ["--recipe", "algorithm-1", "--mode", "fused", "--replay", 4],
}


def second_epoch(flags, processes, chosen):
    """Updates, seconds, and seconds of waiting of the second epoch."""
    with tempfile.TemporaryDirectory() as folder:
        launch = ["launch", "-n", processes, "--"] if processes > 1 else []
        command = [HOST, *launch, "train", *flags, "--threads", 1, "--batch", 128, "--shards", max(chosen.processes),
                   "--epochs", 2, "--train-points", chosen.points, "--validation-points", 0,
                   "--data-folder", chosen.data_folder, "--out", f"{folder}/run"]
        done = subprocess.run([str(word) for word in command], cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(done.stderr)
        lines = Path(folder, "run/metrics.jsonl").read_text().splitlines()
        first, second = (json.loads(line) for line in lines)
        seconds, waiting, updates = (second.get(key, 0) - first.get(key, 0)
                                     for key in ("seconds", "communication_seconds", "updates"))
        return updates, seconds, waiting


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--points", type=int, default=12800)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data-folder", default=str(ROOT / "data"))
    parser.add_argument("--out", help="write the table here, too")
    chosen = parser.parse_args()
    lines = [
        f"MNIST, architecture B, 128 points an update, one thread a process; the median of {chosen.rounds} round(s).",
        "",
        "| mode | processes | ms an update | ratio to one process | ideal | waiting |",
        "|---|---|---|---|---|---|",
    ]
    for mode, flags in MODES.items():
        measured = {processes: [] for processes in chosen.processes}
        for _ in range(chosen.rounds):
            for processes, rounds in measured.items():
                rounds.append(second_epoch(flags, processes, chosen))
        median = {
            processes: (statistics.median(1000 * seconds / updates for updates, seconds, _ in rounds),
                        statistics.median(waiting / seconds for _, seconds, waiting in rounds))
            for processes, rounds in measured.items()
        }
        one = median[chosen.processes[0]][0]
        for processes, (milliseconds, waiting) in median.items():
            lines.append(f"| {mode} | {processes} | {milliseconds:.1f} | {milliseconds / one:.2f} "
                         f"| {chosen.processes[0] / processes:.2f} | {100 * waiting:.1f} % |")
    text = "\n".join(lines) + "\n"
    print(text)
    if chosen.out:
        Path(chosen.out).write_text(text)


if __name__ == "__main__":
    main()
