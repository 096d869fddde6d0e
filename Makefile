# Everything starts here: `make demo` and `make test` need nothing but Rust, a C++17 compiler and
# Python 3 with pip.

libtorch := .setup/libtorch
host := cargo run --release --quiet -p host --

python := .setup/oracle/bin/python

.PHONY: help setup demo paper quick test faults fuzz report-test gpu-test check bench parity peers classifiers

help:
	@echo "make demo    train and evaluate a robust MNIST classifier"
	@echo "make paper   the paper's tables and figures in small, and a report of them"
	@echo "make quick   unit tests and one training run: under a minute once built"
	@echo "make test    run every test"
	@echo "make faults  kill the host, or fill its disk, at every operation on files"
	@echo "make fuzz    read damaged files for a minute each (FUZZ_SECONDS=600 for longer)"
	@echo "make report-test  look at a report in Chromium, at several widths, light and dark"
	@echo "make gpu-test     train and attack on a GPU, beside the CPU (needs a libtorch with CUDA)"
	@echo "make check   formatting and lints"
	@echo "make bench   benchmarks of the hot pieces"
	@echo "make parity  attacks beside the authors' code: verdicts (an hour or more; POINTS=100 SEEDS=2 for less, DEVICE=cuda)"
	@echo "make peers   speed beside PyTorch, the authors' AutoAttack, torchattacks and ART; growth with n and K"
	@echo "make setup   fetch libtorch (skipped if LIBTORCH or LIBTORCH_USE_PYTORCH is set)"

setup: $(if $(LIBTORCH)$(LIBTORCH_USE_PYTORCH),,$(libtorch))

# The CPU half of PyTorch's own build, taken from its wheel; nothing of Python is used.
$(libtorch):
	@mkdir -p .setup
	rm -rf $@.partial
	PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check \
		--no-deps --only-binary=:all: --python-version 3.12 --target $@.partial \
		torch==2.13.0 nvidia-cuda-cupti==13.0.85 nvidia-cuda-runtime==13.0.96
	mv $@.partial $@

# A demo that was stopped goes on where it was.
demo: setup
	cargo build --release
	$(host) data fetch mnist
	if [ ! -e runs/demo/run.json ]; then $(host) train --config examples/mnist-demo.toml --out runs/demo; \
		else $(host) train --resume runs/demo || { echo "remove runs/demo to start over"; exit 1; }; fi
	$(host) eval runs/demo --attack fgsm.so --attack pgd.so,steps=40 --attack pgd.so,steps=100 \
		--attack apgd.so --points 1000

# What is finished is skipped, what was stopped goes on. CIFAR-10's need its files (docs/training.md).
paper: setup
	cargo build --release --workspace
	$(host) data fetch mnist
	[ -d data/cifar-10 ] || $(host) data fetch cifar-10 || echo "CIFAR-10 cannot be had: its tables are left out"
	for file in examples/paper/quick/*.toml; do \
		name=$$(basename $$file .toml); \
		if grep -q cifar-10 $$file && [ ! -d data/cifar-10 ]; then continue; fi; \
		$(host) sweep $$file --out paper/runs/$$name || exit 1; \
	done
	for run in paper/runs/table-*/seed=0; do \
		ls $$run/examples-*.safetensors > /dev/null 2>&1 \
			|| $(host) eval $$run --attack pgd.so,steps=20 --points 100 --save-examples || exit 1; \
	done
	$(host) report paper/runs/* --out paper/report.html --force

# The fast tier, while working; `make check` and `make test` come before a commit.
faults: setup
	cargo test -p end-to-end faults:: -- --include-ignored

quick: setup
	cargo test -p plugin-api -p host --lib
	cargo test -p end-to-end quick::

test: setup
	cargo build --workspace
	cargo run --quiet -p host -- data fetch mnist
	cargo test --workspace

# Every reader of a file, with other damaged files each time; `make test` reads a few hundred of each.
fuzz: setup
	FUZZ_SECONDS=$${FUZZ_SECONDS:-60} cargo test -p host --lib fuzz

# Debian: apt-get install chromium. Another browser of its family can be named by CHROMIUM.
report-test: setup
	cargo build --release --workspace
	cargo test --release -p end-to-end pages:: -- --ignored

gpu-test: setup
	cargo build --release --workspace
	cargo test --release -p end-to-end cuda:: -- --ignored

bench: setup
	cargo build --release
	cargo bench -p host --bench hot

# Everything below compares with other people's code, in an environment of its own.
$(python):
	rm -rf .setup/oracle
	python3 -m venv --without-pip .setup/oracle
	python3 -m pip --python .setup/oracle install --quiet --disable-pip-version-check torch==2.13.0 \
		torchvision==0.28.0 pyautoattack==0.2.0 foolbox==3.3.4 torchattacks==3.5.1 \
		adversarial-robustness-toolbox==1.20.1 safetensors numpy packaging || { rm -rf .setup/oracle; exit 1; }

# A robust classifier, a weak one, and ones of both architectures of which attacks leave about half.
classifiers: setup
	cargo build --release
	$(host) data fetch mnist
	[ -e runs/demo/run.json ] || $(host) train --config examples/mnist-demo.toml --out runs/demo
	[ -e runs/weak-b/run.json ] || $(host) train --recipe algorithm-1 --sampler none --epochs 1 --out runs/weak-b
	[ -e runs/half-b/run.json ] || $(host) train --recipe algorithm-1 --sampler none --epochs 1 --epsilon 0.1 \
		--out runs/half-b
	[ -e runs/half-a/run.json ] || $(host) train --recipe algorithm-1 --model cnn.so,arch=A --sampler none \
		--train-points 10000 --epochs 1 --epsilon 0.1 --out runs/half-a

POINTS := 500
SEEDS := 5

DEVICE := cpu

parity: classifiers $(python)
	$(python) tests/parity/verdicts.py runs/demo runs/half-b runs/half-a --points $(POINTS) --seeds $(SEEDS) \
		--device $(DEVICE) --out docs/parity-verdicts.md

peers: classifiers $(python)
	$(python) tests/peers/training.py --out docs/peers-training.md
	$(python) tests/peers/scaling.py --out docs/peers-scaling.md
	$(python) tests/parity/speed.py runs/demo runs/weak-b --points 200 --out docs/peers-autoattack.md

check: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
