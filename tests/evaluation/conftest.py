"""Questions, their scores, and evaluation sets as the Hub and as local files hold them."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

from bench.lm_harness.hub import inside, lay_out
from tdlm_fast import train
from tdlm_fast.data.tokenizer import Bytes
from tdlm_fast.evaluation import endings, tasks
from tdlm_fast.evaluation.tasks import Question

SHARED = Path(os.environ.get("TDLM_FAST_DATA", Path(__file__).parents[3] / "shared" / "data"))
OBJECTIVES = ("autoregressive", "diffusion")
# Rows of each set as the Hub has them: {repository: {config: rows}}, and the columns' types from the datasets' cards.
# Configs and splits that no task reads are there too, as on the Hub, and configs are in no order.
BLIMP = [
    {"sentence_good": f"The mills turn{i}.", "sentence_bad": f"The mills turns{i}.", "field": "syntax",
     "linguistics_term": "t", "UID": uid, "simple_LM_method": True, "one_prefix_method": False,
     "two_prefix_method": False, "lexically_identical": False, "pair_id": i}
    for uid in ("a_first", "b_second") for i in range(3)
]  # fmt: skip
MMLU = {"question": " How many? ", "subject": "high_school_maths", "choices": ["1", "2", "3, or\n4", "5"], "answer": 1}
ARC = {"id": "x", "question": "Which?", "choices": {"text": ["ice", "fire", "air"], "label": ["1", "2", "3"]},
       "answerKey": "3"}  # fmt: skip
HUB = {
    "Rowan/hellaswag": {"default": [{
        "ind": 4, "activity_label": "Making tea", "ctx_a": "A  pot [step] boils.", "ctx_b": "the woman",
        "endings": ["pours it. [title] Then drinks", "eats the pot.", "sings [x] low.", "é sleeps."],
        "ctx": "unused", "source_id": "s", "split": "val", "split_type": "indomain", "label": "2",
    }]},
    "cais/mmlu": {"abstract_algebra": [MMLU | {"question": "another"}], "all": [MMLU]},
    "allenai/ai2_arc": {"ARC-Challenge": [ARC | {"question": "another"}], "ARC-Easy": [ARC]},
    "baber/piqa": {"default": [{"goal": "Boil water", "sol1": "Heat it.", "sol2": "Cool it.", "label": 0}]},
    "EleutherAI/lambada_openai": {
        "de": [{"text": "der alte Müller"}], "default": [{"text": "the old\n\nmiller sleeps by the river"}]
    },
    "nyu-mll/blimp": {uid: [r for r in BLIMP if r["UID"] == uid] for uid in ("b_second", "a_first")},
}  # fmt: skip


def columns_of(repo):
    from datasets import ClassLabel, Features, Sequence, Value

    text, texts, yes = Value("string"), Sequence(Value("string")), Value("bool")
    return Features({
        "Rowan/hellaswag": {"ind": Value("int32")} | dict.fromkeys(
            ("activity_label", "ctx_a", "ctx_b", "ctx", "source_id", "split", "split_type", "label"), text
        ) | {"endings": texts},
        "cais/mmlu": {"question": text, "subject": text, "choices": texts, "answer": ClassLabel(names=list("ABCD"))},
        "allenai/ai2_arc": dict.fromkeys(("id", "question", "answerKey"), text)
        | {"choices": Sequence({"text": text, "label": text})},
        "baber/piqa": dict.fromkeys(("goal", "sol1", "sol2"), text) | {"label": ClassLabel(names=["0", "1"])},
        "EleutherAI/lambada_openai": {"text": text},
        "nyu-mll/blimp": {k: text if isinstance(v, str) else yes for k, v in BLIMP[0].items()}
        | {"pair_id": Value("int32")},
    }[repo])  # fmt: skip


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """A folder that holds HUB as `datasets` finds it on the Hub; the split that a task reads, and another one."""
    from datasets import Dataset

    folder = tmp_path_factory.mktemp("hub")
    for task in tasks.TASKS.values():
        repo, _, split = task.hub
        tables = {c: Dataset.from_list(rows, features=columns_of(repo)) for c, rows in HUB[repo].items()}
        other = "test" if split == "train" else "train"
        lay_out(folder, repo, {c: {other: rows.select([0, 0]), split: rows} for c, rows in tables.items()})
    return folder


@pytest.fixture
def hub(repositories):
    """The current folder holds the repositories: `datasets` itself reads them, and nothing of it is replaced."""
    with inside(repositories):
        yield


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The rows of HUB as local files."""
    folder = tmp_path_factory.mktemp("sets")
    for sub in ("mmlu/test", "blimp", "eval_extra"):
        (folder / sub).mkdir(parents=True)

    def lines(name, rows):
        (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    rows = [r | {"label": int(r["label"])} for r in HUB["Rowan/hellaswag"]["default"]]
    lines("hellaswag_val.jsonl", rows)
    lines("eval_extra/arc_easy.jsonl", [{"query": "Question: Which?", "choices": ["ice", "fire", "air"], "gold": 2}])
    lines("eval_extra/piqa.jsonl", [
        {"query": "Question: Boil water\n", "choices": ["Heat it.", "Cool it."], "gold": 0}
    ])  # fmt: skip
    lines("eval_extra/lambada_openai.jsonl", [
        {"context": "the old\n\nmiller sleeps by the", "continuation": "river"}
    ])  # fmt: skip
    with open(folder / "mmlu/test/high_school_maths_test.csv", "w", newline="") as f:
        csv.writer(f).writerow([" How many? ", "1", "2", "3, or\n4", "5", "B"])
    pairs = [f"{r['UID']}\t{r['pair_id']}\t{r['sentence_good']}\t{r['sentence_bad']}" for r in BLIMP]
    (folder / "blimp/pairs.tsv").write_text("\n".join(["uid\tpair_id\tgood\tbad", *pairs]) + "\n")
    return folder


WORDS = "the old river runs by a mill and its miller sleeps".split()


def questions_of(n, endings=4, seed=0, group="", words=3, context=8):
    g = np.random.default_rng(seed)

    def text(k):
        return " ".join(g.choice(WORDS, size=k))

    return [
        Question(group, text(g.integers(0, context)) + "  " * (i % 5 == 0), tuple(f" {text(g.integers(1, words + 1))}"
                 for _ in range(endings - i % 2)), i % (endings - 1))
        for i in range(n)
    ]  # fmt: skip


def score(model, questions, objective, tokenizer=None, T=64, **kw):
    rows = endings.rows_of(questions, tokenizer or Bytes(), T)
    kw = {"samples": 16, "start_token_id": (tokenizer or Bytes()).start_token_id} | kw
    return endings.log_likelihoods(model, objective, rows, **kw)


@pytest.fixture
def run(tiny, tmp_path):
    assert train.main(["configs/tiny.yaml", *tiny, "train.max_steps=2", "eval.probe=0", "eval.text=0"]) == 0
    return tmp_path / "run"
