"""bench/race/sweep.py gives the head other tiles, and reports the best of them."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed (pip install triton)", allow_module_level=True)

from bench.race import sweep
from bench.race.cases import Lce
from tdlm_fast.kernels import hardware
from tdlm_fast.kernels.triton import linear_cross_entropy, tiles


def problem(dtype=torch.bfloat16):
    return sweep.Problem.of(Lce("", 60, 64, 150, n_rows=30, weights="ones"), dtype, "cpu")


@pytest.mark.parametrize("card, multiprocessors", [((9, 0), 132), ((8, 6), 46)])
def test_a_plan_has_the_tiles_asked_for(card, multiprocessors):
    own = {}
    with hardware.pretend(card, multiprocessors, torch.Tensor):
        for side, candidates in (sweep.WGMMA if card == (9, 0) else sweep.MMA).items():
            own[side] = sweep.plan_of(problem(), side, None)
            assert len(set(candidates)) == len(candidates) == 12
            for tile in (tiles.Tiles(*c[:4], 1, *c[4:]) for c in candidates):
                plan, other = sweep.plan_of(problem(), side, tile), "weight" if side == "forward" else "forward"
                assert getattr(plan, side) == tile and getattr(plan, other) == getattr(own[side], other)
        assert own["forward"] == own["weight"]
        assert own["weight"].weight._replace(fit=1) == tiles.Tiles(*candidates[0][:4], 1, *candidates[0][4:])


def test_the_kernels_are_launched_by_the_plan(monkeypatch):
    """A launch under launched_by has the tiles and programs of the plan that it was given."""
    found = {}

    class Kernel:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *args, **options: found.update({self.name: (grid, options)})

    p = problem()
    for name in ("take", "forward", "combine", "fold", "weight", "gather"):
        name = f"{name}_kernel"
        monkeypatch.setattr(linear_cross_entropy, name, Kernel(name))
    with hardware.pretend((9, 0), 132, torch.Tensor):
        plan = sweep.plan_of(p, "forward", tiles.Tiles(64, 32, 4, 2, 1, True, 168))
        plan = sweep.with_programs(plan, "forward", 17, 60)
        _, about = sweep.outcome(p, "forward", plan)
        grid, options = found["forward_kernel"]
        assert about == {} and grid == (17,) and options["maxnreg"] == 168
        assert (options["BLOCK_N"], options["BLOCK_V"], options["num_warps"], options["num_stages"]) == (64, 32, 4, 2)
        plan = sweep.plan_of(p, "weight", tiles.Tiles(32, 64, 8, 2, 3))
        sweep.outcome(p, "weight", plan)
        grid, options = found["weight_kernel"]
        assert grid == (396,) and options["BLOCK_N"] == 32 and options["BLOCK_V"] == 64 and options["num_warps"] == 8


def row(ms: dict, today=False, why="", **tile) -> dict:
    tile = tiles.Tiles(64, 64, 4, 3, 1)._replace(**tile)._asdict()
    return {"tile": tile, "why": why, "ms": ms} | ({"today": True} if today else {})


def test_the_best_is_printed_beside_today(capsys):
    rows = [row({"5": 2.0, "9": 4.0}, today=True), row({"5": 1.0, "9": 5.0}, rows=128), row({}, why="out of memory")]
    sweep.show({"live": (5, 9), "forward": rows, "weight": [row({}, today=True, why="failed: X")]})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "forward, 5 rows: 128 x 64, 4 warps, 3 stages: 1.0000 ms; today 2.0000 ms, 2.00 x"
    assert lines[1] == "forward, 9 rows: 64 x 64, 4 warps, 3 stages: 4.0000 ms; today 4.0000 ms, 1.00 x"
    assert "out of memory" in lines[2] and "failed: X" in lines[3] and len(lines) == 4


def test_an_answer_that_differs_is_not_timed(monkeypatch):
    monkeypatch.setattr(sweep, "timed", lambda *a: pytest.fail("it was timed"))
    monkeypatch.setattr(sweep, "outcome", lambda *a: ([torch.ones(3)], {}))
    with hardware.pretend((9, 0), 132, torch.Tensor):
        found = sweep.measure(problem(), "forward", tiles.Tiles(64, 32, 4, 2, 1), [torch.full((3,), 1.1)], (30,))
    assert found["why"] == "its answer differs from that of today's tiles" and found["ms"] == {}


def test_the_forward_pass_is_timed_with_the_programs_that_are_resident(monkeypatch):
    monkeypatch.setattr(sweep, "outcome", lambda *a: ([torch.ones(3)], {"resident": 264}))
    monkeypatch.setattr(sweep, "timed", lambda p, side, plan, counts: {"30": 1 / plan.programs})
    with hardware.pretend((9, 0), 132, torch.Tensor):
        planned = sweep.plan_of(problem(), "forward", None).programs
        found = sweep.measure(problem(), "forward", None, None, (30,))
    assert set(found["ms_by_programs"]) == {"264", "528", str(planned)}
    assert found["programs"] == max(528, planned)


def test_a_run_that_is_killed_leaves_what_it_timed(monkeypatch, tmp_path):
    made = []

    def measure(problem, side, tile, truth, counts):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(side)
        return row({}, why=f"row {len(made)}")

    monkeypatch.setattr(sweep, "measure", measure)
    monkeypatch.setattr(sweep, "outcome", lambda *a: ([], {}))
    monkeypatch.setattr(sweep.processes, "run", lambda *a: [])
    monkeypatch.setattr(sweep.torch.cuda, "is_available", lambda: False)
    with hardware.pretend((9, 0), 132, torch.Tensor), pytest.raises(KeyboardInterrupt):
        sweep.main(["--json", str(tmp_path / "sweep.json")])
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert made == ["forward", "weight", "forward", "weight", "forward"]
    assert [r["why"] for r in found["forward"]] == ["row 1", "row 3", "row 5"] and len(found["weight"]) == 2
    assert not found["finished"] and found["live"] == [2300, 4096, 8192]


@pytest.mark.slow
def test_the_sweep_runs_in_the_interpreter(tmp_path):
    env, file = os.environ | {"TRITON_INTERPRET": "1"}, tmp_path / "sweep.json"
    command = [sys.executable, "-m", "bench.race.sweep", "--small", "--processes", "1", "--json", str(file)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert found["finished"]
    for side in sweep.SIDES:
        assert [r["why"] for r in found[side]] == ["", ""] and all(set(r["ms"]) == {"9", "60"} for r in found[side])
    assert done.stdout.count("today") == 4
