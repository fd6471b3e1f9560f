"""One training step."""

import pytest
import torch

from tdlm_fast import config as settings
from tdlm_fast.data.tokenizer import Bytes
from tdlm_fast.model import build_model
from tdlm_fast.objective import LOSS_WEIGHTS
from tdlm_fast.training import step

DRAWS = [(w, *d) for w in LOSS_WEIGHTS for d in (("paragraphs", "stratified"), ("packed", "counts"))]
DRAWS += [(w, "published", "exact") for w in LOSS_WEIGHTS if w != "elbo"]


@pytest.mark.parametrize("loss_weight, layout, sampling", DRAWS)
def test_accumulation_changes_neither_loss_nor_gradient(loss_weight, layout, sampling):
    """Micro-batches hold strata of their own, so what they average over must be the whole batch's."""
    keys = [
        "data.tokenizer=bytes", "model.width=16", "model.heads=2", "model.seq_len=16", "model.dropout=0",
        "precision=fp32", "train.batch_size=8", f"loss_weight={loss_weight}", f"data.layout={layout}",
        f"noise.sampling={sampling}",
    ]  # fmt: skip
    x0, result = torch.randint(0, 256, (8, 16)), []
    valid = torch.arange(16) < torch.randint(1, 17, (8, 1)) if layout != "packed" else None
    for parts in (1, 4):
        config = settings.load("configs/tiny.yaml", [*keys, f"train.accumulation={parts}"])
        model = build_model(config, Bytes())
        loss, tokens, n = step.backward(model, step.objective(config, Bytes()), x0, valid, config, 3)
        result.append((loss, tokens, n, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(*result, rtol=1e-5, atol=1e-7)
    assert result[0][3][0].abs().max() > 1e-4
