"""Score what any model of a sweep should beat, on its validation split: a unigram and a 5-gram of the same tokens.

For text of a Markov source, also the entropy of the source, which no model beats but by chance.
"""

from pathlib import Path

from .. import config as settings
from ..runs.files import LAST
from ..runs.metrics import finished
from .plan import Cell
from .work import folder_of


def baselines(out: Path, cells: list[Cell]) -> list[dict]:
    """Return {"unique_tokens", "unigram", "5-gram", "source"} for each number of tokens, in nats per token.

    They are of the first finished cell with these tokens. Its text is read again; "missing" says why it could not be.
    "source" is None for other text.
    """
    first: dict[int, Cell] = {}
    for cell in cells:
        if cell.unique_tokens not in first and finished(folder_of(out, cell), remake=True):
            first[cell.unique_tokens] = cell
    return [{"unique_tokens": unique} | _of(folder_of(out, cell), cell) for unique, cell in sorted(first.items())]


def _of(folder: Path, cell: Cell) -> dict:
    from ..evaluation.kneser_ney import kneser_ney
    from ..evaluation.source_entropy import source
    from ..evaluation.unigram import unigram
    from ..runs import checkpoint
    from ..runs.load import trained_text

    state = checkpoint.peek(folder / LAST)
    if not state:
        return {"missing": f"{cell.name} has no checkpoint"}
    try:
        corpus = trained_text(folder, cell.config, state)
    except settings.ConfigError as e:
        return {"missing": str(e).replace(str(folder), cell.name)}
    train, valid, vocab = corpus.splits["train"], corpus.splits["valid"], corpus.tokenizer.vocab
    known = source(cell.config.data, valid)
    one, five = (score(train, valid, vocab).nats_per_token for score in (unigram, kneser_ney))
    return {"unigram": one, "5-gram": five, "source": known.entropy if known else None}
