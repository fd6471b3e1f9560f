"""The text that a run was trained on, and its refusal where it has changed."""

from dataclasses import replace

import pytest

from tdlm_fast import config as settings
from tdlm_fast.config import ConfigError
from tdlm_fast.evaluation.trained_text import trained_text
from tdlm_fast.runs import checkpoint

pytestmark = pytest.mark.slow


def test_another_text_than_the_run_was_trained_on_is_refused(sharp_run, tmp_path):
    config = settings.load(sharp_run / "config.yaml")
    state = checkpoint.peek(sharp_run / "checkpoints" / "last.safetensors")
    paragraphs = trained_text(sharp_run, config, state)
    packed = trained_text(sharp_run, config, state, "packed")
    assert paragraphs.hash == packed.hash == state["corpus_hash"]
    assert paragraphs.splits["test"].words is None and packed.splits["test"].words > 0  # only packed rows hold it whole
    (tmp_path / "other.txt").write_text("another text altogether\n" * 400)
    other = replace(config, data=replace(config.data, path=str(tmp_path / "other.txt")))
    with pytest.raises(ConfigError, match=f"the text is not what {sharp_run} was trained on"):
        trained_text(sharp_run, other, state)
