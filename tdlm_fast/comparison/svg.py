"""Draw line charts and heat maps as SVG text, without a library or a script; CSS variables colour dark and light pages.

A chart is 420 units wide, to be shown at about that many pixels: one in a row on a phone, more on a desktop.
"""

import math
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 420, 270
COLOURS = 8  # --s0 to --s7
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 30, 40
STYLE = """
svg{font:11px system-ui,-apple-system,Segoe UI,sans-serif;--ink:#1f2328;--soft:#656d76;--rule:#d8dee4;
--s0:#c2410c;--s1:#1d4ed8;--s2:#0f766e;--s3:#7c3aed;--s4:#a16207;--s5:#be185d;--s6:#4d7c0f;--s7:#475569;--h0:246,248,250;--h1:29,78,216}
@media (prefers-color-scheme:dark){svg{--ink:#e6edf3;--soft:#9198a1;--rule:#30363d;
--s0:#fb923c;--s1:#60a5fa;--s2:#2dd4bf;--s3:#c4b5fd;--s4:#facc15;--s5:#f472b6;--s6:#a3e635;--s7:#94a3b8;--h0:22,27,34;--h1:96,165,250}}
text{fill:var(--soft)}.t{fill:var(--ink);font-weight:600;font-size:12px}.g{stroke:var(--rule);stroke-width:1}
.l{fill:none;stroke-width:1.8;stroke-linejoin:round}.d{stroke-dasharray:5 3}.b{stroke:none;opacity:.18}
.w{fill:var(--ink)}
"""


@dataclass
class Series:
    label: str
    x: list[float]
    y: list[float]
    low: list[float] = field(default_factory=list)  # the band, where there are several runs
    high: list[float] = field(default_factory=list)
    colour: int = 0
    dashed: bool = False
    points: bool = True


