"""Products of bfloat16 matrices on processors without units for them: widened to float32, rounded once.

PyTorch 2.13 multiplies bfloat16 fast where the processor has AVX512-BF16 or AMX. Elsewhere (most laptops) it takes
about 7 times as long as for float32, which is most of a forward pass. A product of two bfloat16 is exact in float32, so
that widening both, multiplying, and rounding the sums to bfloat16 computes what those units compute, up to the order of
the sums.

Importing this module changes `nn.Linear` for the process on such a processor, so that a model that is loaded whole, one
that is read layer by layer, a quantized one, and one that somebody else built all give the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

FEW = 16
"""Rows below which the product is as fast as reading the weight, and widening it would cost more than that saves."""

_forward = nn.Linear.forward


def widened(self: nn.Linear, input: Tensor) -> Tensor:  # the name that callers may pass it by
    """`nn.Linear.forward`: x W^T + b of bfloat16 on the CPU with float32 products and sums, rounded to bfloat16."""
    W, b = self.weight, self.bias
    if input.dtype != torch.bfloat16 or W.dtype != torch.bfloat16 or input.device.type != "cpu":
        return _forward(self, input)
    if input.numel() < FEW * input.shape[-1]:
        return _forward(self, input)
    return functional.linear(input.float(), W.float(), None if b is None else b.float()).bfloat16()


def has_units() -> bool:
    """Whether PyTorch multiplies bfloat16 fast on this processor."""
    if torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2"):  # not x86, or one with AVX-512
        return True
    mkldnn: Any = torch.ops.mkldnn
    return bool(mkldnn._is_mkldnn_bf16_supported())


if not has_units():
    nn.Linear.forward = widened  # type: ignore[method-assign]
