"""Head to head: `python -m tdlm_fast.compare configs/tiny.yaml [key=value …] [--seeds 3] [--out DIR]`.

Trains diffusion and autoregressive with everything but the objective alike, each run in a process of its own, evaluates
both on the same tokens and writes DIR/report.html, report.md and compare.json. The same command resumes after any
interruption: finished runs and finished tables are kept. --arms adds control arms (other YAML files) to the picture;
--from RUN_A RUN_B … compares finished runs, and an earlier compare.json among them stands for the runs it holds.
"""

import argparse
import sys
from pathlib import Path

from . import config as settings
from .cli import verb
from .comparison.arms import OBJECTIVES, arms_of, check_alike, identity
from .comparison.records import read, recorded
from .comparison.runner import EARLY, compare, keys_of, train


def main(argv=None) -> int:
    p = argparse.ArgumentParser(
        prog="python -m tdlm_fast.compare", description=__doc__.split("\n")[0],
        epilog="keys, their defaults and meanings:\n" + settings.describe(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("config", nargs="?", type=Path, help="YAML file, as configs/tiny.yaml")
    p.add_argument("overrides", nargs="*", help="key=value")
    p.add_argument("--seeds", type=int, default=1, help="seeds, from the config's upwards")
    p.add_argument("--out", type=Path, help="folder of runs and report (default: runs/compare-NAME)")
    p.add_argument("--arms", type=Path, nargs="+", default=[], help="YAML files of control arms, as configs/controls/*")
    p.add_argument(
        "--from",
        dest="runs",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="finished runs, or a compare.json that holds some; nothing is trained",
    )
    p.add_argument(
        "--sequences",
        type=int,
        default=64,
        help="test sequences of the exact likelihoods, 2 or more; "
        "0: no table, so neither they nor the unigram baseline nor the published metric on the test split",
    )
    p.add_argument("--draws", type=int, default=16, help="draws of the published metric on the test split")
    a = p.parse_intermixed_args(argv)
    try:
        folders = list(a.runs)
        if a.seeds < 1 or a.sequences < 0 or a.sequences == 1 or a.draws < 1:
            raise settings.ConfigError("--seeds and --draws must be at least 1, --sequences 0 or at least 2")
        if a.out and (file := next((p for p in (a.out, *a.out.parents) if p.exists() and not p.is_dir()), None)):
            raise settings.ConfigError(f"--out {a.out}: {file} is a file; give a folder")
        if a.runs:
            if a.config or a.arms or a.seeds != 1:
                raise settings.ConfigError("--from compares finished runs: it takes no config, --arms or --seeds")
            if len(a.runs) < 2 and not a.runs[0].is_file():
                raise settings.ConfigError("--from needs two runs or more")
            out = a.out or Path("runs") / f"compare-{a.runs[0].stem}"
        else:
            if not a.config:
                raise settings.ConfigError("give a config, as configs/tiny.yaml, or --from RUN_A RUN_B")
            if any(o.startswith(("objective=", "seed=", "run.dir=")) for o in a.overrides):
                raise settings.ConfigError("compare sets objective, seed and run.dir; use --seeds and --out")
            out = a.out or Path("runs") / f"compare-{a.config.stem}"
            given = [o.partition("=")[0] for o in a.overrides]
            extra = a.overrides if "eval.early" in given else [f"eval.early={EARLY}", *a.overrides]
            jobs = [
                *((a.config, o, keys_of(a.config, [*extra, f"objective={o}"])) for o in OBJECTIVES),
                *((arm, arm.stem, keys_of(arm, extra)) for arm in a.arms),
            ]
            configs = [settings.load(file, keys) for file, _, keys in jobs]  # a bad key stops here, at once
            first, seen = configs[0].seed, {}
            for (file, name, _), config in zip(jobs, configs, strict=True):
                who = identity(settings.flatten(config) | {"seed": first})
                if name in seen or who in seen.values():
                    same = "the same settings with these keys" if who in seen.values() else "the same name"
                    raise settings.ConfigError(f"--arms: {file} has {same} as another arm")
                seen[name] = who
            count = a.seeds * len(jobs)
            for seed in range(first, first + a.seeds):
                for file, name, keys in jobs:
                    print(f"run {len(folders) + 1} of {count}: {name}, seed {seed}", file=sys.stderr)
                    train(file, [*keys, f"seed={seed}"], out / f"{name}-seed{seed}")
                    folders.append(out / f"{name}-seed{seed}")
        kept = {f: recorded(f) for f in folders if f.is_file()}

        def runs() -> list[tuple[Path, dict]]:
            return [(f / run["folder"] if f in kept else f, run) for f in folders for run in kept.get(f) or [read(f)]]

        where, found = zip(*runs(), strict=True)
        check_alike(found, where)  # what cannot be is named before the tables take their time
        if a.sequences:
            from .evaluation.table import likelihoods

            for folder in (f for f in folders if f not in kept):
                print(f"{folder}: likelihoods", file=sys.stderr)
                likelihoods(folder, sequences=a.sequences, draws=a.draws)
        result = compare(arms_of([run for _, run in runs()]), out)
    except settings.ConfigError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except settings.NonFinite as e:
        print(f"error: {folder}: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what is done is kept, the same command goes on", file=sys.stderr)
        return 130
    for claim in result["claims"]:
        print(f"{claim['verdict']:26} {claim['claim']} ({claim['reason']})")
    print(f"report {out / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(verb(main))
