"""Linear layers in bfloat16 on a processor without units for it: against numpy in float64, and which layers are."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from plumbline.base_model import bfloat16
from plumbline.base_model.bfloat16 import wide_linear, wide_products, with_narrow_products, with_wide_products


def linear(width: int, rows: int, bias: bool) -> tuple[nn.Linear, torch.Tensor]:
    generator = torch.Generator().manual_seed(width)
    layer = nn.Linear(width, rows, bias=bias).requires_grad_(False)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer.bfloat16(), torch.randn(3, 40, width, generator=generator).bfloat16()


@pytest.fixture
def doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without the units, where a wide product shows: it is twice the ordinary one."""
    monkeypatch.setattr(bfloat16, "has_units", lambda: False)
    monkeypatch.setattr(bfloat16, "wide_linear", lambda *args, **names: 2 * functional.linear(*args, **names))


@pytest.mark.parametrize("width", [1, 43, 512])
@pytest.mark.parametrize("bias", [False, True])
def test_every_product_is_exact_and_every_sum_is_rounded_once(width: int, bias: bool) -> None:
    layer, x = linear(width, 24, bias)
    W = layer.weight.double().numpy()
    b = layer.bias.double().numpy() if bias else 0.0
    exact = torch.from_numpy(x.double().numpy() @ W.T + b)
    product = wide_linear(x, layer.weight, layer.bias)
    assert product.dtype == torch.bfloat16 and product.shape == exact.shape
    magnitude = torch.from_numpy(abs(x.double().numpy()) @ abs(W.T) + abs(b))
    rounding = exact.abs() * 2**-8  # half a unit in the last of bfloat16's 8 places
    assert bool(((product.double() - exact).abs() <= rounding + magnitude * width * 2**-24).all())


