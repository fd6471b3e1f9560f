"""The compiled CUDA kernels do not spill, fit on each card, and resources-cuda.json holds what nvcc gives."""

import json
import shutil

import pytest

from bench.without_gpu import resources_cuda

pytestmark = pytest.mark.slow


def test_no_compiled_kernel_spills_or_takes_more_shared_memory_than_a_card_has():
    record = json.loads(resources_cuda.RESULT.read_text())
    assert record["sources"] == resources_cuda.digest(), "csrc/cuda has changed: make resources-cuda"
    for arch in ("sm_80", "sm_86", "sm_90"):
        assert len(record[arch]) == len(resources_cuda.KERNELS)
        for kernel, r in record[arch].items():
            assert r["stack"] == r["spills"] == 0 and r["shared"] <= 99 << 10 and r["blocks"] >= 1
            tensor_cores = "<float" not in kernel and "combine" not in kernel
            assert (r["hmma"] > 0) == (r["wmma"] > 0) == tensor_cores


@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not here")
@pytest.mark.parametrize("arch", [86, 90])
def test_the_record_of_resources_is_what_nvcc_gives(arch):
    record = json.loads(resources_cuda.RESULT.read_text())
    if record["nvcc"] != resources_cuda.nvcc_version():
        pytest.skip(f"the record is of nvcc {record['nvcc']}, here is {resources_cuda.nvcc_version()}")
    kernels = [(k, "__nv_bfloat16", 64) for k in ("forward", "weight")]
    for kernel, result in resources_cuda.compiled(arch, kernels).items():
        expected = record[f"sm_{arch}"][kernel]
        assert result == (expected if result["hmma"] is not None else expected | {"hmma": None})
