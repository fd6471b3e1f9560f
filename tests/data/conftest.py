"""A folder of text in three splits, and its corpus."""

import pytest

from tdlm_fast.config import Data as DataConfig
from tdlm_fast.data import dataset, sources

TEXT = "".join(f"Paragraph {i} says {'very ' * (i % 9)}little.\n = Heading = \n\n" for i in range(60))


@pytest.fixture
def folder(tmp_path):
    """A folder with TEXT as its training split and the beginnings of TEXT as the other two."""
    for split, text in zip(sources.SPLITS, (TEXT, TEXT[:700], TEXT[:900]), strict=True):
        (tmp_path / f"{split}.txt").write_text(text)
    return tmp_path


def load(folder, seq_len=32, **kw):
    """Return the corpus of such a folder, in bytes."""
    return dataset.load(DataConfig(path=str(folder), cache=str(folder / "cache"), tokenizer="bytes", **kw), seq_len)
