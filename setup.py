"""Build what pyproject.toml cannot describe: the packages under kernels/ and their native CPU and CUDA libraries.

The libraries are plain C behind ctypes, so one build serves every Python and torch of a platform. Without a C++
compiler the installation continues, and the ops run as their torch references. Where a CUDA toolkit is found
(CUDA_HOME, or nvcc on the path) the CUDA kernels are built for TDLM_CUDA_ARCHS, by default "80 90". 80 also serves 86
and 89, and the last one is included as PTX too, which newer cards compile. TDLM_CUDA_ARCHS=none leaves them out.
TDLM_ZIG_TARGET names another platform, for which the compiler of the package ziglang builds the CPU library instead
(csrc/wheels.py). There a failure ends the build.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools < 70.1
    from wheel.bdist_wheel import bdist_wheel

FLAGS = "-std=c++17 -O3 -g0 -fvisibility=hidden -pthread -Wno-uninitialized -Wno-maybe-uninitialized"
# --threads=0 compiles the architectures in parallel. cudart is linked in, so it need not be found at run time.
CUDA_FLAGS = ["-std=c++17", "-O3", "--ftz=true", "--threads=0", "--cudart=static"]
ZIG_TARGET = os.environ.get("TDLM_ZIG_TARGET")
ARCHS = (os.environ.get("TDLM_CUDA_ARCHS") or "80 90").split()


def nvcc():
    """The CUDA compiler's path, or None."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return (home and shutil.which("nvcc", path=str(Path(home, "bin")))) or shutil.which("nvcc")


class BuildLibrary(build_ext):
    def get_ext_filename(self, fullname):
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext):
        cuda = ext is cuda_library
        if ZIG_TARGET and not cuda:
            return self.cross_compile(ext)
        try:
            (self.build_cuda if cuda else super().build_extension)(ext)
        except Exception as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            need = "a CUDA toolkit with its host compiler" if cuda else "a C++17 compiler (g++ or clang++)"
            print(
                f"tdlm_fast: no native {'CUDA' if cuda else 'CPU'} kernels ({why}); the slower torch references will "
                f"run{' on a GPU without Triton' if cuda else ''}. Install {need} and install tdlm_fast again to "
                "have them.",
                file=sys.stderr,
            )

    def cross_compile(self, ext):
        from setuptools.modified import newer_group  # setuptools >= 69

        out = Path(self.get_ext_fullpath(ext.name))
        if not newer_group([*ext.sources, *ext.depends], str(out)):
            return
        out.parent.mkdir(parents=True, exist_ok=True)
        zig = [sys.executable, "-m", "ziglang", "c++", "-target", ZIG_TARGET, "-shared", "-fPIC", "-s"]
        zig += ["-fno-sanitize=undefined", "-Wno-unknown-warning-option"]
        with tempfile.TemporaryDirectory() as made:  # for Windows an import library is made beside the DLL
            file = Path(made, "_native.dll" if "windows" in ZIG_TARGET else "_native.so")
            self.spawn([*zig, *ext.extra_compile_args, *ext.sources, "-o", str(file)])
            shutil.copyfile(file, out)

    def build_cuda(self, ext):
        out = Path(self.get_ext_fullpath(ext.name))
        out.parent.mkdir(parents=True, exist_ok=True)
        kinds = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHS]
        kinds.append(f"-gencode=arch=compute_{ARCHS[-1]},code=compute_{ARCHS[-1]}")  # newer cards compile this
        host = [] if sys.platform == "win32" else ["-Xcompiler=-fPIC,-fvisibility=hidden"]
        self.spawn([nvcc(), "-shared", *CUDA_FLAGS, *kinds, *host, *ext.sources, "-o", str(out)])


class PlatformWheel(bdist_wheel):
    def get_tag(self):  # the library depends on the platform, not on Python
        return "py3", "none", super().get_tag()[2]


library = Extension(
    "tdlm_fast.kernels.cpu._native",
    sources=sorted(map(str, Path("csrc/cpu").rglob("*.cpp"))),
    depends=sorted(map(str, Path("csrc/cpu").rglob("*.h"))),
    extra_compile_args=[*FLAGS.split(), "-Icsrc/cpu"],
    extra_link_args=["-pthread"],
    language="c++",
    optional=True,
)
cuda_library = Extension(
    "tdlm_fast.kernels.cuda._native",
    sources=["csrc/cuda/linear_cross_entropy.cu"],
    depends=["csrc/cuda/linear_cross_entropy.h", "csrc/cuda/warp_matmul.h"],
    optional=True,
)
setup(
    packages=[
        *find_packages(include=["tdlm_fast*"], exclude=["tdlm_fast.kernels*"]),
        "tdlm_fast.kernels",
        *(f"tdlm_fast.kernels.{name}" for name in find_packages("kernels")),
        "tdlm_fast.configs",
        "tdlm_fast.configs.controls",
    ],
    package_dir={"tdlm_fast.kernels": "kernels", "tdlm_fast.configs": "configs"},
    package_data={
        "": ["py.typed"],
        "tdlm_fast": ["demo_runs/*.json", "demo_runs/*/*.yaml", "demo_runs/*/checkpoints/*.safetensors"],
        "tdlm_fast.comparison": ["claim_files/*.json"],
        "tdlm_fast.configs": ["*.yaml"],
        "tdlm_fast.configs.controls": ["*.yaml"],
    },
    ext_modules=[library] + [cuda_library] * bool(nvcc() and ARCHS != ["none"]),
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
