"""Compare our accuracies with those of lm-evaluation-harness: `python -m bench.lm_harness.harness RUN --data FOLDER`.

A finished autoregressive run is wrapped as a model of the harness (run_lm.py), which reads the local sets through its
own task files, unchanged (hub.py). Prompts, the split into context and ending, acc and acc_norm are then the harness's.
Ours are those of `tdlm_fast.evaluate --tasks` from the same weights. Both in fp32, without examples.

    texts    requests whose context or ending is not our text
    nats     largest difference in the log-likelihood of an ending
    differ   questions that one side has right and the other wrong
    tied     questions whose equal endings share our credit, on which the two can differ by a part

A text longer than the model loses its first tokens on both sides, but not the same ones (DEPARTURES). So a set with
such texts is asked twice: cut as the harness's HF model cuts them ("cut"), and as we do ("kept").
"""

import argparse
import json
import math
import shutil
import sys
import tempfile
from pathlib import Path

from bench.lm_harness import hub
from bench.lm_harness.run_lm import ABSENT, RunLM
from tdlm_fast import config as settings
from tdlm_fast.evaluation import accuracy, tasks
from tdlm_fast.evaluation.likelihood import scoring
from tdlm_fast.runs.files import write_json
from tdlm_fast.runs.folder import checkpoint_of
from tdlm_fast.runs.load import load_run

# our task: the harness's folder of task files, and its task, one per group
THEIRS = {
    "hellaswag": ("hellaswag", "hellaswag"), "mmlu": ("mmlu", "mmlu_{}"), "mmlu_text": ("mmlu", "mmlu_{}_continuation"),
    "arc_easy": ("arc", "arc_easy"), "piqa": ("piqa", "piqa"), "lambada": ("lambada", "lambada_openai"),
    "blimp": ("blimp", "blimp_{}"),
}  # fmt: skip
DEPARTURES = {
    "a start token everywhere": "The start token stands before every text, as in every row of training. The harness's "
    "HF model puts it before an empty context, and before other contexts only with add_bos_token=True, as here.",
    "a start token that stays": "Where a text is longer than the model, the start token stays in front of what is left "
    "of it. The harness's HF model cuts it off with the rest and reads one more token of the text instead.",
    "pieces": "An ending longer than the model is scored in pieces. The harness's HF model refuses it by an assertion, "
    "so the questions that have one are left out of the comparison.",
    "ties": "Endings of equal log-likelihood share the credit. The harness gives it to the first of them, which in "
    "BLiMP is always the right one.",
}


def ours(name: str, run: Path, which: str, data: Path, limit: int, device: str) -> tuple[list, dict]:
    """(questions, scores) of accuracy.evaluate on a copy of the run with precision=fp32."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        (copy / "checkpoints").mkdir()
        shutil.copy(run / "checkpoints" / f"{which}.safetensors", copy / "checkpoints")
        settings.save(settings.load(run / "config.yaml", ["precision=fp32"]), copy / "config.yaml")
        accuracy.evaluate(copy, [name], checkpoint=which, device=device, data=data, limit=limit)
        parts = [json.loads(line) for line in (copy / "tasks" / f"{name}.jsonl").read_text().splitlines()]
    columns = ("log_p", "noise", "tokens", "greedy")
    return tasks.first(tasks.load(name, data)[1], limit), {c: [x for part in parts for x in part[c]] for c in columns}


def theirs(lm: RunLM, loaded: dict, only: dict, limit: int) -> list[dict]:
    """The harness's samples in the order of our questions; only: {its task: places}, {} for all up to the limit."""
    import lm_eval

    selected = dict(samples=only) if only else dict(limit=limit or None)
    with scoring(lm.model, "fp32"):
        figures = lm_eval.evaluate(lm=lm, task_dict={"tasks": loaded}, bootstrap_iters=0, **selected)
    return [sample for name in loaded for sample in figures["samples"][name]]


def agreement(questions: list, found: dict, samples: list[dict], cut: set) -> dict:
    """Our figures beside the harness's for the same questions in the same order."""
    texts, nats = 0, [0.0, 0.0]  # of whole and of cut texts
    for q, log_p, sample in zip(questions, found["log_p"], samples, strict=True):
        for ending, a, text, (b, _) in zip(
            q.endings, log_p, map(tuple, sample["arguments"]), sample["filtered_resps"], strict=True
        ):
            texts += text != (q.context, ending)
            nats[text in cut] = max(nats[text in cut], abs(a - b))
    out = {"texts": texts, "nats": nats[0]} | ({"nats_of_cut": nats[1]} if cut else {})
    for name, credit in accuracy.credits(questions, found).items():
        if name in samples[0]:
            right = [float(sample[name]) for sample in samples]
            tied = (credit > 0) & (credit < 1)
            out[name] = {"harness": sum(right) / len(right), "ours": float(credit.mean())}
            out[name] |= {"differ": int((~tied & (credit != right)).sum()), "tied": int(tied.sum())}
    if "perplexity" in samples[0]:
        sides = [s["perplexity"] for s in samples], [log_p[0] for log_p in found["log_p"]]
        out["perplexity"] = {k: math.exp(-sum(x) / len(x)) for k, x in zip(("harness", "ours"), sides, strict=True)}
    return out


