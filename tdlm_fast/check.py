"""Check the code that scores a run, on that run, or claim files: `python -m tdlm_fast.check [RUN | --claim FILE]`.

With a run, quantities whose values are known are computed by the code that scores it. Without one, every derived
constant of a claim file is computed again from its figures; without --claim, those of all installed claim files. Exit
code 0 where all checks pass.
"""

import sys
from pathlib import Path

from .cli import announce, exit_codes, path, verb, verb_parser
from .comparison import claim_schema, derived
from .config import ConfigError, NonFinite


def constants(file: Path | None) -> int:
    """Print each derived constant of a claim file, of all installed ones without it; return how many do not follow."""
    failed = 0
    for name in [file] if file else claim_schema.installed().values():
        try:
            results = derived.constants(claim_schema.read(name))
        except ValueError as e:
            raise e if isinstance(e, ConfigError) else ConfigError(f"{claim_schema.find(name)}: {e}") from None
        print(f"{claim_schema.find(name)}: {len(results)} derived constants")
        print(*results, sep="\n", flush=True)
        failed += sum(not result.follows for result in results)
    return failed


def scoring(a) -> int:
    """Print each check of a run; return how many failed."""
    announce(f"loading {a.run}")
    from .evaluation.self_check import checks  # loads torch

    failed = 0
    try:
        for result in checks(a.run, rows=a.sequences, steps=a.steps, device=a.device):
            print(result, flush=True)
            failed += not result.passed
    except NonFinite as e:
        raise NonFinite(f"{a.run}: {e}") from None
    return failed


@exit_codes()
def main(argv=None) -> int:
    p = verb_parser("check", __doc__)
    p.add_argument("run", type=path, nargs="?", help="run folder (default: check the installed claim files)")
    p.add_argument("--claim", type=path, metavar="FILE", help="claim file, or the name of an installed one")
    p.add_argument("--sequences", type=int, default=32, help="test sequences to check with")
    replayed = "training steps whose masks are drawn again, as far as metrics.jsonl counts them"
    p.add_argument("--steps", type=int, default=200, help=replayed)
    p.add_argument("--device", default="auto")
    a = p.parse_args(argv)
    if a.sequences < 2 or a.steps < 1:
        raise ConfigError("--sequences must be at least 2 and --steps at least 1")
    if a.run and a.claim:
        raise ConfigError(f"--claim checks a claim file and no run; leave {a.run} out")
    failed = scoring(a) if a.run else constants(a.claim)
    print(f"{failed} of the checks failed" if failed else "all checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(verb(main))
