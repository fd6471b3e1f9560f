"""A whole comparison at a small setting: trained, judged, reported, resumed, and nothing but the objective differs."""

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from tdlm_fast import check, compare, statistics, table
from tdlm_fast import config as settings
from tdlm_fast.comparison import arms, budgets, figures, judge, records, report, runner
from tdlm_fast.training import session, step, trainer

SMALL = ["train.max_steps=24", "train.log_every=4", "train.save_every=8", "eval.every=12", "eval.probe=4",
         "eval.early=2", "eval.text=0"]  # fmt: skip


def without_folder(tiny):
    return [t for t in tiny if not t.startswith("run.dir=")]


@pytest.fixture(scope="module")
def done(corpus, tmp_path_factory):
    """The folder of a comparison of two seeds, its config keys, and what it printed."""
    folder = tmp_path_factory.mktemp("compare")
    keys = [
        f"data.path={corpus}", "data.tokenizer=bytes", f"data.cache={folder / 'cache'}", "model.width=16",
        "model.inner=24", "model.heads=2", "model.seq_len=32", "train.batch_size=16", "eval.samples=2",
        "eval.max_samples=4", "optim.lr=3e-3", "device=cpu", *SMALL,
    ]  # fmt: skip
    command = ["configs/tiny.yaml", *keys, "--seeds", "2", "--out", str(folder / "out")]
    command += ["--sequences", "3", "--draws", "2"]
    assert compare.main(command) == 0
    return folder / "out", command


def test_it_trains_judges_and_reports(done):
    out, _ = done
    result = json.loads((out / "compare.json").read_text())
    assert [a["label"] for a in result["arms"]] == ["diffusion", "autoregressive"] and result["seeds"] == [42, 43]
    for arm in result["arms"]:
        for run in arm["runs"]:
            assert [e["step"] for e in run["evaluations"]] == [0, 2, 12, 24]
            assert all(e["published"]["published_metric"] > 1 for e in run["evaluations"])
            assert all(len(e["diagnostics"]["grad_norm"]) == 10 for e in run["evaluations"])
            assert run["evaluations"][0]["loss_tokens"] == 0 < run["evaluations"][1]["loss_tokens"]
    assert all("equal" in line and "DIFFERENT" not in line for line in result["alike"]) and len(result["alike"]) == 2
    zero = result["untrained"]
    assert abs(zero["right"]["mean"]) < 0.1 < 0.5 < zero["as_published"]["mean"]  # better with no learning at all
    assert {c["verdict"] for c in result["claims"]} <= {
        "holds", "does not hold", "an artefact of the metric", "undecided",
    }  # fmt: skip
    assert [r["ledger"] for r in result["ledgers"]] == list(budgets.LEDGERS)


def test_the_same_command_runs_nothing_again(done, monkeypatch, capsys):
    out, command = done
    before = {f: f.stat().st_mtime_ns for f in out.glob("*/*") if f.parent.name != "figures"}
    monkeypatch.setattr(runner.subprocess, "Popen", lambda *a, **k: pytest.fail("a finished run was trained again"))
    monkeypatch.setattr(
        "tdlm_fast.evaluation.published_metric.both", lambda *a, **k: pytest.fail("a finished table was made again")
    )
    page = (out / "report.html").read_text()
    assert compare.main(command) == 0
    assert {f: f.stat().st_mtime_ns for f in before} == before
    assert (out / "report.html").read_text() == page


def test_a_stopped_comparison_goes_on(done, tmp_path):
    """SIGTERM in the first run: it saves; the same command then ends with the losses of the run never stopped."""
    out, command = done
    again = [str(tmp_path / "out") if c == str(out) else c for c in command] + ["--sequences", "0"]
    again[again.index("--seeds") + 1] = "1"
    process = subprocess.Popen([sys.executable, "-m", "tdlm_fast.compare", *again], stderr=subprocess.PIPE, text=True)
    metrics, deadline = tmp_path / "out" / "diffusion-seed42" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and '"step": 4' in metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    assert "the same command goes on" in process.communicate(timeout=120)[1] and process.returncode == 130
    assert not (tmp_path / "out" / "report.html").exists()
    assert compare.main(again) == 0
    stopped, whole = (records.read(f / "diffusion-seed42") for f in (tmp_path / "out", out))
    assert stopped["losses"][-1][:3] == whole["losses"][-1][:3]
    assert stopped["summary"]["test"] == whole["summary"]["test"]


