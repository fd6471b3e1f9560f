"""bf16 products against fp32 ones: the same training twice, batch by batch and mask by mask.

    python -m bench.precision [--steps 200] [--seeds 2] [--json FILE]

The tiny model on the packaged corpus. Both precisions see the same batches, masks and dropout, so their losses are
compared step by step: the mean difference over windows of 20 steps, beside the difference between two seeds of the same
precision, which is the noise that a training run has anyway.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from tdlm_fast import config as settings
from tdlm_fast import data, step
from tdlm_fast.doctor import versions
from tdlm_fast.optim import adamw

WINDOW, BATCH = 20, 16


def losses(objective: str, precision: str, seed: int, steps: int) -> list[float]:
    """The training loss of every step, nats per token."""
    keys = [f"objective={objective}", f"precision={precision}", f"seed={seed}", "data.corpus=sotu"]
    keys.append(f"train.batch_size={BATCH}")
    config = settings.load(Path(__file__).parent.parent / "configs" / "tiny.yaml", keys)
    corpus = data.load(config.data, config.model.seq_len)
    model = step.build_model(config, corpus.tokenizer).train()
    optimizer, loss_of = adamw(model, config.optim), step.objective(config, corpus.tokenizer)
    out = []
    for i in range(steps):
        done = step.train_step(model, optimizer, loss_of, corpus.splits["train"], config, step=i, steps=steps)
        out.append(float(done["loss"]))
    return out


def windows(a: list[float]) -> list[float]:
    return [statistics.fmean(a[i : i + WINDOW]) for i in range(0, len(a), WINDOW)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    result = {**versions(torch.device("cpu")), "steps": args.steps, "batch_size": BATCH, "window": WINDOW}
    result |= {"corpus": "sotu", "objectives": {}}
    for objective in ("diffusion", "autoregressive"):
        curves, started = {}, time.monotonic()
        for seed in range(1, args.seeds + 1):
            for precision in ("fp32", "bf16"):
                curves[f"{precision} seed {seed}"] = windows(losses(objective, precision, seed, args.steps))
        pairs = [
            [b - a for a, b in zip(curves[f"fp32 seed {s}"], curves[f"bf16 seed {s}"], strict=True)]
            for s in range(1, args.seeds + 1)
        ]
        seeds = [
            [b - a for a, b in zip(curves["fp32 seed 1"], curves[f"fp32 seed {s}"], strict=True)]
            for s in range(2, args.seeds + 1)
        ]
        result["objectives"][objective] = {
            "curves": {k: [round(x, 5) for x in c] for k, c in curves.items()},
            "largest_difference_of_precisions": max(abs(d) for pair in pairs for d in pair),
            "last_difference_of_precisions": max(abs(pair[-1]) for pair in pairs),
            "largest_difference_of_seeds": max((abs(d) for pair in seeds for d in pair), default=None),
        }
        found = result["objectives"][objective]
        print(f"{objective}: {time.monotonic() - started:.0f} s", {k: v for k, v in found.items() if k != "curves"})
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