class Widened(TorchDispatchMode):
    """Notes the size of everything that is converted to float32."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and made.dtype == torch.float32:
            self.bytes.append(made.numel() * 4)
        return made


@pytest.mark.parametrize(("width", "rows"), [(64, 1000), (512, 128), (512, 129), (1000, 191), (4096, 70)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_large_weight_is_widened_some_rows_at_a_time_and_gives_the_same_product(
    width: int, rows: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = linear(width, rows, bias)
    whole = wide_linear(x, layer.weight, layer.bias)
    assert torch.equal(whole, functional.linear(x.float(), layer.weight.float(), _float(layer.bias)).bfloat16())
    monkeypatch.setattr(bfloat16, "WIDENED", 4 * 64 * 512)
    with Widened() as made:
        product = wide_linear(x, layer.weight, layer.bias)
    assert torch.allclose(product.double(), whole.double(), rtol=2**-7, atol=width * 2**-20)  # a unit in the last place
    weights = [size for size in made.bytes if size not in (4 * x.numel(), 4 * rows)]
    assert sum(weights) == 4 * layer.weight.numel() and len(weights) > 1
    assert max(weights) <= bfloat16.WIDENED + 4 * bfloat16.TILE * width


def _float(bias: torch.Tensor | None) -> torch.Tensor | None:
    return None if bias is None else bias.float()


@pytest.mark.parametrize("bias", [False, True])
def test_a_narrow_product_rounds_input_weight_and_product_to_bfloat16_and_adds_the_bias_in_float32(
    bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bfloat16, "has_faster_units", lambda: True)
    layer, x = linear(512, 24, bias)
    layer, x = layer.float(), x.float() * (1 + 2**-9)
    narrow = with_narrow_products(copy.deepcopy(layer))(x)
    assert narrow.dtype == torch.float32
    W, rounded = layer.weight.double().numpy(), x.bfloat16().double().numpy()
    b = layer.bias.double() if bias else torch.zeros(24).double()
    exact = torch.from_numpy(rounded @ W.T)
    magnitude = torch.from_numpy(abs(rounded) @ abs(W.T)) * 512 * 2**-24
    assert bool(((narrow.double() - b - exact).abs() <= exact.abs() * 2**-8 + magnitude + 1e-5).all())
    monkeypatch.setattr(bfloat16, "has_faster_units", lambda: False)
    assert torch.equal(with_narrow_products(copy.deepcopy(layer))(x), layer(x))


def test_what_is_not_bfloat16_or_has_few_rows_goes_the_usual_way() -> None:
    layer, x = linear(43, 24, True)
    few = x[0, : bfloat16.FEW - 1]
    assert torch.equal(wide_linear(few, layer.weight, layer.bias), functional.linear(few, layer.weight, layer.bias))
    wide = layer.float()
    expected = functional.linear(x.float(), wide.weight, wide.bias)
    assert torch.equal(wide_linear(x.float(), wide.weight, wide.bias), expected)


def test_gradients_flow_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfloat16, "has_units", lambda: False)
    layer, x = linear(43, 24, False)
    with_wide_products(layer.requires_grad_(True))(x).float().square().sum().backward()
    y = x.double().view(-1, 43) @ layer.weight.detach().double().T
    expected = 2 * y.T @ x.double().view(-1, 43)
    assert layer.weight.grad is not None
    assert float((layer.weight.grad.double() - expected).abs().max() / expected.abs().max()) <= 2**-7


def test_a_model_and_its_copies_have_it_and_no_other_model(doubled: None) -> None:
    model, x = nn.Sequential(linear(43, 43, True)[0], nn.ReLU()), linear(43, 43, True)[1]
    other, expected = copy.deepcopy(model), model(x)
    assert with_wide_products(with_wide_products(model)) is model  # the second time changes nothing
    assert torch.equal(model(x), 2 * expected) and torch.equal(other(x), expected)
    twin = copy.deepcopy(model)
    twin[0].weight.zero_()
    assert torch.equal(model(x), 2 * expected)  # a copy multiplies with its own weight
    assert torch.equal(twin(x), (2 * twin[0].bias).relu().expand_as(expected))


def test_the_products_inside_of_a_layers_own_forward_are_wide_too(doubled: None) -> None:
    """compressed-tensors replaces the `forward` of a Linear by one that rounds its input."""
    layer, x = linear(43, 24, True)

    def rounding(input: torch.Tensor) -> torch.Tensor:
        return nn.Linear.forward(layer, input.round())

    layer.__dict__["forward"] = rounding
    expected = layer(x)
    with wide_products(layer):
        assert torch.equal(layer(x), 2 * expected)
    assert layer.__dict__["forward"] is rounding and torch.equal(layer(x), expected)


def test_a_callers_model_is_left_as_it_was(doubled: None) -> None:
    layer, x = linear(43, 24, True)
    expected = layer(x)
    with pytest.raises(KeyError), wide_products(layer):
        with wide_products(layer):  # as where a decoder layer runs within a pass of its model
            pass
        assert torch.equal(layer(x), 2 * expected)
        raise KeyError
    assert "forward" not in layer.__dict__ and torch.equal(layer(x), expected)
    with_wide_products(layer)
    with wide_products(layer):
        pass
    assert torch.equal(layer(x), 2 * expected)


def test_nothing_is_wide_where_the_processor_has_the_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfloat16, "has_units", lambda: True)
    layer, _ = linear(43, 24, True)
    assert "forward" not in with_wide_products(layer).__dict__


def test_importing_the_library_leaves_pytorch_alone() -> None:
    """On a processor without the units, which the environment lets PyTorch and oneDNN believe."""
    code = """
import torch
before = torch.nn.Linear.forward
import plumbline.activation_stats.build, plumbline.quantized_model.build, plumbline.evaluation.evaluate
from plumbline.base_model.bfloat16 import has_units
assert torch.backends.cpu.get_cpu_capability() != "AVX2" or not has_units()
assert torch.nn.Linear.forward is before
"""
    slow = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=os.environ | slow, check=True)
