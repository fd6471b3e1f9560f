"""Load models of others from a folder of Hugging Face's transformers."""

import importlib.metadata
import sys

from ..config import ConfigError


def transformers():
    """Return the package transformers. Raises ConfigError where it is not installed.

    transformers looks for an optional package named kernels, and takes the folder kernels of this project for it where
    Python is started there. So where no such package is installed, Python's imports are told that there is none.
    """
    try:
        importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
    try:
        import transformers
    except ImportError as e:
        raise ConfigError(f"this needs the package transformers ({e}): pip install transformers") from None
    return transformers
