"""Check in half a minute that the kernels of a machine compute: `python -m bench.race.smoke [key=value …]`.

Every op runs once in fp32 and once in bf16, and its error against fp64 may be twice that of its PyTorch reference in
the same type, plus rounding. Ops on integers must give the reference's bits. Then eight training steps of each
objective run twice from the same weights: launched one by one, and by the runner of training, which on a GPU replays
five of them as a CUDA graph. Losses and weights must be equal bit for bit. A line per failure is printed, and the exit
code is 1 if there is one. The full tests take minutes; this comes before them. On a GPU all kernels are compiled first,
by as many processes as there are cores. The file of --json is written after every check, so a run that is killed leaves
those that it made; "finished" is false until the last one.
"""

import argparse
import math
import sys
from pathlib import Path

import numpy as np
import torch
from torch.utils._pytree import tree_map

from bench.race import peers, processes
from bench.race.calls import EXACT, OPS, calls
from tdlm_fast import config as settings
from tdlm_fast.data.dataset import Split
from tdlm_fast.data.tokenizer import sizes
from tdlm_fast.kernels import dispatch
from tdlm_fast.model import build_model
from tdlm_fast.runs.device import pick_device, versions
from tdlm_fast.runs.files import write_json
from tdlm_fast.training import step
from tdlm_fast.training.cuda_graph import DeviceSteps
from tdlm_fast.training.optimizer import adamw
from tdlm_fast.training.step import EagerSteps

DTYPES = (torch.float32, torch.bfloat16)
STEPS = 8
OBJECTIVES = ("diffusion", "autoregressive")


def widened(args: tuple) -> tuple:
    """The arguments of a call in fp64: tensors, and the type that products are made in."""
    tensors = tree_map(lambda a: a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a, args)
    return tuple(torch.float64 if isinstance(a, torch.dtype) else a for a in tensors)


def outputs(run, args: tuple) -> list[torch.Tensor]:
    """What a call returns, and the tensors that it may have changed."""
    args = tree_map(lambda a: a.clone() if isinstance(a, torch.Tensor) else a, args)
    returned = run(*args)
    returned = [returned] if isinstance(returned, torch.Tensor) else list(returned or ())
    return [a for a in (*returned, *args) if isinstance(a, torch.Tensor)]


def narrowest(args: tuple) -> torch.dtype:
    """The floating type of fewest bits among the arguments of a call, in which it may round."""
    types = [a.dtype if isinstance(a, torch.Tensor) else a for a in args]
    floats = [t for t in types if isinstance(t, torch.dtype) and t.is_floating_point]
    return max(floats, key=lambda t: torch.finfo(t).eps, default=torch.float32)


def differences(name: str, args: tuple) -> tuple[float, float]:
    """(error, allowed) of an op's call: of the output whose error is the largest share of what is allowed."""
    reference = dispatch.reference(OPS[name])
    ours, theirs = outputs(OPS[name], args), outputs(reference, args)
    if name in EXACT:
        return float(not all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))), 0.0
    dtype = narrowest(args)
    rounding = 1e-5 if dtype == torch.float32 else 3 * torch.finfo(dtype).eps
    pairs = []
    for a, b, true in zip(ours, theirs, outputs(reference, widened(args)), strict=True):
        if not b.is_floating_point() and not torch.equal(a, b):
            return math.inf, 0.0
        if true.numel() and true.is_floating_point():
            error = (a.double() - true).abs().max().item()
            pairs.append(
                (error, 2 * (b.double() - true).abs().max().item() + rounding * true.abs().max().item() + 1e-30)
            )
    return max(pairs, key=lambda pair: math.inf if math.isnan(pair[0]) else pair[0] / pair[1])


def check_op(name: str, args: tuple, device: torch.device) -> dict:
    """Run one op and return its row: the backend that ran, the error, what is allowed, and why it fails or ""."""
    row = {"op": name, "dtype": str(narrowest(args))[6:], "backend": "", "error": None, "allowed": None, "why": ""}
    try:
        link = dispatch.server(OPS[name], *args)
        row["backend"] = link.backend if link else "reference"
        row["error"], row["allowed"] = differences(name, args)
        if not row["error"] <= row["allowed"]:
            row["why"] = f"the error is {row['error']:.3g}, and {row['allowed']:.3g} is allowed"
        elif device.type == "cuda" and row["backend"] != "triton":
            row["why"] = f"{row['backend']} runs it, not Triton"
    except Exception as error:
        row["why"] = peers.why_not(error)
    return row


def split(config, vocabulary) -> Split:
    """Random rows for a few steps of a config, of random length where its layout pads them."""
    g, T, rows = np.random.default_rng(0), config.model.seq_len, 3 * config.train.batch_size
    padded = config.data.padded
    lengths = g.integers(1, T + 1, rows) if padded else np.full(rows, T)
    tokens = g.integers(0, vocabulary.vocab - 1, lengths.sum()).astype(np.uint16)
    return Split(tokens, lengths, T, padded, np.cumsum(lengths) - lengths, 1, None)


