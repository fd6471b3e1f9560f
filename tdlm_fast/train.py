"""Train a tiny language model: `python -m tdlm_fast.train configs/tiny.yaml [key=value …] [--resume]`.

Leaves a run folder: config.yaml, metrics.jsonl, checkpoints/{last,best}.safetensors, samples.txt, summary.json.
"""

import argparse
import contextlib
import math
import os
import signal
import sys
import time
from pathlib import Path

from . import config as settings
from .run import (
    BEST,
    LAST,
    changes,
    finished,
    folder_of,
    goes_on,
    locked,
    trim_samples,
    write_beside,
    write_json,
)
from .verb import command, verb


class Stop:
    """Ctrl-C or SIGTERM inside `with` raises KeyboardInterrupt; where `patient`, the first one only sets `asked`."""

    asked = patient = False

    def __enter__(self):
        self.before = {name: signal.signal(name, self) for name in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error):
        for name, handler in self.before.items():
            signal.signal(name, handler)

    def __call__(self, number, frame):
        if self.asked or not self.patient:
            raise KeyboardInterrupt
        self.asked = True
        with contextlib.suppress(OSError):  # not print, which this may interrupt; nor is there always somebody to read
            os.write(2, b"\nstopping after this step or evaluation; again to leave at once\n")


def train(config, folder: Path, resume: bool) -> dict:
    """Train, evaluate and sample; returns what summary.json holds. Raises ConfigError, NonFinite, KeyboardInterrupt."""
    with Stop() as stop, locked(folder):
        if goes_on(config, folder, resume):
            if (done := finished(folder)) and ((folder / BEST).is_file() or not (folder / LAST).is_file()):
                print(f"{folder} is finished already", file=sys.stderr)
                return done
            return _train(config, folder, True, stop)
        return _train(config, folder, False, stop)


def _train(config, folder: Path, resume: bool, stop: Stop) -> dict:
    stop.patient = True  # an exception in the middle of an import may end the process without a word
    import torch

    from . import doctor

    doctor.kernels()  # a wrong TDLM_CPU_ISA ends here
    from . import captured, checkpoint, data, diagnostics, likelihood, published, sample, step
    from .log import Log, peak_memory_mb
    from .optim import adamw

    stop.patient = False
    if stop.asked:
        raise KeyboardInterrupt
    device = doctor.pick_device(config.device)
    doctor.tell_missing(device)
    last, best = folder / LAST, folder / BEST
    began = checkpoint.peek(last) if resume else {}
    corpus = data.load(config.data, config.model.seq_len, began.get("corpus"))
    train_split = corpus.splits["train"]
    per_epoch = data.steps_per_epoch(train_split, config.train.batch_size)
    steps = config.train.max_steps or max(1, int(config.train.epochs * per_epoch))
    every, early = config.eval.every or per_epoch, settings.early_steps(config)
    save_every = config.train.save_every or every
    model = step.build_model(config, corpus.tokenizer).to(device).train()
    optimizer = adamw(model, config.optim)
    state = {"step": 0, "best": None, "tokens": 0, "loss_tokens": 0, "seconds": 0.0}
    state |= {"corpus": corpus.name, "corpus_hash": corpus.hash}
    if resume:
        try:
            checkpoint.load(best, model)
            best_is_whole = True
        except settings.ConfigError:
            print(f"{best} is missing or damaged; the best is sought anew from here on", file=sys.stderr)
            best_is_whole = False
        state = checkpoint.load(last, model, optimizer)
        if state["corpus_hash"] != corpus.hash:
            what = changes(config, folder, lambda key: key in ("data.path", "data.corpus")) or "its files have changed"
            raise settings.ConfigError(f"the text is not what {folder} was trained on ({what}); restore it, or start "
                                       "another run with run.dir=OTHER")  # fmt: skip
        if not best_is_whole:
            state |= {"best": None, "evaluated": None}
        trim_samples(folder, state["step"])
    write_beside(folder / "config.yaml", lambda p: settings.save(config, p))
    parts = model.count_by_part()
    counts = ", ".join(f"{k} {v:,}" for k, v in parts.items())
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
        else:
            size, at = config.train.batch_size, state["step"] - 1
            x0, _ = data.batch(train_split, seed=config.seed, step=at, batch_size=size)
            entry["batch"] = checkpoint.digest({"x0": x0})[:16]  # the last one, by which runs show that they read alike
        log.record(entry)
        state["evaluated"] = state["step"]
        nats = found.nats_per_token if math.isfinite(found.nats_per_token) else math.inf
        if state["best"] is None or nats < state["best"]:
            state["best"] = nats
            checkpoint.save(best, model, None, state)
        for i in range(config.eval.text):
            text = sample.generate(model, corpus.tokenizer, config, "", tokens=min(64, config.model.seq_len), seed=i)
            with open(folder / "samples.txt", "a", encoding="utf-8") as f:
                f.write(f"--- step {state['step']}\n{text}\n")

    def collect(keep: int = 0):
        """Record the steps since the last call; with keep=1 on a GPU, only those that have arrived."""
        nonlocal marked, started
        if marked < state["step"]:
            runner.mark(marked, state["step"])
            marked = state["step"]
        windows, now = runner.read(keep=keep), time.monotonic()
        for first, outcomes in windows:  # windows that arrive together share the time
            seconds = (now - started) * len(outcomes) / sum(len(o) for _, o in windows)
            bad = [s for s, o in enumerate(outcomes, first) if not math.isfinite(o["loss"] + o["grad_norm"])]
            entry = _entry(outcomes, first, steps, config, state, seconds) | {"peak_memory_mb": peak_memory_mb(device)}
            if bad:
                raise settings.NonFinite(step.where(config, train_split, bad[0]))
            log.record(entry)
            log.progress(entry["step"], entry)
        started = now if windows else started

    def save():
        nonlocal saved
        checkpoint.save(last, model, optimizer, state)
        saved = state["step"]

    with Log(folder, steps, state["step"], config.run.wandb, settings.nested(config)) as log:
        log.say(f"{config.objective} on {corpus.name}, {train_split.scored:,} training tokens, {steps} steps, {device}")
        log.say(f"{sum(parts.values()):,} parameters: {counts}")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        if not resume:
            evaluate_valid()
        runner = captured.start(model, optimizer, loss_of, train_split, config, steps=steps, first=state["step"])
        told, marked, saved, started = "", state["step"], state["step"] if resume else None, time.monotonic()
        stop.patient = True
        log.start()
        while state["step"] < steps and not stop.asked:
            runner.run(state["step"])
            state["step"] += 1
            at = state["step"]
            if runner.why != told:
                told = runner.why
                log.say(f"steps run one by one: {told}")
            evaluates, saves = at < steps and (at % every == 0 or at in early), at == steps or at % save_every == 0
            if at % config.train.log_every == 0 or saves or evaluates:
                collect(keep=0 if saves or evaluates else 1)
            if evaluates:
                evaluate_valid()
            if saves:
                save()
            if saves or evaluates:
                started = time.monotonic()
        if saved != state["step"]:
            collect()
            save()
        stop.patient = False
        log.end_bar()
        at = state["step"]
        if at < steps:  # what is scored here is no part of the run, or resuming would end at another best
            log.say(f"stopped at step {at} of {steps}; saved. Evaluating (Ctrl-C again to leave at once)")
        else:
            if state.get("evaluated") != at:
                evaluate_valid()
                save()  # it knows the best from here on
            at = checkpoint.load(best, model)["step"]
        results = {}
        for name in ("valid", "test"):
            results[name] = likelihood.likelihood(
                model, corpus.splits[name], config.objective, target_stderr=config.eval.target_stderr,
                max_samples=config.eval.max_samples, **scored,
            )  # fmt: skip
        seconds = max(state["seconds"], 1e-9)
        summary = {
            "objective": config.objective, "corpus": corpus.name, "note": corpus.note, "steps": state["step"],
            "finished": state["step"] >= steps, "best_step": at, "tokens": state["tokens"],
            "loss_tokens": state["loss_tokens"], "seconds": round(seconds, 3),
            "tokens_per_s": state["tokens"] / seconds, "loss_tokens_per_s": state["loss_tokens"] / seconds,
            "peak_memory_mb": peak_memory_mb(device),
            "parameters": sum(parts.values()), "parameters_by_part": parts,
            **{k: v.asdict() for k, v in results.items()}, **doctor.versions(device),
            "config_hash": settings.config_hash(config), "corpus_hash": corpus.hash, "weights": weights_hash(model),
        }  # fmt: skip
        write_json(folder / "summary.json", summary)
        log.result(summary)
    return summary


