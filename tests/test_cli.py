"""How a verb ends when its output is closed or full, and where it prints that it has started."""

import os
import shlex
import subprocess
import sys

import pytest

from tdlm_fast import __main__ as entry
from tdlm_fast.cli import announce


@pytest.mark.parametrize("terminal", [True, False])
def test_the_start_is_announced_on_a_terminal_only(terminal, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    announce("loading a run")
    assert capsys.readouterr() == ("", "loading a run\n" * terminal)


@pytest.mark.parametrize(
    "verb, words",
    [
        ("train", ["~/absent"]), ("memory", ["~/absent"]), ("sample", ["~/absent"]), ("table", ["~/absent"]),
        ("check", ["~/absent"]), ("evaluate", ["~/absent"]), ("compare", ["~/absent"]),
        ("compare", ["--from", "~/absent", "~/absent"]), ("compare", ["configs/tiny.yaml", "--arms", "~/absent"]),
        ("compare", ["configs/tiny.yaml", "--out", "~/file"]),
        ("evaluate", ["absent", "--tasks", "piqa", "--data", "~/absent"]),
    ],
)  # fmt: skip
def test_every_verb_looks_for_a_tilde_in_the_home_folder(verb, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").write_text("")
    assert entry.main([verb, *words]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path) in error and "~" not in error and error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.slow
def test_the_end_of_a_run_reaches_whatever_reads_it(trained):
    folder, args = trained
    prompt = ["-m", "tdlm_fast.sample", str(folder), "--tokens", "8", "--device", "cpu"]
    ended = subprocess.run(
        [sys.executable, "-m", "tdlm_fast.evaluate", str(folder), "--device", "cpu"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0 and " ? " in ended.stdout and not ended.stderr
    for closed in (">&-", "2>&-"):
        line = f"{shlex.join([sys.executable, *prompt])} {closed}"
        ended = subprocess.run(line, shell=True, capture_output=True, text=True)
        assert ended.returncode == 0 and "Traceback" not in ended.stderr
    with open("/dev/full", "w") as full:
        ended = subprocess.run([sys.executable, *prompt], stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 1
    assert ended.stderr.endswith("error: the output cannot be written: No space left on device\n")
    ended = subprocess.run(
        f"{shlex.join([sys.executable, *prompt])} | true", shell=True, stderr=subprocess.PIPE, text=True
    )
    assert "Traceback" not in ended.stderr and "Exception" not in ended.stderr
