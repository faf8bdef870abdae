"""Applying a scheme to a model: which matrices are quantized, and with which group size."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from compressed_tensors.utils.match import is_match
from torch import nn
from transformers.pytorch_utils import Conv1D

from plumbline.base_model.matrices import Matrix, WeightMatrix, is_slice, matrices
from plumbline.base_model.parts import AUDIO, EXPERTS, ROUTER, VISION, kind_of
from plumbline.quantized_model.activation_params import GROUP_SIZES
from plumbline.quantized_model.grid import SCALE_FORMATS, Grid
from plumbline.quantized_model.params import SchemeParams

LEFT_ALONE = {
    ROUTER: "router: another choice of experts costs more than its few weights save",
    VISION: "vision: calibrated with text, which never reaches it",
    AUDIO: "audio: calibrated with text, which never reaches it",
}
"""Why a scheme leaves the matrices of these kinds in full precision, unless its `include` names the kind."""
STEERS = re.compile(r"(^|\.)altup(\.|$)")
"""Matches the names of matrices of a few rows that mix the copies of the residual stream (Gemma 3n)."""


def quantizable_matrices(model: nn.Module, scheme: SchemeParams) -> dict[str, Matrix]:
    """The matrices that a scheme quantizes, by name in the model's order.

    Raises:
        ValueError: none is left, an `ignore` entry matches nothing, or a matrix shares its weight with the embedding.
    """
    everything = matrices(model)
    modules = {name: model.get_submodule(matrix.owner) for name, matrix in everything.items()}
    for entry in scheme.ignore:
        if entry != "lm_head" and not any(
            _matches(everything[name], name, modules[name], entry) for name in everything
        ):
            raise ValueError(f"ignore entry {entry!r} matches no Linear; the model has {some(list(everything))}")
    selected = {
        name: matrix
        for name, matrix in everything.items()
        if why_not_quantized(name, matrix, modules[name], scheme) is None
    }
    if not selected:
        problem = f"no Linear to quantize in {type(model).__name__} after ignore {list(scheme.ignore)}"
        if any(isinstance(module, Conv1D) for module in model.modules()):
            raise ValueError(
                f"{problem}: its layers are transformers' Conv1D, which compressed-tensors does not store; quantize a "
                "model of Linears, or take the statistics of a GPT-2 to llama.cpp (`plumbline export --to imatrix`)"
            )
        raise ValueError(f"{problem}; shorten ignore")
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    shared = [name for name, matrix in selected.items() if id(matrix.parameter) in embeddings]
    if shared:
        raise ValueError(f"{some(shared)} shares its weight with the input embedding; add it to the scheme's ignore")
    return selected


def why_not_quantized(name: str, matrix: Matrix, module: nn.Module, scheme: SchemeParams) -> str | None:
    """The reason why a scheme leaves a matrix in full precision; None if it quantizes it.

    Args:
        module: that holds the matrix.
    """
    entry = next((entry for entry in scheme.ignore if _matches(matrix, name, module, entry)), None)
    if entry is not None:
        return f"the scheme's ignore: {entry}"
    kind = kind_of(name)
    if kind == EXPERTS and scheme.experts == "full_precision":
        return "the scheme's experts: full_precision"
    if kind in scheme.include:
        return None
    return LEFT_ALONE.get(kind) or ("altup: a few rows that steer the whole block" if STEERS.search(name) else None)


def format_of(name: str, scheme: SchemeParams) -> SchemeParams:
    """The scheme with the format that `overrides` gives to the matrix's kind; the scheme itself without one."""
    return scheme.own.get(kind_of(name), scheme) if scheme.overrides else scheme


def scheme_of(name: str, matrix: WeightMatrix, scheme: SchemeParams) -> SchemeParams:
    """The scheme as it acts on one matrix: the format of its kind, if `overrides` has one.

    transformers multiplies experts in one tensor with their inputs as they are, so only their weights are rounded. The
    floor of experts acts on no other matrix.
    """
    own = format_of(name, scheme)
    if is_slice(matrix):
        return own if own.activations is None else own.model_copy(update={"activations": None})
    return own.model_copy(update={"expert_floor": 0.0}) if own.expert_floor else own


def grid_of_scheme(scheme: SchemeParams, bits: int | None = None, group_size: int | None = None) -> Grid:
    """The grid of weights under a scheme.

    Args:
        bits: where `mixed` gives the matrix its own width; None: the scheme's.
        group_size: used for the matrix, see `layer_group_sizes`.
    """
    return Grid(
        scheme.weight_bits if bits is None else bits,
        group_size,
        scheme.symmetric,
        scheme.per_tensor,
        type="int" if scheme.weight_type == "int" else "float",
        scale_format=SCALE_FORMATS.get(scheme.weight_type, "model"),
        block=scheme.block_structure,
    )


