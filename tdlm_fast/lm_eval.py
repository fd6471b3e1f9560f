"""Score a run by tasks of lm-evaluation-harness: `python -m tdlm_fast.lm_eval RUN --tasks piqa,wikitext [--json]`.

Both objectives answer log-likelihoods, those of whole texts, and generation (exchange/harness.py). The harness is an
extra: `pip install lm_eval`. Its tasks are read from the Hub, or from the task files in --include FOLDER.
"""

import argparse
import json
import sys

from .cli import announce, exit_codes, path, verb, verb_parser
from .config import ConfigError, NonFinite, at_least
from .evaluation.table_lines import aligned
from .sampling.options import METHODS

LEAST = {"limit": 0, "num_fewshot": 0, "samples": 1, "seed": 0, "batch_size": 0, "steps": 1}


def parser() -> argparse.ArgumentParser:
    p = verb_parser("lm_eval", __doc__)
    p.add_argument("run", type=path, help="run folder")
    p.add_argument("--tasks", required=True, help="tasks and groups of the harness, as piqa,lambada_openai,wikitext")
    p.add_argument("--include", type=path, help="folder of further task files (YAML)")
    p.add_argument("--limit", type=int, default=0, help="first documents of each task (default 0: all)")
    p.add_argument("--num-fewshot", type=int, help="examples in the context (default: the task's)")
    p.add_argument("--checkpoint", choices=("best", "last"), help="(default: best of a finished run, else last)")
    p.add_argument("--seed", type=int, help="seed of noise and of written text (default: the config's)")
    p.add_argument("--batch-size", type=int, default=0, help="sequences a forward pass (default 0: the config's)")
    p.add_argument("--device", default="auto")
    p.add_argument("--json", action="store_true", help="one JSON object on stdout")
    d = p.add_argument_group("diffusion runs")
    d.add_argument("--samples", type=int, default=16, help="noise draws an ending (%(default)s)")
    d.add_argument("--method", choices=METHODS, default="ancestral", help="which tokens a step writes (%(default)s)")
    d.add_argument("--steps", type=int, help="network evaluations for a piece of text, at most (default: one a token)")
    return p


@exit_codes(lower="--batch-size")
def main(argv=None) -> None:
    a = parser().parse_args(argv)
    at_least(a, LEAST, {"limit": "; 0 takes all", "batch_size": "; 0 takes the config's"}, "--")
    names = [name.strip() for name in a.tasks.split(",") if name.strip()]
    if not names:
        raise ConfigError("--tasks is empty; name tasks of the harness, as piqa,lambada_openai")
    announce(f"loading {a.run}")
    from .exchange.harness import Scorer, evaluate, lines  # loads torch

    options = {k: getattr(a, k) for k in ("checkpoint", "device", "samples", "seed", "batch_size", "method", "steps")}
    try:
        figures = evaluate(Scorer(a.run, **options), names, a.include, a.limit, a.num_fewshot)
    except NonFinite as e:
        raise NonFinite(f"{a.run}: {e}") from None
    if a.json:
        print(json.dumps({"run": a.run.name} | figures))
        return
    print(*aligned(lines(figures)), sep="\n")
    bound = f"a lower bound, {a.samples} draws an ending" if figures["samples"] else "exact"
    print(
        f"{figures['objective']}, step {figures['step']:,}: log-likelihoods are {bound}; lm_eval {figures['lm_eval']}"
    )


if __name__ == "__main__":
    sys.exit(verb(main))
