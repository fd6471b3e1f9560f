"""What serves each op here, and why: `python -m tdlm_fast.doctor`."""

import sys

import torch

from .cli import verb
from .config import ConfigError
from .runs.device import kernels, pick_device, versions


def serving(device: torch.device) -> dict[str, str]:
    """Op -> what serves it on that device at the size of configs/tiny.yaml, in bf16."""
    k = kernels()
    from .kernels.ops.attention import HAS_TRITON, backend

    q = torch.empty(1, 4, 128, 16, dtype=torch.bfloat16, device=device)
    which = backend(q, masked=True)
    if device.type == "cpu":
        native = k.native.describe()
        served = dict.fromkeys(("linear_cross_entropy", "corrupt", "rms_norm", "swiglu"), native)
        tile, rows = f"native, {native}", "PyTorch"
    else:
        served = {"linear_cross_entropy": k.native_cuda.describe()} | k.gpu.served()
        tile = "Triton, one tile a head"
        rows = "PyTorch forward, Triton backward" if HAS_TRITON else "PyTorch forward, torch reference backward"
    return served | {"attention": {"tile": tile, "sdpa": "PyTorch's SDPA"}.get(which, which), "embedding": rows}


def main() -> int:
    try:
        device = pick_device("auto")
        found, served = versions(device), serving(device)
    except ConfigError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(f"device                {found['device']}")
    for name, version in found["versions"].items():
        print(f"{name:22}{version or 'not installed'}")
    for name, by in served.items():
        print(f"{name:22}{by}")
    graph = "one CUDA graph" if device.type == "cuda" else "eager: CUDA graphs need a GPU"
    print(f"step                  {graph}")
    print(f"cuda                  {kernels().native_cuda.describe()}")
    return 0


if __name__ == "__main__":
    sys.exit(verb(main))
