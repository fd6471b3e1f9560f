"""Check the code that scores a run, on that run: `python -m tdlm_fast.check RUN`. Exit code 0 where all checks pass."""

import sys

from .cli import announce, exit_codes, path, verb, verb_parser
from .config import ConfigError, NonFinite


@exit_codes()
def main(argv=None) -> int:
    p = verb_parser("check", __doc__)
    p.add_argument("run", type=path, help="run folder")
    p.add_argument("--sequences", type=int, default=32, help="test sequences to check with")
    p.add_argument(
        "--steps",
        type=int,
        default=200,
        help="training steps whose masks are drawn again, as far as metrics.jsonl counts them",
    )
    p.add_argument("--device", default="auto")
    a = p.parse_args(argv)
    if a.sequences < 2 or a.steps < 1:
        raise ConfigError("--sequences must be at least 2 and --steps at least 1")
    announce(f"loading {a.run}")
    from .evaluation.self_check import checks  # loads torch

    failed = 0
    try:
        for result in checks(a.run, rows=a.sequences, steps=a.steps, device=a.device):
            print(result, flush=True)
            failed += not result.passed
    except NonFinite as e:
        raise NonFinite(f"{a.run}: {e}") from None
    print(f"{failed} of the checks failed" if failed else "all checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(verb(main))
