"""Finished runs read from their folders and from a kept compare.json."""

import json
import shutil

import pytest

from tdlm_fast import compare
from tdlm_fast import config as settings
from tdlm_fast.comparison import records, report
from tdlm_fast.runs.files import figures as figures_of

from .conftest import copy_of

pytestmark = pytest.mark.slow


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
    record = json.loads((out / "compare.json").read_text())
    whole = [a | {"runs": [records.read(out / run["folder"]) for run in a["runs"]]} for a in record["arms"]]
    file = tmp_path / "compare.json"
    del record["sha256"]
    file.write_text(json.dumps(record | {"arms": whole}, indent=2))
    assert file.stat().st_size > 2 * (out / "compare.json").stat().st_size
    assert compare.main(["--from", str(file), "--out", str(tmp_path / "again")]) == 0
    for name in ("compare.json", "report.html", "report.md"):
        assert (tmp_path / "again" / name).read_text() == (out / name).read_text(), name
    rounded = json.loads(json.dumps(whole), parse_float=lambda digits: float(f"{float(digits):.7g}"))
    assert report.markdown(record | {"arms": rounded}, "t") == report.markdown(record, "t")
    less, more = (arms[0]["runs"][0]["evaluations"][1] for arms in (record["arms"], whole))
    assert less["published"].keys() < more["published"].keys() and less["valid"].keys() < more["valid"].keys()


def test_a_kept_comparison_stands_for_its_runs(done, tmp_path, capsys):
    """compare.json is enough: the report is drawn from it, and further runs are added to it."""
    out, _ = done
    copy = tmp_path / "alone" / "compare.json"
    copy.parent.mkdir()
    shutil.copy(out / "compare.json", copy)
    assert compare.main(["--from", str(copy), "--out", str(tmp_path / "same")]) == 0
    for name in ("compare.json", "report.html", "report.md"):
        assert (tmp_path / "same" / name).read_text() == (out / name).read_text(), name
    arm = copy_of(out / "autoregressive-seed42", tmp_path / "arm", **{"model.dropout": 0.0})
    more = ["--from", str(copy), str(arm), "--out", str(tmp_path / "more"), "--sequences", "0"]
    assert compare.main(more) == 0
    result = json.loads((tmp_path / "more" / "compare.json").read_text())
    assert [a["label"] for a in result["arms"]] == ["diffusion", "autoregressive", "autoregressive dropout=0.0"]
    assert result["claims"] == json.loads(copy.read_text())["claims"]
    capsys.readouterr()
    assert compare.main(["--from", str(copy), str(out / "diffusion-seed43")]) == 2
    assert f"{copy / 'diffusion-seed43'} and {out / 'diffusion-seed43'} are the same run" in capsys.readouterr().err
    none = "is not a compare.json"
    for text, says in (("{", "is damaged"), ("[]", "is damaged"), ("{}", none), ('{"arms": 3}', none)):
        (tmp_path / "bad.json").write_text(text)
        assert compare.main(["--from", str(tmp_path / "bad.json"), str(arm)]) == 2
        error = capsys.readouterr().err
        assert f"error: {tmp_path / 'bad.json'} {says}" in error and error.count("\n") == 1


@pytest.mark.parametrize("damage, says", [
    (lambda r: r["summary"]["test"].update(nats_per_token=float("nan")), "test.nats_per_token is nan"),
    (lambda r: r["summary"]["test"].update(stderr=None), "test.stderr is None"),
    (lambda r: r["summary"].update(seconds=0.0), "summary.seconds is 0"),
    (lambda r: r["summary"].pop("corpus_hash"), "'corpus_hash' is missing"),
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
    del result["sha256"]  # as an older version wrote it
    damage(result["arms"][1]["runs"][1])
    (tmp_path / "bad.json").write_text(json.dumps(result))
    assert compare.main(["--from", str(tmp_path / "bad.json"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"error: {tmp_path / 'bad.json' / 'autoregressive-seed43'} cannot be judged" in error and says in error
    assert error.count("\n") == 1


def test_kept_figures_of_another_split_or_other_weights_are_not_used(done, tmp_path, capsys):
    out, _ = done
    run = copy_of(out / "diffusion-seed42", tmp_path / "run")
    summary, record = (figures_of(run / f"{f}.json") for f in ("summary", "likelihoods"))
    assert records.read(run)["table"] == record and record["key"]["weights"] == summary["weights"]
    key = {name: record["key"][name] for name in ("step", "weights", "corpus")} | {"checkpoint": "best"}
    figures = {"acc": 0.5, "n": 2, "chance": 0.5, "seconds": 1.0}
    for name, wrong in (("split", "valid"), ("weights", "0"), ("step", 3), ("corpus", "0")):
        (run / "likelihoods.json").write_text(json.dumps(record | {"key": record["key"] | {name: wrong}}))
        (run / "tasks.json").write_text(json.dumps({"piqa": {"key": key | {name: wrong}} | figures,
                                                        "mmlu": {"key": key} | figures}))  # fmt: skip
        actual = records.read(run)
        assert actual["table"] is None and "likelihoods.json belongs to other weights" in capsys.readouterr().err
        assert set(actual["tasks"]) == ({"piqa", "mmlu"} if name == "split" else {"mmlu"})
    for name in ("likelihoods.json", "tasks.json"):
        (run / name).write_text("{")
        with pytest.raises(settings.ConfigError, match=f"{name} is damaged"):
            records.read(run)
        (run / name).unlink()
