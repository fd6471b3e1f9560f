"""Write tables as text, the table of likelihoods (evaluation/table.py) first. Nothing here needs torch."""

import itertools


def aligned(rows: list[list[str]]) -> list[str]:
    """Return the rows as lines of text, their columns two spaces apart."""
    widths = [max(map(len, column)) for column in itertools.zip_longest(*rows, fillvalue="")]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=False)).rstrip() for row in rows]


def cell(row: dict) -> str:
    """Return nats per token with their interval, which is missing for a single sequence."""
    known = None not in (row["low"], row["high"]) and row["high"] > row["low"]
    interval = f" [{row['low']:.3f}, {row['high']:.3f}]" if known else ""
    return f"{'≤ ' if row['kind'] == 'upper bound' else ''}{row['nats_per_token']:.3f}{interval}"


def lines(table: dict) -> list[list[str]]:
    """Return heading and rows of the table: name, kind, sequences, tokens, nats per token, ppl, bits per byte.

    A row of another model has its folder in "of". Where "other_tokens" is set, figures per token are left out.
    """
    out = [["likelihood", "kind", "sequences", "tokens", "nats per token", "ppl", "bits/byte"]]
    whole = table["rows"][0]
    for r in table["rows"]:
        name = f"{r['name']} of {r['sequences']:,} sequences" if r["sequences"] < whole["sequences"] else r["name"]
        name += f", {r['of']}" if "of" in r else ""
        per_token = ["other tokens", ""] if r.get("other_tokens") else [cell(r), f"{r['ppl']:,.2f}"]
        bits = "–" if r["bits_per_byte"] is None else f"{r['bits_per_byte']:.4f}"  # not text
        out.append([name, r["kind"], f"{r['sequences']:,}", f"{r['tokens']:,}", *per_token, bits])
    p = table["published"]
    if p is None:  # rows of one token have none
        return out
    value = f"({p['reweighted_loss']:.3f} [{p['interval'][0]:.3f}, {p['interval'][1]:.3f}])"
    numbers = [f"{whole['sequences']:,}", f"{whole['tokens']:,}", value, f"({p['published_metric']:,.2f})", "none"]
    return [*out, ["published metric", "not a likelihood", *numbers]]
