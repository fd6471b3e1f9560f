"""Checkpoints: damage is named, and a sound one loads to the same bits."""

import json
import resource
import shutil
import subprocess
import sys

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from tdlm_fast import config as settings
from tdlm_fast import evaluate, train
from tdlm_fast.runs import checkpoint, files
from tdlm_fast.runs.folder import owner_of
from tests.running import TINY, state_of

pytestmark = pytest.mark.slow


def rewrite(file, state=None, drop=(), **about):
    """The checkpoint with other metadata and without some tensors, as an older or a foreign program may leave it."""
    with safe_open(file, "pt") as f:
        tensors = {k: f.get_tensor(k) for k in f.keys() if not k.startswith(tuple(drop))}
        about = {"state": f.metadata()["state"] if state is None else json.dumps(state)} | about
    save_file(tensors, file, about)


def test_a_flipped_bit_is_seen(trained, capsys):
    folder, args = trained
    for name in (files.BEST, files.LAST):
        file = folder / name
        whole = file.read_bytes()
        changed = bytearray(whole)
        changed[-4321] ^= 0x40
        for damaged in (bytes(changed), whole.replace(rb"\"step\": 2", rb"\"step\": 3")):
            assert damaged != whole
            file.write_bytes(damaged)
            option = ["--checkpoint", file.stem]
            assert evaluate.main([str(folder), *option, "--device", "cpu"]) == 2
            error = capsys.readouterr().err
            assert f"{file} is damaged (its contents do not match its checksum)" in error
        file.write_bytes(whole)
        rewrite(file)  # without a checksum, as older ones
        assert evaluate.main([str(folder), *option, "--device", "cpu", "--max-samples", "2"]) == 0


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(drop=("exp_avg.",)), "holds no moments of AdamW for"),
        (dict(drop=("exp_avg_sq.", "exp_avg.")), "holds no moments of AdamW for"),
        (dict(state={}), "its state has no step, best, tokens, loss_tokens, seconds, corpus_hash"),
        (dict(state={"step": 2, "best": 1.0}), "its state has no tokens, loss_tokens, seconds, corpus_hash"),
        (dict(state=[]), "its state has no step"),
    ],
)
def test_a_checkpoint_that_cannot_be_resumed_is_named(trained, capsys, change, says):
    folder, args = trained
    (folder / "summary.json").unlink()
    rewrite(folder / files.LAST, **change)
    assert train.main([TINY, *args, "--resume"]) == 2
    error = capsys.readouterr().err
    assert f"{folder / files.LAST}" in error and says in error and "other checkpoint" not in error


def test_a_full_disk_leaves_the_last_checkpoint(tiny, tmp_path):
    folder = tmp_path / "run"
    assert train.main([TINY, *tiny, "train.max_steps=5"]) == 0
    (folder / "summary.json").unlink()

    def limit():  # a file of more than 100 kB fails as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [sys.executable, "-m", "tdlm_fast.train", TINY, *tiny, "train.max_steps=5", "--resume"]
    state = state_of(folder / files.LAST) | {"best": None, "evaluated": 0}
    rewrite(folder / files.LAST, state)
    last = (folder / files.LAST).read_bytes()
    ended = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "best.safetensors cannot be written (" in ended.stderr and "the one before it is intact" in ended.stderr
    assert (folder / files.LAST).read_bytes() == last and not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("damage", [b"", None, b"no checkpoint"])
def test_a_best_that_is_gone_is_made_again(trained, capsys, damage):
    folder, args = trained
    whole = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").unlink()
    (folder / files.BEST).unlink() if damage is None else (folder / files.BEST).write_bytes(damage)
    assert train.main([TINY, *args, "--resume"]) == 0
    assert "the best is sought again from here" in capsys.readouterr().err
    assert json.loads((folder / "summary.json").read_text())["test"] == whole["test"]


def test_a_checksum_whose_name_is_damaged_is_not_a_missing_one(trained):
    """Two flipped bits: one in the name of the checksum, one in a weight. Old checkpoints hold the key state alone."""
    folder, _ = trained
    file = folder / files.LAST
    data = bytearray(file.read_bytes().replace(b'"sha256"', b'"rha256"'))
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(settings.ConfigError, match="its contents do not match its checksum"):
        checkpoint.read(file)


