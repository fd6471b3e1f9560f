"""Inputs and targets of an autoregressive batch with padding."""

import pytest
import torch

from tdlm_fast.kernels import dispatch
from tdlm_fast.kernels.ops.next_token import next_token
from tdlm_fast.kernels.triton import tiles
from tests.kernels.triton.machine import DEVICE


@pytest.mark.parametrize("padding", ["some", "none", "all", "anywhere"])
@pytest.mark.parametrize("B, T", [(1, 1), (3, 17), (5, 1030)])
def test_next_token_gives_the_references_rows(B, T, padding, monkeypatch):
    g = torch.Generator().manual_seed(T)
    x0, read = (torch.randint(0, 50258, (B, T), generator=g).to(DEVICE) for _ in range(2))
    valid = torch.arange(T) < torch.randint(0, T + 1, (B, 1), generator=g)
    valid = {"none": valid | True, "all": valid & False, "anywhere": torch.rand(B, T, generator=g) < 0.5}.get(
        padding, valid
    )
    args = read, x0, valid.to(DEVICE), 50256
    found, truth = next_token(*args), dispatch.reference(next_token)(*args)
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, truth, strict=True))
    monkeypatch.setattr(tiles, "MAX_T", T - 1)
    assert all(torch.equal(a, b) for a, b in zip(next_token(*args), truth, strict=True))
    with pytest.raises(ValueError, match="must be"):
        monkeypatch.undo()
        next_token(read, x0, valid.to(DEVICE)[:, :0], 50256)
