"""The Triton kernels: register adds their links to the chains of dispatch, and imports none of the others."""

from . import register

__all__ = ["register"]
