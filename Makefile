# Everything runs in a virtual environment that this Makefile keeps in .venv (for GPUs in .venv-gpu). What is current is not
# made again: edits of Python files need nothing, since the package is installed in place; edits under csrc rebuild the module.

PYTHON ?= python3
TORCH ?= torch==2.13.0
GPU_TORCH ?= torch==2.14.1# what make gpu builds for: a PyTorch with CUDA, whose major version the toolkit must have

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
STAMPS := $(VENV)/.stamps
COMPILER := $(if $(filter default,$(origin CXX)),c++,$(firstword $(CXX)))

# In place, but for make gpu, so that the folder keeps the module that .venv imports.
INSTALL := --config-settings editable_mode=compat -e ".[test]"
BUILD_INPUTS := $(MORE_INPUTS) setup.py pyproject.toml mhicl_fast/_version.py $(wildcard build_tools/*.py) $(shell find csrc -type f)

# Another Python or torch than last time makes the environment anew, other build switches rebuild the module.
ENVIRONMENT := PYTHON=$(PYTHON) TORCH=$(TORCH)
SWITCHES := MHICL_CUDA=$(MHICL_CUDA) CUDA_HOME=$(CUDA_HOME) ARCH=$(TORCH_CUDA_ARCH_LIST) CXX=$(COMPILER)
differs = $(filter-out x$(subst $() ,_,$(1)),x$(subst $() ,_,$(shell cat $(STAMPS)/$(2) 2>/dev/null)))
ifneq ($(call differs,$(ENVIRONMENT),environment),)
.PHONY: $(STAMPS)/environment
endif
ifneq ($(call differs,$(SWITCHES),package),)
.PHONY: $(STAMPS)/package
endif

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint bench gpu wheel clean

help: ## this list
	@echo "make TARGET [PYTHON=$(PYTHON)] [TORCH=$(TORCH)] [GPU_TORCH=$(GPU_TORCH)] [MHICL_CUDA=auto|0|1]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' Makefile

demo: $(STAMPS)/package ## build, run the demonstration study and draw its figures and report
	rm -rf runs/demo
	@echo "Training, about twenty seconds on two idle cores"
	$(BIN)/mhicl run demo --out runs/demo
	$(BIN)/mhicl report runs/demo
	@echo "Figures:" && find runs/demo -name '*.png' | sort

test: $(STAMPS)/package ## build and run the tests, or what pytest makes of TESTS="tests/test_cli.py -x"
	$(BIN)/python -m pytest $(TESTS)

test-slow: $(STAMPS)/package ## all tests, those that take minutes too
	$(BIN)/python -m pytest -m "slow or not slow"

lint: $(STAMPS)/dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMPS)/package ## check the results, then time them against plain PyTorch
	$(BIN)/mhicl bench
	$(BIN)/mhicl bench --operator prompt_attention --dtype float32 float64
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/flows.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/sparse_step.py

define FIND_TOOLKIT
import os, sys
from build_tools.cuda import find_toolkit
toolkit, looked = find_toolkit(os.environ)
sys.exit(None if toolkit else "make gpu needs a CUDA toolkit, looked for: " + "; ".join(looked))
endef
export FIND_TOOLKIT

gpu: ## build for CUDA in .venv-gpu, test it on the GPU here, time it against PyTorch: runs/gpu, docs/gpu.md
	@command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1 || \
		{ echo "make gpu needs an NVIDIA GPU with its driver: nvidia-smi finds none here"; exit 2; }
	@$(PYTHON) -c "$$FIND_TOOLKIT" # before gigabytes are installed for nothing
	@$(MAKE) VENV=.venv-gpu TORCH="$(GPU_TORCH)" MHICL_CUDA=1 INSTALL='".[test]"' \
		MORE_INPUTS="$(shell find mhicl_fast -name '*.py')" .venv-gpu/.stamps/package
	.venv-gpu/bin/python benchmarks/gpu.py

wheel: $(STAMPS)/dev ## dist/*.whl for this Python and torch
	$(BIN)/python -m build --wheel --no-isolation

clean: ## remove the environment and what was built
	rm -rf $(VENV) .venv-gpu build dist *.egg-info mhicl_fast/*.so mhicl_fast/_build_config.json
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks

$(STAMPS)/environment:
	@command -v $(PYTHON) >/dev/null || \
		{ echo "$(PYTHON) is missing. Debian: apt-get install python3, or name another with PYTHON="; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed, $(PYTHON) is $$($(PYTHON) -V). Name another with PYTHON="; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make a virtual environment. Debian: apt-get install python3-venv"; exit 1; }
	@test -d $(STAMPS) || test ! -e $(VENV) || \
		{ echo "$(VENV) was not made by this Makefile. Remove it first: rm -rf $(VENV)"; exit 1; }
	rm -rf $(VENV)
	mkdir -p $(STAMPS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)"
	$(PIP) "setuptools>=77" wheel ninja numpy
	@echo "$(ENVIRONMENT)" > $@

$(STAMPS)/package: $(STAMPS)/environment $(BUILD_INPUTS)
	@command -v $(COMPILER) >/dev/null || \
		{ echo "No C++ compiler ($(COMPILER)). Debian: apt-get install g++, or name one with CXX="; exit 1; }
	@echo "Compiling the kernels and installing what they need: a minute or two"
	$(PIP) --no-build-isolation $(INSTALL)
	@echo "$(SWITCHES)" > $@

$(STAMPS)/dev: pyproject.toml | $(STAMPS)/package
	$(PIP) --no-build-isolation --config-settings editable_mode=compat -e ".[dev]"
	@touch $@
