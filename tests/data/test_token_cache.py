"""The token cache is checked and rebuilt."""

import itertools
import random
import re

import numpy as np
import pytest

from tdlm_fast.config import Data as DataConfig
from tdlm_fast.data import dataset, token_cache
from tdlm_fast.data.tokenizer import GPT2, Bytes

from .conftest import load


@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""])
def test_a_damaged_cache_is_rebuilt_with_one_line(folder, damage, capsys):
    before = load(folder).splits["train"].tokens
    for file in (folder / "cache").iterdir():
        file.write_bytes(damage(file.read_bytes()))
    assert np.array_equal(load(folder).splits["train"].tokens, before)
    assert capsys.readouterr().err.count("is damaged") == 3
    load(folder)
    assert capsys.readouterr().err == ""


def test_an_unwritable_cache_stops_nothing(folder, capsys):
    (folder / "file").write_text("")
    config = DataConfig(path=str(folder), tokenizer="bytes", cache=str(folder / "file"))
    assert dataset.load(config, 32).splits["test"].bytes == 900
    said = capsys.readouterr().err
    assert said.count("data.cache") == 2 and said.count("\n") == 1  # the folder and the key, once for three splits
    load(folder)
    for file in (folder / "cache").iterdir():
        file.unlink()
        file.mkdir()
    assert load(folder).splits["test"].bytes == 900


def test_a_heading_is_what_it_was_and_found_in_linear_time():
    published = re.compile(r"^ ?(= )+.+( =)+ ?$")
    for n in range(1, 12):
        for line in map("".join, itertools.product("= a" if n < 10 else "= ", repeat=n)):
            assert bool(published.match(line)) == bool(token_cache.HEADING.match(line)), line
    for line in (
        "=" * 10**6,
        "= " * 10**6,
        "= " * 10**6 + "a",
        "= a" + " =" * 10**6,
        " = " * 10**6 + "= a",
    ):  # the published expression takes hours
        token_cache.tokenize(line, "paragraphs", Bytes())


def test_a_long_line_is_encoded_in_pieces_to_the_same_tokens(monkeypatch):
    encoder, words = GPT2(), ["word", "'s", " ", "  ", "\u3000", "!", "7", "é"]
    text = "".join(random.Random(0).choices(words, k=20_000))
    whole = encoder.encode(text)
    monkeypatch.setattr(token_cache, "PIECE", 1000)
    pieces = list(token_cache._cut(text))
    assert "".join(pieces) == text and len(pieces) > 30 and max(map(len, pieces)) <= 2000
    assert token_cache.tokenize(text, "packed", encoder)["tokens"].tolist() == whole
    assert token_cache.tokenize(text.strip(), "paragraphs", encoder)["tokens"].tolist() == encoder.encode(text.strip())
    unbroken = "語" * 10_001
    assert encoder.decode(token_cache.tokenize(unbroken, "packed", encoder)["tokens"].tolist()) == unbroken
    assert [len(piece) for piece in token_cache._cut("x" * 5001)] == [2000, 2000, 1001]
