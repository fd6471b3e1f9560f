"""Print several likelihoods of one run, side by side: `python -m tdlm_fast.table RUN [--hf FOLDER]`."""

import sys
from pathlib import Path

from .cli import announce, exit_codes, path, verb, verb_parser
from .config import ConfigError, NonFinite, at_least
from .evaluation.table_lines import aligned, lines


def beside(run: Path, folder: Path, trust: bool, options: dict) -> tuple[list[dict], list[str]]:
    """Return the rows of a model of others, and notes on what cannot be compared. Raises ConfigError and NonFinite."""
    from .exchange.beside import rows_beside  # loads torch

    try:
        rows, unknown = rows_beside(run, folder, trust=trust, **options)
    except NonFinite as e:
        raise NonFinite(f"{folder}: {e}") from None
    notes = []
    if rows[0].get("other_tokens"):
        notes.append(f"NOTE {folder} has another tokenizer than {run}: only bits per byte can be compared")
    if unknown:
        notes.append(f"NOTE {folder}: {unknown:,} unknown tokens stand for text that is not scored")
    return rows, notes


@exit_codes()
def main(argv=None) -> None:
    p = verb_parser("table", __doc__)
    p.add_argument("run", type=path, help="run folder")
    p.add_argument("--sequences", type=int, default=64, help="sequences of the exact likelihoods, a pass a token each")
    p.add_argument("--draws", type=int, default=8, help="draws of the published metric")
    p.add_argument("--split", choices=("train", "valid", "test"), default="test")
    p.add_argument("--cut", type=int, default=0, help="score only the first N tokens of each row (default 0: all)")
    p.add_argument("--hf", type=path, action="append", default=[], help="a model of transformers beside it; repeatable")
    p.add_argument("--trust-remote-code", action="store_true", help="--hf: run code that the folder brings")
    p.add_argument("--device", default="auto")
    a = p.parse_args(argv)
    at_least(a, {"sequences": 2, "draws": 1}, {"sequences": ", as one shows no interval"}, "--")
    at_least(a, {"cut": 0}, {"cut": "; 0 scores whole rows"}, "--")
    if a.trust_remote_code and not a.hf:
        raise ConfigError("--trust-remote-code: only with --hf")
    announce(f"loading {a.run}")
    from .evaluation.table import likelihoods  # loads torch

    notes, options = [], {k: getattr(a, k) for k in ("sequences", "draws", "device", "split", "cut")}
    try:
        table = likelihoods(a.run, **options)
    except NonFinite as e:
        raise NonFinite(f"{a.run}: {e}") from None
    for folder in a.hf:
        rows, more = beside(a.run, folder, a.trust_remote_code, options)
        table["rows"] += rows
        notes += more
    print(*aligned(lines(table)), sep="\n")
    print("95 % intervals: of the estimate where all sequences are scored, over sequences where some are")
    print(*notes, sep="\n", end="\n" if notes else "")


if __name__ == "__main__":
    sys.exit(verb(main))
