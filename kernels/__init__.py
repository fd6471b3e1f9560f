"""The fused operations, one a file: `tdlm_fast.kernels`."""

if __name__ == "kernels":
    raise ImportError("this folder is imported as tdlm_fast.kernels (pip install -e .), not as kernels")

from . import gpu, native, native_cuda  # noqa: E402
from .attention import attention  # noqa: E402
from .corrupt import Corruption, corrupt  # noqa: E402
from .embedding import embedding, take_rows  # noqa: E402
from .linear_cross_entropy import linear_cross_entropy  # noqa: E402
from .rms_norm import add_rms_norm, rms_norm  # noqa: E402
from .swiglu import swiglu  # noqa: E402

__all__ = [
    "Corruption", "add_rms_norm", "attention", "corrupt", "embedding", "gpu", "linear_cross_entropy", "native",
    "native_cuda", "rms_norm", "swiglu", "take_rows",
]  # fmt: skip
