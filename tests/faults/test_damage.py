"""A run whose files were damaged resumes to the bits of an unbroken one, or ends with one error that names the file."""

import os
import shutil
import signal
import sys

import pytest

from tests.faults.conftest import CASES, one_error, same

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="forks, and sets limits of Linux")]
FILES = ("metrics.jsonl", "checkpoints/last.safetensors", "config.yaml", "samples.txt", "checkpoints/best.safetensors")
WRITTEN = (
    "metrics.jsonl",
    "last.safetensors",
    "summary.json",
    "config.yaml",
    "samples.txt",
    "best.safetensors",
    "lock",
)
FILES, WRITTEN = FILES[: max(2, CASES // 4)], WRITTEN[: max(3, CASES // 3)]


@pytest.fixture(scope="session")
def unfinished(whole):
    """A run that was killed within its last checkpoint: step 9 of 12."""
    run = whole.another(whole.folder.with_name("unfinished"))
    code, output = run.train(resume=False, kill_at=[17, None])
    assert code == -signal.SIGKILL, output
    return run


@pytest.fixture
def damaged(unfinished, fresh):
    """A copy of it."""
    shutil.copytree(unfinished.folder, fresh.folder)
    return fresh


def judge(run, whole, file) -> str:
    """Resume a damaged run: it ends as the unbroken one, or one error names the file and leaves it as it was."""
    code, output = run.train()
    if code == 0:
        same(run, whole)
        return "resumed bit for bit"
    error = one_error(output)
    assert code == 2 and file.name in error and str(run.folder) in error, output
    return "named by one error"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("case", range(max(1, CASES // 4)))
def test_a_flipped_bit(damaged, whole, rng, count, name, case):
    file = damaged.folder / name
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    count(f"a flipped bit: {judge(damaged, whole, file)}")


@pytest.mark.parametrize("name", FILES)
def test_cut_short(damaged, whole, rng, count, name):
    file = damaged.folder / name
    os.truncate(file, rng.randrange(file.stat().st_size))
    count(f"cut short: {judge(damaged, whole, file)}")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_its_place(damaged, whole, count, name):
    file = damaged.folder / name
    file.unlink()
    file.mkdir()
    count(f"a folder in its place: {judge(damaged, whole, file)}")


@pytest.mark.parametrize("name", FILES)
def test_unreadable(damaged, whole, count, name):
    file = damaged.folder / name
    file.chmod(0)
    code, output = damaged.train(powerless=True)
    error = one_error(output)
    assert code == 2 and file.name in error and str(damaged.folder) in error, output
    file.chmod(0o644)
    same(damaged, whole)
    count("unreadable: named by one error")


@pytest.mark.parametrize("name", WRITTEN)
def test_a_disk_that_is_full(fresh, whole, rng, count, name):
    code, output = fresh.train(resume=False, full=[name, rng.choice([1, 2]), rng.randrange(20)])
    assert code in (0, 2), output
    if code == 2:
        assert name in one_error(output) or str(fresh.folder) in one_error(output), output
    same(fresh, whole)
    count("a full disk" if code else "a disk that was not full in time")


def test_two_processes_on_one_folder(fresh, whole, count):
    first, second = fresh.start(), fresh.start()
    ends = sorted([first.wait(), second.wait()])
    assert [code for code, _ in ends] in ([0, 0], [0, 2]), ends
    assert ends[1][0] == 0 or "is in use by process" in one_error(ends[1][1])
    same(fresh, whole)
    count("two processes on one folder")
