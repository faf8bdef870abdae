"""Statistics of many calibration sets in one pass: a sample is read once for all the sets that hold it.

Sets drawn again and again from one pool share most of their samples between them, and the forward pass is what costs.
Kept is what quantizing reads; the totals of a set are, bit by bit, those that `collect` gives for it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from plumbline.activation_stats.kernel import HessianSums, columns
from plumbline.activation_stats.params import StatisticsParams
from plumbline.base_model.inputs import LinearInputs, linear_layers, network_of, require_finite, require_readable
from plumbline.histogram import Histogram, n_buckets, trimmed

Normalization = Literal["token", "sequence"]


@dataclass(frozen=True, eq=False)
class SiteTotals:
    """One site over one set: what quantizing reads of `SiteStats`, by the same names."""

    members: tuple[str, ...]
    tokens: int
    sum: Tensor
    """(width,) float64: sum of x."""
    sum_abs: Tensor
    sum_sq: Tensor
    histogram: Histogram | None
    """None unless it was asked for."""
    hessian: Tensor
    """(width, width) float64: S = sum of x x^T."""
    min: Tensor
    """(width,) float32."""
    max: Tensor

    @property
    def width(self) -> int:
        return self.sum.shape[0]


@dataclass(frozen=True, eq=False)
class SetTotals:
    """All sites of one model over one set."""

    sites: Mapping[str, SiteTotals]
    """By name, sorted; only sites that saw a token."""
    unreached: tuple[str, ...]
    """Modules that no token came by, sorted."""
    settings: StatisticsParams
    """Those that `collect` would give the same totals under."""


@torch.no_grad()
def collect_together(
    model: PreTrainedModel,
    samples: Mapping[str, Sequence[int]],
    sets: Sequence[Sequence[str]],
    ignore: Sequence[str],
    progress: Callable[[int], object] | None = None,
    *,
    normalization: Normalization = "token",
    mantissa_bits: int | None = None,
) -> list[SetTotals]:
    """Run the full-precision model once over the samples that any set holds.

    Args:
        model: in evaluation mode; weights and hooks are left as they were.
        samples: token ids by sample id.
        sets: sample ids of each set; their order does not matter.
        ignore: Linears that are not watched, as in `StatisticsParams`.
        progress: called after each sample with the number of sets that hold it.
        normalization: of the Hessian, as in `StatisticsParams`.
        mantissa_bits: those of a histogram; None: no histogram. One costs 4 * width * buckets bytes per site and set
            (1283 buckets at 4 bits) and an addition of as many counts per sample and set.

    Returns:
        The totals of every set. In memory at a time: a Hessian per site and set.

    Raises:
        ValueError: a set is empty or names a sample twice; whatever `collect` refuses in model or samples.
    """
    holders: dict[str, list[int]] = {}
    for number, names in enumerate(sets):
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f"set {number}: expected samples, each once; found {len(names)}, {len(set(names))} distinct"
            )
        for name in names:
            holders.setdefault(name, []).append(number)
    layers = linear_layers(model, ignore)
    network, device = network_of(model, layers), next(model.parameters()).device
    running: dict[str, _Running] = {}
    name = ""

    def add(site: str, x: Tensor, positions: Tensor | None) -> None:
        x = x.reshape(-1, x.shape[-1])
        if site not in running:
            running[site] = _Running(site, x.shape[1], x.dtype, x.device, normalization, mantissa_bits)
        running[site].add(x, name, holders[name])

    inputs = LinearInputs(layers, add)
    with inputs.hooked():
        for name in sorted(holders):  # the order in which `collect` adds up
            ids = samples[name]
            require_readable(model, name, ids)
            inputs.begin(name)
            network(input_ids=torch.tensor([list(ids)], device=device), use_cache=False)
            if progress is not None:
                progress(len(holders[name]))
    members = inputs.members()
    settings = StatisticsParams(ignore=tuple(ignore), normalization=normalization)
    if mantissa_bits is not None:
        settings = settings.model_copy(update={"mantissa_bits": mantissa_bits})
    return [_finished(running, number, members, list(layers), settings) for number in range(len(sets))]


class _Running:
    """The totals of one site over every set."""

    def __init__(
        self,
        name: str,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        normalization: Normalization,
        mantissa_bits: int | None,
    ) -> None:
        self.name, self.dtype, self.normalization, self.mantissa_bits = name, dtype, normalization, mantissa_bits
        self.hessians = HessianSums(width, dtype, device)
        self.tokens: dict[int, int] = {}
        self.sums: dict[int, Tensor] = {}
        self.extremes: dict[int, Tensor] = {}  # of -x and x
        self.counts: dict[int, Tensor] = {}
        self.once: Tensor | None = None  # counts of one sample
        if mantissa_bits is not None:
            self.once = torch.zeros(width, n_buckets(mantissa_bits), dtype=torch.int32, device=device)

    def add(self, x: Tensor, sample_id: str, into: Sequence[int]) -> None:
        if self.once is not None:
            self.once.zero_()
        found = columns(x, self.once, self.mantissa_bits or 0)
        require_finite(self.name, sample_id, found.low, found.high)
        extremes = torch.stack([-found.low, found.high])
        for number in into:
            if number not in self.tokens:
                self.tokens[number], self.extremes[number] = 0, extremes
                self.sums[number] = torch.zeros_like(found.sums)
                if self.once is not None:
                    self.counts[number] = torch.zeros_like(self.once)
            self.tokens[number] += len(x)
            self.sums[number] += found.sums
            self.extremes[number] = torch.maximum(self.extremes[number], extremes)
            if self.once is not None:
                self.counts[number] += self.once
        self.hessians.add(x, 1 / len(x) if self.normalization == "sequence" else 1.0, into)

    def result(self, number: int, members: tuple[str, ...]) -> SiteTotals:
        histogram = None
        if self.mantissa_bits is not None:
            dtype = str(self.dtype).removeprefix("torch.")
            histogram = trimmed(self.counts.pop(number).cpu(), 0, self.mantissa_bits, dtype)
        low, high = self.extremes[number].cpu()
        sums = self.sums[number].cpu()
        return SiteTotals(
            members,
            self.tokens[number],
            sums[0],
            sums[1],
            sums[2],
            histogram,
            self.hessians.result(number),
            -low,
            high,
        )


def _finished(
    running: Mapping[str, _Running],
    number: int,
    members: Mapping[str, tuple[str, ...]],
    layers: Sequence[str],
    settings: StatisticsParams,
) -> SetTotals:
    sites = {
        name: running[name].result(number, members[name]) for name in sorted(running) if number in running[name].tokens
    }
    reached = {member for name in sites for member in members[name]}
    return SetTotals(sites, tuple(sorted(set(layers) - reached)), settings)


def hessian_bytes(model: PreTrainedModel, ignore: Sequence[str]) -> int:
    """Bytes of one set's Hessians, were every layer a site of its own: an upper bound, known before any pass."""
    total = 0
    for layer in linear_layers(model, ignore).values():
        weight = layer.weight
        assert isinstance(weight, Tensor)
        # A Linear stores its weight as (out, in), a Conv1D as (in, out).
        total += 8 * weight.shape[1 if isinstance(layer, nn.Linear) else 0] ** 2
    return total
