"""Race the whole training step against plain PyTorch and every peer's loss, sides taking turns in one process.

    python -m bench.race.step [--config configs/tiny.yaml] [key=value …] [--json FILE]
        [--rounds K] [--seconds S] [--ready S] [--sides NAME …] [--threads T]
        [--no-compile] [--no-memory] [--no-profile]

A step draws its batch, corrupts it, and updates the weights. Every round runs each side once for a number of steps;
medians over the rounds are printed. "ours" is the step of training: one replayed graph on a GPU, the eager step on a
CPU. It trains in bf16 autocast where the config says bf16, as do the sides marked bf16. Tokens are those of the text:
padding is not counted. Peak memory is the allocator's on a GPU, allocated and reserved, and on a CPU that of a process
which runs only this side. A peer that is not installed, or fails, is named with the reason. F.linear_cross_entropy,
Liger's default and cut-cross-entropy get no weight per token here: they average over the tokens that bear loss, which
is less work than the bound needs. The exit code is 1 where our side fails, or is not captured on a GPU.
"""

import argparse
import functools
import importlib.metadata
import platform
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from bench.race import peers, rates
from bench.race.plain import PlainModel, PlainSteps
from bench.without_gpu import work
from tdlm_fast import config as settings
from tdlm_fast import model
from tdlm_fast.data import batches, dataset
from tdlm_fast.runs.device import pick_device, versions
from tdlm_fast.runs.files import write_json
from tdlm_fast.training import memory_estimate, step
from tdlm_fast.training.cuda_graph import DeviceSteps, start
from tdlm_fast.training.logger import peak_memory_mb
from tdlm_fast.training.optimizer import adamw


def torch_head(h, head, y, weights, chunk=0):
    dtype = torch.get_autocast_dtype(h.device.type) if torch.is_autocast_enabled(h.device.type) else h.dtype
    return peers.torch_loss(h.to(dtype), head.to(dtype), y, chunk)


def liger_head(h, head, y, weights):
    return peers.liger_loss(h, head, y)


def liger_scaled_head(h, head, y, weights):
    return peers.liger_scaled_loss(h.bfloat16(), head.bfloat16(), y, weights)


def cce_head(h, head, y, weights):
    return peers.cce_loss(h.bfloat16(), head.bfloat16(), y)


PLAIN = {
    "plain, bf16": dict(precision="bf16"),
    "plain, fp32": dict(precision="fp32"),
    "plain, compiled, bf16": dict(precision="bf16", compiled="default"),
    "plain, compiled, reduce-overhead, bf16": dict(precision="bf16", compiled="reduce-overhead"),
    "F.linear_cross_entropy, auto, bf16": dict(precision="bf16", head_loss=torch_head, only_masked=True),
    "F.linear_cross_entropy, chunks of 1024, bf16": dict(
        precision="bf16", head_loss=functools.partial(torch_head, chunk=1024), only_masked=True
    ),
    "liger-kernel, bf16": dict(precision="bf16", head_loss=liger_head, only_masked=True),
    "liger-kernel scaled, bf16": dict(precision="bf16", head_loss=liger_scaled_head, only_masked=True),
    "cut-cross-entropy, bf16": dict(precision="bf16", head_loss=cce_head, only_masked=True),
}
SIDES = ("ours", "ours, eager", *PLAIN)
ONLY_ON_A_GPU = ("ours, eager", "plain, compiled, reduce-overhead, bf16")  # on a CPU they are the side before them


class Side:
    """One side's model, optimizer and steps, made when first run."""

    def __init__(self, name: str, config, corpus, device):
        self.name, self.next, self.times, self.timed_from = name, 0, [], 0
        self.split, self.config, self.device = corpus.splits["train"], config, device
        self.per_step = 0
        tokenizer, kwargs = corpus.tokenizer, dict(steps=1_000_000)
        if name in PLAIN:
            plain = plain_model(config, tokenizer).to(device).train()
            options = PLAIN[name]
            optimizer = adamw(plain, config.optim)
            self.steps = PlainSteps(plain, optimizer, self.split, config, tokenizer.start_token_id, **options)
            return
        ours = model.build_model(config, tokenizer).to(device).train()
        args = ours, adamw(ours, config.optim), step.objective(config, tokenizer), self.split, config
        if device.type != "cuda":
            self.steps = start(*args, **kwargs, first=0)
        else:
            self.steps = DeviceSteps(*args, steps=100_000, mode="off" if "eager" in name else "auto")

    def run(self, steps: int) -> float:
        """Run this many steps and return the seconds they took."""
        synchronize(self.device)
        begin = time.perf_counter()
        for _ in range(steps):
            self.steps.run(self.next)
            self.next += 1
        synchronize(self.device)
        return time.perf_counter() - begin

    def tokens(self, first: int, end: int) -> int:
        """Tokens of the batches of steps first to end, without padding."""
        options = dict(seed=self.config.seed, batch_size=self.config.train.batch_size)
        drawn = (batches.batch(self.split, step=step, **options) for step in range(first, end))
        return sum(x0.numel() if valid is None else int(valid.sum()) for x0, valid in drawn)

    def outcome(self) -> tuple[float, float]:
        """(loss, share of the tokens that bore loss) of the last step. Raises where its tokens are not those drawn."""
        drawn = self.tokens(self.next - 1, self.next)
        if isinstance(self.steps, PlainSteps):
            return float(self.steps.loss), float(self.steps.loss_tokens) / drawn
        self.steps.mark(self.next - 1, self.next)
        last = [o for _, window in self.steps.read() for o in window][-1]
        if last["tokens"] != drawn:
            raise RuntimeError(f"the step counted {last['tokens']} tokens, and its batch holds {drawn}")
        return last["loss"], last["loss_tokens"] / drawn