def number(v: float) -> str:
    """Shorten a number for an axis: 1200000 becomes 1.2M."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(v) >= size:
            return f"{v / size:.3g}{unit}"
    return f"{v:.3g}"


def _ticks(low: float, high: float, log: bool) -> list[float]:
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        many = [b * 10.0**p for p in powers for b in (1, 2, 5)]
        inside = [v for v in many if low * 0.999 <= v <= high * 1.001]
        few = [v for v in inside if math.log10(v) % 1 < 1e-9 or math.log10(v) % 1 > 1 - 1e-9]
        return inside if len(inside) <= 6 else few if len(few) >= 2 else inside[:: max(1, len(inside) // 5)]
    raw = (high - low) / 5 or 1.0
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * k for k in (1, 2, 5, 10) if size * k >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round((first + i) * step, 12) for i in range(int((high - first * step) / step + 1e-9) + 1)]


class _Axis:
    def __init__(self, values: list[float], start: float, end: float, log: bool, pad: float = 0.0):
        self.low, self.high = min(values), max(values)
        if self.low == self.high:
            self.low, self.high = (self.low * 0.9, self.high * 1.1) if log else (self.low - 1, self.high + 1)
        if pad and not log:
            self.low, self.high = self.low - pad * (self.high - self.low), self.high + pad * (self.high - self.low)
        if pad and log:
            self.low, self.high = self.low * 0.93, self.high * 1.07
        self.start, self.end, self.log = start, end, log

    def __call__(self, v: float) -> float:
        f = math.log if self.log else float
        return self.start + (f(v) - f(self.low)) / (f(self.high) - f(self.low)) * (self.end - self.start)


def _svg(parts: list[str], title: str, height: float = HEIGHT) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img">'
    title = escape(title)
    return f'{head}<title>{title}</title><text class="t" x="4" y="14">{title}</text>{"".join(parts)}</svg>'


def standalone(svg: str) -> str:
    """Add the style that a chart needs in a file of its own."""
    return svg.replace('role="img">', f'role="img"><style>{STYLE}</style>', 1)


def _path(x: list[float], y: list[float]) -> str:
    return " ".join(f"{'M' if i == 0 else 'L'}{a:.1f} {b:.1f}" for i, (a, b) in enumerate(zip(x, y, strict=True)))


def lines(
    title: str, series: list[Series], xlabel: str, *, xlog: bool = False, ylog: bool = False, zero: bool = False
) -> str:
    """Draw a line chart, "" where no series has a point. xlog puts 0 where 1 is."""
    series = [s for s in series if s.x]
    if not series:
        return ""

    def place(v):
        return max(v, 1) if xlog else v

    xs = [place(v) for s in series for v in s.x]
    ys = [v for s in series for v in [*s.y, *s.low, *s.high]] + ([0.0] if zero else [])
    across = 1 if len(series) > 2 and max(len(s.label) for s in series) > 26 else 2
    rows = math.ceil(len(series) / across)
    height = HEIGHT + 15 * rows
    bottom = HEIGHT - BOTTOM + 6
    X, Y = _Axis(xs, LEFT, WIDTH - RIGHT, xlog), _Axis(ys, bottom, TOP, ylog, 0.04)
    out = []
    for v in _ticks(Y.low, Y.high, Y.log):
        y = Y(v)
        out.append(f'<path class="g" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(v)}</text>')
    for v in _ticks(X.low, X.high, X.log):
        out.append(f'<text x="{X(v):.1f}" y="{bottom + 16}" text-anchor="middle">{number(v)}</text>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{bottom + 31}" text-anchor="middle">{escape(xlabel)}</text>')
    for i, s in enumerate(series):
        colour = f"var(--s{s.colour})"
        x = [X(place(v)) for v in s.x]
        if s.low and s.low != s.high:
            edge = _path(x + x[::-1], [Y(v) for v in s.low] + [Y(v) for v in s.high[::-1]])
            out.append(f'<path class="b" fill="{colour}" d="{edge}Z"/>')
        dash = " d" if s.dashed else ""
        if len(x) > 1:
            out.append(f'<path class="l{dash}" stroke="{colour}" d="{_path(x, [Y(v) for v in s.y])}"/>')
        if s.points or len(x) == 1:
            for a, vx, vy in zip(x, s.x, s.y, strict=True):
                tip = f"<title>{escape(s.label)}: {vy:.4g} at {number(vx)}</title>"
                out.append(f'<circle cx="{a:.1f}" cy="{Y(vy):.1f}" r="2.4" fill="{colour}">{tip}</circle>')
        left, top = LEFT - 44 + (i % across) * 200, HEIGHT + 8 + 15 * (i // across)
        out.append(f'<path class="l{dash}" stroke="{colour}" d="M{left} {top}h18"/>')
        out.append(f'<text x="{left + 24}" y="{top + 4}">{escape(s.label)}</text>')
    return _svg(out, title, height + 4)


def heat(title: str, rows: list[str], columns: list[str], values: list[list[float | None]], ylabel: str = "") -> str:
    """Draw a heat map of values[row][column], None left blank, the first row at the top; "" where there is no value."""
    known = [v for row in values for v in row if v is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    span, label = (high - low) or 1.0, 10 + 6.6 * max(len(r) for r in rows)
    cell_h = min(22.0, max(12.0, 200 / len(rows)))
    cell_w = (WIDTH - RIGHT - label) / len(columns)
    top, out = 34, []
    if ylabel:
        out.append(f'<text x="4" y="28">{escape(ylabel)}</text>')
    for r, (name, row) in enumerate(zip(rows, values, strict=True)):
        y = top + r * cell_h
        out.append(f'<text x="{label - 5}" y="{y + cell_h / 2 + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        for c, v in enumerate(row):
            if v is None:
                continue
            share = (v - low) / span
            place = f'x="{label + c * cell_w:.1f}" y="{y:.1f}" width="{cell_w + 0.3:.1f}" height="{cell_h + 0.3:.1f}"'
            tip = f"<title>{escape(name)}, {escape(columns[c])}: {v:.4g}</title>"
            out.append(f'<rect {place} fill="rgb(var(--h1))" fill-opacity="{0.05 + 0.95 * share:.3f}">{tip}</rect>')
    bottom = top + len(rows) * cell_h
    every = max(1, math.ceil(len(columns) * 34 / (WIDTH - label)))
    for c, name in enumerate(columns):
        if c % every == 0:
            place = f'x="{label + (c + 0.5) * cell_w:.1f}" y="{bottom + 14:.1f}"'
            out.append(f'<text {place} text-anchor="middle">{escape(name)}</text>')
    for i in range(40):
        place = f'x="{label + 40 + i * 3}" y="{bottom + 24:.1f}" width="3.2" height="8"'
        out.append(f'<rect {place} fill="rgb(var(--h1))" fill-opacity="{0.05 + 0.95 * i / 39:.3f}"/>')
    out.append(f'<text x="{label + 35}" y="{bottom + 32:.1f}" text-anchor="end">{low:.3g}</text>')
    out.append(f'<text x="{label + 166}" y="{bottom + 32:.1f}">{high:.3g}</text>')
    return _svg(out, title, bottom + 40)


@dataclass
class Place:
    words: list[str]  # one per line
    tip: str
    share: float = 0.0  # of the darkest colour
    kind: str = "seen"  # "censored": a dashed edge
    hatched: bool = False


def places(
    title: str,
    rows: list[str],
    columns: list[str],
    table: list[list[Place | None]],
    xlabel: str,
    ylabel: str,
    legend: tuple[str, ...],
) -> str:
    """Draw a map of table[row][column] with the words of each place in it, the first row at the top; "" where empty."""
    if not any(place for row in table for place in row):
        return ""
    label, high, top = 12 + 6.6 * max(len(r) for r in rows), 40, 36
    wide = (WIDTH - RIGHT - label) / len(columns)
    out = [f'<text x="4" y="29">{escape(ylabel)}</text>']
    stripe = '<path d="M0 0V7" stroke="var(--soft)" stroke-width="1.6" stroke-opacity=".45"/>'
    shape = 'width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"'
    out.append(f'<defs><pattern id="hatch" {shape}>{stripe}</pattern></defs>')
    for r, (name, row) in enumerate(zip(rows, table, strict=True)):
        y = top + r * high
        out.append(f'<text x="{label - 6:.1f}" y="{y + high / 2 + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        for c, place in enumerate(row):
            if place is None:
                continue
            x = label + c * wide
            box = f'x="{x + 1:.1f}" y="{y + 1}" width="{wide - 2:.1f}" height="{high - 2}" rx="3"'
            edge = ' stroke="var(--soft)" stroke-dasharray="4 3"' if place.kind == "censored" else ""
            opacity = 0.12 + 0.5 * place.share if place.kind == "seen" and place.share else 0
            tip = f"<title>{escape(place.tip)}</title>"
            out.append(f'<rect {box}{edge} fill="rgb(var(--h1))" fill-opacity="{opacity:.3f}">{tip}</rect>')
            if place.hatched:
                out.append(f'<rect class="h" {box} fill="url(#hatch)"/>')
            for i, words in enumerate(place.words):
                line = y + high / 2 + 4 + 14 * (i - (len(place.words) - 1) / 2)
                at = f'x="{x + wide / 2:.1f}" y="{line:.1f}" text-anchor="middle"'
                out.append(f'<text class="w" {at}>{escape(words)}</text>')
    bottom = top + len(rows) * high
    for c, name in enumerate(columns):
        at = f'x="{label + (c + 0.5) * wide:.1f}" y="{bottom + 14}" text-anchor="middle"'
        out.append(f"<text {at}>{escape(name)}</text>")
    out.append(f'<text x="{label + (WIDTH - RIGHT - label) / 2:.1f}" y="{bottom + 30}" text-anchor="middle">')
    out[-1] += f"{escape(xlabel)}</text>"
    out += [f'<text x="4" y="{bottom + 48 + 15 * i}">{escape(text)}</text>' for i, text in enumerate(legend)]
    return _svg(out, title, bottom + 42 + 15 * len(legend))
