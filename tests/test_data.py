"""Corpora, the token cache, layouts and batches."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tdlm_fast import data
from tdlm_fast.config import ConfigError
from tdlm_fast.config import Data as DataConfig

WIKITEXT = Path("../shared/data/wikitext-2")
TEXT = "".join(f"Paragraph {i} says {'very ' * (i % 9)}little.\n = Heading = \n\n" for i in range(60))


@pytest.fixture
def folder(tmp_path):
    for split, text in zip(data.SPLITS, (TEXT, TEXT[:700], TEXT[:900]), strict=True):
        (tmp_path / f"{split}.txt").write_text(text)
    return tmp_path


def load(folder, seq_len=32, **kw):
    return data.load(DataConfig(path=str(folder), cache=str(folder / "cache"), tokenizer="bytes", **kw), seq_len)


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


def test_batches_are_a_function_of_seed_and_step(folder):
    split = load(folder, layout="paragraphs").splits["train"]
    steps = data.steps_per_epoch(split, 8)
    kw = dict(seed=3, batch_size=8)
    assert torch.equal(data.batch(split, step=5, **kw)[0], data.batch(split, step=5, **kw)[0])
    order = data._permutation(60, 3, 0)
    assert sorted(order) == list(range(60)) and list(order) != list(range(60))
    assert not np.array_equal(order, data._permutation(60, 3, 1))
    assert not torch.equal(data.batch(split, step=0, **kw)[0], data.batch(split, step=steps, **kw)[0])


@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""])
def test_a_damaged_cache_is_rebuilt_with_one_line(folder, damage, capsys):
    before = load(folder).splits["train"].tokens
    for file in (folder / "cache").iterdir():
        file.write_bytes(damage(file.read_bytes()))
    assert np.array_equal(load(folder).splits["train"].tokens, before)
    assert capsys.readouterr().err.count("is damaged") == 3
    load(folder)
    assert capsys.readouterr().err == ""


def test_jsonl_and_a_single_file_are_cut_into_splits(tmp_path):
    file = tmp_path / "corpus.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"line {i}"}) for i in range(40)))
    corpus = data.load(DataConfig(path=str(file), cache=str(tmp_path / "c"), tokenizer="bytes"), 16)
    x0, valid = corpus.splits["valid"].rows(np.arange(len(corpus.splits["valid"])))
    assert bytes(x0[valid].tolist()).decode() == "line 7\nline 27\n"
    file.write_text('{"txt": 1}')
    with pytest.raises(ConfigError, match="line 1 is no"):
        data.load(DataConfig(path=str(file)), 16)


@pytest.mark.parametrize("path, says", [("absent", "does not exist"), (".", "holds no .txt")])
def test_a_path_that_cannot_be_used_is_named(tmp_path, path, says):
    with pytest.raises(ConfigError, match=f"data.path: .*{says}"):
        data.load(DataConfig(path=str(tmp_path / path)), 16)


def test_an_unreachable_hub_stops_or_says_what_it_used_instead(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "_hub", lambda name: (_ for _ in ()).throw(OSError("no network")))
    monkeypatch.setattr(data, "_sotu", lambda: {s: TEXT for s in data.SPLITS})
    kw = dict(cache=str(tmp_path), tokenizer="bytes")
    with pytest.raises(ConfigError, match="data.corpus=wikitext-2 cannot be reached"):
        data.load(DataConfig(**kw), 16)
    corpus = data.load(DataConfig(if_unreachable="sotu", **kw), 16)
    assert corpus.name == "sotu" and "wikitext-2 cannot be reached" in corpus.note
    assert "NOTE" in capsys.readouterr().err


def test_the_speeches_are_the_size_of_wikitext_2():
    parts = data.texts(DataConfig(corpus="sotu"))[2]
    assert 10e6 < len(parts["train"]) < 12e6 and all(len(parts[s]) > 5e5 for s in ("valid", "test"))


@pytest.mark.skipif(not WIKITEXT.is_dir(), reason="WikiText-2 is not at ../shared/data/wikitext-2")
def test_wikitext_2_has_its_published_counts(tmp_path):
    packed = data.load(DataConfig(path=str(WIKITEXT), cache=str(tmp_path)), 128).splits
    assert (packed["valid"].words, packed["test"].words) == (217_646, 245_569)
    rows = data.load(DataConfig(path=str(WIKITEXT), cache=str(tmp_path), layout="paragraphs"), 128).splits["train"]
    assert (len(rows), data.steps_per_epoch(rows, 64)) == (17_556, 274)  # as TDLM v1.2 reports
