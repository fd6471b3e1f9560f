"""Tables of docs/claims-bits-per-byte.md: from the claim file parameter-golf-1106, bytes-per-token.json and two
comparisons, on GPT-2's tokens and on bytes."""

import functools
import json
import math
from dataclasses import asdict
from pathlib import Path

from bench.docs_tables.claims import comparison
from bench.docs_tables.results import OBJECTIVES, read, table
from tdlm_fast.comparison import claim_schema, derived, figures, judge, tables
from tdlm_fast.comparison.arms import pairs_of

NAME = Path("parameter-golf-1106")


@functools.cache
def case() -> dict:
    return claim_schema.read(NAME)


@functools.cache
def of_bytes() -> dict:
    """The comparison of the same models on bytes."""
    return read("bytes-compare/compare.json")


def derivation() -> str:
    """Every derived constant of the claim file, with the formula that `check` computes again."""
    rows = [(c.id, f"`{c.formula}`", c.stated) for c in derived.constants(case())]
    return table(("figure", "formula", "value"), *rows)


def vocabularies() -> str:
    """Bytes per token of one text in three vocabularies, beside the implied and the assumed ones."""
    result, constants = read("bytes-per-token.json"), {c.id: c for c in derived.constants(case())}
    names = {256: "bytes", 1024: "the first 1,024 tokens of GPT-2", 50256: "GPT-2"}
    rows = [(names[r["vocabulary"]], result["text"], f"{r['tokens']:,}", f"{r['bytes_per_token']:.3f}")
            for r in result["rows"]]  # fmt: skip
    implied = ("SP-1024", case()["text"].partition(",")[0], "–", f"{constants['bytes per token'].stated} (implied)")
    assumed = ("assumed for SP-1024", "–", "–", f"{case()['figures']['assumed_bytes_per_token']:.3f}")
    return table(("vocabulary", "text", "tokens", "bytes per token"), *rows, implied, assumed)


def ours() -> str:
    """Our runs in bits per byte, with the true bytes of the text and with the assumed ones, and the verdict on each."""
    assumed, rows = case()["figures"]["assumed_bytes_per_token"], []
    results = (("GPT-2", comparison()), ("bytes", of_bytes()))
    for vocabulary, result in results:
        for objective in OBJECTIVES:
            tests = [r["summary"]["test"] for r in figures.first_arms(result)[objective]["runs"]]
            nats, bits = (figures.mean(t[k] for t in tests) for k in ("nats_per_token", "bits_per_byte"))
            bound = "≤ " if tests[0]["samples"] else ""
            per_token = nats / math.log(2)
            cells = (f"{bound}{per_token:.3f}", f"{per_token / bits:.3f}", f"{bound}{bits:.3f}")
            rows.append((f"{objective}, {vocabulary}", *cells, f"{bound}{per_token / assumed:.3f}"))
    head = ("run", "bits per token", "bytes per token", "bits per byte", "bits per byte if a token had 4.3")
    words = []
    for vocabulary, result in results:
        [row] = json.loads(json.dumps(judge.judge(pairs_of(result["arms"]), case=case()), default=asdict))
        published, right = (tables.nats(row[k]) for k in ("as_published", "right"))
        words.append(
            f"- On {vocabulary}, over {tables.seeds_of(result)}: computed as published, diffusion's advantage is "
            f"{published} bits per byte; on likelihood it is {right}. By the rules of every report the claim is "
            f"“{row['verdict']}” there."
        )
    return f"{table(head, *rows)}\n\n" + "\n".join(words)


def beside() -> str:
    """The likelihoods of #1699 beside ours."""
    result = comparison() | {"published": {"beside": case()["beside"]}}
    words = (
        f"Theirs: {case()['beside']['source']}. Ours: `configs/tiny.yaml` on the tokenised WikiText-2, seed 42, 64 "
        "sequences of the test split. Texts, vocabularies, models and programs differ. So only the columns over the "
        "autoregressive model of the same publication may be compared."
    )
    return f"{table(*tables.beside_table(result))}\n\n{words}"


TABLES = {"derivation": derivation, "vocabularies": vocabularies, "ours": ours, "beside": beside}
