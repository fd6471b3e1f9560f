"""How large a trained model's logits can be: `python -m bench.studies.logit_bound RUN … --json FILE`.

A logit is h . w, and h = RMSNorm(x) has |h| <= sqrt(D) max|norm weight|. So |h| |w| <= sqrt(D) max|norm weight| max|w|.
kernels/triton/linear_cross_entropy.py runs a shorter loop where the lengths of all rows multiply to less than 40.
"""

import argparse
import json
import math
from pathlib import Path

import tdlm_fast


def bound(folder: str) -> dict:
    """The factors of the bound and the bound, of the best weights of a run."""
    config, _, model, _ = tdlm_fast.load_run(folder)
    longest, gain = model.head.norm(dim=1).max().item(), model.norm.weight.abs().max().item()
    D = config.model.width
    return {
        "objective": config.objective, "width": D, "longest_row_of_w": round(longest, 4),
        "largest_norm_weight": round(gain, 4), "bound": math.ceil(10 * math.sqrt(D) * gain * longest) / 10,
    }  # fmt: skip


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args(argv)
    figures = {Path(folder).name: bound(folder) for folder in args.runs}
    args.json.write_text(json.dumps(figures, indent=1) + "\n")
    for name, figure in figures.items():
        print(f"{name}: no logit is above {figure['bound']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
