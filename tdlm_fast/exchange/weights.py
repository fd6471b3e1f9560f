"""Name the weights of a run as Hugging Face's Llama does, whose layers are ours.

    block.qkv (3 D, D)    q_proj, k_proj, v_proj, in that order        block.out    o_proj
    block.up (2 I, D)     gate_proj, up_proj, in that order            block.down   down_proj

A diffusion model has one more row in its embedding, for [MASK]. The rotation of positions pairs the same dimensions as
theirs, so no row moves. A tied head is written as a tensor of its own. The factors of optim.transfer=completep, which
their classes do not have, are multiplied into the weights.
"""

import torch
from torch import Tensor

from ..config import Config, ConfigError


def check_shape(config: Config) -> None:
    """Raise ConfigError, which names the key, where no native class of other tools computes such a model."""
    for key, value, needed in (("mlp", config.model.mlp, "swiglu"), ("positions", config.model.positions, "rope")):
        if value != needed:
            fix = f"only models with model.{key}={needed} have a native class there"
            raise ConfigError(f"model.{key} is {value}, which cannot be exported: {fix}; train one, or load this run "
                              "with tdlm_fast.load_run")  # fmt: skip


def named_weights(model, objective: str) -> dict[str, Tensor]:
    """Return {name: fp32 tensor on the CPU} of a model by the names of LlamaForCausalLM.

    The embedding of a diffusion model has V + 1 rows, that of an autoregressive one V; lm_head.weight is (V, D).
    """
    diffusion = objective == "diffusion"
    weights = {
        "model.embed_tokens.weight": model.embedding.weight[: model.mask_token_id + diffusion],
        "model.norm.weight": model.norm.weight, "lm_head.weight": model.head * model.output,
    }  # fmt: skip
    for i, block in enumerate(model.blocks):
        layer = f"model.layers.{i}."
        for name, part in zip("qkv", block.qkv.weight.chunk(3), strict=True):
            weights[f"{layer}self_attn.{name}_proj.weight"] = part
        gate, up = block.up.weight.chunk(2)
        weights |= {
            f"{layer}self_attn.o_proj.weight": block.out.weight * block.branch, f"{layer}mlp.gate_proj.weight": gate,
            f"{layer}mlp.up_proj.weight": up, f"{layer}mlp.down_proj.weight": block.down.weight * block.branch,
            f"{layer}input_layernorm.weight": block.norm1.weight,
            f"{layer}post_attention_layernorm.weight": block.norm2.weight,
        }  # fmt: skip
    return {name: w.detach().float().cpu().clone(memory_format=torch.contiguous_format) for name, w in weights.items()}
