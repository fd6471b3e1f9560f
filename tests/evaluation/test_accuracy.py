"""Accuracies from scores whose answer is known, and what is kept of a run."""

import json
import math

import numpy as np
import pytest
import torch

from tdlm_fast import evaluate
from tdlm_fast.data.tokenizer import GPT2, Bytes
from tdlm_fast.evaluation import accuracy, endings, tasks
from tdlm_fast.evaluation.tasks import Question
from tdlm_fast.evaluation.unigram import Unigram
from tdlm_fast.runs import files

from .conftest import HUB, OBJECTIVES, SHARED, score


def summary(model, questions, objective, tokenizer=None, T=64, **kw):
    log_p, noise = score(model, questions, objective, tokenizer, T, **kw)
    rows = endings.rows_of(questions, tokenizer or Bytes(), T)
    ends = np.cumsum([len(q.endings) for q in questions])[:-1]
    columns = {"log_p": log_p.numpy(), "noise": noise.numpy(), "tokens": np.array(rows.lengths)}
    result = {k: [a.tolist() for a in np.split(v, ends)] for k, v in columns.items()}
    return accuracy.summarise(questions, result | {"greedy": []})


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_model_that_knows_the_answer_scores_everything(objective):
    """Letters a to m are likely, the rest are not; right endings are of the former."""
    log_p = torch.full((257,), -20.0)
    log_p[[ord(c) for c in " abcdefghijklm"]] = 0.0
    model = Unigram(log_p.log_softmax(0))
    g = np.random.default_rng(0)

    def text(letters):
        return " " + "".join(g.choice(list(letters), size=9))

    questions = []
    for i in range(60):
        endings = [text("nopqrstuvwxyz") for _ in range(4)]
        endings[i % 4] = text("abcdefghijklm")
        questions.append(Question("", "which", tuple(endings), i % 4))
    out = summary(model, questions, objective)
    assert out["acc"] == out["acc_norm"] == out["acc_token"] == 1.0 and out["gap"] < -100
    wrong = [Question(q.group, q.context, q.endings, (q.gold + 1) % 4) for q in questions]
    assert summary(model, wrong, objective)["acc"] == 0.0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_uniform_model_prefers_short_endings_unless_divided_by_tokens(objective):
    """acc: the fewest tokens. acc_norm: the fewest tokens a character, here the longest. acc_token: chance, by ties."""
    model = Unigram(torch.zeros(257))
    questions = [Question("", "x", (" abcdefg", " ab", " abcd", " éé"), gold) for gold in range(4)]
    right = [summary(model, [q], objective) for q in questions]
    assert [r["acc"] for r in right] == [0.0, 1.0, 0.0, 0.0] == [r["shortest"] for r in right]
    per_character = [(len(e.encode()) / (len(e) - 1)) for e in questions[0].endings]
    assert [r["acc_norm"] for r in right] == [float(i == int(np.argmin(per_character))) for i in range(4)]
    assert [r["acc_token"] for r in right] == [0.25] * 4
    even = [Question("", "x", (" ab", " cd"), 0)]
    assert summary(model, even, objective)["acc"] == 0.5  # a tie earns half


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real sets in ../shared/data")
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_untrained_model_is_at_chance(objective):
    from tdlm_fast.config import Model as Shape
    from tdlm_fast.model import Model

    tokenizer = GPT2()
    model = Model(Shape(width=16, layers=1, heads=2, inner=24, dropout=0.0), vocab=50257).eval()
    for name, limit, chance in (("hellaswag", 100, 0.25), ("blimp", 3, 0.5)):
        questions = tasks.first(tasks.load(name, SHARED)[1], limit)
        out = summary(model, questions, objective, tokenizer, 128, samples=2)
        low, high = out["acc_interval"]
        assert low < chance < high and out["chance"] == chance, (name, out["acc"])


def test_noise_and_halves_by_hand():
    """The second question goes to its right ending with one half of the draws only; the third has three endings."""
    result = {
        "log_p": [[-1.0, -2.0], [-1.0, -1.5], [-3.0, -1.0, -2.0]], "tokens": [[1, 1], [1, 1], [1, 1, 1]],
        "noise": [[0.2, 0.1], [0.4, -0.3], [0.0, 0.1, 0.5]], "greedy": [],
    }  # fmt: skip
    questions = [Question("", "x", (" a",) * n, gold) for n, gold in ((2, 0), (2, 1), (3, 1))]
    out = accuracy.summarise(questions, result)
    assert out["halves_agree"] == pytest.approx(2 / 3) and out["acc"] == pytest.approx(2 / 3)
    assert out["noise"] == pytest.approx(math.sqrt((0.04 + 0.01 + 0.16 + 0.09 + 0.01 + 0.25) / 7))
    assert out["gap"] == pytest.approx(((-2 + 1) + (-1 + 1.5) + (-2.5 + 1)) / 3)
    assert out["chance"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 3) / 3)


