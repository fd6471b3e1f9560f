"""The words and figures of a model card."""

from tdlm_fast import config as settings
from tdlm_fast.exchange.card import card, figures, measured

TEST = dict(nats_per_token=6.0561, stderr=0.0083, ppl=426.9, bits_per_byte=2.0012, samples=6, tokens=9)
RUN = dict(corpus="sotu", steps=1765, parameters=6539776)


def test_a_bound_is_called_an_upper_bound_and_an_exact_figure_exact():
    bound = measured(TEST | RUN | {"bound": "upper bound"})
    assert "| upper bound |" in bound and "| 6.0561 ± 0.0083 (standard error) |" in bound
    assert "are an **upper bound**, estimated with 6 draws" in bound and "6,539,776 parameters" in bound
    exact = measured(TEST | RUN | {"bound": "exact", "samples": 0})
    assert "upper bound" not in exact and "| 6.0561 |" in exact and "exact" in exact
    assert "| bits per byte | 2.0012 |" in exact
    letters = measured(TEST | RUN | {"bound": "exact", "samples": 0, "bits_per_byte": None})
    assert "| bits per byte | – |" in letters


def test_the_card_names_the_task_and_the_way_to_use_it():
    kinds = {"diffusion": ("fill-mask", "MaskedLM"), "autoregressive": ("text-generation", "CausalLM")}
    for objective, (task, auto) in kinds.items():
        text = card(settings.load("configs/tiny.yaml", [f"objective={objective}"]), {}, "hf")
        assert text.startswith("---\nlibrary_name: transformers\n") and f"pipeline_tag: {task}\n" in text
        assert f"AutoModelFor{auto}" in text and "nothing is measured yet" in text
        assert "--layout paragraphs --seq-len 128" in text
    assert "must never draw `[MASK]`" in card(settings.load("configs/tiny.yaml"), {}, "gguf")


def test_a_run_that_is_not_finished_has_no_figures(tmp_path):
    assert figures(tmp_path) == {}
