"""Kernels that the product does not use yet: docs/gpu.md says what a GPU must show before it does.

`python -m bench.prototypes` compiles them without a GPU and writes bench/results/prototypes.json.
"""
