"""Evaluation sets: their texts, from the Hub and from local files, and what cannot be asked."""

import json

import pytest

from bench.lm_harness.hub import inside, lay_out
from tdlm_fast import evaluate
from tdlm_fast.config import ConfigError
from tdlm_fast.evaluation import tasks
from tdlm_fast.evaluation.tasks import Question

from .conftest import HUB, SHARED


def test_the_hub_and_local_files_give_the_questions_that_the_harness_asks(hub, local):
    for name in tasks.TASKS:
        assert tasks.load(name)[1] == tasks.load(name, local)[1], name
    assert tasks.load("hellaswag")[1] == [Question(
        "", "Making tea: A pot boils. The woman",
        (" pours it.. Then drinks", " eats the pot.", " sings low.", " é sleeps."), 2,
    )]  # fmt: skip
    about = "The following are multiple choice questions (with answers) about high school maths.\n\n"
    context = about + "How many?\nA. 1\nB. 2\nC. 3, or\n4\nD. 5\nAnswer:"
    assert tasks.load("mmlu")[1] == [Question("high_school_maths", context, (" A", " B", " C", " D"), 1)]
    about = "The following are questions (with answers) about high school maths.\n\n"
    options = (" 1", " 2", " 3, or\n4", " 5")
    assert tasks.load("mmlu_text")[1] == [
        Question("high_school_maths", f"{about}Question: How many?\nAnswer:", options, 1)
    ]
    assert tasks.load("arc_easy")[1] == [Question("", "Question: Which?\nAnswer:", (" ice", " fire", " air"), 2)]
    assert tasks.load("lambada")[1] == [Question("", "the old\n\nmiller sleeps by the", (" river",), 0)]
    blimp = tasks.load("blimp")[1]
    assert tasks.load("piqa")[1] == [Question("", "Question: Boil water\nAnswer:", (" Heat it.", " Cool it."), 0)]
    assert [q.group for q in blimp] == ["a_first"] * 3 + ["b_second"] * 3
    assert [q.endings[0] for q in tasks.first(blimp, 1)] == [" The mills turn0."] * 2


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real sets in ../shared/data")
def test_the_real_sets_are_complete():
    sizes = {"hellaswag": 10042, "mmlu": 14042, "mmlu_text": 14042, "arc_easy": 2376, "piqa": 1838, "lambada": 5153,
             "blimp": 67000}  # fmt: skip
    for name, size in sizes.items():
        questions = tasks.load(name, SHARED)[1]
        assert len(questions) == size, name
        assert all(0 <= q.gold < len(q.endings) and all(e[0] == " " for e in q.endings) for q in questions), name
        assert len({q.group for q in questions}) == {"blimp": 67, "mmlu": 57, "mmlu_text": 57}.get(name, 1)
        assert all(q.context and q.context == q.context.rstrip() for q in questions) or name in ("blimp", "lambada")


