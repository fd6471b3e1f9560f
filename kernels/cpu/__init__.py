"""The native CPU kernels: its modules add its links to the chains of dispatch.

A function that `implement` is given has the arguments and results of its op, which ops/ documents.
"""

from . import attention, corrupt, library, linear_cross_entropy, norm_and_gate

__all__ = ["attention", "corrupt", "library", "linear_cross_entropy", "norm_and_gate"]
