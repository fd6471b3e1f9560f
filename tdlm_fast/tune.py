"""Tune both objectives with equal trials: `python -m tdlm_fast.tune CONFIG [key=value …] --trials 16 [--steps 300]`.

Draws the same number of trials for diffusion and autoregressive from one seed: learning rate, weight decay and dropout
alike for both; loss weight and sampling for diffusion, input masking for autoregressive. Trial 0 is the config as it
is. The lowest validation likelihood of each objective is written as tuned-OBJECTIVE.yaml, which `compare --arms` takes.
The same command resumes after an interruption, and more --trials keep the earlier ones.
"""

import sys
from pathlib import Path

from . import config as settings
from .cli import command, exit_codes, not_taken, own_folder, path, verb, verb_parser
from .comparison import tuning
from .evaluation.table_lines import aligned

SET = ("objective", "seed", "run.dir", "train.max_steps")  # by tune itself, or alike in all trials


def parser():
    p = verb_parser("tune", __doc__, keys=True)
    p.add_argument("config", type=path, help="YAML file, as configs/tiny.yaml")
    p.add_argument("overrides", nargs="*", help="key=value")
    p.add_argument("--trials", type=int, default=16, help="trials of each objective, the config as it is among them")
    p.add_argument("--steps", type=int, default=0, help="optimizer steps of a trial (default 0: as the config says)")
    p.add_argument("--seed", type=int, default=0, help="seed of the draws of settings; all trials share the config's")
    p.add_argument("--out", type=path, help="folder of trials and results (default: runs/tune-NAME)")
    return p


@exit_codes(kept="finished trials are kept, and the same command resumes", prints=False)
def main(argv=None) -> None:
    a = parser().parse_intermixed_args(argv)
    settings.at_least(a, {"trials": 2, "steps": 0, "seed": 0}, {"trials": ", the config itself and another"}, "--")
    if wrong := [o for o in a.overrides if o.partition("=")[0].strip() in SET]:
        raise settings.ConfigError(f"{wrong[0]}: tune sets {', '.join(SET)}; use --steps, --out, or the config's seed")
    out = a.out or Path("runs") / f"tune-{a.config.stem}"
    own_folder(out, "--out")
    not_taken(out, "--out")
    result = tuning.tune(a.config, a.overrides, out, trials=a.trials, steps=a.steps, seed=a.seed)
    print(*aligned(tuning.table(result)), sep="\n")
    arms = [out / f"tuned-{objective}.yaml" for objective, trial in result["best"].items() if trial]
    for objective, trial in result["best"].items():
        if not trial:
            print(f"{objective}: the config as it is was best, so it needs no arm")
    if arms:
        print("compare " + command("compare", a.config, *a.overrides, "--arms", *arms))


if __name__ == "__main__":
    sys.exit(verb(main))
