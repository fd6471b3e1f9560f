"""Our accuracies against the real lm-evaluation-harness, on local files of the sets' formats."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import sharp_model

from bench.docs_tables import harness as tables
from bench.docs_tables import results
from bench.lm_harness import harness, run_lm
from tdlm_fast import train
from tdlm_fast.data.tokenizer import Bytes
from tdlm_fast.evaluation import tasks

pytestmark = pytest.mark.slow

NEEDS = "needs lm-evaluation-harness: pip install lm_eval"
WORDS = "the old river runs by the mill and its miller sleeps; a Müller turns".split(" ")
T = 192  # of the model, bytes


def text(g, least, most):
    return " ".join(g.choice(WORDS, size=g.integers(least, most + 1)))


@pytest.fixture(scope="module")
def sets(corpus, tmp_path_factory):
    """Every set as local files: a text longer than the model in most of them, a tie, an ending that does not fit."""
    folder, g = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    for sub in ("mmlu/test", "blimp", "eval_extra"):
        (folder / sub).mkdir(parents=True)

    def lines(name, rows):
        (folder / name).write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")

    rows = [{
        "ind": i, "activity_label": "Roof [step] removal", "ctx_a": f"{text(g, 1, 50)}. [title] Then  more",
        "ctx_b": text(g, 0, 3), "ctx": "", "split": "val", "split_type": "indomain", "source_id": "x", "label": i % 4,
        "endings": [f"{text(g, 1, 6)}. [sub] {k}" for k in range(4)],
    } for i in range(12)]  # fmt: skip
    rows[1]["endings"] = ["runs.", "runs.", "runs by the old mill.", "turns and turns."]  # label 1
    lines("hellaswag_val.jsonl", rows)
    lines("eval_extra/arc_easy.jsonl", [
        {"query": f"Question: {text(g, 3, 40)}?", "choices": [text(g, 1, 5) for _ in range(3 + i % 3)], "gold": i % 3}
        for i in range(12)
    ])  # fmt: skip
    pairs = [[f"{text(g, 1, 9)}.", f'{text(g, 1, 9)} "so".'] for _ in range(9)]
    pairs[4][1] = "mill " * (T // 5 + 2)
    lines("eval_extra/piqa.jsonl", [
        {"query": f"Question: {text(g, 2, 40)}\n", "choices": pair, "gold": i % 2} for i, pair in enumerate(pairs)
    ])  # fmt: skip
    read = corpus.read_text().splitlines()  # what the run has learnt, so that greedy decoding is right at times
    passages = [*read[:30], "\n\n".join(read[30:35]), f'{text(g, 2, 4)}\n\n"It is a mill.']
    rows = [dict(zip(("context", "continuation"), p.removesuffix(".").rsplit(" ", 1), strict=True)) for p in passages]
    lines("eval_extra/lambada_openai.jsonl", rows)
    for subject in ("high_school_mathematics", "anatomy"):
        with open(folder / f"mmlu/test/{subject}_test.csv", "w", newline="") as f:
            for i in range(7):
                choices = [f"{text(g, 1, 4)}" for _ in range(4)]
                csv.writer(f).writerow([f" {text(g, 1, 25)},\n{i}? ", *choices, "ABCD"[i % 4]])
    rows = [f"{uid}\t{i}\t{text(g, 2, 9)}.\t{text(g, 2, 9)}." for uid in ("wh_island", "causative") for i in range(9)]
    (folder / "blimp/pairs.tsv").write_text("\n".join(["uid\tpair_id\tgood\tbad", *rows]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    keys = (
        f"data.path={corpus} data.tokenizer=bytes data.cache={folder / 'cache'} model.width=32 model.inner=64 "
        f"model.heads=2 model.seq_len={T} train.batch_size=8 train.max_steps=60 eval.every=60 eval.samples=2 "
        f"eval.max_samples=4 eval.probe=0 eval.text=0 optim.lr=1e-2 device=cpu objective=autoregressive "
        f"run.dir={folder / 'run'}"
    )
    assert train.main(["configs/tiny.yaml", *keys.split()]) == 0
    return folder / "run"


def test_the_harness_asks_the_same_and_decides_the_same(run, sets, tmp_path, capsys):
    pytest.importorskip("lm_eval", reason=NEEDS)
    out = tmp_path / "harness.json"
    assert harness.main([str(run), "--data", str(sets), "--out", str(out), "--tasks", "lambada"]) == 0
    assert harness.main([str(run), "--data", str(sets), "--out", str(out), "--tasks", ",".join(
        name for name in harness.THEIRS if name != "lambada"
    )]) == 0  # fmt: skip
    result = json.loads(out.read_text())
    assert set(result["tasks"]) == set(tasks.TASKS) and result["seq_len"] == T and result["lm_eval"][:2] == "0."
    for name, e in result["tasks"].items():
        alike, as_they_cut = e.get("kept", e["cut"]), e["cut"]
        assert alike["texts"] == as_they_cut["texts"] == 0, name
        assert alike["nats"] < 1e-3 and as_they_cut["nats"] < 1e-3, name
        assert alike.get("nats_of_cut", 0.0) < 1e-3 < as_they_cut.get("nats_of_cut", 1.0), name
        assert e["left_out"] == (name == "piqa") and ("kept" in e) == (e["cut_questions"] > 0) == (name != "blimp")
        for metric in {"acc", "acc_norm"} & set(alike):
            figures, ties = alike[metric], int(name == "hellaswag")
            assert figures["differ"] == 0 and figures["tied"] <= ties, (name, metric)
            assert abs(figures["harness"] - figures["ours"]) <= figures["tied"] / e["n"], (name, metric)
            assert 0 < figures["harness"] < 1, (name, metric)
        assert ("acc_norm" in alike) == (name in ("hellaswag", "mmlu_text", "arc_easy", "piqa"))
    sizes = {"hellaswag": 12, "mmlu": 14, "mmlu_text": 14, "arc_easy": 12, "piqa": 8, "lambada": 32, "blimp": 18}
    assert {name: e["n"] for name, e in result["tasks"].items()} == sizes
    word = result["tasks"]["lambada"]["kept"]["perplexity"]
    assert word["harness"] == pytest.approx(word["ours"], rel=1e-4)
    capsys.readouterr()
    assert harness.main([str(run), "--data", str(sets), "--out", str(out), "--tasks", "blimp", "--limit", "4"]) == 0
    second = json.loads(out.read_text())["tasks"]
    assert second["blimp"]["n"] == 8 and second["blimp"]["limit"] == 4 and second["piqa"] == result["tasks"]["piqa"]


def test_texts_are_cut_as_the_harness_cuts_them():
    """RunLM against the harness's own HF model, whose weights, tokens and logits are replaced by ours."""
    pytest.importorskip("lm_eval", reason=NEEDS)
    for name in ("transformers", "accelerate"):
        pytest.importorskip(name, reason=f"the harness's HF model needs {name}")
    from lm_eval.models.huggingface import HFLM

    model, length = sharp_model(257), 24
    lm = run_lm.RunLM(model, Bytes(), length, rows=3)

    class Theirs(HFLM):
        def __init__(self):
            super(HFLM, self).__init__()
            self.backend, self.logits_cache, self.softmax_dtype, self.add_bos_token = "causal", True, None, True
            self.batch_size_per_gpu, self._max_length, self.custom_prefix_token_id = 4, length, 256
            self._device, self.enable_thinking = torch.device("cpu"), False

        def tok_encode(self, string, add_special_tokens=None, **_):
            return lm.tok_encode(string, add_special_tokens)

        def _model_call(self, inps, **_):
            with torch.no_grad():
                return model(inps, causal=True) @ model.head.T

    g = np.random.default_rng(1)
    pairs = [(text(g, 0, 6) + " " * (i % 3 == 0), f" {text(g, 1, 2)}") for i in range(40)]
    pairs += [("the mill", f" {letter}"[i % 2 :]) for i, letter in enumerate("abcdefgh")]  # endings of one token
    pairs += [("", " " * n + "mill") for n in (1, 2, 20)] + [("mill " * 5 + "a", "x" * n) for n in (22, 23, 24)]
    requests = [SimpleNamespace(args=pair) for pair in pairs]
    expected, result = (
        Theirs().loglikelihood(requests, disable_tqdm=True),
        lm.loglikelihood(requests, disable_tqdm=True),
    )
    np.testing.assert_allclose([f[0] for f in result], [e[0] for e in expected], rtol=1e-5)
    assert [f[1] for f in result] == [e[1] for e in expected]
    assert 10 < len(lm.cut) < len(pairs) - 10