def test_one_error_names_the_task_and_the_fix(run, local, tmp_path, capsys):
    """With no network (conftest.py), and with repositories that cannot be read."""
    with inside(tmp_path):
        capsys.readouterr()
        assert evaluate.main([str(run), "--tasks", "piqa", "--data", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert "error: task piqa: " in error and "piqa.jsonl is missing" in error
        assert "baber/piqa cannot be read from the Hub" in error and "ffline" in error and error.count("\n") == 1
        assert "give --data FOLDER with FOLDER/eval_extra/piqa.jsonl in it" in error
        with pytest.raises(ConfigError, match="task blimp: nyu-mll/blimp cannot be read .*ffline"):
            tasks.load("blimp")
        (tmp_path / "baber/piqa").mkdir(parents=True)
        (tmp_path / "baber/piqa/piqa.py").write_text("")
        with pytest.raises(ConfigError, match="task piqa: .*scripts are no longer supported"):
            tasks.load("piqa")
        from datasets import Dataset

        for repo, config, split in (task.hub for task in tasks.TASKS.values()):
            lay_out(tmp_path, repo, {config or "default": {split: Dataset.from_list([{"some": "column"}])}})
        (tmp_path / "baber/piqa/piqa.py").unlink()
        for file in (tmp_path / "EleutherAI/lambada_openai").rglob("*.parquet"):
            file.write_bytes(file.read_bytes()[:40])
        for name in tasks.TASKS:
            with pytest.raises(ConfigError, match=f"task {name}: .* cannot be read from the Hub .*; give --data"):
                tasks.load(name)
    with pytest.raises(ConfigError, match="no task 'swag'; the tasks are hellaswag"):
        tasks.load("swag")
    (tmp_path / "eval_extra").mkdir()
    (tmp_path / "eval_extra" / "piqa.jsonl").write_text('{"query": "Question: x\\n"}\n')
    with pytest.raises(ConfigError, match="task piqa: .*is damaged"):
        tasks.load("piqa", tmp_path)
    for option in (["--samples", "3"], ["--limit", "-1"]):
        assert evaluate.main([str(run), "--tasks", "piqa", "--data", str(local), *option]) == 2


HELLASWAG = HUB["Rowan/hellaswag"]["default"][0]
ARC_LINE = {"query": "Question: Which?", "choices": ["ice", "fire"], "gold": 1}
PIQA_LINE = {"query": "Question: Boil water\n", "choices": ["Heat it.", "Cool it."], "gold": 0}
LAMBADA_LINE = {"context": "the old", "continuation": "river"}
TSV, CSV = "uid\tpair_id\tgood\tbad\n", "How many?,1,2,3,4,"
DAMAGED = [
    *[(name, "" if name != "blimp" else TSV) for name in tasks.TASKS],
    ("hellaswag", HELLASWAG | {"label": 4}), ("hellaswag", HELLASWAG | {"label": -1}),
    ("hellaswag", HELLASWAG | {"endings": []}), ("hellaswag", HELLASWAG | {"label": 0, "endings": ["pours it."]}),
    ("hellaswag", HELLASWAG | {"ctx_a": None}), ("hellaswag", HELLASWAG | {"ctx_b": None}),
    ("hellaswag", HELLASWAG | {"activity_label": 3}), ("hellaswag", HELLASWAG | {"endings": ["a", "b", None, "d"]}),
    ("hellaswag", HELLASWAG | {"endings": ["a", "b", "[x]", "d"]}), ("hellaswag", [1]),
    ("mmlu", CSV), ("mmlu", CSV + "E"), ("mmlu", "How many?,1,2,3,A"), ("mmlu_text", "How many?,1,A"),
    ("mmlu_text", "How many?,1,2,D"), ("mmlu_text", "How many?,1,,A"),
    ("arc_easy", ARC_LINE | {"gold": 2}), ("arc_easy", ARC_LINE | {"query": None}),
    ("arc_easy", ARC_LINE | {"choices": ["ice", 3]}), ("arc_easy", ARC_LINE | {"choices": ["ice"], "gold": 0}),
    ("piqa", PIQA_LINE | {"gold": 2}), ("piqa", PIQA_LINE | {"gold": None}), ("piqa", PIQA_LINE | {"gold": 1.0}),
    ("piqa", PIQA_LINE | {"choices": ["Heat it."]}), ("piqa", PIQA_LINE | {"choices": ["Heat it.", ""]}),
    ("lambada", LAMBADA_LINE | {"continuation": ""}), ("lambada", LAMBADA_LINE | {"continuation": None}),
    ("lambada", "[" * 100_000), ("lambada", LAMBADA_LINE | {"context": "\ud800"}),
    ("lambada", LAMBADA_LINE | {"context": None}), ("blimp", TSV + "a\t0\tone\n"), ("blimp", TSV + "a\t0\tone\t\n"),
]  # fmt: skip


@pytest.mark.parametrize("name, content", DAMAGED)
def test_a_question_that_cannot_be_asked_is_a_damaged_file(name, content, tmp_path):
    file = tmp_path / tasks.TASKS[name].files.replace("SUBJECT", "maths")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content) + "\n")
    with pytest.raises(ConfigError, match=f"task {name}: .*{tasks.TASKS[name].files} is damaged .*; fetch it again"):
        tasks.load(name, tmp_path)


def test_a_question_of_the_hub_that_cannot_be_asked_is_one_error(monkeypatch):
    from tdlm_fast.data import sources

    for name, repo, changed in (
        ("hellaswag", "Rowan/hellaswag", {"label": ""}), ("hellaswag", "Rowan/hellaswag", {"ctx_b": None}),
        ("mmlu", "cais/mmlu", {"choices": ["1", "2", None, "4"]}), ("mmlu_text", "cais/mmlu", {"answer": 4}),
        ("arc_easy", "allenai/ai2_arc", {"answerKey": "4"}), ("piqa", "baber/piqa", {"label": -1}),
        ("lambada", "EleutherAI/lambada_openai", {"text": "ends in a space "}), ("piqa", "baber/piqa", None),
    ):  # fmt: skip
        row = list(HUB[repo].values())[-1][0]
        monkeypatch.setattr(sources, "from_hub", lambda *a, r=row, c=changed, **k: [] if c is None else [r | c])
        with pytest.raises(ConfigError, match=f"task {name}: {repo} cannot be read from the Hub .*; give --data"):
            tasks.load(name)


def test_a_file_in_place_of_a_folder_and_a_folder_in_place_of_a_file_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--data .*/file is a file; give the folder that holds blimp/pairs.tsv"):
        tasks.load("blimp", tmp_path / "file")
    (tmp_path / "blimp" / "pairs.tsv").mkdir(parents=True)
    (tmp_path / "eval_extra").write_text("")
    for name in ("blimp", "piqa"):
        with pytest.raises(ConfigError, match=f"task {name}: .*{tasks.TASKS[name].files} is damaged"):
            tasks.load(name, tmp_path)