class _Page(HTMLParser):
    VOID = {"meta", "path", "rect", "circle"}

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_stands_alone(done):
    out, _ = done
    text = (out / "report.html").read_text()
    page = _Page()
    page.feed(text)
    assert not page.open
    names = {t for t, _ in page.tags}
    assert names.isdisjoint({"script", "link", "img", "iframe"}) and "url(" not in text and "@import" not in text
    ids = {a.get("id") for _, a in page.tags}
    links = [v for _, a in page.tags for k, v in a.items() if k in ("src", "href")]
    assert len(links) >= 6 and all(v[0] == "#" and v[1:] in ids for v in links)
    assert "prefers-color-scheme:dark" in text and 'name="viewport"' in text
    result = json.loads((out / "compare.json").read_text())
    said = "".join(page.text)
    for claim in result["claims"]:
        assert claim["claim"] in said and claim["verdict"] in said
    assert len([t for t, _ in page.tags if t == "svg"]) >= 18 and "nan" not in said.lower()
    markdown = (out / "report.md").read_text()
    for name in re.findall(r"\]\((figures/[^)]+)\)", markdown):
        assert (out / name).is_file(), name
    assert report.paragraph(result) in markdown and report.paragraph(result) in said.replace("\n", " ")


def test_from_compares_finished_runs_and_names_what_cannot_be(done, tmp_path, capsys):
    out, _ = done
    runs = [str(out / f"{o}-seed42") for o in ("autoregressive", "diffusion")]
    assert compare.main(["--from", *runs, "--out", str(tmp_path / "out"), "--sequences", "0"]) == 0
    result = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert result["seeds"] == [42] and result["arms"][0]["objective"] == "diffusion"
    capsys.readouterr()
    assert compare.main(["--from", runs[0], str(tmp_path / "absent")]) == 2
    assert "no run folder" in capsys.readouterr().err
    assert compare.main(["--from", runs[0]]) == 2 and "two runs" in capsys.readouterr().err
    assert compare.main(["configs/tiny.yaml", "seed=3"]) == 2 and "use --seeds" in capsys.readouterr().err
    assert compare.main(["configs/tiny.yaml", "optim.lrr=3"]) == 2 and "optim.lr" in capsys.readouterr().err
    one = [str(out / f"autoregressive-seed{s}") for s in (42, 43)]
    assert compare.main(["--from", *one, "--out", str(tmp_path / "one"), "--sequences", "0"]) == 0
    assert "one objective only" in (tmp_path / "one" / "report.md").read_text()
    two = [str(out / "diffusion-seed42"), str(out / "autoregressive-seed43")]
    assert compare.main(["--from", *two, "--out", str(tmp_path / "two"), "--sequences", "0"]) == 0
    assert "have no seed that both objectives" in (tmp_path / "two" / "report.md").read_text()
    capsys.readouterr()
    for wrong, says in (
        (["--from", *runs, runs[0]], "are the same run"), (["--from", *runs, "--seeds", "2"], "takes no config"),
        (["--from", *runs, "--sequences", "1"], "0 or at least 2"), (["--from", *runs, "--draws", "0"], "at least 1"),
        (["--from", *runs, "--out", f"{runs[0]}/config.yaml"], "is a file"),
        (["--from", *runs, "--out", f"{runs[0]}/config.yaml/x/y"], f"x/y: {runs[0]}/config.yaml is a file"),
        (["configs/tiny.yaml", "--out", f"{runs[0]}/config.yaml/x"], f"x: {runs[0]}/config.yaml is a file"),
    ):  # fmt: skip
        assert compare.main(wrong) == 2 and says in capsys.readouterr().err


