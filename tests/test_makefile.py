"""`make`: the environment is made once, and a PYTHON or TORCH that was given stays."""

import os
import shutil
import subprocess

import pytest

# Stands in for an interpreter: writes down how it was called, and makes a .venv that holds itself.
FAKE = """#!/bin/sh
echo "$0 $*" >> calls
case "$*" in "-m venv "*) rm -rf .venv/bin; mkdir -p .venv/bin; cp "$0" .venv/bin/python;; esac
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_a_choice_of_torch_and_python_stays(tmp_path):
    shutil.copy("Makefile", tmp_path)
    for name in ("pyproject.toml", "setup.py", "one", "two"):
        (tmp_path / name).write_text(FAKE)
        (tmp_path / name).chmod(0o755)

    def make(*choices):
        (tmp_path / "calls").write_text("")
        subprocess.run(["make", "-s", ".venv/ready", *choices], cwd=tmp_path, check=True)
        return [line for line in (tmp_path / "calls").read_text().splitlines() if "-e" not in line]

    def install(torch):
        return f".venv/bin/python -m pip install -q {torch} setuptools wheel numpy"

    assert make("PYTHON=./one") == ["./one -m venv .venv", install("torch==2.13.0")]
    assert make() == []
    assert make("TORCH=torch==2.11.0") == [install("torch==2.11.0")]
    assert make() == make("TORCH=torch==2.11.0") == make("PYTHON=./one") == []
    assert make("PYTHON=./two") == ["./two -m venv --clear .venv", install("torch==2.11.0")]
    os.utime(tmp_path / ".venv" / "ready", (1, 1))  # setup.py and the rest are newer
    assert make() == [install("torch==2.11.0")]
    (tmp_path / ".venv" / "torch").unlink()  # an environment of before the choice was kept
    (tmp_path / ".venv" / "python").unlink()
    assert make() == [install("torch==2.13.0")] and make() == []
