"""bench/gpu.sh keeps what was computed, whatever happens to a part, and its commands run: once, on a CPU."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from bench.docs_tables import gpu as tables

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "bench" / "gpu.sh"
pytestmark = pytest.mark.skipif(
    os.name == "nt" or shutil.which("timeout") is None, reason="bench/gpu.sh needs Linux and coreutils' timeout"
)

MISSING = ("is not on the PATH", "is left out of a dry run")  # tools that need a GPU
STUB = """#!/usr/bin/env bash
case "$*" in
  *tdlm_fast.train*)
    for word in "$@"; do case $word in run.dir=*) run=${word#run.dir=} ;; esac; done
    mkdir -p "$run/checkpoints" && echo x > "$run/checkpoints/last.safetensors"
    echo '{"step": 1}' > "$run/metrics.jsonl"
    echo begun; exec sleep 60 ;;
  *bench.race.smoke*) for i in $(seq 40); do echo "line $i"; done; exit 3 ;;
  *"import tdlm_fast.kernels"*) test -e tdlm_fast/kernels ;;
  *"pip install"*) echo no compiler; exit 1 ;;
esac
"""


def parts(folder: Path, half: str) -> dict[str, str]:
    """{name: how it ended} of the parts of a half."""
    lines = (folder / f"parts-{half}.tsv").read_text().splitlines()
    return dict(line.split("\t")[::2] for line in lines)


@pytest.fixture
def stubbed(tmp_path):
    """Run a half in a tree that holds only the script and a link's target; Python is the stub above."""
    for folder in ("bench", "tdlm_fast", "kernels"):
        (tmp_path / "tree" / folder).mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / "tree" / "bench")
    (tmp_path / "python").write_text(STUB)
    (tmp_path / "python").chmod(0o755)

    def run(half: str, limit: int) -> str:
        env = os.environ | {"OUT": str(tmp_path / "out"), "KEEP": str(tmp_path / "kept.tgz"), "LIMIT": str(limit)}
        env |= {"PY": str(tmp_path / "python"), "DRY": "0"}
        command = ["bash", str(tmp_path / "tree" / "bench" / "gpu.sh"), half]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 1, done.stderr
        return done.stdout

    return run


def kept(tmp_path) -> set[str]:
    with tarfile.open(tmp_path / "kept.tgz") as archive:
        return set(archive.getnames())


def test_a_part_that_fails_shows_its_end_and_the_next_one_starts(stubbed, tmp_path):
    printed = stubbed("first", 60)
    ends = parts(tmp_path / "out", "first")
    assert ends["smoke"] == "failed: line 40" and ends["tests"] == ends["sweep"] == "ok"
    assert "line 11\n" in printed and "line 10\n" not in printed
    assert {"out/smoke.log", "out/parts-first.tsv", "out/tests.log"} <= kept(tmp_path)


def test_an_installation_that_fails_is_replaced_by_a_link(stubbed, tmp_path):
    stubbed("first", 60)
    ends = parts(tmp_path / "out", "first")
    assert ends["install"] == "failed: no compiler" and "install-by-link" in ends and ends["doctor"] == "ok"
    assert os.readlink(tmp_path / "tree" / "tdlm_fast" / "kernels") == "../kernels"


@pytest.mark.slow
def test_an_experiment_that_is_cut_off_leaves_what_it_recorded(stubbed, tmp_path):
    stubbed("second", 7)
    ends = parts(tmp_path / "out", "second")
    assert ends["experiment-diffusion"].startswith("cut off after") and ends["kernels"] == "no time left"
    assert (tmp_path / "out" / "tiny-diffusion" / "metrics.jsonl").read_text() == '{"step": 1}\n'
    assert "out/tiny-diffusion/metrics.jsonl" in kept(tmp_path)
    assert not any(name.endswith("safetensors") for name in kept(tmp_path))


