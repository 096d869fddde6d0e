"""Time and memory as functions of the number of training points n and of particles K. The time per
update should not depend on n and should be proportional to K. The peak memory, minus that of the
bare network, should be the size of the particle store.

Each row is from runs of `host train` on one thread, stopped by SIGINT at their first checkpoint.
Time is processor time, on which other programs have the least effect. It is the difference between
a longer and a shorter run, so that the start, loading the data and writing the checkpoint cancel
out. Memory is the largest resident set of the process, including its checkpoint.
"""

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOST = ROOT / "target/release/host"
PIXELS = 28 * 28
BYTES_PER_NUMBER = {"f32": 4, "f16": 2, "u8": 1}
BARE = ["--sampler", "none"]
LANGEVIN = ["--sampler", "langevin.so"]


def run(flags, updates, data_folder):
    """Runs `host train` with these flags and stops it after about `updates` updates. Returns the
    number of updates, the processor time in seconds and the peak memory in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [HOST, "train", "--recipe", "algorithm-1", "--json", "--threads", 1, "--epochs", 1, "--validation-points", 0,
                   "--checkpoint-every", updates, "--data-folder", data_folder, "--out", f"{folder}/run", *flags]
        command = [str(word) for word in command]
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not Path(folder, "run/checkpoints", f"{updates:09}").exists():
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)}\n{process.stderr.read()}")
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        last = json.loads(process.stdout.read().splitlines()[-1])
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return last["update"], usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def seconds_of_an_update(flags, chosen):
    """Processor time of an update: the difference between a longer and a shorter run."""
    few, start, _ = run(flags, chosen.updates, chosen.data_folder)
    many, end, _ = run(flags, 4 * chosen.updates, chosen.data_folder)
    return (end - start) / (many - few)


def time_table(chosen):
    """Milliseconds of an update as n and K grow."""
    few, many = chosen.points // 10, chosen.points
    rows = [(name, points, particles, [*flags, "--batch", 100, "--particles", particles, "--train-points", points])
            for name, flags in (("faithful", LANGEVIN), ("fused", [*LANGEVIN, "--mode", "fused"]))
            for points, particles in ((few, 1), (many, 1), (few, 4))]
    # In turns, so that a temporary slowdown of the machine affects all rows.
    rounds = [[seconds_of_an_update(flags, chosen) for *_, flags in rows] for _ in range(chosen.rounds)]
    medians = [statistics.median(seconds) for seconds in zip(*rounds)]
    yield "| mode | n | K | ms | ratio to the first |"
    yield "|---|---|---|---|---|"
    for index, (name, points, particles, _) in enumerate(rows):
        ratio = medians[index] / medians[index - index % 3]
        yield f"| {name} | {points:,} | {particles} | {1000 * medians[index]:.1f} | {ratio:.2f} |"


def memory_table(chosen):
    """Peak memory as K grows, with 80 rows per update for every K."""
    def peak(flags, particles):
        flags = [*flags, "--train-points", chosen.points, "--batch", 80 // particles, "--particles", particles]
        return run(flags, 3, chosen.data_folder)[2]
    bare = peak(BARE, 1)
    yield f"The bare network (`--sampler none`) takes {bare / 1e6:.0f} MB."
    yield ""
    yield "| particles | K | MB | bytes a particle over the bare network | kept | ratio |"
    yield "|---|---|---|---|---|---|"
    for name, number_bytes in BYTES_PER_NUMBER.items():
        for where, flags in (("memory", []), ("a file", ["--store-file", "particles"])):
            for particles in (1, 4):
                taken = peak([*LANGEVIN, "--store", name, *flags], particles)
                kept = PIXELS * number_bytes
                over = (taken - bare) / (chosen.points * particles)
                yield (f"| {name}, in {where} | {particles} | {taken / 1e6:.0f} | {over:,.0f} | {kept:,} | "
                       f"{over / kept:.2f} |")
    yield ""
    yield ("Below 1, particles lie where the data set was read before. What lies in a file is counted too, but "
           "the kernel may drop it.")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=60000, help="n; a tenth of it for the small runs")
    parser.add_argument("--updates", type=int, default=10, help="updates of the shorter runs; the longer ones have four times as many")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data-folder", type=Path, default=ROOT / "data")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    chosen.data_folder = chosen.data_folder.resolve()
    lines = []
    for line in itertools.chain(
            ["MNIST, architecture B, one thread, 100 points an update; processor time, the median of"
             f" {chosen.rounds} round(s).", ""], time_table(chosen), [""], memory_table(chosen)):
        print(line, flush=True)
        lines.append(line)
    if chosen.out:
        chosen.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
