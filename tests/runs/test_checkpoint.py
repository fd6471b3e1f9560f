"""Checkpoints: damage is named, and a sound one loads to the same bits."""

import json
import resource
import subprocess
import sys

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from tdlm_fast import evaluate, train
from tdlm_fast.runs import checkpoint, files
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


def test_checkpoints_save_and_load_to_the_same_digest(tmp_path, trained):
    folder, _ = trained
    with safe_open(folder / files.LAST, "pt") as f:
        tensors, about = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()
    assert about["sha256"] == checkpoint.digest(tensors, about["state"])
    swapped = dict(zip(tensors, reversed(tensors.values()), strict=True))
    assert checkpoint.digest(swapped, about["state"]) != about["sha256"] != checkpoint.digest(tensors, "")
