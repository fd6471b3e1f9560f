"""Runs of seconds: start one in a process of its own, and read what it left."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from safetensors import safe_open

from tdlm_fast import config as settings

TINY = "configs/tiny.yaml"
ENDLESS = 10**7  # draws: an evaluation that does not end
HANG_S = 600  # what takes longer has hung, on any machine; no test may depend on anything shorter


def metrics(folder):
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def state_of(file):
    """The state in a checkpoint's metadata."""
    with safe_open(file, "pt") as f:
        return json.loads(f.metadata()["state"])


@contextlib.contextmanager
def started(command, env=None, **kw):
    """Start a process with default signals; at the end, also of a failed test, it is killed with all it started.

    Its children are known by a mark in their environment, also where the process itself is gone (Linux only).
    """
    mark = f"TDLM_TEST_MARK={uuid.uuid4().hex}"
    env = (os.environ if env is None else env) | dict([mark.split("=")])
    before = {}
    for name in {"SIGINT", "SIGTERM", "SIGHUP"} & set(dir(signal)):  # `make test &` and nohup ignore some of these
        number = getattr(signal, name)
        if signal.getsignal(number) is signal.SIG_IGN:  # a child would inherit that, but no handler
            before[number] = signal.signal(number, lambda *_: None)
    try:
        process = subprocess.Popen(command, env=env, text=True, **kw)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        seen_none = 0
        while seen_none < 2:  # one that was being started when the others ended comes later, and shows no mark at first
            left = marked(mark)
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            seen_none = 0 if left else seen_none + 1
            time.sleep(0.01)
        for stream in filter(None, (process.stdin, process.stdout, process.stderr)):
            stream.close()


def marked(mark):
    """The processes whose environment holds the mark."""
    pids = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it ended, or it is another user's
            if mark.encode() in file.read_bytes():
                pids.append(int(file.parent.name))
    return pids


def wait_until(state, process):
    """Wait until state() holds; fail where the process ends before that."""
    deadline = time.monotonic() + HANG_S
    while not state():
        ended = process.poll() is not None
        errors = process.stderr.read() if ended and process.stderr else ""
        assert not ended, f"ended with {process.returncode}: {errors}"
        assert time.monotonic() < deadline, f"nothing happened in {HANG_S} s"
        time.sleep(0.02)


def holds(file, text):
    """Whether the file is there and holds the text."""
    return file.exists() and text in file.read_text()


@contextlib.contextmanager
def begun(args, until):
    """A process of train that has just printed `until`; it is killed at the end if it still runs."""
    command = [sys.executable, "-m", "tdlm_fast.train", TINY, *args]
    with started(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        printed = list(itertools.takewhile(lambda line: until not in line, process.stderr))
        assert process.poll() is None, "".join(printed)
        yield process


def small_config(*overrides):
    """Return a config whose step takes a moment: one layer of width 32, 8 rows of 16 bytes."""
    return settings.load(TINY, [
        "data.tokenizer=bytes", "model.layers=1", "model.width=32", "model.heads=2", "model.inner=32",
        "model.seq_len=16", "train.batch_size=8", "optim.lr=1e-2", *overrides,
    ])  # fmt: skip
