"""Which implementation runs: every op's chain, on every card, under every choice."""

import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tdlm_fast.kernels import available_backends, dispatch, hardware, swiglu, use_backend
from tdlm_fast.kernels.cpu import library as native
from tdlm_fast.kernels.cuda import library as native_cuda
from tdlm_fast.kernels.ops.linear_cross_entropy import lce_forward
from tdlm_fast.kernels.ops.swiglu import swiglu_forward
from tdlm_fast.kernels.triton import register
from tdlm_fast.runs import device

CPU = torch.device("cpu")
REFERENCE = [("reference", "")]
TRITON = {dispatch.name(op) for op, *_ in register.KERNELS}


def serving(chains: dict) -> dict[str, str]:
    """{op: the first backend that serves it}."""
    return {op: next(backend for backend, why in links if not why) for op, links in chains.items() if op != "attention"}


def on_card(capability: tuple[int, int]) -> dict:
    with FakeTensorMode(), hardware.pretend(capability, 46):
        return device.chains(CPU)


def test_every_op_has_triton_from_ampere_on_and_the_reference_before():
    assert serving(on_card((7, 5))) == dict.fromkeys(TRITON, "reference")
    for capability in ((8, 0), (8, 6), (9, 0), (12, 0)):
        chains = on_card(capability)
        assert serving(chains) == {op: "triton" for op in TRITON if op != "lce_sum"} | {"lce_sum": "reference"}
        assert ("triton", "the model is narrow enough for the fused form") in chains["lce_sum"]
    why = on_card((7, 5))["draw"][0]
    assert why == ("triton", "Triton kernels need compute capability 8.0")


@pytest.mark.parametrize("capability", [(7, 5), (8, 6)])
def test_one_choice_turns_every_op_to_its_reference_on_a_gpu(capability):
    with use_backend("reference"):
        chains = on_card(capability)
    assert {op for op, links in chains.items() if links == REFERENCE} == TRITON


def test_one_choice_turns_every_op_to_its_reference_on_the_cpu():
    before = serving(device.chains(CPU))
    with use_backend("reference"):
        assert serving(device.chains(CPU)) == dict.fromkeys(before, "reference")
        assert dispatch.server(swiglu_forward, torch.ones(2, 8)) is None
    assert serving(device.chains(CPU)) == before


def test_a_chosen_backend_comes_first_where_it_serves_and_the_rest_of_the_chain_follows(monkeypatch):
    monkeypatch.setattr(native_cuda, "_missing", "")
    with use_backend("cuda"):
        chains = on_card((8, 6))
        assert [backend for backend, _ in chains["lce_forward"]] == ["cuda", "triton", "triton", "reference"]
        assert serving({"swiglu": chains["swiglu"]}) == {"swiglu": "triton"}
    assert [backend for backend, _ in on_card((8, 6))["lce_forward"]] == ["triton", "triton", "cuda", "reference"]


def test_a_choice_lasts_or_ends_with_its_block():
    use_backend("reference")
    assert dispatch.chosen("cpu") == dispatch.chosen("cuda") == "reference"
    with use_backend(None):
        assert dispatch.chosen("cpu") is None
    assert dispatch.chosen("cpu") == "reference"
    use_backend(None)


def test_what_cannot_be_chosen_is_one_error_with_the_reason(monkeypatch):
    with pytest.raises(ValueError, match="'tritn' is unknown; it must be one of reference, cpu, cuda, triton"):
        use_backend("tritn")
    monkeypatch.setattr(native, "_missing", "the library was not built")
    assert "cpu" not in available_backends() and "reference" in available_backends()
    with pytest.raises(ValueError, match="'cpu' cannot be used here: the library was not built"):
        use_backend("cpu")


def test_without_triton_the_other_links_serve_and_a_warning_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(hardware, "has_triton", lambda: False)
    monkeypatch.setattr(native_cuda, "_missing", "")
    monkeypatch.setattr(native_cuda, "device_error", lambda device: "")
    register.warn.cache_clear()
    with pytest.warns(UserWarning, match="no Triton kernels on this GPU.*pip install triton"):
        chains = on_card((8, 6))
    expected = dict.fromkeys(TRITON, "reference") | dict.fromkeys(("lce_forward", "lce_backward_weight"), "cuda")
    assert serving(chains) == expected


@dispatch.op("tdlm::doubled", fake=torch.empty_like)
def doubled(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


for backend, rows in (("cpu", 3), ("triton", 4)):
    dispatch.implement(
        doubled, "cpu", backend, lambda x, rows=rows: "" if len(x) == rows else f"it takes {rows} rows",
        lambda x, rows=rows: x + rows,
    )  # fmt: skip


def test_the_first_link_that_serves_a_call_runs_it_and_else_the_reference():
    x = torch.ones(5, 2)
    assert doubled(x[:3]).eq(4).all() and doubled(x[:4]).eq(5).all() and doubled(x).eq(2).all()
    assert dispatch.answers(doubled, x[:3]) == [("triton", "it takes 4 rows"), ("cpu", ""), *REFERENCE]
    assert dispatch.server(doubled, x[:4]).backend == "triton" and dispatch.server(doubled, x) is None
    with use_backend("reference"):
        assert doubled(x[:3]).eq(2).all() and dispatch.answers(doubled, x[:3]) == REFERENCE


def test_a_compiled_caller_follows_the_choice():
    compiled = torch.compile(swiglu, fullgraph=True, backend="eager")
    x = torch.randn(4, 32)
    torch.testing.assert_close(compiled(x), swiglu(x))
    with use_backend("reference"):
        assert torch.equal(compiled(x), torch.nn.functional.silu(x[:, :16]) * x[:, 16:])


@pytest.mark.parametrize("variables, cpu, cuda", [
    ({"TDLM_BACKEND": "reference"}, "reference", "reference"), ({"TDLM_BACKEND": "cpu"}, "cpu", "cpu"),
    ({"TDLM_CUDA_BACKEND": "none"}, None, "reference"), ({}, None, None),
    ({"TDLM_CUDA_BACKEND": "none", "TDLM_BACKEND": "cpu"}, "cpu", "cpu"),
])  # fmt: skip
def test_the_environment_chooses(variables, cpu, cuda, monkeypatch):
    if cpu == "cpu" and native.missing():
        pytest.skip(native.missing())
    for name in ("TDLM_BACKEND", "TDLM_CUDA_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with use_backend(None):
        dispatch.use_environment()
        assert (dispatch.chosen("cpu"), dispatch.chosen("cuda")) == (cpu, cuda)


@pytest.mark.parametrize("name, value, says", [
    ("TDLM_BACKEND", "cutlass", "TDLM_BACKEND: backend 'cutlass' is unknown"),
    ("TDLM_CUDA_BACKEND", "cutlass", "TDLM_CUDA_BACKEND is 'cutlass'; it must be one of triton, native, none"),
])  # fmt: skip
def test_a_wrong_environment_is_one_error(name, value, says):
    done = subprocess.run([sys.executable, "-m", "tdlm_fast.doctor"], env=os.environ | {name: value},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_dispatch_of_an_op_costs_little():
    """A walk is two Python calls; torch's own layers around a custom op take 20 times as long."""
    import timeit

    x = torch.ones(1, 32)
    walk = min(timeit.repeat(lambda: dispatch.server(swiglu_forward, x), number=2000, repeat=5)) / 2000
    whole = min(timeit.repeat(lambda: swiglu_forward(x), number=500, repeat=5)) / 500
    assert walk < whole / 3
    assert dispatch.server(lce_forward, x, x, x[0].long(), None, 1, torch.float32, False)
