"""Train a tiny language model: `python -m tdlm_fast.train configs/tiny.yaml [key=value …] [--resume]`.

Leaves a run folder: config.yaml, metrics.jsonl, checkpoints/{last,best}.safetensors, samples.txt, summary.json.
"""

import argparse
import hashlib
import json
import math
import signal
import sys
import time
from pathlib import Path

from . import config as settings


class Stop:
    """Ctrl-C or SIGTERM inside `with`: the step in progress ends first; a second one interrupts at once."""

    asked = False

    def __enter__(self):
        self.before = {name: signal.signal(name, self) for name in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error):
        for name, handler in self.before.items():
            signal.signal(name, handler)

    def __call__(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def run_folder(config, path: str) -> Path:
    return Path(config.run.dir or f"runs/{Path(path).stem}-{config.objective}-seed{config.seed}")


def finished(folder: Path) -> dict | None:
    """The summary of a run that came to its end, else None."""
    file = folder / "summary.json"
    summary = json.loads(file.read_text()) if file.is_file() else {}
    return summary if summary.get("finished") else None


def write_json(path: Path, value: dict) -> None:
    from .checkpoint import write_beside

    write_beside(path, lambda p: p.write_text(json.dumps(value, indent=2) + "\n"))


def train(config, folder: Path, resume: bool) -> dict:
    """Train, evaluate and sample; returns what summary.json holds. Raises ConfigError, NonFinite."""
    import torch

    from . import captured, checkpoint, data, diagnostics, likelihood, published, sample, step
    from .doctor import pick_device, versions
    from .log import Log, peak_memory_mb
    from .optim import adamw

    device = pick_device(config.device)
    checkpoints = folder / "checkpoints"
    last = checkpoints / "last.safetensors"
    if resume and not last.exists():
        print(f"nothing to resume in {folder}: starting anew", file=sys.stderr)
        resume = False
    if resume:
        before = settings.load(folder / "config.yaml")
        changed = [k for k, v in settings.flatten(config).items() if settings.flatten(before)[k] != v]
        changed = [k for k in changed if not k.startswith(("run.", "data.cache", "device"))]
        if changed:
            raise settings.ConfigError(f"--resume with other {', '.join(changed)} than {folder / 'config.yaml'} holds")
    elif last.exists():
        raise settings.ConfigError(f"{folder} holds a run already: --resume continues it, run.dir=OTHER starts another")
    if resume and (done := finished(folder)):
        print(f"{folder} is finished already", file=sys.stderr)
        return done
    corpus = data.load(config.data, config.model.seq_len)
    train_split = corpus.splits["train"]
    per_epoch = data.steps_per_epoch(train_split, config.train.batch_size)
    steps = config.train.max_steps or max(1, int(config.train.epochs * per_epoch))
    every, early = config.eval.every or per_epoch, settings.early_steps(config)
    save_every = config.train.save_every or every
    model = step.build_model(config, corpus.tokenizer).to(device).train()
    optimizer = adamw(model, config.optim)
    state = {"step": 0, "best": None, "tokens": 0, "loss_tokens": 0, "seconds": 0.0, "corpus_hash": corpus.hash}
    if resume:
        state = checkpoint.load(last, model, optimizer)
        if state["corpus_hash"] != corpus.hash:
            raise settings.ConfigError(f"the corpus is not what {folder} was trained on; restore it or start anew")
    folder.mkdir(parents=True, exist_ok=True)
    settings.save(config, folder / "config.yaml")
    log = Log(folder, steps, state["step"], config.run.wandb, settings.nested(config))
    parts = model.count_by_part()
    counts = ", ".join(f"{k} {v:,}" for k, v in parts.items())
    log.say(f"{config.objective} on {corpus.name}, {train_split.scored:,} training tokens, {steps} steps, {device}")
    log.say(f"{sum(parts.values()):,} parameters: {counts}")
    loss_of = step.objective(config, corpus.tokenizer)
    scored = dict(start_token_id=corpus.tokenizer.start_token_id, seed=config.seed, precision=config.precision)
    scored |= dict(batch_size=config.eval.batch_size)

    def evaluate_valid():
        n, valid = config.eval.samples, corpus.splits["valid"]
        found, metric = published.both(
            model, valid, config.objective, draws=config.eval.published, max_samples=n, min_samples=n, **scored
        )
        log.say(f"step {state['step']}  valid {found}")
        entry = {key: state[key] for key in ("step", "seconds", "tokens", "loss_tokens")} | {"valid": found.asdict()}
        if metric:
            entry["published"] = metric.asdict()
        if config.eval.probe:
            entry["diagnostics"] = diagnostics.diagnose(
                model, valid, config.objective, rows=config.eval.probe, loss_weight=config.loss_weight,
                precision=config.precision, start_token_id=corpus.tokenizer.start_token_id,
            )  # fmt: skip
        if not state["step"]:
            entry["initial_weights"] = weights_hash(model)
        log.record(entry)
        if state["best"] is None or found.nats_per_token < state["best"]:
            state["best"] = found.nats_per_token
            checkpoint.save(checkpoints / "best.safetensors", model, None, state)
        for i in range(config.eval.text):
            text = sample.generate(model, corpus.tokenizer, config, "", tokens=min(64, config.model.seq_len), seed=i)
            with open(folder / "samples.txt", "a", encoding="utf-8") as f:
                f.write(f"--- step {state['step']}\n{text}\n")

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if not state["step"] and not resume:
        evaluate_valid()
    runner = captured.start(model, optimizer, loss_of, train_split, config, steps=steps, first=state["step"])
    told, marked, started, stop = "", state["step"], time.monotonic(), Stop()

    def report(first: int, outcomes: list[dict], seconds: float):
        bad = [s for s, o in enumerate(outcomes, first) if not math.isfinite(o["loss"] + o["grad_norm"])]
        entry = _entry(outcomes, first, steps, config, state, seconds)
        entry["peak_memory_mb"] = peak_memory_mb(device)
        if bad:
            raise step.NonFinite(step.where(config, train_split, bad[0]))
        log.record(entry)
        log.progress(entry["step"], entry)

    try:
        with stop:
            while (state["step"] < steps and not stop.asked) or marked < state["step"]:
                if state["step"] < steps and not stop.asked:
                    runner.run(state["step"])
                    state["step"] += 1
                at = state["step"]
                if runner.why != told:
                    told = runner.why
                    log.say(f"steps run one by one: {told}")
                evaluates = at < steps and (at % every == 0 or at in early)
                stops = stop.asked or at == steps or at % save_every == 0
                if at % config.train.log_every == 0 or stops or evaluates:
                    runner.mark(marked, at)
                    marked = at
                    windows = runner.read(keep=0 if stops or evaluates else 1)
                    now = time.monotonic()
                    for first, outcomes in windows:  # windows that arrive together share the time
                        report(first, outcomes, (now - started) * len(outcomes) / sum(len(o) for _, o in windows))
                    started = now if windows else started
                if evaluates:
                    evaluate_valid()
                if stops:
                    checkpoint.save(last, model, optimizer, state)
                if stops or evaluates:
                    started = time.monotonic()
    finally:
        log.close()
    if stop.asked:
        log.say(f"stopped at step {state['step']} of {steps}; saved. Evaluating (Ctrl-C again to leave at once)")
    evaluate_valid()
    best = checkpoint.load(checkpoints / "best.safetensors", model)
    results = {}
    for name in ("valid", "test"):
        results[name] = likelihood.likelihood(
            model, corpus.splits[name], config.objective, target_stderr=config.eval.target_stderr,
            max_samples=config.eval.max_samples, **scored,
        )  # fmt: skip
        log.say(f"{name:5}  {results[name]}")
    seconds = max(state["seconds"], 1e-9)
    summary = {
        "objective": config.objective, "corpus": corpus.name, "note": corpus.note, "steps": state["step"],
        "finished": state["step"] >= steps, "best_step": best["step"], "tokens": state["tokens"],
        "loss_tokens": state["loss_tokens"], "seconds": round(seconds, 3), "tokens_per_s": state["tokens"] / seconds,
        "loss_tokens_per_s": state["loss_tokens"] / seconds, "peak_memory_mb": peak_memory_mb(device),
        "parameters": sum(parts.values()), "parameters_by_part": parts,
        **{k: v.asdict() for k, v in results.items()}, **versions(device),
        "config_hash": settings.config_hash(config), "corpus_hash": corpus.hash,
    }  # fmt: skip
    write_json(folder / "summary.json", summary)
    return summary


def weights_hash(model) -> str:
    """Hash of all weights, by which runs show that they began alike."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _entry(outcomes: list[dict], first: int, steps: int, config, state: dict, seconds: float) -> dict:
    """The line of metrics.jsonl for steps first, first + 1, … of so many seconds; brings the counters up to date."""
    from .optim import learning_rate

    loss_tokens, tokens = (sum(o[k] for o in outcomes) for k in ("loss_tokens", "tokens"))
    last = first + len(outcomes) - 1
    state["tokens"] += tokens
    state["loss_tokens"] += loss_tokens
    state["seconds"] += seconds
    return {
        "step": last + 1, "loss": outcomes[-1]["loss"], "lr": learning_rate(last, steps, config.optim),
        "grad_norm": outcomes[-1]["grad_norm"], "tokens_per_s": tokens / seconds,
        "loss_tokens_per_s": loss_tokens / seconds, "tokens": state["tokens"], "loss_tokens": state["loss_tokens"],
        "seconds": state["seconds"],
    }  # fmt: skip


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tdlm_fast.train", description=__doc__.split("\n")[0],
        epilog="keys, their defaults and meanings:\n" + settings.describe(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("config", help="YAML file, as configs/tiny.yaml")
    parser.add_argument("overrides", nargs="*", help="key=value")
    parser.add_argument("--resume", action="store_true", help="continue the run in its folder, if there is one")
    args = parser.parse_intermixed_args(argv)
    try:
        config = settings.load(args.config, args.overrides)
        folder = run_folder(config, args.config)
        summary = train(config, folder, args.resume)
    except settings.ConfigError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the last checkpoint is intact, --resume continues from it", file=sys.stderr)
        return 130
    except RuntimeError as e:
        if type(e).__name__ != "NonFinite":
            raise
        print(f"error: {e}: {folder / 'checkpoints'}", file=sys.stderr)
        return 1
    memory = f", peak memory {summary['peak_memory_mb']:,.0f} MB" if summary["peak_memory_mb"] else ""
    test = summary["test"]
    print(f"test   {test['nats_per_token']:.4f} nats/token, ppl {test['ppl']:.2f} ({test['bound']})")
    print(f"speed  {summary['tokens_per_s']:,.0f} tokens/s over {summary['seconds']:,.1f} s{memory}")
    if summary["note"]:
        print(f"NOTE   {summary['note']}")
    print(f"run    {folder}")
    if not summary["finished"]:
        print(f"stopped early; to go on: python -m tdlm_fast.train {args.config} {' '.join(args.overrides)} --resume")
        return 130
    print(f'sample python -m tdlm_fast.sample {folder} --prompt "The " --tokens 64')
    return 0


if __name__ == "__main__":
    sys.exit(main())
