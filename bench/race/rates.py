"""Measure the best rates of a machine: flop/s of a large square product, byte/s of a large copy.

The product is of bf16 on a GPU, and on a CPU of the faster of bf16 and fp32: without instructions for bf16 a CPU
multiplies it dozens of times more slowly than fp32.
"""

import statistics
import time

import torch

SIZES = {"cuda": (8192, 1 << 30), "cpu": (4096, 1 << 27)}  # side of the product, bytes of the copy


def product_dtype(device: str) -> torch.dtype:
    """Return the type that a square product is fastest in: bf16, or fp32 on a CPU without instructions for bf16."""
    if device == "cuda":
        return torch.bfloat16

    def seconds(dtype: torch.dtype) -> float:
        a, best = torch.ones(256, 256, dtype=dtype), float("inf")
        for _ in range(3):  # the first one warms up
            start = time.perf_counter()
            a @ a
            best = min(best, time.perf_counter() - start)
        return best

    return min(torch.bfloat16, torch.float32, key=seconds)


def runs(device: str) -> dict:
    """{"product", "copy"}: functions of no arguments that run it once."""
    side, size = SIZES[device]
    a = torch.randn(side, side, device=device).to(product_dtype(device))
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
