"""A trained run is loaded from its folder, and so is the text that it was trained on."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from tdlm_fast import check, evaluate, table, train
from tdlm_fast import config as settings
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


@pytest.mark.slow
@pytest.mark.parametrize("run_dir", ["runs/here", "../runs/beside"])
def test_a_relative_path_of_the_text_is_found_from_any_folder(tiny, corpus, tmp_path, monkeypatch, capsys, run_dir):
    config, home = Path("configs/tiny.yaml").resolve(), tmp_path / "home"
    (home / "text").mkdir(parents=True)
    lines = corpus.read_text().splitlines(keepends=True)
    (home / "text" / "mine.txt").write_text("".join(lines[:100]))  # it is evaluated seven times
    monkeypatch.chdir(home)
    args = [*tiny, "train.max_steps=2", "eval.text=0", "data.path=text/mine.txt", f"run.dir={run_dir}"]
    assert train.main([str(config), *args]) == 0
    folder = Path(run_dir).resolve()
    options = ["--device", "cpu", "--json", "--max-samples", "2"]
    capsys.readouterr()
    assert evaluate.main([run_dir, *options]) == 0
    figures = json.loads(capsys.readouterr().out)
    state = checkpoint.peek(folder / "checkpoints" / "best.safetensors")
    assert settings.load(folder / "config.yaml").data.path == "text/mine.txt"  # as it was typed
    assert str(tmp_path) not in json.dumps(state) and not os.path.isabs(state["path_from_run"])
    (tmp_path / "elsewhere" / "text").mkdir(parents=True)
    (tmp_path / "elsewhere" / "text" / "mine.txt").write_text("another text of this name\n" * 400)
    for place in (tmp_path, tmp_path / "elsewhere", folder):
        monkeypatch.chdir(place)
        for run in (folder, os.path.relpath(folder)):
            capsys.readouterr()
            assert evaluate.main([str(run), *options]) == 0
            assert json.loads(capsys.readouterr().out) == figures | {"run": Path(run).name}
    monkeypatch.chdir(tmp_path)
    assert table.main([str(folder), "--sequences", "2", "--draws", "2", "--device", "cpu"]) == 0
    assert check.main([str(folder), "--sequences", "2", "--device", "cpu"]) in (0, 1)
    assert "does not exist" not in capsys.readouterr().err
    (home / "text" / "mine.txt").unlink()
    assert evaluate.main([str(folder), *options]) == 2 and "text/mine.txt does not exist" in capsys.readouterr().err
