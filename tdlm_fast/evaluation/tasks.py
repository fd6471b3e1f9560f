"""Read evaluation sets as questions: a context, its endings, and which ending is right.

    log p(ending_k | context) for every k; an answer is right where the right ending scores highest     (endings.py)

Texts are those of lm-evaluation-harness 0.4, without examples in the context ("0-shot"):

    hellaswag   "Label: Ctx_a Ctx_b" with brackets removed, four endings         Zellers et al. 2019, validation
    mmlu        subject, question, options A to D, "Answer:"; endings A to D     Hendrycks et al. 2021, test
    mmlu_text   subject, "Question: …", "Answer:"; endings are the options       harness: mmlu_continuation
    arc_easy    "Question: …", "Answer:"; three to five endings                  Clark et al. 2018, test
    piqa        "Question: …", "Answer:"; two endings                            Bisk et al. 2020, validation
    lambada     a passage without its last word; the ending is that word         Paperno et al. 2016, OpenAI's test set
    blimp       no context, a grammatical sentence and an ungrammatical one      Warstadt et al. 2020, 67 paradigms

An ending starts with a space, as in the harness. A set is read from a local folder that holds its files, else from the
Hub through `datasets`; both give the same questions in the same order.
"""

import csv
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..config import ConfigError
from ..data import sources
from ..runs.files import parse

DAMAGED = (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError)  # raised by reading wrong rows


@dataclass(frozen=True)
class Question:
    group: str  # BLiMP's paradigm, MMLU's subject, else ""
    context: str
    endings: tuple[str, ...]  # each with the space before it
    gold: int  # which ending is right


@dataclass(frozen=True)
class Task:
    question: Callable[[dict], Question]  # from a row with the Hub's columns
    files: str  # the files that --data FOLDER must hold
    local: Callable[[Path], Iterator[dict]]  # rows of those files, with the Hub's columns
    hub: tuple[str, str | None, str]  # dataset, config ("": its only one; None: every config is a group), split


