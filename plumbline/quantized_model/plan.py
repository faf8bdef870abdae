"""What a scheme would quantize, from the model's modules alone: weights by kind, bits per weight, bytes on disk.

Nothing is computed and no weight is read, so the model may be on the meta device.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from plumbline.base_model.parts import KINDS, kind_of
from plumbline.quantized_model.coverage import reasons_of
from plumbline.quantized_model.grid import Grid
from plumbline.quantized_model.kv_cache_layers import scale_bytes
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.scheme import grid_of_scheme, scheme_of
from plumbline.quantized_model.suits import suited

VECTORS = "vectors: norms, biases, gains"
SHAPE_BYTES = 16
"""A packed matrix stores its two widths as int64."""


@dataclass(frozen=True)
class KindPlan:
    """The weights of one kind.

    Attributes:
        quantized: how many of `weights` the scheme quantizes.
        base_bytes: of all of them in the base model.
        bytes: of all of them in the quantized model, with scales and zero points; those of keys and values are with
            attention.
    """

    kind: str
    weights: int
    quantized: int
    base_bytes: int
    bytes: int


@dataclass(frozen=True)
class FullPrecision:
    """Parameters that stay as they are for one reason.

    Attributes:
        example: name of the first of them.
    """

    reason: str
    tensors: int
    weights: int
    example: str


@dataclass(frozen=True)
class SchemePlan:
    """What a scheme makes of a model.

    Attributes:
        kinds: those that the model has, in the order of `parts.KINDS`.
        full_precision: by reason, most weights first.
        group_sizes: group size (None: one scale per output channel or weight) -> number of matrices.
    """

    kinds: tuple[KindPlan, ...]
    full_precision: tuple[FullPrecision, ...]
    group_sizes: Mapping[int | None, int]

    @property
    def weights(self) -> int:
        """Weights of the whole model; those that are shared (a tied head) count once."""
        return sum(row.weights for row in self.kinds)

    @property
    def quantized(self) -> int:
        """Weights that the scheme quantizes."""
        return sum(row.quantized for row in self.kinds)

    @property
    def base_bytes(self) -> int:
        """Bytes of the base model's weights."""
        return sum(row.base_bytes for row in self.kinds)

    @property
    def bytes(self) -> int:
        """Bytes of the quantized model's weights."""
        return sum(row.bytes for row in self.kinds)

    @property
    def bits_per_weight(self) -> float:
        """Over the whole model, with everything that stays in full precision."""
        return 8 * self.bytes / self.weights


def plan_of(model: PreTrainedModel, scheme: SchemeParams, dtype: torch.dtype) -> SchemePlan:
    """What the scheme would quantize of the model, and why it leaves the rest.

    Args:
        model: its modules; weights may be on the meta device.
        dtype: in which the base model is stored, and the quantized model's scales are.

    Raises:
        ValueError: the scheme does not suit the model, as in `quantize_model`.
    """
    suits = suited(model, scheme)
    chosen, sizes = suits.matrices, suits.sizes
    stored: dict[int, float] = defaultdict(float)
    quantized: Counter[int] = Counter()
    for name, matrix in chosen.items():
        own = scheme_of(name, matrix, scheme)
        grid = grid_of_scheme(own, None, sizes[name])
        quantized[id(matrix.parameter)] += matrix.numel
        parts = 2 if matrix.expert is not None and matrix.part == "gate_up_proj" else 1  # two tensors of a checkpoint
        rows = matrix.out_features // parts
        stored[id(matrix.parameter)] += parts * stored_bytes(rows, matrix.in_features, grid, own, dtype)
    reasons = reasons_of(model, chosen, scheme)
    rows_of: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0, 0])
    left: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, weight in model.named_parameters():  # a shared one comes once
        count = weight.numel()
        size = count * dtype.itemsize
        rest = count - quantized[id(weight)]
        row = (count, quantized[id(weight)], size, stored[id(weight)] + rest * dtype.itemsize)
        rows_of[kind_of(name)] = [a + b for a, b in zip(rows_of[kind_of(name)], row, strict=True)]
        if rest:
            left[reasons[name] if weight.dim() > 1 else VECTORS].append((name, rest))
    if scheme.kv_cache is not None:
        rows_of["attention"][3] += scale_bytes(model, scheme.kv_cache)
    return SchemePlan(
        tuple(KindPlan(kind, *(round(number) for number in rows_of[kind])) for kind in KINDS if kind in rows_of),
        tuple(sorted(map(_full_precision, left, left.values()), key=lambda entry: (-entry.weights, entry.reason))),
        Counter(sizes.values()),
    )


def stored_bytes(rows: int, width: int, grid: Grid, scheme: SchemeParams, dtype: torch.dtype) -> float:
    """Bytes of a quantized matrix (rows, width) in the compressed-tensors format, as export.py writes it.

    A fraction where `mixed` gives every matrix its own width: then this is the mean over the model.
    """
    groups = 1 if grid.group_size is None else width // grid.group_size
    scales = 1 if grid.per_tensor else rows * groups
    if grid.block is not None:
        scales = math.ceil(rows / grid.block[0]) * math.ceil(width / grid.block[1])
    size = float(scales * (dtype.itemsize if grid.scale_format == "model" else 1))
    if grid.type == "float":
        activations = scheme.activations
        size += 4 if grid.is_two_level else 0
        if activations is not None and activations.static:
            size += 4 if activations.type == "nvfp4" else dtype.itemsize
        return size + rows * width * grid.bits / 8
    if scheme.activations is not None and scheme.activations.type == "int":
        static = dtype.itemsize + (0 if scheme.activations.symmetric else 1)
        return size + rows * width + (0 if scheme.activations.dynamic else static) + (0 if grid.symmetric else scales)
    if scheme.mixed is not None:
        return size + SHAPE_BYTES + rows * width * scheme.mixed.average_bits / 8
    zeros = 0 if grid.symmetric else (1 if grid.per_tensor else _words(rows, grid.bits) * groups * 4)
    return size + SHAPE_BYTES + rows * _words(width, grid.bits) * 4 + zeros


def _full_precision(reason: str, entries: Iterable[tuple[str, int]]) -> FullPrecision:
    names, counts = zip(*entries, strict=True)
    return FullPrecision(reason, len(names), sum(counts), names[0])


def _words(values: int, bits: int) -> int:
    """Words of 32 bits that hold packed codes."""
    return math.ceil(values * bits / 32)
