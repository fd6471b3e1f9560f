"""Race each op against every peer over the cases, on the GPU where there is one: `make bench`.

Every round runs each side once, in one process and in a shuffled order, and with them a large square product and a
large copy (rates.py), so that other load on the machine falls on all of them. Medians are printed. The limit is the
longer of two times: the op's products at that product's flop/s, and its bytes at that copy's byte/s. A side's share is
the limit's time divided by its own. TFLOP/s counts the fewest products that the op needs, whatever a side computes; the
share of a side that recomputes a product to save memory counts it again. On a GPU a side is timed by events behind a
waiting kernel (clock.py), so launches are not timed. Where a peer waits for the host, its time holds the host too, and
its note says so; if ours does, the race fails. Peak memory is that held beyond the inputs. On a GPU the cases of tiny
run first and the sweep over widths last, so that a race that is cut off has the figures that matter most.
"""

import random
import statistics
import time

import pytest
import torch

from bench.race import clock, peers, rates
from bench.race.cases import (
    ATTENTION_BENCH,
    CORRUPT,
    EMBED_BENCH,
    GATE_BENCH,
    LCE_BENCH,
    LCE_BENCH_CPU,
    NORM_BENCH,
    UPDATE_BENCH,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS = {"short": 21, "long": 21} if DEVICE == "cuda" else {"short": 9, "long": 4}  # the head is long, on a CPU
READY_S = 30 if DEVICE == "cuda" else 0  # for a peer to compile and tune; on a CPU as long as it takes
LCE = LCE_BENCH if DEVICE == "cuda" else LCE_BENCH_CPU
ATTENTION = ATTENTION_BENCH if DEVICE == "cuda" else ATTENTION_BENCH[:2]


def seconds(run, calls: int = 1) -> tuple[float, bool]:
    """Return the seconds of one call, a mean over `calls`, and whether a GPU's work waits for the host."""
    if DEVICE == "cuda":
        return clock.seconds(run, calls)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls, False


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
    """The square product and the copy that run beside the sides."""
    return rates.runs(DEVICE)


def race(benchmark, request, sides, limits, case, traffic: int, length: str = "short") -> None:
    """Time the sides in turns. The figures go to benchmark.extra_info; conftest.py prints and writes them."""
    rounds = request.config.getoption("--rounds") or ROUNDS[length]
    torch.compiler.reset()  # else the shapes of earlier races count towards its limit, and later ones run eagerly
    repeat = DEVICE == "cpu" and length == "short"  # microseconds are timed over many calls
    figures, run, calls = {}, dict(limits), dict.fromkeys(limits, 1)
    for side in sides:
        figures[side.name] = {"note": side.note} if side.note else {}
        if side.run is None:
            continue
        try:
            with peers.ready_within(READY_S if side.name != "tdlm_fast" else 0):
                side.run()  # compiles
            figures[side.name]["peak_mb"] = peak_mb(side.run)
            calls[side.name] = max(1, min(100, int(0.02 / seconds(side.run)[0]))) if repeat else 1
            run[side.name] = side.run
        except Exception as error:  # a peer that fails does not end the race
            if side.name == "tdlm_fast":
                raise
            figures[side.name] = {"note": peers.why_not(error)}
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
    times, order, shuffle = {name: [] for name in run}, list(run), random.Random(0).shuffle
    waited = set()

    def once():
        shuffle(order)  # the side after the copy finds its cache flushed
        for name in order:
            took, waits = seconds(run[name], calls[name])
            times[name].append(took)
            waited.update([name] * waits)

    benchmark.pedantic(once, rounds=rounds, warmup_rounds=1)
    assert "tdlm_fast" not in waited, "ours is timed with its host: see clock.py"
    took = {name: statistics.median(all_[1:]) for name, all_ in times.items()}  # the first round warmed up
    rate = rates.rates(DEVICE, took)
    for side in sides:
        if side.name in run:
            s, made = took[side.name], case.products + side.recomputes
            limit = max(made * case.flop / rate["flops"], traffic / rate["bytes"])
            figures[side.name] |= {"ms": s * 1e3, "fastest_ms": min(times[side.name][1:]) * 1e3}
            figures[side.name] |= {"gb_per_s": traffic / s / 1e9, "share": limit / s}
            if side.name in waited:
                figures[side.name]["note"] = f"{side.note}; timed with its host".removeprefix("; ")
            if case.flop:
                figures[side.name]["tflop_per_s"] = case.products * case.flop / s / 1e12
    benchmark.extra_info.update(sides=figures, limits=rate)


@pytest.mark.parametrize("case", LCE, ids=str)
def test_linear_cross_entropy(benchmark, request, case, limits):
    race(benchmark, request, peers.lce_sides(case, torch.bfloat16, DEVICE), limits, case, case.bytes(2), "long")


@pytest.mark.parametrize("case", [c for c in CORRUPT if c.name in ("tiny", "small")], ids=str)
def test_corrupt(benchmark, request, case, limits):
    race(benchmark, request, peers.corrupt_sides(case, DEVICE), limits, case, case.bytes())


@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_attention(benchmark, request, case, limits):
    race(benchmark, request, peers.attention_sides(case, torch.bfloat16, DEVICE), limits, case, case.bytes(2))


@pytest.mark.parametrize("case", NORM_BENCH, ids=str)
def test_rms_norm(benchmark, request, case, limits):
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32  # the native norm takes only fp32
    race(benchmark, request, peers.norm_sides(case, dtype, DEVICE), limits, case, case.bytes(dtype.itemsize))


@pytest.mark.parametrize("case", GATE_BENCH, ids=str)
def test_swiglu(benchmark, request, case, limits):
    race(benchmark, request, peers.gate_sides(case, torch.bfloat16, DEVICE), limits, case, case.bytes(2))


@pytest.mark.parametrize("case", EMBED_BENCH, ids=str)
def test_embedding(benchmark, request, case, limits):
    race(benchmark, request, peers.embedding_sides(case, torch.float32, DEVICE), limits, case, case.bytes(4))


@pytest.mark.parametrize("case", UPDATE_BENCH, ids=str)
def test_clip_and_adamw(benchmark, request, case, limits):
    race(benchmark, request, peers.update_sides(case, DEVICE), limits, case, case.bytes())
