"""Horizontal bars as SVG text, in the colours of tdlm_fast/comparison/svg.py for light and dark pages."""

from html import escape
from typing import NamedTuple

from tdlm_fast.comparison.svg import STYLE, WIDTH

HEIGHT, GAP, LETTER = 15, 4, 6.2  # of a bar, below it, and the width of a letter


class Bar(NamedTuple):
    label: str
    value: float
    text: str  # after the end of the bar
    colour: int
    limit: float = 0.0  # a thin bar inside


def bars(title: str, groups: dict[str, list[Bar]]) -> str:
    """A bar chart as an SVG file. Each group has a heading and a scale of its own, from 0 to its largest value."""
    every = [bar for group in groups.values() for bar in group]
    left = 12 + LETTER * max(len(bar.label) for bar in every)
    after = 12 + LETTER * max(len(bar.text) for bar in every)
    out, y = [f'<text class="t" x="4" y="14">{escape(title)}</text>'], 24
    for heading, group in groups.items():
        out.append(f'<text x="4" y="{y + 12}">{escape(heading)}</text>')
        y, most = y + 18, max(bar.value for bar in group)
        for bar in group:
            width, thin = ((WIDTH - left - after) * v / most for v in (bar.value, bar.limit))
            place = f'x="{left:.1f}" y="{y}" height="{HEIGHT}"'
            faint = ' fill-opacity=".4"' if thin else ""
            out.append(f'<text x="{left - 6:.1f}" y="{y + 11}" text-anchor="end">{escape(bar.label)}</text>')
            out.append(f'<rect {place} width="{width:.1f}" fill="var(--s{bar.colour})"{faint}/>')
            if thin:
                place = f'x="{left:.1f}" y="{y + 4}" height="{HEIGHT - 8}"'
                out.append(f'<rect {place} width="{thin:.1f}" fill="var(--s{bar.colour})"/>')
            out.append(f'<text x="{left + width + 6:.1f}" y="{y + 11}">{escape(bar.text)}</text>')
            y += HEIGHT + GAP
        y += 6
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" role="img">'
    return f"{head}<title>{escape(title)}</title><style>{STYLE}</style>{''.join(out)}</svg>"
