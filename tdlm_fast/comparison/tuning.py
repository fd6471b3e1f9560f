"""Tune both objectives with equal effort: the same number of trials, drawn by one seed, chosen on validation alone.

Trial 0 is the config as it is. Every other trial draws, for both objectives alike, a learning rate, a weight decay and
a dropout; and for each objective the settings that only it has. So trial i of one objective has the learning rate of
trial i of the other. The draws of a trial depend on the seed and its number only: more trials keep the earlier ones.
"""

import dataclasses
import math
import random
import sys
from pathlib import Path

from .. import config as settings
from ..runs.files import figures, write_figures
from ..runs.metrics import summary_of
from .arms import OBJECTIVES
from .runner import keys_of, train

RATES = (1 / 3, 30.0)  # of the config's learning rate, drawn with a uniform logarithm
DECAYS = (1, 3, 10, 30)  # of the config's weight decay
DROPOUTS = (0.0, 0.1, 0.2)
OWN: dict[str, dict[str, tuple]] = {
    "diffusion": {
        "loss_weight": ("elbo", "uniform", "published"), "noise.sampling": ("stratified", "independent", "counts"),
    },
    "autoregressive": {"noise.input_masking": (0.0, 0.15)},
}  # fmt: skip
QUIET = {"eval.published": 0, "eval.probe": 0, "eval.text": 0}  # what a trial need not compute


def drawn(config: settings.Config, objective: str, trial: int, seed: int) -> dict[str, object]:
    """Return the keys that a trial sets, {} for trial 0."""
    if trial == 0:
        return {}
    both, own = random.Random(f"{seed} {trial}"), random.Random(f"{seed} {trial} {objective}")
    rate = math.exp(both.uniform(*map(math.log, RATES)))
    keys: dict[str, object] = {
        "optim.lr": float(f"{config.optim.lr * rate:.3g}"), "optim.min_lr": float(f"{config.optim.min_lr * rate:.3g}"),
        "optim.weight_decay": float(f"{config.optim.weight_decay * both.choice(DECAYS):.6g}"),
        "model.dropout": both.choice(DROPOUTS),
    }  # fmt: skip
    return keys | {key: own.choice(values) for key, values in OWN[objective].items()}


def plan(config_file: Path, overrides: list[str], trials: int, steps: int, seed: int) -> list[dict]:
    """Return every trial: {"objective", "trial", "keys", "overrides"}, trial by trial. Raises ConfigError."""
    given, out = {o.partition("=")[0].strip() for o in overrides}, []
    quiet = [f"{key}={value}" for key, value in QUIET.items() if key not in given]
    short = [f"train.max_steps={steps}"] if steps else []
    for trial in range(trials):
        for objective in OBJECTIVES:
            words = keys_of(config_file, [*quiet, *overrides, *short, f"objective={objective}"])
            config = settings.load(config_file, words)
            if not config.optim.weight_decay or not config.optim.lr:
                zero = "optim.lr" if not config.optim.lr else "optim.weight_decay"
                raise settings.ConfigError(f"{zero} is 0, and so are its multiples; give the value to tune around")
            keys = drawn(config, objective, trial, seed)
            words = [*words, *(f"{key}={value}" for key, value in keys.items())]
            settings.load(config_file, words)
            out.append({"objective": objective, "trial": trial, "keys": keys, "overrides": words})
    return out


