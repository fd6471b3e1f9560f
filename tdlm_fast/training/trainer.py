"""Train one run from its first step or its last checkpoint to the final evaluation."""

import contextlib
import math
import os
import signal
import sys
import time
from pathlib import Path

from .. import config as settings
from ..runs.files import BEST, LAST, write_beside, write_json
from ..runs.folder import changes, goes_on, locked, trim_samples
from ..runs.metrics import finished


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

    from ..runs.device import kernels, pick_device, tell_missing, versions

    kernels()  # a wrong TDLM_CPU_ISA ends here
    from ..data import batches, dataset
    from ..evaluation import diagnostics, likelihood, published_metric
    from ..model import build_model
    from ..runs import checkpoint
    from ..sampling import generate
    from . import cuda_graph, step
    from .logger import Log, peak_memory_mb
    from .optimizer import adamw

    stop.patient = False
    if stop.asked:
        raise KeyboardInterrupt
    device = pick_device(config.device)
    tell_missing(device)
    last, best = folder / LAST, folder / BEST
    began = checkpoint.peek(last) if resume else {}
    corpus = dataset.load(config.data, config.model.seq_len, began.get("corpus"))
    train_split = corpus.splits["train"]
    per_epoch = batches.steps_per_epoch(train_split, config.train.batch_size)
    steps = config.train.max_steps or max(1, int(config.train.epochs * per_epoch))
    every, early = config.eval.every or per_epoch, settings.early_steps(config)
    save_every = config.train.save_every or every
    model = build_model(config, corpus.tokenizer).to(device).train()
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
        found, metric = published_metric.both(
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
            x0, _ = batches.batch(train_split, seed=config.seed, step=at, batch_size=size)
            entry["batch"] = checkpoint.digest({"x0": x0})[:16]  # the last one, by which runs show that they read alike
        log.record(entry)
        state["evaluated"] = state["step"]
        nats = found.nats_per_token if math.isfinite(found.nats_per_token) else math.inf
        if state["best"] is None or nats < state["best"]:
            state["best"] = nats
            checkpoint.save(best, model, None, state)
        for i in range(config.eval.text):
            text = generate.generate(model, corpus.tokenizer, config, "", tokens=min(64, config.model.seq_len), seed=i)
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
        runner = cuda_graph.start(model, optimizer, loss_of, train_split, config, steps=steps, first=state["step"])
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
            **{k: v.asdict() for k, v in results.items()}, **versions(device),
            "config_hash": settings.config_hash(config), "corpus_hash": corpus.hash, "weights": weights_hash(model),
        }  # fmt: skip
        write_json(folder / "summary.json", summary)
        log.result(summary)
    return summary


def weights_hash(model) -> str:
    """Hash of all weights, by which runs show that they began alike."""
    from ..runs.checkpoint import digest

    return digest(model.state_dict())[:16]


def _entry(outcomes: list[dict], first: int, steps: int, config, state: dict, seconds: float) -> dict:
    """The line of metrics.jsonl for steps first, first + 1, … of so many seconds; brings the counters up to date."""
    from .optimizer import learning_rate

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
