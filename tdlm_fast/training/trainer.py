"""Train one run from its first step, or from its last checkpoint, to the final evaluation."""

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from .. import config as settings
from ..data import dataset
from ..data.batches import batch, steps_per_epoch
from ..evaluation.diagnostics import diagnose
from ..evaluation.likelihood import final_scoring, likelihood
from ..evaluation.published_metric import both
from ..evaluation.source_entropy import source
from ..model import build_model, resolved
from ..runs import checkpoint, vocabulary
from ..runs.appended import Appended
from ..runs.device import pick_device, tell_missing, versions
from ..runs.files import BEST, LAST, kept_checkpoint, write_beside, write_figures
from ..runs.folder import other_source, other_text, owner_of, path_from
from ..sampling.generate import generate
from . import cuda_graph, ema, step
from .branch import branch, steps_of
from .limits import check_memory, training_seconds
from .logger import Log, peak_memory_mb, reserved_memory_mb
from .optimizer import adamw, learning_rate
from .ranks import ALONE, Lost, Ranks
from .stop import Stop


@dataclass
class Progress:
    """How far a run has come. Checkpoints keep it, so that a resumed run counts on from there."""

    corpus: str
    corpus_hash: str
    step: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    seconds: float = 0.0  # of training only
    best: float | None = None  # lowest validation nats per token so far
    evaluated: int | None = None  # the step of the last evaluation
    # Of the steps that compile and capture at the start of a process on a GPU; their seconds are not among those above.
    startup_seconds: float = 0.0
    startup_tokens: int = 0
    startup_loss_tokens: int = 0

    @classmethod
    def of(cls, state: dict) -> "Progress":
        """The progress in a checkpoint's state."""
        return cls(**{f.name: state[f.name] for f in fields(cls) if f.name in state})

    def state(self) -> dict:
        """What a checkpoint keeps of it; only a GPU has a start."""
        return {k: v for k, v in asdict(self).items() if v or not k.startswith("startup_")}

    def rates(self) -> dict:
        """{"tokens_per_s", "loss_tokens_per_s"} after the start; of the whole run, where it was no longer than that."""
        seconds, tokens, loss_tokens = self.seconds, self.tokens, self.loss_tokens
        if seconds:
            tokens, loss_tokens = tokens - self.startup_tokens, loss_tokens - self.startup_loss_tokens
        seconds = max(seconds or self.startup_seconds, 1e-9)
        return {"tokens_per_s": tokens / seconds, "loss_tokens_per_s": loss_tokens / seconds}


