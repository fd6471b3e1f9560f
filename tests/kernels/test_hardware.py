"""What is known of the machine, and a card that it does not have."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from tdlm_fast.kernels import hardware
from tdlm_fast.kernels.hardware import Card, card

CPU = torch.device("cpu")


def test_the_cpu_stands_for_the_card_of_tritons_interpreter():
    assert card(CPU) == hardware.INTERPRETER == Card((8, 6), 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_is_the_card_that_pytorch_reports():
    assert card(torch.device("cuda", 0)).capability == torch.cuda.get_device_capability(0)


def test_a_pretended_card_lasts_as_long_as_its_block_even_if_that_fails():
    with hardware.pretend((9, 0), 132):
        assert card(CPU) == Card((9, 0), 132)
        with hardware.pretend((7, 5), 40, torch.nn.Parameter):
            assert card(CPU) == Card((7, 5), 40)
        assert card(CPU) == Card((9, 0), 132)
    with pytest.raises(KeyError), hardware.pretend((9, 0), 132):
        raise KeyError
    assert card(CPU) == hardware.INTERPRETER and "is_cuda" not in vars(FakeTensor)


def test_only_tensors_of_the_class_seem_to_lie_on_a_pretended_card():
    with FakeTensorMode():
        fake = torch.empty(3)
    real = torch.empty(3)
    with hardware.pretend((8, 0), 108):
        assert fake.is_cuda and not fake.is_cpu and real.is_cpu and not real.is_cuda
    assert fake.is_cpu and not fake.is_cuda


def test_a_pretended_card_has_triton(monkeypatch):
    monkeypatch.setattr(hardware, "TRITON_INSTALLED", False)
    assert not hardware.has_triton()
    with hardware.pretend((8, 0), 108):
        assert hardware.has_triton()
    monkeypatch.setattr(hardware, "TRITON_INSTALLED", True)
    assert hardware.has_triton()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of PyTorch's own forward-mode code
def test_transforms_are_noticed_where_a_custom_op_would_answer_with_zeros():
    seen, x = [], torch.ones(3)

    def f(a):
        seen.append(hardware.is_transformed())
        return (a * a).sum()

    f(x)
    f(x.clone().requires_grad_()).backward()
    assert seen == [False, False]
    torch.func.grad(f)(x)
    torch.func.vmap(f)(x[None])
    torch.func.jvp(f, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        f(x)
    assert seen[2:] == [True] * 4
    f(x)
    assert seen[-1] is False
