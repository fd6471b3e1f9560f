"""Print several likelihoods of one run, side by side: `python -m tdlm_fast.table RUN [--sequences 64 | --cut 12]`."""

import sys

from .cli import announce, exit_codes, path, verb, verb_parser
from .config import NonFinite, at_least
from .evaluation.table_lines import aligned, lines


@exit_codes()
def main(argv=None) -> None:
    p = verb_parser("table", __doc__)
    p.add_argument("run", type=path, help="run folder")
    p.add_argument("--sequences", type=int, default=64, help="sequences of the exact likelihoods, a pass a token each")
    p.add_argument("--draws", type=int, default=8, help="draws of the published metric")
    p.add_argument("--split", choices=("train", "valid", "test"), default="test")
    p.add_argument("--cut", type=int, default=0, help="score only the first N tokens of each row (default 0: all)")
    p.add_argument("--device", default="auto")
    a = p.parse_args(argv)
    at_least(a, {"sequences": 2, "draws": 1}, {"sequences": ", as one shows no interval"}, "--")
    at_least(a, {"cut": 0}, {"cut": "; 0 scores whole rows"}, "--")
    announce(f"loading {a.run}")
    from .evaluation.table import likelihoods  # loads torch

    try:
        table = likelihoods(a.run, sequences=a.sequences, draws=a.draws, device=a.device, split=a.split, cut=a.cut)
    except NonFinite as e:
        raise NonFinite(f"{a.run}: {e}") from None
    print(*aligned(lines(table)), sep="\n")
    print("95 % intervals: of the estimate where all sequences are scored, over sequences where some are")


if __name__ == "__main__":
    sys.exit(verb(main))
