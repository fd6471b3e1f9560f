"""A file is whole, or as it was."""

import builtins
import errno
import io
import json
import math
import os
import string

import pytest

from tdlm_fast import evaluate, train
from tdlm_fast.comparison import records
from tdlm_fast.config import ConfigError
from tdlm_fast.runs import files
from tests.running import TINY


def test_a_file_is_whole_or_as_it_was(tmp_path):
    def fails(path):
        path.write_text("half")
        raise OSError("no space")

    files.write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(OSError):
        files.write_beside(tmp_path / "a.json", fails)
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1} and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_every_file_of_a_run_has_the_mode_of_the_umask(tiny, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        assert train.main([TINY, *tiny, "train.max_steps=1"]) == 0
    finally:
        os.umask(before)
    written = [f for folder in ("run", "cache") for f in (tmp_path / folder).rglob("*") if f.is_file()]
    assert {f.name for f in written} >= {"best.safetensors", "last.safetensors", "summary.json", "samples.txt"}
    assert {f.name: oct(f.stat().st_mode & 0o777) for f in written} == {f.name: oct(mode) for f in written}


@pytest.fixture
def shut(monkeypatch):
    """Make the files of one name unreadable; chmod would not, for root."""

    def close(name, number=errno.EACCES):
        def opened(path, *args, **kw):
            if str(path).endswith(name):
                raise OSError(number, os.strerror(number), str(path))
            return real(path, *args, **kw)

        real = io.open
        monkeypatch.setattr(builtins, "open", opened)
        monkeypatch.setattr(io, "open", opened)

    return close


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors", "metrics.jsonl", "samples.txt"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_read_is_not_called_damaged(trained, shut, monkeypatch, capsys, name, number):
    folder, args = trained
    (folder / "samples.txt").write_text("")
    (folder / "summary.json").unlink()
    before = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    file = next(folder.rglob(name))
    capsys.readouterr()
    shut(name, number)
    assert train.main([TINY, *args, "--resume"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"error: {file} cannot be read ({os.strerror(number)}); see its permissions and its disk"
    if name.endswith("safetensors"):
        assert evaluate.main([str(folder), "--checkpoint", file.stem, "--device", "cpu"]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == error
    monkeypatch.undo()
    assert all(f.read_bytes() == content for f, content in before.items() if f != file)


def test_figures_and_settings_that_cannot_be_read_are_named(trained, shut, monkeypatch, capsys):
    folder, args = trained
    shut("summary.json")
    with pytest.raises(ConfigError, match="summary.json cannot be read .Permission denied"):
        records.read(folder)
    capsys.readouterr()
    assert train.main([TINY, *args, "--resume"]) == 2
    assert f"{folder / 'summary.json'} cannot be read (Permission denied)" in capsys.readouterr().err
    monkeypatch.undo()
    shut("config.yaml")
    assert evaluate.main([str(folder), "--device", "cpu"]) == 2
    assert f"{folder / 'config.yaml'} cannot be read (Permission denied)" in capsys.readouterr().err


def test_no_character_of_figures_can_change_unnoticed(tmp_path):
    file, value = tmp_path / "f.json", {"a": [1, 2.5, None], "b": {"c": "ü\n", "d": 1e-300}, "e": (1, math.inf)}
    files.write_figures(file, value)
    assert files.figures(file) == {"a": [1, 2.5, None], "b": {"c": "ü\n", "d": 1e-300}, "e": [1, None]}
    text, seen = file.read_text(), 0
    for i, old in enumerate(text):
        if old in string.digits:
            seen += 1
            file.write_text(f"{text[:i]}{(int(old) + 1) % 10}{text[i + 1 :]}")
            with pytest.raises(ConfigError, match="f.json is damaged .*; remove it, and it is made again"):
                files.figures(file)
            assert files.figures(file, as_written=False)
    assert seen > 40
    file.write_text('{"a": 1}')  # as older versions wrote it
    assert files.figures(file) == {"a": 1}


def test_a_line_that_was_changed_is_damaged():
    line = files.line({"key": "k", "x": [0.1, 2]})
    assert files.read_line(line) == {"key": "k", "x": [0.1, 2]} == files.read_line('{"key": "k", "x": [0.1, 2]}')
    for wrong in (line.replace("0.1", "0.2"), line.replace("k", "l", 1), line[:-9], "[1]", "[" * 100_000):
        with pytest.raises(ValueError):
            files.read_line(wrong)
