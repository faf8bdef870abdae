"""The `quantization_config` of config.json, in the compressed-tensors format."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from compressed_tensors.quantization import (
    DynamicType,
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    QuantizationStrategy,
)

from plumbline.quantized_model.activation_params import ActivationParams
from plumbline.quantized_model.grid import SCALE_FORMATS, Grid, ScaleFormat
from plumbline.quantized_model.kv_cache import cache_args
from plumbline.quantized_model.kv_cache_params import CacheParams

PACKED, INTEGERS, MIXED = "pack-quantized", "int-quantized", "mixed-precision"


@dataclass(frozen=True)
class ConfigTarget:
    """A quantized layer as engines see it.

    Attributes:
        name: module name, or the name that a checkpoint gives to a part of an expert.
        grid: of its weight.
        activations: of its input; None: not quantized.
        expert: one of a tensor of experts.
    """

    name: str
    grid: Grid
    activations: ActivationParams | None
    expert: bool = False


def quantization_config(
    targets: Sequence[ConfigTarget],
    linears: Collection[str],
    ignore: Sequence[str],
    kv_cache: CacheParams | None = None,
) -> QuantizationConfig:
    """The `quantization_config` of a model.

    A single group targets every Linear. Several groups (widths, group sizes, experts whose inputs are not quantized)
    list their layers, by the last part of the names where that is unambiguous. (A group for "Linear" beside named ones
    would load, but with a warning that the names match nothing.) transformers finds the group of the experts by the
    word in its targets.

    Args:
        targets: every quantized layer.
        linears: names of all Linears of the model.
        ignore: names of what is not quantized.
        kv_cache: of the scheme.
    """
    groups: dict[tuple[Grid, ActivationParams | None, bool], list[str]] = defaultdict(list)
    kinds = {(target.grid, target.activations) for target in targets}
    for target in targets:
        groups[target.grid, target.activations, target.expert and len(kinds) > 1].append(target.name)
    order = sorted(groups, key=lambda key: (-len(groups[key]), -(key[0].group_size or 0), -key[0].bits, key[2]))
    config_groups = {}
    for index, (grid, activations, experts) in enumerate(order):
        names = groups[grid, activations, experts]
        if len(order) == 1:
            matched = ["Linear"]
        else:
            matched = _experts(names) if experts else _targets(names, linears)
        config_groups[f"group_{index}"] = scheme_of_group(grid, matched, activations)
    formats = {str(group.format) for group in config_groups.values()}
    return QuantizationConfig(
        config_groups=config_groups,
        kv_cache_scheme=None if kv_cache is None else cache_args(kv_cache),
        format=formats.pop() if len(formats) == 1 else MIXED,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=list(ignore),
    )


def scheme_of_group(grid: Grid, targets: list[str], activations: ActivationParams | None) -> QuantizationScheme:
    """A config group."""
    inputs = None if activations is None else activation_args(activations)
    return QuantizationScheme(
        targets=targets, weights=weight_args(grid), input_activations=inputs, format=_format(grid, activations)
    )


def weight_args(grid: Grid) -> QuantizationArgs:
    """compressed-tensors' description of a grid of weights."""
    strategy = QuantizationStrategy.GROUP if grid.group_size else QuantizationStrategy.CHANNEL
    if grid.per_tensor:
        strategy = QuantizationStrategy.TENSOR
    elif grid.block is not None:
        strategy = QuantizationStrategy.BLOCK
    elif grid.scale_format == "e4m3":
        strategy = QuantizationStrategy.TENSOR_GROUP
    return QuantizationArgs(
        num_bits=grid.bits,
        type=grid.type,
        symmetric=grid.symmetric,
        strategy=strategy,
        group_size=grid.group_size,
        **({} if grid.block is None else {"block_structure": list(grid.block)}),
        **_dtypes_of_scales(grid.scale_format),
    )


def activation_args(activations: ActivationParams) -> QuantizationArgs:
    """compressed-tensors' description of rounded activations."""
    dynamic: bool | DynamicType = activations.dynamic
    strategy = QuantizationStrategy.TENSOR
    if activations.type == "nvfp4":
        dynamic, strategy = DynamicType.LOCAL, QuantizationStrategy.TENSOR_GROUP
    elif activations.group_size is not None:
        strategy = QuantizationStrategy.GROUP
    elif activations.dynamic:
        strategy = QuantizationStrategy.TOKEN
    return QuantizationArgs(
        num_bits=activations.bits,
        type="int" if activations.type == "int" else "float",
        symmetric=activations.symmetric,
        strategy=strategy,
        group_size=activations.group_size,
        dynamic=dynamic,
        **_dtypes_of_scales(SCALE_FORMATS.get(activations.type, "model")),
    )


def _dtypes_of_scales(scale_format: ScaleFormat) -> dict[str, Any]:
    if scale_format == "model":
        return {}
    dtype = torch.float8_e4m3fn if scale_format == "e4m3" else torch.uint8
    return {"scale_dtype": dtype, "zp_dtype": dtype}


def _format(grid: Grid, activations: ActivationParams | None) -> str:
    """The name of the layout on disk."""
    if grid.type == "float":
        if grid.scale_format == "e4m3":
            return "nvfp4-pack-quantized"
        if grid.scale_format == "e8m0":
            return "mxfp4-pack-quantized" if grid.bits == 4 else "mxfp8-quantized"
        return "float-quantized"
    # 8-bit weights alone are packed, too: vLLM reads int-quantized ones only beside quantized activations. It reads the
    # 4-bit weights of W4AFP8 packed, and those of W4A8 a code per byte.
    return PACKED if activations is None or activations.type == "fp8" else INTEGERS


def _experts(names: Sequence[str]) -> list[str]:
    """Regular expressions that match these parts of experts, whatever the layer."""
    leaves = sorted({name.rpartition(".")[2] for name in names})
    return [rf"re:.*\.experts\.\d+\.({'|'.join(map(re.escape, leaves))})$"]


def _targets(names: list[str], linears: Collection[str]) -> list[str]:
    leaves = Counter(name.rpartition(".")[2] for name in names)
    everywhere = Counter(name.rpartition(".")[2] for name in linears)
    if all(everywhere[leaf] == count for leaf, count in leaves.items()):
        return [rf"re:(.*\.)?{leaf}$" for leaf in sorted(leaves)]
    return names
