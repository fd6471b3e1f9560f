"""Workers share a folder: no cell is trained twice, and one that fails keeps its reason."""

import subprocess
import sys

import pytest

from tdlm_fast.runs.folder import locked
from tdlm_fast.scaling import plan, work
from tests.running import HANG_S

pytestmark = pytest.mark.slow


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


def test_a_finished_run_with_a_damaged_summary_is_free_and_named(plan_file, tmp_path):
    out = tmp_path / "out"
    cell = begin(plan_file, out)[0]
    summary = work.folder_of(out, cell) / "summary.json"
    summary.parent.mkdir(parents=True)
    summary.write_text('{"finished": tr')
    words = work.status([cell], out)[1][2]
    assert words.startswith(f"free: {summary} is damaged (")
    summary.unlink()
    assert work.status([cell], out)[1][2] == "free"


def at(state, step, steps, seconds):
    """The progress of a cell."""
    return {"state": state, "step": step, "steps": steps, "seconds": seconds, "reason": ""}


def test_the_time_left_follows_from_the_rates_of_cells_alike(plan_file, tmp_path):
    """Cells: diffusion and autoregressive of 256 tokens, then of 512."""
    cells = plan.read(plan_file)
    now = [at("done", 8, 8, 16.0), at("free", 0, 0, 0.0), at("running", 4, 16, 16.0), at("free", 0, 0, 0.0)]
    assert work.minutes_left(cells, now) == [0.0, None, pytest.approx((2 + 4) / 2 * 12 / 60), None]
    now[1] = at("failed", 2, 8, 1.0)  # its rate counts, and it needs no more
    assert work.minutes_left(cells, now)[1::2] == [0.0, pytest.approx(0.5 * 16 / 60)]
    now[2] = at("free", 0, 0, 0.0)  # nothing tells how long 512 tokens are
    assert work.minutes_left(cells, now) == [0.0, 0.0, None, None]


def test_the_table_divides_the_time_left_by_the_workers(plan_file, tmp_path, monkeypatch):
    cells = plan.read(plan_file)
    now = [at("done", 8, 8, 480.0), at("running", 4, 8, 240.0), at("running", 8, 16, 480.0), at("free", 0, 0, 0.0)]
    monkeypatch.setattr(work, "progress", lambda out, cell: now[cells.index(cell)])
    rows = work.status(cells, tmp_path)
    assert [row[-1] for row in rows] == ["minutes left", "", "4.0", "8.0", "16.0", "14.0 by 2 workers"]
    assert [row[3] for row in rows[1:]] == ["8 of 8", "4 of 8", "8 of 16", "0", ""]
    now[1:3] = [at("free", 0, 0, 0.0)] * 2
    assert work.status(cells, tmp_path)[-1][-1] == "0.0, and 3 cells of unknown length"