def weights_hash(model) -> str:
    """Hash of all weights, by which runs show that they began alike."""
    from .checkpoint import digest

    return digest(model.state_dict())[:16]


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
    again = command("train", args.config, *args.overrides, "--resume")
    folder = None

    def kept() -> str:
        has = folder and (folder / LAST).is_file()
        return f"the last checkpoint is intact; to go on: {again}" if has else "no checkpoint was saved yet"

    try:
        config = settings.load(args.config, args.overrides)
        folder = folder_of(config, args.config)
        summary = train(config, folder, args.resume)
    except settings.ConfigError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except OSError as e:
        print(f"error: {e.filename or folder}: {e.strerror or e}; {kept()}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {kept()}", file=sys.stderr)
        return 130
    except settings.NonFinite as e:
        print(f"error: {e}; {kept()}", file=sys.stderr)
        return 1
    memory = f", peak memory {summary['peak_memory_mb']:,.0f} MB" if summary["peak_memory_mb"] else ""
    for name in ("valid", "test"):
        found, error = summary[name], f" ± {summary[name]['stderr']:.4f}" if summary[name]["samples"] else ""
        nats, bits = f"{found['nats_per_token']:.4f}{error} nats/token", f"{found['bits_per_byte']:.4f} bits/byte"
        print(f"{name:5}  {nats}, ppl {found['ppl']:.2f}, {bits} ({found['bound']})")
    print(f"best   these are of the weights of step {summary['best_step']}, of {summary['steps']} trained")
    print(f"speed  {summary['tokens_per_s']:,.0f} tokens/s over {summary['seconds']:,.1f} s{memory}")
    if summary["note"]:
        print(f"NOTE   {summary['note']}")
    print(f"run    {folder}")
    if not summary["finished"]:
        print(f"stopped early; to go on: {again}")
        return 130
    tokens = max(1, min(64, config.model.seq_len // 2))
    print("sample " + command("sample", folder, "--prompt", "The ", "--tokens", tokens))
    return 0


if __name__ == "__main__":
    sys.exit(verb(main))