def quantizable_linears(model: nn.Module, ignore: tuple[str, ...] = ("lm_head",)) -> dict[str, nn.Linear]:
    """The Linears that a scheme quantizes, by module name in the model's order; no experts in one tensor.

    Raises:
        ValueError: as `quantizable_matrices`.
    """
    names = quantizable_matrices(model, SchemeParams(method="rtn", ignore=ignore))
    modules = ((name, model.get_submodule(matrix.owner)) for name, matrix in names.items() if matrix.expert is None)
    return {name: module for name, module in modules if isinstance(module, nn.Linear)}


def _matches(matrix: Matrix, name: str, module: nn.Module, entry: str) -> bool:
    """Whether an entry of `ignore` names a matrix, as compressed-tensors matches names."""
    if entry == "lm_head" and name.endswith(".lm_head"):  # in Llama 4 it is within the language model
        return True
    return is_match(name, module, entry) or (matrix.expert is not None and is_match(matrix.owner, module, entry))


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


def layer_group_sizes(
    linears: Mapping[str, WeightMatrix], scheme: SchemeParams, dense: bool = False
) -> dict[str, int | None]:
    """Group size per Linear.

    A model whose weights are decompressed while it is loaded, as packed zero points must be, has one group size in all
    layers, so it must divide all widths.

    Args:
        dense: the model is loaded so (`loading.loads_dense`).

    Raises:
        ValueError: a width does not suit the scheme; the message names the layer.
    """
    schemes = {name: scheme_of(name, matrix, scheme) for name, matrix in linears.items()}
    fixed = {name: own.group_size for name, own in schemes.items() if own.weight_type != "int"}
    rest = {name: matrix for name, matrix in linears.items() if name not in fixed}
    if (dense or not scheme.symmetric) and scheme.group_size is not None and rest:
        sizes: dict[str, int | None] = dict.fromkeys(rest, _common_size(rest, scheme))
    else:
        sizes = _own_sizes(rest, schemes)
    return {name: (fixed | sizes)[name] for name in linears}


def require_widths(linears: Mapping[str, WeightMatrix], scheme: SchemeParams) -> None:
    """Refuse input widths that the groups of a format do not divide.

    Raises:
        ValueError: names the layers, their width and what to write.
    """
    problems: dict[tuple[str, int, int], list[str]] = {}
    for name, matrix in linears.items():
        own = scheme_of(name, matrix, scheme)
        sizes: dict[str, int | None] = {own.weight_type: GROUP_SIZES.get(own.weight_type)}
        if own.activations is not None and own.activations.group_size is not None:
            sizes[f"{own.activations.type} activations"] = own.activations.group_size
        for format_, size in sizes.items():
            if size is not None and matrix.in_features % size:
                problems.setdefault((format_, size, matrix.in_features), []).append(name)
    if problems:
        lines = (
            f"{some(names)}: width {width} is no multiple of {size}, the group of {format_}"
            for (format_, size, width), names in problems.items()
        )
        raise ValueError(f"{'; '.join(lines)}: add them to the scheme's ignore, or give them another format")


def _common_size(linears: Mapping[str, WeightMatrix], scheme: SchemeParams) -> int | None:
    """The group size of all layers."""
    bits = scheme.weight_bits if scheme.mixed is None else max(scheme.mixed.widths)
    widths = sorted({module.in_features for module in linears.values()})
    why = "with zero points" if not scheme.symmetric else "in a model that is decompressed while it is loaded"
    try:
        size = group_size_for(math.gcd(*widths), scheme.group_size, bits)
    except ValueError as error:
        raise ValueError(
            f"group_size {scheme.group_size}: {why} one group size must divide all input widths {widths}, and of "
            f"their greatest common divisor: {error}"
        ) from error
    # compressed-tensors 0.20 fails to unpack 4-bit zero points that fill one word per column
    few = [name for name, module in linears.items() if bits == 4 and module.out_features <= 8]
    if few and not scheme.symmetric:
        raise ValueError(
            f"{few[0]}: {linears[few[0]].out_features} output channels: compressed-tensors does not read "
            "4-bit zero points of so few; add the layer to the scheme's ignore, or remove symmetric"
        )
    return size


def _own_sizes(linears: Mapping[str, WeightMatrix], schemes: Mapping[str, SchemeParams]) -> dict[str, int | None]:
    """The group size of every layer, one for all experts, which transformers requires."""
    sizes: dict[str, int | None] = {}

    def size_for(name: str, width: int) -> int | None:
        own = schemes[name]
        return group_size_for(width, own.group_size, own.weight_bits if own.mixed is None else max(own.mixed.widths))

    experts = {n: m for n, m in linears.items() if is_slice(m)}
    if experts:
        widths = sorted({module.in_features for module in experts.values()})
        try:
            sizes = dict.fromkeys(experts, size_for(next(iter(experts)), math.gcd(*widths)))
        except ValueError as error:
            raise ValueError(f"experts with input widths {widths}, which share one group size: {error}") from error
    for name, module in linears.items():
        if name in sizes:
            continue
        try:
            sizes[name] = size_for(name, module.in_features)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return sizes


def some(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
