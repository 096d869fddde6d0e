#!/bin/sh
# Judges a checkpoint that was trained elsewhere: `torch.save(model.state_dict(), "theirs.pt")`.
set -e
here=$(dirname "$0")
DATA=${DATA:-mnist} SUITE=${SUITE:-autoattack} POINTS=${POINTS:-200} EPSILON=${EPSILON:-0.1,0.3}
WEIGHTS=${WEIGHTS:-theirs.pt}

# No plugin has this network: its class is taken from the file that it was trained with.
host eval --model "python.so,file=$here/my_net.py,width=16" --weights "$WEIGHTS" --data "$DATA" \
    --suite "$SUITE" --points "$POINTS" --epsilon "$EPSILON" --out runs/theirs

# The curve over the radii, and what the verdicts may be mistaken about.
host report runs/theirs --out runs/judged.html --force
