"""What the compiled Triton kernels take of each card, without one: `python -m bench.resources` (`make resources`).

Every kernel that lce_plan.configurations or corrupt_triton can launch is compiled for sm_80 to sm_120; registers, shared
memory and spills come from cuobjdump, the instruction mix of the head at tiny on sm_86 from nvdisasm. A test compiles
some again and compares. The projected time is arithmetic on that mix and the data sheet: nobody measured it.
"""

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tdlm_fast.kernels import corrupt_triton, lce_plan, lce_stored, lce_triton

RESULTS = Path(__file__).parent / "results" / "resources.json"
BIN = Path(triton.backends.nvidia.__file__).parent / "bin"
POINTER = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
REGISTERS, WARPS = 65536, {80: 64, 86: 48, 89: 48, 90: 64, 100: 64, 120: 48}  # of a multiprocessor
SHARED = {80: 164, 86: 100, 89: 100, 90: 228, 100: 228, 120: 100}  # KB of a multiprocessor; each program pays 1 KB more


def compiled(kernel, card: int, types: dict, constants: dict, options: dict):
    """The compiled kernel. types: Triton type of each argument that is neither constant nor None."""
    names = kernel.arg_names
    signature = {n: types.get(n, "constexpr") for n in names}
    values = {(i,): constants.get(n) for i, n in enumerate(names) if n not in types}
    # What the launcher finds out of the tensors: 16-byte alignment, and widths that are multiples of 16.
    aligned = [n for n in types if types[n][0] == "*" or n == "D" or n == "T"]
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned}
    source = ASTSource(kernel, signature, values, attributes)
    return triton.compile(source, target=GPUTarget("cuda", card, 32), options=options)


