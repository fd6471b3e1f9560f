"""Train a grid of runs and report where diffusion crosses: `python -m tdlm_fast.sweep PLAN.yaml [--dry-run]`.

sweep PLAN.yaml [--out DIR]   write the cells of a plan into DIR, train them, report
sweep work DIR                train free cells; any number of such processes share DIR
sweep status DIR              print which cells are done, running, free or failed
sweep report DIR              write report.html, report.md, points.csv and results.json from finished cells
"""

import sys
import time
from pathlib import Path

from . import config as settings
from .cli import command, exit_codes, not_taken, own_folder, path, verb, verb_parser
from .evaluation.table_lines import aligned
from .scaling import cost, plan, report, work

ACTIONS = ("work", "status", "report")


def parser():
    p = verb_parser("sweep", __doc__)
    p.add_argument("words", nargs="+", metavar="PLAN.yaml | work DIR | status DIR | report DIR", help="what to do")
    p.add_argument("--out", type=path, help="folder of a plan's cells and report (default: runs/sweep-NAME)")
    p.add_argument(
        "--dry-run", action="store_true", help="print cells, parameters, FLOPs, memory and hours; train none"
    )
    p.add_argument("--retry", action="store_true", help="train failed cells again")
    p.add_argument("--watch", type=float, metavar="SECONDS", help="status: print it again and again")
    return p


@exit_codes(kept="finished cells are kept, and the same command resumes", prints=False)
def main(argv=None) -> int:
    a = parser().parse_intermixed_args(argv)
    settings.at_least(a, {"watch": 0.1}, {}, "--")
    if a.words[0] in ACTIONS:
        if len(a.words) != 2:
            raise settings.ConfigError(f"sweep {a.words[0]} takes one folder, as {command('sweep', a.words[0], 'DIR')}")
        return act(a.words[0], path(a.words[1]), a)
    if len(a.words) != 1:
        raise settings.ConfigError(f"{a.words[0]} is neither a plan nor one of {', '.join(ACTIONS)}; give one plan")
    file = path(a.words[0])
    cells = plan.read(file)
    if a.dry_run:
        print(*aligned(cost.costs(cells)), sep="\n")
        return 0
    out = a.out or Path("runs") / f"sweep-{file.stem}"
    own_folder(out, "--out")
    not_taken(out, "--out")
    plan.store(cells, out)
    print(f"{len(cells)} cells in {out}; others can help: {command('sweep', 'work', out)}", file=sys.stderr)
    act("work", out, a)
    return act("report", out, a)


def act(action: str, out: Path, a) -> int:
    """Run one action on the folder of a sweep; return 1 where a cell has failed."""
    cells = plan.stored(out)
    if action == "work":
        work.work(cells, out, a.retry)
    elif action == "report":
        found = report.results(cells, out)
        report.write(found, out)
        print(f"{report.summary(found)}\nreport {out / 'report.html'}")
    while action == "status":
        print(*aligned(work.status(cells, out)), sep="\n", flush=True)
        if a.watch is None:
            break
        time.sleep(a.watch)
    return int(any(work.failure(out, cell) for cell in cells))


if __name__ == "__main__":
    sys.exit(verb(main))
