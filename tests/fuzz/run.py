"""Fuzz all targets, each in a process of its own: `python -m tests.fuzz.run --inputs 100000 [--target NAME]`.

The inputs are shared out equally. Counts, the slowest input in CPU seconds and the memory that was added are written
as JSON. An input that fails is printed, shrunk, with the seed that finds it again.
"""

import argparse
import contextlib
import datetime
import json
import multiprocessing
import os
import platform
import re
import signal
import tempfile
import time
from pathlib import Path

import hypothesis

HANG_S = 5.0  # CPU seconds: no machine is so slow, and no other process counts
MEMORY_MB = 1024  # added by any input


class Hang(BaseException):
    """An input took longer than HANG_S."""


@contextlib.contextmanager
def bounded():
    """Raise Hang where what is inside takes more CPU time than HANG_S."""

    def stop(*_):
        raise Hang(f"{HANG_S} s of CPU time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def memory_mb(what: str = "VmHWM") -> float:
    """Resident memory of this process in MB: VmRSS now, VmHWM at its peak."""
    return int(re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def fuzz(name: str, inputs: int, seed: int | None, folder: Path) -> dict:
    """Check `inputs` inputs of a target; return the figures. seed None draws the same inputs each time."""
    from .targets import TARGETS

    strategy, check = TARGETS[name](folder)
    slowest = [0.0]
    counted = [0]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory_mb("VmRSS")

    @hypothesis.settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        derandomize=seed is None,
        suppress_health_check=list(hypothesis.HealthCheck),
        report_multiple_bugs=False,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
    )
    @hypothesis.given(strategy)
    def each(value):
        counted[0] += 1
        started = time.process_time()
        with bounded():
            check(value)
        slowest[0] = max(slowest[0], time.process_time() - started)

    if seed is not None:
        each = hypothesis.seed(seed)(each)
    each()
    added = memory_mb() - before
    assert added < MEMORY_MB, f"{added:.0f} MB were added"
    return {"inputs": counted[0], "slowest_s": round(slowest[0], 3), "added_mb": round(added, 1)}


def _child(name, inputs, seed, send):
    with tempfile.TemporaryDirectory() as folder:
        send.send(fuzz(name, inputs, seed, Path(folder)))


def main() -> int:
    from .targets import TARGETS

    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--inputs", type=int, default=100_000)
    p.add_argument("--target", choices=TARGETS, action="append")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path)
    a = p.parse_args()
    names = a.target or list(TARGETS)
    figures: dict = {
        "seed": a.seed,
        "date": datetime.date.today().isoformat(),
        "machine": platform.machine(),
        "targets": {},
    }
    context = multiprocessing.get_context("spawn")
    os.environ["OMP_NUM_THREADS"] = "1"
    failed = 0
    for name in names:
        receive, send = context.Pipe(False)
        process = context.Process(target=_child, args=(name, -(-a.inputs // len(names)), a.seed, send))
        started = time.monotonic()
        process.start()
        send.close()
        try:
            figures["targets"][name] = receive.recv()
        except EOFError:
            failed += 1
        process.join()
        print(f"{name:15} {figures['targets'].get(name, 'FAILED')} in {time.monotonic() - started:.0f} s", flush=True)
        if a.out:
            a.out.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