def plain_model(config, tokenizer):
    """model.build_model, with the model of bench/race/plain.py."""
    real, model.Model = model.Model, PlainModel
    try:
        return model.build_model(config, tokenizer)
    finally:
        model.Model = real


def synchronize(device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def names(device, compiled: bool, wanted) -> list[str]:
    """The sides to run, in order."""
    on_gpu = device.type == "cuda"
    chosen = [n for n in SIDES if (on_gpu or n not in ONLY_ON_A_GPU) and (compiled or "compiled" not in n)]
    return [n for n in chosen if not wanted or any(w in n for w in wanted)]


class GpuMemory:
    """The peaks of PyTorch's allocator from here on, beyond what is held now. A graph's pool stays reserved."""

    def __init__(self, device):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        self.device, self.held = device, (torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device))

    def peaks(self) -> dict:
        most = torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)
        allocated, reserved = ((peak - held) / 1e6 for peak, held in zip(most, self.held, strict=True))
        return {"peak_mb": allocated, "reserved_mb": reserved}


def unfit(result: dict) -> str:
    """Return why the figures of our own side cannot be used, "" where they can: it failed, or was not captured."""
    if "ours" in result["absent"]:
        return f"ours: {result['absent']['ours']}"
    ours = result["sides"].get("ours", {})
    return "" if ours.get("captured", True) else f"ours is not captured: {ours['why_not']}"


def bench(config, corpus, device, chosen, rounds: int, seconds: float, ready: float = 0, save=lambda _: None) -> dict:
    """{"sides": {side: figures}, "absent": {side: reason}}; a side that fails does not disturb the others.

    ready: seconds that a peer may take to compile and tune, 0 for any. save gets what is known so far, first of all
    ours alone, and after each round all sides.
    """
    sides, absent = {}, {}
    for name in chosen:
        try:
            memory = GpuMemory(device) if device.type == "cuda" else None  # what earlier sides hold is not counted
            with peers.ready_within(ready if "ours" not in name else 0):
                side = Side(name, config, corpus, device)
                side.run(5 if memory else 1)  # compiles, warms up, captures
            side.memory = memory.peaks() if memory else {"peak_mb": None}
            side.timed_from = side.next
            side.per_step = side.run(2) / 2
            if name == "ours":
                side.times.append(side.per_step)
                save(_figures({name: side}, dict(absent), device))
                side.times.clear()  # the rounds time all sides alike
            side.timed_from = side.next
            sides[name] = side
        except Exception as e:
            absent[name] = peers.why_not(e)
        print(f"{name}: {absent.get(name) or 'ready'}", file=sys.stderr)
    for i in range(rounds):
        for side in sides.values():
            _time(side, seconds)
        if i + 1 < rounds:
            save(_figures(sides, dict(absent), device))
    return _figures(sides, absent, device)


def _time(side: Side, seconds: float) -> None:
    n = max(1, min(200, int(seconds / side.per_step)))
    side.times.append(side.run(n) / n)


def _figures(sides: dict, absent: dict, device) -> dict:
    """What bench returns, of the sides as they are."""
    figures = {}
    for name, side in sides.items():
        s = statistics.median(side.times)
        try:
            loss, bears_loss = side.outcome()
        except RuntimeError as e:
            absent[name] = peers.why_not(e)
            continue
        tokens = side.tokens(side.timed_from, side.next) / (side.next - side.timed_from)
        figures[name] = {
            "step_ms": s * 1e3, "fastest_ms": min(side.times) * 1e3, "slowest_ms": max(side.times) * 1e3,
            "tokens_per_step": tokens, "tokens_per_s": tokens / s, "loss_tokens_per_s": bears_loss * tokens / s,
            **side.memory, "loss": loss, "steps": side.next,
        }  # fmt: skip
        if name == "ours" and device.type == "cuda":
            figures[name]["captured"] = side.steps.graph is not None
            figures[name]["why_not"] = side.steps.why
    return {"sides": figures, "absent": absent}


def cpu_memory(args, chosen) -> dict:
    """{side: peak MB of a process that reads the data and runs two steps of this side only}."""
    figures = {}
    for name in chosen:
        command = [sys.executable, "-m", "bench.race.step", "--config", args.config, *args.overrides]
        command += ["--alone", name, "--threads", str(args.threads)]
        out = subprocess.run(command, capture_output=True, text=True)
        figures[name] = float(out.stdout.split()[-1]) if out.returncode == 0 and out.stdout.split() else None
    return figures


