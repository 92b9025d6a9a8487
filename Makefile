# Everything runs in .venv, made here with the versions of constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
CORE := $(shell find csrc -name '*.cpp' -o -name '*.h')
CPP := $(CORE) $(shell find tests -name '*.cpp')
ARGS ?=
INTEGRATIONS := trl-oldest verl-0.7 verl-0.8 verl-newest

.PHONY: help quickstart test test-integrations $(INTEGRATIONS:%=test-%) sanitize lint format bench gpu-check wheel clean

help:
	@echo "make quickstart  watch a tiny model learn: random order against SEC (3 minutes)"
	@echo "make test        every test"
	@echo "make test-integrations  the oldest TRL and the newest verl, each in an environment of its own"
	@echo "make test-NAME   one of these environments: $(INTEGRATIONS)"
	@echo "make sanitize    the C++ tests under ASan, UBSan and TSan"
	@echo "make lint        ruff, clang-format, mypy"
	@echo "make format      rewrite the sources as lint wants them"
	@echo "make bench       microbenchmarks (pytest-benchmark)"
	@echo "make gpu-check   GPU tests and benchmarks; says so where there is no GPU"
	@echo "make wheel       wheel and source archive in dist/"
	@echo "ARGS=... is passed on, PYTHON=... chooses the interpreter."

quickstart: $(VENV)/.built
	$(BIN)/sec-grpo quickstart $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest $(ARGS)

test-integrations: test-trl-oldest test-verl-newest

# Other versions of the trainers that the integrations fit into: tests/integrations/environments/
# has their requirements, one file an environment; the package comes as a wheel, so that each
# environment has the same.
$(INTEGRATIONS:%=test-%): test-%: build/venvs/%/.installed $(VENV)/.built
	@rm -rf build/wheels
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheels .
	$(<D)/bin/python -m pip install --quiet --no-deps --force-reinstall build/wheels/*.whl
	$(<D)/bin/python -m pytest tests/integrations/$(firstword $(subst -, ,$*)) $(ARGS)

build/venvs/%/.installed: tests/integrations/environments/%.txt constraints.txt
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet $$(grep '^torch==' constraints.txt)
	$(@D)/bin/python -m pip install --quiet --requirement $<
	@touch $@

sanitize: $(VENV)/.build-tools
	for preset in asan-ubsan tsan; do \
	  PATH=$(CURDIR)/$(BIN):$$PATH cmake --preset $$preset && \
	  $(BIN)/cmake --build --preset $$preset && $(BIN)/ctest --preset $$preset || exit 1; \
	done

bench: $(VENV)/.test
	$(BIN)/python -m pytest benchmarks --benchmark-sort=name $(ARGS)

gpu-check: $(VENV)/.test
	$(BIN)/python benchmarks/gpu_check.py $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

wheel: $(VENV)/.dev
	$(BIN)/python -m build --no-isolation --outdir dist .

clean:
	rm -rf $(VENV) build dist

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "$(PYTHON) lacks venv; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch alone and first, so that nothing else decides which build of it is taken.
$(VENV)/.build-tools: constraints.txt | $(BIN)/python
	@echo "installing the dependencies into $(VENV)"
	$(PIP) $$(grep '^torch==' constraints.txt)
	$(PIP) scikit-build-core pybind11 cmake ninja
	@touch $@

$(VENV)/.built: $(VENV)/.build-tools pyproject.toml CMakeLists.txt $(CORE)
	$(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.built
	$(PIP) --no-build-isolation --editable '.[test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.built
	$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@