class Trainer:
    """A run being trained: corpus, model, optimizer and progress. `run()` trains; the other methods are its parts."""

    def __init__(self, config: settings.Config, folder: Path, resume: bool, stop: Stop, ranks: Ranks = ALONE):
        self.config, self.folder, self.resume, self.stop, self.ranks = config, folder, resume, stop, ranks
        self.device = pick_device(ranks.device(config.device))
        tell_missing(self.device)
        began = checkpoint.peek(folder / LAST) if resume and not other_source(config, folder) else {}
        tokenizer = vocabulary.kept(folder, config) if resume else None
        with ranks.in_turn():  # process 0 makes the token cache, and the others read it
            self.corpus = dataset.load(config.data, config.model.seq_len, began.get("corpus"), tokenizer)
        self.split = self.corpus.splits["train"]
        check_memory(config, self.corpus.tokenizer.vocab, max(map(len, self.corpus.splits.values())), self.device)
        per_epoch = steps_per_epoch(self.split, config.train.batch_size)
        self.steps = steps_of(config, per_epoch)
        self.eval_every, self.early = config.eval.every or per_epoch, settings.listed_steps(config.eval.early)
        self.keep_at = settings.listed_steps(config.train.keep_at)
        if config.optim.schedule == "wsd":  # from here the run can be extended, or another one branch
            self.keep_at.add(config.optim.decay_begins(self.steps))
        self.save_every = config.train.save_every or self.eval_every
        self.model = build_model(config, self.corpus.tokenizer).to(self.device).train()
        self.optimizer = adamw(self.model, config.optim)
        self.progress, self.owner = Progress(self.corpus.name, self.corpus.hash), owner_of(config)
        # what a checkpoint keeps beside the progress
        self.about = self.owner | self.corpus.owner | path_from(config, folder)
        state = self.load() if resume else None
        self.metrics, self.samples = (Appended(folder / name, state) for name in ("metrics.jsonl", "samples.txt"))
        if not resume and config.train.branch_from:
            trunk = branch(config, folder, self.model, self.optimizer, self.steps, per_epoch, self.corpus.owner)
            self.progress = Progress.of(trunk | {"best": None, "evaluated": None})
        self.scoring = final_scoring(config, self.corpus.tokenizer)

    def load(self) -> dict:
        """Take up the last checkpoint; returns its state. Raises ConfigError where its text is another one."""
        best, last, text, state = self.folder / BEST, self.folder / LAST, self.corpus.owner, None
        try:
            state = checkpoint.load(best, self.model, owner=self.owner)
        except checkpoint.Refused:
            raise
        except settings.ConfigError:
            if checkpoint.peek(last).get("best", 0) is not None:  # None where an extension has said so
                print(f"{best} is missing or damaged; the best is sought again from here", file=sys.stderr)
        held = checkpoint.load(last, self.model, self.optimizer, self.owner)
        self.progress = Progress.of(held)
        if self.progress.corpus_hash != self.corpus.hash:
            if state and state.get("corpus_hash") == self.corpus.hash:
                checkpoint.check_owner(last, self.progress.state(), text)
            raise other_text(self.config, self.folder)
        for file, of in ((last, held), (best, state or {})):
            checkpoint.check_owner(file, of, text)
        if not state or state["step"] > self.progress.step:
            self.progress.best = None
            if self.progress.step == self.steps:  # no later evaluation finds a best, so this one is repeated
                self.progress.evaluated = None
        return held | {"evaluated": self.progress.evaluated}

    def run(self) -> dict:
        """Train to the last step or until a stop is asked for; returns what summary.json holds."""
        config, progress = self.config, self.progress
        write_beside(self.folder / "config.yaml", lambda p: settings.save(config, p))
        vocabulary.keep(self.folder, self.corpus.tokenizer)
        if config.eval.text or self.samples.path.exists():
            self.samples.begin()
        with Log(self.metrics, config, self.steps, progress.step) as self.log:
            self.begin()
            try:
                for _ in self.steps_taken():
                    self.report_eager_steps()
                    evaluates, saves = self.due()
                    starts = progress.step == self.start_ends
                    if progress.step % config.train.log_every == 0 or saves or evaluates or starts:
                        self.collect_metrics(keep=0 if saves or evaluates or starts else 1)
                    if starts:
                        self.log.starts_here(progress.step)
                    if evaluates:
                        self.evaluate()
                    if saves:
                        self.save()
                    if saves or evaluates:
                        self.window_began = time.monotonic()
            except Lost as e:  # in the middle of a step, which has changed no weight yet
                self.collect_metrics()
                self.save()
                raise Lost(f"{e}; step {progress.step} is saved, and the same command with --resume continues") from e
            if self.saved_at != progress.step:
                self.collect_metrics()
                self.save()
            return self.finish()

    def follow(self) -> None:
        """Train beside process 0, which evaluates, saves and reports."""
        self.start_steps()
        marked = self.progress.step
        for taken in self.steps_taken():
            if taken % self.config.train.log_every == 0:  # its log holds no more
                self.runner.mark(marked, taken)
                self.runner.read()
                marked = taken

    def start_steps(self) -> None:
        """Set up the steps, after all processes of the run are known to start alike."""
        if self.ranks.size > 1:
            self.ranks.check_equal("the config", settings.config_hash(self.config))
            self.ranks.check_equal("the text", self.corpus.hash)
            self.ranks.check_equal("the first step", self.progress.step)
            self.ranks.check_equal("a weight", checkpoint.weights_hash(self.model))
        runner = cuda_graph.start(
            self.model, self.optimizer, step.objective(self.config, self.corpus.tokenizer), self.split, self.config,
            steps=self.steps, first=self.progress.step,
        )  # fmt: skip
        self.runner = runner.among(self.ranks)
        self.stop.patient = True

    def steps_taken(self) -> Iterator[int]:
        """Take the steps that are left, until a stop is asked for; yield after each how many have been taken."""
        while self.progress.step < self.steps and not self.ranks.agree(self.stop.asked):
            self.runner.run(self.progress.step)
            self.progress.step += 1
            if self.ranks.size > 1 and self.due()[1]:
                self.ranks.check_equal("a weight", checkpoint.weights_hash(self.model))
            yield self.progress.step

    def begin(self) -> None:
        """Describe the run, evaluate a new one, and set up the steps."""
        corpus, counts = self.corpus, self.model.count_by_part()
        tokens = f"{self.split.scored:,} training tokens"
        self.log.say(f"{self.config.objective} on {corpus.name}, {tokens}, {self.steps} steps, {self.device}")
        parts = ", ".join(f"{name} {n:,}" for name, n in counts.items())
        self.log.say(f"{sum(counts.values()):,} parameters: {parts}")
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        if self.device.type == "cpu":  # a GPU would compile kernels first
            seconds = training_seconds(self.model, self.split, self.config, self.steps - self.progress.step)
            minutes = seconds / self.ranks.size / 60
            if minutes > 10:
                left = f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:,.1f} hours"
                self.log.say(f"training takes about {left}, evaluations not counted")
        if beyond := sorted(step for step in self.keep_at if step > self.steps):
            late = ", ".join(map(str, beyond))
            self.log.say(f"NOTE train.keep_at: the run ends at step {self.steps}, so none is kept of step {late}")
        if not self.resume:
            self.evaluate()
            if self.progress.step in self.keep_at:  # a branch that begins where its rate falls can be extended, too
                self.save()
        self.start_steps()
        self.why_eager, self.marked = "", self.progress.step
        # On a GPU the first steps compile and capture, and the next one is the first replay.
        self.start_ends = self.progress.step + cuda_graph.WARM_UP + 1 if self.device.type == "cuda" else 0
        self.saved_at = self.progress.step if self.resume else None
        self.window_began = time.monotonic()
        self.log.started = self.window_began  # of the time that is left

    def due(self) -> tuple[bool, bool]:
        """Whether this step is followed by an evaluation, and whether by a checkpoint."""
        at, last = self.progress.step, self.progress.step == self.steps
        saves = last or at % self.save_every == 0 or at in self.keep_at
        return not last and (at % self.eval_every == 0 or at in self.early), saves

    def report_eager_steps(self) -> None:
        """Log why steps run one by one, once for each reason."""
        if self.runner.why != self.why_eager:
            self.why_eager = self.runner.why
            self.log.say(f"steps run one by one: {self.why_eager}")

    def collect_metrics(self, keep: int = 0) -> None:
        """Record the steps since the last call; with keep=1 on a GPU, only those that have arrived."""
        if self.marked < self.progress.step:
            self.runner.mark(self.marked, self.progress.step)
            self.marked = self.progress.step
        windows, now = self.runner.read(keep=keep), time.monotonic()
        for first, outcomes in windows:  # windows that arrive together share the time
            seconds = (now - self.window_began) * len(outcomes) / sum(len(o) for _, o in windows)
            entry = self.training_entry(outcomes, first, seconds)
            bad = [s for s, o in enumerate(outcomes, first) if not math.isfinite(o["loss"] + o["grad_norm"])]
            if bad:
                raise settings.NonFinite(
                    step.where(self.config, self.split, bad[0], resolved(self.device, self.config.precision))
                )
            self.log.record(entry)
            self.log.progress(entry["step"], entry)
        self.window_began = now if windows else self.window_began

    def training_entry(self, outcomes: list[dict], first: int, seconds: float) -> dict:
        """The line of metrics.jsonl for steps first, first + 1, …, which took `seconds`; adds them to the progress."""
        progress, last = self.progress, first + len(outcomes) - 1
        loss_tokens, tokens = (sum(o[k] for o in outcomes) for k in ("loss_tokens", "tokens"))
        progress.tokens += tokens
        progress.loss_tokens += loss_tokens
        if first < self.start_ends:
            progress.startup_seconds += seconds
            progress.startup_tokens += tokens
            progress.startup_loss_tokens += loss_tokens
        else:
            progress.seconds += seconds
        of_gpu = {"startup_seconds": progress.startup_seconds} if progress.startup_seconds else {}
        return {
            "step": last + 1, "loss": outcomes[-1]["loss"], "lr": learning_rate(last, self.steps, self.config.optim),
            "grad_norm": outcomes[-1]["grad_norm"], "tokens_per_s": tokens / seconds,
            "loss_tokens_per_s": loss_tokens / seconds, "tokens": progress.tokens, "loss_tokens": progress.loss_tokens,
            "seconds": progress.seconds, "peak_memory_mb": peak_memory_mb(self.device), **of_gpu,
        }  # fmt: skip

    def evaluate(self) -> None:
        """Score the validation split, record it, keep the best weights, and write samples of text.

        With optim.ema the average of the weights is evaluated and kept.
        """
        with ema.averaged(self.model, self.optimizer):
            self.evaluate_weights()

    def evaluate_weights(self) -> None:
        """Evaluate the weights that the model has."""
        config, progress, valid = self.config, self.progress, self.corpus.splits["valid"]
        n = config.eval.samples
        scoring: dict[str, Any] = self.scoring | dict(target_stderr=0.0, min_samples=n, max_samples=n)
        score, metric = both(self.model, valid, config.objective, draws=config.eval.published, **scoring)
        entry = {key: getattr(progress, key) for key in ("step", "seconds", "tokens", "loss_tokens")}
        entry["valid"] = score.asdict()
        if metric:
            entry["published"] = metric.asdict()
        if config.eval.probe:
            entry["diagnostics"] = diagnose(
                self.model, valid, config.objective, rows=config.eval.probe, loss_weight=config.loss_weight,
                precision=config.precision, start_token_id=self.scoring["start_token_id"],
            )  # fmt: skip
        if not progress.step:
            entry |= {"initial_weights": checkpoint.weights_hash(self.model), "steps": self.steps}
        else:  # a digest of the last batch, by which two runs show that they read the same ones
            size = config.train.batch_size
            x0, _ = batch(self.split, seed=config.seed, step=progress.step - 1, batch_size=size)
            entry["batch"] = checkpoint.digest({"x0": x0})[:16]
        self.log.record(entry)
        self.log.say(f"step {progress.step}  valid {score}")
        progress.evaluated = progress.step
        nats = score.nats_per_token if math.isfinite(score.nats_per_token) else math.inf
        if progress.best is None or nats < progress.best:
            progress.best = nats
            checkpoint.save(self.folder / BEST, self.model, None, progress.state() | self.about)
        for i in range(config.eval.text):
            tokens = min(64, config.model.seq_len)
            text = generate(self.model, self.corpus.tokenizer, config, tokens=tokens, seed=i)
            self.samples.append(f"--- step {progress.step}\n{text}\n")

    def save(self) -> None:
        """Write the last checkpoint, and before it the one that is kept of this step, if there is one."""
        at = self.progress.step
        written = {"written": {f.path.name: f.mark() for f in (self.metrics, self.samples)}}
        state = self.progress.state() | self.about | written
        for file in (*([kept_checkpoint(at)] if at in self.keep_at else []), LAST):
            checkpoint.save(self.folder / file, self.model, self.optimizer, state)
        self.saved_at = at

    def finish(self) -> dict:
        """Score validation and test with the best weights (the last ones of a stopped run); write summary.json."""
        config, progress, at = self.config, self.progress, self.progress.step
        self.log.bar.close()  # later lines stand below it
        if at == self.steps and progress.evaluated != at:
            self.evaluate()
            self.save()  # the checkpoint knows the best from here on
        stopped, self.stop.patient = self.stop.asked, False
        if at < self.steps:  # this score is not recorded: it would change which checkpoint a resumed run calls best
            self.log.say(f"stopped at step {at} of {self.steps}; saved. Evaluating (Ctrl-C again to leave at once)")
            ema.put(self.model, self.optimizer)
        elif stopped:
            raise KeyboardInterrupt
        else:
            at = checkpoint.load(self.folder / BEST, self.model, owner=self.owner)["step"]
        splits = {name: self.corpus.splits[name] for name in ("valid", "test")}
        results = {k: likelihood(self.model, s, config.objective, **self.scoring).asdict() for k, s in splits.items()}
        known = {k: s.asdict() for k, split in splits.items() if (s := source(config.data, split))}
        seconds, counts = max(progress.seconds or progress.startup_seconds, 1e-9), self.model.count_by_part()
        further = {"startup_seconds": round(progress.startup_seconds, 3)} if progress.startup_seconds else {}
        if reserved := reserved_memory_mb(self.device):
            further["reserved_memory_mb"] = reserved
        if self.ranks.size > 1:
            further["processes"] = self.ranks.size
        summary = {
            "objective": config.objective, "corpus": self.corpus.name, "note": self.corpus.note,
            "steps": progress.step, "finished": progress.step >= self.steps, "best_step": at,
            "tokens": progress.tokens, "loss_tokens": progress.loss_tokens, "seconds": round(seconds, 3),
            **progress.rates(), "peak_memory_mb": peak_memory_mb(self.device), **further,
            "precision": resolved(self.device, config.precision), "parameters": sum(counts.values()),
            "parameters_by_part": counts, **results, **({"source": known} if known else {}), **versions(self.device),
            "config_hash": settings.config_hash(config), **self.corpus.owner, **self.owner,
            **{f"{f.path.stem}_sha256": f.mark()["sha256"] for f in (self.metrics, self.samples) if f.bytes},
            "weights": checkpoint.weights_hash(self.model),
        }  # fmt: skip
        write_figures(self.folder / "summary.json", summary)
        self.log.result(summary)
        return summary
