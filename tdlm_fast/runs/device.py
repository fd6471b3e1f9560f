"""The device a run uses, and the versions and kernels that serve it."""

import importlib.metadata
import platform
import sys

import torch

from ..config import ConfigError, check_device


def kernels():
    """The package tdlm_fast.kernels. Raises ConfigError where the environment asks it for what is not there."""
    try:
        from .. import kernels
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
