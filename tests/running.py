"""Runs of seconds: start one in a process of its own, and read what it left."""

import contextlib
import itertools
import json
import subprocess
import sys

from safetensors import safe_open

TINY = "configs/tiny.yaml"
ENDLESS = 10**7  # draws: an evaluation that does not end


def metrics(folder):
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def state_of(file):
    """The state in a checkpoint's metadata."""
    with safe_open(file, "pt") as f:
        return json.loads(f.metadata()["state"])


@contextlib.contextmanager
def begun(args, until):
    """A process of train that has just printed `until`; it is killed at the end if it still runs."""
    command = [sys.executable, "-m", "tdlm_fast.train", TINY, *args]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        printed = list(itertools.takewhile(lambda line: until not in line, process.stderr))
        assert process.poll() is None, "".join(printed)
        yield process
    finally:
        process.kill()
        process.wait()
