"""Measure the best rates of a machine: flop/s of a large square bf16 product, byte/s of a large copy."""

import statistics
import time

import torch

SIZES = {"cuda": (8192, 1 << 30), "cpu": (4096, 1 << 27)}  # side of the product, bytes of the copy


def runs(device: str) -> dict:
    """{"product", "copy"}: functions of no arguments that run it once."""
    side, size = SIZES[device]
    a = torch.randn(side, side, device=device).bfloat16()
    b = torch.ones(size, dtype=torch.uint8, device=device)
    c = torch.empty_like(b)
    return {"product": lambda: a @ a, "copy": lambda: c.copy_(b)}


def rates(device: str, took: dict) -> dict:
    """{"flops", "bytes"} per second, from the seconds that the runs took; a copy reads and writes."""
    side, size = SIZES[device]
    return {"flops": 2 * side**3 / took["product"], "bytes": 2 * size / took["copy"]}


def measure(device: str, times: int = 10) -> dict:
    """Time both runs and return rates() of the medians."""
    took = {}
    for name, run in runs(device).items():
        seconds = []
        for _ in range(times + 2):  # the first ones warm up
            start = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        took[name] = statistics.median(seconds[2:])
    return rates(device, took)
