"""Score a run inside EleutherAI's lm-evaluation-harness, as the model that is registered there as "tdlm_fast".

    loglikelihood          log p(ending | context): exact, or the lower bound of diffusion      (evaluation/endings.py)
    loglikelihood_rolling  log p(text): the sum over its rows of model.seq_len tokens, each after the start token, as
                           `evaluate --layout packed` cuts a text
    generate_until         new tokens after the context, which is never changed, up to a stop string        (sampling/)

All endings of a document share their random draws. Prompts, examples and metrics are those of the harness.
"""

import difflib
import functools
import importlib.metadata
import itertools
import logging
import zlib
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..config import ConfigError
from ..data.sources import go_offline_without_hub
from ..evaluation import endings
from ..evaluation.likelihood import scoring
from ..runs.checkpoint import check_finite
from ..runs.files import plain
from ..runs.folder import checkpoint_of
from ..runs.load import load_run
from ..sampling.generate import generate_batch
from ..sampling.options import SamplerOptions

NAME = "tdlm_fast"  # of the model in the harness
AT_ONCE = 256  # requests between two updates of the progress bar
NEW_TOKENS = 256  # of generate_until, where a task sets no number; the harness's own default
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # its names, the first that is set
KEPT = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better")


def writing(how: dict) -> tuple[list[str], int, dict]:
    """Return (stop strings, most new tokens, sampler options) of a task's generation_kwargs.

    As in the harness, the most probable tokens are taken unless do_sample is true or a temperature is set.
    """
    until = how.get("until") or []
    stops = [until] if isinstance(until, str) else [stop for stop in until if stop]
    most = next((int(how[name]) for name in LIMITS if how.get(name) is not None), NEW_TOKENS)
    sample, temperature = how.get("do_sample"), how.get("temperature")
    if sample is None:
        sample = bool(temperature)
    options = {"temperature": (1.0 if temperature is None else float(temperature)) if sample else 0.0}
    options |= {name: kind(how[name]) for name, kind in (("top_k", int), ("top_p", float)) if how.get(name) is not None}
    return stops, most, options


def until(text: str, stops: list[str]) -> str:
    """Return the text before the first of the stop strings."""
    return text[: min((at for at in map(text.find, stops) if at >= 0), default=len(text))]


