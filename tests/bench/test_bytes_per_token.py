"""bench/studies/bytes_per_token.py cuts GPT-2's vocabulary off, and counts the tokens of one text in each part."""

from bench.studies import bytes_per_token
from tdlm_fast.data.tokenizer import packaged_gpt2

TEXT = " The old mill turned by the river = = \n where nothing was written 1,024 times .\n"


def test_a_shorter_vocabulary_spells_the_same_text_in_more_tokens():
    rows = bytes_per_token.measure(TEXT)
    assert [r["vocabulary"] for r in rows] == [256, 1024, 50256]
    counts = [r["tokens"] for r in rows]
    assert counts[0] == len(TEXT.encode()) == rows[1]["bytes"] and counts == sorted(counts, reverse=True)
    assert counts[2] == len(packaged_gpt2().encode_ordinary(TEXT))
    assert all(r["bytes_per_token"] == len(TEXT.encode()) / r["tokens"] for r in rows)
    short = bytes_per_token.first_tokens(packaged_gpt2(), 1024)
    ids = short.encode_ordinary(TEXT)
    assert short.decode(ids) == TEXT and max(ids) < 1024
    assert bytes_per_token.first_tokens(packaged_gpt2(), 50256).encode_ordinary(
        TEXT
    ) == packaged_gpt2().encode_ordinary(TEXT)
