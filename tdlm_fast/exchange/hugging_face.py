"""Write a run as a folder of Hugging Face's transformers, for its native classes, without code of ours.

    diffusion        EuroBertForMaskedLM   the head's bias forbids [MASK], which has a row of zeros
    autoregressive   LlamaForCausalLM

The MLPs of the first have biases where its head has one, so they are written as zeros. transformers is not needed to
write the files; EuroBERT needs version 5 to read them.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..config import Config
from ..data.tokenizer import Tokenizer
from ..runs.files import write_beside, write_json
from .vocabulary import MASK, START, tokenizer_json
from .weights import named_weights

FORBIDDEN = torch.finfo(torch.float32).min


def weights_of(model, objective: str) -> dict[str, Tensor]:
    """Return {name: fp32 tensor} of EuroBertForMaskedLM or LlamaForCausalLM."""
    weights = named_weights(model, objective)
    if objective == "autoregressive":
        return weights
    head = weights["lm_head.weight"]
    weights["lm_head.weight"] = torch.cat([head, torch.zeros_like(head[:1])])
    weights["lm_head.bias"] = torch.cat([head.new_zeros(len(head)), head.new_tensor([FORBIDDEN])])
    for name in [name for name in weights if ".mlp." in name]:
        weights[name.replace("weight", "bias")] = head.new_zeros(len(weights[name]))
    return weights


def config_json(config: Config, model, tokenizer: Tokenizer) -> dict:
    """Return config.json: the architecture by the keys of transformers."""
    m, diffusion = config.model, config.objective == "diffusion"
    common = {
        "vocab_size": tokenizer.vocab + diffusion, "hidden_size": m.width,
        "intermediate_size": model.blocks[0].down.in_features, "num_hidden_layers": m.layers,
        "num_attention_heads": m.heads, "num_key_value_heads": m.heads, "head_dim": m.width // m.heads,
        "hidden_act": "silu", "max_position_embeddings": m.seq_len, "rms_norm_eps": m.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "rope_theta": 10000.0,
        "attention_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": False,
        "bos_token_id": tokenizer.start_token_id, "eos_token_id": None, "pad_token_id": None, "dtype": "float32",
    }  # fmt: skip
    if diffusion:
        own = {"mask_token_id": tokenizer.vocab, "mlp_bias": True}
        return {"architectures": ["EuroBertForMaskedLM"], "model_type": "eurobert"} | common | own
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "mlp_bias": False} | common


def write(folder: Path, config: Config, model, tokenizer: Tokenizer, metadata: dict[str, str]) -> None:
    """Write the weights, with metadata, the config and the tokenizer into an existing folder."""
    diffusion = config.objective == "diffusion"
    weights = weights_of(model, config.objective)
    write_beside(folder / "model.safetensors", lambda p: save_file(weights, p, {"format": "pt"} | metadata))
    write_json(folder / "config.json", config_json(config, model, tokenizer))
    write_json(folder / "tokenizer.json", tokenizer_json(tokenizer, config.objective), indent=None)
    words = {"bos_token": START, "pad_token": START} | ({"mask_token": MASK} if diffusion else {})
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.model.seq_len}
    write_json(folder / "tokenizer_config.json", about | words | {"clean_up_tokenization_spaces": False})
    if not diffusion:  # as `sample`: the start token is never written
        start = tokenizer.start_token_id
        never = {"bos_token_id": start, "pad_token_id": start, "suppress_tokens": [start]}
        write_json(folder / "generation_config.json", never)
