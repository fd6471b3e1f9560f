"""Each op over kernels/cases.py against every peer, on the GPU where there is one: `make bench`.

Every round runs each side once, in the same process, so that what else the machine does falls on all of them; medians
are printed. TFLOP/s counts the least products that the op needs for every side, whatever it computes; shares are of a
square product and a copy measured in the same run. On a GPU a side is timed by events behind a kernel that waits, so
that launches do not count unless the side itself waits for the host; peak memory is what it holds beyond its inputs.
"""

import statistics
import time

import pytest
import torch

from bench import peers
from tdlm_fast.kernels.cases import CORRUPT, LCE_BENCH, LCE_BENCH_CPU

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS = 21 if DEVICE == "cuda" else 5
LCE = LCE_BENCH if DEVICE == "cuda" else LCE_BENCH_CPU


def seconds(run) -> float:
    if DEVICE == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(1_000_000)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def peak_mb(run) -> float | None:
    if DEVICE == "cpu":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 1e6, 1)


@pytest.fixture(scope="session")
def limits() -> dict:
    """flop/s of a square bf16 product, byte/s of a copy, here and now."""
    n = 8192 if DEVICE == "cuda" else 2048
    a = torch.randn(n, n, device=DEVICE).bfloat16()
    b = torch.empty_like(a)
    product = statistics.median([seconds(lambda: a @ a) for _ in range(7)][2:])
    copy = statistics.median([seconds(lambda: b.copy_(a)) for _ in range(7)][2:])
    return {"flops": 2 * n**3 / product, "bytes": 2 * a.numel() * 2 / copy}


def race(benchmark, sides, limits, flop: int, traffic: int) -> None:
    """Time the sides alternately; what comes out lies in benchmark.extra_info, and conftest.py prints and writes it."""
    figures, run = {}, {}
    for side in sides:
        figures[side.name] = {"note": side.note} if side.note else {}
        try:
            if side.run is not None:
                side.run()  # compiles
                figures[side.name]["peak_mb"] = peak_mb(side.run)
                run[side.name] = side.run
        except torch.cuda.OutOfMemoryError:
            figures[side.name] = {"note": "out of memory"}
        torch.cuda.empty_cache()
    times = {name: [] for name in run}

    def once():
        for name, side in run.items():
            times[name].append(seconds(side))

    benchmark.pedantic(once, rounds=ROUNDS, warmup_rounds=1)
    for name, all_ in times.items():
        took = statistics.median(all_[1:])  # the first round warmed up
        figures[name] |= {"ms": took * 1e3, "fastest_ms": min(all_[1:]) * 1e3, "gb_per_s": traffic / took / 1e9}
        if flop:
            figures[name] |= {"tflop_per_s": flop / took / 1e12, "share": flop / took / limits["flops"]}
        else:
            figures[name] |= {"share": traffic / took / limits["bytes"]}
    benchmark.extra_info.update(sides=figures, limits=limits)


@pytest.mark.parametrize("case", LCE, ids=str)
def test_linear_cross_entropy(benchmark, case, limits):
    sides = peers.lce_sides(case, torch.bfloat16, DEVICE)
    race(benchmark, sides, limits, case.flop, case.bytes(2))


@pytest.mark.parametrize("case", [c for c in CORRUPT if c.name in ("tiny", "small")], ids=str)
def test_corrupt(benchmark, case, limits):
    race(benchmark, peers.corrupt_sides(case, DEVICE), limits, 0, case.bytes())
