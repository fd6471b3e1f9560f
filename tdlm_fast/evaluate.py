"""Likelihood or accuracy of a run: `python -m tdlm_fast.evaluate RUN [--split test | --tasks blimp,hellaswag]`.

Without --tasks: nats per token of a split (evaluation/likelihood.py). With it: accuracy on evaluation sets
(evaluation/accuracy.py). Finished parts are kept in the run folder: the same command resumes after an interruption.
"""

import argparse
import json
import sys
from pathlib import Path

from . import config as settings
from .cli import at_least, verb
from .runs.folder import checkpoint_of

COUNTS = ("limit", "samples", "batch_size")
OF_TASKS, OF_SPLITS = ("data", *COUNTS), ("split", "layout", "target_stderr", "max_samples")
LEAST = {"max_samples": 2, "target_stderr": 0, "seed": 0, "limit": 0, "samples": 1, "batch_size": 0}
HINTS = {
    "max_samples": ", as one draw shows no error", "target_stderr": "; with 0 all of --max-samples are drawn",
    "limit": "; 0 takes all", "batch_size": "; 0 takes the config's",
}  # fmt: skip


def fits(a) -> None:
    """Raise ConfigError where an option was given that goes without effect."""
    names, goes = (OF_TASKS, "with --tasks") if a.tasks is None else (OF_SPLITS, "without --tasks")
    given = ", ".join(f"--{name.replace('_', '-')}" for name in names if getattr(a, name) is not None)
    if given:
        raise settings.ConfigError(f"{given}: only {goes}")


def main(argv=None) -> int:
    p = argparse.ArgumentParser(prog="python -m tdlm_fast.evaluate", description=__doc__.split("\n")[0])
    p.add_argument("run", type=Path, help="run folder")
    p.add_argument("--split", choices=("train", "valid", "test"), help="(default: test)")
    p.add_argument("--checkpoint", choices=("best", "last"), help="(default: best of a finished run, else last)")
    p.add_argument("--target-stderr", type=float, help="nats per token at which drawing stops (default: the config's)")
    p.add_argument("--max-samples", type=int, help="noise draws a sequence at most, 2 or more (default: the config's)")
    p.add_argument("--seed", type=int, help="seed of the draws (default: the config's)")
    p.add_argument("--layout", choices=("packed", "paragraphs"), help="rows to score (default: the config's)")
    p.add_argument("--tasks", help="evaluation sets, as hellaswag,mmlu,mmlu_text,arc_easy,piqa,lambada,blimp")
    p.add_argument("--limit", type=int, help="--tasks: first questions of a paradigm or subject (default 0: all)")
    p.add_argument("--data", type=Path, help="--tasks: folder of local sets (default: the Hub, through datasets)")
    p.add_argument("--samples", type=int, help="--tasks: noise draws an ending, diffusion (default: 16)")
    p.add_argument("--batch-size", type=int, help="--tasks: sequences a forward pass (default 0: the config's)")
    p.add_argument("--device", default="auto")
    p.add_argument("--json", action="store_true", help="one JSON object on stdout")
    a = p.parse_args(argv)
    try:
        from .evaluation.likelihood import likelihood
        from .runs.load import load_run

        at_least(a, LEAST, HINTS)
        fits(a)
        a.checkpoint = checkpoint_of(a.run, a.checkpoint)
        if a.tasks is not None:
            from .evaluation import accuracy

            found = accuracy.evaluate(
                a.run, [name.strip() for name in a.tasks.split(",")], checkpoint=a.checkpoint, device=a.device,
                data=a.data, seed=a.seed, **{k: getattr(a, k) for k in COUNTS if getattr(a, k) is not None},
            )  # fmt: skip
            print(json.dumps({"run": a.run.name} | found) if a.json else accuracy.table(found))
            return 0
        from dataclasses import replace

        from .data import dataset

        config, tokenizer, model, state = load_run(a.run, a.checkpoint, a.device)
        layout = replace(config.data, layout=a.layout or config.data.layout)
        corpus, split = dataset.load(layout, config.model.seq_len, state.get("corpus")), a.split or "test"
        if corpus.hash != state["corpus_hash"]:  # what one source holds out may be another's training text
            raise settings.ConfigError(f"the text is not what {a.run} was trained on; restore it")
        e = config.eval
        found = likelihood(
            model, corpus.splits[split], config.objective, start_token_id=tokenizer.start_token_id,
            seed=config.seed if a.seed is None else a.seed, batch_size=e.batch_size, precision=config.precision,
            target_stderr=e.target_stderr if a.target_stderr is None else a.target_stderr,
            max_samples=e.max_samples if a.max_samples is None else a.max_samples,
        )  # fmt: skip
    except settings.ConfigError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished parts of tasks are kept, the same command goes on", file=sys.stderr)
        return 130
    except settings.NonFinite as e:
        print(f"error: {a.run / 'checkpoints' / a.checkpoint}.safetensors: {e}", file=sys.stderr)
        return 1
    if a.json:
        keys = {"run": a.run.name, "objective": config.objective, "corpus": corpus.name, "split": split}
        keys |= {"step": state["step"], "checkpoint": a.checkpoint, "note": corpus.note}
        print(json.dumps(keys | found.asdict()))
    else:
        print(f"{corpus.name} {split}, {config.objective}, step {state['step']}: {found}")
    return 0


if __name__ == "__main__":
    sys.exit(verb(main))
