"""A run that is ended or halted at any moment resumes to the bits of an unbroken one."""

import signal
import sys
import time

import pytest

from tests.faults.conftest import CASES, WRITES, same

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="forks, and counts on its signals")]


@pytest.mark.parametrize("case", range(max(1, CASES // 4)))
def test_killed_at_any_moment(whole, fresh, seconds, rng, count, case):
    process = fresh.start(resume=False)
    time.sleep(rng.uniform(0, seconds))
    process.send(signal.SIGKILL)
    code, output = process.wait()
    assert code in (-signal.SIGKILL, 0), output
    same(fresh, whole)
    count("kill -9 at a random moment" if code else "kill -9 just behind the end")


@pytest.mark.parametrize("case", range(max(1, CASES // 4)))
def test_killed_within_a_checkpoint(whole, fresh, rng, count, case):
    size = rng.choice([None, rng.randrange(1, 40_000)])
    n = rng.randrange(WRITES if size else 3 * WRITES) + 1
    code, output = fresh.train(resume=False, kill_at=[n, size])
    assert code == -(signal.SIGKILL if size is None else signal.SIGXFSZ), output
    unfinished = list((fresh.folder / "checkpoints").glob("*.tmp"))
    assert len(unfinished) == 1 and (size is None or unfinished[0].stat().st_size <= size), unfinished
    same(fresh, whole)
    count("kill -9 within the writing of a checkpoint")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT"])
@pytest.mark.parametrize("case", range(max(1, CASES // 16)))
def test_a_signal_at_any_moment(whole, fresh, seconds, rng, count, name, case):
    process = fresh.start(resume=False)
    time.sleep(rng.uniform(0, seconds))
    process.send(getattr(signal, name))
    code, output = process.wait()
    # 130: it stopped and said how to resume; a signal's own end: before it had begun, or behind its end
    assert code in (130, 0, -getattr(signal, name)) and "Traceback" not in output, output
    said = "to resume: " in output or "no checkpoint was saved yet" in output
    assert code != 130 or said or not (fresh.folder / "config.yaml").exists(), output
    same(fresh, whole)
    count(name)


@pytest.mark.parametrize("case", range(max(1, CASES // 16)))
def test_halted_and_continued(whole, fresh, seconds, rng, count, case):
    process = fresh.start(resume=False)
    for _ in range(3):
        time.sleep(rng.uniform(0, seconds / 3))
        process.send(signal.SIGSTOP)
        time.sleep(0.05)
        process.send(signal.SIGCONT)
    code, output = process.wait()
    assert code == 0, output
    assert fresh.result() == whole.result()
    count("SIGSTOP and SIGCONT")
