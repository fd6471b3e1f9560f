"""One optimizer step."""

import torch


def test_a_gradient_that_is_no_number_leaves_the_weights_alone():
    weight = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = torch.optim.AdamW([weight], fused=True)
    for bad in (0.0, 1.0):
        weight.grad = torch.full((3, 3), float("nan") if bad else 1.0)
        before, optimizer.found_inf = weight.detach().clone(), torch.tensor(bad)  # as step.train_step sets it
        optimizer.step()
        assert torch.equal(before, weight) == bool(bad) and weight.isfinite().all()
