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


def test_the_limits_are_bars(folder, tmp_path):
    svg = tables.limits_picture(folder)
    assert svg.count("<rect") == 2 * (15 + 5)  # for each objective fifteen ops, five of them with a limit
    assert tables.limits_picture(tmp_path / "nowhere") == ""
