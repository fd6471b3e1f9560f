"""Compile the prototypes and write bench/results/prototypes.json: `python -m bench.prototypes`. No GPU is needed.

Registers, shared memory, spills and instructions are those of the compiled code. The projected times of the body come
from arithmetic: its products at the rate of the multiprocessors that have a program, and the partial gradients of the
weights at the rate of the memory. Nothing was measured.
"""

import argparse
import json
import re
from pathlib import Path

import torch
import triton

from bench.prototypes import pipelined_head, sequence, sequence_backward
from bench.without_gpu.projection import CHIPS, FLOOR_US, loop_mix
from bench.without_gpu.rates import RATES
from bench.without_gpu.resources import compiled, kernels, resources, tool
from tdlm_fast.kernels.triton import tiles

FILE = Path(__file__).parent.parent / "results" / "prototypes.json"
B, T, D, V, HEADS, INNER, LAYERS = 64, 128, 64, 50257, 4, 192, 2  # configs/tiny.yaml
BODIES = {"T 128": (128, 8), "T 128, four warps": (128, 4), "T 64": (64, 4)}  # BLOCK_T, warps; of the forward kernel
BACKWARD = {"backward, T 128": (128, 8), "backward, T 64": (64, 4), "backward, T 32": (32, 4)}
SLOWER = 3  # the higher projected time of the body takes its products at this part of the rate
LAUNCHES = 4  # of the body: cast of the weights, forward, backward, sum of the partial gradients


def issued(sass: str, *trips: int) -> int:
    """Return how many instructions a warp issues in all. trips: rounds of the outer loop, then of the loops in it."""
    code, label = [], {}
    for line in sass.splitlines():
        if found := re.match(r"(\.L\w+):", line):
            label[found[1]] = len(code)
        elif re.search(r"/\*[0-9a-f]{4,}\*/", line):
            code.append(line)
    jumps = [
        (i, label[m[1]]) for i, c in enumerate(code) if (m := re.search(r"BRA `\((\.L\w+)\)", c)) and m[1] in label
    ]
    loops = [(to, i) for i, to in jumps if to <= i and any(re.search("HG?MMA", c) for c in code[to : i + 1])]
    outer, *inner = sorted(loops, key=lambda loop: (loop[0], -loop[1]))
    if len(loops) != len(trips) or any(a < outer[0] or b > outer[1] for a, b in inner):
        raise ValueError(f"the code has the loops {loops}")
    extra = (trips[0] - 1) * (outer[1] - outer[0] + 1)
    extra += sum(trips[0] * (n - 1) * (b - a + 1) for n, (a, b) in zip(trips[1:], inner, strict=True))
    return len(code) + extra


