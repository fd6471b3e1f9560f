"""Time the fused head with other tiles than kernels/triton/tiles.py chooses: `python -m bench.race.sweep --json FILE`.

tiles.py chose its tiles by registers and shared memory, without a GPU. Here both passes run with a dozen configurations
each, at the shape of configs/tiny.yaml and three counts of rows that bear loss. Kernels are compiled in as many
processes as there are cores, each of which makes one small call, so that Triton's cache holds what the timed call
needs. A configuration whose answer differs from today's, or that cannot run, is listed with the reason. Each pass is
timed with the programs that tiles.py gives it and with as many as are resident, once and twice over. Times are of
replayed CUDA graphs. The forward pass is that of training: it makes its 16-bit copies of h and W too. The file is
written after every configuration, so a run that is killed leaves what it timed; "finished" is false until the end.
"""

import argparse
import contextlib
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch

from bench.race import clock, peers, processes
from bench.race.cases import Lce
from bench.without_gpu import resources
from tdlm_fast.kernels import hardware
from tdlm_fast.kernels.triton import linear_cross_entropy, tiles
from tdlm_fast.kernels.triton.tiles import Plan, Tiles
from tdlm_fast.runs.device import versions
from tdlm_fast.runs.files import write_json

SIDES = ("forward", "weight")
KERNELS = {side: f"{side}_kernel" for side in SIDES}
# (rows, vocabulary, warps, stages, last tile peeled, registers at most) of sm_90 and sm_100, whose products (wgmma)
# are made by four warps on 64 rows at a time; today's tiles are added where they are missing.
WGMMA = {
    "forward": (
        (128, 64, 8, 3, True, 128), (128, 64, 8, 2, True, 128), (128, 64, 8, 4, True, 128), (128, 64, 8, 3, True, 0),
        (128, 64, 8, 3, False, 0), (128, 128, 8, 2, True, 0), (128, 128, 8, 3, True, 0), (128, 64, 4, 3, True, 0),
        (64, 64, 4, 3, True, 168), (64, 64, 4, 4, True, 128), (64, 128, 4, 3, True, 0), (256, 64, 8, 2, True, 0),
    ),
    "weight": (
        (64, 128, 8, 3, False, 128), (64, 128, 8, 2, False, 128), (64, 128, 8, 4, False, 128),
        (64, 128, 8, 3, False, 0), (128, 128, 8, 2, False, 0), (128, 128, 8, 3, False, 0), (64, 64, 4, 3, False, 0),
        (64, 64, 4, 4, False, 128), (128, 64, 4, 3, False, 0), (32, 128, 8, 3, False, 0), (64, 256, 8, 2, False, 0),
        (128, 64, 8, 3, False, 0),
    ),
}  # fmt: skip
MMA = {  # of other cards, by warps of 16 rows
    "forward": (
        (64, 64, 4, 3, True, 168), (64, 64, 4, 2, True, 168), (64, 64, 4, 4, True, 168), (64, 64, 4, 3, True, 0),
        (64, 64, 4, 3, False, 0), (128, 64, 8, 3, True, 0), (128, 64, 4, 2, True, 0), (128, 32, 4, 3, True, 0),
        (64, 32, 4, 3, True, 128), (64, 128, 4, 2, True, 0), (128, 64, 8, 2, True, 128), (32, 64, 2, 3, True, 0),
    ),
    "weight": (
        (32, 64, 4, 3, False, 0), (32, 64, 4, 2, False, 0), (32, 64, 4, 4, False, 0), (64, 64, 4, 2, False, 0),
        (64, 64, 4, 3, False, 0), (64, 64, 8, 3, False, 0), (32, 128, 8, 3, False, 0), (32, 128, 4, 3, False, 0),
        (64, 128, 8, 2, False, 0), (64, 32, 4, 3, False, 0), (32, 64, 8, 3, False, 0), (16, 64, 4, 4, False, 0),
    ),
}  # fmt: skip


class Problem(NamedTuple):
    """The arguments of both passes: h and W in fp32, as in training, and x and w as they are multiplied."""

    h: torch.Tensor
    weight: torch.Tensor
    x: torch.Tensor
    w: torch.Tensor
    targets: torch.Tensor
    lse: torch.Tensor
    grad: torch.Tensor
    n_rows: torch.Tensor

    @classmethod
    def of(cls, case: Lce, dtype: torch.dtype, device: str) -> "Problem":
        h, w, y, g, n = case.inputs(torch.float32, device)
        lse = torch.full((case.N,), 11.0, device=device)
        return cls(h, w, h.to(dtype), w.to(dtype), y, lse, g.abs() / len(g), n)

    def run(self, side: str):
        if side == "forward":
            order, dtype = torch.arange(len(self.h), device=self.h.device), self.x.dtype
            return linear_cross_entropy.gathered_forward(
                self.h, order, self.weight, self.targets, self.n_rows, len(self.w), dtype
            )[:3]
        rest = self.targets, self.lse, self.grad, self.n_rows, len(self.w), self.x.dtype
        return (linear_cross_entropy.backward_weight(self.x, self.w, *rest),)


