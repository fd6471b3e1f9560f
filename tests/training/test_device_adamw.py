"""The optimizer of a GPU, on CPU tensors: the bits of torch.optim.AdamW, one count of steps."""

import pytest
import torch

from tdlm_fast.training.device_adamw import DeviceAdamW


def parameters(g):
    return [torch.nn.Parameter(torch.randn(s, generator=g)) for s in ((7, 33), (5,), (40, 16))]


def both():
    """(torch's optimizer, ours), over equal parameters in two groups."""
    for kind in (torch.optim.AdamW, DeviceAdamW):
        a, b, c = parameters(torch.Generator().manual_seed(0))
        groups = [{"params": [a], "weight_decay": 0.1}, {"params": [b, c], "weight_decay": 0.0}]
        yield kind(groups, lr=torch.tensor(1e-2), betas=(0.9, 0.95), fused=True, capturable=kind is DeviceAdamW)


def step(optimizer, i: int, clipped: bool, skipped: bool):
    g = torch.Generator().manual_seed(i)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.randn(p.shape, generator=g)
    if clipped:
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.7), torch.tensor(float(skipped))
        if isinstance(optimizer, DeviceAdamW):
            optimizer.steps().add_(1 - optimizer.found_inf)  # clip_scale does this
    optimizer.step()


def equal(a, b) -> bool:
    params = [[p for group in o.param_groups for p in group["params"]] for o in (a, b)]
    same = all(torch.equal(p, q) for p, q in zip(*params, strict=True))
    states = zip(*([o.state[p] for p in of] for o, of in zip((a, b), params, strict=True)), strict=True)
    return same and all(s.keys() == t.keys() and all(torch.equal(s[k], t[k]) for k in s) for s, t in states)


@pytest.mark.parametrize("clipped", [False, True])
def test_steps_have_torchs_bits_and_a_skipped_one_does_not_count(clipped):
    theirs, ours = both()
    for i in range(6):
        for optimizer in (theirs, ours):
            step(optimizer, i, clipped, skipped=i == 3)
        assert equal(theirs, ours)
    assert ours.steps() == 6 - clipped


def test_a_state_that_torch_wrote_is_taken_up():
    theirs, ours = both()
    for i in range(3):
        step(theirs, i, False, False)
    for old, new in zip(theirs.param_groups, ours.param_groups, strict=True):
        for p, q in zip(old["params"], new["params"], strict=True):
            q.data.copy_(p.data)
            ours.state[q] = {k: v.clone() for k, v in theirs.state[p].items()}
    for optimizer in (theirs, ours):
        step(optimizer, 3, False, False)
    assert equal(theirs, ours)
