"""Compile every Triton kernel for each card and read its resources: `python -m bench.without_gpu.resources`.

No GPU is needed (`make resources` runs it). Every kernel of the fused head that can be launched is compiled for sm_80
to sm_120 with all its arguments, for widths that are multiples of 16 and for others. Besides: corruption for some
padded lengths; attention for some tiles, with no mask and with every mask, with and without rotary positions; the norm,
the gate and the embedding's gradient for some widths; and the small kernels around them. Registers, shared memory and
spills come from cuobjdump. A test compiles some kernels again and compares.
"""

import argparse
import itertools
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tdlm_fast.kernels.ops.attention import tile_fits, turns_fit
from tdlm_fast.kernels.triton import (
    attention,
    batch,
    corrupt,
    embedding,
    lazy_adamw,
    linear_cross_entropy,
    linear_cross_entropy_chunked,
    matmul,
    next_token,
    rms_norm,
    rotary,
    stable_sort,
    step_scalars,
    swiglu,
    tiles,
)

RESULTS = Path(__file__).parent.parent / "results" / "resources.json"
BIN = Path(triton.backends.nvidia.__file__).parent / "bin"
POINTER = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
STRIDES = [f"{tensor}_{axis}" for tensor in "qkvgo" for axis in "bht"]  # of attention
STRIDES += ["apart", "a_m", "a_k", "b_k", "b_n", "c_m", "c_part"]  # of the stored form
REGISTERS, WARPS = 65536, {80: 64, 86: 48, 89: 48, 90: 64, 100: 64, 120: 48}  # of a multiprocessor
SHARED = {80: 164, 86: 100, 89: 100, 90: 228, 100: 228, 120: 100}  # KB of a multiprocessor; a program takes 1 KB more


def compiled(kernel, card: int, types: dict, constants: dict, options: dict, aligned: bool = True):
    """The compiled kernel. types: Triton type of each argument that is neither constant nor None, a tuple of a tuple.

    Triton's launcher finds pointers to be aligned to 16 bytes. aligned: it also finds widths and strides to be
    multiples of 16, those of these names and those whose type ends in ":16".
    """
    names = kernel.arg_names
    widths = [n for n, t in types.items() if t[-3:] == ":16" or n in ("D", "T", *STRIDES)]
    types = {n: t.removesuffix(":16") if isinstance(t, str) else t for n, t in types.items()}
    signature = {n: types.get(n, "constexpr") for n in names}
    constants, options = constants | {"PDL": card >= 90}, options | {"launch_pdl": card >= 90}  # as on that card
    values = {(i,): constants.get(n) for i, n in enumerate(names) if n not in types}
    plain = {p.name for p in kernel.params if p.do_not_specialize}
    whole = [n for n in types if types[n][0] == "*" or aligned and n in widths and n not in plain]
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in whole}
    parts = [
        (names.index(n), i) for n, t in types.items() if isinstance(t, tuple) for i in range(len(t)) if t[i][0] == "*"
    ]
    attributes |= {place: [["tt.divisibility", 16]] for place in parts}
    source = ASTSource(kernel, signature, values, attributes)
    return triton.compile(source, target=GPUTarget("cuda", card, 32), options=options)


