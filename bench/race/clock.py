"""Time the work of a GPU without the host that starts it.

    wait (a kernel of some milliseconds) · start event · the work · end event

The host enqueues all of it while the GPU waits, so the time between the events holds no launches. If the start event
has passed before the last call is enqueued, the wait was too short, and the figure would be the host's. Then a longer
wait is tried. Where the longest one is too short as well, the work itself waits for the host.
"""

import statistics

import torch

CYCLES = (10_000_000, 40_000_000)  # of the waiting kernel: 5 and 20 ms at 2 GHz


def seconds(run, calls: int = 1) -> tuple[float, bool]:
    """Return the seconds of one call on the GPU, a mean over `calls`, and whether it waits for the host."""
    took, is_late = 0.0, True
    for cycles in CYCLES:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(cycles)
        start.record()
        for _ in range(calls):
            run()
        end.record()
        is_late = start.query()
        torch.cuda.synchronize()
        took = start.elapsed_time(end) / 1e3 / calls
        if not is_late:
            break
    return took, is_late


def graph_of(run, calls: int = 10) -> torch.cuda.CUDAGraph:
    """Return a CUDA graph of some calls; run must have compiled its kernels."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    return graph


def replayed(graph: torch.cuda.CUDAGraph, calls: int = 10) -> float:
    """Return the seconds of one of the calls of graph_of, a median over seven replays."""
    graph.replay()
    return statistics.median(seconds(graph.replay)[0] for _ in range(7)) / calls
