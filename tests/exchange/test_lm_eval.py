"""`tdlm-fast lm-eval`: both objectives inside the real harness, by task files of our own and without a network."""

import json
import math

import pytest
import yaml

from tdlm_fast import __main__ as entry
from tdlm_fast import lm_eval
from tdlm_fast.evaluation import accuracy, likelihood, tasks
from tdlm_fast.exchange import harness

pytestmark = pytest.mark.slow

NEEDS = "needs lm-evaluation-harness: pip install lm_eval"
ROWS = [
    {"query": "the old river runs", "choices": ["by the mill", "sleeps", "and the mill turns"], "gold": 0},
    {"query": "while the miller", "choices": ["sleeps", "turns by the river while", "mill"], "gold": 1},
    {"query": "the mill turns by", "choices": ["the", "river", "miller runs by the mill"], "gold": 2},
]
TEXTS = ["the old river runs by the mill. " * 5, "the miller sleeps"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A folder of task files, one for each kind of request, and one whose questions are on the Hub."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    local = {"dataset_path": "json", "test_split": "test"}
    rows = local | {"dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
    texts = local | {"dataset_kwargs": {"data_files": {"test": str(folder / "texts.jsonl")}}}
    choice = {"doc_to_text": "{{query}}", "doc_to_choice": "choices", "doc_to_target": "gold"}
    rolling = [{"metric": name} for name in ("byte_perplexity", "bits_per_byte")]
    words = {"until": ["."], "max_gen_toks": 12, "do_sample": False}
    files = {
        "own_choice": rows | choice | {"output_type": "multiple_choice", "metric_list": [{"metric": "acc"}]},
        "own_rolling": texts | {
            "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
            "metric_list": rolling,
        },
        "own_writing": rows | {
            "output_type": "generate_until", "doc_to_text": "{{query}}", "doc_to_target": "{{choices[gold]}}",
            "generation_kwargs": words, "metric_list": [{"metric": "exact_match"}],
        },
        "on_the_hub": choice | {
            "dataset_path": "nobody/no-such-set", "test_split": "test", "output_type": "multiple_choice",
            "metric_list": [{"metric": "acc"}],
        },
    }  # fmt: skip
    for name, task in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name} | task))
    (folder / "cache").mkdir()
    return folder


@pytest.fixture
def harness_(sets, monkeypatch):
    pytest.importorskip("lm_eval", reason=NEEDS)
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", sets / "cache")
    harness.registered.cache_clear()
    import lm_eval.api.registry as registry

    monkeypatch.setattr(registry, "model_registry", type(registry.model_registry)("model"))
    return sets


def asked(capsys, *words) -> dict:
    capsys.readouterr()
    assert entry.main(["lm-eval", *map(str, words), "--device", "cpu", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("objective", ["diffusion", "autoregressive"])
def test_all_kinds_of_tasks_run_and_their_figures_follow_from_our_scores(runs, harness_, objective, capsys):
    names = "own_choice,own_rolling,own_writing"
    figures = asked(capsys, runs[objective], "--tasks", names, "--include", harness_, "--samples", "8")
    results = figures["results"]
    assert (figures["objective"], figures["run"]) == (objective, "run") and set(results) == set(names.split(","))
    scorer = harness.Scorer(runs[objective], device="cpu", samples=8)
    questions = [tasks.Question("", r["query"], tuple(" " + c for c in r["choices"]), r["gold"]) for r in ROWS]
    kw = dict(samples=8, seed=scorer.seed, tokens=512, device="cpu")
    with likelihood.scoring(scorer.model, "fp32"):
        own = accuracy.score_part(scorer.model, scorer.tokenizer, scorer.config, questions, 0, task="own_choice", **kw)
    acc = accuracy.credits(questions, own)["acc"].mean()
    assert results["own_choice"]["acc,none"] == pytest.approx(acc)

    def request(doc, args, task):
        return type("Request", (), {"args": args, "doc_id": doc, "task_name": task})

    rolling = scorer.loglikelihood_rolling([request(i, (t,), "own_rolling") for i, t in enumerate(TEXTS)])
    bits = -sum(rolling) / sum(len(t.encode()) for t in TEXTS) / math.log(2)
    assert results["own_rolling"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5) and bits > 0.1
    how = {"until": ["."], "max_gen_toks": 12, "do_sample": False}
    written = scorer.generate_until([request(i, (r["query"], how), "") for i, r in enumerate(ROWS)])
    right = sum(text == row["choices"][row["gold"]] for text, row in zip(written, ROWS, strict=True))
    assert results["own_writing"]["exact_match,none"] == pytest.approx(right / 3)
    bound = ("lower bound", 8) if objective == "diffusion" else ("exact", 0)
    assert (figures["log_likelihoods"], figures["samples"]) == bound


def test_the_table_and_the_options_of_tasks(runs, harness_, capsys):
    words = [str(runs["diffusion"]), "--tasks", "own_choice", "--include", str(harness_), "--device", "cpu"]
    assert lm_eval.main([*words, "--limit", "2", "--num-fewshot", "1", "--samples", "2"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["task", "documents", "metric", "filter", "value", "standard", "error"]
    assert shown[1].split()[:4] == ["own_choice", "2", "acc", "none"] and "a lower bound, 2 draws" in shown[2]


@pytest.mark.parametrize("words, named", [
    (["--tasks", "own_chioce"], "the harness has no task 'own_chioce'; did you mean own_choice?"),
    (["--tasks", "own_choice,on_the_hub"], "--tasks: on_the_hub cannot be loaded ("),
    (["--tasks", "own_choice", "--include", "none"], "--include none is not a folder"),
])  # fmt: skip
def test_a_wrong_task_is_one_line(runs, harness_, words, named, capsys):
    include = [] if "--include" in words else ["--include", str(harness_)]
    assert lm_eval.main([str(runs["diffusion"]), *words, *include, "--device", "cpu"]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ") and named in last


@pytest.mark.parametrize("words, named", [
    (["--tasks", ","], "--tasks is empty"), (["--tasks", "piqa", "--limit", "-1"], "--limit is -1"),
    (["--tasks", "piqa", "--samples", "5"], "--samples is 5"),
])  # fmt: skip
def test_a_wrong_option_is_one_line(runs, words, named, capsys):
    assert lm_eval.main([str(runs["diffusion"]), *words, "--device", "cpu"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {named}")


def test_the_missing_package_is_one_line(runs, monkeypatch, capsys):
    harness.registered.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.api.model", None)
    assert lm_eval.main([str(runs["diffusion"]), "--tasks", "piqa", "--device", "cpu"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: lm-eval needs EleutherAI's harness (") and err.endswith("pip install lm_eval\n")
