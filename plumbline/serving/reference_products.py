"""A plugin of vLLM: the matrix products of quantized Linears in plain torch, for machines without vLLM's kernels.

vLLM matches the configuration, loads and fuses the weights, runs the model and its scheduler as ever. Only unpacking
and product are replaced, and keys and values are rounded before its cache truncates them to E4M3: this shows that a
folder is read as it is meant, not that a kernel computes it right. vLLM finds `register` through the entry point group
`vllm.general_plugins` (engine.py puts it there). It runs in the engine's environment, whose Python has no Plumbline,
and was written for vLLM 0.32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad
from vllm import _custom_ops
from vllm.model_executor.kernels import linear as kernels
from vllm.platforms import PlatformEnum


def register() -> None:
    """Put the reference products before vLLM's own kernels for CPUs; doing it twice changes nothing."""
    for table, kernel in (
        (kernels._POSSIBLE_KERNELS, ReferencePacked),
        (kernels._POSSIBLE_INT8_KERNELS, ReferenceInt8),
        (kernels._POSSIBLE_FP8_KERNELS, ReferenceFp8),
        (kernels._POSSIBLE_FP8_BLOCK_KERNELS, ReferenceFp8),
        (kernels._POSSIBLE_WFP8A16_KERNELS, ReferenceFp8Weights),
    ):
        if kernel not in table[PlatformEnum.CPU]:
            table[PlatformEnum.CPU].insert(0, kernel)
    if not hasattr(_custom_ops.cpu_attn_reshape_and_cache, "__wrapped__"):
        _custom_ops.cpu_attn_reshape_and_cache = rounding_before(_custom_ops.cpu_attn_reshape_and_cache)


def rounding_before(store: Callable[..., None]) -> Callable[..., None]:
    """vLLM's function that stores keys and values, with values on the grid of E4M3 before it truncates them to it."""

    @functools.wraps(store)
    def rounded(key: Tensor, value: Tensor, *rest: Any, k_scale: float, v_scale: float, kv_cache_dtype: str) -> None:
        if kv_cache_dtype.startswith("fp8"):
            key, value = on_grid(key, k_scale), on_grid(value, v_scale)
        store(key, value, *rest, k_scale=k_scale, v_scale=v_scale, kv_cache_dtype=kv_cache_dtype)

    return rounded


def on_grid(x: Tensor, scale: float) -> Tensor:
    """The nearest numbers of E4M3 under a scale, 1 % farther from zero: truncated, they are these numbers in any dtype,
    as the next ones are at least 6 % away."""
    codes = (x.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float()
    return (codes * scale * 1.01).to(x.dtype)


def unpacked(packed: Tensor, bits: int, width: int) -> Tensor:
    """The unsigned codes of packed rows, without gaps between words: (rows, words) int32 -> (rows, width) int64."""
    words = pad(packed.long() & 0xFFFFFFFF, (0, 1))
    start = torch.arange(width) * bits
    word, shift = start // 32, start % 32
    return ((words[:, word] | words[:, word + 1] << 32) >> shift) & (2**bits - 1)


class ReferencePacked(kernels.MPLinearKernel):  # type: ignore[misc]
    """Packed weights of 2 to 8 bits, with or without zero points; decompressed once, after loading."""

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, str | None]:
        # Signed types are those of W4A8, whose weights vLLM unpacks and whose inputs it rounds.
        return not c.weight_type.is_signed(), "signed codes"

    def process_weights_after_loading(self, layer: Any) -> None:
        packed, scale, zero_point = self._get_weight_params(layer)
        bits, (width, rows) = self.config.weight_type.size_bits, self.config.partition_weight_shape
        codes = unpacked(packed, bits, width).view(rows, scale.shape[1], -1)
        if self.config.zero_points:
            zero = unpacked(zero_point.t(), bits, rows).t()
        else:
            zero = torch.full_like(scale, 2 ** (bits - 1), dtype=torch.int64)
        weight = (codes - zero.unsqueeze(-1)).to(scale.dtype) * scale.unsqueeze(-1)
        layer.reference_weight = weight.view(rows, width)

    def apply_weights(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(x, layer.reference_weight, bias)


class ReferenceInt8(kernels.Int8ScaledMMLinearKernel):  # type: ignore[misc]
    """8-bit weights beside 8-bit inputs, static or per token, with or without a zero point of the input."""

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        return True, None

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, str | None]:
        return True, None

    def process_weights_after_loading(self, layer: Any) -> None:
        weight, scale, input_scale, input_zero, _ = self._get_layer_params(layer)
        if not self.config.is_channelwise:  # a scale per part of a fused Linear
            scale = scale.repeat_interleave(torch.tensor(layer.logical_widths)).unsqueeze(-1)
        layer.reference_weight, layer.reference_scale = weight.double(), scale.view(-1).double()
        # q, k and v, and gate and up, read the same input, and so have the same scale.
        layer.reference_input = None if input_scale is None else input_scale.max().double()
        layer.reference_zero = 0 if input_zero is None else input_zero.view(-1)[0].double()

    def apply_weights(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        scale, zero = layer.reference_input, layer.reference_zero
        if scale is None:
            scale = (x.abs().amax(-1, keepdim=True).float() / 127).clamp(min=1e-12).double()
        codes = (torch.round(x.double() / scale) + zero).clamp(-128, 127) - zero
        out = linear(codes, layer.reference_weight) * (scale * layer.reference_scale)
        return out.to(x.dtype) if bias is None else out.to(x.dtype) + bias


class ReferenceFp8(kernels.FP8ScaledMMLinearKernel):  # type: ignore[misc]
    """FP8 weights with any scales beside FP8 inputs: static, per token or per group of a token."""

    def __init__(self, c: Any, layer_param_names: Any) -> None:
        self.config, self.layer_param_names = c, layer_param_names

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        return True, None

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, str | None]:
        return True, None

    def apply_scaled_mm(self, **arguments: Any) -> Tensor:
        raise NotImplementedError("apply_weights does all of it")

    def process_weights_after_loading(self, layer: Any) -> None:
        weight, scale, layer.reference_input, _ = self._get_layer_params(layer)
        if layer.weight_block_size is None:  # stored (in, out) by now
            layer.reference_weight = (weight.float() * scale.float().reshape(1, -1)).t().contiguous()
            return
        rows, columns = layer.weight_block_size
        spread = scale.float().repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        layer.reference_weight = weight.float() * spread[: weight.shape[0], : weight.shape[1]]

    def rounded(self, layer: Any, x: Tensor) -> Tensor:
        """The input as the product sees it, float32."""
        size = x.shape[-1] if layer.weight_block_size is None else layer.weight_block_size[1]
        groups = x.float().reshape(*x.shape[:-1], -1, size)
        scale = layer.reference_input
        if scale is None:
            scale = (groups.abs().amax(-1, keepdim=True) / 448).clamp(min=1e-12)
        return ((groups / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale).flatten(-2)

    def apply_weights(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        out = linear(self.rounded(layer, x), layer.reference_weight).to(x.dtype)
        return out if bias is None else out + bias


class ReferenceFp8Weights(ReferenceFp8):
    """FP8 weights beside inputs in the model's precision."""

    def rounded(self, layer: Any, x: Tensor) -> Tensor:
        return x.float()
