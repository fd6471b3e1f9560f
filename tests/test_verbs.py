"""One rule for all verbs, as a table of verbs and failures: an exit code, and one line that names what to mend."""

import argparse
import os
import shutil

import pytest

from tdlm_fast import __main__ as entry
from tdlm_fast import cli, train

pytestmark = pytest.mark.slow

OF_RUNS = {  # the words after a run folder; --out of compare is added
    "evaluate": ["--max-samples", "2"], "evaluate --tasks": ["--tasks", "hellaswag", "--data", "SETS", "--limit", "2"],
    "sample": ["--tokens", "4"], "table": ["--sequences", "2", "--draws", "1"],
    "check": ["--sequences", "2", "--steps", "1"], "compare": ["--sequences", "2", "--draws", "1"],
    "lm-eval": ["--tasks", "own", "--include", "SETS", "--samples", "2"],
}  # fmt: skip
QUESTION = (
    '{"ind": 0, "ctx_a": "the old river", "ctx_b": "it", "activity_label": "a", "label": 0, '
    '"endings": ["runs by", "is", "was", "has"]}\n'
)
TASK = """\
task: own
dataset_path: json
dataset_kwargs: {data_files: {test: SETS/hellaswag_val.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: ctx_a
doc_to_choice: endings
doc_to_target: label
metric_list: [{metric: acc}]
"""  # of lm-evaluation-harness
OF_CONFIGS = {"train": [], "compare": [], "tune": ["--trials", "2"], "memory": []}


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    """Finished runs of both objectives, and their keys."""
    folder = tmp_path_factory.mktemp("verbs")
    keys = [
        f"data.path={folder / 'text.txt'}", "data.tokenizer=bytes", f"data.cache={folder / 'cache'}", "model.width=16",
        "model.inner=24", "model.heads=2", "model.layers=1", "model.seq_len=32", "train.batch_size=8",
        "train.max_steps=4", "train.log_every=1", "eval.every=2", "eval.samples=2", "eval.max_samples=4",
        "eval.published=2", "eval.probe=2", "eval.text=1", "device=cpu",
    ]  # fmt: skip
    shutil.copy(corpus, folder / "text.txt")
    for objective in ("diffusion", "autoregressive"):
        words = [*keys, f"objective={objective}", f"run.dir={folder / objective}"]
        assert train.main(["configs/tiny.yaml", *words]) == 0
    return folder, keys


@pytest.fixture
def copies(runs, tmp_path):
    """Copies of the runs: the folder of the first, which a test breaks, and of the other."""
    for name in ("diffusion", "autoregressive"):
        shutil.copytree(runs[0] / name, tmp_path / name)
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "hellaswag_val.jsonl").write_text(QUESTION * 2)
    (tmp_path / "sets" / "own.yaml").write_text(TASK.replace("SETS", str(tmp_path / "sets")))
    return tmp_path / "diffusion", tmp_path / "autoregressive"


def needs(verb: str) -> None:
    """Skip where the package that a verb runs is missing; what is wrong with a run is named without it."""
    if verb == "lm-eval":
        pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install lm_eval")


def ended(capfd, *words) -> tuple[int, list[str]]:
    """The exit code of a verb in this process, and its lines on stderr."""
    capfd.readouterr()
    try:
        code = entry.main([str(word) for word in words])
    except SystemExit as e:  # argparse
        code = e.code
    return code, capfd.readouterr().err.splitlines()


def words_for(verb: str, run, other) -> list:
    words = [str(run.parent / "sets") if word == "SETS" else word for word in OF_RUNS[verb]]
    name = verb.split()[0]
    if name == "compare":
        return [name, "--from", run, other, "--out", run.parent / "out", *words]
    return [name, run, *words, "--device", "cpu"]


def broken(file, how: str) -> None:
    """Do to a file what disks, editors and people do."""
    if how == "missing":
        file.unlink()
    elif how == "a folder":
        file.unlink()
        file.mkdir()
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif how == "a changed byte":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 4
        file.write_bytes(data)
    elif how == "noise":
        file.write_bytes(b"\xff\xfe\x00{]" * 99)


def gone(run):
    shutil.rmtree(run)


def replaced(run):
    shutil.rmtree(run)
    run.write_text("a file")


def emptied(run):
    shutil.rmtree(run)
    run.mkdir()


