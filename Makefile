# `make help` lists the targets. One virtual environment, .venv, made when a target first needs it.
PYTHON ?= python3
PY := .venv/bin/python
TORCH ?= torch==2.13.0
export TOKENIZERS_PARALLELISM := false

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

.venv/ready: pyproject.toml setup.py $(wildcard csrc/cpu/* csrc/cuda/*)
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install -q "$(TORCH)" setuptools wheel numpy
	$(PY) -m pip install -q --no-build-isolation -e '.[dev]'
	@touch $@

train: .venv/ready  ## train configs/tiny.yaml, or go on with it; ARGS="key=value …" adds keys
	$(PY) -m tdlm_fast.train configs/tiny.yaml $(ARGS) --resume

test: .venv/ready  ## run the test suite
	$(PY) -m pytest -q

lint: .venv/ready  ## ruff
	$(PY) -m ruff check .

test-gpu: .venv/ready  ## the tests of the Triton kernels on the GPU that is here
	$(PY) -m pytest -q tests/triton

bench: .venv/ready  ## race each op against every peer on this machine, JSON into bench/results
	$(PY) -m pytest -q bench/bench_kernels.py --benchmark-disable-gc --benchmark-columns=median --figures bench/results/kernels.json

resources: .venv/ready  ## compile every Triton kernel for six cards: registers, shared memory, spills
	$(PY) -m bench.resources

resources-cuda: .venv/ready  ## registers, spills and shared memory of csrc/cuda (nvcc, cuobjdump), JSON into bench/results
	$(PY) -m bench.resources_cuda

report: .venv/ready  ## draw the tables and plots of README and docs from bench/results
	$(PY) -m bench.report

# The pytest script, unlike -m pytest, leaves this folder out of the path, so the checked build is the one found.
CHECKS := -fsanitize=address,undefined -fno-sanitize-recover=undefined
sanitize: .venv/ready  ## the CPU kernels' tests under AddressSanitizer and UBSan
	TDLM_CUDA_ARCHS=none CFLAGS="$(CHECKS)" CXXFLAGS="$(CHECKS)" LDFLAGS="$(CHECKS)" $(PY) setup.py -q build --build-base build/sanitize --build-lib build/sanitize/lib
	PYTHONPATH=build/sanitize/lib ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		.venv/bin/pytest -q tests/test_native.py tests/test_native_attention.py tests/test_native_rows.py

.PHONY: help train test test-gpu lint bench resources resources-cuda report sanitize
.DEFAULT_GOAL := help
