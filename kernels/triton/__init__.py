"""The Triton kernels: register adds their links to the chains of dispatch, and imports none of the others.

A function that register names has the arguments and results of its op, which ops/ documents.
"""

from . import register

__all__ = ["register"]
