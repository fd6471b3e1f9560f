"""Autoregressive text: its law, its cache and its window."""

import itertools

import pytest
import torch
from conftest import sharp_model

from .conftest import TEXTS, T, V, batch, fits, ids_of


def test_autoregressive_texts_have_the_chain_rules_law():
    model, p = sharp_model(3), []
    for text in itertools.product(range(V), repeat=T):
        with torch.no_grad():
            z = model(torch.tensor([[0, *text[:-1]]]), causal=True)[0] @ model.head.T
        p.append(z.double().softmax(-1)[range(T), list(text)].prod())
    kw = dict(tokens=T, seq_len=8, start_token_id=0, number=TEXTS)
    assert fits(batch(model, "autoregressive", [], [], **kw).ids, torch.stack(p))


def test_a_forbidden_token_is_never_written():
    model, kw = sharp_model(11), dict(tokens=40, seq_len=64, start_token_id=10, number=20)
    assert (batch(model, "autoregressive", [], [], **kw).ids == 10).any()
    assert not (batch(model, "autoregressive", [], [], forbidden=10, **kw).ids == 10).any()


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_cached_logits_are_the_uncached_ones(positions):
    model = sharp_model(11, positions=positions, seq_len=16)
    model.requires_grad_(False)
    ids = torch.randint(0, 11, (3, 16), generator=torch.Generator().manual_seed(0))
    for first in (1, 5):
        cache = model.new_cache()
        h = [model(ids[:, :first], causal=True, cache=cache)]
        h += [model(ids[:, i : i + 1], causal=True, cache=cache) for i in range(first, 16)]
        whole = model(ids, causal=True) @ model.head.T
        torch.testing.assert_close(torch.cat(h, 1) @ model.head.T, whole, rtol=1e-5, atol=1e-5)
        assert whole.std() > 0.5
    for wrong in (dict(causal=False), dict(causal=True, valid=torch.ones(3, 2, dtype=torch.bool)), dict(causal=True)):
        with pytest.raises(ValueError, match="a cache needs"):
            model(ids[:, :2], cache=cache, **wrong)


@pytest.mark.parametrize("positions", ["rope", "learned"])
@pytest.mark.parametrize("seq_len, prompt", [(8, 3), (8, 21), (3, 4)])
def test_greedy_text_is_that_without_a_cache_also_past_seq_len(positions, seq_len, prompt):
    """The window: all where it fits, else from a multiple of seq_len // 4 on, the earliest with which it fits."""
    model, hop = sharp_model(11, positions=positions, seq_len=seq_len), max(1, seq_len // 4)
    ids, expected = [10, *torch.randint(0, 10, (prompt,), generator=torch.Generator().manual_seed(1)).tolist()], []
    kw = dict(tokens=25, seq_len=seq_len, start_token_id=10, temperature=0)
    result = ids_of(model, "autoregressive", ids[1:], [], **kw)
    for _ in range(25):
        start = next(s for s in range(0, 99, hop) if len(ids) - s <= seq_len)
        with torch.no_grad():
            h = model(torch.tensor([ids[start:]]), causal=True)[0, -1]
        expected.append(int((h @ model.head.T).argmax()))
        ids.append(expected[-1])
    assert result == expected and len(set(result)) > 2