def plan_of(problem: Problem, side: str, tile: Tiles | None) -> Plan:
    """The plan of tiles.py for a problem, with other tiles for one of the passes; None: its own."""
    gpu, (N, D), V, dtype = hardware.card(problem.x.device), problem.x.shape, len(problem.w), problem.x.dtype
    card = tiles.card(gpu.capability)
    pair = dict(zip(SIDES, tiles.tiles(card, dtype, max(16, 1 << (D - 1).bit_length()), D % 16 != 0), strict=True))
    pair |= {side: tile} if tile else {}
    with mock.patch.object(tiles, "tiles", lambda *a, **k: tuple(pair.values())):
        return tiles.fused(card, N, D, V, *[dtype] * 3, processors=gpu.multiprocessors, half=False)


def with_programs(plan: Plan, side: str, programs: int, rows: int) -> Plan:
    """The plan with another number of programs for one of the passes."""
    if side == "weight":
        return plan._replace(weight_programs=programs)
    return plan._replace(programs=programs, parts=programs + -(-rows // plan.forward.rows) - 1)


@contextlib.contextmanager
def launched_by(plan: Plan):
    """Let both passes run by this plan."""
    with mock.patch.object(linear_cross_entropy, "fused", lambda *a, **k: plan):
        yield


class Watched:
    """A kernel that keeps what its last launch compiled to."""

    def __init__(self, kernel):
        self.kernel, self.compiled = kernel, None

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            compiled = self.kernel[grid](*args, **kwargs)
            if kwargs.get("LOGITS") != "large":  # that one ends at once where logits are small, as here
                self.compiled = compiled
            return compiled

        return launch


def outcome(problem: Problem, side: str, plan: Plan) -> tuple[list[torch.Tensor], dict]:
    """What a pass returns under a plan, and its kernel's registers, spills, shared memory and resident programs."""
    watched = Watched(getattr(linear_cross_entropy, KERNELS[side]))
    with launched_by(plan), mock.patch.object(linear_cross_entropy, KERNELS[side], watched):
        found = [a.clone() for a in problem.run(side)]
    compiled, warps = watched.compiled, getattr(plan, side).warps
    if not hasattr(compiled, "n_regs"):  # the interpreter compiles nothing
        return found, {}
    gpu = hardware.card(problem.h.device)
    card, granted = tiles.card(gpu.capability) or 80, -(-compiled.n_regs // 8) * 8 * 32 * warps
    shared = compiled.metadata.shared
    room = (resources.REGISTERS // granted, (resources.SHARED[card] << 10) // (shared + 1024))
    programs = max(1, min(*room, resources.WARPS[card] // warps)) * gpu.multiprocessors
    return found, {
        "registers": compiled.n_regs, "spills": compiled.n_spills, "shared": shared, "resident": programs,
    }  # fmt: skip


def compile_one(case: Lce, dtype: torch.dtype, device: str, side: str, tile: Tiles) -> None:
    """Compile the kernel of a configuration by a small call: counts of rows and words are not part of Triton's keys."""
    problem = Problem.of(case, dtype, device)
    outcome(problem, side, plan_of(problem, side, tile))


def timed(problem: Problem, side: str, plan: Plan, counts: tuple[int, ...]) -> dict[str, float]:
    """{rows that bear loss: milliseconds of the pass}."""
    ms = {}
    with launched_by(plan):
        graph = clock.graph_of(lambda: problem.run(side)) if problem.h.is_cuda else None
        for live in counts:
            problem.n_rows.fill_(live)
            if graph:
                ms[str(live)] = clock.replayed(graph) * 1e3
            else:
                begin = time.perf_counter()
                problem.run(side)
                ms[str(live)] = (time.perf_counter() - begin) * 1e3
    return ms


def alike(found: list[torch.Tensor], truth: list[torch.Tensor], dtype: torch.dtype) -> bool:
    """Whether another order of sums explains the difference of two answers."""
    close = 1e-4 if dtype == torch.float32 else 1e-2
    return all((a.double() - b.double()).norm() <= close * b.double().norm() for a, b in zip(found, truth, strict=True))


def measure(problem: Problem, side: str, tile: Tiles | None, truth, counts: tuple[int, ...]) -> dict:
    """The row of a configuration: its tiles, resources, fastest number of programs, times, and why it failed or ""."""
    row = {"tile": None, "why": "", "ms": {}}
    try:
        plan = plan_of(problem, side, tile)
        row["tile"] = getattr(plan, side)._asdict()
        problem.n_rows.fill_(len(problem.h) // 2)
        found, about = outcome(problem, side, plan)
        row |= about
        if truth is not None and not alike(found, truth, problem.x.dtype):
            return row | {"why": "its answer differs from that of today's tiles"}
        programs = {k * about["resident"] for k in (1, 2)} if about else set()
        if tile is None or not about:
            programs |= {plan.programs if side == "forward" else plan.weight_programs}
        tried = {
            n: timed(problem, side, with_programs(plan, side, n, len(problem.h)), counts) for n in sorted(programs)
        }
        row["programs"] = min(tried, key=lambda n: sum(tried[n].values()))
        row["ms"] = tried[row["programs"]]
        row["ms_by_programs"] = {str(n): ms for n, ms in tried.items()}
    except Exception as error:
        row["why"] = peers.why_not(error)
    return row


def sweep(problem: Problem, candidates: dict, counts: tuple[int, ...], keep: Callable[[dict], None]) -> dict:
    """{"forward", "weight"}: a row per configuration, today's first. keep is called with what is known, row by row.

    The two passes take turns, so a sweep that is cut off has rows of both.
    """
    figures, truths = {side: [] for side in SIDES}, {}
    for side in SIDES:
        problem.n_rows.fill_(len(problem.h) // 2)
        truths[side] = outcome(problem, side, plan_of(problem, side, None))[0]
        figures[side].append(measure(problem, side, None, None, counts) | {"today": True})
        keep(figures)
    for pair in itertools.zip_longest(*(candidates[side] for side in SIDES)):
        for side, tile in zip(SIDES, pair, strict=True):
            if tile is not None:
                figures[side].append(measure(problem, side, tile, truths[side], counts))
                keep(figures)
    return figures


def words(row: dict) -> str:
    """A configuration in words."""
    t = row["tile"]
    more = f", {t['registers']} registers at most" if t["registers"] else ""
    return f"{t['rows']} x {t['vocab']}, {t['warps']} warps, {t['stages']} stages{', peeled' * t['peeled']}{more}"


def show(figures: dict) -> None:
    for side in SIDES:
        rows = [row for row in figures[side] if row["ms"]]
        today = next((row for row in rows if row.get("today")), None)
        for live in figures["live"]:
            best = min(rows, key=lambda row: row["ms"][str(live)], default=None)
            if best and today:
                a, b = (row["ms"][str(live)] for row in (best, today))
                print(f"{side}, {live} rows: {words(best)}: {a:.4f} ms; today {b:.4f} ms, {b / a:.2f} x")
        for row in figures[side]:
            if row["why"]:
                print(f"{side}, {words(row) if row['tile'] else 'no plan'}: {row['why']}")


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--processes", type=int, default=processes.CORES)
    parser.add_argument("--small", action="store_true", help="two configurations at a small shape, for the interpreter")
    parser.add_argument("--once", action="store_true", help="only run both passes three times, for a profiler")
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32  # the interpreter multiplies bf16 wrongly
    N, V, counts = (60, 150, (9, 60)) if args.small else (8192, 50257, (2300, 4096, 8192))
    case = Lce("", N, 64, V, n_rows=N // 2, scale=0.125, weights="ones")
    problem = Problem.of(case, dtype, device)
    if args.once:
        for _ in range(3):
            for side in SIDES:
                problem.run(side)
        if device == "cuda":
            torch.cuda.synchronize()
        return 0
    capability = hardware.card(problem.h.device).capability
    candidates = {side: [] for side in SIDES}
    for side, found in (WGMMA if tiles.card(capability) in (90, 100) else MMA).items():
        own = getattr(plan_of(problem, side, None), side)
        made = [Tiles(*f[:4], 1, *f[4:]) for f in found]  # one program a multiprocessor, until it is known how many fit
        candidates[side] = [tile for tile in made if tile._replace(fit=own.fit) != own][: 1 if args.small else None]
    begin = time.perf_counter()
    small = Lce("", 33, case.D, 65, n_rows=20, weights="ones")
    tasks = [(compile_one, small, dtype, device, side, tile) for side in SIDES for tile in candidates[side]]
    processes.run(tasks, device, args.processes)  # errors come again below, where they are recorded
    compiling = time.perf_counter() - begin
    figures = {
        **versions(problem.h.device), "shape": {"N": N, "D": case.D, "V": V}, "dtype": str(dtype)[6:],
        "live": counts, "compile_seconds": round(compiling, 1), "finished": False,
    }  # fmt: skip

    def keep(found: dict) -> None:
        figures.update(found)
        if args.json:
            write_json(args.json, figures, indent=1)

    sweep(problem, candidates, counts, keep)
    keep({"finished": True})
    show(figures)
    own = [figures[side][0] for side in SIDES]
    return int(any(row["why"] for row in own))


if __name__ == "__main__":
    sys.exit(main())
