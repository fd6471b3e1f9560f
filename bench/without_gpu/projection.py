"""Project the time of a training step of configs/tiny.yaml on a GPU: `python -m bench.without_gpu.projection`.

Nothing here was measured. The step runs under fake tensors, as launches.py counts it. Every launch is charged the bytes
that it reads and writes, as if no cache held them, and the flop of its products. The head is also charged the
instructions that the loops of its compiled kernels issue, pipe by pipe (nvdisasm); its casts and partial sums are
launches of their own and only their bytes are charged.

A launch takes at least its limit, the longer of bytes over bandwidth and flop over rate. It also takes at least
FLOOR_US: the shortest kernel, and the wait for the kernel before it inside a CUDA graph. That floor is an assumption.
So the projection lies between two figures: no floor and pipes that overlap wholly, and FLOOR_US per launch with the
head's products and exps in turn.
"""

import argparse
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
import triton

from bench.without_gpu import launches, rates
from bench.without_gpu.resources import compiled, kernels, tool
from bench.without_gpu.work import Work, on_card
from tdlm_fast.kernels.triton import tiles

RESULTS = Path(__file__).parent.parent / "results" / "projection.json"
FLOOR_US = 2.5
N, D, V = 8192, 64, 50257  # configs/tiny.yaml
LIVE = {"diffusion": 0.5, "autoregressive": 1.0}  # share of rows that bear loss: full rows, linear schedule


class Chip(NamedTuple):
    """A GPU by its multiprocessors; its clock is the one that gives the flop/s of rates.RATES."""

    name: str
    multiprocessors: int
    flop_a_clock: int  # dense 16-bit products with fp32 sums, of one multiprocessor
    exp_a_clock: int = 16
    warp_instructions_a_clock: int = 4

    def clocks(self, card: int) -> float:
        """Clocks per second, of all multiprocessors together."""
        return rates.RATES[card][0] / self.flop_a_clock


# RTX 3070 Ti Laptop, by its data sheet; H200, whose rate and bandwidth in RATES were reported, not measured here.
CHIPS = {86: Chip("RTX 3070 Ti Laptop", 46, 512), 90: Chip("H200", 132, 4096)}


def loop_mix(sass: str) -> Counter:
    """Count the instructions of a warp in one round of the innermost loop, without blocks that it branches over."""
    code, label = [], {}
    for line in sass.splitlines():
        if figures := re.match(r"(\.L\w+):", line):
            label[figures[1]] = len(code)
        elif re.search(r"/\*[0-9a-f]{4,}\*/", line):
            code.append(re.sub(r"/\*[0-9a-f]+\*/", "", line).strip())
    jumps = [(i, label.get(m[1], i + 1)) for i, c in enumerate(code) if (m := re.search(r"BRA `\((\.L\w+)\)", c))]
    products = [i for i, c in enumerate(code) if re.search("HG?MMA", c)]
    loops = [(to, i) for i, to in jumps if to <= i and any(to <= p <= i for p in products)]
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    start, end = max(inner, key=lambda loop: sum(loop[0] <= p <= loop[1] for p in products))
    rare = set()
    for i, to in jumps:
        if start <= i < to <= end and not any(i < p < to for p in products):
            rare |= set(range(i + 1, to))
    body = [re.sub(r"^@!?U?P\w+ ", "", code[i]) for i in range(start, end + 1) if i not in rare]
    names = (c.split()[0].rstrip(";") for c in body)
    return Counter(n if n.startswith(("MUFU", "HMMA", "HGMMA")) else n.split(".")[0] for n in names)


