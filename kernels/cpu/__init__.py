"""The native CPU kernels: its modules add its links to the chains of dispatch."""

from . import attention, corrupt, library, linear_cross_entropy, norm_and_gate

__all__ = ["attention", "corrupt", "library", "linear_cross_entropy", "norm_and_gate"]
