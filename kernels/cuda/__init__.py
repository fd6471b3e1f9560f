"""The native CUDA kernels: the module adds its links to the chains of dispatch."""

from . import library, linear_cross_entropy

__all__ = ["library", "linear_cross_entropy"]
