"""The names of weights, and models that other tools have no class for."""

import pytest
import torch
from conftest import sharp_model

from tdlm_fast import config as settings
from tdlm_fast.exchange.weights import check_shape, named_weights
from tdlm_fast.model import Model


@pytest.mark.parametrize("key", ["mlp=gelu", "positions=learned"])
def test_models_without_a_native_class_are_refused_by_their_key(key):
    name, value = key.split("=")
    with pytest.raises(settings.ConfigError, match=f"^model.{name} is {value}, which cannot be exported"):
        check_shape(settings.load("configs/tiny.yaml", [f"model.{key}"]))
    check_shape(settings.load("configs/tiny.yaml"))


@pytest.mark.parametrize("tied", [False, True])
def test_every_weight_is_written_once_under_its_name(tied):
    model = sharp_model(30, tied=tied)
    of = {objective: named_weights(model, objective) for objective in ("diffusion", "autoregressive")}
    block, layer = model.blocks[0], "model.layers.0."
    q, k, v, gate, up = (of["diffusion"][f"{layer}{name}_proj.weight"] for name in (
        "self_attn.q", "self_attn.k", "self_attn.v", "mlp.gate", "mlp.up"))  # fmt: skip
    assert torch.equal(torch.cat([q, k, v]), block.qkv.weight) and torch.equal(torch.cat([gate, up]), block.up.weight)
    assert torch.equal(of["diffusion"]["model.embed_tokens.weight"], model.embedding.weight)
    assert torch.equal(of["autoregressive"]["model.embed_tokens.weight"], model.embedding.weight[:30])
    assert torch.equal(of["diffusion"]["lm_head.weight"], model.head) and model.head.shape == (30, 16)
    written = sum(w.numel() for w in of["diffusion"].values())
    assert written == sum(p.numel() for p in model.parameters()) + tied * model.head.numel()


@pytest.mark.parametrize("tied", [False, True])
def test_the_factors_of_completep_are_in_the_weights(tied):
    shape = settings.Model(layers=4, width=128, heads=4, inner=64, tied=tied, dropout=0.0)
    model, plain = Model(shape, vocab=30, transfer=True).eval(), Model(shape, vocab=30).eval()
    weights = named_weights(model, "autoregressive")
    with torch.no_grad():
        plain.load_state_dict(model.state_dict())
        for i, block in enumerate(plain.blocks):
            block.out.weight.copy_(weights[f"model.layers.{i}.self_attn.o_proj.weight"])
            block.down.weight.copy_(weights[f"model.layers.{i}.mlp.down_proj.weight"])
        tokens = torch.arange(30).view(2, 15)
        ours = model(tokens, causal=True) @ model.head.T
        theirs = plain(tokens, causal=True) @ weights["lm_head.weight"].T
    torch.testing.assert_close(theirs, ours)
    assert not torch.allclose(plain.blocks[0].out.weight, model.blocks[0].out.weight)
