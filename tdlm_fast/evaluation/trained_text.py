"""Load the text that a run was trained on, to score the run on it."""

from dataclasses import replace
from pathlib import Path

from ..config import ConfigError
from ..data import dataset


def trained_text(folder: Path, config, state: dict, layout: str | None = None) -> dataset.Corpus:
    """Return the corpus of a run, in the config's layout or another one.

    state is the checkpoint's. Raises ConfigError where the text has changed: a sequence that is held out of another
    text may have been trained on.
    """
    data = replace(config.data, layout=layout or config.data.layout)
    corpus = dataset.load(data, config.model.seq_len, state.get("corpus"))
    if corpus.hash != state["corpus_hash"]:
        raise ConfigError(f"the text is not what {folder} was trained on; restore it")
    return corpus
