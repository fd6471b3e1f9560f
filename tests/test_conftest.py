"""TDLM_EXAMPLES makes property-based tests short, for a GPU."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
EXAMPLE = """
from hypothesis import given, settings, strategies as st

drawn = []

@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**9))
def test_passes(n):
    drawn.append(n)

@settings(max_examples=3, derandomize=True)
@given(st.integers(0, 10**9))
def test_is_short_already(n):
    drawn.append(n)

@settings(max_examples=40, derandomize=True)
@given(st.integers(0, 10**9))
def test_fails(n):
    drawn.append(n)
    assert n < 10

def test_plain():
    print("\\n", len(drawn), "examples")
"""


def test_examples_are_at_most_those_asked_for(tmp_path):
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    (tmp_path / "test_example.py").write_text(EXAMPLE)
    found = {}
    for most in ("5", ""):
        env = {k: v for k, v in os.environ.items() if k != "TDLM_EXAMPLES"} | ({"TDLM_EXAMPLES": most} if most else {})
        command = [sys.executable, "-m", "pytest", "-qs", "-p", "no:cacheprovider", str(tmp_path)]
        out = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path).stdout
        assert "1 failed, 3 passed" in out, out
        found[most] = int(out.partition(" examples")[0].split()[-1])
    assert found["5"] <= 5 + 3 + 5 + 1 < 40 < found[""]  # one more shows the failure again, and nothing is shrunk