def test_without_the_harness_one_line_names_it(run, sets, monkeypatch, capsys):
    monkeypatch.setattr(harness, "ABSENT", "No module named 'lm_eval'")
    capsys.readouterr()
    assert harness.main([str(run), "--data", str(sets)]) == 2
    assert capsys.readouterr().err == (
        "error: lm-evaluation-harness is missing (No module named 'lm_eval'): pip install lm_eval\n"
    )


def test_what_cannot_be_compared_is_named(run, sets, tmp_path, capsys):
    pytest.importorskip("lm_eval", reason=NEEDS)
    out = ["--out", str(tmp_path / "harness.json")]
    diffusion = tmp_path / "diffusion"
    diffusion.mkdir()
    (diffusion / "config.yaml").write_text((run / "config.yaml").read_text().replace("autoregressive", "diffusion"))
    (diffusion / "checkpoints").symlink_to(run / "checkpoints")
    for command, message in (
        ([str(run), "--data", str(sets), "--tasks", "swag"], "there is no task 'swag'"),
        ([str(run), "--data", str(tmp_path), "--tasks", "piqa"], "piqa.jsonl is missing; piqa needs eval_extra"),
        ([str(diffusion), "--data", str(sets), "--tasks", "piqa"], "is a diffusion run"),
        ([str(tmp_path), "--data", str(sets), "--tasks", "piqa"], "is not a run folder"),
    ):
        capsys.readouterr()
        assert harness.main([*command, *out]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "harness.json").exists()


