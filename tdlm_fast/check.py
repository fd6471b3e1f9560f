"""Check the code that scores a run, on that run: `python -m tdlm_fast.check RUN`. Exit code 0 where all checks pass."""

import sys
from pathlib import Path

from . import config as settings
from .cli import announce, verb, verb_parser


def main(argv=None) -> int:
    p = verb_parser("check", __doc__)
    p.add_argument("run", type=Path, help="run folder")
    p.add_argument("--sequences", type=int, default=32, help="test sequences to check with")
    p.add_argument("--steps", type=int, default=200, help="training steps whose masks are drawn again, at most")
    p.add_argument("--device", default="auto")
    a = p.parse_args(argv)
    failed = 0
    try:
        if a.sequences < 2 or a.steps < 1:
            raise settings.ConfigError("--sequences must be at least 2 and --steps at least 1")
        announce(f"loading {a.run}")
        from .evaluation.self_check import checks  # loads torch

        for result in checks(a.run, rows=a.sequences, steps=a.steps, device=a.device):
            print(result, flush=True)
            failed += not result.passed
    except settings.ConfigError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except settings.NonFinite as e:
        print(f"error: {a.run}: {e}", file=sys.stderr)
        return 1
    print(f"{failed} of the checks failed" if failed else "all checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(verb(main))
