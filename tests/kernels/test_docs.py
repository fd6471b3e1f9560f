"""The code on docs/kernels.md runs and does what the page says."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tdlm_fast import kernels

pytestmark = pytest.mark.docs

PAGE = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def block(part: str) -> str:
    (result,) = [b for b in BLOCKS if part in b]
    return result


def test_the_training_loop_learns():
    torch.manual_seed(0)
    names = {}
    code = block("for step in range")
    assert len(code.splitlines()) <= 30
    exec(code, names)
    assert names["losses"][0] > 5 and names["losses"][-1] < 1.5


def test_the_mean_is_cross_entropy():
    h, weight = torch.randn(2, 5, 16), torch.randn(30, 16)
    targets = torch.tensor([[1, 2, -100, 4, 5], [6, 7, 8, 9, -100]])
    names = dict(h=h, weight=weight, targets=targets, F=F, linear_cross_entropy=kernels.linear_cross_entropy)
    code = block("is F.cross_entropy((h @")
    exec(code, names)
    torch.testing.assert_close(names["loss"], eval(code.split("# is ")[1], names))


def test_a_step_of_masked_diffusion_has_gradients():
    V, B, T, D = 30, 4, 8, 16
    table = torch.randn(V + 1, D, requires_grad=True)
    weight = torch.randn(V, D, requires_grad=True)
    names = dict(x0=torch.randint(V, (B, T)), V=V, step=0, weight=weight, model=lambda x: table[x])
    names |= {name: getattr(kernels, name) for name in kernels.__all__}
    exec(block("c = corrupt("), names)
    c, loss = names["c"], names["loss"]
    nll = F.cross_entropy(table[c.xt].flatten(0, 1) @ weight.T, names["x0"].flatten(), reduction="none")
    torch.testing.assert_close(loss, (nll * c.weights.flatten()).sum() / (B * T))
    loss.backward()
    assert table.grad.abs().sum() > 0 and weight.grad.abs().sum() > 0


def test_every_field_and_function_is_on_the_page():
    for name in (*kernels.Corruption._fields, *kernels.__all__):
        assert f"`{name}" in PAGE or f"{name}(" in PAGE or f"import {name}" in PAGE, name


def test_backends_are_chosen_as_the_page_says():
    exec(block("use_backend"), {})
    kernels.use_backend(None)
