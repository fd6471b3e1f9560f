"""Many texts at once: batches, blocks, prompts, and what does not fit."""

import pytest
from conftest import sharp_model

from tdlm_fast.sampling import draws
from tdlm_fast.sampling.options import METHODS, UNMASKING

from .conftest import T, arbitrary, batch, ids_of, written


@pytest.mark.parametrize("objective", ["diffusion", "autoregressive"])
def test_a_model_in_training_writes_without_dropout_and_trains_on(objective):
    model, kw = sharp_model(9), dict(tokens=8, seq_len=12, start_token_id=0)
    expected = ids_of(model, objective, [1], [], **kw)
    assert not model.training
    assert ids_of(model.train(), objective, [1], [], **kw) == expected and model.training


@pytest.mark.parametrize("method", METHODS[1:])
def test_more_steps_than_tokens_are_one_a_token(method):
    kw = dict(tokens=6, seq_len=8, start_token_id=0, method=method, number=2)
    result = batch(sharp_model(9), "diffusion", [1], [], steps=40, **kw)
    assert result.evaluations == 6 and result.rows == 12
    blocks = batch(sharp_model(9), "diffusion", [1], [], steps=40, block=3, **kw)
    assert blocks.evaluations == 6 and (result.ids < 9).all() and (blocks.ids < 9).all()


def test_blocks_are_written_from_left_to_right():
    seen, model = [], sharp_model(19)
    kw = dict(tokens=12, seq_len=16, start_token_id=0, steps=6, block=4)
    kw |= dict(on_step=lambda x: seen.append((x[0] == 19).tolist()))
    for method in METHODS:
        seen.clear()
        ids_of(model, "diffusion", [1], [2, 3], method=method, remask=0.5 if method == "ancestral" else None, **kw)
        for step, masked in enumerate(seen):
            done, current = 1 + 4 * (step // 2), 1 + 4 * (step // 2 + 1)
            assert not any(masked[:done]) and all(masked[current:13]) and not any(masked[13:])
            assert step % 2 == 0 or not any(masked[:current])


@pytest.mark.parametrize("objective, kw", [
    *[("diffusion", dict(method=m, steps=4)) for m in METHODS], ("diffusion", dict(remask=0.3, steps=9)),
    ("diffusion", dict(method="margin", temperature=0, block=5)), ("autoregressive", dict(top_p=0.9)),
])  # fmt: skip
def test_a_text_of_a_batch_is_the_text_of_its_own_seed(objective, kw, monkeypatch):
    model, suffix = sharp_model(19), [] if objective == "autoregressive" else [4]
    kw = dict(tokens=10, seq_len=16, start_token_id=0, seed=5) | kw
    singles = [ids_of(model, objective, [1, 2], suffix, **(kw | {"seed": 5 + i})) for i in range(6)]
    for logits in (1 << 24, 19 * 13):  # in one piece, and one or two texts at a time
        monkeypatch.setattr(draws, "LOGITS", logits)
        assert batch(model, objective, [1, 2], suffix, number=6, **kw).ids.tolist() == singles
    assert max(map(max, singles)) < 19
    assert len(set(map(tuple, singles))) > 1 or kw.get("temperature") == 0


def test_texts_that_a_step_does_not_change_are_not_read_again():
    model, calls = arbitrary(), []
    model.register_forward_hook(lambda m, args, out: calls.append(len(args[0])))
    result = written(model, texts=50, steps=40)
    assert (result.evaluations, result.rows) == (len(calls), sum(calls)) and result.rows <= 50 * T
    one = written(arbitrary(), texts=1, steps=40)
    assert one.evaluations == one.rows <= T


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("unmasking", UNMASKING)
@pytest.mark.parametrize("steps", [None, 1, 3])
def test_diffusion_fills_every_mask_and_keeps_the_prompt_at_both_ends(method, unmasking, steps):
    seen, kw = [], dict(tokens=7, seq_len=12, start_token_id=0, steps=steps, method=method, unmasking=unmasking)
    new = ids_of(sharp_model(9), "diffusion", [1, 2], [3], on_step=lambda x: seen.append(x.tolist()), **kw)
    assert len(new) == 7 and max(new) < 9 and new == ids_of(sharp_model(9), "diffusion", [1, 2], [3], **kw)
    assert all(x[0][:2] == [1, 2] and x[0][9:] == [3] for x in seen) and seen[-1][0][2:9] == new


@pytest.mark.parametrize("kw, message", [
    (dict(prefix=[1] * 6), r"6 \+ 7 \+ 0 tokens; model.seq_len is 12"),
    (dict(objective="autoregressive", suffix=[1]), "before a suffix"),
])  # fmt: skip
def test_what_does_not_fit_is_named(kw, message):
    kw = dict(objective="diffusion", prefix=[], suffix=[], tokens=7, seq_len=12, start_token_id=0) | kw
    model = sharp_model(9).train()
    with pytest.raises(ValueError, match=message):
        batch(model, **kw)
    assert model.training
