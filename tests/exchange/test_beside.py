"""Models of others in the table of a run: the run itself, exported, and a BERT with other tokens."""

import math
import re

import numpy as np
import pytest
from conftest import corpus_of, split_of

from tdlm_fast import table as verb
from tdlm_fast.config import ConfigError
from tdlm_fast.data.tokenizer import Bytes
from tdlm_fast.evaluation import exact_likelihood
from tdlm_fast.evaluation.table import likelihoods
from tdlm_fast.exchange import beside
from tdlm_fast.runs import load

from .test_foreign import bert

pytestmark = pytest.mark.slow
OPTIONS = dict(sequences=3, draws=2, device="cpu", split="test", cut=0)


class Letters:
    """Two letters a token, as far as they go."""

    def encode(self, text: str) -> list[int]:
        return [i % 50 for i, _ in enumerate(text[::2])]


def test_rows_of_other_tokens_hold_the_same_text():
    """Where a row of bytes ends within a character, that character counts neither in its text nor in its bytes."""
    rows = [list(b"the mill"), list("naï".encode())[:-1], list("é".encode())[1:], [*b" ab"]]
    texts = beside.row_texts(split_of(rows, 8), Bytes())
    assert texts == ["the mill", "na", "", " ab"]
    split = beside.in_tokens(texts, Letters())
    assert split.lengths.tolist() == [4, 1, 2] and split.starts.tolist() == [0, 4, 5] and split.bytes == 8 + 2 + 3
    assert split.seq_len == 4 and split.rows(np.array([2]))[0].tolist() == [[0, 1, 0, 0]]


@pytest.mark.parametrize("objective", ["diffusion", "autoregressive"])
def test_an_exported_run_has_the_figures_of_the_run(transformers, runs, exported, objective):
    own = likelihoods(runs[objective], **OPTIONS)["rows"]
    rows, unknown = beside.rows_beside(runs[objective], exported[objective], trust=False, **OPTIONS)
    assert unknown == 0 and len(rows) == len(own) - 2 and not any("other_tokens" in row for row in rows)
    for a, b in zip(own, rows, strict=False):
        assert b["of"] == str(exported[objective])
        for name in ("name", "kind", "sequences", "tokens"):
            assert a[name] == b[name]
        for name in ("nats_per_token", "low", "high", "bits_per_byte"):
            assert b[name] == pytest.approx(a[name], rel=2e-3), (a["name"], name)


def test_an_exported_run_of_the_other_objective_stands_beside_it(transformers, runs, exported, capsys):
    words = ["--sequences", "3", "--draws", "2", "--device", "cpu"]
    folder = exported["autoregressive"]
    assert verb.main([str(runs["diffusion"]), "--hf", str(folder), *words]) == 0
    shown = capsys.readouterr().out
    alone = likelihoods(runs["autoregressive"], **OPTIONS)["rows"][0]
    [line] = [x for x in shown.splitlines() if x.startswith(f"next token, {folder}")]
    assert re.split(r"  +", line)[1:5] == ["exact", f"{alone['sequences']:,}", f"{alone['tokens']:,}",
                                           f"{alone['nats_per_token']:.3f}"]  # fmt: skip
    assert "NOTE" not in shown


def test_a_bert_with_other_tokens_has_bits_per_byte_alone(transformers, runs, tmp_path, capsys):
    bert(transformers, tmp_path, positions=40)
    words = ["--sequences", "3", "--draws", "2", "--device", "cpu"]
    assert verb.main([str(runs["diffusion"]), "--hf", str(tmp_path), *words]) == 0
    shown = capsys.readouterr().out
    lines = [x for x in shown.splitlines() if f", {tmp_path}" in x]
    assert len(lines) == 7 and all("other tokens" in x for x in lines)
    assert f"NOTE {tmp_path} has another tokenizer than {runs['diffusion']}: only bits per byte" in shown
    rows, unknown = beside.rows_beside(runs["diffusion"], tmp_path, trust=False, **OPTIONS)
    config, tokenizer, _, _ = load.load_run(runs["diffusion"], None, "cpu")
    texts = beside.row_texts(corpus_of(config).splits["test"], tokenizer)
    theirs = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    ids = [theirs(text)["input_ids"] for text in texts]
    assert rows[0]["tokens"] == sum(map(len, ids)) - 2 * len(ids) and unknown == sum(row.count(1) for row in ids) > 0
    assert f"NOTE {tmp_path}: {unknown:,} unknown tokens" in shown
    size = sum(len(text.encode()) for text in texts)
    bits = rows[0]["nats_per_token"] * rows[0]["tokens"] / size / math.log(2)
    assert rows[0]["bits_per_byte"] == pytest.approx(bits)
    orders = [row["name"] for row in rows[2:]]
    assert orders == list(exact_likelihood.ORDERS) and all(row["kind"] == "exact" for row in rows[2:])


def test_a_model_that_reads_too_little_is_named(transformers, runs, tmp_path, capsys):
    bert(transformers, tmp_path, positions=8)
    with pytest.raises(ConfigError, match="tokens and 2 around them; this model reads 8; --cut N"):
        beside.rows_beside(runs["diffusion"], tmp_path, trust=False, **OPTIONS)
    rows, _ = beside.rows_beside(runs["diffusion"], tmp_path, trust=False, **OPTIONS | {"cut": 3})
    assert rows[-1]["name"] == "best order of all, seeing the row"
    config, tokenizer, _, _ = load.load_run(runs["diffusion"], None, "cpu")
    short = exact_likelihood.cut(corpus_of(config).splits["test"], 3, tokenizer)
    ids = beside.Ids(transformers.BertTokenizerFast.from_pretrained(tmp_path))
    longest = beside.in_tokens(beside.row_texts(short, tokenizer), ids).seq_len
    bert(transformers, tmp_path, positions=longest + 1)
    with pytest.raises(ConfigError, match=f"a row has {longest} tokens and 2 around them"):
        beside.rows_beside(runs["diffusion"], tmp_path, trust=False, **OPTIONS | {"cut": 3})
    assert verb.main([str(runs["diffusion"]), "--hf", str(tmp_path / "none"), "--device", "cpu"]) == 2
    assert "no config.json" in capsys.readouterr().err
    assert verb.main([str(runs["diffusion"]), "--trust-remote-code"]) == 2
    assert capsys.readouterr().err == "error: --trust-remote-code: only with --hf\n"
