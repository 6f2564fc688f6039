# Everything happens in .venv, which these targets make themselves. Needed: Python 3.11 or newer, and make.
#   make up ARGS="--port 9000"      make test ARGS="tests/core -x"      make up PYTHON=python3.12

VENV := .venv
BIN := $(VENV)/bin
CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11
new_enough = $(shell $(1) -c 'import sys; sys.version_info >= (3, 11) and print("yes")' 2>/dev/null)
PYTHON ?= $(or $(firstword $(foreach p,$(CANDIDATES),$(if $(call new_enough,$(p)),$(p)))),python3)
ARGS ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help up test check format reference docs bench bench-ledger clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

up: $(VENV)/.up ## Start the proxy with a small real model (or with ./apportion.yaml)
	@$(BIN)/apportion up $(ARGS)

test: $(VENV)/.dev ## Run all tests
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev ## Format, lint, types, import table, documentation equal to the code, site without warnings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py
	$(BIN)/python -m tools.reference --check
	$(BIN)/zensical build --strict --clean

format: $(VENV)/.dev ## Put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

reference: $(VENV)/.dev ## Write the generated pages of the documentation
	$(BIN)/python -m tools.reference

docs: $(VENV)/.dev ## Show the documentation on http://localhost:8000
	$(BIN)/zensical serve $(ARGS)

bench: $(VENV)/.dev ## Measure the proxy against others (Linux; nginx and wrk needed; about 25 minutes)
	$(BIN)/python -m benchmarks.gateway $(ARGS)

bench-ledger: $(VENV)/.dev ## Measure the ledger on each store (PostgreSQL and Redis, nginx and wrk needed; about 10 minutes)
	$(BIN)/python -m benchmarks.ledger $(ARGS)

clean: ## Remove everything that was made here, the virtual environment included
	rm -rf $(VENV) site build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps say that the environment is as pyproject.toml asks; while they are newer, nothing is installed.

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "apportion needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || echo not there)." >&2; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "'$(PYTHON)' has no venv module. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.up: $(VENV)/.python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[local]'
	@touch $@

$(VENV)/.dev: $(VENV)/.up
	$(BIN)/python -m pip install --quiet --group dev
	@touch $@
