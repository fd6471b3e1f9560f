"""Group runs into arms, and find what is alike between them."""

import json
from pathlib import Path

from .. import config as settings

OBJECTIVES = ("diffusion", "autoregressive")
SCORED = ("data.tokenizer", "data.layout", "model.seq_len")  # keys that decide which tokens are scored
# keys that decide no number; the run that a run branched from has its settings and seed, and a size sets a shape
IGNORED = (
    "run.dir", "run.wandb", "run.tensorboard", "device", "data.cache", "data.path", "train.branch_from",
    "train.keep_at", "model.size",
)  # fmt: skip


def check_tokens(first: settings.Config, other: settings.Config, both: str) -> None:
    """Raise ConfigError where two configs score other tokens, before anything is trained."""
    a, b = settings.flatten(first), settings.flatten(other)
    text = ("data.path",) if first.data.path or other.data.path else ("data.corpus",)
    if differs := [f"{k} is {a[k]!r}, {b[k]!r}" for k in (*SCORED, *text) if a[k] != b[k]]:
        raise settings.ConfigError(f"{both} would not be scored on the same tokens: {'; '.join(differs)}")


def check_alike(runs: list[dict], folders: list[Path]) -> None:
    """Raise ConfigError unless all runs were scored on the same tokens and each is listed once."""
    first = runs[0]
    for run, folder in zip(runs[1:], folders[1:], strict=True):
        here, there = first["config"], run["config"]
        other = [f"{k} is {here[k]}, {there[k]}" for k in SCORED if here[k] != there[k]]
        if first["summary"]["corpus_hash"] != run["summary"]["corpus_hash"]:
            other.append(f"the text is {first['summary']['corpus']}, {run['summary']['corpus']}, not the same")
        if first["summary"].get("tokenizer_hash") != run["summary"].get("tokenizer_hash"):
            other.append("their tokenizer.json hold other tokens")
        if other:
            both = f"{folders[0]} and {folder}"
            raise settings.ConfigError(f"{both} are not scored on the same tokens: {'; '.join(other)}")
    seen: dict[str, Path] = {}
    for run, folder in zip(runs, folders, strict=True):
        same = identity(run["config"])
        if same in seen:
            raise settings.ConfigError(f"{seen[same]} and {folder} are the same run: same settings, same seed")
        seen[same] = folder


def identity(config: dict) -> str:
    """Return the keys that decide numbers, with the seed, as text: two runs that share it are one run."""
    return json.dumps({k: v for k, v in config.items() if k not in IGNORED}, sort_keys=True)


def differences(a: dict, b: dict) -> list[str]:
    """Return the keys in which two configs differ, apart from the seed and keys that decide no number."""
    ignored = {*IGNORED, "seed"} | ({"loss_weight"} if a["objective"] != b["objective"] else set())  # diffusion's
    return [k for k in a if a[k] != b[k] and k not in ignored]


def label(config: dict, base: dict) -> str:
    """Name a run by its objective and the keys in which it differs from the run it is compared with."""
    apart = [f"{k.rpartition('.')[2]}={config[k]}" for k in differences(config, base) if k != "objective"]
    return " ".join([config["objective"], *apart])


def arms_of(runs: list[dict]) -> list[dict]:
    """Group runs by all but the seed: [{"label", "objective", "runs"}], the first arm of each objective first."""
    order = sorted(range(len(runs)), key=lambda i: OBJECTIVES.index(runs[i]["config"]["objective"]) * len(runs) + i)
    firsts = {}
    for i in order:
        firsts.setdefault(runs[i]["config"]["objective"], i)
    order = [*firsts.values(), *[i for i in order if i not in firsts.values()]]
    arms: list[dict] = []
    for i in order:
        run = runs[i]
        name = label(run["config"], runs[order[0]]["config"])
        same = [a for a in arms if a["label"] == name and not differences(a["runs"][0]["config"], run["config"])]
        if same:
            same[0]["runs"].append(run)
        else:
            arms.append({"label": name, "objective": run["config"]["objective"], "runs": [run]})
    for arm in arms:
        arm["runs"].sort(key=lambda r: r["config"]["seed"])
    return arms


def pairs_of(arms: list[dict]) -> list[tuple[dict, dict]]:
    """Return (diffusion run, autoregressive run) of every seed that both first arms have."""
    first = {}
    for arm in arms:
        first.setdefault(arm["objective"], {r["config"]["seed"]: r for r in arm["runs"]})
    if len(first) < 2:
        return []
    d, a = (first[o] for o in OBJECTIVES)
    return [(d[s], a[s]) for s in d if s in a]


def alike(pairs: list[tuple[dict, dict]]) -> list[str]:
    """Say for the runs of each seed whether settings, text, weights before step 1 and batches were alike."""
    words = []
    for d, a in pairs:
        seed, other = d["config"]["seed"], [k for k in differences(d["config"], a["config"]) if k != "objective"]
        hashes = [r["evaluations"][0].get("initial_weights") for r in (d, a)]
        weights = f"equal ({hashes[0]})" if hashes[0] == hashes[1] else "DIFFERENT"
        weights = "not recorded" if None in hashes else weights
        shared = {e["step"]: e["batch"] for e in d["evaluations"] if "batch" in e}
        seen = [(shared[e["step"]], e["batch"]) for e in a["evaluations"] if e["step"] in shared and "batch" in e]
        read = f"batches before {len(seen)} evaluations" if seen else "batches"
        if not seen and d["config"]["data.layout"] == "paragraphs":  # runs from before batches were recorded
            shared = {step: n for step, _, n, *_ in d["losses"]}
            seen = [(shared[step], n) for step, _, n, *_ in a["losses"] if step in shared]
            read = f"tokens of the batches at {len(seen)} logged steps"
        batches = "not recorded" if not seen else "equal" if all(x == y for x, y in seen) else "DIFFERENT"
        text = "equal" if d["summary"]["corpus_hash"] == a["summary"]["corpus_hash"] else "DIFFERENT"
        settings_of_both = f"DIFFERENT: {', '.join(other)}" if other else "equal"
        words.append(f"seed {seed}: settings apart from the objective {settings_of_both}; text {text}; "
                     f"weights before the first step {weights}; {read} {batches}")  # fmt: skip
    return words
