"""transformers' own classes compute what the run computes, from the exported folder."""

import pytest
import torch

from tdlm_fast.runs.load import load_run

pytestmark = pytest.mark.slow
LARGEST = 1e-5  # difference of two log-probabilities in fp64, from weights in fp32


def both(transformers, runs, exported, objective):
    """Return (our model in fp64, theirs, loaded without remote code)."""
    kind = {"diffusion": "AutoModelForMaskedLM", "autoregressive": "AutoModelForCausalLM"}[objective]
    theirs = getattr(transformers, kind).from_pretrained(exported[objective], dtype=torch.float64).eval()
    return load_run(runs[objective], "best", "cpu")[2].double(), theirs


@pytest.mark.parametrize("objective", ["diffusion", "autoregressive"])
@torch.no_grad()
def test_log_probabilities_are_equal(transformers, runs, exported, objective, references):
    model, theirs = both(transformers, runs, exported, objective)
    V, causal = model.mask_token_id, objective == "autoregressive"
    assert type(theirs).__name__ == ("LlamaForCausalLM" if causal else "EuroBertForMaskedLM")
    tokens = torch.randint(0, V + (not causal), (3, 24), generator=torch.Generator().manual_seed(0))
    if not causal:
        tokens[:, ::3] = V
    valid = torch.arange(24) < torch.tensor([24, 17, 3])[:, None]
    ours = (model(tokens, causal=causal, valid=valid) @ model.head.T).log_softmax(-1)
    logits = theirs(input_ids=tokens, attention_mask=valid.long()).logits
    assert ours.exp().amax(-1)[valid].mean() > 0.05  # far from uniform: 1 / 1025
    assert (ours - logits.log_softmax(-1)[..., :V])[valid].abs().max() <= LARGEST
    if not causal:
        assert (logits.softmax(-1)[..., V] == 0).all()


@torch.no_grad()
def test_generate_continues_a_text_as_the_run_does(transformers, runs, exported, references):
    from tdlm_fast.sampling.generate import generate_batch
    from tdlm_fast.sampling.options import SamplerOptions

    model, theirs = both(transformers, runs, exported, "autoregressive")
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported["autoregressive"])
    asked = tokenizer("the old mill", return_tensors="pt")
    ids = asked["input_ids"][0].tolist()
    start = ids[0]
    assert start == 1024 and tokenizer.decode(ids[1:]) == "the old mill"
    new = theirs.generate(**asked, max_new_tokens=12, do_sample=False)[0, len(ids) :].tolist()
    options = SamplerOptions(tokens=12, temperature=0)
    kw = dict(seq_len=24, start_token_id=start, forbidden=start)
    assert new == generate_batch(model, "autoregressive", ids[1:], [], options, **kw).ids[0].tolist()
    assert len(set(new)) > 1


def test_the_mask_is_one_token_of_the_text(transformers, exported):
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported["diffusion"])
    ids = tokenizer("The [MASK] of")["input_ids"]
    assert ids.count(1025) == 1 and tokenizer.mask_token_id == 1025 and tokenizer.model_max_length == 24