def body(card: int, only=lambda name: True) -> dict:
    """Resources of both kernels of a body, and the instructions that a warp of the forward kernel issues.

    only: accepts the names of the cases that are compiled.
    """
    figures, options = {}, sequence.launch(T)
    constants = {k: options.pop(k) for k in ("BLOCK_T", "BLOCK_I")} | dict(D=D, HEADS=HEADS, INNER=INNER, CAUSAL=False)
    every = dict.fromkeys(("QKV", "OUT", "UP", "DOWN"), "*bf16") | {"VALID": "*u8", "layers": "i32", "T": "i32"}
    every |= dict.fromkeys(("eps", "scale"), "fp32")
    for kernel, cases in ((sequence.forward_kernel, BODIES), (sequence_backward.backward_kernel, BACKWARD)):
        types = {n: every.get(n, "*fp32") for n in kernel.arg_names if n not in (*constants, "PDL")}
        for name, (block_t, warps) in ((n, c) for n, c in cases.items() if only(n)):
            of = constants | {"BLOCK_T": block_t}, options | {"num_warps": warps}
            code = compiled(kernel, card, types, *of)
            figures[name] = resources(code, card, warps) | {"warps": warps}
            if name == "T 128":
                sass = tool("nvdisasm", code.asm["cubin"], "-c")
                figures[name]["issued"] = issued(sass, LAYERS, HEADS, INNER // constants["BLOCK_I"])
    return figures


def heads(card: int = 90) -> dict:
    """The product's loop for small logits and both forms of the prototype, at the same tiles."""
    tile = tiles.tiles(card, torch.bfloat16, D)[0]
    wanted = f"forward, bfloat16, D {D}, small logits"
    _, *ours = next(k for k in kernels(card) if k[0] == wanted)
    shape = dict(BLOCK_N=tile.rows, BLOCK_V=tile.vocab, BLOCK_D=D)
    types = {"H": "*bf16", "W": f"tensordesc<bf16[{tile.vocab}, {D}]>", "N_ROWS": "*i64", "M": "*fp32", "L": "*fp32"}
    types |= {"ACC": "*fp32", "N": "i32", "V": "i32", "D": "i32"}
    four = tile._replace(warps=4, registers=0).options
    calls = {"product": ours}
    for name, specialize, options in (("TMA", False, tile.options), ("TMA, specialised", True, four)):
        calls[name] = (pipelined_head.forward_kernel, types, shape | {"SPECIALIZE": specialize}, options)
    figures = {}
    for name, (kernel, types, constants, options) in calls.items():
        code = compiled(kernel, card, types, constants, options)
        sass, warps = tool("nvdisasm", code.asm["cubin"], "-c"), code.metadata.num_warps
        mix, specialised = loop_mix(sass), code.asm["ttgir"].count("ttg.warp_specialize(") > 0
        consumers = 8  # in either form eight warps share the products of a tile; here each takes 16 of 128 rows
        of_a_tile = consumers * 32 * sum(mix.values())
        figures[name] = resources(code, card, warps) | {
            "warps": warps, "specialised": specialised, "instructions_a_logit": of_a_tile / tile.rows / tile.vocab,
            "tma_copies": sass.count("UTMALDG"), "register_moves": sass.count("USETMAXREG"),
            "products": sum(n for k, n in mix.items() if "MMA" in k),
        }  # fmt: skip
    return figures


def arithmetic(card: int, issued: int) -> dict:
    """Bytes, flop and projected times of a body of one kernel each way."""
    chip, (flop_per_s, bytes_per_s) = CHIPS[card], RATES[card]
    weights = 4 * D * D + 3 * D * INNER
    flop = B * T * LAYERS * (2 * weights + 4 * T * D)
    partial = 4 * B * LAYERS * weights
    waves = -(-B // chip.multiprocessors)
    of_products = 4 * flop / (flop_per_s * B / waves / chip.multiprocessors) * 1e6  # backward computes it again: 1 + 3
    of_sums = 2 * partial / bytes_per_s * 1e6
    clock = chip.clocks(card) / chip.multiprocessors
    return {
        "weight_kb_a_layer": 2 * weights / 1e3, "residual_kb": 4 * T * D / 1024, "partial_mb": partial / 1e6,
        "gflop_forward": flop / 1e9, "waves": waves, "multiprocessors": chip.multiprocessors,
        "launches": LAUNCHES,
        "us": [of_products + of_sums, SLOWER * of_products + of_sums + LAUNCHES * FLOOR_US],
        "us_issue_forward": waves * issued * 8 / chip.warp_instructions_a_clock / clock * 1e6,
    }  # fmt: skip


def rounded(value):
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        values = {k: rounded(v) for k, v in items}
        return values if isinstance(value, dict) else list(values.values())
    return round(value, 2) if isinstance(value, float) else value


def figures() -> dict:
    note = "compiled and computed, not run on a GPU; times are projections"
    bodies = {str(card): body(card) for card in CHIPS}
    sums = {card: arithmetic(int(card), of["T 128"]["issued"]) for card, of in bodies.items()}
    return rounded({"note": note, "triton": triton.__version__, "body": bodies, "arithmetic": sums, "head": heads()})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=FILE)
    args = parser.parse_args()
    result = figures()
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
