"""The learned BPE against one written plainly; what it may depend on; every text comes back."""

import collections
import functools
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdlm_fast.config import ConfigError
from tdlm_fast.config import Data as DataConfig
from tdlm_fast.data import bpe, dataset, token_cache
from tdlm_fast.data.tokenizer import GPT2_PATTERN, Learned, letters, sizes

pytest.importorskip("tokenizers", reason="needs tokenizers: pip install tdlm_fast[bpe]")
TEXT = "The mill turns by the river; 12 millers, naïve 語語語 millers, sleep.\n\n  it's the river's mill's\t'\n" * 3
TEXT += "".join(f"Paragraph {i} says {'very ' * (i % 9)}little.\n" for i in range(60))


def plainly(text: str, n: int) -> list[bytes]:
    """Merge the most frequent pair of tokens inside words, of equals that with the lower ids, until n are there."""
    import regex

    tokens = [bytes([b]) for b in letters()]
    place = {token[0]: i for i, token in enumerate(tokens)}
    words = [[place[b] for b in word.encode()] for word in regex.findall(GPT2_PATTERN, text)]
    while len(tokens) < n:
        count = collections.Counter(pair for word in words for pair in zip(word, word[1:], strict=False))
        best = min(count, key=lambda pair: (-count[pair], pair))
        tokens.append(tokens[best[0]] + tokens[best[1]])
        for word in words:
            for i in range(len(word) - 1):
                if tuple(word[i : i + 2]) == best:
                    word[i : i + 2] = [len(tokens) - 1]
    return tokens


def test_the_tokens_are_those_of_merging_the_most_frequent_pair():
    assert bpe.learn(TEXT, 315) == plainly(TEXT, 315)


def test_the_same_text_gives_the_same_tokens_in_any_process():
    code = "import sys; from tdlm_fast.data.bpe import learn; print(learn(sys.stdin.read(), 318))"
    for seed, threads in (("1", "1"), ("2", "4")):
        env = os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads, "PYTHONIOENCODING": "utf-8"}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, input=TEXT.encode(), env=env, capture_output=True, check=True)
        assert done.stdout.decode().strip() == str(bpe.learn(TEXT, 318))


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_every_text_comes_back(text):
    tokenizer = of_text()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and all(0 <= i < tokenizer.start_token_id for i in ids)
    assert sum(np.array(tokenizer.token_bytes())[ids]) == len(text.encode())


@functools.cache
def of_text() -> Learned:
    return Learned(bpe.learn(TEXT, 315))


def corpus(folder, n=300, **text):
    folder.mkdir(exist_ok=True)
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_text(text.get(split, TEXT), encoding="utf-8")
    return dataset.load(DataConfig(path=str(folder), cache=str(folder / "cache"), tokenizer=f"bpe-{n}"), 16)


def test_no_token_is_learned_from_held_out_text(tmp_path):
    plain, word = corpus(tmp_path / "plain"), TEXT + "zyzzyva " * 500
    held_out = corpus(tmp_path / "held-out", valid=word, test=word)
    assert held_out.tokenizer.tokens() == plain.tokenizer.tokens() and held_out.hash != plain.hash
    assert b"zyzzyva" in b" ".join(corpus(tmp_path / "trained-on", train=word).tokenizer.tokens())


def test_bytes_are_those_of_the_text_and_ids_end_with_the_start_token(tmp_path):
    loaded = corpus(tmp_path, valid="語 is not in bytes of one token\n" * 9)
    assert loaded.splits["valid"].bytes == 9 * len("語 is not in bytes of one token\n".encode())
    assert (loaded.tokenizer.vocab, loaded.tokenizer.start_token_id) == (301, 300)
    known = sizes(DataConfig(tokenizer="bpe-300"))
    assert (known.vocab, known.start_token_id) == (301, 300)
    assert token_cache.token_dtype(sizes(DataConfig(tokenizer="bpe-65535"))) == np.uint16
    assert token_cache.token_dtype(sizes(DataConfig(tokenizer="bpe-65536"))) == np.uint32


def test_the_cache_serves_the_same_text_and_size_only(tmp_path, monkeypatch):
    first = corpus(tmp_path)
    learn, asked = bpe.learn, []
    monkeypatch.setattr(bpe, "learn", lambda text, n: asked.append(n) or learn(text, n))
    again = corpus(tmp_path)
    assert again.tokenizer.hash == first.tokenizer.hash and not asked
    other = corpus(tmp_path, n=301)
    assert asked == [301] and other.tokenizer.tokens()[:300] == first.tokenizer.tokens()
    assert (other.splits["test"].tokens != 0).any() and len(other.splits["test"].tokens) < len(
        first.splits["test"].tokens
    )
    corpus(tmp_path, train=TEXT + "!")
    assert asked == [301, 300]


def test_long_words_are_counted_in_parts():
    assert max(map(len, bpe.learn("ab" * 5000, 264))) == bpe.LONGEST
    with pytest.raises(ConfigError, match="only 264 tokens"):  # the next one would be of 512 bytes
        bpe.learn("ab" * 5000, 265)


def test_what_cannot_be_learned_is_one_line(monkeypatch):
    with pytest.raises(ConfigError, match="bpe-9000: the training split gives only .* tokens; give bpe-"):
        bpe.learn(TEXT, 9000)
    with pytest.raises(ConfigError, match="only 256 tokens; take data.tokenizer=bytes"):
        bpe.learn("abc", 300)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match="bpe-300 needs the package tokenizers: pip install tokenizers"):
        bpe.learn(TEXT, 300)
