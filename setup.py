from setuptools import setup

setup(packages=["tdlm_fast", "tdlm_fast.kernels"], package_dir={"tdlm_fast.kernels": "kernels"})