def test_a_run_keeps_finished_parts_and_prints_a_table(run, local, monkeypatch, capsys):
    monkeypatch.setattr(accuracy, "PART", 2)
    command = [str(run), "--tasks", ",".join(tasks.TASKS), "--data", str(local), "--json"]
    real, count = accuracy.score_part, []

    def stop(*a, **k):
        count.append(1)
        if len(count) == 5:
            raise KeyboardInterrupt
        return real(*a, **k)

    monkeypatch.setattr(accuracy, "score_part", stop)
    capsys.readouterr()
    assert evaluate.main(command) == 130
    assert set(files.figures(run / "tasks.json")) == {"hellaswag", "mmlu", "mmlu_text", "arc_easy"}
    assert evaluate.main(command) == 0
    assert len(count) == 5 + 2 + 4  # piqa, lambada, and two parts of each paradigm
    first = json.loads(capsys.readouterr().out)
    results = files.figures(run / "tasks.json")
    assert {"run": "run"} | results == first and set(results) == set(tasks.TASKS)
    blimp = results["blimp"]
    assert blimp["n"] == 6 and set(blimp["groups"]) == {"a_first", "b_second"} and blimp["groups"]["a_first"]["n"] == 3
    assert blimp["acc"] == pytest.approx(np.mean([g["acc"] for g in blimp["groups"].values()]))
    assert results["lambada"]["ppl"] == pytest.approx(math.exp(results["lambada"]["nats_per_word"]))
    assert results["piqa"]["samples"] == 16 and "draws" in results["piqa"]["estimator"]

    assert evaluate.main(command) == 0 and len(count) == 11  # nothing again
    file = run / "tasks" / "blimp.jsonl"
    file.write_text(file.read_text()[:-30])  # a line cut short by a power failure
    assert evaluate.main(command) == 0 and len(count) == 12
    assert files.figures(run / "tasks.json")["blimp"]["acc"] == blimp["acc"]
    assert evaluate.main(command) == 0 and len(count) == 12
    sentences = local / "blimp" / "pairs.tsv"
    as_it_was = sentences.read_text()
    sentences.write_text(as_it_was.replace("turns2", "turned"))
    assert as_it_was != sentences.read_text()
    try:
        assert evaluate.main(command) == 0 and len(count) > 12  # another text is asked again
        del count[12:]
    finally:
        sentences.write_text(as_it_was)
    blimp_only = [str(run), "--tasks", "blimp", "--data", str(local)]
    assert evaluate.main([*blimp_only, "--limit", "2"]) == 0 and len(count) == 12  # whole parts from before
    capsys.readouterr()
    assert evaluate.main([*blimp_only, "--samples", "4", "--limit", "2"]) == 0 and len(count) == 14
    assert evaluate.main([*blimp_only, "--samples", "4", "--limit", "2", "--seed", "7"]) == 0 and len(count) == 16
    table = capsys.readouterr().out.splitlines()
    assert any(line.startswith("a_first") for line in table) and table[0].startswith("task  ")
    assert files.figures(run / "tasks.json")["piqa"] == results["piqa"]  # other tasks stay


def test_figures_of_other_weights_are_not_taken_for_these(run, local):
    """The same step of the same config, trained elsewhere or by other code, need not have the same weights."""
    from tdlm_fast.evaluation import table
    from tdlm_fast.runs import checkpoint
    from tdlm_fast.runs.load import load_run

    def figures():
        result = accuracy.evaluate(run, ["blimp"], data=local, samples=4)["blimp"]
        return result["gap"], table.likelihoods(run, sequences=2, draws=2)["rows"][0]["nats_per_token"]

    first = figures()
    kept = run / "tasks" / "blimp.jsonl", run / "likelihoods.json"
    before = [f.stat().st_mtime_ns for f in kept]
    assert figures() == first and [f.stat().st_mtime_ns for f in kept] == before
    _, _, model, state = load_run(run)
    with torch.no_grad():
        model.head.neg_()
    checkpoint.save(run / "checkpoints" / "best.safetensors", model, None, state)
    second = figures()
    assert second[0] != first[0] and second[1] != first[1]


def test_a_run_is_asked_from_the_hub(run, local, hub, monkeypatch, capsys):
    """The answers from repositories are those from local files, so what one has computed serves the other."""
    count, real = [], accuracy.score_part
    monkeypatch.setattr(accuracy, "score_part", lambda *a, **k: count.append(1) or real(*a, **k))
    command = [str(run), "--tasks", ",".join(tasks.TASKS), "--json"]
    capsys.readouterr()
    assert evaluate.main(command) == 0 and len(count) == 8
    result = json.loads(capsys.readouterr().out)
    assert {result[name]["source"] for name in tasks.TASKS} == set(HUB)
    assert evaluate.main([*command, "--data", str(local)]) == 0 and len(count) == 8
    repeated = json.loads(capsys.readouterr().out)
    assert {name: result[name] | {"source": str(local)} for name in tasks.TASKS} == {
        k: repeated[k] for k in tasks.TASKS
    }


def test_parts_that_are_not_utf_8_are_computed_again(tmp_path):
    file = tmp_path / "tasks" / "piqa.jsonl"
    kept = accuracy.Parts(file)
    for key in ("first", "second", "third"):
        kept.add({"key": key, "log_p": [[1.0]]})
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([lines[0], lines[1].replace(b"log_p", b"log_\xff"), b"\xff\xfe\x00", lines[2]]) + b"\n")
    assert set(accuracy.Parts(file).by_key) == {"first", "third"}
