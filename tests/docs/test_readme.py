"""The Python on README's first screen does what its comments say."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytestmark = pytest.mark.docs
README = Path(__file__).parents[2] / "README.md"


def test_the_first_kernel_is_the_cross_entropy():
    [code] = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    torch.manual_seed(0)
    exec(code, names)
    torch.manual_seed(0)
    h, head = torch.randn(512, 64, requires_grad=True), torch.randn(50257, 64, requires_grad=True)
    F.cross_entropy(h @ head.T, torch.randint(50257, (512,)), reduction="sum").backward()
    torch.testing.assert_close(names["h"].grad, h.grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(names["head"].grad, head.grad, rtol=1e-3, atol=1e-3)
