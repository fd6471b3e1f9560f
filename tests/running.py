"""Runs of seconds: start one in a process of its own, and read what it left."""

import contextlib
import itertools
import json
import subprocess
import sys

from safetensors import safe_open

from tdlm_fast import config as settings

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


def small_config(*overrides):
    """Return a config whose step takes a moment: one layer of width 32, 8 rows of 16 bytes."""
    return settings.load(TINY, [
        "data.tokenizer=bytes", "model.layers=1", "model.width=32", "model.heads=2", "model.inner=32",
        "model.seq_len=16", "train.batch_size=8", "optim.lr=1e-2", *overrides,
    ])  # fmt: skip
