# make quickstart   train a small model on this machine and evaluate it
# make check        format, lint, types, floors and the quick tests: two minutes
# make test         make check, then every test that is not marked slow
# make test-slow    the rest: chains of kills, fresh installs, commands of docs
# make peers        install what tests then compare with: torch, transformers
# make docs         build the documentation into docs/_build/html
# make test-all     the tests on every Python from 3.11 to 3.13 that is here
# make bench        measure speed
# make format       format the code
# make clean        remove environments and caches
#
# PYTHON=... chooses the interpreter of a new .venv.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
VERSIONS := 3.11 3.12 3.13
PYTHON ?=
UV := $(shell command -v uv 2>/dev/null)
# compiled programs are kept between runs: most of a test's time is compiling
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Prints the Pythons that work, best first. A name on PATH may be a shim that
# leads nowhere, and some systems ship Python without venv: so each is run.
define pythons
for p in $(PYTHON) python3 python3.13 python3.12 python3.11 \
    $$(ls -d "$$HOME"/.pyenv/versions/3.1[1-3]*/bin/python3 2>/dev/null); do \
  "$$p" -c 'import sys; sys.version_info[:2] in ((3, 11), (3, 12), (3, 13)) \
or sys.exit(1); import $(if $(UV),sys,ensurepip, venv); \
print("%d.%d" % sys.version_info[:2], sys._base_executable)' 2>/dev/null || true; \
done
endef

# $(call install,FOLDER,INTERPRETER,EXTRA): a new environment with lm in it
define install
echo "== set up $(1) (once; about a minute)"; \
if [ -n "$(UV)" ]; then \
  { [ -x $(1)/bin/python ] || uv venv --quiet --python $(2) $(1); }; \
  uv pip install --quiet --python $(1)/bin/python --editable '.[$(3)]'; \
else \
  { $(1)/bin/python -m pip --version > /dev/null 2>&1 || \
    $(2) -m venv --clear $(1); }; \
  $(1)/bin/python -m pip install --quiet --editable '.[$(3)]'; \
fi; \
touch $(1)/.ready
endef

.PHONY: help quickstart check lint test test-slow peers docs test-all bench \
  format clean

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

.venv/.ready: pyproject.toml
	@found=$$($(pythons)); \
	python=$$(head -n 1 <<< "$$found" | cut -d ' ' -f 2-); \
	if [ -z "$$python" ] && [ ! -x $(BIN)/python ]; then \
	  echo 'error: found no Python 3.11, 3.12 or 3.13 with venv;' \
	    'install one, or name it: make PYTHON=/path/to/python3.12' >&2; \
	  exit 1; \
	fi; \
	$(call install,.venv,"$$python",dev)

quickstart: .venv/.ready
	@$(BIN)/python -m tools.quickstart

# A test is quick when it is neither slow nor starts a process.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist worksteal --durations=15

check: lint
	@echo '== pytest: quick tests'; $(PYTEST) -m 'not slow and not process'

lint: .venv/.ready
	@echo '== ruff format'; $(BIN)/ruff format --check --quiet .
	@echo '== ruff check'; $(BIN)/ruff check --quiet .
	@echo '== basedpyright'; $(BIN)/basedpyright
	@echo '== lint-imports'; $(BIN)/lint-imports --no-logo

test: lint
	@echo '== pytest: all but slow tests'; $(PYTEST) -m 'not slow'

test-slow: .venv/.ready
	@echo '== pytest: slow tests'; $(PYTEST) -m slow

peers: .venv/.ready
	@$(BIN)/python -m tools.bench.peers

test-all:
	@found=$$($(pythons)); \
	if [ -z "$$found" ]; then \
	  echo 'error: found no Python 3.11, 3.12 or 3.13' >&2; exit 1; \
	fi; \
	for version in $(VERSIONS); do \
	  python=$$(awk -v v=$$version '$$1 == v {print $$2; exit}' <<< "$$found"); \
	  if [ -z "$$python" ]; then \
	    echo "== Python $$version: not here, left out"; continue; \
	  fi; \
	  echo "== Python $$version"; \
	  $(MAKE) .venv-$$version/.ready PYTHON="$$python"; \
	  .venv-$$version/bin/python -m pytest -q -n 2 --dist worksteal \
	    -m 'not slow'; \
	done

.venv-%/.ready: pyproject.toml
	@$(call install,.venv-$*,"$(PYTHON)",test)

docs: .venv/.ready
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo 'docs/_build/html/index.html'

bench: .venv/.ready
	@$(BIN)/python -m tools.bench

format: .venv/.ready
	@$(BIN)/ruff check --quiet --fix . || true
	@$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-* .cache .pytest_cache .ruff_cache .hypothesis \
	  .import_linter_cache .grimp_cache *.egg-info build docs/_build
	find . -name __pycache__ -prune -exec rm -rf {} +
