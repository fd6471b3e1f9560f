"""The command `compare`: it trains, judges, reports, and resumes after any interruption."""

import json
import math
import signal
import subprocess
import sys

import pytest
from conftest import torch_free

from tdlm_fast import compare
from tdlm_fast.comparison import budgets, records, runner
from tdlm_fast.runs.checkpoint import peek
from tests.running import HANG_S, holds, wait_until

pytestmark = pytest.mark.slow


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
        "holds", "does not hold", "an artefact of the metric", "undecided", "not comparable",
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


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_stopped_comparison_goes_on(done, tmp_path, start, name):
    """Either signal in the first run: it saves. The same command then ends with the losses of the whole run."""
    out, command = done
    repeated = [str(tmp_path / "out") if c == str(out) else c for c in command] + ["--sequences", "0"]
    repeated[repeated.index("--seeds") + 1] = "1"
    process = start([sys.executable, "-m", "tdlm_fast.compare", *repeated], stderr=subprocess.PIPE)
    wait_until(lambda: holds(tmp_path / "out" / "diffusion-seed42" / "metrics.jsonl", '"step": 4'), process)
    process.send_signal(getattr(signal, name))
    assert "the same command resumes" in process.communicate(timeout=HANG_S)[1] and process.returncode == 130
    assert not (tmp_path / "out" / "report.html").exists()
    summary = json.loads((tmp_path / "out" / "diffusion-seed42" / "summary.json").read_text())
    saved = peek(tmp_path / "out" / "diffusion-seed42" / "checkpoints" / "last.safetensors")
    assert 4 <= summary["steps"] == saved["step"] <= 24 and not summary["finished"]
    if name == "SIGHUP":
        return  # what a stop saved is the same after either signal
    assert compare.main(repeated) == 0
    stopped, whole = (records.read(f / "diffusion-seed42") for f in (tmp_path / "out", out))
    assert stopped["losses"][-1][:3] == whole["losses"][-1][:3]
    assert stopped["summary"]["test"] == whole["summary"]["test"]


def test_from_compares_finished_runs_and_names_what_cannot_be(done, tmp_path, capsys):
    out, _ = done
    runs = [str(out / f"{o}-seed42") for o in ("autoregressive", "diffusion")]
    assert compare.main(["--from", *runs, "--out", str(tmp_path / "out"), "--sequences", "0"]) == 0
    result = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert result["seeds"] == [42] and result["arms"][0]["objective"] == "diffusion"
    capsys.readouterr()
    assert compare.main(["--from", runs[0], str(tmp_path / "absent")]) == 2
    assert "not a run folder" in capsys.readouterr().err
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
    for wrong, message in (
        (["--from", *runs, runs[0]], "are the same run"), (["--from", *runs, "--seeds", "2"], "takes no config"),
        (["--from", *runs, "--sequences", "1"], "0 or at least 2"), (["--from", *runs, "--draws", "0"], "at least 1"),
        (["--from", *runs, "--out", f"{runs[0]}/config.yaml"], "is a file"),
        (["--from", *runs, "--out", f"{runs[0]}/config.yaml/x/y"], f"x/y: {runs[0]}/config.yaml is a file"),
        (["configs/tiny.yaml", "--out", f"{runs[0]}/config.yaml/x"], f"x: {runs[0]}/config.yaml is a file"),
    ):  # fmt: skip
        assert compare.main(wrong) == 2 and message in capsys.readouterr().err


def test_rows_without_a_published_metric_name_the_way_out(done, tmp_path, monkeypatch, capsys):
    out, _ = done
    monkeypatch.setattr("tdlm_fast.evaluation.table.likelihoods", lambda *a, **k: {"published": None})
    runs = [str(out / f"{o}-seed42") for o in ("diffusion", "autoregressive")]
    assert compare.main(["--from", *runs, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"error: {runs[0]}: the rows of its test split" in error and "--sequences 0" in error


def test_ctrl_c_to_the_comparison_alone_reaches_its_run(done, tmp_path, start):
    """kill -INT, as a supervisor sends it: the run saves, and nothing trains on."""
    out, command = done
    repeated = [str(tmp_path / "out") if c == str(out) else c for c in command] + ["train.max_steps=4000"]
    process = start([sys.executable, "-m", "tdlm_fast.compare", *repeated], stderr=subprocess.PIPE)
    wait_until(lambda: holds(tmp_path / "out" / "diffusion-seed42" / "metrics.jsonl", '"step": 4'), process)
    process.send_signal(signal.SIGINT)
    assert "the same command resumes" in process.communicate(timeout=HANG_S)[1] and process.returncode == 130
    summary = json.loads((tmp_path / "out" / "diffusion-seed42" / "summary.json").read_text())
    assert 4 <= summary["steps"] < 4000 and not summary["finished"]


def test_the_claims_of_another_file_are_judged_on_the_same_runs(done, tmp_path):
    """Runs on bytes, of which a token has one: the assumed 4.3 makes diffusion 4.3 times better."""
    source = str(done[0] / "compare.json")
    out = tmp_path / "out"
    command = ["--from", source, "--sequences", "0", "--out", str(out), "--claims", "parameter-golf-1106"]
    assert compare.main(command) == 0
    result, own = (json.loads((f / "compare.json").read_text()) for f in (out, done[0]))
    [claim] = result["claims"]
    assert claim["as_published"]["mean"] > 1 and result["untrained"]["as_published"]["mean"] > 1
    assert claim["right"]["mean"] == pytest.approx(own["claims"][0]["right"]["mean"] / math.log(2), rel=1e-5)
    assert result["published"]["source"].startswith("openai/parameter-golf #1106")
    assert own["published"]["source"].startswith("TDLM v1.2")
    report = (out / "report.md").read_text()
    assert "1.1465 against 1.2244 bits per byte" in report and "Differences in bits per byte" in report
    assert "## Honest likelihoods, theirs and ours" in report and "left-to-right | 1.420 | 1.147 |" in report
    assert "Settled by: three seeds" in report and "Honest likelihoods" not in (done[0] / "report.md").read_text()


def test_a_comparison_is_planned_judged_and_drawn_without_torch(tmp_path):
    assert "usage" in torch_free("compare", "--help")
    assert "did you mean optim.lr?" in torch_free("compare", "configs/tiny.yaml", "optim.lrr=3")
    published = "bench/results/wikitext-2-compare/compare.json"
    assert "an artefact of the metric" in torch_free(
        "compare", "--from", published, "--sequences", "0", "--out", str(tmp_path)
    )
    assert (tmp_path / "report.html").is_file()
