"""Choose the device of a run, and record the versions that ran."""

import importlib.metadata
import platform
import sys

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
    native = kernels().native
    if device.type == "cpu" and native._why_missing:
        print(f"NOTE: no native CPU kernels, so this runs many times slower: {native._why_missing}", file=sys.stderr)


def pick_device(name: str) -> torch.device:
    """Return the device of a config's `device`; auto is the GPU if there is one. Raises ConfigError."""
    check_device(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={name}: PyTorch sees {torch.cuda.device_count()} CUDA devices; use device=auto")
    return device


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
        threads = f", {torch.get_num_threads()} threads, {kernels().native.describe()}"
    names["python"] = platform.python_version()
    return {"device": f"{device.type} ({chip}{threads})", "versions": names}
