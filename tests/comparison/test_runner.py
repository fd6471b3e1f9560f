"""Which runs are trained, kept or refused, and that only the objective differs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tdlm_fast import compare
from tdlm_fast import config as settings
from tdlm_fast.comparison import arms, runner
from tdlm_fast.runs import checkpoint
from tdlm_fast.training import session, step

from .conftest import SMALL, without_folder

pytestmark = pytest.mark.slow


def test_a_finished_run_of_other_settings_is_refused(done, corpus, tmp_path, capsys):
    out, command = done
    before = (out / "compare.json").read_text()
    for other, message in (
        ("optim.lr=1e-2", "optim.lr was 0.003, now 0.01"),
        ("model.layers=3", "model.layers was 2, now 3"),
        (f"data.path={tmp_path / 'text'}", f"data.path was '{corpus}', now '{tmp_path / 'text'}'"),
        (f"data.path={tmp_path / 'absent'}", f"{tmp_path / 'absent'} does not exist"),
        ("eval.max_samples=5", "eval.max_samples was 4, now 5"),
    ):
        (tmp_path / "text").write_text("another text altogether\n" * 400)
        capsys.readouterr()
        assert compare.main([*command[:-8], other, *command[-8:]]) == 2
        error = capsys.readouterr().err
        assert message in error and "--out" in error
    assert (out / "compare.json").read_text() == before
    shutil.copytree(corpus, tmp_path / "same") if corpus.is_dir() else shutil.copy(corpus, tmp_path / "same")
    assert compare.main([*command[:-8], f"data.path={tmp_path / 'same'}", *command[-8:]]) == 0  # the text is the same


def test_a_finished_run_of_a_text_that_was_rewritten_is_refused(done, corpus, tmp_path, capsys):
    out, command = done
    text, source = tmp_path / "text.txt", next(c for c in command if c.startswith("data.path="))
    shutil.copy(corpus, text)
    shutil.copytree(out, tmp_path / "out")
    same = [{source: f"data.path={text}", str(out): str(tmp_path / "out")}.get(c, c) for c in command]
    assert compare.main(same) == 0
    for rewritten in (text.read_text()[:-1] + "!", text.read_text() + "one more line\n"):
        text.write_text(rewritten)
        capsys.readouterr()
        assert compare.main(same) == 2
        error = capsys.readouterr().err
        assert "the text is not what" in error.splitlines()[-1] and "--out" in error and "Traceback" not in error


def test_an_arm_that_is_another_is_refused(tmp_path, capsys):
    arm = Path("configs/controls/ar-more-decay.yaml")
    same = tmp_path / arm.name
    same.write_text(arm.read_text().replace("weight_decay: 1.0", "weight_decay: 0.5"))
    command = ["configs/tiny.yaml", "--out", str(tmp_path / "out"), "--arms", str(arm)]
    assert compare.main([*command, str(same)]) == 2 and "the same name as another arm" in capsys.readouterr().err
    assert compare.main([command[0], "optim.weight_decay=0.2", *command[1:]]) == 2
    assert "ar-more-decay.yaml has the same settings with these keys" in capsys.readouterr().err


def test_the_published_settings_are_compared_with_one_command():
    jobs, seed = runner._jobs(Path("configs/published.yaml"), ["data.path=text"], [])
    diffusion, twin = (settings.flatten(settings.load(file, keys)) for file, _, keys in jobs)
    assert arms.differences(diffusion, twin) == ["objective"] and seed == 42
    assert (diffusion["loss_weight"], twin["loss_weight"]) == ("published", "elbo")


def test_only_the_objective_differs(tiny, tmp_path, monkeypatch):
    """What the two trainings really see: weights before the first step, and every batch."""
    seen = {}
    real = step.train_step
    for objective in arms.OBJECTIVES:
        log = seen[objective] = []

        def spy(model, optimizer, loss_of, split, config, log=log, **kw):
            if not log:
                log.append(checkpoint.weights_hash(model))
                log.append([(g["lr"], g["betas"], g["weight_decay"]) for g in optimizer.param_groups])

            def loss(model, x0, **rest):
                log.append((x0.clone(), None if rest["valid"] is None else rest["valid"].clone()))
                return loss_of(model, x0, **rest)

            return real(model, optimizer, loss, split, config, **kw)

        monkeypatch.setattr(step, "train_step", spy)
        keys = [*without_folder(tiny), *SMALL, f"objective={objective}"]
        session.train(settings.load("configs/tiny.yaml", keys), tmp_path / objective, resume=False)
    a, b = seen["diffusion"], seen["autoregressive"]
    assert a[0] == b[0] and a[1] == b[1] and len(a) == len(b) == 26
    for (x, valid), (y, other) in zip(a[2:], b[2:], strict=True):
        assert torch.equal(x, y) and torch.equal(valid, other)
    assert not torch.equal(a[2][0], a[3][0])


def test_diagnostics_do_not_move_training(tiny, tmp_path):
    hashes = set()
    for probe in (0, 4):
        keys = [*without_folder(tiny), *SMALL, f"eval.probe={probe}", f"eval.published={probe}", "train.max_steps=13"]
        session.train(settings.load("configs/tiny.yaml", keys), tmp_path / str(probe), resume=False)
        lines = map(json.loads, (tmp_path / str(probe) / "metrics.jsonl").read_text().splitlines())
        hashes.add(tuple(e["loss"] for e in lines if "loss" in e))
    assert len(hashes) == 1


def test_an_arm_of_other_tokens_is_refused_before_anything_is_trained(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "train", lambda *a: pytest.fail("it trains"))
    for key, value in (("model.seq_len", 16), ("data.layout", "packed"), ("data.path", tmp_path / "other.txt")):
        arm = tmp_path / f"{key}.yaml"
        config = settings.load("configs/tiny.yaml", [*without_folder(tiny), "model.dropout=0", f"{key}={value}"])
        settings.save(config, arm)
        words = [*without_folder(tiny), "--arms", str(arm), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(runner, "keys_of", lambda file, keys, arm=arm: keys if file != arm else [])
        assert compare.main(["configs/tiny.yaml", *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: --arms: configs/tiny.yaml and {arm} would not be scored on the same tokens: ")
        assert f"{key} is " in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "code, error, says",
    [(1, settings.NonFinite, "run did not finish"), (2, SystemExit, "2"), (70, settings.ConfigError, "did not finish")],
)
def test_a_crash_is_no_loss_that_was_not_finite(tmp_path, monkeypatch, code, error, says):
    real = subprocess.Popen

    def ends(command, **kw):
        return real([sys.executable, "-c", f"raise SystemExit({code})"], **kw)

    monkeypatch.setattr(runner.subprocess, "Popen", ends)
    with pytest.raises(error, match=says):  # after 2 it has told its user what to mend
        runner.train(Path("configs/tiny.yaml"), [], tmp_path / "run")
