"""A histogram of floating-point bit patterns: exact to merge, the same relative error at every percentile.

A bucket is a sign, an exponent and the top m bits of the mantissa, so that it spans a 2^-m part of its octave, and its
midpoint is within 2^-(m+1) relative of everything in it. That is the logarithmic bucketing of DDSketch (Masson, Rim,
Lee 2019, arXiv 1908.10693) with the logarithm read off the bits.

The window is 40 octaves on either side of zero, 2^-20 <= |x| < 2^20. In ascending order the buckets are

    0                     x <= -2^20
    1 .. w                -2^20 < x <= -2^-20, w = 40 * 2^m
    w + 1                 |x| < 2^-20, zeros of either sign among them
    w + 2 .. 2w + 1       2^-20 <= x < 2^20
    2w + 2                x >= 2^20

A value wider than bfloat16 falls into the bucket of its leading bits, so that bfloat16, float16 and float32 share one
definition.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from plumbline.splitmix import splitmix64

LOWEST_EXPONENT = -20
OCTAVES = 40


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts per channel, trimmed to the buckets that any channel occupies."""

    counts: Tensor
    """(channels, buckets) int64."""
    first: int
    """Number of the bucket that column 0 counts."""
    mantissa_bits: int
    dtype: str
    """Of the activations that were counted: "bfloat16", "float16" or "float32"."""


def n_buckets(mantissa_bits: int) -> int:
    """Buckets before trimming: both signs, the two open ends and the middle."""
    return 2 * (OCTAVES << mantissa_bits) + 3


def bucket(x: Tensor, mantissa_bits: int) -> Tensor:
    """Number of the bucket of every element of `x` (bfloat16, float16 or float32; no NaN): int16, same shape."""
    if x.dtype == torch.bfloat16:
        bits = x.view(torch.int16)
    else:
        bits = (x.float().view(torch.int32) >> 16).to(torch.int16)
    # Sign-magnitude to two's complement: -x becomes ~bits(x), and order of integers is order of values.
    code = bits >> 15
    code &= 0x7FFF
    code ^= bits
    code >>= 7 - mantissa_bits
    lowest, window = (127 + LOWEST_EXPONENT) << mantissa_bits, OCTAVES << mantissa_bits
    code -= code.clamp(-lowest, lowest - 1)  # the middle becomes 0, its neighbours -1 and 1
    code.clamp_(-window - 1, window + 1)
    code += window + 1
    return code


def counted(sample_id: str, positions: Tensor, share: float) -> Tensor | None:
    """Which tokens a histogram reads that reads only a share of them.

    Decided token by token from a hash of sample and position, so that parts
    counted apart add up to a single pass, and taking a sample away takes what it gave.

    Args:
        positions: (tokens,) int64 in the sample.

    Returns:
        (tokens,) bool; None: all of them.
    """
    if share >= 1:
        return None
    seed = int.from_bytes(hashlib.sha256(sample_id.encode()).digest()[:8], "little")
    z = splitmix64(positions.cpu().numpy().astype(np.uint64), seed)
    return torch.from_numpy(z < np.uint64(share * 2.0**64)).to(positions.device)


def trimmed(counts: Tensor, first: int, mantissa_bits: int, dtype: str) -> Histogram:
    """The histogram without empty columns at its ends, in int64; the one form of given contents."""
    occupied = counts.any(dim=0).nonzero().flatten()
    if not len(occupied):
        return Histogram(counts[:, :0].long(), 0, mantissa_bits, dtype)
    low, high = int(occupied[0]), int(occupied[-1]) + 1
    return Histogram(counts[:, low:high].long().contiguous(), first + low, mantissa_bits, dtype)


def add(a: Histogram, b: Histogram, sign: int = 1) -> Histogram:
    """Counts of `a` plus (`sign` = -1: minus) those of `b`; exact.

    Raises:
        ValueError: other buckets, dtype or number of channels, or a count would turn negative.
    """
    kinds = [(h.mantissa_bits, h.dtype, h.counts.shape[0]) for h in (a, b)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"histograms of different (mantissa bits, dtype, channels): {kinds[0]} and {kinds[1]}")
    counts = torch.zeros(a.counts.shape[0], n_buckets(a.mantissa_bits), dtype=torch.int64)
    for h, factor in ((a, 1), (b, sign)):
        counts[:, h.first : h.first + h.counts.shape[1]] += factor * h.counts
    if bool((counts < 0).any()):
        raise ValueError("a bucket would hold less than nothing: the one histogram is not part of the other")
    return trimmed(counts, 0, a.mantissa_bits, a.dtype)


def quantile(histogram: Histogram, q: float, per_channel: bool = False, absolute: bool = False) -> Tensor:
    """The ceil(q * N)-th smallest value, as the midpoint of its bucket.

    Within 2^-(m+1) relative for 2^-20 <= |x| < 2^20 (exact for m = 7 and bfloat16); smaller ones come out as 0, larger
    ones as infinite: `sketch.quantile` cuts those to the extremes that were really seen.

    Args:
        q: 0 (the smallest value) to 1 (the largest).
        per_channel: one value per channel, or one over all.
        absolute: of |x| in place of x.

    Returns:
        (channels,) or () float64.

    Raises:
        ValueError: q outside [0, 1], or nothing was counted.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"a quantile lies between 0 and 1, found {q}")
    counts, first = histogram.counts, histogram.first
    values = midpoints(histogram.mantissa_bits, histogram.dtype)
    if absolute:
        middle = len(values) // 2
        folded = counts.new_zeros(counts.shape[0], middle + 1)
        distance = (torch.arange(counts.shape[1]) + first - middle).abs()
        counts, first, values = folded.index_add_(1, distance, counts), 0, values[middle:]
    if not per_channel:
        counts = counts.sum(dim=0, keepdim=True)
    total = int(counts[0].sum())
    if total == 0:
        raise ValueError("nothing was counted: no token reached this site")
    rank = max(1, math.ceil(Fraction(repr(float(q))) * total))  # 0.07 * 100 is 7, not 7.000000000000001
    ranks = torch.full((counts.shape[0], 1), rank, dtype=torch.int64)
    found = torch.searchsorted(counts.cumsum(dim=1), ranks).flatten()
    chosen = values[found + first]
    return chosen if per_channel else chosen[0]


def midpoints(mantissa_bits: int, dtype: str) -> Tensor:
    """(n_buckets,) float64: the middle of every bucket, 0 in the middle one, infinite at the open ends."""
    window, drop = OCTAVES << mantissa_bits, 7 - mantissa_bits
    codes = torch.arange(window, dtype=torch.int32) + ((127 + LOWEST_EXPONENT) << mantissa_bits)
    low = _value(codes << drop)
    # The last member of a bucket: a bfloat16 stops short of the next bucket, a wider type comes arbitrarily near.
    last = _value(((codes + 1) << drop) - 1) if dtype == "bfloat16" else _value((codes + 1) << drop)
    middle = (low + last) / 2
    end = torch.tensor([torch.inf], dtype=torch.float64)
    return torch.cat([-end, -middle.flip(0), torch.zeros(1, dtype=torch.float64), middle, end])


def _value(bfloat16_bits: Tensor) -> Tensor:
    return (bfloat16_bits.to(torch.int32) << 16).view(torch.float32).double()
