"""Compute the accuracy of a run on evaluation sets, and keep it part by part in the run folder.

    acc        the ending of the largest log-likelihood is right
    acc_norm   the same, each divided by the characters of its ending (lm-evaluation-harness's definition)
    acc_token  the same, each divided by the tokens of its ending
    gap        mean log-likelihood of the wrong endings minus the right one's, nats; below 0 the right one is preferred

    shortest   the ending of the fewest tokens is right, which is the acc of a uniform predictor

Endings of equal score (within TIE) share the credit; the harness gives it to the first, which in BLiMP is always the
right one. LAMBADA has one ending: acc is whether greedy decoding writes it, ppl is exp of its mean nats per word.

RUN/tasks/TASK.jsonl holds a line for each finished part (PART questions of a group, or its rest), keyed by everything
that decides its numbers. So a command that was interrupted resumes, and one with another --limit computes only the
parts that it cuts elsewhere. RUN/tasks.json holds the results.
"""

import itertools
import math
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..config import ConfigError, config_hash
from ..runs import files
from ..runs.checkpoint import check_finite
from ..runs.load import load_run
from ..statistics import t_975, wilson
from . import endings, tasks
from .likelihood import scoring
from .table_lines import aligned
from .tasks import Question

PART = 500  # questions
TIE = 1e-6  # relative: closer log-likelihoods are equal in fp32


