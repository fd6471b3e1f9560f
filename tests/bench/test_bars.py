"""Bars read back, and the first figures of README."""

import json
import re

import pytest

from bench.docs_tables import cpu, results
from bench.docs_tables.bars import Bar, bars

pytestmark = pytest.mark.docs

RECT = r'<rect x="([\d.]+)" y="(\d+)" height="(\d+)" width="([\d.]+)" fill="var\(--s(\d)\)"'


def test_a_bar_is_as_long_as_its_value_says():
    groups = {"first": [Bar("one", 10.0, "10 ms", 1), Bar("a longer name", 40.0, "40 ms, 4×", 7)],
              "second": [Bar("one", 3.0, "3 MB", 1, limit=1.5)]}  # fmt: skip
    svg = bars("times & sizes", groups)
    result = [tuple(map(float, m)) for m in re.findall(RECT, svg)]
    short, long, other, limit = result
    assert short[3] == pytest.approx(long[3] / 4, abs=0.1) and other[3] == long[3]  # a scale for each group
    assert limit[3] == pytest.approx(other[3] / 2, abs=0.1)
    assert other[1] < limit[1] and limit[1] + limit[2] < other[1] + other[2]  # inside it
    assert [f[4] for f in result] == [1, 7, 1, 1] and 'fill-opacity=".4"' in svg
    for text, bar in (("10 ms", short), ("40 ms, 4×", long), ("3 MB", other)):
        x = float(re.search(rf'<text x="([\d.]+)"[^>]*>{text}</text>', svg)[1])
        assert x == pytest.approx(bar[0] + bar[3] + 6, abs=0.2) and x + 5.9 * len(text) < 420
    assert "times &amp; sizes" in svg and "prefers-color-scheme:dark" in svg


def test_the_first_figures_of_readme_are_those_of_the_files():
    step, memory = {}, {}
    for objective in results.OBJECTIVES:
        sides = json.loads((results.RESULTS / f"step-cpu-{objective}.json").read_text())["sides"]
        for name in ("plain, bf16", "plain, compiled, bf16"):
            step[objective, name] = sides[name]["step_ms"] / sides["ours"]["step_ms"]
            memory[objective, name] = sides[name]["peak_mb"] / sides["ours"]["peak_mb"]
    lines = [line for line in cpu.headline().splitlines() if line.startswith("- ")]
    ratios = (step, "plain, bf16"), (step, "plain, compiled, bf16"), (memory, "plain, bf16")
    for line, (ratio, name) in zip(lines, ratios, strict=True):
        assert ("memory" in line) == (ratio is memory) and ("torch.compile" in line) == ("compiled" in name)
        assert re.findall(r"\d+\.\d", line) == [f"{ratio[o, name]:.1f}" for o in results.OBJECTIVES]
    svg = cpu.step_picture()
    assert len(re.findall(RECT, svg)) == 9 and "2 x86_64 threads with AVX-512 BF16" in svg
    assert f"{step['diffusion', 'plain, compiled, bf16']:.1f}×" in svg
