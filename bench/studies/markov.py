"""Both objectives on Markov sources of known entropy: `python -m bench.studies.markov --out FOLDER`.

Trains configs/markov.yaml for each order and objective, resuming what FOLDER holds, and compares every likelihood of
the test split with the one of the source itself on the same rows:

    mean and standard error over rows of (-log p_model - -log p_source), in nats per token

which estimates the model's Kullback-Leibler divergence from the source, so it is below 0 only by chance. The error of a
bound holds that of its draws too.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch

from bench.docs_tables.results import OBJECTIVES, RESULTS
from tdlm_fast import train
from tdlm_fast.evaluation import exact_likelihood, source_entropy
from tdlm_fast.evaluation.table import likelihoods
from tdlm_fast.runs.load import load_run, trained_text
from tdlm_fast.runs.metrics import summary_of

ROWS = 1000  # of the orders that need a forward pass for each token


def orders(folder: Path) -> dict[str, list[float]]:
    """Return {order: [nats per token above the source, standard error]} on a part of the test rows of a run."""
    config, tokenizer, _, state = load_run(folder, "best", "cpu")
    table = likelihoods(folder, sequences=ROWS, device="cpu")
    few = exact_likelihood.subset(trained_text(folder, config, state).splits["test"], ROWS, tokenizer, seed=config.seed)
    own = torch.from_numpy(source_entropy.row_nats(config.data.markov_order, few))
    above = {name: torch.tensor(nats, dtype=torch.float64) - own for name, nats in table["per_sequence"].items()}
    return {k: [v.sum().item() / few.scored, v.std().item() * math.sqrt(len(v)) / few.scored] for k, v in above.items()}


def measure(folder: Path, order: int, objective: str) -> dict:
    """Train one run, or take it from its folder, and return its figures."""
    keys = [f"data.corpus=markov-{order}", f"objective={objective}", f"run.dir={folder}", "--resume"]
    if code := train.main(["configs/markov.yaml", *keys]):
        sys.exit(code)
    summary, table = summary_of(folder), likelihoods(folder, sequences=ROWS, device="cpu")
    test, of_source = summary["test"], summary["source"]["test"]
    base = {r["name"]: r["nats_per_token"] for r in table["rows"] if r["name"].endswith("baseline")}
    return {
        "order": order, "objective": objective, "steps": summary["steps"], "tokens": summary["tokens"],
        "parameters": summary["parameters"], "seconds": summary["seconds"], "device": summary["device"],
        "test": {k: test[k] for k in ("nats_per_token", "stderr", "bound", "tokens")}, "source": of_source,
        "baselines": base, "rows": ROWS, "above_source": orders(folder),
    }  # fmt: skip


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, help="folder of the runs")
    p.add_argument("--orders", type=int, nargs="+", default=[1])
    a = p.parse_args()
    runs = [measure(a.out / f"{k}-{o}", k, o) for k in a.orders for o in OBJECTIVES]
    (RESULTS / "markov.json").write_text(json.dumps({"runs": runs}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
