"""Kernels are compiled in processes of their own, whose errors do not end the others."""

import os

import pytest
import torch

from bench.race import processes

pytestmark = pytest.mark.slow


def leave(folder, n: int) -> None:
    if n == 2:
        raise ValueError("of this one\nonly")
    (folder / str(n)).write_text(str(os.getpid()))


def test_each_task_runs_and_errors_are_told(tmp_path):
    found = processes.run([(leave, tmp_path, n) for n in range(4)], "cpu", 2)
    assert found == ["", "", "failed: ValueError: of this one", ""]
    assert {p.name for p in tmp_path.iterdir()} == {"0", "1", "3"}
    assert str(os.getpid()) not in {p.read_text() for p in tmp_path.iterdir()}


def test_a_small_gpu_gets_fewer_processes(tmp_path, monkeypatch):
    """Each takes half a GB of it."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 30, 8 << 30))
    real, counts = processes.ProcessPoolExecutor, []
    monkeypatch.setattr(processes, "ProcessPoolExecutor", lambda n, context: counts.append(n) or real(n, context))
    assert processes.run([(leave, tmp_path, n) for n in (0, 1)], "cuda", 16) == ["", ""] and counts == [1]
