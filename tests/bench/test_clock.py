"""The clock of bench/race/clock.py, with a GPU that is a list of what was enqueued."""

import pytest
import torch

from bench.race import clock


class Gpu:
    """Runs what is enqueued at a given rate; the host advances `now` where it enqueues a call."""

    def __init__(self, monkeypatch, host_s: float, device_s: float, cycle_s: float = 0.5e-9):
        self.now = self.busy_until = 0.0
        self.host_s, self.device_s, self.cycle_s, self.slept = host_s, device_s, cycle_s, []
        monkeypatch.setattr(torch.cuda, "_sleep", self.sleep, raising=False)
        monkeypatch.setattr(torch.cuda, "synchronize", self.synchronize)
        monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Event(self))

    def enqueue(self, seconds: float) -> None:
        self.busy_until = max(self.busy_until, self.now) + seconds

    def sleep(self, cycles: int) -> None:
        self.slept.append(cycles)
        self.enqueue(cycles * self.cycle_s)

    def synchronize(self) -> None:
        self.now = max(self.now, self.busy_until)

    def run(self) -> None:
        self.now += self.host_s
        self.enqueue(self.device_s)


class Event:
    def __init__(self, gpu: Gpu):
        self.gpu = gpu

    def record(self) -> None:
        self.at = max(self.gpu.busy_until, self.gpu.now)

    def query(self) -> bool:
        return self.gpu.now >= self.at

    def elapsed_time(self, end: "Event") -> float:
        return (end.at - self.at) * 1e3


def test_the_host_is_not_timed(monkeypatch):
    gpu = Gpu(monkeypatch, host_s=800e-6, device_s=300e-6)  # launching takes longer than the work
    seconds, waits = clock.seconds(gpu.run, calls=3)
    assert seconds == pytest.approx(300e-6) and not waits and gpu.slept == [clock.CYCLES[0]]


def test_a_wait_that_was_too_short_is_made_longer(monkeypatch):
    gpu = Gpu(monkeypatch, host_s=9e-3, device_s=1e-3)
    seconds, waits = clock.seconds(gpu.run)
    assert seconds == pytest.approx(1e-3) and not waits and gpu.slept == list(clock.CYCLES)


def test_work_that_waits_for_the_host_is_told_apart(monkeypatch):
    gpu = Gpu(monkeypatch, host_s=0, device_s=1e-3)

    def run():
        gpu.run()
        gpu.synchronize()

    seconds, waits = clock.seconds(run)
    assert seconds == pytest.approx(1e-3) and waits and len(gpu.slept) == len(clock.CYCLES)


def test_the_first_wait_is_longer_than_the_host_of_the_longest_call():
    """At 2 GHz the head's host side takes under 2 ms; a wait of 0.5 ms timed the host."""
    assert clock.CYCLES[0] / 2e9 >= 5e-3 and clock.CYCLES == tuple(sorted(clock.CYCLES))
