"""Count the launches of a training step of configs/tiny.yaml without a GPU: `python -m bench.without_gpu.launches`.

The captured step of training runs under fake tensors. Each call that reaches PyTorch's dispatcher is counted as the
nodes of the CUDA graph that it becomes, kernels and cleared buffers: none for a view or an allocation, one for most
ops, more for those of MANY. Our ops count as the kernels that their launchers start (OURS); a test of tests/ counts
those again under Triton's interpreter. A product counts as one, though cuBLAS may cut it into two. The count has not
been checked on a GPU.
"""

import argparse
import contextlib
import json
from collections import Counter
from pathlib import Path
from unittest import mock

import torch

from tdlm_fast import config
from tdlm_fast.kernels.ops import stable_sort
from tdlm_fast.kernels.triton import tiles
from tdlm_fast.training import cuda_graph, memory_estimate
from tdlm_fast.training.cuda_graph import DeviceSteps
from tdlm_fast.training.device_adamw import DeviceAdamW

RESULTS = Path(__file__).parent.parent / "results" / "launches.json"
OBJECTIVES = ("diffusion", "autoregressive")
PARTS = ("draw and log", "forward", "backward", "clip", "optimizer")
TAKEN = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view")
TAKEN += ("bernoulli_", "div_")  # of a CPU's dropout; a GPU has one kernel for them and for the mul that follows


def _sort(keys, *_args, **_kwargs) -> int:
    """Indices, two cleared buffers, histogram and sums, then a cleared buffer and a pass a byte (PyTorch, CUB)."""
    return 5 + 2 * keys.element_size() if keys.numel() > 4096 else 3


MANY = {"sort": _sort}  # PyTorch's ops that take more than one launch


def _forward(h, weight, targets, n_rows, valid_vocab, dtype, need_dh) -> int:
    return 2 + (h.dtype != dtype) + (weight.dtype != dtype)


def _backward_weight(h, weight, targets, lse, grad, n_rows, valid_vocab, dtype) -> int:
    plan = tiles.fused(
        tiles.card(memory_estimate.CAPABILITY), *h.shape, len(weight), h.dtype, weight.dtype, dtype,
        processors=memory_estimate.PROCESSORS,
    )  # fmt: skip
    half, casts = plan.dtype == torch.float16, (h.dtype != dtype) + (weight.dtype != dtype)
    return 3 + casts + (2 if n_rows is None else 6) * half + (weight.dtype != torch.float32)


def _sum(h, weight, targets, token_weights, n_rows, valid_vocab, dtype) -> int:
    """Of the stored form: each chunk takes three products, a softmax, and the kernels that turn them into dh and dw."""
    (N, D), size = h.shape, tiles.stored_rows(valid_vocab, dtype)
    plan = tiles.product(tiles.card(memory_estimate.CAPABILITY), dtype, "towards_h")
    parts = [tiles.product_parts(plan, min(size, N - i), D, memory_estimate.PROCESSORS) for i in range(0, N, size)]
    casts = sum((a.dtype != dtype) + (a.dtype != torch.float32) for a in (h, weight))
    rows = 4 if n_rows is not None else 0
    chunks = sum(6 + (n > 1 and n_rows is not None) for n in parts)
    return 2 + rows + casts + 16 * (dtype == torch.float16) + chunks


def _gathered_backward(dx, x, w, targets, lse, grad, rows, n_rows, height, rows_of_w, of) -> int:
    plain = _backward_weight(x, w, targets, lse, grad, n_rows, len(w), x.dtype) - (w.dtype != torch.float32)
    return plain + (of != torch.float32) + 1 + (rows is not None)


