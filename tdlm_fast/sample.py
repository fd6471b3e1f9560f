"""Text from a run: `python -m tdlm_fast.sample RUN --prompt "…" --tokens 64`.

    autoregressive  one token after another
    diffusion       all masked; in S steps unmask until m_s = m(1 - s/S) of the tokens are left, ancestral (a random
                    subset, Sahoo 2024) or confidence (the most certain first, MaskGIT); linear m = t, cosine
                    m = sin^2(pi t / 2) (Zhang & Syed 2025), so cos^2(pi s / 2S) is masked after step s

Draws use Gumbel noise in fp64: fp32 lowers the effective temperature (Zheng et al., 2409.02908).
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from . import checkpoint
from . import config as settings
from .kernels.schedules import mask_probability


def filtered(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """logits (N, V) over temperature, -inf outside the top_k (0: all) and the nucleus of mass top_p; fp64."""
    z = logits.double() / max(temperature, 1e-6)
    if 0 < top_k < z.shape[-1]:
        z = z.masked_fill(z < z.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        values, order = z.sort(descending=True)
        before = values.softmax(-1).cumsum(-1) - values.softmax(-1)
        z = torch.full_like(z, -torch.inf).scatter(1, order, values.masked_fill(before >= top_p, -torch.inf))
    return z


def draw(z: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A token of each row of z (N, V) fp64 by the Gumbel trick, and its probability."""
    u = torch.rand(z.shape, dtype=torch.float64, generator=generator).to(z.device)
    token = (z - torch.log(-torch.log(u.clamp(1e-300, 1 - 1e-16)))).argmax(-1)
    return token, z.softmax(-1).gather(1, token[:, None])[:, 0]


@torch.no_grad()
def generate_ids(
    model, objective: str, prefix: list[int], suffix: list[int], *, tokens: int, seq_len: int, start_token_id: int,
    steps: int = 0, method: str = "ancestral", unmasking: str = "linear", temperature: float = 1.0, top_k: int = 0,
    top_p: float = 1.0, seed: int = 0,
) -> list[int]:  # fmt: skip
    """`tokens` new ids after prefix and before suffix. Raises ValueError where it does not fit the model."""
    if objective == "autoregressive" and suffix:
        raise ValueError("an autoregressive model cannot write before a suffix; train objective=diffusion for that")
    if len(prefix) + tokens + len(suffix) > seq_len and objective == "diffusion":
        total = f"{len(prefix)} + {tokens} + {len(suffix)}"
        raise ValueError(f"prompt, tokens and suffix are {total} tokens; model.seq_len is {seq_len}")
    was_training = model.training
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device

    def pick(h):
        z = filtered(h @ model.head.T, temperature, top_k, top_p)
        return (z.argmax(-1), z.softmax(-1).amax(-1)) if temperature == 0 else draw(z, generator)

    if objective == "autoregressive":
        ids = [start_token_id, *prefix]
        for _ in range(tokens):
            x = torch.tensor([ids[-seq_len:]], device=device)
            ids.append(int(pick(model(x, causal=True)[0, -1:])[0]))
        new = ids[1 + len(prefix) :]
    else:
        x = torch.tensor([[*prefix, *[model.mask_token_id] * tokens, *suffix]], device=device)
        steps = min(steps or tokens, tokens)
        for s in range(1, steps + 1):
            masked = (x[0] == model.mask_token_id).nonzero()[:, 0]
            m = mask_probability(torch.tensor(1 - s / steps, dtype=torch.float64), unmasking)
            keep = int(torch.round(m * tokens)) if s < steps else 0
            if len(masked) <= keep:
                continue
            token, probability = pick(model(x, causal=False)[0, masked])
            random = torch.rand(len(masked), generator=generator).to(device)
            order = (random if method == "ancestral" else probability).argsort(descending=True)
            chosen = order[: len(masked) - keep]
            x[0, masked[chosen]] = token[chosen]
        new = x[0, len(prefix) : len(prefix) + tokens].tolist()
    model.train(was_training)
    return new


def generate(model, tokenizer, config, prompt: str, suffix: str = "", **kw) -> str:
    """prompt + new text + suffix; keywords as in generate_ids."""
    before, after = tokenizer.encode(prompt), tokenizer.encode(suffix)
    new = generate_ids(
        model, config.objective, before, after, seq_len=config.model.seq_len,
        start_token_id=tokenizer.start_token_id, **kw,
    )  # fmt: skip
    return prompt + tokenizer.decode(new) + suffix


def load_run(folder: Path, which: str = "best", device: str = "auto"):
    """(config, tokenizer, model, state of the checkpoint) of a run folder. Raises ConfigError."""
    from .doctor import pick_device
    from .step import build_model
    from .tokenizer import TOKENIZERS

    if not (folder / "config.yaml").is_file():
        raise settings.ConfigError(f"{folder} is no run folder: it holds no config.yaml")
    config = settings.load(folder / "config.yaml")
    tokenizer = TOKENIZERS[config.data.tokenizer]()
    model = build_model(config, tokenizer)
    state = checkpoint.load(folder / "checkpoints" / f"{which}.safetensors", model)
    return config, tokenizer, model.to(pick_device(device)).eval(), state


def main(argv=None) -> int:
    p = argparse.ArgumentParser(prog="python -m tdlm_fast.sample", description=__doc__.split("\n")[0])
    p.add_argument("run", type=Path, help="run folder")
    p.add_argument("--prompt", default="", help="text before the new tokens")
    p.add_argument("--suffix", default="", help="text after them (diffusion)")
    p.add_argument("--tokens", type=int, default=64, help="new tokens")
    p.add_argument("--number", type=int, default=1, help="texts")
    p.add_argument("--steps", type=int, default=0, help="network evaluations, diffusion (0: one a token)")
    p.add_argument("--method", choices=("ancestral", "confidence"), default="ancestral")
    p.add_argument("--unmasking", choices=("linear", "cosine"), default="linear")
    p.add_argument("--temperature", type=float, default=1.0, help="0 takes the most probable token")
    p.add_argument("--top-k", type=int, default=0)
    p.add_argument("--top-p", type=float, default=1.0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--checkpoint", choices=("best", "last"), default="best")
    p.add_argument("--device", default="auto")
    a = p.parse_args(argv)
    try:
        if a.tokens < 1 or a.number < 1 or a.temperature < 0 or not 0 < a.top_p <= 1 or a.top_k < 0 or a.steps < 0:
            raise ValueError("--tokens, --number >= 1; --temperature, --top-k, --steps >= 0; --top-p in (0, 1]")
        config, tokenizer, model, _ = load_run(a.run, a.checkpoint, a.device)
        for i in range(a.number):
            text = generate(
                model, tokenizer, config, a.prompt, a.suffix, tokens=a.tokens, steps=a.steps, method=a.method,
                unmasking=a.unmasking, temperature=a.temperature, top_k=a.top_k, top_p=a.top_p, seed=a.seed + i,
            )  # fmt: skip
            print(text)
    except ValueError as e:  # ConfigError is one
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
