"""Applying a scheme to a model: which Linears are quantized, and with which group size."""

from __future__ import annotations

import math
from collections.abc import Mapping

from compressed_tensors.utils.match import is_match, match_named_modules
from torch import nn
from transformers.pytorch_utils import Conv1D

from plumbline.quantized_model.params import SchemeParams


def quantizable_linears(model: nn.Module, ignore: tuple[str, ...]) -> dict[str, nn.Linear]:
    """The Linears that a scheme quantizes, by module name in the model's order; names match as in compressed-tensors.

    Raises:
        ValueError: none is left, an `ignore` entry matches nothing, or a Linear shares its weight with the embedding.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for entry in ignore:
        if entry != "lm_head" and not any(is_match(name, module, entry) for name, module in linears.items()):
            raise ValueError(f"ignore entry {entry!r} matches no Linear; the model has {_some(list(linears))}")
    selected = {
        name: module for name, module in match_named_modules(model, ["Linear"], ignore) if isinstance(module, nn.Linear)
    }
    if not selected:
        problem = f"no Linear to quantize in {type(model).__name__} after ignore {list(ignore)}"
        if any(isinstance(module, Conv1D) for module in model.modules()):
            raise ValueError(
                f"{problem}: its layers are transformers' Conv1D, which compressed-tensors does not store; quantize a "
                "model of Linears, or take the statistics of a GPT-2 to llama.cpp (`plumbline export --to imatrix`)"
            )
        raise ValueError(f"{problem}; shorten ignore")
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    shared = [name for name, module in selected.items() if id(module.weight) in embeddings]
    if shared:
        raise ValueError(f"{_some(shared)} shares its weight with the input embedding; add it to the scheme's ignore")
    return selected


def group_size_for(width: int, group_size: int | None, bits: int) -> int | None:
    """The group size for an input width: the scheme's, or the largest divisor of the width below it.

    None (one scale per output channel) stays None.

    Raises:
        ValueError: the divisor is so small that the scales need more room than the codes save (a prime width, say).
    """
    if group_size is None:
        return None
    used = next(size for size in range(min(group_size, width), 0, -1) if width % size == 0)
    if bits + 16 / used >= 16:
        raise ValueError(
            f"width {width} has no divisor between {used + 1} and {group_size}; groups of {used} would need more room "
            f"for scales than {bits}-bit codes save: remove group_size (one scale per channel) or ignore that layer"
        )
    return used


def layer_group_sizes(linears: Mapping[str, nn.Linear], scheme: SchemeParams) -> dict[str, int | None]:
    """Group size per Linear.

    Packed zero points load only if all layers have one group size (see `export.quantization_config`), so with zero
    points it must divide all widths.

    Raises:
        ValueError: a width does not suit the scheme; the message names the layer.
    """
    bits = scheme.weight_bits if scheme.mixed is None else max(scheme.mixed.widths)
    if not scheme.symmetric and scheme.group_size is not None:
        widths = sorted({module.in_features for module in linears.values()})
        try:
            size = group_size_for(math.gcd(*widths), scheme.group_size, bits)
        except ValueError as error:
            raise ValueError(
                f"symmetric: false with group_size {scheme.group_size}: with zero points one group size must divide "
                f"all input widths {widths}, and of their greatest common divisor: {error}; or remove symmetric"
            ) from error
        # compressed-tensors 0.20 fails to unpack 4-bit zero points that fill one word per column
        narrow = [name for name, module in linears.items() if bits == 4 and module.out_features <= 8]
        if narrow:
            raise ValueError(
                f"{narrow[0]}: {linears[narrow[0]].out_features} output channels: compressed-tensors does not read "
                "4-bit zero points of so few; add the layer to the scheme's ignore, or remove symmetric"
            )
        return dict.fromkeys(linears, size)
    sizes: dict[str, int | None] = {}
    for name, module in linears.items():
        try:
            sizes[name] = group_size_for(module.in_features, scheme.group_size, bits)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return sizes


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
