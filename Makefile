# Each target sets up all it needs in a virtual environment of its own: python3 with venv, and g++, is enough.
#   make train ARGS="--data digits"     make test ARGS="-k elbo"
#   make bench: measures, stores a run in .benchmarks/, renders it into docs/; ARGS="--grid full", "--device cuda"
#   make bench-compare A=OLD.json B=NEW.json: what has become slower from one stored run to another
#   make gpu: all tests and benchmarks on a GPU, and docs/gpu-report.md; where there is none it says so
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
RUN := .benchmarks/$(shell date +%Y%m%d-%H%M%S).json
VAE_FAST_BUILD ?= auto
TRITON ?= 3.9.0
export VAE_FAST_BUILD

IN_VENV := $(VENV)/bin/python
READY := $(VENV)/ready-$(VAE_FAST_BUILD)
COMPILED := $(shell find csrc -type f)
INSTALLED_FROM := pyproject.toml setup.py kernels/__init__.py $(COMPILED)

.PHONY: train test bench bench-compare gpu lint clean

train: $(READY)
	$(VENV)/bin/vae-fast fit $(ARGS)

test: $(READY)
	$(IN_VENV) -m pytest --benchmark-disable -n auto --dist worksteal $(ARGS)

bench: $(READY)
	mkdir -p $(dir $(RUN))
	$(IN_VENV) -m pytest benchmarks -q --benchmark-json $(RUN) $(ARGS)
	$(IN_VENV) benchmarks/render.py $(RUN)
	@echo "Stored: $(RUN)"

bench-compare: $(READY)
	$(IN_VENV) benchmarks/compare.py $(A) $(B)

gpu: $(READY)
	$(IN_VENV) benchmarks/gpu_report.py $(ARGS)

lint: $(READY)
	$(IN_VENV) -m ruff check .
	$(IN_VENV) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(COMPILED) $(wildcard tests/gpu/*.cpp)
	$(IN_VENV) -m mypy

clean:
	rm -rf $(VENV) build dist *.egg-info vae_fast/_build.json vae_fast/*.so .*_cache

# torch and setuptools come first, so that the package is built with them and not with copies of its own. A build of
# torch for NVIDIA brings the triton that it was made with; one for the CPU gets the newest that the kernels are held to.
$(VENV)/pinned: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(IN_VENV) -m pip install --constraint constraints.txt torch setuptools
	$(IN_VENV) -c "import triton" 2>/dev/null || $(IN_VENV) -m pip install triton==$(TRITON)
	touch $@

$(READY): $(VENV)/pinned $(INSTALLED_FROM)
	$(IN_VENV) -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@cat vae_fast/_build.json
	@rm -f $(VENV)/ready-*
	@touch $@
