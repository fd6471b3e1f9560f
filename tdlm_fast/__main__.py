"""List the verbs, or run one: `python -m tdlm_fast VERB …`, or `tdlm-fast VERB …` where it is installed."""

import difflib
import importlib
import sys

from . import cli

VERBS = {
    "demo": "texts of both objectives at once, and the published metric against the likelihood",
    "train": "train a model: configs/tiny.yaml [key=value …] [--resume]",
    "evaluate": "likelihood of a run, or its accuracy on evaluation sets (--tasks)",
    "sample": "text from a run: RUN --prompt 'The ' --tokens 64 [--watch]",
    "lm-eval": "tasks of lm-evaluation-harness: RUN --tasks piqa,wikitext",
    "export": "a run for other tools: RUN --to hf|gguf",
    "compare": "train both objectives alike and judge the published claims",
    "tune": "find settings for both objectives with equal trials",
    "sweep": "train a grid of sizes, texts and lengths, and report where diffusion crosses",
    "table": "several likelihoods of a run, side by side",
    "check": "compare the evaluation of a run with known answers",
    "memory": "peak memory of a training step on a GPU, estimated without one",
    "doctor": "which kernels serve this machine, and why",
}


def main(argv=None) -> int:
    words = sys.argv[1:] if argv is None else list(argv)
    if not words or words[0] in ("-h", "--help"):
        print("usage: tdlm-fast VERB …   (or python -m tdlm_fast.VERB …; VERB --help lists its options)\n")
        for name, meaning in VERBS.items():
            print(f"  {name:9} {meaning}")
        return 0
    if words[0] == "--version":
        from . import __version__

        print(f"tdlm_fast {__version__}")
        return 0
    if words[0] not in VERBS:
        near = difflib.get_close_matches(words[0], VERBS, 1)
        hint = f"did you mean {near[0]}?" if near else f"the verbs are {', '.join(VERBS)}"
        print(f"error: {words[0]!r} is not a verb; {hint}", file=sys.stderr)
        return 2
    return importlib.import_module(f"tdlm_fast.{words[0].replace('-', '_')}").main(words[1:])


def console() -> int:
    """Run `main` as the console script tdlm-fast."""
    return cli.verb(main)


if __name__ == "__main__":
    sys.exit(console())
