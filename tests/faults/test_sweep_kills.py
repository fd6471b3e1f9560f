"""A sweep whose workers are killed at any moment ends with the report of an unbroken one, byte for byte."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tdlm_fast.scaling import plan, work
from tests.faults.conftest import CASES
from tests.running import HANG_S
from tests.scaling.conftest import PLAN

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="finds a worker's run in /proc")]
REPORT = ("report.html", "report.md", "points.csv", "results.json")
WORKERS = 2  # of each sweep, all of which are killed


def sweep(*words) -> list[str]:
    return [sys.executable, "-m", "tdlm_fast.sweep", *map(str, words)]


def end(out: Path, start):
    """Train what is left of a sweep, and report."""
    workers = [start(sweep("work", out)) for _ in range(WORKERS)]
    assert [worker.wait(HANG_S) for worker in workers] == [0] * WORKERS
    assert subprocess.run(sweep("report", out), timeout=HANG_S, stdout=subprocess.DEVNULL).returncode == 0


@pytest.fixture
def cells(corpus, tmp_path):
    """The cells of a plan: a run of each objective, of 40 steps, 8 checkpoints and 5 evaluations."""
    text = PLAN.format(text=corpus, cache=corpus.parent / "cache").replace("[256, 512]", "[256]")
    file = tmp_path / "plan.yaml"
    file.write_text(text.replace("epochs: [4]", "epochs: [20]").replace("eval: {", "eval: {every: 10, "))
    return plan.read(file)


@pytest.fixture
def whole(cells, start, tmp_path_factory, request):
    """(the folder of a sweep that nothing happened to, the seconds of each of its runs); made once."""
    if not (made := request.config.stash.get(WHOLE, None)):
        out = tmp_path_factory.mktemp("whole") / "out"
        plan.store(cells, out)
        end(out, start)
        times = [[(work.folder_of(out, c) / f).stat().st_mtime for f in ("config.yaml", "summary.json")] for c in cells]
        made = request.config.stash[WHOLE] = out, [last - first for first, last in times]
    return made


WHOLE = pytest.StashKey()


def kill(process, with_its_run: bool) -> int:
    """SIGKILL a worker, and with it the run that it waits for; else that run gets the signal of a parent's death."""
    process.send_signal(signal.SIGSTOP)  # it must not see its run end
    if with_its_run:
        with contextlib.suppress(OSError):  # it ended
            for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
    process.kill()
    return process.wait()


@pytest.mark.parametrize("case", range(max(1, CASES // 20)))
def test_a_sweep_whose_workers_are_killed(cells, whole, tmp_path, rng, count, start, case):
    out, kinds = tmp_path / "out", []
    plan.store(cells, out)
    workers = [start(sweep("work", out)) for _ in range(WORKERS)]
    for worker, cell, seconds in zip(workers, cells, whole[1], strict=True):
        begun = work.folder_of(out, cell) / "config.yaml"
        while not begun.exists() and worker.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 1.2 * seconds))
        with_its_run = rng.random() < 0.5
        what = f"kill -9 of a sweep's worker{' and its run' * with_its_run}"
        kinds.append(what if kill(worker, with_its_run) else "kill -9 just behind a worker's end")
    end(out, start)
    assert not any(work.failure(out, cell) for cell in cells)
    for name in REPORT:
        assert (out / name).read_bytes() == (whole[0] / name).read_bytes(), name
    for kind in kinds:
        count(kind)
