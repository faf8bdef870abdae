"""Statistics of the inputs of a model's linear layers, and how to merge and retract them.

Counts and sums over tokens are stored as totals. Extremes cannot be subtracted from a total, so they are stored as one
row per sample. So `merge` and `retract` are exact for integers and extremes; for sums they are float64 additions and
subtractions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plumbline import histogram as histograms
from plumbline.activation_stats.params import StatisticsParams
from plumbline.histogram import Histogram

NOBODY = -1
"""Position and channel of an empty place among the largest magnitudes of a sample."""


@dataclass(frozen=True, eq=False)
class SiteStats:
    """One site: an activation x (tokens, width) that one or more linear layers read.

    n is the number of samples, or 1 where all samples of a set share a row (multi_set.py): then every "sample" below is
    the set.
    """

    members: tuple[str, ...]
    """The modules that read the activation, in the order of the forward pass; the first names the site."""
    sample_tokens: Tensor
    """(n,) int64: tokens of each sample that reached the site; 0 where a router sent none."""
    sum: Tensor
    """(width,) float64: sum of x."""
    sum_abs: Tensor
    """(width,) float64: sum of |x|."""
    sum_sq: Tensor
    """(width,) float64: sum of x^2."""
    histogram: Histogram | None
    """None where it was not requested, which only multi_set.py allows."""
    hessian: Tensor | None
    """(width, width) float64: S = sum of x x^T, exactly symmetric; None where `hessian: false`."""
    sample_min: Tensor
    """(n, width) float32, exact; +inf for a sample without tokens here."""
    sample_max: Tensor
    """(n, width) float32, exact; -inf for a sample without tokens here."""
    top_values: Tensor
    """(n, top_k) float32: each sample's largest magnitudes with their sign, largest first."""
    top_positions: Tensor
    """(n, top_k) int32: position in the sample of each magnitude."""
    top_channels: Tensor
    """(n, top_k) int32: channel of each magnitude."""

    @property
    def width(self) -> int:
        return self.sum.shape[0]

    @property
    def tokens(self) -> int:
        return int(self.sample_tokens.sum())

    @property
    def samples(self) -> int:
        """Number of samples with at least one token here."""
        return int((self.sample_tokens > 0).sum())

    @property
    def min(self) -> Tensor:
        """(width,) float32."""
        return self.sample_min.amin(dim=0)

    @property
    def max(self) -> Tensor:
        """(width,) float32."""
        return self.sample_max.amax(dim=0)


@dataclass(frozen=True, eq=False)
class ActivationStats:
    """All sites of one model over one set of samples, in order of sample id."""

    base_model_digest: str
    fingerprint: str
    """Fingerprint of the tokenization."""
    settings: StatisticsParams
    sample_ids: tuple[str, ...]
    sample_tokens: Tensor
    """(n,) int64."""
    sites: Mapping[str, SiteStats]
    """By the name of the first member, sorted; only sites that received a token."""
    unreached: tuple[str, ...]
    """Modules that no token reached, sorted: experts that the router never chose."""


@dataclass(frozen=True)
class Extreme:
    """A large magnitude and its origin."""

    value: float
    sample_id: str
    position: int
    channel: int


def merge(a: ActivationStats, b: ActivationStats) -> ActivationStats:
    """The statistics of the samples of `a` and `b` together; associative and commutative.

    Integers and extremes equal those of a single pass bit by bit; sums differ by the rounding of one float64 addition.
    Settings must be equal except for `shards`, which affects rounding alone; the result has the larger number.

    Raises:
        ValueError: model, tokenization, settings or grouping of layers differ, or a sample is in both.
    """
    _require_same_origin(a, b)
    if both := set(a.sample_ids) & set(b.sample_ids):
        raise ValueError(
            f"{len(both)} samples are in both statistics, first {min(both)}: they would count twice. Retract them "
            "from one side first"
        )
    joined = a.sample_ids + b.sample_ids
    order = torch.tensor(sorted(range(len(joined)), key=joined.__getitem__), dtype=torch.int64)
    sites = {}
    for name in sorted({*a.sites, *b.sites}):
        left = a.sites.get(name) or _nothing(b.sites[name], len(a.sample_ids))
        right = b.sites.get(name) or _nothing(a.sites[name], len(b.sample_ids))
        sites[name] = _combined(left, right, 1, lambda x, y: torch.cat([x, y])[order])
    return ActivationStats(
        a.base_model_digest,
        a.fingerprint,
        max(a.settings, b.settings, key=lambda settings: settings.shards),
        tuple(joined[i] for i in order.tolist()),
        torch.cat([a.sample_tokens, b.sample_tokens])[order],
        sites,
        tuple(sorted(set(a.unreached) & set(b.unreached))),
    )


