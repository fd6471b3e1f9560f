"""The vocabulary head on the CPU: loss and both gradients, side by side in one process.

    python bench/bench_cpu_head.py [--rows N] [--dim D] [--vocab V] [--rounds K] [--threads T] [--json FILE]

Every round runs every side once, so that what else the machine does falls on all of them; medians are printed.
GFLOP/s counts four products of 2 N D V for every side, whatever it computes; the share is that of the rate of a
4096^3 bf16 product in the same rounds. Times include what autograd adds.
"""

import argparse
import json
import platform
import statistics
import time

import torch
import torch.nn.functional as F

from tdlm_fast.kernels import linear_cross_entropy, native


def cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as f:
            return next(line.split(":", 1)[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def sides(h, w, y, chunks: list[int]):
    """Name -> a function of no arguments that computes the loss and both gradients."""

    def both(loss_of):
        return lambda: torch.autograd.grad(loss_of(), (h, w))

    half = torch.tensor(len(y) // 2)
    yield "native", both(lambda: linear_cross_entropy(h, w, y))
    yield "native, half the rows", both(lambda: linear_cross_entropy(h, w, y, n_rows=half))
    yield "F.cross_entropy", both(lambda: F.cross_entropy(h @ w.T, y, reduction="sum"))
    if hasattr(F, "linear_cross_entropy"):
        for chunk in chunks:
            options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)
            of = both(lambda o=options: F.linear_cross_entropy(h, w, y, reduction="sum", options=o))
            yield f"F.linear_cross_entropy, chunks of {chunk}", of


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--chunks", type=int, nargs="*", default=[512, 2048], help="of F.linear_cross_entropy")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    N, D, V = args.rows, args.dim, args.vocab
    h = torch.randn(N, D).bfloat16().requires_grad_()
    w = (torch.randn(V, D) * 0.05).bfloat16().requires_grad_()
    y = torch.randint(0, V, (N,))
    square = torch.randn(4096, 4096).bfloat16()
    run = {"bf16 product": lambda: square @ square, **dict(sides(h, w, y, args.chunks))}
    times = {name: [] for name in run}
    for i in range(args.rounds + 1):
        for name, side in run.items():
            start = time.perf_counter()
            side()
            if i:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    seconds = {name: statistics.median(t) for name, t in times.items()}
    peak = 2 * 4096**3 / seconds.pop("bf16 product") / 1e9
    result = {
        "shape": {"N": N, "D": D, "V": V, "dtype": "bfloat16"}, "cpu": cpu_model(), "threads": args.threads,
        "kernels": native.describe(), "torch": torch.__version__, "python": platform.python_version(),
        "rounds": args.rounds, "bf16_product_gflops": round(peak, 1), "sides": {},
    }  # fmt: skip
    print(f"{result['cpu']}, {args.threads} threads, torch {torch.__version__}; {native.describe()}")
    print(f"N={N} D={D} V={V} bf16, medians of {args.rounds}; a bf16 product runs at {peak:.0f} GFLOP/s")
    for name, s in seconds.items():
        rows = N // 2 if "half" in name else N
        gflops = 8 * rows * D * V / s / 1e9
        figures = {"seconds": s, "fastest": min(times[name]), "slowest": max(times[name]), "gflops": gflops}
        result["sides"][name] = {k: round(x, 4) for k, x in (figures | {"share": gflops / peak}).items()}
        ratio = s / seconds["native"]
        print(f"{name:42} {s:8.3f} s {gflops:7.0f} GFLOP/s {gflops / peak:6.0%} {ratio:7.1f} x native")
    if args.json:
        with open(args.json, "w") as f:
            json.dump(result, f, indent=1)
            f.write("\n")


if __name__ == "__main__":
    main()