def test_checkpoints_save_and_load_to_the_same_digest(tmp_path, trained):
    folder, _ = trained
    with safe_open(folder / files.LAST, "pt") as f:
        tensors, about = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
    assert about["sha256"] == checkpoint.digest(tensors, about["state"])
    swapped = dict(zip(tensors, reversed(tensors.values()), strict=True))
    assert checkpoint.digest(swapped, about["state"]) != about["sha256"] != checkpoint.digest(tensors, "")


@pytest.mark.parametrize(
    "other, reason",
    [
        (["seed=7"], "seed 7, not 42"),
        (["objective=autoregressive"], "of other settings"),
        (["optim.lr=1e-3"], "of other settings"),
        (["seed=7", "optim.lr=1e-3"], "seed 7, not 42"),
        (["data.path={}"], "of another text"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_name(trained, corpus, tmp_path, capsys, other, reason):
    folder, args = trained
    (tmp_path / "other.txt").write_text(corpus.read_text().replace("mill", "hill"))
    other = [key.format(tmp_path / "other.txt") for key in other]
    assert train.main([TINY, *args, *other, f"run.dir={tmp_path / 'other'}"]) == 0
    (folder / "summary.json").unlink()
    for name in (files.BEST, files.LAST):
        own = (folder / name).read_bytes()
        shutil.copy(tmp_path / "other" / name, folder / name)
        before = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
        capsys.readouterr()
        assert train.main([TINY, *args, "--resume"]) == 2
        error = capsys.readouterr().err
        message = f"error: {folder / name} belongs to another run ({reason}); restore this run's own, or "
        assert error.splitlines()[-1].startswith(message)
        assert {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()} == before
        assert evaluate.main([str(folder), "--checkpoint", name.stem, "--device", "cpu"]) == 2
        says = "the text is not what" if "text" in reason else message
        assert says in capsys.readouterr().err
        (folder / name).write_bytes(own)
    assert train.main([TINY, *args, "--resume"]) == 0


def test_checkpoints_that_name_no_owner_load(trained):
    """Those of 0.1.0 and 0.2.0."""
    folder, args = trained
    whole = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").unlink()
    for name in (files.BEST, files.LAST):
        state = state_of(folder / name)
        assert state["seed"] == 42 and len(state["settings_hash"]) == 16 and state["step"] == 2
        rewrite(folder / name, {k: v for k, v in state.items() if k not in ("seed", "settings_hash")})
    assert evaluate.main([str(folder), "--device", "cpu", "--max-samples", "2"]) == 0
    assert train.main([TINY, *args, "--resume"]) == 0
    assert json.loads((folder / "summary.json").read_text())["test"] == whole["test"]


def test_settings_that_decide_no_weights_keep_a_checkpoint():
    config = settings.load(TINY)
    free = ["eval.max_samples=2", "train.save_every=3", "device=cpu", "data.path=x", "run.dir=y"]
    assert owner_of(settings.load(TINY, free)) == owner_of(config)
    for key in ("seed=1", "model.width=32", "optim.warmup=0.1", "data.layout=packed", "train.max_steps=7"):
        assert owner_of(settings.load(TINY, [key])) != owner_of(config)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc/self/maps")
def test_a_resumed_run_does_not_keep_its_checkpoint_mapped(trained):
    """Windows replaces no file that is mapped, and the next checkpoint replaces this one."""
    from pathlib import Path

    from tdlm_fast.data.tokenizer import Bytes
    from tdlm_fast.model import build_model
    from tdlm_fast.training.optimizer import adamw

    config = settings.load(trained[0] / "config.yaml")
    model = build_model(config, Bytes())
    optimizer = adamw(model, config.optim)
    file = trained[0] / "checkpoints" / "last.safetensors"
    assert checkpoint.load(file, model, optimizer)["step"] == 2 and optimizer.state
    assert str(file) not in Path("/proc/self/maps").read_text()
