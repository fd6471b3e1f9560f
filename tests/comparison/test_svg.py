"""Charts read back: what their marks say is what went in."""

import re

import pytest

from tdlm_fast.comparison import svg


def marks(drawn: str, pattern: str) -> list[tuple[str, ...]]:
    return re.findall(pattern, drawn)


@pytest.mark.parametrize("ylog", [False, True])
@pytest.mark.parametrize("xlog", [False, True])
def test_points_lie_where_the_axes_say(xlog, ylog):
    x, y = [1.0, 10.0, 200.0, 1000.0], [3.0, 5.0, 4.0, 90.0]
    drawn = svg.lines("a", [svg.Series("s", x, y)], "steps", xlog=xlog, ylog=ylog)
    points = [(float(a), float(b)) for a, b in marks(drawn, r'<circle cx="([\d.]+)" cy="([\d.]+)"')]
    assert len(points) == 4
    across = [a for a, _ in points]
    assert across == sorted(across) and across[0] < across[-1]
    up = [-b for _, b in points]  # SVG counts downwards
    assert sorted(range(4), key=lambda i: up[i]) == sorted(range(4), key=lambda i: y[i])
    ticks = marks(drawn, r'y="([\d.]+)" text-anchor="end">([\d.k]+)<')
    value = [float(t.replace("k", "e3")) for _, t in ticks]
    places = [float(p) - 4 for p, _ in ticks]  # the middle of the text
    assert len(value) >= 2 and value == sorted(value) and places == sorted(places, reverse=True)
    if not ylog:  # on the same straight line as the ticks
        slope = (places[-1] - places[0]) / (value[-1] - value[0])
        for (_, b), v in zip(points, y, strict=True):
            assert b == pytest.approx(places[0] + slope * (v - value[0]), abs=0.2)
    path = marks(drawn, r'class="l" stroke="var\(--s0\)" d="(M[^"]*L[^"]*)"')[0]
    assert path == " ".join(f"{'ML'[i > 0]}{a:.1f} {b:.1f}" for i, (a, b) in enumerate(points))


def test_a_band_holds_its_line():
    drawn = svg.lines("a", [svg.Series("s", [0, 1], [2, 3], low=[1, 2.5], high=[4, 3.5])], "x")
    numbers = [float(v) for v in re.findall(r"[\d.]+", marks(drawn, r'class="b"[^>]* d="([^"]*)"')[0])]
    low, high = [numbers[1], numbers[3]], [numbers[7], numbers[5]]  # forth along the low edge, back along the high one
    line = [float(b) for b in marks(drawn, r'<circle cx="[\d.]+" cy="([\d.]+)"')]
    assert all(h < m < b for h, m, b in zip(high, line, low, strict=True))


def test_a_heat_map_is_darker_where_values_are_larger():
    values = [[0.0, 2.0, None], [1.0, 4.0, 3.0]]
    drawn = svg.heat("h", ["a", "b"], ["x", "y", "z"], values)
    cells = marks(drawn, r'x="([\d.]+)" y="([\d.]+)"[^>]*fill-opacity="([\d.]+)"><title>(\w), (\w): (\S+)</title>')
    assert len(cells) == 5  # the unknown one is left blank
    seen = {(row, column): float(v) for *_, row, column, v in cells}
    assert seen == {("a", "x"): 0, ("a", "y"): 2, ("b", "x"): 1, ("b", "y"): 4, ("b", "z"): 3}
    for _, _, opacity, _, _, v in cells:
        assert float(opacity) == pytest.approx(0.05 + 0.95 * float(v) / 4, abs=1e-3)
    place = {(row, column): (float(x), float(y)) for x, y, _, row, column, _ in cells}
    assert place["a", "x"][0] < place["a", "y"][0] and place["a", "x"][1] < place["b", "x"][1]
    scale = [float(o) for o in marks(drawn, r'height="8" fill="[^"]*" fill-opacity="([\d.]+)"/>')]
    assert scale == sorted(scale) and scale[0] == 0.05 and scale[-1] == 1.0
    ends = [(float(x), float(v)) for x, v in marks(drawn, r'<text x="([\d.]+)"[^>]*>(-?[\d.]+)</text>')]
    assert ends[-2:] == sorted(ends[-2:]) and [v for _, v in ends[-2:]] == [0.0, 4.0]
