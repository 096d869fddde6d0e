#!/bin/sh
# Trains and judges on a Dataset of PyTorch: objects `train` and `test` of a Python file.
set -e
here=$(dirname "$0")
EPOCHS=${EPOCHS:-5} SUITE=${SUITE:-autoattack} POINTS=${POINTS:-100}

host data check --data "$here/my_data.py" --epsilon 0.1
host train --data "$here/my_data.py" --epsilon 0.1 --epochs "$EPOCHS" --batch 50 --out runs/my-data
host eval runs/my-data --suite "$SUITE" --points "$POINTS"
