"""The control arm of next-token, and the keys of evaluation."""

import pytest
import torch

from tdlm_fast import config as settings
from tdlm_fast.model import Model
from tdlm_fast.objective import Part, autoregressive_loss


def test_input_masking_hides_what_is_read_never_what_is_predicted():
    model = Model(vocab=40, width=16, layers=1, heads=2, inner=24, dropout=0.0)
    x0, read = torch.randint(0, 40, (64, 32)), []
    hook = model.register_forward_pre_hook(lambda _m, tokens: read.append(tokens[0]))
    kw = dict(seed=3, start_token_id=7, input_masking=0.25)
    loss, n = autoregressive_loss(model, x0, step=0, **kw)
    assert n == x0.numel()  # every token is predicted
    hidden = read[0] == 40
    assert read[0][:, 0].eq(7).all() and abs(hidden[:, 1:].float().mean() - 0.25) < 0.03
    shown = read[0][:, 1:][~hidden[:, 1:]]
    assert torch.equal(shown, x0[:, :-1][~hidden[:, 1:]])
    logits = model(read[0], causal=True) @ model.head.T
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), x0.flatten())
    torch.testing.assert_close(loss, expected)
    read.clear()
    autoregressive_loss(model, x0[:16], step=0, **kw)
    autoregressive_loss(model, x0[16:], step=0, part=Part(row_offset=16), **kw)
    autoregressive_loss(model, x0, step=1, **kw)
    assert torch.equal(torch.cat(read[:2]) == 40, hidden)  # micro-batches hide what the batch would
    assert not torch.equal(read[2] == 40, hidden)
    read.clear()
    autoregressive_loss(model, x0, step=0, seed=3, start_token_id=7)
    hook.remove()
    assert not (read[0] == 40).any()


@pytest.mark.parametrize(
    "override, message",
    [
        ("noise.input_masking=0.1", "noise.input_masking is for objective=autoregressive"),
        ("noise.input_masking=1", "noise.input_masking is 1.0"),
        ("eval.early=2,x", "eval.early is '2,x'; it must be steps"),
        ("eval.probe=-1", "eval.probe is -1"),
    ],
)
def test_keys_that_cannot_be_are_named(override, message):
    with pytest.raises(settings.ConfigError, match=message):
        settings.load("configs/tiny.yaml", [override])


def test_early_steps():
    assert settings.early_steps(settings.load("configs/tiny.yaml", ["eval.early=2, 10,50"])) == {2, 10, 50}
    assert settings.early_steps(settings.load("configs/tiny.yaml")) == set()
