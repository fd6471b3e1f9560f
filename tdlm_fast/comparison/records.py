"""Read finished runs for a comparison, from their folders or from a kept compare.json."""

import json
import math
import sys
from pathlib import Path

from .. import config as settings
from ..cli import command
from ..runs import metrics
from ..runs.files import figures, matches
from ..runs.folder import check_summary

PARTS = ("folder", "config", "summary", "evaluations", "table", "losses", "tasks")  # of a run in compare.json
NO_RECORD = "--from takes run folders, and a compare.json of finished runs as it was written"
SHOWN = {  # figures of an evaluation that are judged or drawn
    "valid": ("nats_per_token", "stderr", "ppl"),
    "published": ("reweighted_loss", "stderr", "published_metric", "each"),
}


def read(folder: Path) -> dict:
    """Return a finished run: config, summary, evaluations, training losses, and table and tasks if it has them."""
    if not (folder / "config.yaml").is_file():
        raise settings.ConfigError(f"{folder} is not a run folder: it has no config.yaml")
    summary = metrics.summary_of(folder)
    if not summary.get("finished"):
        raise settings.ConfigError(f"{folder} is not finished: {command('train', 'CONFIG', '--resume')} finishes it")
    entries = metrics.entries(folder / "metrics.jsonl")[0]
    settings_of_run = settings.load(folder / "config.yaml")
    check_summary(settings_of_run, folder, summary)
    used = {"precision": summary.get("precision", settings_of_run.precision)}  # on its device, where it says auto
    config = settings.flatten(settings_of_run) | used
    evaluations = list({e["step"]: e for e in entries if "valid" in e}.values())
    if not evaluations:
        file = folder / "metrics.jsonl"
        raise settings.ConfigError(f"{file} holds no evaluation to compare; restore it, or leave the run out")
    if not metrics.as_written(folder, summary):
        changed = f"{folder / 'metrics.jsonl'} was changed after the run had written it"
        raise settings.ConfigError(f"{changed}; restore it, or train the run again in another folder")
    counted = {e["step"]: e for e in entries if "loss" in e}
    places = ("step", "loss", "tokens", "seconds", "loss_tokens")
    for e in evaluations:  # older runs counted no tokens at evaluations
        e.setdefault("tokens", counted.get(e["step"], {}).get("tokens", 0))
        e.setdefault("loss_tokens", counted.get(e["step"], {}).get("loss_tokens"))
    run = {
        "folder": folder.name, "config": config, "summary": summary, "evaluations": evaluations, "table": None,
        "losses": [tuple(e.get(k) for k in places) for e in counted.values()], "tasks": None,
    }  # fmt: skip
    table, tasks = (figures(folder / name) for name in ("likelihoods.json", "tasks.json"))
    if table and _of(summary, table, split="test"):
        run["table"] = table
    run["tasks"] = {k: v for k, v in tasks.items() if _of(summary, v, checkpoint="best")} or None
    for name, ignored in (("likelihoods.json", table and not run["table"]), ("tasks.json", tasks and not run["tasks"])):
        if ignored:
            print(f"{folder / name} belongs to other weights or another split, and is not used", file=sys.stderr)
    return sound(run, folder)


def recorded(file: Path) -> list[dict]:
    """Return the runs of a compare.json, as read() does. Raises ConfigError where the file is another one."""
    try:
        runs = [
            {k: run[k] for k in PARTS} for arm in figures(file, (), NO_RECORD)["arms"] for run in arm["runs"] or [{}]
        ]
        for run in runs:
            run["config"] = settings.flatten(settings.build(run["config"]))
            run["folder"] = str(Path(run["folder"]))
    except settings.ConfigError as e:
        raise settings.ConfigError(f"{file}: the config of a run: {e}" if str(file) not in str(e) else str(e)) from None
    except (KeyError, TypeError, AttributeError):
        raise settings.ConfigError(f"{file} is not a compare.json of finished runs; give one or a run") from None
    return [sound(run, file / run["folder"]) for run in runs]


def thinned(run: dict) -> dict:
    """Return the run with only the figures that are judged or drawn, to seven digits: its record in compare.json."""
    evaluations = [e | {part: {k: e[part][k] for k in keys} for part, keys in SHOWN.items() if part in e}
                   for e in run["evaluations"]]  # fmt: skip
    for e in evaluations[:-1]:  # the last one's levels make a table where there are no likelihoods
        if "diagnostics" in e:
            e["diagnostics"] = {k: v for k, v in e["diagnostics"].items() if k not in ("tokens", "share")}
    tasks = run["tasks"] and {
        name: {k: v for k, v in e.items() if k != "groups" or name == "blimp"} for name, e in run["tasks"].items()
    }
    text = json.dumps(run | {"evaluations": evaluations, "tasks": tasks})
    return json.loads(text, parse_float=lambda digits: float(f"{float(digits):.7g}"))


def _numbers(run: dict):
    """Yield (name, value) of the figures of a run that every verdict rests on."""
    for part, keys in (("summary", ("steps", "seconds", "parameters")), ("test", ("nats_per_token", "stderr", "ppl"))):
        of = run["summary"] if part == "summary" else run["summary"][part]
        yield from ((f"{part}.{k}", of[k]) for k in keys)
    yield "the first step", run["evaluations"][0]["step"]
    for e in run["evaluations"]:
        yield from ((f"{k} of step {e['step']}", e["valid"][k]) for k in ("nats_per_token", "stderr", "ppl"))
        if "published" in e:
            yield from ((f"{k} of step {e['step']}", e["published"][k]) for k in ("reweighted_loss", "stderr"))
    if table := run["table"]:
        yield from ((f"{k} of the table", table["rows"][0][k]) for k in ("nats_per_token", "low", "high"))
        yield from ((f"{k} of the table", table["published"][k]) for k in ("reweighted_loss", "stderr"))
        yield "levels of the table", len(table["levels"]["loss"]) + len(table["per_sequence"])
    for name, e in (run["tasks"] or {}).items():
        yield from ((f"{k} of {name}", e[k]) for k in ("acc", "n", "chance", "seconds"))


def sound(run: dict, source: Path) -> dict:
    """Return the run. Raises ConfigError where a figure that a verdict rests on is missing or not a number."""
    try:
        for name in metrics.REPORTED:
            run["summary"][name]  # KeyError where it is missing
        for name, value in _numbers(run):
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} is {value!r}")
        if run["summary"]["seconds"] <= 0:
            raise ValueError("summary.seconds is 0")
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as e:
        damage = f"{e.args[0]!r} is missing" if isinstance(e, KeyError) else e
        raise settings.ConfigError(f"{source} cannot be judged: its figures are damaged ({damage})") from None
    return run


def _of(summary: dict, figures: dict, **also) -> bool:
    """Return whether figures belong to the run's best weights and text; also: further parts of their key."""
    wanted = also | {"step": summary["best_step"], "corpus": summary["corpus_hash"]}
    if not matches(figures, {}):
        return False
    if "weights" in summary and "weights" in figures["key"]:  # older keys have no weights
        wanted["weights"] = summary["weights"]
    return matches(figures, wanted)