@pytest.mark.parametrize("failure", [gone, replaced, emptied], ids=lambda f: f.__name__)
@pytest.mark.parametrize("verb", OF_RUNS)
def test_a_run_that_is_none_is_named(verb, failure, copies, capfd):
    failure(copies[0])
    code, lines = ended(capfd, *words_for(verb, *copies))
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and str(copies[0]) in lines[0]


READS = {  # files of a run, and the verbs that need them
    "config.yaml": OF_RUNS, "summary.json": [verb for verb in OF_RUNS if verb != "check"], "metrics.jsonl": ["compare"],
    "checkpoints/best.safetensors": [verb for verb in OF_RUNS if verb != "compare"],
}  # fmt: skip
HOW = ["missing", "a folder", "empty", "cut", "a changed byte", "noise"]
FINE = {  # what is no failure: without a summary the run is unfinished, and its last weights count
    ("summary.json", "missing", verb) for verb in OF_RUNS if verb != "compare"
}  # fmt: skip


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("file, verb", [(file, verb) for file, verbs in READS.items() for verb in verbs])
def test_a_damaged_file_of_a_run_is_named(verb, file, how, copies, capfd):
    if (file, how, verb) in FINE:
        needs(verb)
    broken(copies[0] / file, how)
    code, lines = ended(capfd, *words_for(verb, *copies))
    if (file, how, verb) in FINE:
        assert code == 0, lines
        return
    errors = [line for line in lines if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and lines[-1] == errors[0], lines
    assert str(copies[0]) in errors[0] and not any("Traceback" in line for line in lines)


@pytest.mark.parametrize("verb", OF_RUNS)
def test_a_sound_run_is_none_of_these(verb, copies, capfd):
    needs(verb)
    code, lines = ended(capfd, *words_for(verb, *copies))
    assert code == 0 and not any(line.startswith("error") for line in lines), lines


@pytest.mark.parametrize("how", ["missing", "a folder", "a changed byte"])
@pytest.mark.parametrize("file", ["metrics.jsonl", "summary.json"])
def test_what_a_check_finds_is_exit_code_1(file, how, copies, capfd):
    """check reads these files to examine them: damage is a result, unless nothing can be read."""
    broken(copies[0] / file, how)
    code = entry.main([str(word) for word in words_for("check", *copies)])
    out, err = capfd.readouterr()
    if file == "summary.json" and how == "missing":
        assert code == 0 and "all checks passed" in out
    elif code == 1:
        assert f"FAIL  {file} is as it was written" in out and not err
    else:
        assert code == 2 and str(copies[0] / file) in err and err.count("\n") == 1


@pytest.mark.parametrize("verb", ["evaluate", "table"])
def test_a_text_that_changed_is_named(verb, runs, copies, capfd):
    text = runs[0] / "text.txt"
    sound = text.read_text()
    try:
        for changed in (sound.replace("river", "rover"), None):
            text.unlink()
            if changed is not None:
                text.write_text(changed)
            code, lines = ended(capfd, *words_for(verb, *copies))
            assert code == 2 and lines[-1].startswith("error: ") and "text" in lines[-1]
            assert sum(line.startswith("error: ") for line in lines) == 1
            text.write_text(sound)
    finally:
        text.write_text(sound)


def keys_for(verb: str, keys: list[str]) -> list[str]:
    """Those keys that the verb does not set itself."""
    return [k for k in keys if verb != "tune" or not k.startswith("train.max_steps")]


WRONG_CONFIGS = {  # words after the verb, and what the line names
    "no file": (["DIR/absent.yaml"], "absent.yaml"), "a folder": (["DIR"], "DIR"),
    "not YAML": (["DIR/noise.yaml"], "noise.yaml"), "a key that is none": (["FILE", "optim.lrr=1"], "optim.lrr"),
    "a key without a value": (["FILE", "optim.lr"], "optim.lr"),
    "a wrong kind": (["FILE", "optim.lr=fast"], "optim.lr"),
    "out of range": (["FILE", "train.batch_size=0"], "train.batch_size"),
    "a wrong choice": (["FILE", "data.tokenizer=letters"], "data.tokenizer"),
    "no text": (["FILE", "data.path=DIR/absent.txt"], "data.path"),
    "an empty text": (["FILE", "data.path=DIR/empty.txt"], "empty.txt"),
    "a device that is none": (["FILE", "device=abacus"], "device"),
    "a device that is not there": (["FILE", "device=cuda:7"], "device"),
    "a model that fits nowhere": (["FILE", "model.width=1000000", "model.heads=2"], "model.width"),
    "an option that is none": (["FILE", "--fast"], "--fast"),
}  # fmt: skip
NO_TEXT = {"memory"}  # which reads none
ANYWHERE = {("memory", "a model that fits nowhere"), ("memory", "a device that is not there")}  # what it estimates


@pytest.mark.parametrize("failure", WRONG_CONFIGS)
@pytest.mark.parametrize("verb", OF_CONFIGS)
def test_a_wrong_config_is_one_line_before_anything_is_made(verb, failure, runs, tmp_path, capfd):
    if verb in NO_TEXT and "text" in failure or (verb, failure) in ANYWHERE:
        pytest.skip("this verb reads no text and needs no such device or memory")
    given, named = WRONG_CONFIGS[failure]
    (tmp_path / "noise.yaml").write_bytes(b"\xff\xfe{: [")
    (tmp_path / "empty.txt").write_text("")
    words = [w.replace("DIR", str(tmp_path)).replace("FILE", "configs/tiny.yaml") for w in given]
    if "FILE" in given[0]:
        words += [k for k in keys_for(verb, runs[1]) if k.split("=")[0] not in {w.split("=")[0] for w in words}]
    out = tmp_path / "out"
    words += [f"run.dir={out}"] if verb == "train" else ["--out", out] if verb in ("compare", "tune") else []
    code, lines = ended(capfd, verb, *words, *OF_CONFIGS[verb])
    errors = [line for line in lines if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and lines[-1] == errors[0], lines
    assert named.replace("DIR", str(tmp_path)) in errors[0], errors
    assert not list(out.rglob("*.safetensors"))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0 and not os.path.exists("/proc"), reason="needs /proc")
@pytest.mark.parametrize("verb", ["train", "compare", "tune"])
def test_a_folder_that_cannot_be_written_is_named(verb, runs, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    for out in ("/proc/none/out", tmp_path / "file" / "out", tmp_path / "file"):
        words = keys_for(verb, runs[1]) + ([f"run.dir={out}"] if verb == "train" else ["--out", out])
        code, lines = ended(capfd, verb, "configs/tiny.yaml", *words, *OF_CONFIGS[verb])
        errors = [line for line in lines if line.startswith("error: ")]
        assert code == 2 and len(errors) == 1 and lines[-1] == errors[0], lines
        assert str(out) in errors[0] or str(tmp_path / "file") in errors[0] or "/proc/none" in errors[0]


@pytest.mark.parametrize("verb", ["compare", "tune", "export", "sweep"])
def test_what_others_write_does_not_go_into_a_run(verb, runs, copies, tmp_path, capfd):
    (tmp_path / "plan.yaml").write_text(
        "base: configs/tiny.yaml\ncells:\n  sizes: [0.1M]\n  unique_tokens: [0]\n  epochs: [1]\n  seeds: [1]\n"
        "  arms: {a: {objective: diffusion}}\n"
    )
    before = sorted(p for p in copies[0].rglob("*"))
    words = {"export": [copies[1], "--to", "hf"], "sweep": [tmp_path / "plan.yaml"]}
    words = words.get(verb) or ["configs/tiny.yaml", *keys_for(verb, runs[1]), *OF_CONFIGS[verb]]
    code, lines = ended(capfd, verb, *words, "--out", copies[0])
    assert code == 2 and lines == [f"error: --out {copies[0]} is the folder of a run; give a folder of its own"]
    assert before == sorted(p for p in copies[0].rglob("*"))


EVENTS = {
    "Ctrl-C": (KeyboardInterrupt(), 130, "interrupted"), "full memory": (MemoryError(), 2, "error: the memory is full"),
    "a file that cannot be read": (PermissionError(13, "Permission denied", "some/file"), 2, "error: some/file: "),
    "a disk error": (OSError(5, "Input/output error", "some/file"), 2, "error: some/file: "),
}  # fmt: skip


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("verb", entry.VERBS)
def test_what_happens_to_any_verb_is_one_line(verb, event, monkeypatch, capfd):
    error, code, start = EVENTS[event]

    def stop(*_, **__):
        raise error

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, stop)
    got, lines = ended(capfd, verb)
    assert got == code and len(lines) == 1 and lines[0].startswith(start)


@pytest.mark.parametrize("verb", entry.VERBS)
def test_a_fault_of_ours_is_no_exit_code_of_a_user(verb, monkeypatch, capfd):
    def stop(*_, **__):
        raise AssertionError("a fault")

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, stop)
    with pytest.raises(AssertionError, match="a fault"):
        entry.main([verb])
    assert cli.FAULT not in (0, 1, 2, 130)
