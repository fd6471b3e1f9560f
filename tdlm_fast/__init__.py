"""Train tiny language models, masked diffusion against autoregressive."""
