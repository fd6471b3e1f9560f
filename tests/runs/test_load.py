"""A trained run is loaded from its folder, and so is the text that it was trained on."""

from dataclasses import replace

import pytest

from tdlm_fast import config as settings
from tdlm_fast import train
from tdlm_fast.runs import checkpoint, load


def test_a_damaged_checkpoint_is_named(tiny, tmp_path):
    folder = tmp_path / "run"
    assert train.main(["configs/tiny.yaml", *tiny, "train.max_steps=2"]) == 0
    best = folder / "checkpoints" / "best.safetensors"
    best.write_bytes(best.read_bytes()[:-100])
    with pytest.raises(settings.ConfigError, match="best.safetensors is damaged"):
        load.load_run(folder, "best", "cpu")
    with pytest.raises(settings.ConfigError, match="no such checkpoint"):
        checkpoint.load(folder / "absent", None)


def test_another_text_than_the_run_was_trained_on_is_refused(sharp_run, tmp_path):
    config = settings.load(sharp_run / "config.yaml")
    state = checkpoint.peek(sharp_run / "checkpoints" / "last.safetensors")
    paragraphs = load.trained_text(sharp_run, config, state)
    packed = load.trained_text(sharp_run, config, state, "packed")
    assert paragraphs.hash == packed.hash == state["corpus_hash"]
    assert paragraphs.splits["test"].words is None and packed.splits["test"].words > 0  # only packed rows hold it whole
    (tmp_path / "other.txt").write_text("another text altogether\n" * 400)
    other = replace(config, data=replace(config.data, path=str(tmp_path / "other.txt")))
    with pytest.raises(settings.ConfigError, match=f"the text is not what {sharp_run} was trained on"):
        load.trained_text(sharp_run, other, state)


def test_an_empty_path_is_not_taken_for_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(settings.ConfigError, match="no run folder was given; give the path of one"):
        load.load_run("")
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(settings.ConfigError, match="^. is not a run folder: it holds no config.yaml$"):
        load.load_run(".")
