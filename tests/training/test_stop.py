"""Ctrl-C, SIGTERM and kill -9: what a stopped run keeps."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tdlm_fast import train
from tdlm_fast.runs import checkpoint, files, load
from tdlm_fast.training import logger, trainer
from tests.running import ENDLESS, HANG_S, TINY, begun, metrics, state_of, wait_until

pytestmark = pytest.mark.slow


def test_a_stop_is_saved_before_it_is_scored_and_leaves_no_trace_in_the_run(tiny, tmp_path, monkeypatch, capfd):
    folder, real, scores = tmp_path / "run", logger.Log.progress, trainer.both

    def progress(self, step, entry):  # when the loop has decided already that it does not save at this step
        if step == 7:
            os.kill(os.getpid(), signal.SIGINT)
        real(self, step, entry)

    evaluated = []

    def both(*args, **kw):
        evaluated.append(state_of(folder / files.LAST)["step"] if (folder / files.LAST).exists() else None)
        return scores(*args, **kw)

    monkeypatch.setattr(logger.Log, "progress", progress)
    monkeypatch.setattr(trainer, "both", both)
    args = [*tiny, "eval.every=100", "eval.text=0"]
    assert train.main([TINY, *args]) == 130
    output = capfd.readouterr()
    assert "stopping after this step" in output.err and "stopped at step 7 of 30; saved" in output.err
    assert "weights of step 7" in output.out and "stopped early; to resume" in output.out
    last, best = (state_of(folder / name) for name in (files.LAST, files.BEST))
    # The score of a stop is no evaluation of the run: which weights are the best must not hang on when it came.
    assert evaluated == [None] and last["step"] == 7 and best["step"] == 0 and last["best"] == best["best"]
    assert json.loads((folder / "summary.json").read_text())["best_step"] == 7
    monkeypatch.undo()
    assert load.load_run(folder, device="cpu")[3]["step"] == 7
    assert train.main([TINY, *args, "--resume"]) == 0
    assert train.main([TINY, *args, f"run.dir={tmp_path / 'whole'}"]) == 0
    a, b = ({e["step"]: e["loss"] for e in metrics(f) if "loss" in e} for f in (folder, tmp_path / "whole"))
    assert a == b and len(a) == 30
    assert [e["step"] for e in metrics(folder) if "valid" in e] == [0, 30]
    a, b = (json.loads((f / "summary.json").read_text()) for f in (folder, tmp_path / "whole"))
    assert all(a[key] == b[key] for key in ("valid", "test", "best_step", "tokens"))


def test_a_stop_in_the_final_evaluation_loses_nothing(tiny, tmp_path, capsys):
    folder, args = tmp_path / "a run", [*tiny, "train.max_steps=2", "eval.text=0", f"run.dir={tmp_path / 'a run'}"]
    with begun([*args, f"eval.max_samples={ENDLESS}", "eval.target_stderr=0"], "step 2  valid") as process:
        # the final evaluation begins after that
        wait_until(lambda: checkpoint.peek(folder / files.LAST).get("evaluated") == 2, process)
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=HANG_S)
    assert process.returncode == 130 and "Traceback" not in error and len(out.splitlines()) == 1
    assert "interrupted; the last checkpoint is intact; to resume: " in error
    resume = shlex.split(error.partition("to resume: ")[2])
    assert shutil.which(resume[0]) and resume[1:3] == ["-m", "tdlm_fast.train"] and resume[-1] == "--resume"
    before = metrics(folder)
    assert train.main([*resume[3:], "eval.max_samples=4"]) == 0 and metrics(folder) == before
    printed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("sample "))
    words = subprocess.run(printed.removeprefix("sample "), shell=True, capture_output=True, text=True)
    assert words.returncode == 0 and words.stdout.startswith("The ")  # as printed, outside an activated environment


@pytest.mark.parametrize("how", ["a stop", "two stops", "kill -9"])
@pytest.mark.parametrize("place", ["diagnose", "record", "say", "save", "generate"])
def test_a_stop_within_the_last_evaluation_neither_loses_nor_doubles_it(tiny, tmp_path, monkeypatch, place, how):
    """Before its figures are recorded, between its record, its line, its best weights and its text, and within them."""
    args = [*tiny, "train.max_steps=2", "eval.text=2"]
    assert train.main([TINY, *args, f"run.dir={tmp_path / 'whole'}"]) == 0
    folder, owner = tmp_path / "run", {"record": logger.Log, "say": logger.Log, "save": checkpoint}.get(place, trainer)
    real, calls = getattr(owner, place), []

    def stopped(*a, **kw):
        result = real(*a, **kw)
        entry, saved = metrics(folder)[-1] if (folder / "metrics.jsonl").read_text() else {}, folder / files.LAST
        within = entry.get("step") == 2 and ("valid" in entry) == (place != "diagnose")
        if within and not calls and checkpoint.peek(saved).get("step") == 2:
            calls.append(place)
            if how == "kill -9":  # as far as its files go
                raise SystemExit(9)
            for _ in range(1 + (how == "two stops")):
                os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(owner, place, stopped)
    ending = pytest.raises(SystemExit) if how == "kill -9" else contextlib.nullcontext()
    with ending:
        assert train.main([TINY, *args]) == 130
    assert calls
    monkeypatch.undo()
    assert train.main([TINY, *args, "--resume"]) == 0
    evaluations, whole = ([e for e in metrics(f) if "valid" in e] for f in (folder, tmp_path / "whole"))
    assert [e["step"] for e in evaluations] == [0, 2]
    assert [e["valid"] for e in evaluations] == [e["valid"] for e in whole]
    assert (folder / "samples.txt").read_bytes() == (tmp_path / "whole" / "samples.txt").read_bytes()
    assert json.loads((folder / "summary.json").read_text())["best_step"] == 2


@pytest.mark.parametrize("step, evaluations", [(0, [0, 30]), (10, [0, 10, 20, 30]), (30, [0, 10, 20, 30])])
def test_a_best_that_is_gone_costs_no_evaluation(tiny, tmp_path, monkeypatch, step, evaluations):
    """The run stops behind the evaluation of `step`, and its best weights are lost."""
    folder, real = tmp_path / "run", trainer.Trainer.evaluate
    args = [*tiny, "eval.text=1", *(["eval.every=100"] if not step else [])]

    def evaluate(self):
        real(self)
        if self.progress.step == step:
            self.stop.asked = True

    monkeypatch.setattr(trainer.Trainer, "evaluate", evaluate)
    assert train.main([TINY, *args]) == 130
    monkeypatch.undo()
    assert state_of(folder / files.LAST)["step"] == step
    (folder / files.BEST).unlink()
    assert train.main([TINY, *args, "--resume"]) == 0
    assert [e["step"] for e in metrics(folder) if "valid" in e] == evaluations
    headings = [line for line in (folder / "samples.txt").read_text().splitlines() if line.startswith("--- step ")]
    assert headings == [f"--- step {at}" for at in evaluations]


def test_a_comparison_killed_outright_takes_its_run_with_it(tiny, tmp_path, start):
    if sys.platform != "linux":
        pytest.skip("the death of a parent is signalled on Linux alone")
    args = [a for a in tiny if not a.startswith("run.dir=")]
    command = [sys.executable, "-m", "tdlm_fast.compare", TINY, *args, f"eval.samples={ENDLESS}", "--out", tmp_path]
    process, folder = start(command, stderr=subprocess.DEVNULL), tmp_path / "diffusion-seed42"
    wait_until((folder / "config.yaml").exists, process)
    process.kill()
    process.wait()
    deadline = time.monotonic() + HANG_S
    while (folder / "lock").exists():  # the run ends in its own way, and so removes its lock
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_every_signal_that_ends_a_run_saves_it_first(tiny, tmp_path, monkeypatch, name, capfd):
    folder, real, number = tmp_path / "run", logger.Log.progress, getattr(signal, name)

    def progress(self, step, entry):
        if step == 7:
            os.kill(os.getpid(), number)
        real(self, step, entry)

    before = signal.signal(number, lambda *_: pytest.fail("the run does not handle it"))
    try:
        monkeypatch.setattr(logger.Log, "progress", progress)
        assert train.main([TINY, *tiny, "eval.text=0"]) == 130
        assert signal.getsignal(number) not in (signal.SIG_DFL, signal.SIG_IGN)  # given back
    finally:
        signal.signal(number, before)
    assert "stopped at step 7 of 30; saved" in capfd.readouterr().err
    assert state_of(folder / files.LAST)["step"] == 7


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_a_signal_that_is_ignored_stays_ignored(tiny, tmp_path, monkeypatch, name):
    """nohup: the run lives on when its terminal is closed."""
    real, number = logger.Log.progress, getattr(signal, name)

    def progress(self, step, entry):
        os.kill(os.getpid(), number)
        real(self, step, entry)

    before = signal.signal(number, signal.SIG_IGN)
    try:
        monkeypatch.setattr(logger.Log, "progress", progress)
        assert train.main([TINY, *tiny, "train.max_steps=3", "eval.text=0"]) == 0
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
