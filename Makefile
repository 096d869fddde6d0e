# Everything starts here: `make demo` and `make test` need nothing but Rust, a C++17 compiler and
# Python 3 with pip.

libtorch := .setup/libtorch
gloo := .setup/gloo
cuda := .setup/cuda
host := cargo run --release --quiet -p host --

python := .setup/python/bin/python

PREFIX ?= $(HOME)/.local
# The folder of the built program: another profile's, for tests.
build := target/release

.PHONY: help setup cuda-headers install install-files uninstall python demo paper quick test faults fuzz report-test python-test gpu-test check bench parity peers gpu-peers classifiers

help:
	@echo "make demo    train and evaluate a robust MNIST classifier"
	@echo "make paper   the paper's tables and figures in small, and a report of them"
	@echo "make quick   unit tests and one training run: under a minute once built"
	@echo "make test    run every test"
	@echo "make faults  kill the host, or fill its disk, at every operation on files"
	@echo "make fuzz    read damaged files for a minute each (FUZZ_SECONDS=600 for longer)"
	@echo "make report-test  look at a report in Chromium, at several widths, light and dark"
	@echo "make python-test  plugins, recipes, exports and the package in Python, with PyTorch (needs make python)"
	@echo "make gpu-test     train and attack on a GPU, beside the CPU (needs a libtorch with CUDA)"
	@echo "make check   formatting and lints"
	@echo "make bench   benchmarks of the hot pieces"
	@echo "make parity  attacks beside the authors' code: verdicts (an hour or more; POINTS=100 SEEDS=2 for less, DEVICE=cuda)"
	@echo "make peers   speed beside PyTorch, the authors' AutoAttack, torchattacks and ART; growth with n and K"
	@echo "make gpu-peers    speed on a GPU beside PyTorch, eager and compiled, and the authors' AutoAttack"
	@echo "make install    host, plugins, completions and manual pages into PREFIX (~/.local); make uninstall"
	@echo "make setup   fetch libtorch (skipped if LIBTORCH or LIBTORCH_USE_PYTORCH is set)"
	@echo "make cuda-headers  headers of NCCL and CUDA, for several processes with a GPU each (downloads 1 GB)"
	@echo "make python  an environment with Python's torch, for python.so and what compares with PyTorch (5 GB)"

setup: $(if $(LIBTORCH)$(LIBTORCH_USE_PYTORCH),,$(libtorch)) $(if $(wildcard /usr/include/gloo/algorithm.h)$(GLOO_INCLUDE),,$(gloo))

# The CPU half of PyTorch's own build, taken from its wheel; nothing of Python is used.
$(libtorch):
	@mkdir -p .setup
	rm -rf $@.partial
	PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check \
		--no-deps --only-binary=:all: --python-version 3.12 --target $@.partial \
		torch==2.13.0 nvidia-cuda-cupti==13.0.85 nvidia-cuda-runtime==13.0.96
	mv $@.partial $@

# Headers of Gloo, through which several processes train together: those of Debian's package, which
# is not installed. Without them the host builds, and says what it lacks if there are several. The
# lists of packages are fetched into a folder of our own if this machine has none.
$(gloo):
	@rm -rf $@.partial && mkdir -p $@.partial/lists/partial
	@cd $@.partial && { apt-get download libgloo-dev || { \
		apt-get -o Dir::State::Lists=$$PWD/lists update && \
		apt-get -o Dir::State::Lists=$$PWD/lists download libgloo-dev; }; } > log 2>&1 \
		&& dpkg-deb -x libgloo-dev_*.deb . && rm -rf lists *.deb && mv ../gloo.partial ../gloo \
		&& touch ../../host/build.rs \
		|| echo "Gloo's headers (libgloo-dev) cannot be had: one process trains alone; see $@.partial/log"

# Headers of NCCL and CUDA, with which the host sums through NCCL: taken from NVIDIA's packages for
# libtorch's CUDA, of which nothing else stays. Not needed where a CUDA toolkit with NCCL is installed.
cuda-headers: $(cuda)

