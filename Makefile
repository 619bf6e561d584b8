# Each target sets up all it needs in a virtual environment of its own: python3 with venv, and g++, is enough.
#   make train ARGS="--data digits"     make test ARGS="-k elbo"     make bench ARGS="--benchmark-group-by=param"
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
VAE_FAST_BUILD ?= auto
export VAE_FAST_BUILD

IN_VENV := $(VENV)/bin/python
READY := $(VENV)/ready-$(VAE_FAST_BUILD)
INSTALLED_FROM := pyproject.toml setup.py $(wildcard kernels/__init__.py) $(shell find csrc -type f)

.PHONY: train test bench lint clean

train: $(READY)
	$(VENV)/bin/vae-fast fit $(ARGS)

test: $(READY)
	$(IN_VENV) -m pytest --benchmark-disable $(ARGS)

bench: $(READY)
	$(IN_VENV) -m pytest benchmarks $(ARGS)

lint: $(READY)
	$(IN_VENV) -m ruff check .
	$(IN_VENV) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(filter %.h %.cpp,$(COMPILED))
	$(IN_VENV) -m mypy

clean:
	rm -rf $(VENV) build dist *.egg-info vae_fast/_build.json vae_fast/*.so .*_cache

# torch and setuptools come first, so that the package is built with them and not with copies of its own.
$(VENV)/pinned: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(IN_VENV) -m pip install --constraint constraints.txt torch setuptools
	touch $@

$(READY): $(VENV)/pinned $(INSTALLED_FROM)
	$(IN_VENV) -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@cat vae_fast/_build.json
	@rm -f $(VENV)/ready-*
	@touch $@
