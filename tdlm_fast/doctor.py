"""Print what serves each op on this machine, and why: `python -m tdlm_fast.doctor`."""

import sys

import torch

from .cli import verb
from .config import ConfigError
from .runs.device import kernels, pick_device, versions


def chains(device: torch.device) -> dict[str, list[tuple[str, str]]]:
    """{op: [(backend, "" where it serves, else why not)]} at the sizes of configs/tiny.yaml in bf16."""
    kernels()
    from .kernels.dispatch import answers, name
    from .kernels.ops import attention, batch, corrupt, embedding, next_token, rms_norm, rows, stable_sort, swiglu
    from .kernels.ops import linear_cross_entropy as head
    from .kernels.ops import step_scalars as scalars

    def floats(*shape: int, dtype=torch.bfloat16):
        return torch.empty(shape, dtype=dtype, device=device)

    def integers(*shape: int, dtype=torch.int64):
        return torch.zeros(shape, dtype=dtype, device=device)

    V, eps, fp32 = 50257, 1e-6, torch.float32
    h, w, g, y, n = floats(8, 64), floats(V, 64, dtype=fp32), floats(8, dtype=fp32), integers(8), integers()
    x, weight, gate, q = floats(8, 64, dtype=fp32), floats(64, dtype=fp32), floats(8, 384), floats(1, 4, 128, 16)
    x0, one, how = integers(2, 128), floats(dtype=fp32), (None, None, None, False, 0.0, True)
    calls = {
        head.lce_forward: (h, w, y, n, V, h.dtype, True),
        head.lce_backward_weight: (h, w, y, g, g, n, V, h.dtype),
        head.lce_backward_rows: (h, g, n),
        head.lce_sum: (h, w, y, g, n, V, h.dtype),
        corrupt.corrupt_op: (x0, None, 0, 0, None, n, V, "linear", "stratified", 0, 2),
        attention.tile_attention: (q, q, q, *how),
        attention.tile_attention_backward: (q, q, q, q, *how),
        rms_norm.rms_norm_forward: (x, weight, eps),
        rms_norm.rms_norm_backward: (x, x, weight, eps),
        rms_norm.add_rms_norm_forward: (x, h, weight, eps, h.dtype),
        rms_norm.add_rms_norm_backward: (h, x, x, weight, eps, h.dtype),
        swiglu.swiglu_forward: (gate,),
        swiglu.swiglu_backward: (gate[:, :192], gate),
        embedding.embedding_backward: (x, y, V),
        rows.put_rows: (h, y, n, 8),
        next_token.next_token: (x0, x0, x0 > 0, V),
        batch.draw: (integers(9, dtype=torch.int16), y, y, y, n, 2, 1, 128, 65535, False),
        stable_sort.stable_order: (y, V),
        scalars.clip_scale: (g, one, 1.0),
        scalars.record: (floats(4, 4, dtype=torch.float64), n, one, one, n, n),
    }
    found = {name(op): answers(op, *args) for op, args in calls.items()}
    chosen = attention.backend(q, masked=True)
    return found | {"attention": [({"tile": "tile_attention", "sdpa": "PyTorch's SDPA"}.get(chosen, chosen), "")]}


def main() -> int:
    try:
        device = pick_device("auto")
        found, served = versions(device), chains(device)
    except ConfigError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(f"device                   {found['device']}")
    for name, version in found["versions"].items():
        print(f"{name:25}{version or 'not installed'}")
    graph = "one CUDA graph" if device.type == "cuda" else "eager: CUDA graphs need a GPU"
    print(f"step                     {graph}")
    print(f"cuda                     {kernels().cuda.library.describe()}")
    for name, links in served.items():
        print(f"{name:25}{', '.join(f'{backend} ({why})' if why else backend for backend, why in links)}")
    return 0


if __name__ == "__main__":
    sys.exit(verb(main))
