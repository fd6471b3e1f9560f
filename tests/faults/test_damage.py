"""A run whose files were damaged resumes to the bits of an unbroken one, or ends with one error that names the file."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tdlm_fast import config as settings
from tdlm_fast.runs.files import LAST
from tdlm_fast.runs.folder import owner_of
from tests.faults.conftest import CASES, WRITES, one_error, same
from tests.running import HANG_S

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="forks, and sets limits of Linux")]
RUN = ("metrics.jsonl", "checkpoints/last.safetensors", "config.yaml", "samples.txt", "checkpoints/best.safetensors")
WRITTEN = (
    "metrics.jsonl",
    "last.safetensors",
    "summary.json",
    "config.yaml",
    "samples.txt",
    "best.safetensors",
    "lock",
)
PLACES = [*(("unfinished", name) for name in RUN), *(("finished", name) for name in ("summary.json", *RUN))]
if CASES < 20:  # the short form
    PLACES, WRITTEN = PLACES[:2] + PLACES[5:7], WRITTEN[:3]
some_damage = pytest.mark.parametrize(("state", "name"), PLACES)


@pytest.fixture(scope="session")
def unfinished(whole):
    """A run that was killed within its last checkpoint: step 9 of 12."""
    return killed(whole.another(whole.folder.with_name("unfinished")))


@pytest.fixture(scope="session")
def foreign(whole):
    """Runs of another seed, by their state."""
    finished = whole.another(whole.folder.with_name("foreign"), "seed=5")
    code, output = finished.train(resume=False)
    assert code == 0, output
    return {"finished": finished, "unfinished": killed(whole.another(whole.folder.with_name("foreign-9"), "seed=5"))}


def killed(run):
    code, output = run.train(resume=False, kill_at=[17, None])
    assert code == -signal.SIGKILL, output
    return run


@pytest.fixture
def damaged(state, unfinished, whole, fresh):
    """A copy of the unfinished or the finished run, to be damaged."""
    shutil.copytree((unfinished if state == "unfinished" else whole).folder, fresh.folder)
    return fresh


def judge(run, whole, state, file) -> str:
    """Resume a damaged run: it ends as the unbroken one, or one error names the file."""
    code, output = run.train()
    if code == 0 and state == "finished":
        return judge_finished(run, whole, file)
    if code == 0:
        same(run, whole)
        return "resumed bit for bit"
    error = one_error(output)
    assert code == 2 and file.name in error and str(run.folder) in error, output
    return "named by one error"


def judge_finished(run, whole, file) -> str:
    """A finished run was taken as it is: what reads a damaged file must name it, and the other files are whole.

    Weights are read by verbs that use them, and config.yaml may differ in keys that decide nothing.
    """
    name, held, expected = file.stem, run.result(), whole.result()
    differs = {k for k in expected if held.get(k) != expected[k]}
    if name in ("best", "last"):
        code, output = run.zygote.run("sample", run.folder, "--checkpoint", name, "--tokens", "2")
        assert differs <= {name} and (code == 0 or file.name in one_error(output)), output
        assert code == 2 or not differs, output
        return "named by one error" if code else "resumed bit for bit"
    configs = [settings.load(r.folder / "config.yaml") for r in (run, whole)]
    assert differs <= {"config"} and owner_of(configs[0]) == owner_of(configs[1]), differs
    return "resumed bit for bit"


@some_damage
@pytest.mark.parametrize("case", range(max(1, CASES // 4)))
def test_a_flipped_bit(damaged, whole, rng, count, state, name, case):
    file = damaged.folder / name
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    count(f"a flipped bit: {judge(damaged, whole, state, file)}")


@some_damage
def test_cut_short(damaged, whole, rng, count, state, name):
    file = damaged.folder / name
    os.truncate(file, rng.randrange(file.stat().st_size))
    count(f"cut short: {judge(damaged, whole, state, file)}")


@some_damage
def test_another_runs_file(damaged, whole, foreign, count, state, name):
    file = damaged.folder / name
    shutil.copyfile(foreign[state].folder / name, file)
    count(f"the file of a run with another seed: {judge(damaged, whole, state, file)}")


@some_damage
def test_a_folder_in_its_place(damaged, whole, count, state, name):
    file = damaged.folder / name
    file.unlink()
    file.mkdir()
    count(f"a folder in its place: {judge(damaged, whole, state, file)}")


@some_damage
def test_unreadable(damaged, whole, count, state, name):
    file = damaged.folder / name
    file.chmod(0)
    code, output = damaged.train(powerless=True)
    if not code and state == "finished" and file.stem in ("best", "last"):  # their weights are not read again
        code, output = damaged.zygote.run("sample", damaged.folder, "--checkpoint", file.stem, powerless=True)
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


def mount(folder, *options) -> bool:
    return not subprocess.run(["mount", "-t", "tmpfs", *options, "none", folder], capture_output=True).returncode


@pytest.mark.parametrize("case", range(max(1, CASES // 16)))
def test_a_file_system_that_is_full(fresh, whole, rng, count, case):
    """A tmpfs of too few pages for the run, which then gets more."""
    disk = fresh.folder.parent
    if not mount(disk, "-o", "size=256k"):
        pytest.skip("a tmpfs can be mounted only by root")
    try:
        fresh.folder.mkdir()
        (disk / "ballast").write_bytes(bytes(4096 * rng.randrange(16, 64)))  # of its 64 pages
        code, output = fresh.train()
        assert code == 2 and (str(fresh.folder) in one_error(output)), output
        assert mount(disk, "-o", "remount,size=64m")
        same(fresh, whole)
    finally:
        subprocess.run(["umount", disk], check=True)
    count("a full file system (tmpfs)")


@pytest.mark.parametrize("case", range(max(1, CASES // 16)))
def test_a_clock_that_is_set_back(fresh, whole, rng, count, case):
    """The process that resumes a run lives a year before the files it finds."""
    n = rng.randrange(3 * WRITES) + 1
    code, output = fresh.train(resume=False, kill_at=[n, None])
    assert code == -signal.SIGKILL, output
    later = time.time() + 365 * 86_400
    for path in fresh.folder.rglob("*"):
        os.utime(path, (later, later))
    same(fresh, whole)
    count("a clock set back by a year")


@pytest.mark.parametrize("case", range(max(1, CASES // 16)))
def test_a_text_that_changes_under_the_run(fresh, whole, seconds, rng, count, case, tmp_path):
    """A running process keeps its text. A process that resumes the run names the changed text."""
    text = tmp_path / "text.txt"
    before = whole.text.read_text()
    text.write_text(before)
    run = fresh.another(fresh.folder, f"data.path={text}")
    process = run.start(resume=False)
    until = time.monotonic() + HANG_S
    while not (run.folder / "metrics.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.001)  # it has read its text once it writes that
    time.sleep(rng.uniform(0, 0.7) * seconds)
    text.write_text(before.replace("e", "o", 200))
    process.send(signal.SIGKILL)
    code, output = process.wait()
    assert code in (-signal.SIGKILL, 0), output
    if (run.folder / LAST).is_file():
        code, output = run.train()
        error = one_error(output)
        assert code == 2 and "the text is not what" in error and str(run.folder) in error, output
    text.write_text(before)
    same(run, whole)
    count("a text that changed under the run")
