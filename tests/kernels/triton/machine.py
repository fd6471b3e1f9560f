"""Where the tests of this folder run the kernels: on a GPU, in Triton's interpreter, or under ttsem.

TRITON_INTERPRET=1   Triton's interpreter executes the kernels' Python on CPU tensors
TDLM_TTSEM=1         ttsem executes the IR that Triton compiles for sm_90, on CPU tensors
"""

import os

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TTSEM = os.environ.get("TDLM_TTSEM") == "1"
ON_GPU = torch.cuda.is_available() and not (INTERPRETED or TTSEM)
RUNS_KERNELS = INTERPRETED or TTSEM or ON_GPU
DEVICE = "cuda" if ON_GPU else "cpu"

# Triton's interpreter multiplies bf16 wrongly and raises nothing.
HALVES = (torch.float16,) if INTERPRETED else (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, *HALVES)
