"""The lines that a model of a sweep should beat."""

import math
import shutil

import pytest

from tdlm_fast.scaling import plan, report, work
from tdlm_fast.scaling.baselines import baselines

pytestmark = pytest.mark.slow


def test_they_are_counted_on_the_tokens_of_the_cells_and_drawn(plan_file, tmp_path):
    out = tmp_path / "out"
    plan_file.write_text(plan_file.read_text().replace("[256, 512]", "[256]"))
    cells = plan.read(plan_file)
    plan.store(cells, out)
    assert baselines(out, cells) == []
    work.work(cells, out)
    (row,) = baselines(out, cells)
    assert row["unique_tokens"] == 256 and row["source"] is None
    assert 0.5 < row["5-gram"] < row["unigram"] < math.log(258)
    found = report.results(cells, out)
    report.write(found, out)
    page = (out / "report.md").read_text()
    assert f"| 256 tokens | {row['unigram']:.3f} | {row['5-gram']:.3f} | – |" in page
    drawn = (out / "figures" / "loss-0.svg").read_text()
    assert drawn.count('class="l d"') == 2  # the line of the 5-gram and its key
    assert all(math.isfinite(c["test"]) and f"{c['test']:.3f}" in page for c in found["curves"])


def test_a_text_that_has_changed_is_named_and_the_report_is_written_without_it(plan_file, tmp_path, corpus):
    own = tmp_path / "text"
    shutil.copytree(corpus, own) if corpus.is_dir() else shutil.copy(corpus, own)
    out = tmp_path / "out"
    plan_file.write_text(plan_file.read_text().replace("[256, 512]", "[256]").replace(str(corpus), str(own)))
    cells = plan.read(plan_file)
    plan.store(cells, out)
    work.work(cells, out)
    for file in [own] if own.is_file() else [f for f in own.rglob("*") if f.is_file()]:
        file.write_text("another text entirely. " * 500)
    (row,) = baselines(out, cells)
    assert set(row) == {"unique_tokens", "missing"} and str(out) not in row["missing"]
    report.write(report.results(cells, out), out)
    assert f"Not scored: {row['missing']}" in (out / "report.md").read_text()