def test_tables_say_what_the_file_holds(monkeypatch, tmp_path):
    figures = {"harness": 0.25, "ours": 0.255, "differ": 3, "tied": 2}
    rule = {"texts": 0, "nats": 2e-5, "nats_of_cut": 3e-5, "acc": figures, "acc_norm": figures | {"differ": 4}}
    hellaswag = dict(n=1000, limit=1000, left_out=1, tasks=1, cut_questions=66, kept=rule)
    hellaswag["cut"] = rule | {"texts": 7, "acc": figures | {"differ": 9}}
    blimp = dict(n=670, limit=10, left_out=0, tasks=67, cut_questions=0, cut={"texts": 0, "nats": 1e-6, "acc": figures})
    about = dict(lm_eval="0.4.13", config="abc", corpus="text", step=1370, seq_len=128, departures={"ties": "share"})
    (tmp_path / "harness.json").write_text(json.dumps(about | {"tasks": {"blimp": blimp, "hellaswag": hellaswag}}))
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    table = tables.agreement()
    assert "| HellaSwag | 1,000 | 25.00, 25.50 | 25.00, 25.50 | 3, 4 | 2 | 3e-05 |" in table
    assert "| BLiMP | 670 | 25.00, 25.50 | – | 3, – | 2 | 1e-06 |" in table and "text differs: 7." in table
    assert "HellaSwag: the first 1,000 and 1 left out" in table and "BLiMP: the first 10 of each of 67." in table
    assert tables.cut().splitlines()[2:] == ["| HellaSwag | 66 of 1,000 | 25.00, 25.50 | 25.00, 25.50 | 9, 4 | 3e-05 |"]
    assert tables.departures() == "- **ties**: share"