class Scorer:
    """Answer the three kinds of requests of the harness with a run.

    A request has args, task_name and doc_id. samples, seed and batch_size are those of accuracy.evaluate; method and
    steps are those of SamplerOptions and apply to each piece of text that is written. Raises ConfigError and NonFinite.
    """

    def __init__(
        self, run: Path, *, checkpoint: str | None = None, device: str = "auto", samples: int = 16,
        seed: int | None = None, batch_size: int = 0, method: str = "ancestral", steps: int | None = None,
    ):  # fmt: skip
        if samples % 2 or not 2 <= samples <= endings.MAX_SAMPLES:
            raise ConfigError(f"--samples is {samples}; it must be even, from 2 to {endings.MAX_SAMPLES}")
        self.checkpoint = checkpoint_of(run, checkpoint)
        self.config, self.tokenizer, self.model, self.state = load_run(run, self.checkpoint, device)
        check_finite(self.model)
        self.T, self.samples = self.config.model.seq_len, samples
        self.seed = self.config.seed if seed is None else seed
        self.batch_size = batch_size or self.config.eval.batch_size
        self.sampler = {"method": method, "steps": steps}
        try:
            SamplerOptions(tokens=1, **self.sampler)
        except ValueError as e:  # it names the option first
            raise ConfigError(f"--{e}") from None

    def _log_p(self, rows: endings.Rows, task: str, greedy: bool) -> tuple[list[float], list[bool]]:
        """Return the log-likelihood of each ending, and whether greedy decoding writes it."""
        objective, key = self.config.objective, zlib.crc32(f"{task} ".encode())
        with scoring(self.model, self.config.precision) as device:
            kw: dict[str, Any] = dict(tokens=self.batch_size * self.T, device=device)
            kw["start_token_id"] = self.tokenizer.start_token_id
            draws = dict(samples=self.samples, seed=self.seed, key=key)
            log_p, _ = endings.log_likelihoods(self.model, objective, rows, **draws, **kw)
            return log_p.tolist(), endings.greedy(self.model, objective, rows, **kw) if greedy else []

    def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return (log p, whether greedy decoding writes it) of each (context, ending), in nats."""
        answers, bar = [], tqdm(total=len(requests), desc="log-likelihoods", disable=disable_tqdm or None)
        for task, of_task in itertools.groupby(requests, lambda request: request.task_name):
            while part := list(itertools.islice(of_task, AT_ONCE)):
                rows = endings.Rows()
                for request in part:
                    rows.add(*endings.pair(self.tokenizer, *request.args), self.T, request.doc_id or 0)
                answers += zip(*self._log_p(rows, task, greedy=True), strict=True)
                bar.update(len(part))
        bar.close()
        return answers

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Return log p of each text, in nats; every row of its tokens has its own random words."""
        answers = []
        for request in tqdm(requests, desc="texts", disable=disable_tqdm or None):
            ids, rows = self.tokenizer.encode(request.args[0]), endings.Rows()
            for i, at in enumerate(range(0, len(ids), self.T)):
                rows.add([], ids[at : at + self.T], self.T, ((request.doc_id or 0) << 16) + i)
            answers.append(sum(self._log_p(rows, request.task_name, greedy=False)[0]))
        return answers

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Return the text written after each (context, generation_kwargs), without the stop string that ended it."""
        bar = tqdm(requests, desc="texts", disable=disable_tqdm or None)
        try:
            return [self._written(self.seed + i, *request.args) for i, request in enumerate(bar)]
        except ValueError as e:
            raise ConfigError(f"generation_kwargs of a task: {e}") from None

    def _written(self, seed: int, context: str, how: dict) -> str:
        """Write piece after piece, as many tokens each as fit beside the text so far or half the model's length."""
        (stops, most, options), start = writing(how), self.tokenizer.start_token_id
        before, new, text = self.tokenizer.encode(context), [], ""
        while len(new) < most and until(text, stops) == text:
            tokens = min(most - len(new), max(self.T - len(before) - len(new), self.T // 2, 1))
            prefix = before + new
            if self.config.objective == "diffusion":
                prefix, options = prefix[max(0, len(prefix) + tokens - self.T) :], options | self.sampler
            written = generate_batch(
                self.model, self.config.objective, prefix, [],
                SamplerOptions(tokens=tokens, seed=(seed + (len(new) << 32)) % 2**62, **options),
                seq_len=self.T, start_token_id=start, forbidden=start,
            )  # fmt: skip
            new += written.ids[0].tolist()
            text = self.tokenizer.decode(new)
        return until(text, stops)


@functools.cache
def registered():
    """Register the model in the harness and return its class: it takes a Scorer, or a run folder and its options.

    Raises ConfigError where the harness is not installed.
    """
    go_offline_without_hub()
    try:
        from lm_eval.api.model import LM
        from lm_eval.api.registry import register_model
    except ImportError as e:
        raise ConfigError(f"lm-eval needs EleutherAI's harness ({e}): pip install lm_eval") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)

    @register_model(NAME)
    class Model(LM):
        def __init__(self, run, **options):
            super().__init__()
            scorer = run if isinstance(run, Scorer) else Scorer(Path(run), **options)
            self._device = next(scorer.model.parameters()).device
            self.scorer = scorer

        def loglikelihood(self, requests, disable_tqdm: bool = False):
            return self.scorer.loglikelihood(requests, disable_tqdm)

        def loglikelihood_rolling(self, requests, disable_tqdm: bool = False):
            return self.scorer.loglikelihood_rolling(requests, disable_tqdm)

        def generate_until(self, requests, disable_tqdm: bool = False):
            return self.scorer.generate_until(requests, disable_tqdm)

    return Model


def load_tasks(names: list[str], include: Path | None):
    """Return (the harness's TaskManager, its tasks and groups of those names). Raises ConfigError, naming the task.

    include: a folder of further task files.
    """
    from lm_eval.tasks import TaskManager

    if include and not include.is_dir():
        raise ConfigError(f"--include {include} is not a folder; give one that holds task files (YAML)")
    manager, specs = TaskManager(include_path=include and str(include)), []
    for name in dict.fromkeys(names):
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, 1)
            hint = f"did you mean {near[0]}?" if near else "`lm_eval ls tasks` lists them, --include FOLDER adds others"
            raise ConfigError(f"--tasks: the harness has no task {name!r}; {hint}")
        try:
            loaded = manager.load([name])
        except Exception as e:  # the harness reads task files and data sets here, of which each has its own errors
            why = (str(e).splitlines() or [""])[0] or type(e).__name__
            fix = "connect to the Hub once, so that `datasets` caches its questions, or mend its task file"
            raise ConfigError(f"--tasks: {name} cannot be loaded ({why}); {fix}") from None
        for task, each in loaded["tasks"].items():
            if getattr(each, "UNSAFE_CODE", False) or getattr(each, "MULTIMODAL", False):
                raise ConfigError(f"--tasks: {task} runs generated code or needs images; leave it out")
        specs += [loaded["groups"][name]] if name in loaded["groups"] else loaded["tasks"].values()
    return manager, specs


def evaluate(scorer: Scorer, names: list[str], include: Path | None, limit: int, shots: int | None) -> dict:
    """Return the figures of the harness, {"results": {task: {"metric,filter": value}}, …}, and what they rest on.

    limit: the first documents of each task (0: all); shots: examples in the context (None: those of the task file).
    Raises ConfigError where the harness or a task is missing.
    """
    model = registered()(scorer)
    from lm_eval.evaluator import simple_evaluate

    manager, specs = load_tasks(names, include)
    figures = simple_evaluate(
        model=model, tasks=specs, task_manager=manager, limit=limit or None, num_fewshot=shots, log_samples=False,
        bootstrap_iters=1000,
    )  # fmt: skip
    diffusion = scorer.config.objective == "diffusion"
    about = {"objective": scorer.config.objective, "step": scorer.state["step"], "checkpoint": scorer.checkpoint}
    about |= {"log_likelihoods": "lower bound" if diffusion else "exact", "samples": scorer.samples if diffusion else 0}
    about |= {"seed": scorer.seed, "limit": limit, "lm_eval": importlib.metadata.version("lm_eval")}
    return about | {name: plain(figures[name]) for name in KEPT if name in figures}


def lines(figures: dict) -> list[list[str]]:
    """Return heading and rows of a table: task, documents, metric, filter, value and its standard error."""
    out = [["task", "documents", "metric", "filter", "value", "standard error"]]
    for task, values in figures["results"].items():
        documents = figures.get("n-samples", {}).get(task, {}).get("effective")
        for name, value in values.items():
            metric, _, which = name.partition(",")
            if which and not metric.endswith("_stderr") and isinstance(value, int | float):
                error = values.get(f"{metric}_stderr,{which}")
                known = isinstance(error, int | float)
                row = [task, f"{documents:,}" if documents else "", metric, which, f"{value:.4f}"]
                out.append([*row, f"{error:.4f}" if known else ""])
    return out
