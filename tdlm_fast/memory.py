"""Peak memory of a config's training step on a GPU, estimated without one: `python -m tdlm_fast.memory CONFIG`."""

import sys

from . import config as settings
from .cli import announce, exit_codes, verb, verb_parser


@exit_codes()
def main(argv=None) -> None:
    p = verb_parser("memory", __doc__)
    p.add_argument("config", help="YAML file, as configs/base.yaml")
    p.add_argument("overrides", nargs="*", help="key=value")
    p.add_argument("--tokens", type=int, default=2_500_000, help="tokens of the training split")
    a = p.parse_args(argv)
    settings.at_least(a, {"tokens": 1}, {}, "--")
    config = settings.load(a.config, a.overrides)
    announce(f"tracing a step of {a.config}")
    from .training.memory_estimate import estimate, scoring

    step = estimate(config, tokens=a.tokens)
    print(f"{a.config}, {config.objective}: about {step:,.0f} MB at the peak of a step")
    beside = scoring(config).peak / 1e6
    print(f"about {step + beside:,.0f} MB with an evaluation, whose {beside:,.0f} MB lie beside the captured step's")


if __name__ == "__main__":
    sys.exit(verb(main))