def head(card: int, half: bool = False) -> dict:
    """{"forward", "weight"}: the main loop's mix and milliseconds of each pipe for all N rows of the head."""
    plan = tiles.fused(card, N, D, V, *[torch.bfloat16] * 3, processors=CHIPS[card].multiprocessors, half=half)
    rate, clocks, figures = rates.RATES[card][0] * (2 if half else 1), CHIPS[card].clocks(card) / 1e3, {}
    for side, tile in (("forward", plan.forward), ("weight", plan.weight)):
        wanted = f"{side}, {'float16, fp16 sums' if half else 'bfloat16'}, D {D}"
        wanted += ", small logits" * (side == "forward" and plan.bounds_logits)  # as those of tiny are
        launch = next(k for k in kernels(card) if k[0] == wanted)
        mix = loop_mix(tool("nvdisasm", compiled(launch[1], card, *launch[2:]).asm["cubin"], "-c"))
        rounds = -(-N // tile.rows) * -(-V // tile.vocab) * tile.warps
        exps = 32 * sum(n for k, n in mix.items() if k.startswith("MUFU"))
        pipes = {
            "products": 2 * 2 * N * D * V / rate * 1e3,
            "exp": rounds * exps / CHIPS[card].exp_a_clock / clocks,
            "issue": rounds * sum(mix.values()) / CHIPS[card].warp_instructions_a_clock / clocks,
        }
        figures[side] = {
            "mix": dict(mix.most_common()),
            "instructions_a_logit": round(rounds * 32 * sum(mix.values()) / N / V, 2),
            "full_waves": {o: round(full_waves(plan, side, card, live), 3) for o, live in LIVE.items()},
            "ms": {k: round(v, 4) for k, v in pipes.items()},
        }
    ms = [{k: v / s["full_waves"]["autoregressive"] for k, v in s["ms"].items()} for s in figures.values()]
    return figures | {"projected_ms": {
        "all overlapped": round(sum(max(m.values()) for m in ms), 3),
        "products and exp in turn": round(sum(max(m["products"] + m["exp"], m["issue"]) for m in ms), 3),
    }}  # fmt: skip


def full_waves(plan: tiles.Plan, side: str, card: int, share: float) -> float:
    """Return the part of a pass's time in which the card is full, where this share of the rows bears loss."""
    tile = getattr(plan, side)
    units = math.ceil(N * share / tile.rows) * math.ceil(V / tile.vocab)
    programs = plan.programs if side == "forward" else plan.weight_programs
    return tiles.efficiency(units, programs, tile.fit * CHIPS[card].multiprocessors)


GROUPS = {  # rows of the table and a pattern for the names of their ops; the first match counts
    "head": "lce_",
    "attention": "tile_attention",
    "linear layers": "mm|_foreach_copy_|cat$",
    "norms and gate": "rms_norm|swiglu",
    "batch and corruption": "draw|corrupt|next_token",
    "embedding, rows, dropout": "embedding|put_rows|index_select|randint|native_dropout|mul",
    "clip and AdamW": "catch_up",
    "the rest": ".",
}


# Charged by their compiled loops.
HEAD = {"tdlm::lce_forward": "forward", "tdlm::lce_backward_weight": "weight"}
HEAD |= {"tdlm::lce_gathered": "forward", "tdlm::lce_gathered_backward": "weight"}


def group(part: str, op: str) -> str:
    """The row of the table that an op of a part of the step belongs to."""
    if part in ("clip", "optimizer"):
        return "clip and AdamW"
    return next(g for g, names in GROUPS.items() if names and re.search(names, op))


def step(card: int, objective: str, of_head: dict) -> dict:
    """Launches, megabytes and milliseconds of a step by group and in all; times without and with the floor."""
    flops, bandwidth = rates.RATES[card]
    with on_card(card, CHIPS[card].multiprocessors):
        calls = launches.counted(objective, meter=Work()).calls
    rows = {g: {"launches": 0, "mb": 0.0, "ms": 0.0, "ms_with_floor": 0.0} for g in GROUPS}
    for part, op, n, moved, made in calls:
        row, side = rows[group(part, op)], HEAD.get(op)
        low = high = max(moved / bandwidth, 0 if side else made / flops) * 1e3
        if side:
            share = LIVE[objective] / of_head[side]["full_waves"][objective]
            pipes = {k: v * share for k, v in of_head[side]["ms"].items()}
            low, high = low + max(pipes.values()), low + max(pipes["products"] + pipes["exp"], pipes["issue"])
        row["launches"] += n
        row["mb"] += moved / 1e6
        row["ms"] += low
        row["ms_with_floor"] += max(high, n * FLOOR_US / 1e3)
    rows = {g: {k: round(v, 4) for k, v in row.items()} for g, row in rows.items() if row["launches"]}
    ms = [sum(row[k] for row in rows.values()) for k in ("ms", "ms_with_floor")]
    whole = {"ms": [round(t, 4) for t in ms], "tokens_per_s": [round(N / t * 1e3, -4) for t in ms]}
    return {"groups": rows, "whole": whole}


def project(card: int) -> dict:
    """The head of a card, in bf16 and on GeForce also with fp16 sums, and the step of both objectives."""
    flops, bandwidth = rates.RATES[card]
    figures = {"chip": CHIPS[card]._asdict(), "flop_per_s": flops, "bytes_per_s": bandwidth}
    figures["head"] = {"bf16": head(card)} | ({"fp16 sums": head(card, True)} if card in tiles.GEFORCE else {})
    figures["steps"] = {o: step(card, o, figures["head"]["bf16"]) for o in launches.OBJECTIVES}
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    note = "a projection from the compiled code and bench/without_gpu/rates.py, not measured"
    figures = {"note": note, "triton": triton.__version__, "torch": torch.__version__.partition("+")[0]}
    figures |= {"floor_us": FLOOR_US, "cards": {str(card): project(card) for card in CHIPS}}
    args.output.write_text(json.dumps(figures, indent=1) + "\n")
    for card, of in figures["cards"].items():
        for objective, s in of["steps"].items():
            (low, high), (fast, slow) = s["whole"]["ms"], s["whole"]["tokens_per_s"]
            speed = f"{slow / 1e6:.2f} to {fast / 1e6:.2f} M tokens/s"
            print(f"sm_{card}, {objective}: {low:.2f} to {high:.2f} ms, {speed}")
            for g, row in s["groups"].items():
                time = f"{row['ms']:8.4f} {row['ms_with_floor']:8.4f} ms"
                print(f"  {g:26} {row['launches']:4} launches {row['mb']:8.1f} MB {time}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