def profile(config, corpus, device, limits: dict) -> list[dict]:
    """Our ops by their share of the self time (of their kernels' time on a GPU), largest first.

    limits: {op: the milliseconds it needs at least}, added to the rows of these ops.
    """
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    side = Side("ours, eager", config, corpus, device)
    side.run(2)
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with record(activities=kinds) as recorded:
        side.run(3)
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    # On a GPU the profiler lists kernels too; their time is already in the op that launched them.
    took, calls = Counter(), Counter()
    for e in recorded.key_averages():
        if e.device_type == torch.autograd.DeviceType.CPU:
            # A forward pass, despite its name.
            op = re.sub(r"GeneratedBackwardFor_([a-z]+)_(\w+)_default", r"\1::\2", e.key)
            took[op] += getattr(e, key) / 3e3
            calls[op] += e.count / 3
    total = sum(took.values()) or 1
    rows = [{"op": op, "ms": ms, "share": ms / total, "calls": calls[op]} for op, ms in took.most_common(15)]
    rows = [row | ({"limit_ms": limits[row["op"]]} if row["op"] in limits else {}) for row in rows]
    return [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]


def installed() -> dict:
    figures = {}
    for package in ("liger-kernel", "cut-cross-entropy", "flash-attn", "triton"):
        try:
            figures[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            figures[package] = None
    return figures


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="key=value")
    parser.add_argument("--config", default="configs/tiny.yaml")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one side in one round, at least one step")
    parser.add_argument("--ready", type=float, default=0, help="seconds for a peer to compile and tune (any)")
    parser.add_argument("--sides", nargs="*", help="parts of names of the sides to run")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    for part in ("compile", "memory", "profile"):
        parser.add_argument(f"--no-{part}", action="store_true")
    args = parser.parse_intermixed_args(argv)
    torch.set_num_threads(args.threads)
    try:
        config = settings.load(args.config, args.overrides)
        device = pick_device(config.device)
        corpus = dataset.load(config.data, config.model.seq_len)
    except settings.ConfigError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    if args.alone:
        Side(args.alone, config, corpus, device).run(2)
        print(peak_memory_mb(device))
        return 0
    chosen = names(device, not args.no_compile, args.sides)
    about = {
        "config": args.config, "overrides": args.overrides, "objective": config.objective, "corpus": corpus.name,
        "layout": config.data.layout,
        "shape": {"B": config.train.batch_size, "T": config.model.seq_len, "D": config.model.width,
                  "V": corpus.tokenizer.vocab, "layers": config.model.layers,
                  "accumulation": config.train.accumulation},
        **versions(device), "peers": installed(), "python": platform.python_version(), "rounds": args.rounds,
        "estimated_peak_mb": round(memory_estimate.estimate(config, tokens=corpus.splits["train"].scored), 1),
    }  # fmt: skip
    found = bench(
        config, corpus, device, chosen, args.rounds, args.seconds, args.ready, lambda f: keep(about | f, args.json)
    )
    result = about | found
    keep(result, args.json)  # the parts below can fail or be cut off
    if device.type != "cuda" and not args.no_memory:
        for name, mb in cpu_memory(args, result["sides"]).items():
            result["sides"][name]["peak_mb"] = mb
    if not args.no_profile:
        limits = {}
        if device.type == "cuda":
            result["rates"], ours = rates.measure("cuda"), result["sides"].get("ours")
            places = config.train.batch_size * config.model.seq_len  # the trace counts padding too
            live = ours["loss_tokens_per_s"] * ours["step_ms"] / 1e3 / places if ours else 1.0
            limits = work.limits(config, device, result["rates"], live, corpus.splits["train"].scored)
        result["profile"] = profile(config, corpus, device, limits)
    keep(result, args.json)
    show(result)
    if why := unfit(result):
        print(f"error: {why}", file=sys.stderr)
    return int(bool(why))


def keep(result: dict, path: str | None) -> None:
    if path:
        write_json(Path(path), result, indent=1)


def show(result: dict) -> None:
    for row in result.get("profile", ()):
        print(f"  {row['share']:6.1%} {row['ms']:9.3f} ms {row['calls']:7.1f} calls  {row['op'][:80]}")
    print(f"{result['objective']}, {result['config']}, {result['corpus']}, {result['layout']}, {result['device']}")
    ours = result["sides"].get("ours", {}).get("step_ms")
    for name, f in result["sides"].items():
        memory_mb = f"{f['peak_mb']:9,.0f} MB" if f["peak_mb"] else " " * 12
        ratio = f"{f['step_ms'] / ours:7.2f} x ours" if ours else ""
        rates = f"{f['tokens_per_s']:12,.0f} tok/s {f['loss_tokens_per_s']:12,.0f} loss-tok/s"
        print(f"{name:46} {f['step_ms']:10.2f} ms {rates} {memory_mb} {ratio}")
    for name, why in result["absent"].items():
        print(f"{name:46} {why}")


if __name__ == "__main__":
    sys.exit(main())