def test_it_keeps_what_was_computed(tmp_path):
    """With no time for any part it still ends, lists how each part ended, and clears only its own figures."""
    (tmp_path / "out").mkdir()
    for name in ("kernels.json", "step-ours-diffusion.json", "step-cpu-diffusion.json"):
        (tmp_path / "out" / name).write_text("{}")
    env = os.environ | {"OUT": str(tmp_path / "out"), "LIMIT": "4", "PY": sys.executable}
    done = subprocess.run(["bash", str(SCRIPT), "first"], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and parts(tmp_path / "out", "first")["tests"] == "no time left"
    left = {path.name for path in (tmp_path / "out").glob("*.json")}
    assert left == {"kernels.json", "step-cpu-diffusion.json"}  # the first is of the second half
    done = subprocess.run(["bash", str(SCRIPT), "third"], env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "usage: bash bench/gpu.sh [first|second|all]" in done.stderr


@pytest.mark.parametrize("half", ["first", "second"])
def test_the_limits_of_the_parts_add_up_to_that_of_the_half(half, tmp_path):
    """Every part runs, tools of a GPU too, and none has less than it asks for because earlier ones took longer."""
    text = SCRIPT.read_text()
    for name, body in (("part", 'echo "part $1 $2"; return'), ("with", 'shift; part "$@"; return')):
        assert text.count(f"\n{name}() {{ ") == 1
        text = text.replace(f"\n{name}() {{ ", f"\n{name}() {{ {body}; ")
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "gpu.sh").write_text(text)
    env = {k: v for k, v in os.environ.items() if k not in ("LIMIT", "DRY", "KEEP")}
    env |= {"OUT": str(tmp_path / "out"), "PY": "true"}
    command = ["bash", str(tmp_path / "bench" / "gpu.sh"), half]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    seconds = {name: int(n) for name, n in re.findall(r"^part (\S+) (\d+)$", done.stdout, re.M)}
    limit = int(re.search(r"^LIMIT=\$\{LIMIT:-(\d+)\}$", text, re.M)[1])
    assert len(seconds) >= 9 and min(seconds.values()) >= 10
    assert sum(seconds.values()) <= limit, seconds
    assert {"ncu", "sweep"} <= seconds.keys() or {"initcheck", "experiment-autoregressive"} <= seconds.keys()


def test_everything_it_names_exists():
    text = SCRIPT.read_text()
    paths = set(re.findall(r"(?<![\w/$.\"])(?:tests|bench|configs)/[\w/.-]+\w", text)) - {"bench/results/gpu"}
    assert {"tests/training/test_cuda_graph.py", "bench/race/ops.py", "configs/tiny.yaml"} <= paths
    assert not [path for path in paths if not (ROOT / path).exists()]
    for module in re.findall(r"-m ((?:bench|tdlm_fast)\.[\w.]+)", text):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module
    source = (ROOT / "tests/kernels/cuda/test_linear_cross_entropy.py").read_text()
    for name in ("emulated", "emulator"):
        assert name in text and name in source


def test_the_command_of_the_page_is_one_line():
    page = (ROOT / "docs" / "gpu.md").read_text()
    commands = re.findall(r"^.*bash bench/gpu\.sh first$", page, re.M)
    assert len(commands) == 1
    words = set(re.findall(r"\b([A-Z]+)=", commands[0])) - {"PYTHONPATH"}
    header = SCRIPT.read_text().partition("set -u")[0]
    assert {"OUT", "KEEP", "PY", "TRAIN"} <= words and all(re.search(rf"^#.*\b{w}\b", header, re.M) for w in words)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (pip install triton)")
def test_a_dry_run_has_no_errors(tmp_path):
    """The commands of both halves at small sizes on a CPU. Tools of a GPU may be missing, nothing else."""
    # In a worker of pytest-xdist pytest-benchmark times nothing: the races must not know that they are in one.
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    env |= {"OUT": str(tmp_path / "out"), "KEEP": str(tmp_path / "kept.tgz"), "PY": sys.executable}
    env |= {"DRY": "1", "OMP_NUM_THREADS": "1", "LIMIT": "4000"}
    done = subprocess.run(["bash", str(SCRIPT), "all"], env=env, capture_output=True, text=True)
    out = tmp_path / "out"
    ends = {half: parts(out, half) for half in ("first", "second")}
    bad = {n: e for half in ends.values() for n, e in half.items() if e != "ok" and not e.endswith(MISSING)}
    assert not bad and done.returncode == 0, f"{bad}\n{done.stdout}"
    assert {"smoke", "step-ours-autoregressive", "sweep", "ncu", "tests"} <= ends["first"].keys()
    assert {"experiment-diffusion", "step-tiny-diffusion", "kernels", "initcheck"} <= ends["second"].keys()
    for name in ("smoke", "sweep", "step-ours-diffusion", "step-paragraphs-diffusion", "step-small-diffusion"):
        assert json.loads((out / f"{name}.json").read_text())
    assert "packed rows, without padding" in tables.measured(out)  # the tables read what was written
    names = kept(tmp_path)
    assert {"out/tiny-diffusion/summary.json", "out/tests.xml", "out/sweep.json", "out/kernels.log"} <= names
    assert not any(name.endswith("safetensors") for name in names)
