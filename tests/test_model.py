"""The transformer against cases whose answer is known."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from bench.race.plain import PlainModel
from tdlm_fast.config import Model as Shape
from tdlm_fast.kernels import use_backend
from tdlm_fast.model import Model, autocast, resolved
from tdlm_fast.objective import autoregressive_loss

SMALL = dict(width=16, layers=2, heads=2, inner=24, dropout=0.0)


def test_the_published_architecture_to_the_parameter():
    model = Model(Shape(width=64, layers=2, heads=4, inner=192), vocab=50257)
    assert sum(p.numel() for p in model.parameters()) == 6_539_712 + 64  # and the row of [MASK]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_every_norm_has_the_eps_of_the_config(backend):
    """Rows of 0.02 have a mean square of 4e-4: eps = 1e-3 changes every norm."""
    shape = Shape(width=64, layers=2, heads=4, inner=96, dropout=0.0, norm_eps=1e-3)
    model, plain = Model(shape, vocab=40), PlainModel(shape, vocab=40)
    other, x = Model(replace(shape, norm_eps=1e-6), vocab=40), torch.randint(0, 40, (2, 9))
    assert {m.eps for m in plain.modules() if isinstance(m, torch.nn.RMSNorm)} == {1e-3}
    for m in (model, plain, other):
        m.load_state_dict(plain.state_dict())
    with use_backend(backend):
        h = model(x, causal=True)
        torch.testing.assert_close(h, plain(x, causal=True), rtol=1e-4, atol=1e-5)
        assert (other(x, causal=True) - h).abs().max() > 0.1
    a, b = (torch.autograd.grad(m(x, causal=True).square().sum(), m.embedding.weight)[0] for m in (model, plain))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_causal_attention_does_not_see_the_future_and_the_other_does():
    model, x = Model(Shape(**SMALL), vocab=40), torch.randint(0, 40, (2, 9))
    y = x.clone()
    y[:, -1] = (y[:, -1] + 1) % 40
    a, b = model(x, causal=True), model(y, causal=True)
    torch.testing.assert_close(a[:, :-1], b[:, :-1])
    assert not torch.allclose(model(x, causal=False)[:, 0], model(y, causal=False)[:, 0], atol=1e-7)


@pytest.mark.parametrize(
    "option, change",
    [({"mlp": "gelu"}, -2 * 16 * 24), ({"positions": "learned", "seq_len": 12}, 12 * 16), ({"tied": True}, -40 * 16)],
)
def test_model_options_learn_and_count(option, change):
    model, plain = Model(Shape(**SMALL, **option), vocab=40), Model(Shape(**SMALL), vocab=40)
    assert sum(model.count_by_part().values()) == sum(p.numel() for p in model.parameters())
    assert sum(model.count_by_part().values()) - sum(plain.count_by_part().values()) == change
    x, optimizer = torch.randint(0, 40, (2, 12)), torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        loss, _ = autoregressive_loss(model, x, seed=0, step=0, start_token_id=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5  # it learns 24 tokens by heart


def test_a_cache_gives_the_hidden_states_of_the_whole_row():
    for positions in ("rope", "learned"):
        model = Model(Shape(**SMALL, positions=positions, seq_len=9), vocab=40).eval()
        x, cache = torch.randint(0, 40, (2, 9)), model.new_cache()
        with torch.no_grad():
            whole = model(x, causal=True)
            parts = [model(x[:, :4], causal=True, cache=cache)]
            parts += [model(x[:, i : i + 1], causal=True, cache=cache) for i in range(4, 9)]
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)


def test_a_cache_that_cannot_be_right_is_refused():
    model, x = Model(Shape(**SMALL), vocab=40).eval(), torch.randint(0, 40, (2, 9))
    cache = model.new_cache()
    model(x[:, :4], causal=True, cache=cache)
    for tokens, kw in (
        (x[:, 4:6], dict(causal=True)), (x[:, 4:5], dict(causal=False)),
        (x[:, 4:5], dict(causal=True, valid=torch.ones(2, 1, dtype=torch.bool))),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="a cache needs causal=True"):
            model(tokens, cache=cache, **kw)
    with pytest.raises(ValueError, match="a cache needs"):
        model.train()(x, causal=True, cache=model.new_cache())


@pytest.mark.parametrize("change, message", [
    (dict(heads=3), r"width 16 must be a multiple of 2 \* heads = 6"),
    (dict(heads=5, positions="learned"), "width 16 must be a multiple of heads = 5"),
    (dict(mlp="relu"), r"mlp is 'relu' \(swiglu, gelu\)"), (dict(positions="sine"), "positions is 'sine'"),
])  # fmt: skip
def test_a_shape_that_cannot_be_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        Model(Shape(**SMALL | change), vocab=40)


def test_more_tokens_than_learned_positions_are_refused():
    model = Model(Shape(**SMALL, positions="learned", seq_len=8), vocab=40)
    with pytest.raises(ValueError, match="9 tokens are more than the table of 8 positions"):
        model(torch.zeros(1, 9, dtype=torch.long), causal=True)


def test_the_seed_decides_the_weights_and_mask_is_no_word_of_the_head():
    a, b, c = (Model(Shape(**SMALL), vocab=40, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.head, c.head)
    tied = Model(Shape(**SMALL, tied=True), vocab=40)
    assert a.mask_token_id == 40 and a.embedding.weight.shape == (41, 16)
    assert a.head.shape == tied.head.shape == (40, 16)
    assert tied.head.data_ptr() == tied.embedding.weight.data_ptr()


def test_auto_is_bf16_where_the_device_has_products_of_it():
    fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert fast or torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    assert resolved(torch.device("cpu"), "auto") == ("bf16" if fast else "fp32")
    assert resolved(torch.device("cuda", 0), "auto") == "bf16"
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        assert resolved(torch.device("cpu"), precision) == precision
        with autocast(torch.device("cpu"), precision):
            assert F.linear(torch.ones(2, 3), torch.ones(4, 3)).dtype == dtype
