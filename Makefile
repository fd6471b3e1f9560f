# `make help` lists the targets. One virtual environment, .venv, made when a target first needs it.
PYTHON ?= python3
PY := .venv/bin/python
TORCH ?= torch==2.13.0
export TOKENIZERS_PARALLELISM := false

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

.venv/ready: pyproject.toml setup.py $(wildcard csrc/cpu/*)
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install -q "$(TORCH)" setuptools wheel numpy
	$(PY) -m pip install -q --no-build-isolation -e '.[dev]'
	@touch $@

test: .venv/ready  ## run the test suite
	$(PY) -m pytest -q

lint: .venv/ready  ## ruff
	$(PY) -m ruff check .

.PHONY: help test lint
.DEFAULT_GOAL := help