def retract(a: ActivationStats, b: ActivationStats) -> ActivationStats:
    """The statistics of `a` without the samples of `b`: `retract(merge(a, b), b)` is `a`.

    Integers, extremes and the origins of the largest magnitudes are exact. A sum keeps the rounding error of the larger
    total that it was part of (about 1e-16 of that total). Where every remaining value of a channel is zero, its sums
    are set to zero, so that a dead channel stays recognisable.

    Raises:
        ValueError: model, tokenization, settings or grouping of layers differ; a sample of `b` is not in `a`, or has
            other counts or extremes there.
    """
    _require_same_origin(a, b)
    if strange := set(b.sample_ids) - set(a.sample_ids):
        raise ValueError(f"{len(strange)} samples to retract were never part of it, first {min(strange)}")
    gone = set(b.sample_ids)
    staying = torch.tensor([i for i, sample in enumerate(a.sample_ids) if sample not in gone], dtype=torch.int64)
    leaving = torch.tensor([i for i, sample in enumerate(a.sample_ids) if sample in gone], dtype=torch.int64)
    if missing := sorted(set(b.sites) - set(a.sites)):
        raise ValueError(f"site {missing[0]!r} is in what is to be retracted, but not in the whole")

    sites, unreached = {}, set(a.unreached)
    for name, site in a.sites.items():
        part = b.sites.get(name) or _nothing(site, len(b.sample_ids))
        for what in ("sample_tokens", "sample_min", "sample_max", "top_values", "top_positions", "top_channels"):
            in_a, in_b = getattr(site, what)[leaving], getattr(part, what)
            if not torch.equal(in_a, in_b):
                row = int((in_a != in_b).view(len(in_b), -1).any(dim=1).nonzero()[0])
                raise ValueError(
                    f"site {name!r}: sample {b.sample_ids[row]} has another {what} in the whole than in what is to be "
                    "retracted, so it is not the same forward pass (another machine or library version?); collect "
                    "the remaining samples anew"
                )
        rest = _combined(site, part, -1, lambda x, _: x[staying])
        if rest.tokens:
            sites[name] = _without_residue(rest)
        else:
            unreached.update(site.members)
    return ActivationStats(
        a.base_model_digest,
        a.fingerprint,
        a.settings,
        tuple(a.sample_ids[i] for i in staying.tolist()),
        a.sample_tokens[staying],
        sites,
        tuple(sorted(unreached)),
    )


def extremes(stats: ActivationStats, site: str) -> list[Extreme]:
    """The `top_k` largest magnitudes of a site, largest first; ties by sample id, position, channel."""
    totals = stats.sites[site]
    rows = [
        Extreme(value, sample, position, channel)
        for sample, *places in zip(
            stats.sample_ids,
            totals.top_values.tolist(),
            totals.top_positions.tolist(),
            totals.top_channels.tolist(),
            strict=True,
        )
        for value, position, channel in zip(*places, strict=True)
        if position != NOBODY
    ]
    return sorted(rows, key=lambda x: (-abs(x.value), x.sample_id, x.position, x.channel))[: stats.settings.top_k]


