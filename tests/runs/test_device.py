"""Devices and kernels that this machine does not have."""

import os
import subprocess
import sys

import pytest

from tdlm_fast import evaluate, sample, train
from tests.running import TINY


def test_a_device_that_is_not_served_is_named(trained, capsys):
    folder, _ = trained
    for device in ("mps", "xpu", "foo", "cuda:x", "cpu:0", "cuda:²"):
        for verb in (evaluate, sample):
            assert verb.main([str(folder), "--device", device]) == 2
        assert train.main([TINY, f"device={device}"]) == 2
        assert capsys.readouterr().err.count(f"device is {device!r}; it must be auto, cpu, cuda or cuda:N") == 3


@pytest.mark.parametrize("verb", ["doctor", "train configs/tiny.yaml"])
def test_kernels_that_are_not_here_are_named(tiny, verb):
    command = [sys.executable, "-m", *f"tdlm_fast.{verb}".split(), *(tiny if "train" in verb else [])]
    ended = subprocess.run(command, env=os.environ | {"TDLM_CPU_ISA": "foo"}, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith("error: TDLM_CPU_ISA is 'foo'; it must be one of")
    assert len(ended.stderr.splitlines()) == 1
