"""Plots a run: its training curve, its accuracy against every attack, and adversarial examples.

    python plot_run.py runs/demo demo.png
"""

# %% What to plot
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import adversarial_transport as at

run, out = sys.argv[1:3]
figure, (training, robustness, pictures) = plt.subplots(1, 3, figsize=(12, 3.5))

# %% The training curve
rows = at.metrics(run)
rows = rows if isinstance(rows, list) else rows.to_dict("records")
training.plot([row["passes_per_sample"] for row in rows], [100 * row["train_accuracy"] for row in rows], marker="o")
training.set(xlabel="passes per sample", ylabel="accuracy at the particles (%)", title="training", ylim=(0, 100))

# %% Accuracy against every attack of the newest evaluation
robustness.set(ylabel="accuracy (%)", title="evaluation", ylim=(0, 100))
evaluations = at.evaluations(run)
if evaluations:
    result = evaluations[-1].result
    bars = {"clean": result["clean"]} | {attack["attack"]: attack["robust"] for attack in result["attacks"]}
    robustness.bar(list(bars), [100 * share for share in bars.values()])
    robustness.tick_params(axis="x", rotation=20)

# %% Adversarial examples: what the network takes them for
pictures.set(title="adversarial examples")
pictures.axis("off")
try:
    found = at.examples(run)
except FileNotFoundError as why:
    pictures.text(0, 0.5, str(why), wrap=True)
else:
    images, network = found.images[:16], at.load(run)
    taken_for = network(images).argmax(1)
    rows = [list(images[first : first + 4]) for first in range(0, len(images), 4)]
    side = images.shape[-1]
    for row, some in enumerate(rows):
        for column, image in enumerate(some):
            extent = (column * side, (column + 1) * side, -(row + 1) * side, -row * side)
            pictures.imshow(image.permute(1, 2, 0).squeeze(), cmap="gray", extent=extent, vmin=0, vmax=1)
            name = f"{found.labels[4 * row + column]} as {taken_for[4 * row + column]}"
            pictures.text(extent[0] + 1, extent[3] - 4, name, color="red", fontsize=6)
    pictures.set(xlim=(0, 4 * side), ylim=(-len(rows) * side, 0))

# %% The file
figure.tight_layout()
figure.savefig(out, dpi=150)
print(out)
