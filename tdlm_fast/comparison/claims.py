"""Read the published claims (claims.json), and list how a run departs from the published experiment."""

import json
from pathlib import Path


def load() -> dict:
    """Return the contents of claims.json."""
    return json.loads((Path(__file__).parent / "claims.json").read_text(encoding="utf-8"))


def departures(run: dict) -> list[str]:
    """List where a diffusion run's text and settings differ from the published ones: "KEY 4 instead of 2", …"""
    config, summary, published = run["config"], run["summary"], load()
    text = published["known_texts"].get(summary["corpus_hash"], summary["corpus"])
    out = [] if text == "wikitext-2" else [f"text {text} instead of {published['text']}"]  # the Hub's is the raw one
    out += [f"{k} {config[k]} instead of {v}" for k, v in published["settings"].items() if config.get(k, v) != v]
    ours, theirs = summary["parameters"], published["parameters"]
    return out if ours == theirs else [*out, f"{ours:,} parameters instead of {theirs:,}"]