def _tool(name: str, cubin: bytes, *flags: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as f:
        f.write(cubin)
        f.flush()
        return subprocess.run([BIN / name, *flags, f.name], capture_output=True, text=True, check=True).stdout


def resources(kernel, card: int, warps: int) -> dict:
    """{"registers", "shared", "stack", "local", "programs"} of a compiled kernel; programs fit a multiprocessor."""
    text = _tool("cuobjdump", kernel.asm["cubin"], "--dump-resource-usage")
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    registers, shared = int(found["REG"]), kernel.metadata.shared
    granted = -(-registers // 8) * 8 * 32 * warps
    programs = min(REGISTERS // granted, (SHARED[card] << 10) // (shared + 1024), WARPS[card] // warps)
    stack, local = int(found["STACK"]), int(found["LOCAL"])
    return {"registers": registers, "shared": shared, "stack": stack, "local": local, "programs": programs}


def kernels(card: int):
    """Everything that can be launched on a card: (name, kernel, types, constants, options)."""
    for name, of, tiles in lce_plan.configurations(card):
        x, half = POINTER[of["dtype"]], of["half_sums"]
        types = {"H": x, "W": x, "N_ROWS": "*i64", "N": "i32", "V": "i32", "D": "i32"}
        constants = {"BLOCK_N": tiles.rows, "BLOCK_V": tiles.vocab, "BLOCK_D": of["block_d"], "HALF_SUMS": half}
        scaled = {"GMAX": "*fp32"} if of["dtype"] == torch.float16 else {}
        title = f"{str(of['dtype'])[6:]}{', fp16 sums' if half else ''}, D {of['block_d']}"
        if name == "forward":
            types |= {"M": "*fp32", "L": "*fp32"} | ({"ACC": "*fp32"} if of["need_dh"] else {})
            constants |= {"NEED_DH": of["need_dh"], "MAX_SPLITS": lce_plan.MAX_SPLITS}
            title = f"forward{'' if of['need_dh'] else ' without dh'}, {title}"
            yield title, lce_triton.forward_kernel, types, constants, tiles.options
            out = {"Y": "*i64", "NLL": "*fp32", "LSE": "*fp32", "programs": "i32"}
            out |= {"DH": x} if of["need_dh"] else {}
            constants = {k: v for k, v in constants.items() if k != "HALF_SUMS"} | {"ROWS": of["combine_rows"]}
            yield f"combine of {title}", lce_triton.combine_kernel, types | out, constants, lce_plan.SMALL
        else:
            types |= {"SHIFT": "*fp32", "GS": "*fp32", "CODE": "*i32", "DW": x, "rows_of_w": "i32"} | scaled
            constants |= {"HEADROOM": of["headroom"]}
            yield f"weight, {title}", lce_triton.weight_kernel, types, constants, tiles.options
    f32, i64 = "*fp32", "*i64"
    per_row = {"Y": i64, "LSE": f32, "G": f32, "N_ROWS": i64, "N": "i32"}
    types = per_row | {"GMAX": f32, "SHIFT": f32, "GS": f32, "CODE": "*i32", "padded": "i32"}
    constants = {"HEADROOM": 12, "ROWS": lce_plan.FOLD_ROWS}
    yield "fold", lce_triton.fold_kernel, types, constants, lce_plan.SMALL
    for dtype, x in POINTER.items():
        types = {"Z": x, "Y": i64, "N_ROWS": i64, "LSE": f32, "first": "i32", "N": "i32", "V": "i32"}
        constants = {"WRITE": True, "BLOCK": lce_stored.BLOCK}
        yield f"softmax, {str(dtype)[6:]}", lce_stored.softmax_kernel, types | {"NLL": f32}, constants, lce_plan.SMALL
        constants = {"HEADROOM": lce_stored.HEADROOM, "BLOCK": lce_stored.BLOCK}
        yield f"weigh, {str(dtype)[6:]}", lce_stored.weigh_kernel, types | {"G": f32}, constants, lce_plan.SMALL
    buffers = {"X0": i64, "MASKED": "*i1", "WEIGHTS": f32, "HOW_MANY": "*i32", "T": "i32"}
    drawn = {"VALID": "*i1", "THRESHOLD": i64, "WEIGHT": f32, "XT": i64, "T_OUT": f32, "KEY": i64, "seed": "i32"}
    drawn |= dict.fromkeys(("step", "mask_token_id", "row_offset", "batch_rows"), "i32")
    listed = {"ROWS": i64, "TARGETS": i64, "ROW_WEIGHTS": f32, "N_MASKED": i64, "B": "i32"}
    for block in (1 << i for i in range(4, 15)):
        options = corrupt_triton.launch_options(block)
        for i, sampling in enumerate(corrupt_triton.SAMPLINGS):
            constants = {"SAMPLING": i, "BLOCK_T": block}
            yield f"mask, {sampling}, T {block}", corrupt_triton.mask_kernel, buffers | drawn, constants, options
        constants = {"BLOCK_T": block, "BLOCK_B": corrupt_triton.BLOCK_B}
        yield f"compact, T {block}", corrupt_triton.compact_kernel, buffers | listed, constants, options


def measure(card: int, only=lambda name: True) -> dict:
    """{name: resources} of what can be launched on a card and `only` takes."""
    found = {}
    for name, kernel, types, constants, options in kernels(card):
        if only(name):
            found[name] = resources(compiled(kernel, card, types, constants, options), card, options["num_warps"])
    return found


def faults(card: int, found: dict) -> list[str]:
    """What a kernel may not do: spill, or take more shared memory than the card gives a program."""
    limit = lce_plan.SHARED_KB[card] << 10
    spills = [f"sm_{card} {n} spills: stack {r['stack']}, local {r['local']}" for n, r in found.items()
              if r["stack"] or r["local"]]  # fmt: skip
    return spills + [f"sm_{card} {n} takes {r['shared']} bytes" for n, r in found.items() if r["shared"] > limit]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cards", type=int, nargs="*", default=list(lce_plan.SHARED_KB))
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    cards, wrong = {}, []
    for card in args.cards:
        cards[card] = measure(card)
        wrong += faults(card, cards[card])
        print(f"sm_{card}: {len(cards[card])} kernels", flush=True)
    print("\n".join(wrong) or "no spills, shared memory within every card's limit")
    return len(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
