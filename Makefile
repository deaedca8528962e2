# Drumline's set-up and checks. Needs Debian or Ubuntu with Python 3.11 to 3.13; `make help` lists the targets.
#
#   PYTHON=python3.12      the Python that the environment is made with; by default the first that fits
#   GPU=0 or GPU=1         whether to install TensorFlow with CUDA; by default where the machine has an NVIDIA GPU
#   WORKERS=2              how many processes share the tests of `make test`
#   ROUNDS=10              how often `make faults` injects each fault
#   FUZZ_RUNS=20000        how many inputs of each kind atheris tries in `make fuzz`
#   BENCH_OPTIONS=...    for `make bench`: what `benchmarks/run_all.py --help` lists
#   ACCELERATOR=cpu, nccl  what Horovod is built for; by default install/build_horovod.py decides and says why

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PYTHON ?=
GPU ?= $(if $(wildcard /dev/nvidia0),1,0)
ACCELERATOR ?= auto
WORKERS ?= 2
ROUNDS ?= 10
FUZZ_RUNS ?= 20000
BENCH_OPTIONS ?=
LOCK := install/requirements$(if $(filter 1,$(GPU)),-gpu).lock

UV_VERSION := 0.13.9
UV := $(VENV)/uv-$(UV_VERSION)/bin/uv
RESOLVE = $(UV) pip compile pyproject.toml install/build-requirements.in --extra dev --universal --python-version 3.11 \
	--generate-hashes --no-header --no-annotate --quiet $(UV_FLAGS)

# Empty files that say, by their dates, what the environment already holds.
SET_UP := $(VENV)/.set-up-with-$(notdir $(LOCK))
HOROVOD := $(VENV)/.horovod-for-$(ACCELERATOR)

PARITY := $(VENV)/.parity

.PHONY: help setup horovod parity demo test test-processes faults fuzz rehearse-kubernetes rehearse-slurm image-rehearsal check audit lock bench test-benchmarks clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(SET_UP) ## make .venv with the locked dependencies and this project in it

horovod: $(HOROVOD) ## build Horovod for this machine, install it and prove it with two ranks

parity: $(PARITY) ## install transformers and PyTorch, which the tests hold our models against; without them those skip

demo: $(HOROVOD) ## the main job, from raw text to generated text: prepare, train, evaluate, predict
	@install/demo.sh

test: $(HOROVOD) ## run the default test suite
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

test-processes: $(HOROVOD) ## run the tests that start real processes (horovodrun, workers) and the slow ones
	PATH="$(BIN):$$PATH" $(BIN)/python -m pytest -m "processes or slow"

faults: $(HOROVOD) ## inject faults into real runs and print the figures; ROUNDS=100 kills as often
	PATH="$(BIN):$$PATH" $(BIN)/python -m pytest tests/faults -m "faults or not faults" --rounds $(ROUNDS)

fuzz: $(SET_UP) ## change files at random, thousands of times each, and read them: nothing but complaints may come of it
	$(BIN)/python -m pytest tests/unit/test_fuzzing.py --hypothesis-profile long --durations 0
	@if $(BIN)/pip install --quiet --no-deps --requirement install/fuzz.lock; then \
		$(BIN)/python -m pytest tests/unit/test_fuzzing.py --atheris-runs $(FUZZ_RUNS) --durations 0; \
	else echo "atheris does not install here: what it would try is left out"; fi

rehearse-kubernetes: $(HOROVOD) ## play a cluster on this machine, and train on it from the printed manifests; needs root
	PATH="$(BIN):$$PATH" $(BIN)/python -m pytest tests/rehearsal -m rehearsal -rs

rehearse-slurm: $(HOROVOD) ## run the batch script under a real Slurm on this machine; needs root, munge and slurm-wlm
	PATH="$(BIN):$$PATH" $(BIN)/python -m pytest tests/rehearsal -m slurm -rs

image-rehearsal: $(SET_UP) ## build k8s/Dockerfile without a registry, and run drumline in it; needs root
	$(BIN)/python -m tests.rehearsal.image

check: $(SET_UP) ## run ruff, ruff format and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

audit: $(SET_UP) ## look for licences that are not permissive and known vulnerabilities in what the lock files name
	$(BIN)/python -m install.audit

bench: $(HOROVOD) $(PARITY) ## measure all that has a bar, for hours, and write benchmarks/RESULTS.md; BENCH_OPTIONS="--only 1,4 --merge"
	PATH="$(BIN):$$PATH" $(BIN)/python benchmarks/run_all.py $(BENCH_OPTIONS)

test-benchmarks: $(HOROVOD) $(PARITY) ## run each benchmark in its tiny form, for minutes, to see whether it works
	PATH="$(BIN):$$PATH" $(BIN)/python -m pytest tests/integration/test_benchmarks.py -m benchmarks -rs

lock: $(UV) ## resolve the dependencies again; UV_FLAGS=--upgrade takes the newest
	$(RESOLVE) --output-file install/requirements.lock
	$(RESOLVE) --extra gpu --constraint install/requirements.lock --output-file install/requirements-gpu.lock

clean: ## remove the environment and tool caches; runs, data and the cached Horovod wheel stay
	rm -rf $(VENV) build dist drumline.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(SET_UP): $(LOCK) pyproject.toml
	@PYTHON="$(PYTHON)" install/check_system.sh
	@test -x $(BIN)/pip || "$$(PYTHON="$(PYTHON)" install/check_system.sh --python)" -m venv --clear $(VENV)
	@echo "Installing what $(LOCK) names into $(VENV): some minutes the first time"
	@$(BIN)/pip install --quiet --require-hashes --requirement $(LOCK)
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.set-up-with-*
	@touch $@

$(HOROVOD): $(SET_UP) $(wildcard install/*.py)
	@$(BIN)/python -m install.build_horovod --accelerator $(ACCELERATOR)
	@rm -f $(VENV)/.horovod-for-*
	@touch $@

$(PARITY): install/parity.lock $(SET_UP)
	$(BIN)/pip install --quiet --no-deps --requirement $<
	@touch $@

$(UV): | $(SET_UP)
	$(BIN)/python -m venv $(dir $(@D))
	$(@D)/pip install --quiet uv==$(UV_VERSION)
