# Everything starts here: `make demo` and `make test` need nothing but Rust, a C++17 compiler
# and Python 3 with pip.

libtorch := .setup/libtorch
host := cargo run --release --quiet -p host --

.PHONY: help setup demo test check

help:
	@echo "make demo    train and evaluate a robust MNIST classifier"
	@echo "make test    run every test"
	@echo "make check   formatting and lints"
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

test: setup
	cargo build --workspace
	cargo run --quiet -p host -- data fetch mnist
	cargo test --workspace

check: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet
