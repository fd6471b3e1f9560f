"""The fused operations and the choice of what runs them; docs/kernels.md shows how to use them."""

if __name__ == "kernels":  # Python was started in the folder of the project, and a program asks for another package
    # transformers does, and reads the version of what it finds: this one is older than any that it takes.
    __version__, __path__ = "0", []

    def __getattr__(name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError("this folder is imported as tdlm_fast.kernels (pip install -e .), not as kernels")
else:
    from . import cpu, cuda, triton  # noqa: F401
    from .dispatch import available_backends, use_backend, use_environment
    from .ops.attention import attention, self_attention
    from .ops.corrupt import Corruption, corrupt
    from .ops.embedding import embedding
    from .ops.linear_cross_entropy import linear_cross_entropy
    from .ops.rms_norm import add_rms_norm, rms_norm
    from .ops.rows import take_rows
    from .ops.swiglu import swiglu

    __all__ = [
        "Corruption", "add_rms_norm", "attention", "available_backends", "corrupt", "embedding",
        "linear_cross_entropy", "rms_norm", "self_attention", "swiglu", "take_rows", "use_backend",
    ]  # fmt: skip

    use_environment()