OURS = {
    "lce_gathered": lambda h, rows, weight, targets, n, V, dtype: (
        4
    ),  # on the card of the count; 5 where logits are bounded
    "lce_gathered_backward": _gathered_backward,
    "lce_forward": _forward,
    "lce_backward_weight": _backward_weight,
    "lce_sum": _sum,
    "lce_backward_rows": lambda *_: 1,
    "corrupt": lambda *_: 2,
    "tile_attention": lambda *_: 1,
    "tile_attention_backward": lambda *_: 1,
    "rotary": lambda *_: 1,
    "rms_norm": lambda *_: 1,
    "rms_norm_backward": lambda *_: 2,
    "add_rms_norm": lambda *_: 1,
    "add_rms_norm_backward": lambda dy, ds, s, weight, eps, dtype: 1 + (weight.dim() == 1),
    "swiglu": lambda *_: 1,
    "swiglu_backward": lambda *_: 1,
    "stable_order": lambda keys, bound: 1 if stable_sort.serves(len(keys), bound) else 1 + _sort(keys.int()),
    "embedding_backward": lambda dx, tokens, rows: 3 + OURS["stable_order"](tokens.flatten(), rows),
    "put_rows": lambda *_: 2,
    "next_token": lambda *_: 1,
    "draw": lambda *_: 1,
    "clip_scale": lambda loss, grads, clip, steps: -(-len(grads) // 32) + 1,  # step_scalars.GRADIENTS
    "record": lambda *_: 1,
    "catch_up": lambda *_: 1,
    "update_rows": lambda *_: 1,
}  # for weights in fp32; with others the sums over parts take one more cast


def launches(func, args: tuple, kwargs: dict) -> int:
    """Return the launches of a call of an op on a GPU. Raises KeyError for an op of ours that is not in OURS."""
    space, name = func._schema.name.split("::")
    if space == "tdlm":
        return OURS[name](*args, **kwargs)
    if space != "aten":  # of the profiler or the tracer
        return 0
    returns = [r.alias_info for r in func._schema.returns]
    view = bool(returns) and all(a is not None and not a.is_write for a in returns)
    if view or name in TAKEN:
        return 0
    return MANY[name](*args, **kwargs) if name in MANY else 1


class Launches(memory_estimate.Meter):
    """Count the launches of the last step: found[part][op]."""

    def __init__(self):
        super().__init__()
        self.part, self.found = PARTS[0], {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if n := launches(func, args, kwargs or {}):
            self.found.setdefault(self.part, Counter())[func._schema.name.removeprefix("aten::")] += n
        return super().__torch_dispatch__(func, types, args, kwargs)

    def within(self, owner, name: str, part: str):
        """Count launches within owner.name for that part; a call of the first part begins a new step."""
        real = getattr(owner, name)

        def call(*args, **kwargs):
            before, self.part = self.part, part
            if part == PARTS[0]:
                self.found = {}
            try:
                return real(*args, **kwargs)
            finally:
                self.part = before

        return mock.patch.object(owner, name, call)


def counted(objective: str, *overrides: str, meter: Launches, path: str = "configs/tiny.yaml") -> Launches:
    """The meter, after two steps of a config have passed through it."""
    settings = config.load(path, [f"objective={objective}", *overrides])
    places = (
        (DeviceSteps, "body", "draw and log"), (cuda_graph, "backward", "forward"), (cuda_graph, "update", "clip"),
        (torch.Tensor, "backward", "backward"), (DeviceAdamW, "step", "optimizer"),
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        for place in places:
            stack.enter_context(meter.within(*place))
        memory_estimate.trace(settings, meter=meter)
    return meter


def count(objective: str, *overrides: str, path: str = "configs/tiny.yaml") -> dict:
    """{part: {op: launches}} of a step of a config."""
    figures = counted(objective, *overrides, meter=Launches(), path=path).found
    return {part: dict(figures[part].most_common()) for part in PARTS}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    figures = {o: count(o) for o in OBJECTIVES}
    totals = {o: sum(sum(ops.values()) for ops in parts.values()) for o, parts in figures.items()}
    note = "counted under fake tensors, without a GPU"
    text = {"torch": torch.__version__.partition("+")[0], "note": note, "totals": totals, "launches": figures}
    args.output.write_text(json.dumps(text, indent=1) + "\n")
    for objective, parts in figures.items():
        print(f"{objective}: {totals[objective]}")
        for part, ops in parts.items():
            print(f"  {part:14} {sum(ops.values()):4}  " + ", ".join(f"{op} {n}" for op, n in ops.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
