"""Compare what runs have learnt."""

from safetensors.torch import load_file


def tensors_of(folder):
    """Return the weights and moments of the last checkpoint of a run."""
    return load_file(folder / "checkpoints" / "last.safetensors")


def same_tensors(first, second):
    """Return whether two runs have the same weights and moments, bit for bit."""
    a, b = tensors_of(first), tensors_of(second)
    return a.keys() == b.keys() and all((a[k] == b[k]).all() for k in a)