def compare(name: str, run: Path, which: str, data: Path, limit: int, device: str) -> dict:
    """The agreement on one task, under either rule of cutting. Raises ConfigError."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    config, tokenizer, model, _ = load_run(run, which, device)
    if config.objective != "autoregressive":
        raise settings.ConfigError(f"{run} is a {config.objective} run; the harness scores autoregressive runs")
    lm, (files, task) = RunLM(model, tokenizer, config.model.seq_len), THEIRS[name]
    with tempfile.TemporaryDirectory() as folder:
        hub.lay_out_task(name, data, Path(folder))
        questions, figures = ours(name, run, which, data, limit, device)
        fits, only, place = [], {}, {}
        for i, (q, tokens) in enumerate(zip(questions, figures["tokens"], strict=True)):
            its = task.format(q.group)
            place[its] = place.get(its, -1) + 1
            if max(tokens) <= lm.T:
                fits.append(i)
                only.setdefault(its, []).append(place[its])
        out = {"n": len(fits), "limit": limit, "left_out": len(questions) - len(fits), "tasks": len(only)}
        questions = [questions[i] for i in fits]
        figures = {column: [values[i] for i in fits] if values else [] for column, values in figures.items()}
        with hub.inside(Path(folder)):
            files = Path(lm_eval.__file__).parent / "tasks" / files
            loaded = TaskManager(include_defaults=False, include_path=[files]).load(list(only))["tasks"]
            for rule in ("cut", "kept"):
                lm.keep_start = rule == "kept"
                if rule == "cut" or lm.cut:
                    samples = theirs(lm, loaded, only if out["left_out"] else {}, limit)
                    out[rule] = agreement(questions, figures, samples, lm.cut)
    contexts = {context for context, _ in lm.cut}
    return out | {"cut_questions": sum(q.context in contexts for q in questions)}


def main(argv=None) -> int:
    p = argparse.ArgumentParser(prog="python -m bench.lm_harness.harness", description=__doc__.split("\n")[0])
    p.add_argument("run", type=Path, help="run folder of an autoregressive run")
    p.add_argument("--data", type=Path, required=True, help="folder of the local sets, as evaluate --data takes it")
    p.add_argument("--tasks", default=",".join(THEIRS), help="(%(default)s)")
    p.add_argument("--limit", type=int, default=0, help="first questions of a paradigm, subject or set (0: all)")
    p.add_argument("--checkpoint", choices=("best", "last"), help="(default: best of a finished run, else last)")
    p.add_argument("--device", default="auto")
    p.add_argument("--out", type=Path, default=Path("bench/results/harness.json"), help="other tasks in it are kept")
    a = p.parse_args(argv)
    if ABSENT:
        print(f"error: lm-evaluation-harness is missing ({ABSENT}): pip install lm_eval", file=sys.stderr)
        return 2
    import lm_eval

    run, data, out, names = a.run.resolve(), a.data.resolve(), a.out.resolve(), a.tasks.split(",")
    try:
        if unknown := [name for name in names if name not in THEIRS]:
            raise settings.ConfigError(f"--tasks: there is no task {unknown[0]!r}; the tasks are {', '.join(THEIRS)}")
        selected = checkpoint_of(run, a.checkpoint)
        config, _, _, state = load_run(run, selected, a.device)
        about = {"lm_eval": lm_eval.__version__, "config": settings.config_hash(config), "step": state["step"]}
        about |= {"corpus": state.get("corpus"), "corpus_hash": state["corpus_hash"], "checkpoint": selected}
        about |= {"seq_len": config.model.seq_len, "precision": "fp32"}
        stored = json.loads(out.read_text()) if out.is_file() else {}
        results = stored.get("tasks", {}) if about.items() <= stored.items() else {}
        for name in names:
            results[name] = compare(name, run, selected, data, a.limit, a.device)
            write_json(out, about | {"departures": DEPARTURES, "tasks": results})
            print(name, json.dumps(results[name]))
    except settings.ConfigError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(f"{out}: python -m bench.report draws it into docs/evaluation.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
