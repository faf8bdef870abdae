"""Products of matrices in the precision that the processor multiplies fast.

Of bfloat16 matrices on processors without bfloat16 units: computed in float32, rounded once.

PyTorch 2.13 multiplies bfloat16 fast where the processor has AVX512-BF16 or AMX. Elsewhere (most laptops) a
product takes about 7 times as long as in float32, which is most of a forward pass. The product of two bfloat16 numbers
is exact in float32. So converting both matrices to float32, multiplying, and rounding the sums to bfloat16 gives what
those units compute, up to the order of the sums. The weight is converted some rows at a time, which stay in the cache:
a whole copy would take twice the memory of the largest matrix, that of the vocabulary, and up to twice the time.

Only the Linears of one model are changed, not all in the process. `with_wide_products` changes a model that Plumbline
loaded (whole, layer by layer, or quantized). `wide_products` changes a caller's model and restores it afterwards.

Of float32 matrices on processors with such units: `with_narrow_products` rounds them to bfloat16, which halves the
time. `torch.set_float32_matmul_precision("medium")` promises that, too, but converts the weight on every call and
gains nothing on AVX512-BF16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import repeat
from math import ceil
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Model = TypeVar("Model", bound=nn.Module)

FEW = 16
"""Number of rows below which widening the weight costs more than it saves: reading the weight dominates there."""
WIDENED = 8 << 20
"""Bytes of a weight in float32 at a time; of the powers of two from 1 to 128 MiB, those around it were fastest."""
TILE = 64
"""Rows that are not parted: products of a few rows go through other kernels, which may add up in another order."""
WIDE = "plumbline_wide"
"""Attribute that marks a `forward` with wide products; `functools.wraps` copies it."""


def wide_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # names of functional.linear
    """x W^T + b; for bfloat16 on the CPU computed in float32 and rounded to bfloat16."""
    if input.dtype != torch.bfloat16 or weight.dtype != torch.bfloat16 or input.device.type != "cpu":
        return functional.linear(input, weight, bias)
    if input.numel() < FEW * input.shape[-1]:
        return functional.linear(input, weight, bias)
    wide, step = input.float(), _rows_at_a_time(*weight.shape)
    biases = repeat(None) if bias is None else torch.split(bias.float(), step)
    parts = zip(torch.split(weight, step), biases, strict=False)
    products = [functional.linear(wide, rows.float(), own).bfloat16() for rows, own in parts]
    return products[0] if len(products) == 1 else torch.cat(products, dim=-1)


def _rows_at_a_time(rows: int, width: int) -> int:
    """Of a weight, in blocks of about the same size, whole TILEs: WIDENED bytes in float32, rounded up."""
    blocks = max(1, ceil(4 * rows * width / WIDENED))
    return TILE * max(1, ceil(rows / blocks / TILE))


@lru_cache(maxsize=1)
def has_units() -> bool:
    """Whether PyTorch multiplies bfloat16 fast on this processor."""
    if torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2"):  # not x86, or one with AVX-512
        return True
    mkldnn: Any = torch.ops.mkldnn
    return bool(mkldnn._is_mkldnn_bf16_supported())


def has_faster_units() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32; AVX-512 alone does not."""
    cpu: Any = torch.cpu
    return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())


def with_wide_products(model: Model) -> Model:
    """The model itself. On a processor without bfloat16 units, its Linears and those of its copies use `wide_linear`
    from now on."""
    for linear in _narrow_linears(model):
        linear.__dict__["forward"] = MethodType(_wide(linear.forward), linear)
    return model


def with_narrow_products(model: Model) -> Model:
    """The model itself. On a processor with bfloat16 units, its float32 Linears from now on round input, weight and
    product to bfloat16 and add the bias in float32; elsewhere nothing changes."""
    if has_faster_units():
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.weight.dtype == torch.float32:
                module.__dict__["forward"] = partial(narrow_linear, weight=module.weight.bfloat16(), bias=module.bias)
    return model


def narrow_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b in float32, of the product in bfloat16. `weight` is bfloat16, `bias` float32."""
    product = functional.linear(input.bfloat16(), weight).float()
    return product if bias is None else product.add_(bias)


@contextmanager
def wide_products(model: nn.Module) -> Iterator[None]:
    """Within the context, make the model's Linears use `wide_linear`; restore them afterwards."""
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
    """The Linears that should use `wide_linear` and do not yet; none on a processor with bfloat16 units."""
    if has_units():
        return []
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return [linear for linear in linears if not hasattr(linear.forward, WIDE)]


def _wide(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A Linear's `forward`, as a method, with its product replaced by `wide_linear`.

    What transformers adds around the product of a quantized Linear stays in place. It is a method so that the Linear of
    a copied model binds its own.
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
