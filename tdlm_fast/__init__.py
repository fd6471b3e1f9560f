"""Train tiny language models, masked diffusion against autoregressive.

config, tokenizer, model, state = tdlm_fast.load_run("runs/tiny-diffusion-seed42")
"""

import sys
import typing

if sys.argv[:1] == ["-m"]:  # python -m tdlm_fast.VERB begins, whose modules take a moment to load

    def _interrupted(kind, value, traceback) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, value, traceback)
        elif sys.stderr:
            print("interrupted", file=sys.stderr)

    sys.excepthook = _interrupted  # the verb itself says more: see cli.exit_codes

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
