"""Options of a sampler: what is refused, and how steps are shared out to blocks."""

import pytest
from conftest import torch_free

from tdlm_fast.sampling.options import SamplerOptions


@pytest.mark.parametrize("options, message", [
    (dict(block=4), "block 4 does not divide the 7 new tokens"), (dict(remask=1.5), "remask is 1.5; it must lie in"),
    (dict(tokens=6, block=2, steps=4), "steps 4 must be a multiple of the 3 blocks"), (dict(remask=0.0), "remask is 0"),
    (dict(remask=0.5, method="top"), "remask needs method ancestral, not top"), (dict(steps=0), "for one step a token"),
    (dict(method="best"), "method is 'best'; known are ancestral"), (dict(unmasking="sine"), "cosine-maskgit"),
    (dict(temperature=float("nan")), "temperature is nan; it must be at least 0 and finite"), (dict(top_k=-1), "top-k"),
    (dict(top_p=0.0), "^top-p is 0.0; it must lie in 0 < top-p <= 1"), (dict(tokens=0), "tokens is 0"),
    (dict(seed=2**63 - 1, number=2), "with number 2 it must be at most 2\\^63 - 2"), (dict(number=0), "number is 0"),
    (dict(steps=2 * 10**9), "steps is 2000000000; it must be at most 100,000"),
    (dict(tokens=2**31), "at most 2,147,483,647"),
])  # fmt: skip
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SamplerOptions(**{"tokens": 7} | options)


def test_steps_are_shared_out_to_blocks_and_counted_methods_need_no_more_than_tokens():
    for options, blocks, steps in (
        (dict(), 1, 12), (dict(steps=40), 1, 40), (dict(steps=40, method="top"), 1, 12), (dict(block=4), 3, 4),
        (dict(block=4, steps=30, method="random"), 3, 4), (dict(block=4, steps=6), 3, 2),
    ):  # fmt: skip
        result = SamplerOptions(tokens=12, **options)
        assert (result.blocks, result.steps_per_block) == (blocks, steps), options


@pytest.mark.parametrize("args, says", [("--help", "usage"), ("RUN --top-p 2", "top-p is 2.0"), ("RUN --x", "usage")])
def test_sample_checks_its_options_before_torch_is_loaded(args, says):
    assert says in torch_free("sample", *args.split())
