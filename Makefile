# `make help` lists the targets. The environment .venv is made when a target first needs it, and the project is
# installed in it again when pyproject.toml, setup.py or csrc change. PYTHON and TORCH choose what a new .venv holds:
# make clean-venv, then for example make test TORCH=torch==2.11.0
PYTHON ?= python3
TORCH ?= torch==2.13.0
PY := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)/python
# The tests of one file stay in one process: they share its fixtures, some of which train a model.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -q -n auto --maxprocesses=8 --dist=loadfile
export TOKENIZERS_PARALLELISM := false

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

.venv/ready: pyproject.toml setup.py $(shell find csrc -type f)
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(if $(wildcard $@),,$(PY) -m pip install -q "$(TORCH)" setuptools wheel numpy)
	$(PY) -m pip install -q --no-build-isolation -e '.[dev]'
	@touch $@

clean-venv:  ## remove .venv, to make it with another PYTHON or TORCH
	rm -rf .venv .venv-ttsem .venv-wheels

demo: .venv/ready  ## texts of both objectives, then the published metric against the likelihood; ARGS="--no-train" ends before
	$(PY) -m tdlm_fast.demo $(ARGS)

train: .venv/ready  ## train configs/tiny.yaml, or resume it; ARGS="key=value …" adds keys
	$(PY) -m tdlm_fast.train configs/tiny.yaml $(ARGS) --resume

# Triton reads TRITON_INTERPRET once, when it is imported, so its interpreter needs a pytest run of its own.
INTERPRETED := tests/kernels/triton tests/bench/prototypes
test: .venv/ready  ## run the test suite
	$(PYTEST) -m "not interpreter and not long"
	if $(PY) -c 'import triton' 2> /dev/null; then TRITON_INTERPRET=1 CUDA_VISIBLE_DEVICES= $(PYTEST) -m "not long" \
		$(INTERPRETED); else echo 'Triton is not installed: its kernels are not tested'; fi

test-long: .venv/ready  ## run the tests that repeat those of `make test` in more cases
	$(PYTEST) -m "long and not interpreter"

test-fast: .venv/ready  ## run the tests that take under two minutes together
	$(PYTEST) -m "not slow and not long and not docs and not interpreter and not gpu"

lint: .venv/ready  ## check format, style and types: ruff and pyright
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m pyright --pythonpath $(PY)

test-gpu: .venv/ready  ## run the tests that need a GPU, then the Triton kernels under compute-sanitizer
	$(PY) -m pytest -q -m gpu
	if command -v compute-sanitizer; then PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck \
		--error-exitcode 9 $(PY) -m pytest -q -x -m gpu tests/kernels/triton; else echo 'compute-sanitizer is not on the PATH'; fi

test-ttsem:  ## run the Triton kernels' compiled IR on the CPU: bf16, bounds, races; PYTHON312=… names a Python 3.12
	bash tests/kernels/triton/ttsem.sh $(ARGS)

test-fuzz: .venv/ready  ## try 100,000 damaged and foreign inputs of every kind, JSON into bench/results
	$(PY) -m tests.fuzz.run --out bench/results/fuzz.json $(ARGS)

bench: .venv/ready  ## race each op against every peer on this machine, JSON into bench/results
	$(PY) -m pytest -q bench/race/ops.py --benchmark-disable-gc --benchmark-columns=median --figures bench/results/kernels.json

resources: .venv/ready  ## compile every Triton kernel for six cards: registers, shared memory, spills
	$(PY) -m bench.without_gpu.resources

resources-cuda: .venv/ready  ## registers, spills and shared memory of csrc/cuda (nvcc, cuobjdump), JSON into bench/results
	$(PY) -m bench.without_gpu.resources_cuda

report: .venv/ready  ## draw the tables and plots of README and docs from bench/results
	$(PY) -m bench.report

WHEELS := .venv-wheels/$(if $(filter Windows_NT,$(OS)),Scripts,bin)/python
wheels:  ## build a source distribution and a wheel per platform into dist/, without a compiler; ARGS names platforms
	test -x $(WHEELS) || $(PYTHON) -m venv .venv-wheels
	$(WHEELS) -m pip install -q "setuptools>=77" wheel ziglang==0.17.1 auditwheel
	$(WHEELS) csrc/wheels.py $(ARGS)

site: .venv/ready  ## build the pages as a site into build/site, with every internal link checked
	$(PY) -m mkdocs --version >/dev/null 2>&1 || $(PY) -m pip install -q "mkdocs>=1.6,<2"
	rm -rf build/pages && mkdir -p build/pages
	git ls-files -z | tar --null -T - -cf - | tar -xf - -C build/pages
	$(PY) -m mkdocs build --strict

CHECKS := -fsanitize=address,undefined -fno-sanitize-recover=undefined
sanitize: .venv/ready  ## test the CPU kernels under AddressSanitizer and UBSan
	TDLM_CUDA_ARCHS=none CFLAGS="$(CHECKS)" CXXFLAGS="$(CHECKS)" LDFLAGS="$(CHECKS)" $(PY) setup.py -q build --build-base build/sanitize --build-lib build/sanitize/lib
	ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		$(PY) -m pytest -q -o pythonpath=build/sanitize/lib tests/kernels/cpu

fuzz: .venv/ready  ## give the CPU kernels TDLM_FUZZ random shapes, counts, magnitudes and targets
	TDLM_FUZZ=$${TDLM_FUZZ:-5000} $(PY) -m pytest -q tests/kernels/cpu -k hostile

test-faults: .venv/ready  ## end and halt runs at random moments: TDLM_FAULTS kills; counts into bench/results
	TDLM_FAULTS=$${TDLM_FAULTS:-200} $(PY) -m pytest -q tests/faults --counts bench/results/faults.json

.PHONY: help clean-venv demo train test test-long test-fast lint test-gpu test-ttsem bench resources resources-cuda report sanitize test-fuzz test-ttsem test-faults wheels site
.DEFAULT_GOAL := help
