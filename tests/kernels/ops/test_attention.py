"""Attention on the CPU, the choice of what serves a GPU, and the compiled tile kernels' registers."""

import math
import os
import re
import subprocess
import sys
import tempfile
import types

import pytest
import torch
import torch.nn.functional as F

from tdlm_fast.kernels import attention, hardware, self_attention, use_backend
from tdlm_fast.kernels.ops import attention as A

pytestmark = pytest.mark.usefixtures("references")  # tests/kernels/cpu/test_attention.py tests the native kernels


def problem(T=9, K=8, B=2, H=3):
    g = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, B, H, T, K, generator=g)
    return q, k, v, torch.arange(T) < torch.tensor([[T], [T - 4]])


@pytest.mark.parametrize("causal", [False, True])
def test_on_the_cpu_it_is_sdpa_to_the_bit(causal):
    q, k, v, valid = problem()
    assert torch.equal(attention(q, k, v, causal=causal), F.scaled_dot_product_attention(q, k, v, is_causal=causal))
    keep = valid[:, None, None, :] | torch.eye(9, dtype=torch.bool)
    keep = keep & torch.ones(9, 9, dtype=torch.bool).tril() if causal else keep
    truth = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
    assert torch.equal(attention(q, k, v, causal=causal, valid=valid), truth)
    torch.testing.assert_close(A.attention_ref(q, k, v, valid, None, None, causal, 0.0), truth)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("of", ["sdpa", "reference"])
def test_packed_documents_attend_as_if_alone(causal, of):
    q, k, v, _ = problem(T=12)
    lengths = (5, 1, 6)
    segments = torch.repeat_interleave(torch.tensor([4, 0, 7]), torch.tensor(lengths)).expand(2, 12)
    if of == "sdpa":
        packed = attention(q, k, v, causal=causal, segments=segments)
    else:
        packed = A.attention_ref(q, k, v, None, segments, None, causal, 0.0)
    single = [attention(*parts, causal=causal) for parts in zip(*(a.split(lengths, 2) for a in (q, k, v)), strict=True)]
    torch.testing.assert_close(packed, torch.cat(single, 2))


@pytest.mark.parametrize("serving", ["tile", "sdpa"])
def test_self_attention_is_attention_of_the_thirds(monkeypatch, serving):
    """Outputs and gradients have the same bits; with a tile the gradient of qkv is the memory that the op wrote."""
    monkeypatch.setattr(A, "backend", lambda q, masked: serving)
    B, T, H, K = 2, 9, 3, 8
    qkv, dout = torch.randn(B, T, 3 * H * K), torch.randn(B, T, H * K)
    more = dict(causal=True, valid=problem()[3], dropout_p=0.2, rope=True)
    written, found = [], []
    backward = A.tile_attention_backward
    monkeypatch.setattr(A, "tile_attention_backward", lambda *args: written.append(backward(*args)) or written[-1])
    for of in (
        lambda qkv: self_attention(qkv, H, **more),
        lambda qkv: attention(*(a.view(B, T, H, K).transpose(1, 2) for a in qkv.chunk(3, -1)), **more)
        .transpose(1, 2).reshape(B, T, H * K),
    ):  # fmt: skip
        torch.manual_seed(3)
        x = qkv.clone().requires_grad_()
        out = of(x)
        found += [out.detach(), *torch.autograd.grad(out, x, dout)]
    out, dqkv, *theirs = found
    assert torch.equal(out, theirs[0]) and torch.equal(dqkv, theirs[1]) and dqkv.isfinite().all()
    if serving == "tile":
        assert dqkv.data_ptr() == written[0].data_ptr() and dqkv.is_contiguous()
    with pytest.raises(ValueError, match="dropout_p is 1"):
        self_attention(qkv, H, causal=True, dropout_p=1)


class OnGPU:
    """What backend() asks of a tensor."""

    is_cuda, is_cpu, device = True, False, "cuda"

    def __init__(self, dtype, T, K):
        self.dtype, self.shape = dtype, (64, 4, T, K)

    def numel(self):
        return math.prod(self.shape)


@pytest.mark.parametrize(
    "dtype, T, K, masked, package, capability, expected",
    [
        (torch.bfloat16, 128, 16, True, True, (8, 6), "tile"),
        (torch.float16, 64, 64, False, True, (9, 0), "tile"),
        (torch.bfloat16, 128, 64, False, True, (8, 6), "flash-attn"),  # its backward tile would spill
        (torch.bfloat16, 1024, 64, False, True, (8, 6), "flash-attn"),
        (torch.bfloat16, 1024, 64, True, True, (8, 6), "sdpa"),  # flash_attn_func takes no mask
        (torch.bfloat16, 1024, 20, False, True, (8, 6), "sdpa"),
        (torch.bfloat16, 1024, 64, False, False, (8, 6), "sdpa"),
        (torch.float32, 128, 16, False, True, (8, 6), "sdpa"),
        (torch.float16, 128, 16, False, True, (7, 5), "sdpa"),
        (torch.bfloat16, 128, 16, True, True, (10, 0), "sdpa"),  # it would spill there
        (torch.bfloat16, 64, 64, True, True, (10, 0), "tile"),
    ],
)
def test_what_serves_a_gpu(monkeypatch, dtype, T, K, masked, package, capability, expected):
    monkeypatch.setattr(A, "_flash_attn", lambda: package)
    with use_backend(None), hardware.pretend(capability, 4, OnGPU):
        assert A.backend(OnGPU(dtype, T, K), masked) == expected
        with use_backend("reference"):
            assert A.backend(OnGPU(dtype, T, K), masked) == "sdpa"


