"""Finished cells with losses that are given."""


def curve_of(objective, losses, *, seed=1, arm=None, unique=1000, blocks=100, size="0.1M"):
    """Return a cell evaluated after 0, 1, 2, … epochs; an epoch is 10 steps and 1e6 FLOPs."""
    points = [
        {"step": 10 * e, "epochs": float(e), "nats": nats, "stderr": 0.001, "flops": 1e6 * e}
        for e, nats in enumerate(losses)
    ]  # fmt: skip
    return {
        "name": f"{objective}{seed}", "objective": objective, "arm": arm or objective, "seed": seed, "size": size,
        "unique_tokens": unique, "epochs": float(len(losses) - 1), "blocks": blocks, "points": points,
        "test": losses[-1], "source": None, "orders": {},
    }  # fmt: skip
