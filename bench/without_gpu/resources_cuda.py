"""Compile the CUDA kernels and read their resources: `python -m bench.without_gpu.resources_cuda`.

No GPU is needed (`make resources-cuda` runs it). Registers, stack and spills come from ptxas, shared memory is the size
of the tiles, and hmma counts the tensor core instructions in the machine code (cuobjdump). blocks is how many blocks of
128 threads fit a multiprocessor by these figures.
"""

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
RESULT = ROOT / "bench" / "results" / "resources-cuda.json"
TYPES = {"float": "f", "__nv_bfloat16": "13__nv_bfloat16", "__half": "6__half"}  # as C++ mangles them
WIDTHS = (64, 128, 256)
KERNELS = [(k, t, w) for t in TYPES for k, w in [(k, w) for w in WIDTHS for k in ("forward", "weight")]]
KERNELS += [("combine", t, None) for t in TYPES]
SHARED_KB, WARPS = {80: 164, 86: 100, 90: 228}, {80: 64, 86: 48, 90: 64}  # of a multiprocessor; a block takes 1 KB more


def digest() -> str:
    """A digest of the sources, by which a record of other sources is noticed."""
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted((ROOT / "csrc/cuda").glob("*.[hc]*")))).hexdigest()


def cuobjdump() -> str | None:
    """Its path: that of the system or that inside Triton, or None."""
    triton = importlib.util.find_spec("triton")
    inside = Path(triton.origin).parent / "backends/nvidia/bin" if triton and triton.origin else None
    return shutil.which("cuobjdump") or (inside and shutil.which("cuobjdump", path=str(inside)))


def name(kernel: str, dtype: str, width: int | None) -> str:
    return kernel + f"<{dtype}{f', {width}' if width else ''}>"


def shared_bytes(kernels: list) -> dict[str, int]:
    """Shared memory of each kernel, from the C++ compiler and the tests' stand-in for CUDA."""
    lines = "".join(f'printf("%zu\\n", sizeof(Tiles<{t}, {w}>));' for _, t, w in kernels if w)
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "sizes.cpp"), Path(folder, "sizes")
        source.write_text(f'#include "linear_cross_entropy.h"\nint main() {{ {lines} }}\n')
        folders = f"-I{ROOT}/tests/kernels/cuda", f"-I{ROOT}/csrc/cuda"
        command = ["g++", "-std=c++17", "-w", *folders, source, "-o", program]
        subprocess.run(command, check=True)
        sizes = iter(subprocess.run([program], capture_output=True, text=True, check=True).stdout.split())
    return {name(k, t, w): int(next(sizes)) if w else 0 for k, t, w in kernels}


def compiled(arch: int, kernels: list) -> dict[str, dict]:
    """Per kernel {"registers", "stack", "spills", "shared", "blocks", "wmma" in PTX, "hmma" or None}."""
    whole = "".join(f"template __global__ void {name(*k)}(Lce);\n" for k in kernels)
    mangled = {f"_Z{len(k)}{k}I{TYPES[t]}{f'Li{w}E' if w else ''}Ev3Lce": name(k, t, w) for k, t, w in kernels}
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernels.cu"), Path(folder, "kernels.cubin")
        source.write_text(f'#include "linear_cross_entropy.h"\n{whole}')
        command = ["nvcc", "-std=c++17", "-O3", "--ftz=true", f"-arch=sm_{arch}", "-cubin", "-Xptxas=-v", "--keep"]
        command += [f"--keep-dir={folder}", f"-I{ROOT}/csrc/cuda", str(source), "-o", str(cubin)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode:
            raise RuntimeError(f"nvcc does not compile the kernels:\n{done.stderr}")
        ptx = Path(folder, "kernels.ptx").read_text()
        tool = cuobjdump()
        code = tool and subprocess.run([tool, "-sass", cubin], capture_output=True, text=True, check=True).stdout
    figures, shared = {}, shared_bytes(kernels)
    account = r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores.*?Used (\d+) registers"
    for symbol, stack, spills, registers in re.findall(account, done.stderr, re.DOTALL):
        kernel, registers = mangled[symbol], int(registers)
        body = ptx.split(f".entry {symbol}(")[1].split(".entry ")[0]
        hmma = code and code.split(f"Function : {symbol}\n")[1].split("Function :")[0].count("HMMA.")
        most = 65536 // (-(-registers // 8) * 8 * 128), (SHARED_KB[arch] << 10) // (shared[kernel] + 1024)
        figures[kernel] = dict(
            registers=registers, stack=int(stack), spills=int(spills), shared=shared[kernel],
            blocks=min(*most, WARPS[arch] // 4), wmma=body.count("wmma.mma.sync"), hmma=hmma,
        )  # fmt: skip
    if len(figures) != len(kernels):
        raise RuntimeError(f"nvcc's account names {len(figures)} of {len(kernels)} kernels:\n{done.stderr}")
    return figures


def nvcc_version() -> str:
    return re.search(r"V([\d.]+)", subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout)[1]


def main() -> int:
    if not cuobjdump():
        print("no cuobjdump: pip install triton, which brings it", file=sys.stderr)
        return 1
    figures = {f"sm_{arch}": compiled(arch, KERNELS) for arch in SHARED_KB}
    RESULT.write_text(json.dumps({"nvcc": nvcc_version(), "sources": digest(), **figures}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
