"""The fused operations, one a file: `tdlm_fast.kernels`."""

if __name__ == "kernels":
    raise ImportError("this folder is imported as tdlm_fast.kernels (pip install -e .), not as kernels")

from .cpu import library as native  # noqa: E402
from .cuda import library as native_cuda  # noqa: E402
from .ops.attention import attention  # noqa: E402
from .ops.corrupt import Corruption, corrupt  # noqa: E402
from .ops.embedding import embedding, take_rows  # noqa: E402
from .ops.linear_cross_entropy import linear_cross_entropy  # noqa: E402
from .ops.rms_norm import add_rms_norm, rms_norm  # noqa: E402
from .ops.swiglu import swiglu  # noqa: E402
from .triton import register as gpu  # noqa: E402

__all__ = [
    "Corruption", "add_rms_norm", "attention", "corrupt", "embedding", "gpu", "linear_cross_entropy", "native",
    "native_cuda", "rms_norm", "swiglu", "take_rows",
]  # fmt: skip
