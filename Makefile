# Tasks. Everything is installed into .venv, from pyproject.toml alone; nothing outside this folder changes
# except that `make test` installs four Debian packages if it is root and they are missing.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
STATE := .canarium
# Inside the registry, so that the variants are made again when that is removed.
BUILT := $(STATE)/registry/.quickstart
QUICKSTART := deployments/quickstart

# python3.11 if there is one, else any python3 from 3.11 on.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Further options for the task, such as ARGS=--exit for demo or ARGS="-k routing" for test.
ARGS ?=
# How pytest ends if ARGS chose no test at all.
NONE := 5
# Fast tests first: what is broken shows early. They share no port and no folder, so that several processes take them.
FAST := $(wildcard tests/unit tests/helm tests/docs)
SLOW := $(wildcard tests/contract tests/console tests/integration tests/e2e)

.PHONY: help
help: ## list the tasks
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) ## make .venv and install Canarium and its development tools into it

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Canarium needs Python 3.11 or newer; set PYTHON=" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' 'torch==2.13.0'
	@touch $@

.PHONY: quickstart
quickstart: $(BUILT) ## make the quickstart's variants (minutes the first time)

$(BUILT): $(STAMP) $(QUICKSTART)/recipe.yaml $(wildcard $(QUICKSTART)/data/*.gz)
	$(BIN)/canarium build $(QUICKSTART)/recipe.yaml --registry $(STATE)/registry
	@touch $@

.PHONY: examples
examples: $(STAMP) ## build the further examples: anomaly detection and voice (a minute or two)
	$(BIN)/canarium build deployments/examples/iot/recipe.yaml --registry $(STATE)/registry
	$(BIN)/canarium build deployments/examples/voice/recipe.yaml --registry $(STATE)/registry

.PHONY: sentiment
sentiment: $(STAMP) ## fetch, build and test the third example, customer feedback (half an hour, 86 MB)
	$(BIN)/python -c 'import torchao' 2>/dev/null || $(BIN)/python -m pip install --quiet -e '.[torchao]'
	test -f deployments/examples/sentiment/models/minilm.safetensors || $(BIN)/python deployments/examples/sentiment/prepare.py
	$(BIN)/canarium build deployments/examples/sentiment/recipe.yaml --registry $(STATE)/registry
	$(BIN)/python -m pytest -m opt_in tests/integration/test_sentiment.py $(ARGS)

.PHONY: demo
demo: $(BUILT) ## watch a canary that is good and one that is broken (ARGS=--exit to leave afterwards)
	$(BIN)/python -m deployments.quickstart.demo $(ARGS)

.PHONY: check
check: $(STAMP) ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: system-packages
system-packages: ## install Prometheus, Alertmanager, Chromium and PostgreSQL for the tests (Debian, as root)
	@./.ci/system-packages

.PHONY: test
test: check system-packages $(BUILT) ## every check and every test, the fast ones first (ARGS="-k …" to choose)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(FAST) $(ARGS) || test $$? = $(NONE)
	$(BIN)/python -m pytest $(SLOW) $(ARGS) || test $$? = $(NONE)

.PHONY: bench
bench: $(BUILT) ## load the quickstart and print latencies (ARGS="--url http://host:port" for a running one)
	$(BIN)/python -m loadtests.bench $(ARGS)

.PHONY: bench-peers
bench-peers: $(STAMP) ## compare with other inference servers, an hour (QUICK=1: under 15 minutes)
	$(BIN)/python -m loadtests.peers $(if $(QUICK),--quick) $(ARGS)

.PHONY: bench-detection
bench-detection: $(STAMP) ## false alarms and delays of the guards, beside other tools; half an hour (QUICK=1: three minutes)
	$(BIN)/python -c 'import evidently, matplotlib, river' 2>/dev/null || $(BIN)/python -m pip install --quiet -e '.[bench]'
	$(BIN)/python -m loadtests.detection $(if $(QUICK),--quick) $(ARGS)

.PHONY: clean
clean: ## remove what was built here, the virtual environment included
	rm -rf $(VENV) $(STATE) .bench build dist ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
