"""Train tiny language models, masked diffusion against autoregressive.

config, tokenizer, model, state = tdlm_fast.load_run("runs/tiny-diffusion-seed42")
"""

import typing

if typing.TYPE_CHECKING:
    from .runs.load import load_run as load_run

__all__ = ["__version__", "load_run"]
__version__: str


def __getattr__(name: str):
    """Import what is asked for when it is first used: PyTorch takes seconds to load."""
    if name == "load_run":
        from .runs.load import load_run

        return load_run
    if name == "__version__":
        import importlib.metadata

        return importlib.metadata.version("tdlm_fast")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
