"""Print what the cells of a plan would cost on this machine, before anything is trained."""

from dataclasses import replace

from ..comparison.budgets import flops
from .plan import Cell

HEAD = ["cell", "what", "parameters", "of the blocks", "steps", "PFLOP", "memory, GB", "hours"]


def costs(cells: list[Cell]) -> list[list[str]]:
    """Return a row for each cell, and their sum. The hours are of training, at a rate measured here for each shape.

    Raises ConfigError where the text of a cell cannot be read, or holds too few tokens.
    """
    from ..data import dataset
    from ..data.batches import steps_per_epoch
    from ..model import build_model
    from ..training.branch import steps_of
    from ..training.limits import least_bytes, training_seconds

    rows, measured, corpora, total = [HEAD], {}, {}, [0.0, 0.0]
    for cell in cells:
        c = cell.config
        text = c.data, c.model.seq_len
        if text not in corpora:
            corpora[text] = dataset.load(*text)
        corpus = corpora[text]
        split = corpus.splits["train"]
        steps = steps_of(c, steps_per_epoch(split, c.train.batch_size))
        kind = replace(c.model, size=""), c.objective, c.train, c.precision
        if kind not in measured:
            model = build_model(c, corpus.tokenizer)
            seconds = min(training_seconds(model, split, c, 1) for _ in range(2))  # the first one loads kernels
            measured[kind] = model.count_by_part(), seconds
        parts, seconds = measured[kind]
        full = split.scored / max(1, len(split)) / c.model.seq_len  # the rest of a padded row bears no loss
        bears = (0.5 if c.objective == "diffusion" else 1.0) * full * steps * c.train.batch_size * c.model.seq_len
        flat = {"train.batch_size": c.train.batch_size, "model.seq_len": c.model.seq_len}
        flat |= {"model.layers": c.model.layers, "model.width": c.model.width}
        work = flops({"config": flat, "summary": {"parameters_by_part": parts}}, steps, int(bears)) or 0.0
        memory = least_bytes(c, corpus.tokenizer.vocab, max(map(len, corpus.splits.values()))) / 1e9
        hours = seconds * steps / 3600
        total = [total[0] + work, total[1] + hours]
        rows.append([
            cell.name, cell.title, f"{sum(parts.values()):,}", f"{parts['blocks']:,}", f"{steps:,}",
            f"{work / 1e15:.3g}", f"≥ {memory:.2g}", f"{hours:.2g}",
        ])  # fmt: skip
    rows.append(["all", f"{len(cells)} cells", "", "", "", f"{total[0] / 1e15:.3g}", "", f"{total[1]:.2g}"])
    return rows
