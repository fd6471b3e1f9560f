"""What a run writes while it trains, on a terminal, in metrics.jsonl and to Weights & Biases."""

import json
import math
import os
import threading

import pytest

from tdlm_fast import config as settings
from tdlm_fast import train
from tdlm_fast.runs import files
from tdlm_fast.runs.appended import Appended
from tdlm_fast.training import logger

pytestmark = pytest.mark.slow


def test_what_is_no_number_is_written_as_null(tmp_path):
    def strict(constant):
        raise AssertionError(constant)

    with logger.Log(Appended(tmp_path / "metrics.jsonl"), settings.Config(), 2, 0) as written:
        written.record({"step": 1, "loss": math.nan, "rest": [1.5, {"a": math.inf}]})
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=strict)
    assert line == {"step": 1, "loss": None, "rest": [1.5, {"a": None}]}
    files.write_json(tmp_path / "s.json", {"a": (math.nan, 2)})
    assert json.loads((tmp_path / "s.json").read_text(), parse_constant=strict) == {"a": [None, 2]}


@pytest.mark.parametrize("lines, columns, shows", [(24, 80, True), (24, 0, False), (0, 80, False)])
def test_a_terminal_of_no_size_gets_lines(lines, columns, shows):
    import fcntl
    import struct
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    with open(ours, "rb"), open(theirs, "w") as terminal:
        assert logger._shows_a_bar(terminal) == shows


def test_weights_and_biases_needs_no_account_and_never_stops_a_run(tiny, tmp_path, monkeypatch, capsys):
    wandb = pytest.importorskip("wandb", reason="wandb is an extra: pip install -e .[wandb]")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert train.main(["configs/tiny.yaml", *tiny, "train.max_steps=2", "run.wandb=offline"]) == 0
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(wandb, "init", unreachable)
    for key in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for key, message in (("", "no account here"), ("x" * 40, "no route to host")):
        monkeypatch.setenv("WANDB_API_KEY", key)
        other = f"run.dir={tmp_path / message[:4]}"
        assert train.main(["configs/tiny.yaml", *tiny, "train.max_steps=2", "run.wandb=online", other]) == 0
        assert f"Weights & Biases is off: {message}" in capsys.readouterr().err


def test_weights_and_biases_gets_the_results_and_cannot_hang_a_run(tiny, monkeypatch, capsys):
    wandb = pytest.importorskip("wandb", reason="wandb is an extra: pip install tdlm_fast[wandb]")
    events, over = [], threading.Event()

    class Run:
        summary = {}

        def log(self, entry, step):
            events.append(step)

        def finish(self):
            events.append("finish")
            over.wait(60)

    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setattr(wandb, "init", lambda **_: Run())
    monkeypatch.setattr("tdlm_fast.training.logger.WANDB_S", -9.5)
    assert train.main(["configs/tiny.yaml", *tiny, "train.max_steps=2", "run.wandb=online"]) == 0
    over.set()
    assert "has not finished" in capsys.readouterr().err
    assert events == [0, 1, 2, 2, "finish"] and Run.summary["test"]["nats_per_token"] > 0
