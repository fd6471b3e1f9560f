"""What README, docs, CI and pre-commit say of make and ruff agrees with the Makefile and pyproject.toml."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / ".ci" / "run", *(ROOT / "docs").glob("*.md")]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_every_target_that_is_named_exists():
    listed = subprocess.run(["make", "-s", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    targets = {line.split("\t")[0] for line in listed.splitlines()}
    word = re.compile(r"(?:^|`)make ([a-z-]+)(?=`|$|  (?! *\|)| [A-Z])", re.M)  # the texts of the demo stand beside a |
    named = {target for page in PAGES for target in word.findall(page.read_text())}
    named |= set(re.findall(r"run: make ([a-z-]+)$", WORKFLOW.read_text(), re.M))
    assert {"train", "test", "lint", "test-fast"} <= named <= targets


def test_pre_commit_runs_the_ruff_of_make_lint():
    pin = re.search(r"ruff==[\d.]+", (ROOT / "pyproject.toml").read_text())
    hooks = re.findall(r"ruff==[\d.]+", (ROOT / ".pre-commit-config.yaml").read_text())
    assert pin and hooks == [pin[0]] * 2
