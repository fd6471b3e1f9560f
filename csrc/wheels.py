"""Build a source distribution and wheels into dist/, without a compiler: `python csrc/wheels.py [PLATFORM …]`.

The C++ compiler in the package ziglang builds csrc/cpu for every platform from any other. The wheels are built from the
unpacked source distribution, so they show that it is whole. The same commit and tools give the same bytes.

A small C program (csrc/smoke.c) then calls the library in each wheel: natively, under qemu-aarch64 or under wine, where
these are installed. A line reports each wheel, and what could not be run.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD, DIST = ROOT / "build" / "wheels", ROOT / "dist"
LIBRARY = "tdlm_fast/kernels/cpu/_native.so"
TARGETS = {  # of pip, and of Zig
    "manylinux2014_x86_64": "x86_64-linux-gnu.2.17",
    "manylinux2014_aarch64": "aarch64-linux-gnu.2.17",
    "macosx_11_0_arm64": "aarch64-macos.11.0",
    "macosx_10_15_x86_64": "x86_64-macos.10.15",
    "win_amd64": "x86_64-windows-gnu",
}
RUNNERS = {  # the words before a program of a platform
    "manylinux2014_x86_64": [],
    "manylinux2014_aarch64": ["qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"],  # Debian's libc6-arm64-cross
    "win_amd64": ["wine"],
}


def unpacked(dist: Path, into: Path) -> Path:
    """Build the source distribution into dist; return the folder below `into` that it is unpacked in."""
    egg = into / "egg"
    shutil.rmtree(into, ignore_errors=True)
    egg.mkdir(parents=True)
    words = ["-q", "egg_info", "--egg-base", egg, "sdist", "--dist-dir", dist]
    subprocess.run([sys.executable, "setup.py", *map(str, words)], cwd=ROOT, check=True)
    archive = max(dist.glob("tdlm_fast-*.tar.gz"), key=lambda p: p.stat().st_mtime)
    shutil.unpack_archive(archive, into)
    return into / archive.name.removesuffix(".tar.gz")


def build(source: Path, platform: str, dist: Path, compiler: dict[str, str]) -> Path:
    """Build the wheel of a platform from unpacked sources into dist; return its path. compiler: for setup.py."""
    base = source.parent / platform
    shutil.rmtree(base, ignore_errors=True)
    words = ["-q", "build", "--build-base", base, "bdist_wheel", "--plat-name", platform, "--dist-dir", dist]
    environment = os.environ | {"TDLM_CUDA_ARCHS": "none"} | compiler
    subprocess.run([sys.executable, "setup.py", *map(str, words)], cwd=source, check=True, env=environment)
    return dist / f"{source.name}-py3-none-{platform}.whl"


def audited(wheel: Path, platform: str) -> str:
    """Return in words which glibc a wheel for Linux needs, by auditwheel. Exits where its name says another."""
    if "linux" not in platform:
        return ""
    command = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
    shown = " ".join(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    tag = "manylinux_2_17_" + platform.removeprefix("manylinux2014_")
    if f'platform tag: "{tag}"' not in shown:
        sys.exit(f"{wheel.name}: auditwheel: {shown}")
    return f"auditwheel: {tag}. "


def smoke(wheel: Path, platform: str, folder: Path) -> str:
    """Call the library in a wheel from a C program that is built in folder; return in words what came of it."""
    with zipfile.ZipFile(wheel) as file:
        library = file.extract(LIBRARY, folder)
    runner, windows = RUNNERS.get(platform), platform.startswith("win")
    if runner is None or runner and not shutil.which(runner[0]):
        return f"not run: {runner[0] + ' is not installed' if runner else 'no emulator'}"
    program = folder / ("smoke.exe" if windows else "smoke")
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", TARGETS[platform], "-O1", "-fno-sanitize=undefined"]
    subprocess.run(
        [*zig, str(ROOT / "csrc" / "smoke.c"), "-o", str(program), *([] if windows else ["-lm", "-ldl"])], check=True
    )
    result = subprocess.run([*runner, str(program), library], capture_output=True, text=True, timeout=600)
    if result.returncode:
        sys.exit(f"{wheel.name}: its library fails: {result.stdout.strip()} {result.stderr.strip()}")
    return result.stdout.strip()


def main() -> None:
    platforms = sys.argv[1:] or list(TARGETS)
    if unknown := [p for p in platforms if p not in TARGETS]:
        sys.exit(f"{unknown[0]}: no such platform; they are {', '.join(TARGETS)}")
    if "SOURCE_DATE_EPOCH" not in os.environ:  # the times in a wheel
        command = ["git", "log", "-1", "--format=%ct"]
        os.environ["SOURCE_DATE_EPOCH"] = subprocess.check_output(command, cwd=ROOT, text=True).strip()
    os.umask(0o022)  # and its permissions
    DIST.mkdir(exist_ok=True)
    source = unpacked(DIST, BUILD)
    for platform in platforms:
        wheel = build(source, platform, DIST, {"TDLM_ZIG_TARGET": TARGETS[platform]})
        size = f"{wheel.stat().st_size / 1e6:.1f} MB"
        print(f"{wheel.name}  {size}  {audited(wheel, platform)}{smoke(wheel, platform, BUILD / platform)}", flush=True)


if __name__ == "__main__":
    main()
