"""GPT-2's BPE from the packaged vocabulary, against counts and ids that are known."""

from pathlib import Path

import pytest

from tdlm_fast.data.tokenizer import Bytes, gpt2_ranks, packaged_gpt2

TEXT = "Tiny models, naïve 语言 — it's 1,024 tokens!\n\n  indented\t\x00 <|endoftext|> 🙂"


def test_packaged_vocabulary_is_gpt2s():
    encoding = packaged_gpt2()
    assert encoding.n_vocab == 50257 and encoding.eot_token == 50256
    assert encoding.encode_ordinary("Hello world") == [15496, 995]
    assert encoding.decode(encoding.encode_ordinary(TEXT)) == TEXT
    assert 50256 not in encoding.encode_ordinary(TEXT)


def test_wikitext_2_has_the_count_of_tokens_on_record():
    path = Path(__file__).parents[2] / "shared/data/wikitext-2/valid.txt"
    if not path.exists():
        pytest.skip("needs WikiText-2 as ../shared/data/wikitext-2/valid.txt")
    assert len(packaged_gpt2().encode_ordinary(path.read_text(encoding="utf-8"))) == 258_659


def test_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match="sha256"):
        gpt2_ranks(b"#version: 0.2\nt h\n")


def test_bytes_round_trip():
    tokenizer = Bytes()
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert max(tokenizer.encode(TEXT)) < tokenizer.start_token_id < tokenizer.vocab
