"""The native CPU library: which instruction set runs, what happens without the library, and in a forked process."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from tdlm_fast.kernels import linear_cross_entropy
from tdlm_fast.kernels.cpu import library as native


def test_the_references_run_without_the_library(monkeypatch):
    monkeypatch.setattr(native, "handle", None)
    monkeypatch.setattr(native, "_missing", "the library was not built")
    try:
        native.use(None)
        assert native.describe() == "torch references: the library was not built"
        h, w, y = torch.randn(5, 16), torch.randn(3, 16), torch.tensor([0, 2, 1, 1, 0])
        torch.testing.assert_close(linear_cross_entropy(h, w, y), F.cross_entropy(h @ w.T, y, reduction="sum"))
        with pytest.raises(ValueError, match="avx2.*not built"):
            native.use("avx2")
    finally:
        monkeypatch.undo()
        native.use(os.environ.get("TDLM_CPU_ISA"))


NEEDS = {  # as Linux names them
    "portable": set(), "avx2": {"avx2", "fma"}, "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx512_bf16": {"avx512_bf16"},
}  # fmt: skip


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="Linux lists the instruction sets there")
def test_the_instruction_sets_are_those_that_the_operating_system_lists():
    if native.missing():
        pytest.skip(native.missing())
    with open("/proc/cpuinfo") as file:
        flags = {flag for line in file if line.startswith("flags") for flag in line.split()}
    expected: list[str] = []
    for name in native.ISAS:  # each set needs those before it
        if not NEEDS[name] <= flags:
            break
        expected.insert(0, name)
    assert native.available() == expected


def python(code, isa):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TDLM_CPU_ISA": isa},
        capture_output=True,
        text=True,
        timeout=600,  # only what hangs
    )


def test_an_unknown_instruction_set_is_one_clear_error():
    done = python("import tdlm_fast.kernels", "avx3")
    assert done.returncode and "ValueError: TDLM_CPU_ISA is 'avx3'; it must be one of" in done.stderr


def test_a_forked_child_computes_and_both_processes_exit():
    code = """if True:
        import os, torch
        from tdlm_fast.kernels import linear_cross_entropy
        from tdlm_fast.kernels.cpu import library as native
        h, w, y = torch.randn(900, 16), torch.randn(1000, 16), torch.arange(900)
        loss = linear_cross_entropy(h, w, y)
        child = os.fork()
        if not child:
            os._exit(0 if linear_cross_entropy(h, w, y) == loss else 1)
        assert os.waitpid(child, 0)[1] == 0
        print(native.describe())
    """
    done = python(code, "portable")
    assert done.stdout == "portable: chosen as TDLM_CPU_ISA=portable\n", done.stderr
