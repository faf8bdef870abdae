"""The `quantization_config` of config.json, in the compressed-tensors format."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    QuantizationStrategy,
)

from plumbline.quantized_model.grid import Grid
from plumbline.quantized_model.params import ActivationParams

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
    targets: Sequence[ConfigTarget], linears: Collection[str], ignore: Sequence[str]
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
        format=formats.pop() if len(formats) == 1 else MIXED,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=list(ignore),
    )


def scheme_of_group(grid: Grid, targets: list[str], activations: ActivationParams | None) -> QuantizationScheme:
    """A config group."""
    strategy = QuantizationStrategy.GROUP if grid.group_size else QuantizationStrategy.CHANNEL
    return QuantizationScheme(
        targets=targets,
        weights=QuantizationArgs(
            num_bits=grid.bits,
            symmetric=grid.symmetric,
            strategy=QuantizationStrategy.TENSOR if grid.per_tensor else strategy,
            group_size=grid.group_size,
        ),
        input_activations=None
        if activations is None
        else QuantizationArgs(
            num_bits=activations.bits,
            symmetric=activations.symmetric,
            strategy=QuantizationStrategy.TOKEN if activations.dynamic else QuantizationStrategy.TENSOR,
            dynamic=activations.dynamic,
        ),
        # 8-bit weights alone are packed, too: vLLM reads int-quantized ones only beside quantized activations.
        format=PACKED if activations is None else INTEGERS,
    )


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
