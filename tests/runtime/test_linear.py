import pytest
import torch

from palidecode.errors import InputError
from palidecode.runtime.linear import Int8Linear, WideningLinear, finisher
from tests.runtime.tiny_models import relative_error


def random_linear(inputs, outputs, bias):
    torch.manual_seed(6)
    linear = torch.nn.Linear(inputs, outputs, bias).requires_grad_(False)
    linear.weight.mul_(torch.linspace(0.1, 3, outputs)[:, None])  # rows of different sizes
    return linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("split", [None, True])
def test_int8_products_are_those_of_the_rounded_numbers(split, rows, bias):
    linear = random_linear(96, 40, bias)
    x = torch.randn(2, rows, 96) * torch.logspace(-3, 1, rows)[:, None]

    def rounded(numbers):
        scale = numbers.abs().amax(-1, keepdim=True) / 127
        return ((numbers / scale).round() * scale).double()

    wanted = rounded(x) @ rounded(linear.weight).T + (linear.bias if bias else 0)
    found = Int8Linear(linear, split)(x)
    assert found.dtype == torch.float32
    assert relative_error(found.double(), wanted) < 1e-5
    assert relative_error(found, linear(x)) < 0.01
    assert Int8Linear(linear, split)(torch.zeros(1, 96)).abs().max() == (
        linear.bias.abs().max() if bias else 0
    )
    # The largest numbers there are, which processors without VNNI can't add in pairs.
    largest = torch.full((2, rows, 96), 3.0)
    torch.nn.init.constant_(linear.weight, 0.5)
    wanted = 144 + (linear.bias if bias else torch.zeros(40))
    assert relative_error(Int8Linear(linear, split)(largest), wanted.expand(2, rows, 40)) < 1e-5


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 9, 40])
def test_products_in_bfloat16_are_exact_to_three_digits(rows, bias):
    linear = random_linear(96, 40, bias).bfloat16()
    x = torch.randn(2, rows, 96).bfloat16()
    wanted = x.double() @ linear.weight.double().T + (linear.bias.double() if bias else 0)
    chosen = finisher(torch.bfloat16, torch.device("cpu"), None)
    for kind in {WideningLinear, chosen}:
        found = kind(linear)(x)
        assert found.dtype == torch.bfloat16
        assert relative_error(found.double(), wanted) < 0.005


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_quantised_weights_are_refused_off_the_cpu(quantize):
    for device in ("cuda", "mps"):
        with pytest.raises(InputError, match=f"quantize='{quantize}' runs on the CPU only"):
            finisher(torch.bfloat16, torch.device(device), quantize)


def test_int4_names_the_engine_that_has_it():
    with pytest.raises(InputError, match="quantize='int4' needs engine='onnx'"):
        finisher(torch.bfloat16, torch.device("cpu"), "int4")