def tool(name: str, cubin: bytes, *flags: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as f:
        f.write(cubin)
        f.flush()
        return subprocess.run([BIN / name, *flags, f.name], capture_output=True, text=True, check=True).stdout


def resources(kernel, card: int, warps: int) -> dict:
    """{"registers", "shared", "stack", "local", "programs"} of a compiled kernel; programs fit a multiprocessor."""
    text = tool("cuobjdump", kernel.asm["cubin"], "--dump-resource-usage")
    figures = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    registers, shared = int(figures["REG"]), kernel.metadata.shared
    granted = -(-registers // 8) * 8 * 32 * warps
    programs = min(REGISTERS // granted, (SHARED[card] << 10) // (shared + 1024), WARPS[card] // warps)
    stack, local = int(figures["STACK"]), int(figures["LOCAL"])
    return {"registers": registers, "shared": shared, "stack": stack, "local": local, "programs": programs}


def kernels(card: int):
    """Yield (name, kernel, types, constants, options) of everything that is launched on a card."""
    yield from head_kernels(card)
    yield from corruption_kernels()
    yield from attention_kernels(card)
    yield from rotary_kernels()
    yield from embedding_kernels()
    yield from row_kernels()
    yield from small_kernels()


def gradients(title: str, x: str) -> list[tuple[str, str]]:
    """(name, type) of a kernel that writes a gradient: for weights in fp32, and for weights in 16 bits."""
    return [(title, "*fp32")] + ([] if x == "*fp32" else [(f"{title}, of 16 bits", x)])


def configurations(card: int) -> Iterator[tuple[str, dict, tiles.Tiles]]:
    """Every fused kernel that can be launched on a card: its name, what it is specialised to, its tiles."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for D in (16, 32, 64, 128, 256, 512, 15, 31, 63, 127, 255, 511):
            for half in (False, True):
                plan = tiles.fused(card, 8192, D, 50257, dtype, dtype, dtype, processors=64, half=half)
                if plan is None or plan.half_sums != half or plan.dtype != dtype:
                    continue
                of = {"dtype": dtype, "block_d": plan.block_d, "half_sums": half, "headroom": plan.headroom}
                of["odd_width"] = D % 16 != 0
                of |= {n: getattr(plan, n) for n in ("combine_rows", "gather_rows", "bounds_logits")}
                yield "forward", of | {"need_dh": True}, plan.forward
                yield "weight", of, plan.weight
                if not of["odd_width"]:  # there too it takes less than with dh
                    yield "forward", of | {"need_dh": False}, plan.forward


def head_kernels(card: int):
    for name, of, tile in configurations(card):
        x, half = POINTER[of["dtype"]], of["half_sums"]
        types = {"H": x, "W": x, "N_ROWS": "*i64", "N": "i32", "V": "i32", "D": "i32"}
        constants = {"BLOCK_N": tile.rows, "BLOCK_V": tile.vocab, "BLOCK_D": of["block_d"], "HALF_SUMS": half}
        scaled = {"GMAX": "*fp32"} if of["dtype"] == torch.float16 else {}
        title = f"{str(of['dtype'])[6:]}{', fp16 sums' if half else ''}, D {of['block_d']}"
        title += ", odd width" * of["odd_width"]
        if name == "forward":
            types |= {"M": "*fp32", "L": "*fp32"} | ({"ACC": "*fp32"} if of["need_dh"] else {})
            constants |= {"NEED_DH": of["need_dh"], "PEELED": tile.peeled, "LOGITS": "any"}
            types |= {"n_h": "i32", "n_w": "i32"}
            title = f"forward{'' if of['need_dh'] else ' without dh'}, {title}"
            yield title, linear_cross_entropy.forward_kernel, types, constants, tile.options
            if of["need_dh"] and of["bounds_logits"]:
                for logits in ("small", "large"):
                    bounded = types | {"LONGEST_H": "*fp32", "LONGEST_W": "*fp32"}, constants | {"LOGITS": logits}
                    yield f"{title}, {logits} logits", linear_cross_entropy.forward_kernel, *bounded, tile.options
            out = {"Y": "*i64", "NLL": "*fp32", "LSE": "*fp32", "programs": "i32"}
            types, constants = _pick(linear_cross_entropy.combine_kernel, types, constants)
            constants |= {"ROWS": of["combine_rows"]}
            for name, dh in gradients(f"combine of {title}", x)[: 2 if of["need_dh"] else 1]:
                more = out | ({"DH": dh} if of["need_dh"] else {})
                yield name, linear_cross_entropy.combine_kernel, types | more, constants, tiles.SMALL
        else:
            types |= {"SHIFT": "*fp32", "GS": "*fp32", "CODE": "*i32", "DW": "*fp32", "PART": "*fp32"} | scaled
            types |= {"rows_of_w": "i32", "programs": "i32"}
            constants |= {"HEADROOM": of["headroom"], "ROWS": of["gather_rows"]}
            for name, kernel, options in (("weight", linear_cross_entropy.weight_kernel, tile.options),
                                          ("gather", linear_cross_entropy.gather_kernel, tiles.SMALL)):  # fmt: skip
                yield f"{name}, {title}", kernel, *_pick(kernel, types, constants), options
    f32, i64 = "*fp32", "*i64"
    per_row = {"Y": i64, "LSE": f32, "G": f32, "N_ROWS": i64, "N": "i32"}
    types = per_row | {"GMAX": f32, "SHIFT": f32, "GS": f32, "CODE": "*i32", "padded": "i32"}
    constants = {"HEADROOM": 12, "ROWS": tiles.FOLD_ROWS}
    yield "fold", linear_cross_entropy.fold_kernel, types, constants, tiles.SMALL
    for (dtype, x), D in itertools.product(POINTER.items(), (16, 64, 1024)):
        types = {"N_ROWS": i64, "N": "i32", "D": "i32"}
        constants, of = tiles.rows_launch(1, D)[1], f"{str(dtype)[6:]}, D {D}"
        kernel, more = linear_cross_entropy.rows_kernel, {"DH": x, "OUT": x, "G": f32}
        yield f"rows, {of}", kernel, types | more, constants, tiles.SMALL
        yield f"rows scattered, {of}", kernel, types | more | {"TO": i64}, constants, tiles.SMALL
        kernel, more = linear_cross_entropy.take_kernel, {"H": f32, "X": x, "FROM": i64, "LONGEST": f32}
        yield f"rows taken, {of}", kernel, types | more, constants, tiles.SMALL
    yield from stored(card)


def stored(card: int):
    f32, i64 = "*fp32", "*i64"
    for dtype, x in POINTER.items():
        name, scaled = str(dtype)[6:], {"GMAX": f32} if dtype == torch.float16 else {}
        types = {"Z": x, "Y": i64, "N_ROWS": i64, "LSE": f32, "first": "i32", "N": "i32", "V": "i32", "apart": "i32"}
        constants = {"HEADROOM": linear_cross_entropy_chunked.HEADROOM, "BLOCK": linear_cross_entropy_chunked.BLOCK}
        for of, more in (("softmax", {"NLL": f32}), ("softmax of a sum", {"NLL": f32, "G": f32} | scaled)):
            kernel = linear_cross_entropy_chunked.softmax_kernel
            yield f"{of}, {name}", kernel, types | more, constants | {"WRITE": True}, tiles.SMALL
        kernel = linear_cross_entropy_chunked.weigh_kernel
        yield f"weigh, {name}", kernel, types | {"G": f32} | scaled, constants, tiles.SMALL
        for of, one in zip(tiles.PRODUCTS, (("a_k", "b_k"), ("a_k", "b_n"), ("a_m", "b_n")), strict=True):
            plan = tiles.product(card, dtype, of)
            types = {"A": x, "B": x, "C": x if of == "logits" else f32, "N_ROWS": i64}
            types |= dict.fromkeys(("first", "rows", "M", "N", "K", "c_m", "c_part"), "i32")
            types |= {"K" if of == "logits" else "N": "i32:16"}  # D
            types |= {n: "i32" for n in ("a_m", "a_k", "b_k", "b_n") if n not in one}
            constants = {"OF": of, "BLOCK_M": plan.m, "BLOCK_N": plan.n, "BLOCK_K": plan.k} | dict.fromkeys(one, 1)
            for add in (False, True)[: 1 + (of == "towards_w")]:
                title = f"{of.replace('_', ' ')}{', added' * add}, {name}"
                yield title, matmul.product_kernel, types, constants | {"ADD": add}, plan.options


def corruption_kernels():
    f32, i64 = "*fp32", "*i64"
    buffers = {"X0": i64, "MASKED": "*i1", "WEIGHTS": f32, "HOW_MANY": "*i32", "T": "i32"}
    drawn = {"VALID": "*i1", "THRESHOLD": i64, "WEIGHT": f32, "XT": i64, "T_OUT": f32, "STEP_AT": i64}
    drawn |= dict.fromkeys(("seed", "step", "mask_token_id", "row_offset", "batch_rows"), "i32")
    listed = {"ROWS": i64, "TARGETS": i64, "ROW_WEIGHTS": f32, "N_MASKED": i64, "chunks": "i32"}
    for T in (16, 128, corrupt.CHUNK, tiles.MAX_T):
        for i, sampling in enumerate(corrupt.SAMPLINGS):
            block, options = corrupt.launch(T, sampling)
            if block < T:
                continue
            constants = {"SAMPLING": i, "BLOCK_T": block}
            yield f"mask, {sampling}, T {T}", corrupt.mask_kernel, buffers | drawn, constants, options
        constants = {"BLOCK_T": block, "BLOCK_C": corrupt.BLOCK_C}  # of the last, counts
        yield f"compact, T {T}", corrupt.compact_kernel, buffers | listed, constants, options


def attention_kernels(card: int):
    masks = {"VALID": "*u8", "SEGMENTS": "*i64", "KEY": "*i64"}
    for T, K in ((16, 64), (32, 32), (64, 32), (64, 64), (128, 16), (128, 32)):
        if not tile_fits(T, K, divmod(card, 10)):
            continue
        launch = attention.launch(T, K)
        options = {k: v for k, v in launch.items() if "BLOCK" not in k}
        kinds = itertools.product((torch.bfloat16, torch.float16), (False, True), (False, True)[: 1 + turns_fit(T, K)])
        for dtype, masked, turned in kinds:
            of = f"{str(dtype)[6:]}, T {T}, K {K}{', causal, every mask' * masked}{', turned' * turned}"
            constants = {"HEAD_K": K, "CAUSAL": masked, "THRESHOLD": masked << 28}
            constants |= {k: v for k, v in launch.items() if "BLOCK" in k}
            types = dict.fromkeys(("Q", "K", "V", "OUT", "DOUT", "DQ", "DK", "DV"), POINTER[dtype])
            types |= dict.fromkeys(STRIDES, "i32") | {"H": "i32", "T": "i32", "scale": "fp32", "rescale": "fp32"}
            types |= (masks if masked else {}) | ({"TURNS": "*fp32"} if turned else {})
            for name, kernel in (("attention", "forward_kernel"), ("attention's gradient", "backward_kernel")):
                kernel = getattr(attention, kernel)
                yield f"{name}, {of}", kernel, {n: types[n] for n in kernel.arg_names if n in types}, constants, options


def rotary_kernels():
    for (dtype, x), K in itertools.product(POINTER.items(), (16, 32, 64, 128)):
        types = dict.fromkeys(("Q", "K", "OUT_Q", "OUT_K"), x) | {"TURNS": "*fp32"}
        types |= dict.fromkeys(("M", "T", "H", *STRIDES[:6]), "i32")
        constants = {"HALF": K // 2, "BACK": True} | rotary.launch(K)
        yield f"rotary, {str(dtype)[6:]}, K {K}", rotary.turn_kernel, types, constants, tiles.SMALL


def embedding_kernels():
    for (dtype, x), (D, odd) in itertools.product(POINTER.items(), ((16, False), (64, False), (64, True))):
        constants = {"CHUNK": embedding.CHUNK, "LOOK": embedding.LOOK, "BLOCK_D": D}
        types = {"SORTED": "*i32", "ORDER": "*i64", "DX": x, "DW": x, "PART": "*fp32", "N": "i32", "D": "i32"}
        for name, kernel in (("chunk", embedding.chunk_kernel), ("run", embedding.run_kernel)):
            of = f"embedding's {name}s, {str(dtype)[6:]}, D {D}{', odd width' * odd}"
            yield of, kernel, *_pick(kernel, types, constants), embedding.OPTIONS
        types = {"DX": x, "AT": "*i64", "N_ROWS": "*i64", "DH": x, "M": "i32", "D": "i32"}
        of = f"rows put, {str(dtype)[6:]}, D {D}{', odd width' * odd}"
        constants = {"ROWS": 1024 // D, "BLOCK_D": D}
        yield of, embedding.put_kernel, types, constants, embedding.OPTIONS


def _pick(kernel, *given: dict) -> list[dict]:
    """Keep of each dictionary the arguments of the kernel."""
    return [{k: v for k, v in d.items() if k in kernel.arg_names} for d in given]


def row_kernels():
    f32 = torch.float32
    for D, odd in ((16, False), (64, False), (64, True), (tiles.MAX_D, False)):
        launch = rms_norm.launch(D)
        options = {k: v for k, v in launch.items() if k not in ("ROWS", "BLOCK_D")}
        for x, y in ((f32, torch.bfloat16), (f32, f32), (torch.bfloat16,) * 2, (torch.float16,) * 2):
            types = dict.fromkeys(("X", "S", "DS", "DX"), POINTER[x]) | dict.fromkeys(("A", "Y", "DY"), POINTER[y])
            types |= {"DA": POINTER[y]} if x != y else {}
            types |= {"W": "*fp32", "PART": "*fp32", "N": "i32", "D": "i32", "eps": "fp32", "tiles": "i32"}
            of = f"{str(x)[6:]} to {str(y)[6:]}, D {D}{', odd width' * odd}"
            for name, kernel in (("norm", rms_norm.forward_kernel),
                                 ("norm's gradient", rms_norm.backward_kernel)):  # fmt: skip
                yield f"{name}, {of}", kernel, *_pick(kernel, types, launch), options
    for (dtype, x), (D, odd) in itertools.product(POINTER.items(), ((16, False), (192, False), (192, True))):
        launch = tiles.rows_launch(1, D)[1]
        types = dict.fromkeys(("X", "Y", "DY", "DX"), x) | {"M": "i32", "D": "i32"}
        of = f"{str(dtype)[6:]}, D {D}{', odd width' * odd}"
        for name, kernel in ("gate", swiglu.forward_kernel), ("gate's gradient", swiglu.backward_kernel):
            yield f"{name}, {of}", kernel, *_pick(kernel, types, launch), tiles.SMALL


def small_kernels():
    f32, i64, constants = "*fp32", "*i64", {"BLOCK": stable_sort.BLOCK, "LOOK": stable_sort.LOOK}
    types = {"KEYS": i64, "SORTED": "*i32", "ORDER": i64, "N": "i32"}
    yield "order of tokens", stable_sort.rank_kernel, types, constants, stable_sort.OPTIONS
    for T in (16, 128, tiles.MAX_T):
        launch = next_token.launch(T)
        types = dict.fromkeys(("READ", "X0", "SHIFTED", "ORDER", "TARGETS", "COUNT"), i64)
        types |= {"VALID": "*i1", "SEEN": "*i1", "N": "i32", "T": "i32", "start": "i32"}
        options = {k: v for k, v in launch.items() if "BLOCK" not in k}
        kernel = next_token.next_token_kernel
        yield f"next token, T {T}", kernel, types, _pick(kernel, launch)[0], options
    for of, tokens in (("int16", "*i16"), ("int32, padded", "*i32")):
        types = {"TOKENS": tokens} | dict.fromkeys(("STARTS", "LENGTHS", "ORDER", "STEP", "X0"), i64)
        types |= {"VALID": "*i1"} if "padded" in of else {}
        types |= dict.fromkeys(("T", "steps_per_epoch", "n_tokens", "token_mask"), "i32")
        yield f"draw, {of}", batch.draw_kernel, types, {"BLOCK": 128}, batch.OPTIONS
    constants = {"BLOCK": step_scalars.BLOCK}
    for n in (15, step_scalars.GRADIENTS):  # of configs/tiny.yaml, and at most
        types = {"GRADS": (f32,) * n, "SIZES": ("i32",) * n, "SUMS": f32}
        yield f"squares of {n} gradients", step_scalars.squares_kernel, types, constants, step_scalars.WIDE
    types = dict.fromkeys(("SUMS", "LOSS", "NORM", "SCALE", "SKIP", "STEPS"), f32) | {"n": "i32", "clip": "fp32"}
    yield "clip", step_scalars.clip_kernel, types, constants, step_scalars.WIDE
    types = {"LOG": "*fp64", "STEP": i64, "LOSS": f32, "NORM": f32, "LOSS_TOKENS": i64, "TOKENS": i64, "window": "i32"}
    yield "record", step_scalars.record_kernel, types, {}, step_scalars.OPTIONS
    types = dict.fromkeys(("P", "M", "V", "SCALARS", "STEPS", "GRAD", "LR", "SCALE", "SKIP"), f32)
    types |= dict.fromkeys(("beta1", "beta2", "rest1", "rest2", "eps"), "fp32") | {"LAST": "*i32", "MARK": "*i32"}
    types |= {"TRAIN_STEP": i64, "TOKENS": i64, "ALWAYS": i64, "N": "i32", "D": "i32", "rows": "i32"}
    for D, odd in ((16, False), (64, False), (64, True), (1024, False)):
        of = f"D {D}{', odd width' * odd}"
        launch, kernel = lazy_adamw.catch_up_launch(D), lazy_adamw.catch_up_kernel
        constants, options = {"BLOCK_D": launch["BLOCK_D"]}, lazy_adamw.OPTIONS | {"num_warps": launch["num_warps"]}
        all_rows = {n: t for n, t in types.items() if n != "TOKENS"}
        yield f"catch up, {of}", kernel, *_pick(kernel, types, constants), options
        yield f"settle, {of}", kernel, *_pick(kernel, all_rows, constants), options
        options, kernel = lazy_adamw.OPTIONS | {"num_warps": 4}, lazy_adamw.update_kernel
        yield f"update rows, {of}", kernel, *_pick(kernel, types, tiles.rows_launch(1, D)[1]), options


def measure(card: int, only=lambda name: True) -> dict:
    """{name: resources} of the kernels of a card whose name `only` accepts."""
    figures = {}
    for name, kernel, types, constants, options in kernels(card):
        if only(name):
            code = compiled(kernel, card, types, constants, options, "odd width" not in name)
            figures[name] = resources(code, card, options["num_warps"])
    return figures


def faults(card: int, found: dict) -> list[str]:
    """The kernels that spill, or take more shared memory than the card gives a program, in words."""
    limit = tiles.SHARED_KB[card] << 10
    spills = [f"sm_{card} {n} spills: stack {r['stack']}, local {r['local']}" for n, r in found.items()
              if r["stack"] or r["local"]]  # fmt: skip
    return spills + [f"sm_{card} {n} takes {r['shared']} bytes" for n, r in found.items() if r["shared"] > limit]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cards", type=int, nargs="*", default=list(tiles.SHARED_KB))
    parser.add_argument(
        "--only", default="", help="regular expression: compile only the kernels whose name it matches, keep the others"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    wrong = []
    for card in args.cards:
        now = measure(card, lambda name: re.search(args.only, name))
        wrong += faults(card, now)
        print(f"sm_{card}: {len(now)} kernels", flush=True)
        figures = json.loads(args.output.read_text()) if args.output.exists() else {"cards": {}}
        known = figures["cards"].get(str(card), {}) | now if args.only else now
        names = [name for name, *_ in kernels(card)]
        cards = figures["cards"] | {str(card): {name: known[name] for name in names if name in known}}
        figures |= {"triton": triton.__version__}
        figures["cards"] = dict(sorted(cards.items(), key=lambda c: int(c[0])))
        args.output.write_text(json.dumps(figures, indent=1) + "\n")
    print("\n".join(wrong) or "no spills, shared memory within every card's limit")
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
