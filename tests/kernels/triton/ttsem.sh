#!/usr/bin/env bash
# Run the tests of the Triton kernels under ttsem (`make test-ttsem`), in an environment of its own: .venv-ttsem.
#
# ttsem 0.1.0 needs Linux, Python 3.12 or 3.13 and Triton 3.8.0. PYTHON312 names the interpreter. Without it uv makes the
# environment, or else the first interpreter found. Where there is none, the reason is printed and nothing is tested.
set -euo pipefail
cd "$(dirname "$0")/../../.."
env=.venv-ttsem
python=$env/bin/python

skip() {
    echo "make test-ttsem: nothing is tested. $1"
    exit 0
}

serves() { # A shim of pyenv is on the PATH without its version, and Debian's Python may come without venv.
    "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 12) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null
}

make_environment() {
    rm -rf $env
    if [ -n "${PYTHON312:-}" ]; then
        serves "$PYTHON312" || { echo "PYTHON312=$PYTHON312 is not Python 3.12 or 3.13 with venv" >&2; exit 2; }
        "$PYTHON312" -m venv $env
        return
    fi
    if command -v uv > /dev/null && uv venv -q --seed --python 3.12 $env; then
        return
    fi
    for found in python3.12 python3.13 python3 "$HOME"/.pyenv/versions/3.1[23]*/bin/python; do
        if command -v "$found" > /dev/null && serves "$found"; then
            "$found" -m venv $env
            return
        fi
    done
    skip "It needs Python 3.12 or 3.13: install uv or one of them, or name one in PYTHON312."
}

[ "$(uname -s)" = Linux ] || skip "ttsem runs on Linux only."
if ! [ $env/ready -nt "$0" ]; then
    make_environment
    # ttsem pins torch 2.14.0 and torch another Triton, so each is installed without its dependencies or before them.
    $python -m pip install -q torch==2.13.0 setuptools numpy
    $python -m pip install -q --no-deps triton==3.8.0 ttsem==0.1.0
    $python -m pip install -q pytest pytest-xdist hypothesis pyyaml safetensors tqdm tiktoken
    touch $env/ready
fi

export TDLM_TTSEM=1 OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
exec $python -m pytest -q -n auto --maxprocesses=8 --dist=worksteal "$@" tests/kernels/triton tests/bench/prototypes
