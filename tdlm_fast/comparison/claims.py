"""Read published claims, and list how runs depart from the published experiment.

The claim file of TDLM v1.2 holds the settings of configs/published.yaml, every key that decides a loss, and a test
compares the two. Another file may hold fewer: a key that it leaves out is not compared.
"""

from pathlib import Path

from .. import config as settings
from .arms import OBJECTIVES
from .claim_schema import read

# beginnings of keys that decide no loss; the text is compared by its contents, and seeds differ on purpose
NOT_DECIDING = (
    "objective", "seed", "device", "run.", "eval.", "data.corpus", "data.path", "data.if_unreachable", "data.cache",
    "train.capture", "train.log_every", "train.save_every", "train.keep_at", "train.branch_from",
    "model.size",
)  # fmt: skip
READ_BY_ONE = {
    "loss_weight": "diffusion", "noise.schedule": "diffusion", "noise.sampling": "diffusion",
    "noise.input_masking": "autoregressive",
}  # fmt: skip


def load(name: Path | None = None) -> dict:
    """Return the contents of a claim file, a path or an installed name; None means that of TDLM v1.2."""
    return read(name)


def deciding(objective: str) -> list[str]:
    """Return the keys that decide the losses of a run of that objective."""
    keys = (key for key in settings.fields() if not key.startswith(NOT_DECIDING))
    return [key for key in keys if READ_BY_ONE.get(key, objective) == objective]


def departures(pair: tuple[dict, dict], case: dict | None = None) -> list[str]:
    """List where a diffusion and an autoregressive run depart from the published ones: "KEY 4 instead of 2", …

    A departure of one run only begins with its objective, unless the other never reads the key. What no setting can
    change stands last.
    """
    published, found = case or load(), {}
    for objective, run in zip(OBJECTIVES, pair, strict=True):
        config, summary = run["config"], run["summary"]
        text = published["known_texts"].get(summary["corpus_hash"], summary["corpus"])
        lines = [("", f"text {text} instead of {published['text']}")] * (text != published["corpus"])
        expected = ((k, published["settings"][k]) for k in deciding(objective) if k in published["settings"])
        lines += [(key, f"{key} {config[key]} instead of {v}") for key, v in expected if config[key] != v]
        ours, theirs = summary["parameters"], published["parameters"]
        if theirs not in (None, ours):
            lines.append(("", f"{ours:,} parameters instead of {theirs:,}"))
        found[objective] = lines
    out = []
    for objective, lines in found.items():
        (other,) = (found[o] for o in OBJECTIVES if o != objective)
        for key, line in lines:
            shared = (key, line) in other or key in READ_BY_ONE
            out.append(line if shared else f"{objective}: {line}")
    return [*dict.fromkeys(out), *published["implementation"]]
