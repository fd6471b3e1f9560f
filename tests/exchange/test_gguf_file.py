"""The GGUF file, read back and computed with: llama.cpp's rotation, written out, gives the run's probabilities."""

import numpy as np
import pytest
import torch

from tdlm_fast import export
from tdlm_fast.exchange import gguf_file
from tdlm_fast.runs.load import load_run

pytestmark = pytest.mark.slow


def neighbours(x):
    """Rotary positions of x (T, H, K) as llama.cpp's arch llama and llada: dimensions 2 i and 2 i + 1 are a pair."""
    T, _, K = x.shape
    angle = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(0, K, 2).double() / K)
    z = torch.view_as_complex(x.reshape(*x.shape[:2], -1, 2).contiguous())
    return torch.view_as_real(z * torch.polar(torch.ones_like(angle), angle)[:, None]).flatten(-2)


def logits(reader, tokens, causal):
    """The logits (T, V) of a GGUF file of these architectures, in fp64."""
    w = {t.name: torch.from_numpy(np.array(t.data)).double() for t in reader.tensors}
    arch = reader.fields["general.architecture"].contents()

    def key(name):
        return reader.fields[f"{arch}.{name}"].contents()

    def norm(x, weight):
        return x * (x.square().mean(-1, keepdim=True) + key("attention.layer_norm_rms_epsilon")).rsqrt() * weight

    heads, x = key("attention.head_count"), w["token_embd.weight"][tokens]
    T = len(tokens)
    for i in range(key("block_count")):

        def own(name):
            return w[f"blk.{i}.{name}.weight"]  # noqa: B023  it is called in this round

        y = norm(x, own("attn_norm"))
        q, k, v = ((y @ own(f"attn_{n}").T).view(T, heads, -1) for n in "qkv")
        q, k, v = (z.transpose(0, 1)[None] for z in (neighbours(q), neighbours(k), v))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)[0].transpose(0, 1).flatten(1)
        x = x + y @ own("attn_output").T
        y = norm(x, own("ffn_norm"))
        x = x + (torch.nn.functional.silu(y @ own("ffn_gate").T) * (y @ own("ffn_up").T)) @ own("ffn_down").T
    return norm(x, w["output_norm.weight"]) @ w["output.weight"].T


@pytest.mark.parametrize("objective", ["diffusion", "autoregressive"])
@torch.no_grad()
def test_the_file_holds_every_tensor_and_computes_the_runs_probabilities(runs, objective, tmp_path, capsys, references):
    gguf = pytest.importorskip("gguf", reason="needs gguf: pip install tdlm_fast[export]")
    run, causal = runs[objective], objective == "autoregressive"
    assert export.main([str(run), "--to", "gguf", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "README.md"), str(tmp_path / "run.gguf")]
    model = load_run(run, "best", "cpu")[2]
    V, written = model.mask_token_id, gguf_file.tensors_of(model, objective)
    reader = gguf.GGUFReader(tmp_path / "run.gguf")
    assert not gguf_file.differences(tmp_path / "run.gguf", written)
    values = {name: field.contents() for name, field in reader.fields.items()}
    assert values["general.architecture"] == ("llama" if causal else "llada")
    assert len(values["tokenizer.ggml.tokens"]) == V + (not causal) and len(values["tokenizer.ggml.merges"]) == 768
    assert values["tokenizer.ggml.bos_token_id"] == 1024 and values["tokenizer.ggml.add_bos_token"] == causal
    if not causal:
        assert values["tokenizer.ggml.mask_token_id"] == V and values["diffusion.shift_logits"] is False
        assert values["llada.attention.causal"] is False and values["tdlm_fast.bound"] == "upper bound"
    tokens = torch.randint(0, V + (not causal), (20,), generator=torch.Generator().manual_seed(1))
    ours = (model.double()(tokens[None], causal=causal)[0] @ model.head.T).log_softmax(-1)
    assert (ours - logits(reader, tokens, causal)[:, :V].log_softmax(-1)).abs().max() <= 1e-5


def test_a_file_with_another_value_is_told_apart(runs, tmp_path):
    pytest.importorskip("gguf", reason="needs gguf: pip install tdlm_fast[export]")
    assert export.main([str(runs["autoregressive"]), "--to", "gguf", "--out", str(tmp_path)]) == 0
    tensors = gguf_file.tensors_of(load_run(runs["autoregressive"], "best", "cpu")[2], "autoregressive")
    tensors["output.weight"][3, 3] += 1e-3
    assert gguf_file.differences(tmp_path / "run.gguf", tensors) == "output.weight differ"
    del tensors["output.weight"]
    assert gguf_file.differences(tmp_path / "run.gguf", tensors) == "its tensors are output.weight more or fewer"