def trained(runner, config, device, **options) -> tuple:
    """The runner after STEPS steps, their outcomes, and the weights."""
    vocabulary = sizes(config.data)
    model = build_model(config, vocabulary).to(device).train()
    rows, loss_of = split(config, vocabulary), step.objective(config, vocabulary)
    steps = runner(model, adamw(model, config.optim), loss_of, rows, config, steps=STEPS + 1, **options)
    for i in range(STEPS):
        steps.run(i)
    steps.mark(0, STEPS)
    ((_, outcomes),) = steps.read()
    return steps, outcomes, [p.detach() for p in model.parameters()]


def check_steps(config, device: torch.device) -> dict:
    """Run the steps of one objective one by one and as training does: their row, as of check_op."""
    row = {"objective": config.objective, "captured": False, "losses": [], "why": ""}
    try:
        on_gpu = device.type == "cuda"
        eager = trained(DeviceSteps, config, device, mode="off") if on_gpu else trained(EagerSteps, config, device)
        ours = trained(DeviceSteps, config, device)
        row["captured"] = ours[0].graph is not None
        row["losses"] = [o["loss"] for o in ours[1]]
        if on_gpu and not row["captured"]:
            row["why"] = f"the graph is not captured: {ours[0].why}"
        elif eager[1] != ours[1]:
            first = next(i for i, (a, b) in enumerate(zip(eager[1], ours[1], strict=True)) if a != b)
            row["why"] = f"step {first} gives {ours[1][first]}, and launched one by one {eager[1][first]}"
        elif not all(torch.equal(a, b) for a, b in zip(eager[2], ours[2], strict=True)):
            row["why"] = "the weights after the steps differ from those of steps launched one by one"
        elif not np.isfinite(row["losses"]).all() or len(set(row["losses"])) < STEPS:
            row["why"] = f"these losses are not those of a run that learns: {row['losses']}"
    except Exception as error:
        row["why"] = peers.why_not(error)
    return row


def compile_op(dtype: torch.dtype, place: int, small: bool) -> None:
    """Run one of the calls, in a process of its own."""
    name, args = list(calls(dtype, "cuda", small))[place]
    outputs(OPS[name], args)


def compile_step(overrides: list[str]) -> None:
    """Run the steps of one objective, in a process of its own."""
    config = settings.load("configs/tiny.yaml", overrides)
    trained(DeviceSteps, config, pick_device(config.device), mode="off")


def check(made: list, overrides: list[list[str]], device: torch.device, path: Path | None) -> dict:
    """Check calls, and steps by each list of overrides; return the figures, kept in a file as found."""
    figures = {**versions(device), "finished": False, "ops": [], "steps": [], "failures": []}

    def keep(name: str, row: dict, title: str) -> None:
        figures[name].append(row)
        figures["failures"] += [f"{title}: {row['why']}"] if row["why"] else []
        if path:
            write_json(path, figures, indent=1)

    for _, (name, inputs) in made:
        row = check_op(name, inputs, device)
        keep("ops", row, f"{name}, {row['dtype']}")
    for each in overrides:
        row = check_steps(settings.load("configs/tiny.yaml", each), device)
        figures["finished"] = each is overrides[-1]
        keep("steps", row, f"steps, {row['objective']}")
    return figures


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="key=value, of the training steps")
    parser.add_argument("--small", action="store_true", help="small ops, for a CPU")
    parser.add_argument("--each", action="store_true", help="only run each op once, for a sanitizer")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_intermixed_args(argv)
    config = settings.load("configs/tiny.yaml", args.overrides)
    device = pick_device(config.device)
    made = [(dtype, call) for dtype in DTYPES for call in calls(dtype, device.type, args.small)]
    if args.each:
        for _, (name, inputs) in made:
            outputs(OPS[name], inputs)
        if device.type == "cuda":
            torch.cuda.synchronize()
        print(f"{len(made)} calls of {len(OPS)} ops ran")
        return 0
    overrides = [[*args.overrides, f"objective={o}"] for o in OBJECTIVES]
    if device.type == "cuda":  # errors come again below, where they are recorded
        tasks = [(compile_step, each) for each in overrides]
        tasks += [(compile_op, dtype, i, args.small) for dtype in DTYPES for i in range(len(made) // len(DTYPES))]
        processes.run(tasks, "cuda")
    figures = check(made, overrides, device, args.json)
    failures, steps = figures["failures"], figures["steps"]
    for line in failures:
        print(f"FAILED {line}")
    captured = ", ".join(f"{r['objective']} {'captured' if r['captured'] else 'not captured'}" for r in steps)
    print(
        f"{figures['device']}: {len(made)} calls of {len(OPS)} ops, {STEPS} steps ({captured}): {len(failures)} failed"
    )
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
