"""bench/race/smoke.py checks every op and the steps, and names what fails."""

import json

import pytest
import torch

from bench.race import smoke
from bench.race.calls import EXACT, OPS, calls
from bench.without_gpu import launches
from tdlm_fast import config as settings
from tdlm_fast.kernels import dispatch

CPU = torch.device("cpu")
SMALL = [
    "device=cpu", "data.tokenizer=bytes", "model.layers=1", "model.width=32", "model.heads=2", "model.inner=32",
    "model.seq_len=32", "train.batch_size=8",
]  # fmt: skip


def call(name: str, dtype=torch.float32):
    return next(args for found, args in calls(dtype, "cpu", small=True) if found == name)


@pytest.mark.parametrize("dtype", smoke.DTYPES, ids=str)
def test_every_op_of_a_step_is_called(dtype):
    found = {name for name, _ in calls(dtype, "cpu", small=True)}
    assert found == set(launches.OURS) == set(OPS) and set(EXACT) < found


def test_a_machine_that_computes_passes(tmp_path, capsys):
    assert smoke.main([*SMALL, "--small", "--json", str(tmp_path / "smoke.json")]) == 0
    found = json.loads((tmp_path / "smoke.json").read_text())
    assert (
        found["finished"]
        and not found["failures"]
        and {r["dtype"] for r in found["ops"]} == {"float32", "float16", "bfloat16"}
    )
    assert {r["op"] for r in found["ops"]} == set(OPS)
    assert [len(r["losses"]) for r in found["steps"]] == [smoke.STEPS] * 2
    assert smoke.main([*SMALL, "--small", "--each"]) == 0
    assert f"calls of {len(OPS)} ops ran" in capsys.readouterr().out


def broken(monkeypatch, name: str, change) -> None:
    """Let the op's calls go through a link whose results are changed."""
    op, real = OPS[name], dispatch.reference(OPS[name])
    link = dispatch.Implementation("triton", lambda *args: "", lambda *args: change(real(*args)))
    monkeypatch.setitem(smoke.OPS, name, lambda *args: link.run(*args))
    monkeypatch.setattr(smoke.dispatch, "reference", lambda _: real)
    monkeypatch.setattr(smoke.dispatch, "server", lambda _, *args: link)
    assert op is not smoke.OPS[name]


@pytest.mark.parametrize("name, change", [
    ("swiglu", lambda y: y * 1.001), ("swiglu", lambda y: y * float("nan")),
    ("put_rows", lambda dh: dh.roll(1, 0)), ("stable_order", lambda found: (found[0], found[1].flip(0))),
])  # fmt: skip
def test_a_wrong_answer_is_named(monkeypatch, name, change):
    args = call(name)
    broken(monkeypatch, name, lambda out: out)
    assert smoke.check_op(name, args, CPU)["why"] == ""
    broken(monkeypatch, name, change)
    assert "is allowed" in smoke.check_op(name, args, CPU)["why"]


def test_on_a_gpu_triton_must_run_it(monkeypatch):
    args = call("swiglu")
    monkeypatch.setattr(smoke.dispatch, "server", lambda *a: None)
    row = smoke.check_op("swiglu", args, torch.device("cuda"))
    assert row["why"] == "reference runs it, not Triton"


def test_an_op_that_raises_is_one_line(monkeypatch):
    def fails(*args):
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setitem(smoke.OPS, "swiglu", fails)
    monkeypatch.setattr(smoke.dispatch, "server", lambda *a: None)
    monkeypatch.setattr(smoke.dispatch, "reference", lambda op: fails)
    row = smoke.check_op("swiglu", call("swiglu"), CPU)
    assert row["why"] == "failed: RuntimeError: no kernel image"


@pytest.mark.parametrize("fault, why", [
    (lambda out: out[0][3].update(loss=1.0) or out, "step 3 gives"),
    (lambda out: (out[0], [w + 1e-7 for w in out[1]]), "the weights after the steps differ"),
])  # fmt: skip
def test_steps_that_differ_are_named(monkeypatch, fault, why):
    real, runs = smoke.trained, []

    def trained(runner, config, device, **options):
        steps, outcomes, weights = real(runner, config, device, **options)
        runs.append(runner)
        return (steps, *(fault((outcomes, weights)) if len(runs) == 2 else (outcomes, weights)))

    config = settings.load("configs/tiny.yaml", SMALL)
    monkeypatch.setattr(smoke, "trained", trained)
    assert why in smoke.check_steps(config, CPU)["why"]
    assert smoke.check_steps(config, CPU)["why"] == ""


def test_a_graph_that_is_not_captured_is_named(monkeypatch):
    """Where the device passes for a GPU and both runs are made on the CPU, which captures nothing."""
    real = smoke.trained
    monkeypatch.setattr(
        smoke, "trained", lambda runner, config, device, **options: real(runner, config, CPU, **options)
    )
    row = smoke.check_steps(settings.load("configs/tiny.yaml", SMALL), torch.device("cuda"))
    assert row["why"] == "the graph is not captured: CUDA graphs need a GPU"


@pytest.mark.parametrize("after", [0, 3])
def test_a_run_that_is_killed_leaves_the_checks_that_it_made(monkeypatch, tmp_path, after):
    rows = []

    def check_op(name, args, device):
        if len(rows) == after:
            raise KeyboardInterrupt
        rows.append({"op": name, "dtype": "float32", "why": "its error" if len(rows) == 1 else ""})
        return rows[-1]

    monkeypatch.setattr(smoke, "check_op", check_op)
    file = tmp_path / "smoke.json"
    with pytest.raises(KeyboardInterrupt):
        smoke.main([*SMALL, "--small", "--json", str(file)])
    assert file.exists() == bool(after)
    if after:
        found = json.loads(file.read_text())
        assert not found["finished"] and found["ops"] == rows and not found["steps"]
        assert found["failures"] == [f"{rows[1]['op']}, float32: its error"] and found["versions"]
