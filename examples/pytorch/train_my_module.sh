#!/bin/sh
# Trains a network of PyTorch against the paper's distribution and judges it.
set -e
here=$(dirname "$0")
DATA=${DATA:-mnist} EPOCHS=${EPOCHS:-2} SUITE=${SUITE:-autoattack} POINTS=${POINTS:-200}

# The network is a class of an ordinary Python file; what follows the file are arguments of the class.
host train --model "python.so,file=$here/my_net.py,width=16" --sampler langevin.so --data "$DATA" \
    --epochs "$EPOCHS" --out runs/my-net

# Stopped? The state of everything is in the run: host train --resume runs/my-net
host eval runs/my-net --suite "$SUITE" --points "$POINTS"
