"""Dequantizes a quantized checkpoint while transformers loads it: FP8 in blocks, MXFP4 and compressed-tensors.

transformers' own operations compute the weights, with one exception: for FP8 they derive the size of a block from the
number of scales, which is wrong where a dimension is no multiple of it (transformers 5.23 spreads 2 scales over 192
rows as 96 + 96, not 128 + 64, and refuses 576 rows, which DeepSeek-V3 has). `_Blocks` takes the size from config.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.quantizers.auto import AutoHfQuantizer, AutoQuantizationConfig

from plumbline.base_model.folder import quantization_of
from plumbline.base_model.weight_files import weight_entries

ACTIVATIONS = (
    "input_scale",
    "input_zero_point",
    "input_global_scale",
    "activation_scale",
    "q_scale",
    "k_scale",
    "v_scale",
)
COMPRESSED = ("weight_packed", "weight_scale", "weight_zero_point", "weight_global_scale", "weight_shape")
NOT_NEEDED = "a scale of activations, which the dequantized model does not round"


@dataclass(frozen=True)
class DenseWeights:
    """The weights that a checkpoint would hold in full precision."""

    shapes: dict[str, tuple[int, ...]]
    """Shape by name in such a checkpoint."""
    dropped: dict[str, str]
    """Tensor of the quantized checkpoint that nothing reads -> reason."""


def dense_weights(folder: Path, files: Mapping[str, str]) -> DenseWeights:
    """Names and shapes of the weights in full precision, from the headers of the files.

    Args:
        files: from `weight_files`.

    Raises:
        ValueError: a quantized weight lacks a scale, its scales do not fit it, or it is stored in a form that
            transformers does not dequantize correctly.
    """
    entries = weight_entries(folder, files)
    dropped = {key: NOT_NEEDED for key in entries if key.rpartition(".")[2] in ACTIVATIONS}
    rest = {key: entry for key, entry in entries.items() if key not in dropped}
    quantization = quantization_of(folder)
    if quantization is None:
        return DenseWeights({key: tuple(entry["shape"]) for key, entry in entries.items()}, {})
    dense = {"fp8": _of_fp8, "mxfp4": _of_mxfp4, "compressed-tensors": _of_compressed}[quantization["quant_method"]]
    return DenseWeights(dense(folder, rest, quantization, files), dropped)


def quantizer_of(folder: Path) -> Any:
    """transformers' HfQuantizer that dequantizes the checkpoint in `folder`; None if it is not quantized."""
    quantization = quantization_of(folder)
    if quantization is None:
        return None
    settings = AutoQuantizationConfig.from_dict({**quantization, "dequantize": True})
    quantizer = AutoHfQuantizer.from_config(settings, pre_quantized=True)
    if quantization["quant_method"] == "fp8":
        quantizer.get_load_operations = lambda: {"dequantize": _Blocks}
    if quantization["quant_method"] == "compressed-tensors":
        quantizer.validate_environment()  # sets what its conversions read
    return quantizer


class _Blocks(Fp8Dequantize):  # type: ignore[misc]
    """Multiplies every block of an FP8 weight by its scale; the last block of a dimension may be smaller."""

    def _dequantize_one(self, quantized: Tensor, scales: Tensor, output_dtype: torch.dtype | None = None) -> Tensor:
        block = self.hf_quantizer.quantization_config.weight_block_size
        if block is None or scales.dim() < 2:  # one scale for the whole weight
            factor = scales.float().reshape(())
        else:
            rows, columns = quantized.shape[-2:]
            factor = scales.float().repeat_interleave(block[0], -2)[..., :rows, :]
            factor = factor.repeat_interleave(block[1], -1)[..., :columns]
        return (quantized.float() * factor).to(output_dtype or torch.bfloat16)


def _of_fp8(
    folder: Path, entries: Mapping[str, Any], quantization: Mapping[str, Any], files: Mapping[str, str]
) -> dict[str, tuple[int, ...]]:
    block = quantization.get("weight_block_size", (128, 128))
    scales = set()
    for key, entry in entries.items():
        if not entry["dtype"].startswith("F8_E4M3"):
            continue
        scale, shape = f"{key}_scale_inv", entry["shape"]
        if scale not in entries or not key.endswith(".weight"):
            raise ValueError(f"{folder.name}: {key} is in FP8, but there is no {scale}; give model.name another copy")
        expected = [math.ceil(size / width) for size, width in zip(shape[-2:], block, strict=True)] if block else [1]
        found = entries[scale]["shape"]
        if entries[scale]["dtype"] not in ("F32", "BF16", "F16") or (
            found[-2:] != expected if block else math.prod(found) != 1
        ):
            raise ValueError(
                f"{folder.name}: {scale} is {entries[scale]['dtype']} {found}; for a weight of {shape} in blocks of "
                f"{block} expected floating-point scales {expected}; give model.name another copy"
            )
        scales.add(scale)
    return {key: tuple(entry["shape"]) for key, entry in entries.items() if key not in scales}


def _of_mxfp4(
    folder: Path, entries: Mapping[str, Any], quantization: Mapping[str, Any], files: Mapping[str, str]
) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for key, entry in entries.items():
        name, shape = key.removesuffix("_blocks").removesuffix("_scales"), tuple(entry["shape"])
        if name == key:
            shapes[key] = shape
        elif key.endswith("_blocks"):
            scales = entries.get(f"{name}_scales")
            if scales is None or tuple(scales["shape"]) != shape[:-1] or len(shape) != 4 or shape[-1] != 16:
                raise ValueError(
                    f"{folder.name}: {key} is {shape}; expected (experts, rows, groups, 16) and a scale for every "
                    f"group in {name}_scales; give model.name another copy"
                )
            experts, rows, groups, _ = shape
            shapes[name] = (experts, 32 * groups, rows)
    return shapes


def _of_compressed(
    folder: Path, entries: Mapping[str, Any], quantization: Mapping[str, Any], files: Mapping[str, str]
) -> dict[str, tuple[int, ...]]:
    groups = (quantization.get("config_groups") or {}).values()
    if len({(repr(group.get("weights")), group.get("format")) for group in groups}) > 1:
        raise ValueError(
            f"{folder.name}: quantization_config has several config_groups, of which transformers 5.23 dequantizes "
            "only the first correctly; give model.name the model in full precision"
        )
    shapes = {}
    for key, entry in entries.items():
        module, _, part = key.rpartition(".")
        if part == "weight_g_idx":
            raise ValueError(
                f"{folder.name}: {key}: transformers does not dequantize weights whose groups are in another order "
                "(actorder: group); give model.name the model in full precision"
            )
        if part == "weight_packed":
            if f"{module}.weight_scale" not in entries:
                raise ValueError(f"{folder.name}: no {module}.weight_scale for {key}; give model.name another copy")
            shapes[f"{module}.weight"] = _unpacked_shape(folder, files, module, entry)
        elif part not in COMPRESSED:
            shapes[key] = tuple(entry["shape"])
    return shapes


def _unpacked_shape(folder: Path, files: Mapping[str, str], module: str, packed: Mapping[str, Any]) -> tuple[int, ...]:
    shape = f"{module}.weight_shape"
    if shape in files:
        with safe_open(folder / files[shape], framework="pt") as handle:
            return tuple(handle.get_tensor(shape).tolist())
    return (packed["shape"][0], 2 * packed["shape"][1])  # two 4-bit floats in a byte
