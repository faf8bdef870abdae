"""Products of bfloat16 matrices on processors without units for them: widened to float32, rounded once.

PyTorch 2.13 multiplies bfloat16 fast where the processor has AVX512-BF16 or AMX. Elsewhere (most laptops) it takes
about 7 times as long as for float32, which is most of a forward pass. A product of two bfloat16 is exact in float32, so
that widening both, multiplying, and rounding the sums to bfloat16 computes what those units compute, up to the order of
the sums.

The Linears of one model multiply like that, and no others in the process: `with_wide_products` for a model of our own
(whole, read layer by layer, or quantized), `wide_products` for a model of the caller's, which is left as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Model = TypeVar("Model", bound=nn.Module)

FEW = 16
"""Rows below which the product is as fast as reading the weight, and widening it would cost more than that saves."""
WIDE = "plumbline_wide"
"""Attribute of a `forward` whose product is wide; `functools.wraps` hands it on."""


def wide_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # names of functional.linear
    """x W^T + b; of bfloat16 on the CPU with float32 products and sums, rounded to bfloat16."""
    if input.dtype != torch.bfloat16 or weight.dtype != torch.bfloat16 or input.device.type != "cpu":
        return functional.linear(input, weight, bias)
    if input.numel() < FEW * input.shape[-1]:
        return functional.linear(input, weight, bias)
    return functional.linear(input.float(), weight.float(), None if bias is None else bias.float()).bfloat16()


@lru_cache(maxsize=1)
def has_units() -> bool:
    """Whether PyTorch multiplies bfloat16 fast on this processor."""
    if torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2"):  # not x86, or one with AVX-512
        return True
    mkldnn: Any = torch.ops.mkldnn
    return bool(mkldnn._is_mkldnn_bf16_supported())


def with_wide_products(model: Model) -> Model:
    """The model itself; on a processor without the units its Linears, and those of its copies, multiply by
    `wide_linear` from now on."""
    for linear in _narrow_linears(model):
        linear.__dict__["forward"] = MethodType(_wide(linear.forward), linear)
    return model


@contextmanager
def wide_products(model: nn.Module) -> Iterator[None]:
    """Let the model's Linears multiply as after `with_wide_products` within."""
    linears = _narrow_linears(model)
    own = {linear: linear.__dict__["forward"] for linear in linears if "forward" in linear.__dict__}
    try:
        with_wide_products(model)
        yield
    finally:
        for linear in linears:
            if linear in own:
                linear.__dict__["forward"] = own[linear]
            else:
                linear.__dict__.pop("forward", None)


def _narrow_linears(model: nn.Module) -> list[nn.Linear]:
    """The Linears that do not multiply by `wide_linear` and should; on a processor with the units none."""
    if has_units():
        return []
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return [linear for linear in linears if not hasattr(linear.forward, WIDE)]


def _wide(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A Linear's own `forward`, a method again, whose product is `wide_linear`.

    What transformers puts around the product of a quantized Linear stays in place, and the Linear of a copied model
    gets a method of its own.
    """
    narrow = forward.__func__ if isinstance(forward, MethodType) else None

    def wide_forward(self: nn.Linear, *args: Any, **kwargs: Any) -> Tensor:
        with _WideLinears():
            return forward(*args, **kwargs) if narrow is None else narrow(self, *args, **kwargs)

    setattr(wide_forward, WIDE, True)
    return wide_forward


class _WideLinears(TorchFunctionMode):
    """Replaces `functional.linear` by `wide_linear` on this thread."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (wide_linear if func is functional.linear else func)(*args, **(kwargs or {}))
