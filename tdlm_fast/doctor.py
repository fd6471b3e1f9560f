"""What serves each op here, and why: `python -m tdlm_fast.doctor`."""

import importlib.metadata
import platform
import sys

import torch

from .config import ConfigError, check_device
from .verb import verb


def kernels():
    """The package tdlm_fast.kernels. Raises ConfigError where the environment asks it for what is not there."""
    try:
        from . import kernels
    except ValueError as e:
        raise ConfigError(str(e)) from None
    return kernels


def tell_missing(device: torch.device) -> None:
    """One line where the device's kernels are not there, on stderr: what was lost and how to get it."""
    native = kernels().native
    if device.type == "cpu" and native._why_missing:
        print(f"NOTE: no native CPU kernels, so this runs many times slower: {native._why_missing}", file=sys.stderr)


def pick_device(name: str) -> torch.device:
    """The device of a config's `device`; auto is the GPU where there is one. Raises ConfigError."""
    check_device(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={name}: PyTorch sees {torch.cuda.device_count()} CUDA devices; use device=auto")
    return device


def versions(device: torch.device) -> dict:
    """{"device", "versions"} for a summary: what ran, without names of machines."""
    names = {}
    for package in ("torch", "triton", "flash-attn", "tdlm_fast"):
        try:
            names[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            names[package] = None
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    threads = ""
    if device.type == "cpu":
        threads = f", {torch.get_num_threads()} threads, {kernels().native.describe()}"
    names["python"] = platform.python_version()
    return {"device": f"{device.type} ({chip}{threads})", "versions": names}


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