def _plain(text: str) -> str:
    """Remove the brackets of HellaSwag's WikiHow part from a text."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _spaced(endings) -> tuple[str, ...]:
    return tuple(" " + e for e in endings)  # not an f-string, which would write None and numbers as text


def hellaswag(row: dict) -> Question:
    context = _plain(row["activity_label"] + ": " + row["ctx_a"] + " " + row["ctx_b"].capitalize())
    return Question("", context, _spaced(_plain(e) for e in row["endings"]), int(row["label"]))


def mmlu(row: dict) -> Question:
    subject = row["subject"]
    about = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
    options = "".join(letter + ". " + text + "\n" for letter, text in zip("ABCD", row["choices"], strict=True))
    return Question(subject, f"{about}{row['question'].strip()}\n{options}Answer:", _spaced("ABCD"), row["answer"])


def mmlu_text(row: dict) -> Question:
    about = f"The following are questions (with answers) about {row['subject'].replace('_', ' ')}.\n\n"
    context = f"{about}Question: {row['question'].strip()}\nAnswer:"
    return Question(row["subject"], context, _spaced(row["choices"]), row["answer"])


def arc_easy(row: dict) -> Question:
    gold = row["choices"]["label"].index(row["answerKey"])
    return Question("", "Question: " + row["question"] + "\nAnswer:", _spaced(row["choices"]["text"]), gold)


def piqa(row: dict) -> Question:
    return Question("", "Question: " + row["goal"] + "\nAnswer:", _spaced((row["sol1"], row["sol2"])), row["label"])


def lambada(row: dict) -> Question:
    context, _, word = row["text"].rpartition(" ")
    return Question("", context, _spaced([word]), 0)


def blimp(row: dict) -> Question:
    return Question(row["UID"], "", _spaced((row["sentence_good"], row["sentence_bad"])), 0)


def _lines(file: Path) -> Iterator[dict]:
    with open(file, encoding="utf-8") as f:
        yield from (parse(line) for line in f if line.strip())


def _hellaswag_rows(folder: Path) -> Iterator[dict]:
    return _lines(folder / "hellaswag_val.jsonl")


def _mmlu_rows(folder: Path) -> Iterator[dict]:
    files = sorted((folder / "mmlu" / "test").glob("*_test.csv"))
    if not files:
        raise FileNotFoundError(f"{folder / 'mmlu' / 'test'} holds no SUBJECT_test.csv")
    for file in files:
        subject = file.name.removesuffix("_test.csv")
        with open(file, encoding="utf-8", newline="") as f:
            for question, *choices, answer in csv.reader(f):
                right = list("ABCD").index(answer)
                yield {"subject": subject, "question": question, "choices": choices, "answer": right}


def _arc_rows(folder: Path) -> Iterator[dict]:
    for row in _lines(folder / "eval_extra" / "arc_easy.jsonl"):
        labels = [str(i) for i in range(len(row["choices"]))]
        choices = {"label": labels, "text": row["choices"]}
        yield {"question": row["query"].removeprefix("Question: "), "choices": choices, "answerKey": str(row["gold"])}


def _piqa_rows(folder: Path) -> Iterator[dict]:
    for row in _lines(folder / "eval_extra" / "piqa.jsonl"):
        goal = row["query"].removeprefix("Question: ").removesuffix("\n")
        yield {"goal": goal, "sol1": row["choices"][0], "sol2": row["choices"][1], "label": row["gold"]}


def _lambada_rows(folder: Path) -> Iterator[dict]:
    for row in _lines(folder / "eval_extra" / "lambada_openai.jsonl"):
        yield {"text": row["context"] + " " + row["continuation"]}


def _blimp_rows(folder: Path) -> Iterator[dict]:
    with open(folder / "blimp" / "pairs.tsv", encoding="utf-8", newline="") as f:
        for row in csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield {"UID": row["uid"], "sentence_good": row["good"], "sentence_bad": row["bad"]}


_MMLU = ("mmlu/test/SUBJECT_test.csv", _mmlu_rows, ("cais/mmlu", "all", "test"))
TASKS = {
    "hellaswag": Task(hellaswag, "hellaswag_val.jsonl", _hellaswag_rows, ("Rowan/hellaswag", "", "validation")),
    "mmlu": Task(mmlu, *_MMLU),
    "mmlu_text": Task(mmlu_text, *_MMLU),
    "arc_easy": Task(arc_easy, "eval_extra/arc_easy.jsonl", _arc_rows, ("allenai/ai2_arc", "ARC-Easy", "test")),
    "piqa": Task(piqa, "eval_extra/piqa.jsonl", _piqa_rows, ("baber/piqa", "", "validation")),
    "lambada": Task(
        lambada, "eval_extra/lambada_openai.jsonl", _lambada_rows, ("EleutherAI/lambada_openai", "default", "test")
    ),
    "blimp": Task(blimp, "blimp/pairs.tsv", _blimp_rows, ("nyu-mll/blimp", None, "train")),
}


def _hub_rows(task: Task) -> Iterator[dict]:
    """Yield rows from the Hub, its cache, or a folder named like the dataset; raises one of DAMAGED or RuntimeError."""
    path, config, split = task.hub
    configs = [config]
    if config is None:
        sources.go_offline_without_hub()
        import datasets  # after the switch above, which it reads

        configs = sorted(datasets.get_dataset_config_names(path))
    for name in configs:
        yield from sources.from_hub(path, name or None, split=split)


def load(name: str, folder: Path | None = None) -> tuple[str, list[Question]]:
    """Return (source, questions) of a task, with groups in the order of their names.

    The source is the folder where it holds the task's files, else the Hub. Raises ConfigError, naming the task and the
    fix, where neither can be read or where a file is damaged.
    """
    if name not in TASKS:
        raise ConfigError(f"--tasks: there is no task {name!r}; the tasks are {', '.join(TASKS)}")
    task, missing = TASKS[name], ""
    if folder is not None:
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--data {folder} is a file; give the folder that holds {task.files}")
        try:
            return str(folder), _questions(task, task.local(folder))
        except FileNotFoundError as e:
            missing = f"{e.filename or e} is missing, and "
        except (*DAMAGED, csv.Error) as e:
            raise ConfigError(f"task {name}: {folder}/{task.files} is damaged ({e!r}); fetch it again") from None
    try:
        return task.hub[0], _questions(task, _hub_rows(task))
    except (*DAMAGED, RuntimeError) as e:  # RuntimeError: the dataset is a script
        why = (str(e) or repr(e)).splitlines()[0]
        fix = f"give --data FOLDER with FOLDER/{task.files} in it, or connect once so that `datasets` caches it"
        raise ConfigError(f"task {name}: {missing}{task.hub[0]} cannot be read from the Hub ({why}); {fix}") from None


def _questions(task: Task, rows: Iterator[dict]) -> list[Question]:
    """Return the questions of rows, by group. Raises one of DAMAGED where there are none, or one cannot be asked."""
    questions, least = [*map(task.question, rows)], 1 if task.question is lambada else 2
    if not questions:
        raise ValueError("no questions")
    for i, q in enumerate(questions, 1):
        if len(q.endings) < least or not all(map(str.strip, q.endings)):
            raise ValueError(f"question {i} needs {least} or more endings, each with text")
        if not isinstance(q.gold, int) or not 0 <= q.gold < len(q.endings):
            raise ValueError(f"question {i} has {len(q.endings)} endings, and the right one is {q.gold!r}")
        "".join((q.context, *q.endings)).encode()  # UnicodeEncodeError is a ValueError
    return sorted(questions, key=lambda q: q.group)


def first(questions: list[Question], limit: int) -> list[Question]:
    """Return the first `limit` questions of every group (0: all)."""
    groups = itertools.groupby(questions, lambda q: q.group)  # they stand group by group
    return [q for _, group in groups for q in itertools.islice(group, limit or None)]
