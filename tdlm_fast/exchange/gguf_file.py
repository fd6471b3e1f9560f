"""Write a run as one GGUF file, for llama.cpp and the programs built on it, and read it back.

    autoregressive   llama
    diffusion        llada, with attention that is not causal, logits that are not shifted, and the id of [MASK]

llama.cpp rotates neighbouring dimensions of a head where we rotate halves, so the rows of q and k are interleaved.
Every tensor is fp32.
"""

import contextlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import Config, ConfigError
from ..data.tokenizer import GPT2, Tokenizer
from ..runs.files import write_beside
from .vocabulary import MASK, START, bpe
from .weights import named_weights

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def package():
    """Return the package gguf. Raises ConfigError where it is not installed."""
    try:
        import gguf
    except ImportError as e:
        raise ConfigError(f"--to gguf needs the package gguf ({e}): pip install gguf") from None
    return gguf


def interleaved(w: Tensor, heads: int) -> Tensor:
    """Return the rows of q or k (D, D) so that row i and row i + K/2 of each head are neighbours."""
    return w.view(heads, 2, -1, w.shape[1]).transpose(1, 2).reshape(w.shape).contiguous()


def tensors_of(model, objective: str) -> dict[str, Tensor]:
    """Return {name of GGUF: fp32 tensor}."""
    heads, tensors = model.blocks[0].heads, {}
    for name, w in named_weights(model, objective).items():
        stem = name.removesuffix(".weight")
        if stem in OUTSIDE:
            theirs = OUTSIDE[stem]
        else:
            _, _, i, part = stem.split(".", 3)
            theirs = f"blk.{i}.{NAMES[part]}"
            if part in ("self_attn.q_proj", "self_attn.k_proj"):
                w = interleaved(w, heads)
        if theirs == "output" and objective == "diffusion":
            w = torch.cat([w, torch.zeros_like(w[:1])])  # as many rows as the embedding: the last is [MASK]'s
        tensors[f"{theirs}.weight"] = w
    return tensors


def write(file: Path, config: Config, model, tokenizer: Tokenizer, about: dict[str, str]) -> None:
    """Write the GGUF file and read it back. Raises ConfigError where it does not hold what was written."""
    tensors = tensors_of(model, config.objective)
    write_beside(file, lambda p: _write(p, config, model, tokenizer, tensors, about))
    if wrong := differences(file, tensors):
        file.unlink()
        raise ConfigError(f"{file} was not written as it should be ({wrong}); see its disk, and export again")


def _write(path: Path, config: Config, model, tokenizer: Tokenizer, tensors: dict, about: dict[str, str]) -> None:
    gguf = package()
    diffusion, m = config.objective == "diffusion", config.model
    w = gguf.GGUFWriter(path, "llada" if diffusion else "llama")
    w.add_name(f"tdlm_fast {config.objective}")
    w.add_file_type(gguf.LlamaFileType.ALL_F32)
    w.add_vocab_size(tokenizer.vocab + diffusion)
    w.add_context_length(m.seq_len)
    w.add_embedding_length(m.width)
    w.add_block_count(m.layers)
    w.add_feed_forward_length(model.blocks[0].down.in_features)
    w.add_head_count(m.heads)
    w.add_head_count_kv(m.heads)
    w.add_layer_norm_rms_eps(m.norm_eps)
    w.add_rope_dimension_count(m.width // m.heads)
    w.add_rope_freq_base(10000.0)
    tokens, merges = bpe(tokenizer)
    special = [START, MASK] if diffusion else [START]
    normal, control = [gguf.TokenType.NORMAL] * len(tokens), [gguf.TokenType.CONTROL] * len(special)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2" if isinstance(tokenizer, GPT2) else "default")
    w.add_token_list(tokens + special)
    w.add_token_types(normal + control)
    if merges:
        w.add_token_merges(merges)
    w.add_bos_token_id(tokenizer.start_token_id)
    w.add_add_bos_token(not diffusion)
    if diffusion:
        w.add_mask_token_id(tokenizer.vocab)
        w.add_causal_attention(False)
        w.add_diffusion_shift_logits(False)
    for key, value in about.items():
        w.add_string(f"tdlm_fast.{key}", value)
    for name, tensor in tensors.items():
        w.add_tensor(name, tensor.numpy())
    with contextlib.closing(w):
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()


def differences(file: Path, tensors: dict[str, Tensor]) -> str:
    """Return how a GGUF file differs from these tensors, "" where it holds exactly them."""
    held = {t.name: t for t in package().GGUFReader(file).tensors}
    if held.keys() != tensors.keys():
        return f"its tensors are {', '.join(sorted(held.keys() ^ tensors.keys()))} more or fewer"
    unlike = [k for k, w in tensors.items() if not np.array_equal(np.asarray(held[k].data).reshape(w.shape), w.numpy())]
    return f"{', '.join(unlike)} differ" if unlike else ""
