"""Folding of channel scales into weights, for SmoothQuant and AWQ.

The Linears that read a site x compute the same from x' = x / s and W' = W diag(s). Dividing the norm or Linear that
produces x by s makes the model produce x' itself. Nothing is left to do at run time: the exported model is a plain
Hugging Face model. `fold_search.find_folds` finds and checks the producer.

Stored parameters have the model's dtype. s is not restricted to powers of two, which would be exact in bfloat16 but too
coarse (see `awq`). Instead, s behind a norm is the quotient of the norm's weight and the weight stored for it
(`snapped`), so the norm is exact. Weights are computed in float32 and rounded once, after all folding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from plumbline import histogram as histograms
from plumbline.base_model.matrices import WeightMatrix
from plumbline.histogram import Histogram
from plumbline.quantized_model.input_statistics import InputStatistics

Parameter = Callable[[str], Tensor | None]
"""The current value of a parameter, in float32 or wider, by its name in the state dict; None if there is none."""


@dataclass(frozen=True, eq=False)
class Fold:
    """Where the scale of a site goes.

    Attributes:
        producer: module name of the norm or Linear whose output becomes the site.
        offset: constant that a norm adds to its weight (1 in Gemma's (1 + w)); 0 otherwise.
        rows: (width,) int64, the producer's output channel behind each channel of the site; a head of v that several
            heads of queries share occurs several times.
        readers: every Linear that reads the site, quantized or not.
    """

    producer: str
    offset: float
    rows: Tensor
    readers: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Transform:
    """The scales of a model and all parameters that folding them changed.

    Attributes:
        scales: site name -> s (width,) float32, positive: its readers read x / s.
        weights: Linear name -> (out, in) in the model's dtype, after all folding: the weights to quantize.
        parameters: every other parameter that changed (norms, biases, Linears that the scheme leaves in full
            precision), by its name in the state dict, in the model's dtype.
        unfolded: site name -> reason why it was not scaled.
        facts: JSON-able, for the record.
        rows: name of a Linear that a scale was folded into -> (out,) float32, the divisors of its rows.
    """

    scales: dict[str, Tensor]
    weights: dict[str, Tensor]
    parameters: dict[str, Tensor]
    unfolded: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ScaledSite:
    """The statistics of x / s.

    Sums, extremes and second moments are those of the divided values, up to rounding.

    A histogram count moves to the bucket of its midpoint over s, which adds a relative error of 2^-(m+1): percentiles
    are within 2^-m (m mantissa bits).
    """

    site: InputStatistics
    s: Tensor
    """(width,) float64."""

    @property
    def members(self) -> tuple[str, ...]:
        return self.site.members

    @property
    def width(self) -> int:
        return self.site.width

    @property
    def tokens(self) -> int:
        return self.site.tokens

    @cached_property
    def sum(self) -> Tensor:
        return self.site.sum / self.s

    @cached_property
    def sum_abs(self) -> Tensor:
        return self.site.sum_abs / self.s

    @cached_property
    def sum_sq(self) -> Tensor:
        return self.site.sum_sq / self.s.square()

    @cached_property
    def min(self) -> Tensor:
        return (self.site.min.double() / self.s).float()

    @cached_property
    def max(self) -> Tensor:
        return (self.site.max.double() / self.s).float()

    @cached_property
    def hessian(self) -> Tensor | None:
        S = self.site.hessian
        return None if S is None else S / (self.s * self.s.unsqueeze(1))

    @cached_property
    def histogram(self) -> Histogram | None:
        histogram = self.site.histogram
        return None if histogram is None else _divided_histogram(histogram, self.s)


def transform_notes(
    name: str, facts: Mapping[str, Any], unfolded: Mapping[str, str], remarks: Sequence[str]
) -> dict[str, Any]:
    """The notes of a model to which a transform was applied.

    Args:
        facts, unfolded: as in `Transform`.
        remarks: that the model has already.
    """
    notes: dict[str, Any] = {"transform": {"name": name, **facts, "unfolded": dict(unfolded)}}
    if remark := nothing_folded(name, facts, unfolded):
        notes["remarks"] = [*remarks, remark]
    return notes


def nothing_folded(name: str, facts: Mapping[str, Any], unfolded: Mapping[str, str]) -> str | None:
    """The remark on a transform that could fold no scale into the model, with the most frequent reason; else None."""
    if facts.get("sites") or not unfolded:
        return None
    counts = Counter(unfolded.values())
    reason = min(counts, key=lambda reason: (-counts[reason], reason))
    return f"{name} folded no scale into this model ({counts[reason]} of {len(unfolded)} sites: {reason})"


def scaled_site(site: InputStatistics, s: Tensor) -> ScaledSite:
    """The statistics of x / s for a site x.

    Args:
        s: (width,), positive.
    """
    return ScaledSite(site, s.to(device=site.sum.device, dtype=torch.float64))


def folded(parameter: Parameter, fold: Fold, s: Tensor) -> dict[str, Tensor]:
    """The parameters that change when x becomes x / s, by name, in the dtype of `parameter`.

    Args:
        parameter: returns the current value of a parameter.
        s: (width,), positive, equal where `fold.rows` is.
    """
    changed: dict[str, Tensor] = {}
    for name in fold.readers:
        W = _present(parameter, f"{name}.weight")
        changed[f"{name}.weight"] = W * s.to(W.dtype)
    name = f"{fold.producer}.weight"
    W = changed.get(name, _present(parameter, name))
    t = W.new_ones(len(W)).index_copy(0, fold.rows, s.to(W.dtype))
    changed[name] = (W + fold.offset) / t - fold.offset if W.dim() == 1 else W / t.unsqueeze(1)
    bias = parameter(f"{fold.producer}.bias")
    if bias is not None:
        changed[f"{fold.producer}.bias"] = bias / t
    return changed


def snapped(parameter: Parameter, fold: Fold, s: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest s for which the norm's weight is exact in `dtype`; s itself if the producer is a Linear.

    1 where the weight, or the weight to store, is zero. The result is on the device of the weight (statistics are on
    the CPU).
    """
    weight = _present(parameter, f"{fold.producer}.weight")
    if weight.dim() > 1:
        return s.to(weight.device)
    w, s = weight + fold.offset, s.to(weight.device)
    stored = (w / s - fold.offset).to(dtype).float() + fold.offset
    exact = w / stored
    return torch.where((w * stored > 0) & exact.isfinite(), exact, 1.0)


def shared(values: Tensor, rows: Tensor, reduce: str) -> Tensor:
    """Values (width,) with those of channels behind one row of the producer replaced by their "mean" or "amax"."""
    rows = rows.to(values.device)
    reduced = values.new_zeros(int(rows.max()) + 1).scatter_reduce(0, rows, values, reduce, include_self=False)
    return reduced[rows]


class FoldedParameters:
    """The current parameters of a model while scales are folded into it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.original = dict(model.named_parameters(remove_duplicate=False))
        self.changed: dict[str, Tensor] = {}
        """Changed parameters by name in the state dict, float32."""
        self.rows: dict[str, Tensor] = {}
        """As in `Transform`."""

    def __call__(self, name: str) -> Tensor | None:
        """The current value of a parameter, as in `Parameter`."""
        if name in self.changed:
            return self.changed[name]
        return self.original[name].detach().float() if name in self.original else None

    def weight(self, linear: str) -> Tensor:
        """The current weight of a Linear, (out, in) float32."""
        return _present(self, f"{linear}.weight")

    def add(self, fold: Fold, s: Tensor) -> bool:
        """Fold s in. False if a result is not finite in the model's dtype; then nothing is changed."""
        changed = folded(self, fold, s)
        if not all(bool(value.to(self.original[name].dtype).isfinite().all()) for name, value in changed.items()):
            return False
        self.changed.update(changed)
        W = changed[f"{fold.producer}.weight"]
        if W.dim() > 1:
            self.rows[fold.producer] = W.new_ones(len(W)).index_copy(0, fold.rows, s.to(W.dtype))
        return True

    def transform(
        self,
        linears: Mapping[str, WeightMatrix],
        scales: dict[str, Tensor],
        unfolded: dict[str, str],
        facts: dict[str, Any],
    ) -> Transform:
        """The result of all folding, in the model's dtype."""
        stored = {name: value.to(self.original[name].dtype) for name, value in self.changed.items()}
        weights = {name: stored.pop(f"{name}.weight", module.weight.detach()) for name, module in linears.items()}
        return Transform(scales, weights, stored, unfolded, facts, self.rows)


def _present(parameter: Parameter, name: str) -> Tensor:
    value = parameter(name)
    if value is None:
        raise ValueError(f"the model has no parameter {name}")
    return value


def _divided_histogram(histogram: Histogram, s: Tensor) -> Histogram:
    midpoints = histograms.midpoints(histogram.mantissa_bits, histogram.dtype)
    values = midpoints[histogram.first : histogram.first + histogram.counts.shape[1]].to(s.device)
    target = histograms.bucket((values / s.unsqueeze(1)).float(), histogram.mantissa_bits)
    counts = torch.zeros(len(s), histograms.n_buckets(histogram.mantissa_bits), dtype=torch.int64, device=s.device)
    counts.scatter_add_(1, target.long(), histogram.counts.to(s.device))
    return histograms.trimmed(counts, 0, histogram.mantissa_bits, histogram.dtype)
