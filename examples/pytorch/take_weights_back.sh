#!/bin/sh
# Takes the weights of a run back to PyTorch, in two ways.
set -e
here=$(dirname "$0")
RUN=${RUN:-runs/my-net} PYTHON=${DRO_PYTHON:-python3}

# The names are those of the network's own state_dict.
host export "$RUN" --format state-dict --out runs/weights.pt --force
# The network itself, which needs neither its class nor this program.
host export "$RUN" --format torchscript --out runs/network.pt --force

"$PYTHON" "$here/take_weights_back.py" runs/weights.pt runs/network.pt
