"""Round the pair of configs/demo.yaml to bf16 and put it into the package: `python -m bench.studies.demo_weights DIR`.

DIR holds the run folders diffusion and autoregressive. Each becomes a run folder in tdlm_fast/demo_runs with only its
config and its best weights, which every verb reads. figures.json beside them holds the figures of the training, and the
likelihood of the rounded weights on the whole test split.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from tdlm_fast import config as settings
from tdlm_fast.evaluation.likelihood import final_scoring, likelihood
from tdlm_fast.runs import checkpoint
from tdlm_fast.runs.files import BEST, write_figures
from tdlm_fast.runs.load import load_run, trained_text
from tdlm_fast.runs.metrics import finished

OBJECTIVES = ("diffusion", "autoregressive")
PACKAGED = Path(__file__).parents[2] / "tdlm_fast" / "demo_runs"
OF_TRAINING = ("steps", "tokens", "seconds", "parameters", "device", "versions")


def pack(run: Path, into: Path) -> dict:
    """Write run's best weights in bf16 and its config to the folder into; return the figures of both."""
    summary = finished(run)
    if not summary:
        raise settings.ConfigError(f"{run} is not finished; resume it")
    config, _, model, state = load_run(run, "best", "cpu")
    into.mkdir(parents=True, exist_ok=True)
    settings.save(replace(config, run=replace(config.run, dir="")), into / "config.yaml")
    del state["weights"]
    checkpoint.save(into / BEST, model.to(torch.bfloat16), None, state)
    config, tokenizer, rounded, state = load_run(into, "best", "cpu")
    split = trained_text(into, config, state).splits["test"]
    score = likelihood(rounded, split, config.objective, **final_scoring(config, tokenizer))
    command = "python -m tdlm_fast.train configs/demo.yaml"
    command += " objective=autoregressive" if config.objective == "autoregressive" else ""
    return {
        "command": command, "dtype": "bfloat16", "weights": state["weights"], "mb": (into / BEST).stat().st_size / 1e6,
        **{k: summary[k] for k in OF_TRAINING}, "fp32": {k: summary[k] for k in ("valid", "test")},
        "test": score.asdict(),
    }  # fmt: skip


def main() -> int:
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    p.add_argument("runs", type=Path, help="folder with the run folders diffusion and autoregressive")
    p.add_argument("--out", type=Path, default=PACKAGED)
    a = p.parse_args()
    figures = {o: pack(a.runs / o, a.out / o) for o in OBJECTIVES}
    write_figures(a.out / "figures.json", {"corpus": "sotu", **figures}, indent=1)
    for o in OBJECTIVES:
        print(f"{o}: {figures[o]['test']['nats_per_token']:.4f} nats/token in bf16, "
              f"{figures[o]['fp32']['test']['nats_per_token']:.4f} in fp32")  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
