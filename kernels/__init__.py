"""The fused operations and the choice of what runs them; docs/kernels.md shows how to use them."""

if __name__ == "kernels":
    raise ImportError("this folder is imported as tdlm_fast.kernels (pip install -e .), not as kernels")

from . import cpu, cuda, triton  # noqa: E402, F401
from .dispatch import available_backends, use_backend, use_environment  # noqa: E402
from .ops.attention import attention, self_attention  # noqa: E402
from .ops.corrupt import Corruption, corrupt  # noqa: E402
from .ops.embedding import embedding  # noqa: E402
from .ops.linear_cross_entropy import linear_cross_entropy  # noqa: E402
from .ops.rms_norm import add_rms_norm, rms_norm  # noqa: E402
from .ops.rows import take_rows  # noqa: E402
from .ops.swiglu import swiglu  # noqa: E402

__all__ = [
    "Corruption", "add_rms_norm", "attention", "available_backends", "corrupt", "embedding", "linear_cross_entropy",
    "rms_norm", "self_attention", "swiglu", "take_rows", "use_backend",
]  # fmt: skip

use_environment()
