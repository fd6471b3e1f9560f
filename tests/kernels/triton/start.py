"""Start what runs the kernels on a CPU, once in a process: importing this file does, whichever folder is tested first.

checked is ttsem's session, or None.
"""

import contextlib
import dataclasses

import torch

from tdlm_fast.kernels import hardware
from tdlm_fast.kernels.triton import register
from tests.kernels.triton.machine import INTERPRETED, ON_GPU, RUNS_KERNELS, TTSEM

RUNS = RUNS_KERNELS and not register.missing()

checked = None


def spare_the_interpreter():
    """Keep Triton's interpreter from work without an effect, which is two thirds of its time.

    It computes whether integers overflow, and then reports nothing, because its option `debug` is off. And it patches
    all of `triton.language` at every call of an inner function, though one launch needs that once for each module.
    """
    from triton.runtime import interpreter

    options = interpreter.interpreter_builder.options
    assert not options.debug
    interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)
    launch, patch, patched = interpreter.GridExecutor.__call__, interpreter._patch_lang, set()

    def launched(self, *args, **kwargs):
        patched.clear()  # a launch ends by undoing what it patched
        return launch(self, *args, **kwargs)

    def patch_lang(fn):
        if id(fn.__globals__) in patched:
            return None
        patched.add(id(fn.__globals__))
        return patch(fn)

    interpreter.GridExecutor.__call__, interpreter._patch_lang = launched, patch_lang


if INTERPRETED and RUNS:
    spare_the_interpreter()
if RUNS and not ON_GPU:
    register.register("cpu")
    torch.set_num_threads(1)
if TTSEM:
    from ttsem import _fakedriver, sanitize

    # It lasts as long as the process. Tensors stay on the CPU for Python code too: cuda_is_cpu would change them all.
    whole_process = contextlib.ExitStack()
    checked = whole_process.enter_context(sanitize.session(90, "<pytest>", cuda_is_cpu=False))
    _fakedriver.unstub_torch_cuda()
    hardware.INTERPRETER = hardware.Card((9, 0), 4)  # the interpreter runs the tiles of sm_86, ttsem those of sm_90
    # Memory that nothing wrote holds NaN, so a kernel that reads it gives NaN.
    torch.use_deterministic_algorithms(True, warn_only=True)
