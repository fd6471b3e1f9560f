# `make help` lists the targets. One virtual environment, .venv, made when a target first needs it.
# A PYTHON or TORCH that was given once stays until another is given: .venv/python and .venv/torch hold them.
chosen = $(shell cat .venv/$(1) 2>/dev/null)
PYTHON ?= $(or $(call chosen,python),python3)
TORCH ?= $(or $(call chosen,torch),torch==2.13.0)
PY := .venv/bin/python
export TOKENIZERS_PARALLELISM := false

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

.venv/ready: pyproject.toml setup.py $(wildcard csrc/*/*.* csrc/*/*/*.*)
	$(if $(CLEAR),,test -x $(PY) || )$(PYTHON) -m venv $(CLEAR).venv
	$(PY) -m pip install -q "$(TORCH)" setuptools wheel numpy
	$(PY) -m pip install -q --no-build-isolation -e '.[dev]'
	@echo '$(PYTHON)' > .venv/python; echo '$(TORCH)' > .venv/torch; touch $@

ifneq ($(call chosen,torch),$(TORCH))
.venv/ready: FORCE
endif
ifneq ($(or $(call chosen,python),$(PYTHON)),$(PYTHON))
CLEAR := --clear #
.venv/ready: FORCE
endif
ifneq ($(and $(wildcard kernels/cpu/library.py),$(shell command -v c++ g++ clang++)),)  # a compiler that came later
ifeq ($(wildcard kernels/cpu/_native.*),)
.venv/ready: FORCE
endif
endif
FORCE:

train: .venv/ready  ## train configs/tiny.yaml, or go on with it; ARGS="key=value …" adds keys
	$(PY) -m tdlm_fast.train configs/tiny.yaml $(ARGS) --resume

test: .venv/ready  ## run the test suite
	$(PY) -m pytest -q

lint: .venv/ready  ## ruff
	$(PY) -m ruff check .

test-gpu: .venv/ready  ## the tests of everything that runs on a GPU, then the Triton kernels under compute-sanitizer
	$(PY) -m pytest -q tests/kernels/triton tests/test_captured.py tests/kernels/ops/test_attention.py tests/kernels/cuda
	if command -v compute-sanitizer; then PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck \
		--error-exitcode 9 $(PY) -m pytest -q -x tests/kernels/triton; else echo 'no compute-sanitizer on the PATH'; fi

bench: .venv/ready  ## race each op against every peer on this machine, JSON into bench/results
	$(PY) -m pytest -q bench/race/ops.py --benchmark-disable-gc --benchmark-columns=median --figures bench/results/kernels.json

resources: .venv/ready  ## compile every Triton kernel for six cards: registers, shared memory, spills
	$(PY) -m bench.without_gpu.resources

resources-cuda: .venv/ready  ## registers, spills and shared memory of csrc/cuda (nvcc, cuobjdump), JSON into bench/results
	$(PY) -m bench.without_gpu.resources_cuda

report: .venv/ready  ## draw the tables and plots of README and docs from bench/results
	$(PY) -m bench.report

# The pytest script, unlike -m pytest, leaves this folder out of the path, so the checked build is the one found.
CHECKS := -fsanitize=address,undefined -fno-sanitize-recover=undefined
sanitize: .venv/ready  ## the CPU kernels' tests under AddressSanitizer and UBSan
	TDLM_CUDA_ARCHS=none CFLAGS="$(CHECKS)" CXXFLAGS="$(CHECKS)" LDFLAGS="$(CHECKS)" $(PY) setup.py -q build --build-base build/sanitize --build-lib build/sanitize/lib
	PYTHONPATH=build/sanitize/lib ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		.venv/bin/pytest -q tests/kernels/cpu

fuzz: .venv/ready  ## shapes, counts, magnitudes and targets at random into the CPU kernels: TDLM_FUZZ examples
	TDLM_FUZZ=$${TDLM_FUZZ:-5000} $(PY) -m pytest -q tests/kernels/cpu -k hostile

.PHONY: FORCE fuzz help train test test-gpu lint bench resources resources-cuda report sanitize
.DEFAULT_GOAL := help
