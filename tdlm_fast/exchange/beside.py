"""Score models of others on the rows of a run, so that they stand beside it in its table of likelihoods.

Each row of the run is decoded, and its text is given to the model's own tokenizer. Where that makes the same tokens of
every row, the rows themselves are scored, and all figures can be compared. Elsewhere a row holds the same text in other
tokens, and only bits per byte can.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..config import ConfigError
from ..data.dataset import Split
from ..data.tokenizer import Tokenizer
from ..evaluation import exact_likelihood
from ..evaluation.likelihood import final_scoring, likelihood
from ..evaluation.table import measured
from ..runs.load import load_run, trained_text
from .foreign import Ids, check_tokens, load, start_of, unknown


def row_texts(split: Split, tokenizer: Tokenizer) -> list[str]:
    """Return the text of each row; a character that a row holds only a part of is left out."""
    parts = [split.tokens[s : s + n].tolist() for s, n in zip(split.starts, split.lengths, strict=True)]
    return [tokenizer.decode(part).strip("\ufffd") for part in parts]


def in_tokens(texts: list[str], ids: Ids) -> Split:
    """Return texts as rows of another tokenizer's tokens; bytes are those of the texts."""
    rows = [row for row in map(ids.encode, texts) if row]
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    flat = np.fromiter((token for row in rows for token in row), dtype=np.uint32)
    longest, size = int(lengths.max(initial=1)), sum(len(text.encode()) for text in texts)
    return Split(flat, lengths, longest, True, np.cumsum(lengths) - lengths, size, None)


def rows_beside(
    run: Path, folder: Path, *, sequences: int, draws: int, device: str, split: str, cut: int, trust: bool
) -> tuple[list[dict], int]:
    """Return (rows for the table of a run, their unknown tokens) of the model in folder; options as of its table.

    Raises ConfigError where the folder holds no model that can be scored on these rows.
    """
    model, ids, objective = load(folder, trust, device)
    start = start_of(ids, objective, folder)
    config, tokenizer, _, state = load_run(run, None, "cpu")
    whole = trained_text(run, config, state).splits[split]
    whole = exact_likelihood.cut(whole, cut, tokenizer) if cut else whole
    few = exact_likelihood.subset(whole, sequences, tokenizer, seed=config.seed)
    texts = row_texts(whole, tokenizer)
    other = any(ids.encode(text) != tokenizer.encode(text) for text in texts)
    if other:
        whole, few = in_tokens(texts, ids), in_tokens(row_texts(few, tokenizer), ids)
    longest, around, most = int(whole.lengths.max()), len(model.before) + len(model.after), model.most_tokens
    if most and longest + around > most:
        needed = f"a row has {longest} tokens and {around} around them; this model reads {most}"
        raise ConfigError(f"--hf {folder}: {needed}; --cut N scores the first N tokens of each row")
    check_tokens(model, whole, start, folder)
    scoring: dict[str, Any] = final_scoring(config, tokenizer) | dict(start_token_id=start, precision="fp32")
    score = likelihood(model, whole, objective, **scoring)
    as_theirs = replace(config, objective=objective, precision="fp32")
    rows, _ = measured(as_theirs, model, score, whole, few, start, draws)
    about = {"of": str(folder)} | ({"other_tokens": True} if other else {})
    return [row | about for row in rows], unknown(whole, ids, start)
