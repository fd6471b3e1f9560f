"""Workers share a folder: no cell is trained twice, and one that fails keeps its reason."""

import os
import signal
import subprocess
import sys

import pytest

from tdlm_fast.runs.folder import locked
from tdlm_fast.scaling import plan, work
from tests.running import HANG_S, wait_until

pytestmark = pytest.mark.slow
REPORT = ("report.html", "report.md", "points.csv", "results.json")


def sweep(*words):
    return [sys.executable, "-m", "tdlm_fast.sweep", *map(str, words)]


def begin(plan_file, out):
    cells = plan.read(plan_file)
    plan.store(cells, out)
    return cells


def test_two_workers_never_train_one_cell(plan_file, tmp_path, start):
    cells = begin(plan_file, tmp_path / "out")
    workers = [start(sweep("work", tmp_path / "out"), stderr=subprocess.PIPE) for _ in range(2)]
    texts = [worker.communicate(timeout=HANG_S)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    begun = [line[:12] for text in texts for line in text.splitlines() if line[:12] in {c.name for c in cells}]
    assert sorted(begun) == sorted(c.name for c in cells)
    assert all(work.state(tmp_path / "out", c) == "done" for c in cells)


def test_a_worker_that_is_killed_leaves_the_same_report(plan_file, tmp_path, start):
    cells = begin(plan_file, tmp_path / "out")
    begin(plan_file, tmp_path / "whole")
    for cell in cells[:2]:
        process = start(sweep("work", tmp_path / "out"), stderr=subprocess.PIPE)
        metrics = work.folder_of(tmp_path / "out", cell) / "metrics.jsonl"
        wait_until(lambda m=metrics: m.exists() and m.stat().st_size > 200, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    for out in ("out", "whole"):
        assert subprocess.run(sweep("work", tmp_path / out), timeout=HANG_S).returncode == 0
        assert subprocess.run(sweep("report", tmp_path / out), timeout=HANG_S).returncode == 0
    for name in REPORT:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_cell_that_fails_keeps_its_reason_and_stops_no_other(plan_file, tmp_path):
    plan_file.write_text(plan_file.read_text().replace("[256, 512]", "[256, 999999999]"))
    out = tmp_path / "out"
    cells = begin(plan_file, out)
    work.work(cells, out)
    assert [work.state(out, c) for c in cells] == ["done", "done", "failed", "failed"]
    assert "data.unique_tokens is 999,999,999" in work.failure(out, cells[2])
    rows = work.status(cells, out)
    assert rows[-1][2] == "2 done, 2 failed" and rows[3][2].startswith("failed: error: data.unique_tokens")
    work.work(cells, out)  # failed cells stay failed, and the worker ends


def test_a_cell_that_is_being_trained_is_running(plan_file, tmp_path):
    out = tmp_path / "out"
    cells = begin(plan_file, out)
    assert work.state(out, cells[0]) == "free"
    with locked(work.folder_of(out, cells[0])):
        assert work.state(out, cells[0]) == "running"
    assert work.state(out, cells[0]) == "free"
