"""Reads NVFP4 experts with their global scales, which transformers 5.23 drops in merging them (its issue 48371)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from torch import Tensor
from transformers.integrations.compressed_tensors import CompressedTensorsDequantize, get_experts_scheme
from transformers.quantizers import quantizer_compressed_tensors

GLOBAL = "weight_global_scale"


class _WithGlobalScales(CompressedTensorsDequantize):  # type: ignore[misc]
    """Decompresses experts with what their checkpoint stores beside the codes."""

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        full_layer_name: str | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        scales = [key for key in input_dict if key.endswith(GLOBAL) and isinstance(input_dict[key], list)]
        if not scales or "weight_scale" in input_dict:  # no experts, or without a second level of scales
            converted: dict[str, Tensor] = super().convert(
                input_dict, source_patterns, target_patterns, full_layer_name, **kwargs
            )
            return converted
        config = self.hf_quantizer.compressor.quantization_config
        scheme = self.scheme or get_experts_scheme(config)
        compressor = BaseCompressor.get_value_from_registry(scheme.format or config.format)
        merged = {}
        for key in scales:
            parts = ("weight_packed", "weight_scale", GLOBAL)
            stored = [input_dict[key.removesuffix(GLOBAL) + part] for part in parts]
            experts = (dict(zip(parts, expert, strict=True)) for expert in zip(*stored, strict=True))
            merged[key.removesuffix(GLOBAL) + "weight_packed"] = torch.stack(
                [compressor.decompress(expert, scheme)["weight"] for expert in experts]
            )
        return merged


@contextmanager
def expert_global_scales() -> Iterator[None]:
    """Within it, `from_pretrained` reads the global scales of NVFP4 experts. Not for several threads at once."""
    before = quantizer_compressed_tensors.CompressedTensorsDequantize
    quantizer_compressed_tensors.CompressedTensorsDequantize = _WithGlobalScales
    try:
        yield
    finally:
        quantizer_compressed_tensors.CompressedTensorsDequantize = before