def test_a_run_without_evaluations_is_named(done, tmp_path, capsys):
    out, _ = done
    run = copy_of(out / "diffusion-seed42", tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    for text in ("", "".join(line for line in lines if "valid" not in line)):
        (run / "metrics.jsonl").write_text(text)
        capsys.readouterr()
        assert compare.main(["--from", str(run), str(out / "autoregressive-seed42"), "--sequences", "0"]) == 2
        error = capsys.readouterr().err
        assert f"error: {run / 'metrics.jsonl'} holds no evaluation" in error and error.count("\n") == 1


def test_a_comparison_keeps_what_its_report_needs(done, tmp_path):
    """Less than the folders of its runs hold; a compare.json that holds all of it makes the same report."""
    out, _ = done
    kept = json.loads((out / "compare.json").read_text())
    whole = [a | {"runs": [records.read(out / run["folder"]) for run in a["runs"]]} for a in kept["arms"]]
    file = tmp_path / "compare.json"
    file.write_text(json.dumps(kept | {"arms": whole}, indent=2))
    assert file.stat().st_size > 2 * (out / "compare.json").stat().st_size
    assert compare.main(["--from", str(file), "--out", str(tmp_path / "again")]) == 0
    for name in ("compare.json", "report.html", "report.md"):
        assert (tmp_path / "again" / name).read_text() == (out / name).read_text(), name
    assert report.markdown(kept | {"arms": whole}, "t") == report.markdown(kept, "t")
    less, more = (arms[0]["runs"][0]["evaluations"][1] for arms in (kept["arms"], whole))
    assert less["published"].keys() < more["published"].keys() and less["valid"].keys() < more["valid"].keys()


def test_a_kept_comparison_stands_for_its_runs(done, tmp_path, capsys):
    """With compare.json alone, as where somebody published no more, it is drawn again and takes further runs."""
    out, _ = done
    alone = tmp_path / "alone" / "compare.json"
    alone.parent.mkdir()
    shutil.copy(out / "compare.json", alone)
    assert compare.main(["--from", str(alone), "--out", str(tmp_path / "same")]) == 0
    for name in ("compare.json", "report.html", "report.md"):
        assert (tmp_path / "same" / name).read_text() == (out / name).read_text(), name
    arm = copy_of(out / "autoregressive-seed42", tmp_path / "arm", **{"model.dropout": 0.0})
    more = ["--from", str(alone), str(arm), "--out", str(tmp_path / "more"), "--sequences", "0"]
    assert compare.main(more) == 0
    result = json.loads((tmp_path / "more" / "compare.json").read_text())
    assert [a["label"] for a in result["arms"]] == ["diffusion", "autoregressive", "autoregressive dropout=0.0"]
    assert result["claims"] == json.loads(alone.read_text())["claims"]
    capsys.readouterr()
    assert compare.main(["--from", str(alone), str(out / "diffusion-seed43")]) == 2
    assert f"{alone / 'diffusion-seed43'} and {out / 'diffusion-seed43'} are the same run" in capsys.readouterr().err
    none = "is no compare.json"
    for text, says in (("{", "is damaged"), ("[]", "is damaged"), ("{}", none), ('{"arms": 3}', none)):
        (tmp_path / "bad.json").write_text(text)
        assert compare.main(["--from", str(tmp_path / "bad.json"), str(arm)]) == 2
        error = capsys.readouterr().err
        assert f"error: {tmp_path / 'bad.json'} {says}" in error and error.count("\n") == 1


@pytest.mark.parametrize("damage, says", [
    (lambda r: r["summary"]["test"].update(nats_per_token=float("nan")), "test.nats_per_token is nan"),
    (lambda r: r["summary"]["test"].update(stderr=None), "test.stderr is None"),
    (lambda r: r["summary"].update(seconds=0.0), "summary.seconds is 0"),
    (lambda r: r["evaluations"].clear(), "list index out of range"),
    (lambda r: r["evaluations"][1]["valid"].pop("stderr"), "'stderr' is missing"),
    (lambda r: r["table"]["rows"][0].pop("low"), "'low' is missing"),
    (lambda r: r["table"].pop("levels"), "'levels' is missing"),
    (lambda r: r["table"]["published"].update(reweighted_loss="x"), "reweighted_loss of the table is 'x'"),
    (lambda r: r.update(tasks={"mmlu": {"n": 3}}), "'acc' is missing"),
])  # fmt: skip
def test_figures_that_cannot_be_judged_are_named(done, tmp_path, capsys, damage, says):
    out, _ = done
    result = json.loads((out / "compare.json").read_text())
    damage(result["arms"][1]["runs"][1])
    (tmp_path / "bad.json").write_text(json.dumps(result))
    assert compare.main(["--from", str(tmp_path / "bad.json"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"error: {tmp_path / 'bad.json' / 'autoregressive-seed43'} cannot be judged" in error and says in error
    assert error.count("\n") == 1


def test_control_arms_stand_in_for_the_first_of_their_objective(done):
    """On the seeds that both have; the first pair beside it on the same seeds."""
    runs = records.recorded(done[0] / "compare.json")
    d, a = ({r["config"]["seed"]: r for r in runs if r["config"]["objective"] == o} for o in arms.OBJECTIVES)
    better = json.loads(json.dumps(d[43]))
    better["config"]["loss_weight"] = "uniform"
    better["table"]["rows"][0] |= {"nats_per_token": 0.5, "low": 0.4, "high": 0.6}
    worse = json.loads(json.dumps(a[42]))
    worse["config"]["model.dropout"] = 0.0
    worse["table"]["rows"][0]["nats_per_token"] = 90.0
    other = json.loads(json.dumps(a[42]))
    other["config"] |= {"model.dropout": 0.3, "seed": 7}  # a seed that no diffusion run has
    grouped = arms.arms_of([*runs, better, worse, other])
    found = {c["label"]: c for c in judge.controls(grouped)}
    assert list(found) == ["diffusion loss_weight=uniform", "autoregressive dropout=0.0"]
    first, second = found.values()
    assert (first["seeds"], second["seeds"]) == ([43], [42])
    test = {c["id"]: c for c in first["claims"]}["test"]
    exact = a[43]["table"]["rows"][0]["nats_per_token"]
    assert test["right"].mean == pytest.approx(exact - 0.5) and test["verdict"] in ("holds", "does not hold")
    assert first["first"].mean == pytest.approx(exact - d[43]["table"]["rows"][0]["nats_per_token"])
    bound = d[42]["table"]["rows"][0]["nats_per_token"]
    assert {c["id"]: c for c in second["claims"]}["test"]["right"].mean == pytest.approx(90.0 - bound)
    assert {c["kind"] for c in first["claims"]} == {"loss"}


def copy_of(run: Path, folder: Path, **changed) -> Path:
    """A copy of a finished run whose config and summary say otherwise: key=value, or key_=value for the summary's."""
    shutil.copytree(run, folder)
    config = settings.load(run / "config.yaml", [f"{k}={v}" for k, v in changed.items() if not k.endswith("_")])
    settings.save(config, folder / "config.yaml")
    summary = json.loads((run / "summary.json").read_text())
    summary |= {k[:-1]: v for k, v in changed.items() if k.endswith("_")}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_runs_of_other_tokens_are_not_compared(done, tmp_path, capsys):
    out, _ = done
    d, a = (out / f"{o}-seed42" for o in arms.OBJECTIVES)
    for name, changed, says in (
        ("layout", {"data.layout": "packed"}, "data.layout is paragraphs, packed"),
        ("length", {"model.seq_len": 16}, "model.seq_len is 32, 16"),
        ("tokenizer", {"data.tokenizer": "gpt2"}, "data.tokenizer is bytes, gpt2"),
        ("text", {"corpus_hash_": "0", "corpus_": "other"}, "other, not the same"),
    ):
        other = copy_of(a, tmp_path / name, **changed)
        assert compare.main(["--from", str(d), str(other), "--sequences", "0", "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert "not scored on the same tokens" in error and says in error and not (tmp_path / "out").exists()


def test_what_is_not_alike_is_said_first(done, tmp_path):
    """Each of the four findings by itself, and the sentence that opens the report."""
    out, _ = done
    d, a = (records.read(out / f"{o}-seed42") for o in arms.OBJECTIVES)
    assert "DIFFERENT" not in arms.alike([(d, a)])[0]
    first = {"evaluations": [a["evaluations"][0] | {"initial_weights": "0"}, *a["evaluations"][1:]]}
    for other, says in (
        ({"config": a["config"] | {"optim.lr": 1.0}}, "settings apart from the objective DIFFERENT: optim.lr"),
        ({"summary": a["summary"] | {"corpus_hash": "0"}}, "text DIFFERENT"), (first, "first step DIFFERENT"),
        ({"evaluations": [*a["evaluations"][:-1], a["evaluations"][-1] | {"batch": "0"}]}, "3 evaluations DIFFERENT"),
    ):  # fmt: skip
        said = arms.alike([(d, a | other)])[0]
        assert says in said and said.count("DIFFERENT") == 1
    assert "batches before 3 evaluations equal" in arms.alike([(d, a)])[0]
    for run in (d, a):  # as runs of before batches were recorded
        run["evaluations"] = [{k: v for k, v in e.items() if k != "batch"} for e in run["evaluations"]]
    assert "logged steps equal" in arms.alike([(d, a)])[0]
    more = a | {"losses": [(s, loss, n + (s == 12), *rest) for s, loss, n, *rest in a["losses"]]}
    assert "logged steps DIFFERENT" in arms.alike([(d, more)])[0]
    for run in (d, a):  # whose rows are all full, so that their number says nothing
        run["config"] = run["config"] | {"data.layout": "packed"}
    assert "batches not recorded" in arms.alike([(d, a)])[0]
    other = copy_of(out / "autoregressive-seed42", tmp_path / "other", **{"optim.lr": 1e-3})
    runs = ["--from", str(out / "diffusion-seed42"), str(other)]
    assert compare.main([*runs, "--sequences", "0", "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "NOT alike" in text and "DIFFERENT: optim.lr" in text and "alike in everything" not in text
    judged = json.loads((tmp_path / "out" / "compare.json").read_text())["claims"]
    reason = "the runs were not alike: seed 42: settings apart from the objective DIFFERENT: optim.lr"
    assert {(c["verdict"], c["reason"]) for c in judged} == {("undecided", reason)}
    whole = (out / "report.md").read_text()
    assert "alike in everything but the objective" in whole and "not the published experiment" in whole
    assert "data.tokenizer bytes instead of gpt2" in whole


def test_a_finished_run_of_other_settings_is_refused(done, corpus, tmp_path, capsys):
    out, command = done
    before = (out / "compare.json").read_text()
    for other, says in (
        ("optim.lr=1e-2", "optim.lr was 0.003, now 0.01"),
        ("model.layers=3", "model.layers was 2, now 3"),
        (f"data.path={tmp_path / 'text'}", "was trained on another text"),
    ):
        (tmp_path / "text").write_text("another text altogether\n" * 400)
        capsys.readouterr()
        assert compare.main([*command[:-8], other, *command[-8:]]) == 2
        error = capsys.readouterr().err
        assert says in error and "--out" in error
    assert (out / "compare.json").read_text() == before
    shutil.copytree(corpus, tmp_path / "same") if corpus.is_dir() else shutil.copy(corpus, tmp_path / "same")
    assert compare.main([*command[:-8], f"data.path={tmp_path / 'same'}", *command[-8:]]) == 0  # the text is the same


def test_kept_figures_of_another_split_or_other_weights_are_not_used(done, tmp_path, capsys):
    out, _ = done
    run = copy_of(out / "diffusion-seed42", tmp_path / "run")
    summary, kept = (json.loads((run / f"{f}.json").read_text()) for f in ("summary", "likelihoods"))
    assert records.read(run)["table"] == kept and kept["key"]["weights"] == summary["weights"]
    key = {name: kept["key"][name] for name in ("step", "weights", "corpus")} | {"checkpoint": "best"}
    figures = {"acc": 0.5, "n": 2, "chance": 0.5, "seconds": 1.0}
    for name, wrong in (("split", "valid"), ("weights", "0"), ("step", 3), ("corpus", "0")):
        (run / "likelihoods.json").write_text(json.dumps(kept | {"key": kept["key"] | {name: wrong}}))
        (run / "tasks.json").write_text(json.dumps({"piqa": {"key": key | {name: wrong}} | figures,
                                                        "mmlu": {"key": key} | figures}))  # fmt: skip
        found = records.read(run)
        assert found["table"] is None and "likelihoods.json is of other weights" in capsys.readouterr().err
        assert set(found["tasks"]) == ({"piqa", "mmlu"} if name == "split" else {"mmlu"})
    for name in ("likelihoods.json", "tasks.json"):
        (run / name).write_text("{")
        with pytest.raises(settings.ConfigError, match=f"{name} is damaged"):
            records.read(run)
        (run / name).unlink()


def test_an_arm_that_is_another_is_refused(tmp_path, capsys):
    arm = Path("configs/controls/ar-more-decay.yaml")
    same = tmp_path / arm.name
    same.write_text(arm.read_text().replace("weight_decay: 1.0", "weight_decay: 0.5"))
    command = ["configs/tiny.yaml", "--out", str(tmp_path / "out"), "--arms", str(arm)]
    assert compare.main([*command, str(same)]) == 2 and "the same name as another arm" in capsys.readouterr().err
    assert compare.main([command[0], "optim.weight_decay=0.2", *command[1:]]) == 2
    assert "ar-more-decay.yaml has the same settings with these keys" in capsys.readouterr().err


def arm(objective, *evaluations, seed=1):
    """Evaluations (step, nats, loss tokens, seconds) of a made-up run."""
    run = {
        "config": {"seed": seed, "train.batch_size": 2, "model.seq_len": 8, "model.layers": 1, "model.width": 4},
        "summary": {"parameters_by_part": {"blocks": 10, "head": 20}}, "losses": [],
        "evaluations": [
            {"step": s, "tokens": 16 * s, "loss_tokens": k, "seconds": t}
            | {"valid": {"nats_per_token": n, "stderr": 0.03}}
            for s, n, k, t in evaluations
        ],
    }  # fmt: skip
    return {"label": objective, "objective": objective, "runs": [run]}


def test_ledgers_stop_both_at_what_both_reached():
    d = arm("diffusion", (0, 9.0, 0, 0.0), (10, 7.0, 80, 5.0), (20, 6.0, 160, 10.0))
    a = arm("autoregressive", (0, 9.0, 0, 0.0), (10, 5.0, 160, 20.0), (20, 4.0, 320, 40.0))
    pair = d["runs"][0], a["runs"][0]
    rows = {row["ledger"]: row for row in budgets.ledgers([pair])}

    def row(name):
        return tuple(rows[name][k] for k in ("budget", "diffusion", "autoregressive"))

    assert row("optimizer steps") == (20, 6.0, 4.0)
    assert row("loss-bearing tokens") == (160, 6.0, 5.0)
    assert row("seconds of training") == (10.0, 6.0, 7.0)  # half way between 9 and 5
    places = 16 * (6 * 10 + 12 * 1 * 4 * 8)
    budget = 20 * places + 6 * 20 * 160
    at = (budget - (10 * places + 6 * 20 * 160)) / (10 * places + 6 * 20 * 160)
    assert row("training FLOPs") == (budget, 6.0, pytest.approx(5.0 - at))
    half = 1.96 * math.hypot(0.03, 0.03) + statistics.ONE_SEED
    ahead = rows["seconds of training"]["difference"]
    assert (ahead.mean, ahead.low, ahead.high) == pytest.approx((1.0, 1 - half, 1 + half))
    shown = report.ledger_table({"ledgers": [rows["seconds of training"] | {"difference": vars(ahead)}]})
    assert shown[1][-3:] == ["6.000", "7.000", "+1.000 [+0.867,\u00a0+1.133]"]
    e = arm("diffusion", (0, 9.0, 0, 0.0), (20, 6.4, 160, 10.0), seed=2)["runs"][0]
    b = arm("autoregressive", (0, 9.0, 0, 0.0), (20, 4.2, 320, 40.0), seed=2)["runs"][0]
    two = budgets.ledgers([pair, (e, b)])[0]  # optimizer steps
    assert two["diffusion"] == pytest.approx(6.2) and two["difference"].mean == pytest.approx(-2.1)
    assert two["difference"].high == pytest.approx(-2.1 + 12.706 * 0.1)  # Student's t over the two differences
    b["evaluations"][1]["loss_tokens"] = None  # as older runs
    assert [row["ledger"] for row in budgets.ledgers([pair, (e, b)])] == ["optimizer steps", "seconds of training"]


def test_the_text_follows_the_figures(done):
    """Signs, sides and orders of the report, by figures that are turned round."""
    out, _ = done
    result = json.loads((out / "compare.json").read_text())
    test = next(c for c in result["claims"] if c["id"] == "test")
    first = figures.first_arms(result)
    base = next(r for r in first["diffusion"]["runs"][0]["table"]["rows"] if r["name"] == "unigram baseline")
    for sign, winner, exact, side in (
        (-1, "diffusion's bound is behind", "behind", "above"), (1, "diffusion is ahead", "ahead of", "below"),
    ):  # fmt: skip
        test["right"] = {"mean": 0.5 * sign, "low": 0.5 * sign - 0.1, "high": 0.5 * sign + 0.1}
        test["exact"] = {"mean": 0.25 * sign, "low": 0.25 * sign - 0.1, "high": 0.25 * sign + 0.1}
        base["nats_per_token"] = 5.0 + 3.0 * sign
        text = report.paragraph(result)
        assert f"{winner} by 0.500 nats" in text and f"is 0.250 nats {exact} autoregressive" in text
        assert text.count(f" {side} it") == 2
    zero = result["untrained"]
    zero |= {k: {"mean": m, "low": m - 0.1, "high": m + 0.1} for k, m in (("as_published", 1.8), ("one_scale", 0.3),
                                                                        ("right", -0.2))}  # fmt: skip
    for mean in (0.05, -0.05):  # an interval that holds 0 tells no side
        for key in ("right", "exact"):
            test[key] = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}
        text = report.paragraph(result)
        assert "the interval of the difference holds 0" in text and "is not told from that of autoregressive" in text
        assert "diffusion is ahead" not in text and "is behind" not in text
    assert "6.05 times better. With the published metric for both, the ratio is 1.35; on likelihood it is 0.82" in text
    zero["as_published"]["low"] = -0.1
    assert "times better" not in report.paragraph(result)
    run = first["diffusion"]["runs"][0]
    for r in first["diffusion"]["runs"]:
        r["table"]["levels"] |= {k: [float(i) for i in range(10)] for k in ("loss", "grad_norm")}
    rows = [row for row in report.level_table(result) if row[0] == "diffusion"]
    assert [row[1].split(",")[0] for row in rows] == ["low", "medium", "high"]
    assert [row[2] for row in rows] == ["1.000", "4.500", "8.000"]
    band = figures._band(first["diffusion"], 0, lambda e: e["seconds"], lambda e: e["valid"]["nats_per_token"])
    seconds, nats = (
        [[f(e) for e in r["evaluations"]] for r in first["diffusion"]["runs"]]
        for f in (lambda e: e["seconds"], lambda e: e["valid"]["nats_per_token"])
    )
    assert band.low == [min(pair) for pair in zip(*nats, strict=True)] != band.high
    assert band.high == [max(pair) for pair in zip(*nats, strict=True)]
    assert band.x == [sum(pair) / 2 for pair in zip(*seconds, strict=True)]
    training = figures._training(first["diffusion"], 0, 4, 1)
    assert training.x[-1] == sum(r["losses"][-1][4] for r in first["diffusion"]["runs"]) / 2
    for e in run["evaluations"]:
        e["diagnostics"]["loss"] = [float(i) for i in range(10)]
    maps = figures._heat_maps(first["diffusion"])["heat-diffusion-loss"]
    places = {name: float(y) for y, name in re.findall(r'<text [^>]*y="([\d.]+)"[^>]*>(\d+–\d+ %)<', maps)}
    assert places["90–100 %"] < places["0–10 %"]  # most corrupted on top


def test_tables_of_the_evaluation_sets():
    e = {"n": 20, "acc": 0.5, "acc_interval": [0.4, 0.6], "acc_norm": None, "chance": 0.25, "shortest": 0.6,
         "gap": -0.25, "seconds": 3.0, "limit": 20}  # fmt: skip
    groups = [{"b": {"n": 10, "acc": x, "acc_interval": [0.0, 1.0]}, "a": {"n": 10, "acc": y, "acc_interval": [0, 1]}}
              for x, y in ((0.9, 0.2), (0.5, 0.4))]  # fmt: skip
    blimp = [e | {"limit": 0, "groups": g} for g in groups]
    both = [
        {"objective": o, "runs": [{"tasks": None, "config": {"seed": 1}}, {"tasks": t, "config": {"seed": 2}}]}
        for o, t in zip(arms.OBJECTIVES, ({"piqa": e, "blimp": blimp[0]}, {"blimp": blimp[1]}), strict=True)
    ]
    rows = report.task_table({"arms": both})
    assert rows[1] == ["piqa", "20 (limited)", "diffusion, seed 2", "50.0 [40.0,\u00a060.0]", "–", "25.0", "60.0",
                       "-0.250", "3"]  # fmt: skip
    assert [(row[0], row[1], row[2]) for row in rows[2:]] == [
        ("blimp", "20", "diffusion, seed 2"), ("blimp", "20", "autoregressive, seed 2"),
    ]  # fmt: skip
    paradigms = report.paradigm_table({"arms": both})
    assert paradigms[0][2:4] == ["diffusion, acc %", "autoregressive, acc %"]
    assert [(row[0], row[-1]) for row in paradigms[1:]] == [("a", "-20.0"), ("b", "+40.0")]
    assert paradigms[2][2].startswith("90.0") and paradigms[2][3].startswith("50.0")


def test_ctrl_c_to_the_comparison_alone_reaches_its_run(done, tmp_path):
    """kill -INT, as a supervisor sends it: the run saves, and nothing trains on."""
    out, command = done
    again = [str(tmp_path / "out") if c == str(out) else c for c in command] + ["train.max_steps=4000"]
    process = subprocess.Popen([sys.executable, "-m", "tdlm_fast.compare", *again], stderr=subprocess.PIPE, text=True)
    metrics, deadline = tmp_path / "out" / "diffusion-seed42" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and '"step": 4' in metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert "the same command goes on" in process.communicate(timeout=120)[1] and process.returncode == 130
    summary = json.loads((tmp_path / "out" / "diffusion-seed42" / "summary.json").read_text())
    assert 4 <= summary["steps"] < 4000 and not summary["finished"]


def test_only_the_objective_differs(tiny, tmp_path, monkeypatch):
    """What the two trainings really see: weights before the first step, and every batch."""
    seen = {}
    real = step.train_step
    for objective in arms.OBJECTIVES:
        log = seen[objective] = []

        def spy(model, optimizer, loss_of, split, config, log=log, **kw):
            if not log:
                log.append(trainer.weights_hash(model))
                log.append([(g["lr"], g["betas"], g["weight_decay"]) for g in optimizer.param_groups])

            def loss(model, x0, **rest):
                log.append((x0.clone(), None if rest["valid"] is None else rest["valid"].clone()))
                return loss_of(model, x0, **rest)

            return real(model, optimizer, loss, split, config, **kw)

        monkeypatch.setattr(step, "train_step", spy)
        keys = [*without_folder(tiny), *SMALL, f"objective={objective}"]
        session.train(settings.load("configs/tiny.yaml", keys), tmp_path / objective, resume=False)
    a, b = seen["diffusion"], seen["autoregressive"]
    assert a[0] == b[0] and a[1] == b[1] and len(a) == len(b) == 26
    for (x, valid), (y, other) in zip(a[2:], b[2:], strict=True):
        assert torch.equal(x, y) and torch.equal(valid, other)
    assert not torch.equal(a[2][0], a[3][0])


def test_diagnostics_do_not_move_training(tiny, tmp_path):
    hashes = set()
    for probe in (0, 4):
        keys = [*without_folder(tiny), *SMALL, f"eval.probe={probe}", f"eval.published={probe}", "train.max_steps=13"]
        session.train(settings.load("configs/tiny.yaml", keys), tmp_path / str(probe), resume=False)
        lines = map(json.loads, (tmp_path / str(probe) / "metrics.jsonl").read_text().splitlines())
        hashes.add(tuple(e["loss"] for e in lines if "loss" in e))
    assert len(hashes) == 1


def test_flops_are_the_count_of_their_products(done, references):
    """Against PyTorch's own counter on the plain model: forward and backward are three times the forward."""
    from torch.utils.flop_counter import FlopCounterMode

    from tdlm_fast.runs.load import load_run

    out, _ = done
    run = records.read(out / "autoregressive-seed42")
    model = load_run(out / "autoregressive-seed42", "last", "cpu")[2]
    x = torch.randint(0, 256, (16, 32))
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(x, causal=False) @ model.head.T
    # Norms have parameters but no product: 6 x 16 a norm and place.
    assert budgets.flops(run, 1, 512) == pytest.approx(3 * counter.get_total_flops() + 6 * 512 * 4 * 16)
    assert budgets.flops(run, 1, None) is None


CONTROLS = {
    "ar-input-masking": {"objective", "noise.input_masking"}, "ar-no-dropout": {"objective", "model.dropout"},
    "ar-more-decay": {"objective", "optim.weight_decay"}, "diffusion-uniform": {"loss_weight"},
    "diffusion-published": {"loss_weight"},
}  # fmt: skip


def test_controls_change_what_their_name_says():
    base = settings.flatten(settings.load("configs/tiny.yaml"))
    assert {f.stem for f in Path("configs/controls").glob("*.yaml")} == set(CONTROLS)
    for name, keys in CONTROLS.items():
        other = settings.flatten(settings.load(f"configs/controls/{name}.yaml"))
        assert {k for k in base if base[k] != other[k]} == keys, name
    assert arms.label(settings.flatten(settings.load("configs/controls/ar-no-dropout.yaml")), base) == (
        "autoregressive dropout=0.0"
    )


def test_next_token_is_compared_with_any_weight_of_diffusion():
    file, configs = Path("configs/controls/diffusion-uniform.yaml"), {}
    for objective in arms.OBJECTIVES:
        keys = runner.keys_of(file, [f"objective={objective}", "loss_weight=published"])
        configs[objective] = settings.flatten(settings.load(file, keys))
    assert [c["loss_weight"] for c in configs.values()] == ["published", "elbo"]
    assert arms.differences(*configs.values()) == ["objective"]
    other = configs["diffusion"] | {"loss_weight": "uniform"}
    assert arms.label(other, configs["diffusion"]) == "diffusion loss_weight=uniform"


def test_check_passes_on_a_run_and_fails_on_a_broken_instrument(done, monkeypatch, capsys):
    out, _ = done
    folder = out / "diffusion-seed42"
    args = [str(folder), "--sequences", "12", "--device", "cpu"]
    assert check.main(args) == 0
    said = capsys.readouterr().out
    assert "all checks passed" in said and "replayed" in said and "FAIL" not in said
    from tdlm_fast.evaluation import likelihood

    real = likelihood.masked_sums
    monkeypatch.setattr(likelihood, "masked_sums", lambda *a, **k: 1.02 * real(*a, **k))
    assert check.main(args) == 1
    assert "FAIL  uniform predictor, diffusion" in capsys.readouterr().out
    monkeypatch.undo()
    metrics = folder / "metrics.jsonl"
    text = metrics.read_text()
    try:
        metrics.write_text(text.replace('"loss_tokens": ', '"loss_tokens": 1', 4))
        assert check.main(args) == 1 and "FAIL  tokens and masks of 24 steps" in capsys.readouterr().out
    finally:
        metrics.write_text(text)
    assert check.main([str(out / "absent")]) == 2


def test_the_table_says_every_likelihood_once(done, capsys):
    out, _ = done
    assert table.main([str(out / "diffusion-seed43"), "--sequences", "3", "--draws", "2", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    for name in ("bound", "left-to-right", "confidence", "unigram baseline", "published metric", "not a likelihood"):
        assert name in said
    kept = json.loads((out / "diffusion-seed43" / "likelihoods.json").read_text())
    bound, exact = kept["per_sequence"]["bound"], kept["per_sequence"]["left-to-right"]
    assert len(bound) == len(exact) == 3 and kept["rows"][0]["nats_per_token"] > 0
    assert kept["uniform_factor"] < 5 / 6