def credit(scores: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Return (Q,) 1 where scores (Q, E; -inf: no ending) are largest at gold, 1/m where m endings share it, else 0."""
    best = scores.max(1, keepdims=True)
    tied = scores >= best - TIE * np.abs(best)
    return tied[np.arange(len(gold)), gold] / tied.sum(1)


def _padded(rows: list[list[float]], fill: float) -> np.ndarray:
    out = np.full((len(rows), max(map(len, rows))), fill)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def _share(name: str, values: np.ndarray) -> dict:
    mean = float(values.mean())
    return {name: mean, f"{name}_interval": list(wilson(mean, len(values)))}


def _mean(name: str, values: np.ndarray) -> dict:
    """Return a mean over questions and its 95 % interval; None for a single question."""
    n, mean = len(values), float(values.mean())
    half = t_975(n - 1) * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else None
    return {name: mean, f"{name}_interval": None if half is None else [mean - half, mean + half]}


def credits(questions: list[Question], scores: dict) -> dict[str, np.ndarray]:
    """Return acc, acc_norm and acc_token (LAMBADA: acc) of each question, (Q,) from 0 to 1; scores as in summarise."""
    if scores["greedy"]:
        return {"acc": np.array(scores["greedy"], dtype=float)}
    log_p, gold = _padded(scores["log_p"], -np.inf), np.array([q.gold for q in questions])
    characters = _padded([[max(len(e) - 1, 1) for e in q.endings] for q in questions], 1.0)  # without its space
    lengths = {"acc": 1.0, "acc_norm": characters, "acc_token": _padded(scores["tokens"], 1.0)}
    return {name: credit(log_p / length, gold) for name, length in lengths.items()}


def summarise(questions: list[Question], scores: dict) -> dict:
    """Return the figures of one task.

    scores: "log_p", "noise" and "tokens" hold for each question a number per ending; "greedy" a bool per question, or
    nothing.
    """
    out: dict[str, Any] = {"n": len(questions)}
    log_p, noise = _padded(scores["log_p"], -np.inf), _padded(scores["noise"], 0.0)
    each = credits(questions, scores)
    for name, values in each.items():
        out |= _share(name, values)
    if scores["greedy"]:
        out |= {"acc_norm": None, "chance": 0.0}
        out |= _mean("nats_per_word", -log_p[:, 0])
        out |= {"ppl": math.exp(min(out["nats_per_word"], 700)), "gap": None}
    else:
        gold, known = np.array([q.gold for q in questions]), np.isfinite(log_p)
        out["chance"] = float((1 / known.sum(1)).mean())
        tokens = _padded(scores["tokens"], np.inf)
        out["shortest"] = float(credit(-tokens, gold).mean())
        right = log_p[np.arange(len(gold)), gold]
        wrong = np.where(known, log_p, 0.0).sum(1) - right
        out |= _mean("gap", wrong / (known.sum(1) - 1) - right)
        halves = [credit(log_p + s * noise, gold) for s in (1, -1)]
        out["halves_agree"] = float((halves[0] == halves[1]).mean())
        groups: dict[str, list[int]] = {}
        for i, q in enumerate(questions):
            groups.setdefault(q.group, []).append(i)
        if len(groups) > 1 or "" not in groups:
            out["groups"] = {
                g: {"n": len(i)} | _share("acc", each["acc"][i]) | _share("acc_norm", each["acc_norm"][i])
                for g, i in groups.items()
            }
    out["noise"] = float(np.sqrt((noise**2).sum() / np.isfinite(log_p).sum()))
    return out


class Parts:
    """Hold the finished parts of a task, a line each in RUN/tasks/TASK.jsonl; a damaged line is computed again."""

    def __init__(self, file: Path):
        self.file, self.by_key = file, {}
        if file.is_file():
            for line in file.read_bytes().splitlines():
                try:
                    part = files.read_line(line)
                    self.by_key[part["key"]] = part
                except (ValueError, KeyError, TypeError):  # also raised by bytes that are not UTF-8
                    continue

    def add(self, part: dict) -> None:
        self.by_key[part["key"]] = part
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "a+b") as f:
            cut = f.tell() and (f.seek(-1, 2), f.read(1))[1] != b"\n"
            f.write(b"\n" * bool(cut) + files.line(part).encode())


def _cut_into_parts(questions: list[Question]):
    """Yield (group, place of the first question in its group, at most PART questions of the group)."""
    for group, members in itertools.groupby(questions, lambda q: q.group):  # they stand group by group
        whole = list(members)
        yield from ((group, i, whole[i : i + PART]) for i in range(0, len(whole), PART))


def score_part(
    model, tokenizer, config, questions: list[Question], offset: int, *, task: str, samples: int, seed: int,
    tokens: int, device,
) -> dict:  # fmt: skip
    """Return log_p, noise and tokens of every ending, a list for each question of one part of a group.

    offset: place of the first question in its group; samples and seed: of the draws; tokens: of a forward pass.
    """
    began = time.perf_counter()
    rows = endings.rows_of(questions, tokenizer, config.model.seq_len, offset)
    kw: dict[str, Any] = dict(start_token_id=tokenizer.start_token_id, tokens=tokens, device=device)
    key = zlib.crc32(f"{task} {questions[0].group}".encode())
    log_p, noise = endings.log_likelihoods(model, config.objective, rows, samples=samples, seed=seed, key=key, **kw)
    right = endings.greedy(model, config.objective, rows, **kw) if task == "lambada" else []
    ends = np.cumsum([len(q.endings) for q in questions])[:-1]
    columns = {"log_p": log_p.numpy(), "noise": noise.numpy(), "tokens": np.array(rows.lengths)}
    lists = {name: [a.tolist() for a in np.split(column, ends)] for name, column in columns.items()}
    counts = {"greedy": right, "cut_contexts": rows.cut, "pieced_endings": rows.pieced}
    return lists | counts | {"seconds": time.perf_counter() - began}


def evaluate(
    folder: Path, names: list[str], *, checkpoint: str = "best", device: str = "auto", data: Path | None = None,
    limit: int = 0, samples: int = 16, seed: int | None = None, batch_size: int = 0,
) -> dict[str, dict]:  # fmt: skip
    """Return {task: figures} of a run, and write them to RUN/tasks.json beside earlier tasks of the same weights.

    limit: the first questions of every group (0: all); samples: draws per ending, diffusion; batch_size: sequences of T
    tokens per forward pass (0: the config's). Raises ConfigError, naming the task, where its set cannot be read.
    """
    if samples % 2 or not 2 <= samples <= endings.MAX_SAMPLES:
        raise ConfigError(f"--samples is {samples}; it must be even, from 2 to {endings.MAX_SAMPLES}")
    if limit < 0 or batch_size < 0:
        raise ConfigError("--limit and --batch-size must be at least 0")
    sets = {name: tasks.load(name, data) for name in dict.fromkeys(names)}  # a missing set is named before any scoring
    config, tokenizer, model, state = load_run(folder, checkpoint, device)
    check_finite(model)
    enumerated = (samples + 1).bit_length() - 1  # tokens
    bound = f"bound: every subset of endings up to {enumerated} tokens, else {samples} draws"
    draws = (0, 0) if config.objective == "autoregressive" else (samples, config.seed if seed is None else seed)
    kw = dict(samples=samples, seed=draws[1], tokens=(batch_size or config.eval.batch_size) * config.model.seq_len)
    weights = {"config": config_hash(config), "corpus": state["corpus_hash"]}
    weights |= {name: state[name] for name in ("step", "weights")}
    file = folder / "tasks.json"
    results = {k: v for k, v in files.figures(file).items() if files.matches(v, weights)}
    for name, (source, questions) in sets.items():
        questions = tasks.first(questions, limit)
        parts, scores = Parts(folder / "tasks" / f"{name}.jsonl"), {}
        with scoring(model, config.precision) as on, tqdm(total=len(questions), desc=name, disable=None) as bar:
            for group, offset, part in _cut_into_parts(questions):
                text = zlib.crc32(repr(part).encode())
                key = " ".join(map(str, (*weights.values(), *draws, group, offset, len(part), text)))
                if key not in parts.by_key:
                    scores_of_part = score_part(model, tokenizer, config, part, offset, task=name, device=on, **kw)
                    parts.add({"key": key} | scores_of_part)
                for column, value in parts.by_key[key].items():
                    if column != "key":
                        scores[column] = scores.get(column, type(value)()) + value
                bar.update(len(part))
        results[name] = summarise(questions, scores) | {
            "objective": config.objective, "estimator": bound if draws[0] else "exact", "samples": draws[0],
            "limit": limit, "source": source, "seconds": round(scores["seconds"], 2),
            "cut_contexts": scores["cut_contexts"], "pieced_endings": scores["pieced_endings"],
            "key": weights | {"checkpoint": checkpoint, "limit": limit, "samples": draws[0], "seed": draws[1]},
        }  # fmt: skip
        files.write_figures(file, results)
    return {name: results[name] for name in sets}


def _figure(entry: dict, name: str, scale: int, digits: int) -> str:
    """Return scale times a figure with its interval, "" where it is missing."""
    value, interval = entry.get(name), entry.get(f"{name}_interval")
    around = f" [{', '.join(f'{scale * end:.{digits}f}' for end in interval)}]" if interval else ""
    return "" if value is None else f"{scale * value:.{digits}f}{around}"


def table(results: dict[str, dict]) -> str:
    """Return the results as text: a line for each task, BLiMP's paradigms, and notes on the figures."""
    lines = [["task", "questions", "acc %", "acc_norm %", "chance %", "shortest %", "gap, nats", "seconds"]]
    for name, e in results.items():
        levels = [f"{100 * e[level]:.1f}" if e.get(level) else "" for level in ("chance", "shortest")]
        shares = [_figure(e, share, 100, 1) for share in ("acc", "acc_norm")]
        lines.append([name, f"{e['n']:,}", *shares, *levels, _figure(e, "gap", 1, 3), f"{e['seconds']:.1f}"])
    if "blimp" in results:
        lines += [[], ["BLiMP paradigm", "pairs", "acc %"]]
        lines += [[g, f"{e['n']:,}", _figure(e, "acc", 100, 1)] for g, e in results["blimp"]["groups"].items()]
    text = [*aligned(lines), ""]
    text += ["Intervals are 95 %: Wilson's for accuracies, Student's t over the questions for the gap."]
    text += ["shortest: the acc of a uniform predictor, which prefers the ending of the fewest tokens."]
    for name, e in results.items():
        notes = [f"{e['objective']}, {e['estimator']}"]
        if e["samples"]:
            notes.append(f"noise {e['noise']:.3f} nats an ending")
        if e["samples"] and "halves_agree" in e:
            notes.append(f"either half of the draws decides {100 * e['halves_agree']:.0f} % alike")
        if "ppl" in e:
            bound = "≤ " if e["samples"] else ""
            notes.append(f"perplexity of the word {bound}{e['ppl']:,.1f}")
        if e["cut_contexts"]:
            notes.append(f"{e['cut_contexts']:,} contexts cut on the left to fit")
        if e["pieced_endings"]:
            notes.append(f"{e['pieced_endings']:,} endings longer than the model's rows, scored in pieces")
        text.append(f"{name}: {'; '.join(notes)}; {e['source']}")
    return "\n".join(text)