def quantile(site: SiteStats, q: float, per_channel: bool = False, absolute: bool = False) -> Tensor:
    """The q-quantile of a site's values (`absolute`: of their magnitudes), per channel or over all of them.

    The error is at most 2^-(m+1) relative for magnitudes from 2^-20 to 2^20 (m mantissa bits), and less than 2^-20
    absolute below. The result is never outside the observed extremes; q = 1 gives the largest value exactly.

    Returns:
        (width,) or () float64.
    """
    low, high = site.min.double(), site.max.double()
    if absolute:
        magnitude = torch.maximum(-low, high)
        low, high = torch.where((low <= 0) & (high >= 0), 0.0, torch.minimum(low.abs(), high.abs())), magnitude
    if not per_channel:
        low, high = low.min(), high.max()
    values = histograms.quantile(counted(site), q, per_channel, absolute).clamp(low, high)
    return high if q == 1 else low if q == 0 and not absolute else values


def counted(site: SiteStats) -> Histogram:
    """The histogram of a site; every site of an ActivationStats has one."""
    if site.histogram is None:
        raise ValueError(f"site {site.members[0]!r} was collected without a histogram")
    return site.histogram


def _require_same_origin(a: ActivationStats, b: ActivationStats) -> None:
    ours, theirs = a.settings.model_dump(), b.settings.model_dump()
    for what, left, right in (
        ("base model", a.base_model_digest, b.base_model_digest),
        ("tokenization fingerprint", a.fingerprint, b.fingerprint),
        *((f"statistics.{name}", ours[name], theirs[name]) for name in ours if name != "shards"),
        *((f"layers at {name!r}", a.sites[name].members, b.sites[name].members) for name in a.sites if name in b.sites),
    ):
        if left != right:
            raise ValueError(
                f"statistics of different origin do not combine: {what} {left} on one side, {right} on the other; "
                "collect both with the same model, tokenizer and params.yaml"
            )


def _combined(a: SiteStats, b: SiteStats, sign: int, rows: Callable[[Tensor, Tensor], Tensor]) -> SiteStats:
    """Totals of `a` plus or minus those of `b`; `rows` selects the rows per sample from both."""
    assert (a.hessian is None) == (b.hessian is None)  # the settings are the same
    return SiteStats(
        a.members,
        rows(a.sample_tokens, b.sample_tokens),
        a.sum + sign * b.sum,
        a.sum_abs + sign * b.sum_abs,
        a.sum_sq + sign * b.sum_sq,
        histograms.add(counted(a), counted(b), sign),
        None if a.hessian is None or b.hessian is None else torch.add(a.hessian, b.hessian, alpha=sign),
        rows(a.sample_min, b.sample_min),
        rows(a.sample_max, b.sample_max),
        rows(a.top_values, b.top_values),
        rows(a.top_positions, b.top_positions),
        rows(a.top_channels, b.top_channels),
    )


def _nothing(like: SiteStats, n: int) -> SiteStats:
    """The statistics of a site that no token of `n` samples reached."""
    top_k = like.top_values.shape[1]
    kind = counted(like)
    return SiteStats(
        like.members,
        torch.zeros(n, dtype=torch.int64),
        torch.zeros_like(like.sum),
        torch.zeros_like(like.sum),
        torch.zeros_like(like.sum),
        Histogram(torch.zeros(like.width, 0, dtype=torch.int64), 0, kind.mantissa_bits, kind.dtype),
        None if like.hessian is None else torch.zeros_like(like.hessian),
        torch.full((n, like.width), torch.inf),
        torch.full((n, like.width), -torch.inf),
        torch.zeros(n, top_k),
        torch.full((n, top_k), NOBODY, dtype=torch.int32),
        torch.full((n, top_k), NOBODY, dtype=torch.int32),
    )


def _without_residue(site: SiteStats) -> SiteStats:
    """The site with exact zeros for dead channels, where a subtraction may leave rounding errors."""
    dead = (site.min == 0) & (site.max == 0)
    hessian = site.hessian
    return replace(
        site,
        sum=site.sum.masked_fill(dead, 0.0),
        sum_abs=site.sum_abs.masked_fill(dead, 0.0).clamp(min=0.0),
        sum_sq=site.sum_sq.masked_fill(dead, 0.0).clamp(min=0.0),
        hessian=None if hessian is None else hessian.masked_fill(dead | dead[:, None], 0.0),
    )
