"""Choose the device of a run, record the versions that ran, and list what serves each op."""

import importlib.metadata
import platform
import sys
from pathlib import Path

import torch

from ..config import ConfigError, check_device


def kernels():
    """Return the package tdlm_fast.kernels. Raises ConfigError where the environment asks for a missing backend."""
    try:
        from .. import kernels
    except ValueError as e:
        raise ConfigError(str(e)) from None
    return kernels


def tell_missing(device: torch.device) -> None:
    """Print one line on stderr where the native CPU kernels are missing: what is lost and how to get them."""
    why = kernels().cpu.library.missing()
    if device.type == "cpu" and why:
        print(f"NOTE: no native CPU kernels, so this runs many times slower: {why}", file=sys.stderr)


def pick_device(name: str) -> torch.device:
    """Return the device of a config's `device`; auto is the GPU if there is one. Raises ConfigError."""
    check_device(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={name}: PyTorch sees {torch.cuda.device_count()} CUDA devices; use device=auto")
    return device


def available_bytes(device: torch.device) -> int | None:
    """Return the free memory of a GPU, or of the machine within this process's limits; None where it is unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        limits.append(free["MemAvailable"] + free["SwapFree"])
    except (OSError, KeyError, ValueError, IndexError):  # not Linux
        pass
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(file).read_text()))
        except (OSError, ValueError):  # no such controller, or "max"
            continue
    return min(limits, default=None)


def versions(device: torch.device) -> dict:
    """Return {"device", "versions"} for a summary, without the machine's name."""
    names = {}
    for package in ("torch", "triton", "flash-attn", "tdlm_fast"):
        try:
            names[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            names[package] = None
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    threads = ""
    if device.type == "cpu":
        threads = f", {torch.get_num_threads()} threads, {kernels().cpu.library.describe()}"
    names["python"] = platform.python_version()
    return {"device": f"{device.type} ({chip}{threads})", "versions": names}


def chains(device: torch.device) -> dict[str, list[tuple[str, str]]]:
    """Return {op: [(backend, "" where it serves, else why not)]} at the sizes of configs/tiny.yaml in bf16."""
    kernels()  # raises ConfigError, where an import would raise ValueError
    from ..kernels.dispatch import answers, name
    from ..kernels.ops.attention import backend

    links = {name(op): answers(op, *args) for op, args in _calls(device).items()}
    chosen = backend(torch.empty(1, 4, 128, 16, dtype=torch.bfloat16, device=device), masked=True)
    return links | {"attention": [({"tile": "tile_attention", "sdpa": "PyTorch's SDPA"}.get(chosen, chosen), "")]}


def _calls(device: torch.device) -> dict:
    """Return {op: arguments} of a call of every op."""
    from ..kernels.ops import (
        attention,
        batch,
        corrupt,
        embedding,
        next_token,
        rms_norm,
        rotary,
        rows,
        stable_sort,
        swiglu,
    )
    from ..kernels.ops import gathered_cross_entropy as gathered
    from ..kernels.ops import lazy_adamw as lazy
    from ..kernels.ops import linear_cross_entropy as head
    from ..kernels.ops import step_scalars as scalars

    def floats(*shape: int, dtype=torch.bfloat16):
        return torch.empty(shape, dtype=dtype, device=device)

    def integers(*shape: int, dtype=torch.int64):
        return torch.zeros(shape, dtype=dtype, device=device)

    V, eps, fp32 = 50257, 1e-6, torch.float32
    h, w, g, y, n = floats(8, 64), floats(V, 64, dtype=fp32), floats(8, dtype=fp32), integers(8), integers()
    x, weight, gate, q = floats(8, 64, dtype=fp32), floats(64, dtype=fp32), floats(8, 384), floats(1, 4, 128, 16)
    x0, one, how = integers(2, 128), floats(dtype=fp32), (None, None, None, False, 0.0, True)
    seen = integers(V, dtype=torch.int32)
    table = w, w, w, seen, seen, floats(9, 3, dtype=fp32)
    return {
        gathered.lce_gathered: (h.float(), y, w, y, n, V, h.dtype),
        gathered.lce_gathered_backward: (h, h, w.to(h.dtype), y, g, g, y, n, 8, V, fp32),
        head.lce_forward: (h, w, y, n, V, h.dtype, True),
        head.lce_backward_weight: (h, w, y, g, g, n, V, h.dtype),
        head.lce_backward_rows: (h, g, n),
        head.lce_sum: (h, w, y, g, n, V, h.dtype),
        corrupt.corrupt_op: (x0, None, 0, 0, None, n, V, "linear", "stratified", 0, 2),
        attention.tile_attention: (q, q, q, *how),
        attention.tile_attention_backward: (q, q, q, q, *how),
        rotary.turn: (q, q, False),
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
        scalars.clip_scale: (one, [g], 1.0, one),
        scalars.record: (floats(4, 4, dtype=torch.float64), n, one, one, n, n),
        lazy.catch_up: (*table, one, n, y, y, 0.9, 0.95, 1e-8),
        lazy.update_rows: (*table, one, n, w, one, one, one, 0.9, 0.95, 1e-8),
    }