def tune(config_file: Path, overrides: list[str], out: Path, *, trials: int, steps: int = 0, seed: int = 0) -> dict:
    """Train every trial that is not finished, and write tune.json and a tuned YAML for each objective into out.

    Returns the contents of tune.json: {"trials": [{"objective", "trial", "keys", "valid", "stderr", "seconds"}],
    "best": {objective: trial}, …}; valid is the likelihood of the validation split in nats per token, the bound for
    diffusion, and None where the trial failed because a loss was not finite. The test split has no part in the choice.
    Raises ConfigError, and NonFinite where all trials of an objective failed.
    """
    jobs = plan(config_file, overrides, trials, steps, seed)
    about = {"config": str(config_file), "overrides": overrides, "steps": steps, "seed": seed}
    kept = figures(out / "tune.json", (), "remove it; finished trials are kept")
    if kept and (other := [k for k in ("steps", "seed", "overrides") if kept.get(k) != about[k]]):
        raise settings.ConfigError(f"{out} holds trials of other {' and '.join(other)}; tune into another --out")
    before = {(t["objective"], t["trial"]): t for t in kept.get("trials", []) if t["valid"] is None}
    done: list[dict] = []
    for i, job in enumerate(jobs, 1):
        name = f"{job['objective']}-{job['trial']:03d}"
        print(f"trial {i} of {len(jobs)}: {name} {_words(job['keys'])}", file=sys.stderr)
        same = before.get((job["objective"], job["trial"]))
        known = same is not None and same["keys"] == job["keys"]
        done.append(same if same and known else _run(config_file, job, out / name))
        out.mkdir(parents=True, exist_ok=True)
        write_figures(out / "tune.json", about | {"trials": done, "best": best(done)})
    result = about | {"trials": done, "best": best(done)}
    if failed := [o for o in OBJECTIVES if o not in result["best"]]:
        raise settings.NonFinite(f"{out}: every trial of {' and of '.join(failed)} failed; lower optim.lr")
    for objective, trial in result["best"].items():
        job = next(j for j in jobs if (j["objective"], j["trial"]) == (objective, trial))
        _write_arm(config_file, overrides, job, result, out / f"tuned-{objective}.yaml")
    return result


def _words(keys: dict) -> str:
    return " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in keys.items()) or "(the config as it is)"


def _run(config_file: Path, job: dict, folder: Path) -> dict:
    """Train a trial, or keep it where it is finished; return its record."""
    record = {k: job[k] for k in ("objective", "trial", "keys")}
    try:
        train(config_file, job["overrides"], folder)
    except settings.NonFinite as e:
        print(f"{folder}: {e}", file=sys.stderr)
        return record | {"valid": None, "stderr": None, "seconds": None}
    summary = summary_of(folder)
    valid = summary["valid"]
    return record | {"valid": valid["nats_per_token"], "stderr": valid["stderr"], "seconds": summary["seconds"]}


def best(trials: list[dict]) -> dict[str, int]:
    """Return {objective: its trial of the lowest validation likelihood}, of equals the earliest, none that failed."""
    out = {}
    for objective in OBJECTIVES:
        sound = [t for t in trials if t["objective"] == objective and t["valid"] is not None]
        if sound:
            out[objective] = min(sound, key=lambda t: (t["valid"], t["trial"]))["trial"]
    return out


def _write_arm(config_file: Path, overrides: list[str], job: dict, result: dict, file: Path) -> None:
    """Write the best trial of an objective as a config of the whole run: without the steps and the quiet of a trial."""
    keys = [f"{key}={value}" for key, value in job["keys"].items()]
    words = keys_of(config_file, [*overrides, f"objective={job['objective']}", "run.dir="])
    config = settings.load(config_file, [*words, *keys])
    settings.save(dataclasses.replace(config, run=settings.Run()), file)
    own = [t for t in result["trials"] if t["objective"] == job["objective"]]
    valid = next(t["valid"] for t in own if t["trial"] == job["trial"])
    length = f"{result['steps']:,} steps" if result["steps"] else "the config's steps"
    about = (
        f"# {job['objective']}, the best of {len(own)} trials of {length} on the validation split: trial "
        f"{job['trial']}, {valid:.4f} nats per token\n# {_words(job['keys'])}\n"
    )
    file.write_text(about + file.read_text(encoding="utf-8"), encoding="utf-8")


def table(result: dict) -> list[list[str]]:
    """Return a row for each trial, the best of each objective first."""
    rows = [["objective", "trial", "validation, nats per token", "keys"]]
    for objective in OBJECTIVES:
        own = [t for t in result["trials"] if t["objective"] == objective]
        for t in sorted(own, key=lambda t: (t["valid"] is None, t["valid"], t["trial"])):
            bound = "≤ " if objective == "diffusion" else ""
            value = "failed" if t["valid"] is None else f"{bound}{t['valid']:.4f}"
            rows.append([objective, str(t["trial"]), value, _words(t["keys"])])
    return rows
