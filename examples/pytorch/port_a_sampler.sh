#!/bin/sh
# A sampler is tried in Python, and ported to Rust when it works. Both give the same weights.
set -e
here=$(dirname "$0")
DATA=${DATA:-mnist} EPOCHS=${EPOCHS:-1}

# 1. Try it.
host train --sampler "python.so,file=$here/my_sampler.py" --data "$DATA" --epochs "$EPOCHS" --threads 1 \
    --out runs/sampler-python
host conform "python.so,plugin=python-sampler,file=$here/my_sampler.py"

# 2. Port it (`host new sampler my-sampler` begins a crate), and build it.
(cd "$here/../my-sampler" && cargo build ${PROFILE---release})
host train --sampler my_sampler.so --data "$DATA" --epochs "$EPOCHS" --threads 1 --out runs/sampler-rust

# 3. The port computes the same: the weights agree bit for bit.
for run in sampler-python sampler-rust; do
    host export runs/$run --format safetensors --out runs/$run.safetensors --force
done
cmp runs/sampler-python.safetensors runs/sampler-rust.safetensors
