"""Compare diffusion and autoregressive: `python -m tdlm_fast.compare CONFIG [key=value …] [--seeds 3] [--out DIR]`.

Trains both objectives with all other settings alike, each run in its own process, evaluates both on the same tokens and
writes DIR/report.html, report.md and compare.json. The same command resumes after an interruption: finished runs and
tables are kept. --arms adds control arms (other YAML files). --from RUN_A RUN_B … compares finished runs instead; a
compare.json among them stands for the runs it holds. --claims takes the claims of another publication.
"""

import argparse
import sys
from pathlib import Path

from . import config as settings
from .cli import exit_codes, not_taken, own_folder, path, verb, verb_parser
from .comparison import claims
from .comparison.runner import compare_runs, train_arms


def parser() -> argparse.ArgumentParser:
    p = verb_parser("compare", __doc__, keys=True)
    p.add_argument("config", nargs="?", type=path, help="YAML file, as configs/tiny.yaml")
    p.add_argument("overrides", nargs="*", help="key=value")
    p.add_argument("--seeds", type=int, default=1, help="number of seeds, from the config's upwards")
    p.add_argument("--out", type=path, help="folder of runs and report (default: runs/compare-NAME)")
    p.add_argument("--arms", type=path, nargs="+", default=[], help="YAML files of control arms, as configs/controls/*")
    runs = "finished runs, or a compare.json that holds some; nothing is trained"
    p.add_argument("--from", dest="runs", type=path, nargs="+", default=[], metavar="RUN", help=runs)
    case = "claim file (docs/claim-files.md), or the name of an installed one (default: tdlm-v1.2)"
    p.add_argument("--claims", type=path, metavar="FILE", help=case)
    table = "sequences of the exact likelihoods on the test split, 2 or more; 0: no table of likelihoods for any run"
    p.add_argument("--sequences", type=int, default=64, help=table)
    p.add_argument("--draws", type=int, default=16, help="draws of the published metric on the test split")
    return p


def check(a) -> None:
    """Raise ConfigError where an option is out of range or does not fit the others."""
    if a.seeds < 1 or a.sequences < 0 or a.sequences == 1 or a.draws < 1:
        raise settings.ConfigError("--seeds and --draws must be at least 1, --sequences 0 or at least 2")
    if a.out:
        not_taken(a.out, "--out")
    if a.runs:
        if a.config or a.arms or a.seeds != 1:
            raise settings.ConfigError("--from compares finished runs: it takes no config, --arms or --seeds")
        if len(a.runs) < 2 and not a.runs[0].is_file():
            raise settings.ConfigError("--from needs two runs or more")
    elif not a.config:
        raise settings.ConfigError("give a config, as configs/tiny.yaml, or --from RUN_A RUN_B")
    elif any(o.startswith(("objective=", "seed=", "run.dir=")) for o in a.overrides):
        raise settings.ConfigError("compare sets objective, seed and run.dir; use --seeds and --out")


@exit_codes(kept="finished runs and tables are kept, and the same command resumes", prints=False)
def main(argv=None) -> None:
    a = parser().parse_intermixed_args(argv)
    check(a)
    case = claims.load(a.claims)
    own_folder(a.out or Path("runs"), "--out")
    out = a.out or Path("runs") / f"compare-{(a.runs[0] if a.runs else a.config).stem}"
    runs = a.runs or train_arms(a.config, a.overrides, a.arms, a.seeds, out)
    result = compare_runs(runs, out, sequences=a.sequences, draws=a.draws, case=case)
    for claim in result["claims"]:
        print(f"{claim['verdict']:26} {claim['claim']} ({claim['reason']})")
    print(f"report {out / 'report.html'}")


if __name__ == "__main__":
    sys.exit(verb(main))
