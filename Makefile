# Everything runs inside .venv, made from the pins in requirements.txt. Nothing is
# installed twice: only a change of the pins or of pyproject.toml outdates .venv/.installed.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PEERS := .venv-peers

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.DEFAULT_GOAL := help
.PHONY: help notebooks compat baseline verify test test-fast test-browser docs property-deep peers bench tables lint format model clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

verify: $(INSTALLED) ## set up, then prove the captures of the bundled model
	$(BIN)/recon verify

test: $(INSTALLED) ## set up, then run every test, property tests with profile ci
	RECON_PROFILE=ci $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

test-fast: $(INSTALLED) ## only tests/, the exact and fast ones
	$(BIN)/pytest tests

test-browser: $(INSTALLED) ## install a browser if need be, and test the HTML reports in it
	$(BIN)/python -m pip install -q -r requirements-browser.txt
	command -v chromium > /dev/null || apt-get install -y -q chromium
	$(BIN)/pytest tests/browser

docs: $(INSTALLED) ## build the docs site into build/site, strictly
	$(BIN)/python -m pip install -q -r requirements-docs.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q

property-deep: $(INSTALLED) ## only property_tests/, with profile deep
	RECON_PROFILE=deep $(BIN)/pytest property_tests

peers: $(PEERS)/.installed ## set up .venv-peers, then audit other libraries' captures
	HF_HUB_OFFLINE=1 $(PEERS)/bin/pytest -W ignore peers

bench: $(INSTALLED) ## answer the questions in bench/ with figures
	$(BIN)/pytest bench --benchmark-enable -s --benchmark-json=bench/results.json
	$(BIN)/python -m tools.benchmarks

tables: $(INSTALLED) ## measure the error bounds again, into docs/numerics.md
	$(BIN)/python -m tools.measure_bounds

notebooks: $(INSTALLED) ## run the notebooks of docs/, and keep what they show
	$(BIN)/python -m tools.notebooks

baseline: $(INSTALLED) ## what moved since the baseline of the bundled model
	$(BIN)/recon baseline check baselines/bundled.json

compat: $(INSTALLED) ## try several transformers, each in .venv-compat, into docs/compatibility.md
	$(BIN)/python -m tools.compat

lint: $(INSTALLED) ## check style, layout and types; change nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED) ## lay out the code and mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

model: $(INSTALLED) ## train the bundled model anew
	$(BIN)/python tools/train_bundled.py

clean: ## remove .venv and all else that these commands leave behind
	rm -rf .venv .venv-compat $(PEERS) build dist .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# hatchling is among the pins, so the project is built with it and not in isolation.
# `pip check` stops when a dependency in pyproject.toml has no fitting pin.
$(INSTALLED): pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit("recon needs Python 3.11 or newer, found %d.%d; set PYTHON=..." % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -r requirements.txt
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	$(BIN)/python -m pip check
	@touch $@

# The libraries of peers/ bring much along, so they live in an environment of their own.
$(PEERS)/.installed: pyproject.toml requirements.txt requirements-peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install -q -r requirements.txt
	$(PEERS)/bin/python -m pip install -q -r requirements.txt -r requirements-peers.txt
	$(PEERS)/bin/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@
