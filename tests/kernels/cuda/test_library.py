"""The CUDA library: why it cannot be used, what it needs, and an installation without nvcc."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tdlm_fast.kernels.cuda import library

ROOT = Path(__file__).parents[3]


def test_a_library_that_cannot_be_used_says_why(tmp_path):
    assert "was not built: install a CUDA toolkit" in library.load(tmp_path / "absent.so")[1]
    (tmp_path / "broken.so").write_text("no library")
    assert "does not load" in library.load(tmp_path / "broken.so")[1]


@pytest.mark.skipif(not library.PATH.exists(), reason="the CUDA library was not built: no nvcc at installation")
def test_the_built_library_needs_no_toolkit_and_answers_without_a_gpu():
    built, why = library.load(library.PATH)
    assert not why
    error = built.tdlm_cuda_runs(0)
    assert (error == 0) == torch.cuda.is_available() and built.tdlm_cuda_error(error)
    if not torch.cuda.is_available():
        assert library.describe() == "the CUDA library is built, and there is no GPU here"


def test_the_installation_goes_on_where_nvcc_fails(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin" / "nvcc").chmod(0o755)
    env = {**os.environ, "CUDA_HOME": str(tmp_path), "CC": "false", "CXX": "false"}
    command = [sys.executable, "setup.py", "-q", "build_ext", f"--build-lib={tmp_path}", f"--build-temp={tmp_path}"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)
    lines = [line for line in done.stderr.splitlines() if line.startswith("tdlm_fast: no native CUDA kernels")]
    assert not done.returncode and len(lines) == 1 and "install tdlm_fast again" in lines[0], done.stderr
