"""metrics.jsonl and samples.txt of a run that is resumed: what it had written up to its checkpoint, to the byte."""

import hashlib

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from tdlm_fast import config as settings
from tdlm_fast import train
from tdlm_fast.runs import checkpoint, files
from tdlm_fast.runs.appended import Appended
from tests.running import TINY, metrics, state_of

NAMES = ("metrics.jsonl", "samples.txt")


@pytest.fixture
def resumable(tiny, tmp_path):
    """A run of two steps whose summary is gone: its folder, its keys, and {name: content} of what it appended."""
    args = [*tiny, "train.max_steps=2", "eval.text=1"]
    assert train.main([TINY, *args]) == 0
    folder = tmp_path / "run"
    (folder / "summary.json").unlink()
    return folder, args, {name: (folder / name).read_bytes() for name in NAMES}


def older(folder):
    """Leave the checkpoint as versions up to 0.2.0 wrote it."""
    file = folder / files.LAST
    state = {k: v for k, v in state_of(file).items() if k != "written"}
    with safe_open(file, "pt") as f:
        tensors = {k: f.get_tensor(k) for k in f.keys()}
    text = files.json.dumps(state)
    save_file(tensors, file, {"state": text, "sha256": checkpoint.digest(tensors, text)})


def test_a_mark_is_of_all_that_was_written(tmp_path):
    file = Appended(tmp_path / "samples.txt")
    file.begin()
    for text in ("--- step 0\nüber\n", "", "a\r\nb\n"):
        file.append(text)
    content = (tmp_path / "samples.txt").read_bytes()
    assert content == "--- step 0\nüber\na\r\nb\n".encode()
    assert file.mark() == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    again = Appended(tmp_path / "samples.txt", {"step": 1, "written": {"samples.txt": file.mark()}})
    again.begin()
    again.append("c")
    assert (tmp_path / "samples.txt").read_bytes() == content + b"c" and again.mark()["bytes"] == len(content) + 1


@pytest.mark.parametrize("version", ["this", "0.2.0"])
def test_what_stands_behind_the_checkpoint_is_written_again(resumable, version, capsys):
    folder, args, held = resumable
    if version == "0.2.0":
        older(folder)
    with open(folder / "metrics.jsonl", "a") as f:
        f.write('{"step": 2, "valid": {"nats_per_token": 5.1}\n\x00\x01 garbage }\n{"step": 2, "val')
    with open(folder / "samples.txt", "ab") as f:
        f.write("--- step 3\nü".encode()[:-1])
    assert train.main([TINY, *args, "--resume"]) == 0
    assert ("metrics.jsonl: 3 damaged lines dropped" in capsys.readouterr().err) == (version == "0.2.0")
    assert {name: (folder / name).read_bytes() for name in NAMES} == held


@pytest.mark.parametrize("name", NAMES)
def test_no_byte_up_to_the_checkpoint_can_change_unnoticed(resumable, name, capsys):
    folder, args, held = resumable
    file = folder / name
    for place in range(0, len(held[name]), 97):
        damaged = bytearray(held[name])
        damaged[place] ^= 1
        for content, says in ((bytes(damaged), "changed"), (held[name][:place], "cut short")):
            file.write_bytes(content)
            assert train.main([TINY, *args, "--resume"]) == 2
            error = capsys.readouterr().err.splitlines()[-1]
            assert error.startswith(
                f"error: {file} was {says} after the run had written it, up to step 2; restore it, "
            )
            assert file.read_bytes() == content  # it is left as it is
    file.write_bytes(held[name])
    assert train.main([TINY, *args, "--resume"]) == 0
    assert {n: (folder / n).read_bytes() for n in NAMES} == held


@pytest.mark.parametrize("name", NAMES)
def test_a_run_whose_file_was_moved_away_resumes_without_its_lines(resumable, name, capsys):
    folder, args, held = resumable
    (folder / name).unlink()
    assert train.main([TINY, *args, "--resume"]) == 0
    assert f"{folder / name} is missing: what it held up to step 2 is lost" in capsys.readouterr().err
    assert (folder / name).read_bytes() == b""


def test_a_file_that_cannot_be_read_is_not_called_changed(resumable):
    folder, _, _ = resumable
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").mkdir()
    with pytest.raises(settings.ConfigError, match="metrics.jsonl cannot be read .Is a directory"):
        Appended(folder / "metrics.jsonl", state_of(folder / files.LAST))


def test_a_new_run_does_not_go_on_with_the_files_of_another(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    for name in NAMES:
        (tmp_path / "run" / name).write_text("left by someone\n")
    assert train.main([TINY, *tiny, "train.max_steps=1", "eval.text=0"]) == 0
    assert metrics(tmp_path / "run")[0]["step"] == 0 and (tmp_path / "run" / "samples.txt").read_bytes() == b""
