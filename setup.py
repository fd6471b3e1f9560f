"""Adds what pyproject.toml cannot say: where tdlm_fast.kernels lies, and its native CPU library.

The library is plain C behind ctypes, so one build serves every Python and torch of a platform. Without a C++
compiler the install goes on, and the kernels run as their torch references.
"""

import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools < 70.1
    from wheel.bdist_wheel import bdist_wheel

FLAGS = "-std=c++17 -O3 -g0 -fvisibility=hidden -pthread -Wno-uninitialized -Wno-maybe-uninitialized"


class BuildLibrary(build_ext):
    def get_ext_filename(self, fullname):
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext):
        try:
            super().build_extension(ext)
        except Exception as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            print(
                f"tdlm_fast: no native CPU kernels ({why}); the slower torch references will run. "
                "Install a C++17 compiler (g++ or clang++) and install tdlm_fast again to have them.",
                file=sys.stderr,
            )


class PlatformWheel(bdist_wheel):
    def get_tag(self):  # the library depends on the platform, not on Python
        return "py3", "none", super().get_tag()[2]


names = ("api", "corrupt", "portable", "avx2", "avx512", "avx512_bf16")
library = Extension(
    "tdlm_fast.kernels._native",
    sources=[f"csrc/cpu/{name}.cpp" for name in names],
    depends=[f"csrc/cpu/{name}.h" for name in ("kernels", "attend", "tile", "exp2", "target", "avx512")],
    extra_compile_args=FLAGS.split(),
    extra_link_args=["-pthread"],
    language="c++",
    optional=True,
)
setup(
    packages=["tdlm_fast", "tdlm_fast.kernels"],
    package_dir={"tdlm_fast.kernels": "kernels"},
    package_data={"tdlm_fast": ["claims.json"]},
    ext_modules=[library],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
