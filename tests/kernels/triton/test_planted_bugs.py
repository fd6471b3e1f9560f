"""ttsem stops at a bug planted in a kernel: otherwise its silence about the others would prove nothing."""

import importlib.util
from pathlib import Path

import pytest
import torch

from tdlm_fast.kernels.triton import embedding
from tests.kernels.triton.machine import TTSEM

if not TTSEM:
    pytest.skip("plants bugs for ttsem", allow_module_level=True)

from ttsem.sanitize import KernelFault


def planted(right: str, wrong: str, folder: Path):
    """Return put_rows of a copy of embedding.py with one piece of it replaced."""
    source = Path(embedding.__file__).read_text()
    assert source.count(right) == 1
    file = folder / "planted.py"
    file.write_text(source.replace(right, wrong))
    spec = importlib.util.spec_from_file_location(f"{embedding.__package__}.planted", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.put_rows


INSIDE, STORE, START = "on[:, None] & (d < D)[None, :]\n    dx", "tl.store(DH + row[:, None] * D", "dx.new_zeros(N, dx"


@pytest.mark.parametrize("rows", [1, 40])
def test_a_kernel_without_a_bug_runs(rows, tmp_path):
    dx = torch.randn(rows, 1021)
    assert torch.equal(planted(INSIDE, INSIDE, tmp_path)(dx, torch.arange(rows), None, rows), dx)


def test_a_store_past_the_end(tmp_path):
    wrong = planted(INSIDE, INSIDE.replace("< D", "< D + 3"), tmp_path)
    with pytest.raises(KernelFault, match="3 element.* past the end"):
        wrong(torch.randn(1, 1021), torch.arange(1), None, 1)


def test_two_programs_that_write_one_element(tmp_path):
    wrong = planted(STORE, STORE.replace("row[:, None]", "row[:, None] // 2"), tmp_path)
    with pytest.raises(KernelFault, match="program instances .* both touch element"):
        wrong(torch.randn(40, 1021), torch.arange(40), None, 40)


def test_memory_that_nothing_wrote(tmp_path):
    wrong = planted(START, START.replace("zeros", "empty"), tmp_path)
    assert wrong(torch.randn(2, 16), torch.tensor([0, 2]), None, 3)[1].isnan().all()