$(cuda):
	rm -rf $@.partial && mkdir -p $@.partial/include
	python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
		--python-version 3.12 --dest $@.partial nvidia-nccl-cu13==2.29.7 nvidia-cuda-runtime==13.0.96 \
		nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85 nvidia-cublas==13.1.1.3 nvidia-cusparse==12.6.3.3 nvidia-cusolver==12.0.4.66
	cd $@.partial && python3 -c 'import sys, zipfile; [wheel.extract(name) for wheel in \
		map(zipfile.ZipFile, sys.argv[1:]) for name in wheel.namelist() if "/include/" in name]' *.whl
	cd $@.partial && cp -r nvidia/*/include/. include && rm -rf nvidia *.whl
	mv $@.partial/include $@ && rm -rf $@.partial && touch host/build.rs

install: setup
	cargo build --release
	$(MAKE) --no-print-directory install-files

# What is fetched by `make setup` is copied: the CPU half of libtorch, half a gigabyte. A libtorch of
# the user's own (LIBTORCH, LIBTORCH_USE_PYTORCH) is linked. DESTDIR is put before every folder.
root = $(DESTDIR)$(PREFIX)
share = $(root)/share
completions = bash:bash-completion/completions/host zsh:zsh/site-functions/_host \
	fish:fish/vendor_completions.d/host.fish

# The name server's tools have a program of this name, too.
is_ours = [ ! -e "$(root)/bin/host" ] || [ -d "$(root)/lib/host/plugins" ] || \
	{ echo "$(root)/bin/host is another program; choose another PREFIX"; exit 1; }

install-files:
	@$(is_ours)
	install -D -m 755 $(build)/host "$(root)/bin/host"
	for folder in plugins/*; do \
		library=lib$$(basename $$folder | tr - _).so; \
		[ ! -e $(build)/$$library ] || install -D -m 755 -t "$(root)/lib/host/plugins" $(build)/$$library || exit 1; \
	done
	rm -rf "$(root)/lib/host/libtorch"
	libraries=$$($(build)/host libraries) || exit 1; \
	torch=$$(dirname "$$(dirname "$$(echo "$$libraries" | grep '/libtorch_cpu.so$$')")"); \
	fetched=$$(readlink -m $(libtorch)); \
	if [ "$$torch" = "$$fetched/torch" ]; then \
		for file in $$libraries "$$torch/version.py"; do \
			case $$file in "$$fetched"/*) \
				install -D "$$file" "$(root)/lib/host/libtorch/$${file#"$$fetched"/}" || exit 1;; esac; \
		done; \
	else \
		mkdir -p "$(root)/lib/host/libtorch" && ln -s "$$torch" "$(root)/lib/host/libtorch/torch"; \
	fi
	for entry in $(completions); do \
		file="$(share)/$${entry#*:}"; mkdir -p "$$(dirname "$$file")"; \
		$(build)/host completions $${entry%%:*} > "$$file" || exit 1; \
	done
	mkdir -p "$(share)/man/man1" && $(build)/host man --out "$(share)/man/man1"
	@echo "installed into $(root): $$(du -sh "$(root)/lib/host" | cut -f 1) in lib/host; \`host doctor\` checks it"
	@case :$$PATH: in *:"$(PREFIX)/bin":*) ;; *) echo "put $(PREFIX)/bin on your PATH";; esac

uninstall:
	@$(is_ours)
	rm -f "$(root)/bin/host" "$(share)"/man/man1/host.1 "$(share)"/man/man1/host-*.1
	for entry in $(completions); do rm -f "$(share)/$${entry#*:}"; done
	for folder in plugins/*; do rm -f "$(root)/lib/host/plugins/lib$$(basename $$folder | tr - _).so"; done
	rm -rf "$(root)/lib/host/libtorch"
	[ ! -d "$(root)/lib/host" ] || find "$(root)/lib/host" -type d -empty -delete

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

# Runs of the host in PyTorch, and networks of PyTorch here; plugins and recipes in Python.
python-test: setup $(compared)
	cargo build --release --workspace
	$(python) -m unittest discover --start-directory examples/python/tests --verbose
	cargo test --release -p end-to-end python:: -- --include-ignored

gpu-test: setup
	cargo build --release --workspace
	cargo test --release -p end-to-end cuda:: -- --ignored

bench: setup
	cargo build --release
	cargo bench -p host --bench hot

# Python's torch, of the version and build of the host's libtorch: python.so takes it from here. The
# host need not be built again. Skipped if DRO_PYTHON names another interpreter.
python: setup $(if $(DRO_PYTHON),,$(python))

$(python):
	@echo "fetching Python's whole torch, with NVIDIA's libraries: about 5 GB, into .setup/python"
	rm -rf .setup/python
	python3 -m venv --without-pip .setup/python
	$(install) torch==2.13.0 numpy || { rm -rf .setup/python; exit 1; }

install := python3 -m pip --python .setup/python install --quiet --disable-pip-version-check

# Other people's code, for comparisons.
compared := .setup/python/.compared

$(compared): $(python)
	$(install) torchvision==0.28.0 pyautoattack==0.2.0 foolbox==3.3.4 torchattacks==3.5.1 \
		adversarial-robustness-toolbox==1.20.1 safetensors pandas matplotlib packaging
	touch $@

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

parity: classifiers $(compared)
	$(python) tests/parity/verdicts.py runs/demo runs/half-b runs/half-a --points $(POINTS) --seeds $(SEEDS) \
		--device $(DEVICE) --out docs/parity-verdicts.md

peers: classifiers $(compared)
	$(python) tests/peers/training.py --out docs/peers-training.md
	$(python) tests/peers/scaling.py --out docs/peers-scaling.md
	$(python) tests/peers/processes.py --out docs/peers-processes.md
	$(python) tests/parity/speed.py runs/demo runs/weak-b --points 200 --out docs/peers-autoattack.md

# The host and Python's torch need CUDA: make python, then LIBTORCH_USE_PYTORCH=1 with .setup/python
# first on the PATH, or a LIBTORCH with CUDA.
gpu-peers: setup $(compared)
	cargo build --release --workspace
	$(host) data fetch mnist
	$(python) tests/peers/gpu.py --out docs/peers-gpu.md

check: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
