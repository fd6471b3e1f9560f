"""Start what runs the kernels on a CPU, once in a process: importing this file does, whichever folder is tested first.

checked is ttsem's session, or None.
"""

import contextlib

import torch

from tdlm_fast.kernels import hardware
from tdlm_fast.kernels.triton import register
from tests.kernels.triton.machine import ON_GPU, RUNS_KERNELS, TTSEM

RUNS = RUNS_KERNELS and not register.missing()

checked = None
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
