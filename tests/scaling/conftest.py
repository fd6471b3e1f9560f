"""A plan of four cells of seconds each."""

import pytest

PLAN = """
base: configs/tiny.yaml
keys:
  data: {{path: {text}, tokenizer: bytes, cache: {cache}, layout: packed}}
  model: {{layers: 1, width: 16, heads: 2, inner: 16, seq_len: 16}}
  train: {{batch_size: 8, log_every: 5, save_every: 5}}
  optim: {{schedule: constant, warmup_steps: 3, lr: 1e-2}}
  eval: {{early: "10", samples: 2, max_samples: 2, target_stderr: 1.0, probe: 0, published: 0, text: 0}}
  device: cpu
cells:
  unique_tokens: [256, 512]
  epochs: [4]
  seeds: [1]
  arms:
    diffusion: {{objective: diffusion}}
    plain: {{objective: autoregressive}}
"""


@pytest.fixture
def plan_file(corpus, tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN.format(text=corpus, cache=tmp_path / "cache"))
    return file
