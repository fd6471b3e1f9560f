"""What serves each op here, and why: `python -m tdlm_fast.doctor`."""

import importlib.metadata
import platform
import sys

import torch

from .config import ConfigError
from .kernels import native, native_cuda


def pick_device(name: str) -> torch.device:
    """The device of a config's `device`; auto is the GPU where there is one. Raises ConfigError."""
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
    threads = f", {torch.get_num_threads()} threads, {native.describe()}" if device.type == "cpu" else ""
    names["python"] = platform.python_version()
    return {"device": f"{device.type} ({chip}{threads})", "versions": names}


def main() -> int:
    found = versions(pick_device("auto"))
    print(f"device      {found['device']}")
    for name, version in found["versions"].items():
        print(f"{name:12}{version or 'not installed'}")
    print(f"cpu         {native.describe()}")
    print(f"cuda        {native_cuda.describe()}")
    graph = "one CUDA graph" if torch.cuda.is_available() else "eager: CUDA graphs need a GPU"
    print(f"step        {graph}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
