"""Linear layers in bfloat16 on a processor without units for it, against numpy in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from plumbline.base_model import bfloat16


def linear(width: int, rows: int, bias: bool) -> tuple[nn.Linear, torch.Tensor]:
    generator = torch.Generator().manual_seed(width)
    layer = nn.Linear(width, rows, bias=bias).requires_grad_(False)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer.bfloat16(), torch.randn(3, 40, width, generator=generator).bfloat16()


@pytest.mark.parametrize("width", [1, 43, 512])
@pytest.mark.parametrize("bias", [False, True])
def test_every_product_is_exact_and_every_sum_is_rounded_once(width: int, bias: bool) -> None:
    layer, x = linear(width, 24, bias)
    W = layer.weight.double().numpy()
    b = layer.bias.double().numpy() if bias else 0.0
    exact = torch.from_numpy(x.double().numpy() @ W.T + b)
    found = bfloat16.widened(layer, x)
    assert found.dtype == torch.bfloat16 and found.shape == exact.shape
    magnitude = torch.from_numpy(abs(x.double().numpy()) @ abs(W.T) + abs(b))
    rounding = exact.abs() * 2**-8  # half a unit in the last of bfloat16's 8 places
    assert bool(((found.double() - exact).abs() <= rounding + magnitude * width * 2**-24).all())


def test_what_is_not_bfloat16_or_has_few_rows_goes_the_usual_way() -> None:
    layer, x = linear(43, 24, True)
    few = x[0, : bfloat16.FEW - 1]
    assert torch.equal(bfloat16.widened(layer, few), nn.functional.linear(few, layer.weight, layer.bias))
    wide = layer.float()
    assert torch.equal(bfloat16.widened(wide, x.float()), nn.functional.linear(x.float(), wide.weight, wide.bias))


def test_gradients_flow_through_it() -> None:
    layer, x = linear(43, 24, False)
    layer.requires_grad_(True)
    bfloat16.widened(layer, x).float().square().sum().backward()
    y = x.double().view(-1, 43) @ layer.weight.detach().double().T
    expected = 2 * y.T @ x.double().view(-1, 43)
    assert layer.weight.grad is not None
    assert float((layer.weight.grad.double() - expected).abs().max() / expected.abs().max()) <= 2**-7


def test_it_is_in_use_where_the_processor_lacks_the_units_and_nowhere_else() -> None:
    assert (nn.Linear.forward is bfloat16.widened) is not bfloat16.has_units()