def test_flash_attn_is_called_in_its_own_layout(monkeypatch):
    def flash_attn_func(q, k, v, dropout_p=0.0, causal=False):  # flash-attn 2: (B, T, H, K) in and out
        return F.scaled_dot_product_attention(*(a.transpose(1, 2) for a in (q, k, v)), is_causal=causal).transpose(1, 2)

    monkeypatch.setitem(sys.modules, "flash_attn", types.SimpleNamespace(flash_attn_func=flash_attn_func))
    monkeypatch.setattr(A.importlib.util, "find_spec", lambda name: name == "flash_attn")
    monkeypatch.setattr(A, "backend", lambda q, masked: "flash-attn")
    A._flash_attn.cache_clear()
    try:
        q, k, v, _ = problem()
        truth = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        torch.testing.assert_close(attention(q, k, v, causal=True), truth)
    finally:
        A._flash_attn.cache_clear()


def test_errors_name_what_is_wrong():
    q, k, v, valid = problem()
    with pytest.raises(ValueError, match=r"must be one \(B, H, T, K\)"):
        attention(q, k[:1], v, causal=True)
    with pytest.raises(ValueError, match=r"segments has shape \(2, 8\)"):
        attention(q, k, v, causal=True, segments=valid[:, 1:])
    with pytest.raises(ValueError, match="dropout_p is 1"):
        attention(q, k, v, causal=True, dropout_p=1)


def test_the_tile_op_passes_opcheck_and_gradcheck():
    inputs = [a.clone().double().requires_grad_() for a in problem(T=5, K=4)[:3]]
    valid, segments = torch.arange(5) < torch.tensor([[5], [2]]), torch.tensor([[0, 0, 1, 1, 1]] * 2)
    rest = valid, segments, torch.tensor([1, 2]), True, 0.1
    torch.library.opcheck(A.tile_attention, (*inputs, *rest))
    assert torch.autograd.gradcheck(lambda *a: A.tile_attention(*a, *rest), inputs)


TILES = [(128, 16, "bf16"), (128, 32, "bf16"), (64, 64, "fp16")]  # the largest that backend() lets through


@pytest.mark.parametrize("arch, shared_kb", [(86, 99), (90, 227)])
@pytest.mark.parametrize("T, K, dtype", TILES)
@pytest.mark.parametrize("kernel", ["forward_kernel", "backward_kernel"])
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")
def test_compiled_ahead_of_time_no_tile_spills(kernel, T, K, dtype, arch, shared_kb):
    pytest.importorskip("triton", reason="Triton is an extra: pip install -e .[triton]")
    from tdlm_fast.kernels.triton import attention as attention_triton

    assert A.tile_fits(T, K, (8, 6)) and not A.tile_fits(128, 64, (8, 6))
    fn, options = getattr(attention_triton, kernel), attention_triton.launch(T, K)
    constants = dict(HEAD_K=K, CAUSAL=True, THRESHOLD=A.dropout_threshold(0.1), PDL=arch >= 90) | {
        name: options.pop(name) for name in ("BLOCK_T", "BLOCK_K")
    }
    types_ = dict(VALID="*u8", SEGMENTS="*i64", KEY="*i64", scale="fp32", rescale="fp32", H="i32", T="i32")
    if A.turns_fit(T, K):
        types_["TURNS"] = "*fp32"
    else:  # q and k come turned
        constants["TURNS"] = None
    kinds = {}
    for name in fn.arg_names:
        stride = "i32" if name[1:] in ("_b", "_h", "_t") else f"*{dtype}"
        kinds[name] = "constexpr" if name in constants else types_.get(name, stride)
    registers, stack, shared = resources(fn, kinds, constants, arch, options)
    assert stack == 0 and shared <= shared_kb * 1024, (registers, stack, shared)


def resources(fn, kinds: dict, constants: dict, arch: int, options: dict) -> tuple[int, int, int]:
    """Registers a thread, bytes of stack (spills) and of shared memory of a kernel, compiled with no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    at = {(fn.arg_names.index(name),): value for name, value in constants.items()}
    sixteens = [name for name, kind in kinds.items() if kind[0] == "*" or name[1:] in ("_b", "_h", "_t")]
    attributes = {(fn.arg_names.index(name),): [["tt.divisibility", 16]] for name in sixteens}
    built = triton.compile(ASTSource(fn, kinds, at, attributes), target=GPUTarget("cuda", arch, 32), options=options)
    tool = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        text = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", text).groups())
    return registers, stack, built.metadata.shared
