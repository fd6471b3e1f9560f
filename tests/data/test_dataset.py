"""Rows of tokens in every layout."""

from pathlib import Path

import numpy as np
import pytest

from tdlm_fast.config import Data as DataConfig
from tdlm_fast.data import batches, dataset, sources, token_cache
from tdlm_fast.data.tokenizer import GPT2
from tdlm_fast.evaluation.unigram import scored_tokens

from .conftest import TEXT, load

WIKITEXT, RAW = (Path(f"../shared/data/wikitext-2{kind}") for kind in ("", "-raw"))


def test_packed_rows_hold_every_token_once(folder):
    corpus = load(folder)
    x0, valid = corpus.splits["test"].rows(np.arange(len(corpus.splits["test"])))
    assert bytes(x0[valid].tolist()).decode() == TEXT[:900]
    assert corpus.splits["test"].bytes == 900 and corpus.splits["test"].scored == 900


def test_paragraph_rows_drop_headings_and_truncate(folder):
    split = load(folder, layout="paragraphs").splits["train"]
    x0, valid = split.rows(np.array([0, 8]))
    assert bytes(x0[0][valid[0]].tolist()).decode() == "Paragraph 0 says little."
    assert bytes(x0[1].tolist()).decode() == "Paragraph 8 says very very very " and len(split) == 60


def test_published_rows_keep_the_white_space_and_drop_every_line_that_begins_with_an_equals_sign(tmp_path):
    text = " = Title = \n\n One line . \n= a formula\n  =\n \t \nLast " + "long " * 20
    for split in sources.SPLITS:
        (tmp_path / f"{split}.txt").write_text(text)
    split = load(tmp_path, layout="published").splits["test"]
    x0, valid = split.rows(np.arange(len(split)))
    assert [bytes(row[v].tolist()) for row, v in zip(x0, valid, strict=True)] == [
        b" One line . \n", ("Last " + "long " * 20)[:32].encode()
    ]  # fmt: skip
    assert split.padded and split.words is None and split.bytes == 13 + 32
    kept = load(tmp_path, layout="paragraphs").splits["test"]  # which only drops headings, and strips
    assert kept.lengths.tolist() == [10, 11, 1, 32]


@pytest.mark.skipif(not (WIKITEXT.is_dir() and RAW.is_dir()), reason="WikiText-2 is not at ../shared/data")
def test_published_rows_have_the_counts_of_the_published_code():
    tokenizer = GPT2()

    def split(folder, name):
        text = (folder / f"{name}.txt").read_text(encoding="utf-8")
        arrays = token_cache.tokenize(text, "published", tokenizer)
        return dataset.split_rows(arrays, text, "published", 128, tokenizer)

    test, valid, train = split(RAW, "test"), split(RAW, "valid"), split(WIKITEXT, "train")
    assert (test.scored, len(test)) == (199_786, 2_183)
    assert (valid.scored, train.scored) == (176_737, 1_691_205) and len(train) == 17_556
    counts = np.bincount(scored_tokens(test))
    p = counts[counts > 0] / counts.sum()
    assert -(p * np.log(p)).sum() == pytest.approx(7.2355, abs=5e-5)


def test_the_speeches_are_the_size_of_wikitext_2():
    parts = sources.texts(DataConfig(corpus="sotu"))[2]
    assert 10e6 < len(parts["train"]) < 12e6 and all(len(parts[s]) > 5e5 for s in ("valid", "test"))


@pytest.mark.skipif(not WIKITEXT.is_dir(), reason="WikiText-2 is not at ../shared/data/wikitext-2")
def test_wikitext_2_has_its_published_counts(tmp_path):
    packed = dataset.load(DataConfig(path=str(WIKITEXT), cache=str(tmp_path)), 128).splits
    assert (packed["valid"].words, packed["test"].words) == (217_646, 245_569)
    rows = dataset.load(DataConfig(path=str(WIKITEXT), cache=str(tmp_path), layout="paragraphs"), 128).splits["train"]
    assert (len(rows), batches.steps_per_epoch(rows, 64)) == (17_556, 274)  # as TDLM v1.2 reports
