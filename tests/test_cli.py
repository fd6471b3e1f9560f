"""How a verb ends when its output is closed or full, and where it prints that it has started."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tdlm_fast import __main__ as entry
from tdlm_fast import cli, train
from tdlm_fast.cli import announce
from tdlm_fast.config import ConfigError, NonFinite


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
    for closed, code, says in (
        (">&-", 2, "error: stdout is closed, and the result is only shown there"),
        ("2>&-", 0, ""),
    ):
        line = f"{shlex.join([sys.executable, *prompt])} {closed}"
        ended = subprocess.run(line, shell=True, capture_output=True, text=True)
        assert ended.returncode == code and ended.stderr.startswith(says) and ended.stderr.count("\n") == len(says[:1])
    with open("/dev/full", "w") as full:
        ended = subprocess.run([sys.executable, *prompt], stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 2
    assert ended.stderr.endswith("error: the output cannot be written: No space left on device; write it elsewhere\n")
    ended = subprocess.run(
        f"{shlex.join([sys.executable, *prompt])} | true", shell=True, stderr=subprocess.PIPE, text=True
    )
    assert "Traceback" not in ended.stderr and "Exception" not in ended.stderr


def test_ctrl_c_while_the_modules_of_a_verb_load_is_one_line(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Ctrl:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'tdlm_fast.cli':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Ctrl())\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    words = [sys.executable, "-m", "tdlm_fast.train", "configs/tiny.yaml"]
    ended = subprocess.run(words, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("", "interrupted\n") and ended.returncode in (-signal.SIGINT, 130)


@pytest.mark.parametrize("code", [0, 2])
def test_ctrl_c_after_the_result_changes_nothing(code):
    """Python itself prints a traceback where it is interrupted while it ends."""
    lines = [
        "import atexit, os, signal, sys", "from tdlm_fast import cli",
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)", f"sys.exit(cli.verb(lambda: print('done') or {code}))",
    ]  # fmt: skip
    ended = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "done\n", "")


def test_ctrl_c_while_a_pipe_is_full_is_130():
    """The last of the output waits for the reader of a pipe."""
    lines = [
        "import os, sys", "from tdlm_fast import cli",
        "def full():", "    raise KeyboardInterrupt",
        "os._exit(cli.verb(lambda: setattr(sys.stdout, 'flush', full)))",
    ]  # fmt: skip
    ended = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, "")


@pytest.mark.parametrize("folder, printed", [("-x", "./-x"), ("runs/a", "runs/a"), ("/-x", "/-x")])
def test_a_folder_that_looks_like_an_option_is_printed_as_a_path(folder, printed):
    assert cli.command("sample", Path(folder), "--tokens", 3).endswith(f"tdlm_fast.sample {printed} --tokens 3")


@pytest.mark.parametrize("verb", ["compare", "tune", "sweep"])
def test_an_empty_folder_name_is_refused(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        entry.main([verb, "configs/tiny.yaml", "--out", ""])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: argument --out: it is empty; give a path, or . for the current")


@pytest.mark.parametrize("error, code, says", [
    (ConfigError("seed is x; give a number"), 2, "error: seed is x; give a number"),
    (NonFinite("the loss is not finite"), 1, "error: the loss is not finite"),
    (PermissionError(13, "Permission denied", "a/b"), 2, "error: a/b: Permission denied; see its permissions and its"),
    (MemoryError(), 2, "error: the memory is full (more was asked for); lower --number"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 3000000000 bytes."), 2,
     "error: the memory is full (3.0 GB more were asked for); lower --number"),
    (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.50 GiB."), 2,
     "error: the memory is full (2.50 GiB was asked for); lower --number"),
    (ConfigError("a\nb\x1b[2J: gone"), 2, "error: a\\nb\\x1b[2J: gone"),
    (ValueError("TDLM_CPU_ISA is 'foo'; it must be y"), 2, "error: TDLM_CPU_ISA is 'foo'"),
    (KeyboardInterrupt(), 130, "interrupted; all is kept"),
])  # fmt: skip
def test_a_failure_is_one_line_and_its_exit_code(error, code, says, capsys):
    @cli.exit_codes("all is kept", lower="--number")
    def main(argv=None):
        raise error

    assert main() == code
    out, err = capsys.readouterr()
    assert not out and err.startswith(says) and err.count("\n") == 1


def test_a_fault_of_the_program_shows_itself(capsys):
    @cli.exit_codes()
    def main(argv=None):
        raise KeyError("x")

    stderr = sys.stderr
    try:
        assert cli.verb(main) == cli.FAULT not in (0, 1, 2, 130)
    finally:
        sys.stderr = stderr
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [v for v in entry.VERBS if v not in ("doctor",)])
def test_wrong_words_are_one_line(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        entry.main([verb, "--no-such-option"])
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and not out and err.startswith("error: ") and err.count("\n") == 1 and "--help" in err


@pytest.mark.parametrize("home", ["absent", "empty", "here"])
def test_a_root_and_a_home_folder_are_nobodys_own(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = {"empty": "", "here": str(tmp_path)}.get(home)
    monkeypatch.delenv("HOME") if value is None else monkeypatch.setenv("HOME", value)
    if home == "absent":
        monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user without an entry
    with pytest.raises(ConfigError, match="run.dir is /; give a folder of its own"):
        cli.own_folder(cli.Path("/"), "run.dir")
    for folder in (tmp_path / "runs", tmp_path):
        refused = home == "here" and folder == tmp_path
        with pytest.raises(ConfigError, match="--out is") if refused else contextlib.nullcontext():
            cli.own_folder(folder, "--out")


@pytest.mark.slow
@pytest.mark.parametrize("words", [
    ["evaluate"], ["table"], ["check"], ["sample"], ["compare", "--from"], ["memory", "configs/tiny.yaml"], ["doctor"],
    ["demo"],
], ids=lambda words: words[0])  # fmt: skip
def test_kernels_that_the_machine_does_not_have_are_named_by_every_verb(words, trained):
    folder = str(trained[0])
    runs = [] if words[0] in ("memory", "doctor", "demo") else [folder]
    if words[0] == "compare":
        other = f"{folder}-of-another-seed"
        assert train.main(["configs/tiny.yaml", *trained[1], "seed=7", f"run.dir={other}"]) == 0
        runs = [folder, other, "--out", f"{folder}-out"]
    ended = subprocess.run(
        [sys.executable, "-m", f"tdlm_fast.{words[0]}", *words[1:], *runs], env=os.environ | {"TDLM_CPU_ISA": "foo"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 2 and ended.stderr.splitlines()[-1].startswith("error: TDLM_CPU_ISA is 'foo'; it must")
    assert "Traceback" not in ended.stderr
