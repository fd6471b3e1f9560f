"""The files of bench/gpu.sh are drawn. A CPU writes files of the same form, so those are used here."""

import json

import pytest

from bench.docs_tables import gpu as tables
from bench.docs_tables.results import RESULTS

pytestmark = pytest.mark.docs


@pytest.fixture
def folder(tmp_path):
    """The files of gpu.sh with figures of a CPU, and with limits, which only a GPU's profile holds."""
    for objective in tables.OBJECTIVES:
        run = json.loads((RESULTS / f"step-cpu-{objective}.json").read_text())
        for i, row in enumerate(run["profile"][:5]):
            row["limit_ms"] = row["ms"] / (2 + i)
        (tmp_path / f"step-tiny-{objective}.json").write_text(json.dumps(run))
    (tmp_path / "kernels.json").write_text((RESULTS / "kernels-cpu.json").read_text())
    return tmp_path


def cells(text: str, first: str) -> list[str]:
    return [c.strip() for c in next(line for line in text.splitlines() if line.startswith(f"| {first}")).split("|")]


def test_every_measured_figure_has_its_cell(folder):
    text = tables.measured(folder)
    run = json.loads((folder / "step-tiny-diffusion.json").read_text())
    assert f"{run['sides']['ours']['tokens_per_s']:,.0f}" in cells(text, "ours |")
    top = run["profile"][0]
    assert cells(text, f"`{top['op'].removeprefix('tdlm::')}`")[-2] == "50%"
    sides = json.loads((folder / "kernels.json").read_text())["races"]["linear_cross_entropy[tiny]"]["sides"]
    header, row = cells(text, "linear cross entropy"), cells(text, "tiny |")
    assert row[2] == f"{sides['tdlm_fast']['ms'] * 1e3:,.0f}" and row[3] == f"{sides['tdlm_fast']['share']:.0%}"
    at = header.index("PyTorch")
    assert row[at] == f"{sides['PyTorch']['ms'] / sides['tdlm_fast']['ms']:.2f}"
    assert not any("liger" in name for name in header)  # which was absent
    assert cells(text, "tiny, masked half")[at] != row[at]


def test_peak_memory_has_a_column_where_it_was_measured(folder):
    result = json.loads((folder / "kernels.json").read_text())
    assert "peak MB" not in tables.measured(folder)
    for race in result["races"].values():
        race["sides"]["tdlm_fast"]["peak_mb"] = 1234.5
    (folder / "kernels.json").write_text(json.dumps(result))
    text = tables.measured(folder)
    assert cells(text, "linear cross entropy").index("peak MB") == cells(text, "tiny |").index("1,234")


def test_a_part_that_was_cut_off_does_not_disturb_the_others(folder):
    (folder / "kernels.json").unlink()
    run = json.loads((folder / "step-tiny-diffusion.json").read_text())
    (folder / "step-tiny-diffusion.json").write_text(json.dumps({k: v for k, v in run.items() if k != "profile"}))
    text = tables.measured(folder)
    assert "Where the autoregressive step" in text and "Where the diffusion" not in text and "Each op alone" not in text
    (folder / "step-tiny-diffusion.json").unlink()
    assert tables.measured(folder) == "No GPU figure has been measured yet."


def changed(folder, objective: str, change) -> None:
    file = folder / f"step-tiny-{objective}.json"
    run = json.loads(file.read_text())
    change(run)
    file.write_text(json.dumps(run))


def as_paragraphs(run: dict, tokens: float | None = 6000.0) -> None:
    run["overrides"] = [o for o in run["overrides"] if not o.startswith("data.layout=")]
    run["layout"] = "paragraphs"
    if tokens:
        run["sides"]["ours"]["tokens_per_step"] = tokens


def test_the_words_about_padding_are_those_of_the_rows(folder):
    assert "packed rows, without padding" in tables.measured(folder)
    for objective in tables.OBJECTIVES:
        changed(folder, objective, as_paragraphs)
    text = tables.measured(folder)
    assert "a paragraph a row: 6,000 tokens of 8,192 places on average" in text and "without padding" not in text


def test_figures_that_may_count_padding_are_refused(folder):
    changed(folder, "diffusion", as_paragraphs)
    with pytest.raises(ValueError, match="one objective was measured on packed rows"):
        tables.measured(folder)
    changed(folder, "autoregressive", lambda run: as_paragraphs(run, None))
    with pytest.raises(ValueError, match="counts no tokens: measure again"):
        tables.measured(folder)
    changed(folder, "autoregressive", lambda run: run.pop("layout"))  # of an older file, without data.layout=packed
    with pytest.raises(ValueError, match="counts no tokens: measure again"):
        tables.measured(folder)


def test_reserved_memory_has_a_column_where_it_was_measured(folder):
    assert "reserved, MB" not in tables.measured(folder)
    for mb, objective in zip((4321, 1234), tables.OBJECTIVES, strict=True):
        changed(folder, objective, lambda run, mb=mb: run["sides"]["ours"].update(reserved_mb=mb))
    text = tables.measured(folder)
    at = cells(text, "whole step").index("reserved, MB")
    assert cells(text, "ours |")[at] == "4,321" and cells(text, "plain, fp32")[at] == "–"


def test_our_own_step_is_drawn_where_the_peers_were_not_raced(folder):
    text = tables.measured(folder)
    for objective in tables.OBJECTIVES:
        (folder / f"step-tiny-{objective}.json").rename(folder / f"step-ours-{objective}.json")
    assert tables.measured(folder) == text


def test_the_limits_are_bars(folder, tmp_path):
    svg = tables.limits_picture(folder)
    assert svg.count("<rect") == 2 * (15 + 5)  # for each objective fifteen ops, five of them with a limit
    assert tables.limits_picture(tmp_path / "nowhere") == ""
