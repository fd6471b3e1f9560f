"""Fill Triton's cache with all cores: the first run of each kernel, in processes of its own."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import torch

from bench.race import peers

CORES = os.cpu_count() or 1


def _attempt(function, *args) -> str:
    try:
        function(*args)
    except Exception as error:
        return peers.why_not(error)
    return ""


def run(tasks: list[tuple], device: str, processes: int = CORES) -> list[str]:
    """Call function(*args) for each task (function, *args), in processes of their own; return "" or the error of each.

    The functions must be those of a module. What they compile lands in Triton's cache, where this process finds it.
    """
    if device == "cuda":  # each process takes about half a GB of the GPU
        processes = max(1, min(processes, torch.cuda.mem_get_info()[0] >> 30))
    with ProcessPoolExecutor(min(processes, len(tasks)), multiprocessing.get_context("spawn")) as pool:
        return [future.result() for future in [pool.submit(_attempt, *task) for task in tasks]]
