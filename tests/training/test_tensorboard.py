"""Events of TensorBoard hold the figures of metrics.jsonl, also of a run that was resumed."""

import json

import pytest

from tdlm_fast import train
from tdlm_fast.config import Config, ConfigError, build
from tdlm_fast.training import tensorboard

MISSING = "tensorboard is an extra: pip install -e .[tensorboard]"


def test_numbers_are_found_in_nested_figures():
    figures = {"loss": 1, "ok": True, "text": "a", "nan": float("nan"), "valid": {"nats": 2.5, "by": {"t": 3}}}
    assert dict(tensorboard.scalars(figures)) == {"loss": 1, "valid/nats": 2.5, "valid/by/t": 3}


def test_a_missing_package_is_one_line_and_leaves_no_folder(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)  # as Python marks what cannot be imported
    tensorboard.check_tensorboard(Config())
    with pytest.raises(ConfigError, match="run.tensorboard=true needs the package tensorboard .*: pip install"):
        tensorboard.check_tensorboard(build({"run.tensorboard": True}))
    assert train.main(["configs/tiny.yaml", "run.tensorboard=true", f"run.dir={tmp_path / 'run'}"]) == 2
    assert "pip install tensorboard" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own dependencies
def test_the_events_are_the_figures_of_a_resumed_run(tiny, tmp_path):
    pytest.importorskip("tensorboard", reason=MISSING)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    keys = [*tiny, "train.log_every=1", "run.tensorboard=true", "optim.schedule=constant"]
    assert train.main(["configs/tiny.yaml", *keys, "train.max_steps=2"]) == 0
    assert train.main(["configs/tiny.yaml", *keys, "train.max_steps=2", "--extend", "4"]) == 0
    run = tmp_path / "run"
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert set(losses) == {1, 2, 3, 4}
    assert {e.step: e.value for e in events.Scalars("loss")} == pytest.approx(losses)
    summary = json.loads((run / "summary.json").read_text())
    final = events.Scalars("final/test/nats_per_token")[-1]
    assert (final.step, final.value) == (4, pytest.approx(summary["test"]["nats_per_token"]))
