"""Text from a run: `python -m tdlm_fast.sample RUN --prompt "…" --tokens 64`.

Diffusion runs write between a prompt and a suffix, in any order (sampling/generate.py lists the methods);
autoregressive ones write on from the prompt. The token that starts a sequence (GPT-2's <|endoftext|>) is in no text
that a run learns, so it is never written, as [MASK] is not. Text goes to stdout, tokens/s and the network evaluations
to stderr.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from .cli import at_least, verb
from .runs.load import load_run
from .sampling.generate import generate_batch
from .sampling.live_view import Screen
from .sampling.options import METHODS, UNMASKING

DIFFUSION_ONLY = ("steps", "method", "unmasking", "block", "remask")
KEYS = ("tokens", "number", "temperature", "top_k", "top_p", "seed", *DIFFUSION_ONLY)  # of generate_batch
LEAST = {"tokens": 1, "number": 1, "steps": 1, "block": 1, "temperature": 0, "top_k": 0, "seed": 0}
HINTS = {"steps": "; leave it out for one step a token"}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m tdlm_fast.sample", description=__doc__.split("\n")[0])
    p.add_argument("run", type=Path, help="run folder")
    p.add_argument("--prompt", help="text before the new tokens (default: none)")
    p.add_argument("--tokens", type=int, default=64, help="new tokens (%(default)s)")
    p.add_argument("--number", type=int, default=1, help="texts, written together; text i is that of --seed SEED+i")
    p.add_argument("--temperature", type=float, default=1.0, help="0 takes the most probable token")
    p.add_argument("--top-k", type=int, default=0, help="draw among the K most probable tokens (0: all)")
    p.add_argument("--top-p", type=float, default=1.0, help="draw among the most probable tokens of this mass")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--checkpoint", choices=("best", "last"), help="(default: best of a finished run, else last)")
    p.add_argument("--device", default="auto")
    p.add_argument("--watch", action="store_true", help="show the text while it is written")
    p.add_argument("--frame", type=float, default=0.1, help="seconds that --watch shows a step on a terminal")
    p.add_argument("--json", action="store_true", help="one JSON object on stdout")
    d = p.add_argument_group("diffusion runs")
    d.add_argument("--suffix", help="text after the new tokens (default: none)")
    d.add_argument("--steps", type=int, help="network evaluations, at most (default: one a token)")
    d.add_argument("--method", choices=METHODS, help="which tokens a step writes (ancestral)")
    d.add_argument("--unmasking", choices=UNMASKING, help="how many (linear)")
    d.add_argument("--block", type=int, help="write blocks of so many tokens from left to right")
    d.add_argument("--remask", type=float, metavar="ETA", help="mask written tokens again, ReMDM-cap (none)")
    return p


def check(a, objective: str | None = None) -> None:
    """Raise ValueError where an option is out of range or, once the objective is known, not for it."""
    at_least(a, LEAST, HINTS)
    for name in ("prompt", "suffix"):
        if (getattr(a, name) or "").encode(errors="replace").decode() != (getattr(a, name) or ""):
            raise ValueError(f"--{name} is no UTF-8 text")
    if a.seed + a.number > 2**63:
        raise ValueError(f"--seed is {a.seed}; with --number {a.number} it must be at most 2^63 - {a.number}")
    if not 0 < a.top_p <= 1:
        raise ValueError(f"--top-p is {a.top_p}; it must lie in 0 < top-p <= 1")
    if a.remask is not None and not 0 < a.remask <= 1:
        raise ValueError(f"--remask is {a.remask}; it must lie in 0 < remask <= 1")
    if not 0 <= a.frame < 60:
        raise ValueError(f"--frame is {a.frame}; it must lie in 0 <= frame < 60 seconds")
    for name in ("prompt", "suffix"):
        if getattr(a, name) == "":
            raise ValueError(f"--{name} is empty; leave it out to write without one")
    if a.remask is not None and a.method not in (None, "ancestral"):
        raise ValueError(f"--remask goes with --method ancestral, not {a.method}")
    given = ", ".join(f"--{name}" for name in ("suffix", *DIFFUSION_ONLY) if getattr(a, name) is not None)
    if objective == "autoregressive" and given:
        raise ValueError(f"{given}: for diffusion; {a.run} is autoregressive and only writes on from the prompt")


def main(argv=None) -> int:
    a = parser().parse_args(argv)
    try:
        check(a)
        config, tokenizer, model, _ = load_run(a.run, a.checkpoint, a.device)
        check(a, config.objective)
        prompt, suffix = a.prompt or "", a.suffix or ""
        chosen = {key: getattr(a, key) for key in KEYS if getattr(a, key) is not None}
        stream = sys.stderr if a.json else sys.stdout
        screen = Screen(tokenizer, model.mask_token_id, stream, a.frame) if a.watch else None
        started = time.perf_counter()
        try:
            found = generate_batch(
                model, config.objective, tokenizer.encode(prompt), tokenizer.encode(suffix),
                seq_len=config.model.seq_len, start_token_id=tokenizer.start_token_id,
                forbidden=tokenizer.start_token_id, tell=screen, **chosen,
            )  # fmt: skip
        finally:
            if screen:
                screen.close()
        ids = found.ids.tolist()
        seconds = max(time.perf_counter() - started - (screen.spent if screen else 0.0), 1e-9)
    except ValueError as e:  # ConfigError is one
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    texts = [prompt + tokenizer.decode(new) + suffix for new in ids]
    cost = {
        "network_evaluations": found.evaluations, "network_evaluations_a_text": found.rows / a.number,
        "seconds": seconds, "tokens_per_s": a.number * a.tokens / seconds,
    }  # fmt: skip
    if a.json:
        about = {"run": a.run.name, "objective": config.objective, "prompt": prompt, "suffix": suffix}
        print(json.dumps(about | chosen | cost | {"texts": texts}))
        return 0
    for text in texts:
        print(text)
    print(
        f"{a.number * a.tokens:,} tokens, {found.evaluations:,} network evaluations "
        f"({found.rows / a.number:,.1f} a text), {cost['tokens_per_s']:,.0f} tokens/s",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(verb(main))
