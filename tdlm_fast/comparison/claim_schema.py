"""Read a claim file, and check it against the schema that docs/claim-files.md describes.

A claim file is JSON: what was published, the numbers behind it, and claims that runs can settle. An error is one line
that names the file and the key.
"""

import difflib
import json
import re
import typing
from pathlib import Path

from .. import config as settings
from ..runs.files import parse, unreadable

FOLDER = Path(__file__).parent / "claim_files"  # those that are installed
LARGEST = 1e15  # of the numbers in a file, which a float holds to the last digit
PLACES = "a step, “best” or “test”"


class Rule(typing.NamedTuple):
    """What the value of a key must be, in words, and the test of that."""

    words: str
    test: typing.Callable[[typing.Any], bool]


def _number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _text(value) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _texts(value) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _place(value) -> bool:
    return value in ("best", "test") or isinstance(value, int) and _number(value) and value >= 0


def _decimal(value) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", value))


def _figures(value) -> bool:
    return isinstance(value, dict) and all(
        _number(e) or isinstance(e, list) and all(map(_number, e)) for e in value.values()
    )


TEXT, WORDS = Rule("text", _text), Rule("a list of texts", _texts)
POSITIVE = Rule("a number above 0", lambda v: _number(v) and v > 0)
SHARE = Rule("a number from 0 to 1", lambda v: _number(v) and 0 <= v <= 1)
WHOLE = Rule("a whole number above 0", lambda v: isinstance(v, int) and _number(v) and v > 0)
MAPPING = Rule("an object", lambda v: isinstance(v, dict))
NAMES = Rule("an object of texts", lambda v: isinstance(v, dict) and all(map(_text, v.values())))
NUMBERS = Rule("an object of numbers above 0", lambda v: _figures(v) and all(_number(e) and e > 0 for e in v.values()))
LIST = Rule("a list of objects", lambda v: isinstance(v, list) and all(isinstance(e, dict) for e in v))
FIGURES = Rule("an object of numbers, and of lists of numbers", _figures)
AT = Rule(PLACES, _place)

FILE = {
    "source": TEXT, "text": TEXT, "runs": TEXT, "settings": MAPPING, "implementation": WORDS, "figures": FIGURES,
    "derived": LIST, "claims": LIST,
}  # fmt: skip
FILE_MAY = {
    "address": TEXT,
    "note": TEXT,
    "corpus": TEXT,
    "known_texts": NAMES,
    "parameters": WHOLE,
    "beside": MAPPING,
}
DERIVED = {"id": TEXT, "value": Rule("a number in quotes, whose digits count", _decimal), "formula": TEXT}
BESIDE = {"source": TEXT, "bits_per_byte": NUMBERS}
EVERY = {"id": TEXT, "kind": TEXT, "claim": TEXT, "published": TEXT, "computation": TEXT}
EVERY_MAY = {"text": TEXT, "runs": TEXT}
KINDS = {  # the rule that judges a claim -> the keys it needs
    "loss": {"at": AT, "ratio": POSITIVE},
    "bits": {"at": AT, "diffusion": POSITIVE, "autoregressive": POSITIVE, "bytes_per_token": POSITIVE},
    "accuracy": {"task": TEXT, "questions": WHOLE, "diffusion": SHARE, "autoregressive": SHARE},
    "gap": {"task": TEXT, "ratio": POSITIVE},
    "time": {"ratio": POSITIVE, "program": TEXT, "device": TEXT},
}  # fmt: skip


def installed() -> dict[str, Path]:
    """Return {name: file} of the claim files of the package, that of TDLM v1.2 first."""
    files = sorted(FOLDER.glob("*.json"), key=lambda f: (not f.stem.startswith("tdlm"), f.stem))
    return {f.stem: f for f in files}


def find(name: Path | None) -> Path:
    """Return the file that a path or the name of an installed claim file means; None means the first of those."""
    known = installed()
    if name is None:
        return next(iter(known.values()))
    if not name.exists() and str(name) in known:
        return known[str(name)]
    return name


def read(name: Path | None = None) -> dict:
    """Return the contents of a claim file. Raises ConfigError, naming the file and the key, where it is not one."""
    file = find(name)
    try:
        content = parse(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        fix = f"give a claim file (docs/claim-files.md), or one of {', '.join(installed())}"
        raise settings.ConfigError(f"{file}: no such file; {fix}") from None
    except OSError as e:
        raise unreadable(file, e) from None
    except ValueError as e:
        raise settings.ConfigError(f"{file} is not JSON: {e}") from None
    try:
        return checked(content)
    except ValueError as e:
        raise settings.ConfigError(f"{file}: {e}; docs/claim-files.md describes the keys") from None


def _keys(value, prefix: str, needed: dict[str, Rule], may: dict[str, Rule]) -> None:
    """Raise ValueError where a key of an object is missing (also: null), unknown or of another type."""
    for key in needed:
        if value.get(key) is None:
            raise ValueError(f"{prefix}{key} is missing; it must be {needed[key].words}")
    for key, entry in value.items():
        rule = (needed | may).get(key)
        if rule is None:
            near = difflib.get_close_matches(key, [*needed, *may], 1)
            raise ValueError(f"{prefix}{key} is not a key{f'; did you mean {near[0]}?' if near else ''}")
        if entry is not None and not rule.test(entry):
            shown = json.dumps(entry, ensure_ascii=False)
            shown = shown if len(shown) <= 60 else shown[:60] + "…"
            raise ValueError(f"{prefix}{key} is {shown}; it must be {rule.words}")


def _unlike(entries: list[dict], prefix: str) -> None:
    """Raise ValueError where two entries have one id."""
    seen: set[str] = set()
    for i, entry in enumerate(entries):
        if entry["id"] in seen:
            raise ValueError(f"{prefix}[{i}].id is {entry['id']!r}, as of another; give each its own")
        seen.add(entry["id"])


def checked(content) -> dict:
    """Return the contents with every optional key. Raises ValueError, naming the key, where they break the schema."""
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object")
    _keys(content, "", FILE, FILE_MAY)
    for key, value in content["settings"].items():
        try:
            settings.checked_value(key, value, settings.fields())
        except settings.ConfigError as e:
            raise ValueError(f"settings: {e}") from None
    for name in content["figures"]:
        if not re.fullmatch("[a-z][a-z0-9_]*", name):
            raise ValueError(f"figures.{name} is not a name; write a-z, 0-9 and _, as in test_ppl")
    for i, entry in enumerate(content["derived"]):
        _keys(entry, f"derived[{i}].", DERIVED, {})
    for i, claim in enumerate(content["claims"]):
        prefix = f"claims[{i}]."
        kind = claim.get("kind")
        if not isinstance(kind, str) or kind not in KINDS:
            known = ", ".join(KINDS)
            raise ValueError(f"{prefix}kind is {json.dumps(kind)}; it must be one of {known}")
        _keys(claim, prefix, EVERY | KINDS[kind], EVERY_MAY)
    _unlike(content["derived"], "derived")
    _unlike(content["claims"], "claims")
    main = [c for c in content["claims"] if c["id"] == "test" and c["kind"] in ("loss", "bits") and c["at"] == "test"]
    if not main:
        need = 'kind "loss" or "bits" at "test"'
        raise ValueError(f'claims holds no claim with the id "test", of {need}, on which the headline rests')
    if content.get("beside") is not None:
        _keys(content["beside"], "beside.", BESIDE, {"address": TEXT})
    return dict.fromkeys(FILE_MAY) | {"known_texts": {}} | {k: v for k, v in content.items() if v is not None}
