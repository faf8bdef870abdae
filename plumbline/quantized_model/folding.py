"""Scales of the channels of an activation, moved into the weights: what SmoothQuant and AWQ share.

A site x is read by some Linears. With x' = x / s and W' = W diag(s) they compute what they did. x' comes out of the
model itself, without anything to do at run time, once the norm or Linear that produces x is divided by s: the exported
model is a plain Hugging Face model. Which module that is, `producers.find_folds` finds out and checks.

What is stored has the model's dtype. s is not bound to powers of two, which would be exact in bfloat16 but coarse (see
`awq`): instead, s in front of a norm is the quotient of the norm's weight and what is stored for it (`snapped`), so
that the norm is exact; weights are computed in float32 and rounded once, after all folding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from plumbline import histogram as histograms
from plumbline.histogram import Histogram

if TYPE_CHECKING:
    from plumbline.quantized_model.layer import Site

Parameter = Callable[[str], Tensor | None]
"""A parameter in float32 or wider by its name in the state dict, as it stands; None: there is none of that name."""


@dataclass(frozen=True, eq=False)
class Fold:
    """Where the scale of a site goes.

    Attributes:
        producer: the norm or Linear that the site comes out of, by its module name.
        offset: what a norm adds to its weight before it multiplies (1 in Gemma's (1 + w)); 0 otherwise.
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
    """Scales that were found, and everything that folding them changed.

    Attributes:
        scales: site name -> s (width,) float32, positive: its readers now read x / s.
        weights: Linear name -> (out, in) in the model's dtype, after all folding: what is to be quantized.
        parameters: every other parameter that changed (norms, biases, Linears that the scheme leaves in full
            precision), by its name in the state dict, in the model's dtype.
        unfolded: site name -> why it was left alone.
        facts: JSON-able, for the record.
        rows: name of a Linear that a scale was folded into -> (out,) float32, what its rows were divided by.
    """

    scales: dict[str, Tensor]
    weights: dict[str, Tensor]
    parameters: dict[str, Tensor]
    unfolded: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ScaledSite:
    """The statistics of x / s. Sums, extremes and second moments are those of the divided values, up to rounding.

    The histogram's counts move to the bucket of their old bucket's midpoint over s, which is off by 2^-(m+1) relative
    once more: percentiles are within 2^-m (m mantissa bits).
    """

    site: Site
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
        found = self.site.histogram
        return None if found is None else _divided_histogram(found, self.s)


def scaled_site(site: Site, s: Tensor) -> ScaledSite:
    """The statistics of x / s for a site x.

    Args:
        s: (width,), positive.
    """
    return ScaledSite(site, s.to(device=site.sum.device, dtype=torch.float64))


def folded(parameter: Parameter, fold: Fold, s: Tensor) -> dict[str, Tensor]:
    """The parameters that change where x becomes x / s, by name, in the dtype in which they are given.

    Args:
        parameter: the parameters as they stand.
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
    """The nearest s that `dtype` holds exactly in the weight of the norm; s itself where the producer is a Linear.

    On the device of the weight, whereas statistics are on the CPU. 1 where the weight, or what would be stored for it,
    is zero.
    """
    weight = _present(parameter, f"{fold.producer}.weight")
    if weight.dim() > 1:
        return s.to(weight.device)
    w, s = weight + fold.offset, s.to(weight.device)
    stored = (w / s - fold.offset).to(dtype).float() + fold.offset
    found = w / stored
    return torch.where((w * stored > 0) & found.isfinite(), found, 1.0)


def shared(values: Tensor, rows: Tensor, reduce: str) -> Tensor:
    """Channels behind one row of the producer get one value, the "mean" or "amax" of theirs: (width,), same dtype."""
    rows = rows.to(values.device)
    together = values.new_zeros(int(rows.max()) + 1).scatter_reduce(0, rows, values, reduce, include_self=False)
    return together[rows]


class Changes:
    """The parameters of a model, as they stand after some folding."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.original = dict(model.named_parameters(remove_duplicate=False))
        self.changed: dict[str, Tensor] = {}
        """By name in the state dict, float32."""
        self.rows: dict[str, Tensor] = {}
        """As in `Transform`."""

    def __call__(self, name: str) -> Tensor | None:
        """A `Parameter`."""
        if name in self.changed:
            return self.changed[name]
        return self.original[name].detach().float() if name in self.original else None

    def weight(self, linear: str) -> Tensor:
        """(out, in) float32."""
        return _present(self, f"{linear}.weight")

    def add(self, fold: Fold, s: Tensor) -> bool:
        """Fold s in; False, and nothing changed, where a result is not finite in the model's dtype."""
        found = folded(self, fold, s)
        if not all(bool(value.to(self.original[name].dtype).isfinite().all()) for name, value in found.items()):
            return False
        self.changed.update(found)
        W = found[f"{fold.producer}.weight"]
        if W.dim() > 1:
            self.rows[fold.producer] = W.new_ones(len(W)).index_copy(0, fold.rows, s.to(W.dtype))
        return True

    def transform(
        self,
        linears: Mapping[str, nn.Linear],
        scales: dict[str, Tensor],
        unfolded: dict[str, str],
        facts: dict[str, Any],
    ) -> Transform:
        """All of it in the model's dtype."""
        stored = {name: value.to(self.original[name].dtype) for name, value in self.changed.items()}
        weights = {name: stored.pop(f"{name}.weight", module.weight.detach()) for name, module in linears.items()}
        return Transform(scales, weights, stored, unfolded, facts, self.rows)


def _present(parameter: Parameter, name: str) -> Tensor:
    found = parameter(name)
    if found is None:
        raise ValueError(f"the model has no parameter {name}")
    return found


def _divided_histogram(found: Histogram, s: Tensor) -> Histogram:
    midpoints = histograms.midpoints(found.mantissa_bits, found.dtype)
    values = midpoints[found.first : found.first + found.counts.shape[1]].to(s.device)
    target = histograms.bucket((values / s.unsqueeze(1)).float(), found.mantissa_bits)
    counts = torch.zeros(len(s), histograms.n_buckets(found.mantissa_bits), dtype=torch.int64, device=s.device)
    counts.scatter_add_(1, target.long(), found.counts.to(s.device))
    return histograms.trimmed(counts, 0, found.mantissa_bits, found.dtype)
