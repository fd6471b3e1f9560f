"""Write text with a run: `python -m tdlm_fast.sample RUN --prompt "…" --tokens 64`.

A diffusion run writes between a prompt and a suffix, in any order (sampling/generate.py lists the methods); an
autoregressive run continues the prompt. The token that starts a sequence (GPT-2's <|endoftext|>) occurs in no training
text, so it is never written, and neither is [MASK]. Text is written to stdout, with dots for control characters, which
--json keeps. Speed and cost are written to stderr.
"""

import argparse
import dataclasses
import json
import sys
import time

from .cli import announce, exit_codes, path, verb, verb_parser
from .config import NonFinite
from .sampling.live_view import Screen, visible
from .sampling.options import METHODS, UNMASKING, SamplerOptions

DIFFUSION_ONLY = ("steps", "method", "unmasking", "block", "remask")


def parser() -> argparse.ArgumentParser:
    p = verb_parser("sample", __doc__)
    p.add_argument("run", type=path, help="run folder")
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
    p.add_argument("--frame", type=float, default=0.1, help="seconds for which --watch shows a step on a terminal")
    p.add_argument("--json", action="store_true", help="one JSON object on stdout")
    d = p.add_argument_group("diffusion runs")
    d.add_argument("--suffix", help="text after the new tokens (default: none)")
    d.add_argument("--steps", type=int, help="network evaluations, at most (default: one a token)")
    d.add_argument("--method", choices=METHODS, help="which tokens a step writes (ancestral)")
    d.add_argument("--unmasking", choices=UNMASKING, help="how many (linear)")
    d.add_argument("--block", type=int, help="write blocks of this many tokens from left to right")
    d.add_argument("--remask", type=float, metavar="ETA", help="mask written tokens again, ReMDM-cap (none)")
    return p


def options_of(a) -> SamplerOptions:
    """Return the options of the command line. Raises ValueError where one is out of range."""
    for name in ("prompt", "suffix"):
        text = getattr(a, name)
        if text is not None and text.encode(errors="replace").decode() != text:
            raise ValueError(f"--{name} is not UTF-8 text")
        if text == "":
            raise ValueError(f"--{name} is empty; leave it out to write without one")
    if not 0 <= a.frame < 60:
        raise ValueError(f"--frame is {a.frame}; it must lie in 0 <= frame < 60 seconds")
    try:
        return SamplerOptions(**given(a))
    except ValueError as e:  # it names the option first
        raise ValueError(f"--{e}") from None


def given(a) -> dict:
    """Return the sampler options that were given or have a default on the command line."""
    names = [field.name for field in dataclasses.fields(SamplerOptions)]
    return {name: getattr(a, name) for name in names if getattr(a, name) is not None}


@exit_codes(errors=ValueError, lower="--number or --tokens")
def main(argv=None) -> None:
    a = parser().parse_args(argv)
    options = options_of(a)
    announce(f"loading {a.run}")
    from .runs.checkpoint import check_finite
    from .runs.load import load_run
    from .sampling.generate import check_room, generate_batch

    config, tokenizer, model, _ = load_run(a.run, a.checkpoint, a.device)
    try:
        check_finite(model)
    except NonFinite as e:
        raise NonFinite(f"{a.run}: {e}") from None
    useless = ", ".join(f"--{name}" for name in ("suffix", *DIFFUSION_ONLY) if getattr(a, name) is not None)
    if config.objective == "autoregressive" and useless:
        raise ValueError(f"{useless}: for diffusion; {a.run} is autoregressive and only continues the prompt")
    prompt, suffix, start = a.prompt or "", a.suffix or "", tokenizer.start_token_id
    stream = sys.stderr if a.json else sys.stdout
    screen = Screen(tokenizer, model.mask_token_id, stream, a.frame) if a.watch else None
    ids = tokenizer.encode(prompt), tokenizer.encode(suffix)
    check_room(model, config.objective, sum(map(len, ids)) + a.tokens, a.number, config.model.seq_len)
    started = time.perf_counter()
    try:
        written = generate_batch(
            model, config.objective, *ids, options,
            seq_len=config.model.seq_len, start_token_id=start, forbidden=start, on_step=screen,
        )  # fmt: skip
    finally:
        if screen:
            screen.close()
    seconds = max(time.perf_counter() - started - (screen.spent if screen else 0.0), 1e-9)
    texts = [prompt + tokenizer.decode(new) + suffix for new in written.ids.tolist()]
    calls, per_text, speed = written.evaluations, written.rows / a.number, a.number * a.tokens / seconds
    if a.json:
        about = {"run": a.run.name, "objective": config.objective, "prompt": prompt, "suffix": suffix} | given(a)
        cost = {"network_evaluations": calls, "network_evaluations_a_text": per_text}
        print(json.dumps(about | cost | {"seconds": seconds, "tokens_per_s": speed, "texts": texts}))
    else:
        print(*map(visible, texts), sep="\n")
        cost = f"{calls:,} network evaluations ({per_text:,.1f} a text)"
        print(f"{a.number * a.tokens:,} tokens, {cost}, {speed:,.0f} tokens/s", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(verb(main))
