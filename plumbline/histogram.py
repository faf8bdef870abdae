"""A histogram of floating-point bit patterns: merges are exact, and every percentile has the same relative error.

A bucket is a sign, an exponent and the top m bits of the mantissa. It spans a 2^-m part of its octave, and its midpoint
is within 2^-(m+1) relative of every value in it. This is the logarithmic bucketing of DDSketch (Masson, Rim, Lee 2019,
arXiv 1908.10693) with the logarithm read from the bits.

The window is 40 octaves on either side of zero, 2^-20 <= |x| < 2^20. In ascending order the buckets are

    0                     x <= -2^20
    1 .. w                -2^20 < x <= -2^-20, w = 40 * 2^m
    w + 1                 |x| < 2^-20, zeros of either sign among them
    w + 2 .. 2w + 1       2^-20 <= x < 2^20
    2w + 2                x >= 2^20

A value wider than bfloat16 falls into the bucket of its leading bits, so bfloat16, float16 and float32 share one
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
    """Bucket number of column 0."""
    mantissa_bits: int
    dtype: str
    """Dtype of the counted activations: "bfloat16", "float16" or "float32"."""


def n_buckets(mantissa_bits: int) -> int:
    """Number of buckets before trimming: both signs, the two open ends and the middle."""
    return 2 * (OCTAVES << mantissa_bits) + 3


def bucket(x: Tensor, mantissa_bits: int) -> Tensor:
    """Bucket number of every element of `x` (bfloat16, float16 or float32; no NaN): int16, same shape."""
    if x.dtype == torch.bfloat16:
        bits = x.view(torch.int16)
    else:
        bits = (x.float().view(torch.int32) >> 16).to(torch.int16)
    # Sign-magnitude to two's complement: -x becomes ~bits(x), and the integers are ordered as the values are.
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
    """Mask of the tokens that a histogram of a share of the tokens counts.

    A hash of sample and position decides for each token. So histograms of parts add up to that of a single pass, and
    retracting a sample subtracts exactly its counts.

    Args:
        positions: (tokens,) int64: positions in the sample.

    Returns:
        (tokens,) bool; None: all tokens.
    """
    if share >= 1:
        return None
    seed = int.from_bytes(hashlib.sha256(sample_id.encode()).digest()[:8], "little")
    z = splitmix64(positions.cpu().numpy().astype(np.uint64), seed)
    return torch.from_numpy(z < np.uint64(share * 2.0**64)).to(positions.device)


def trimmed(counts: Tensor, first: int, mantissa_bits: int, dtype: str) -> Histogram:
    """The histogram in int64 without empty columns at its ends: equal contents have one representation."""
    occupied = counts.any(dim=0).nonzero().flatten()
    if not len(occupied):
        return Histogram(counts[:, :0].long(), 0, mantissa_bits, dtype)
    low, high = int(occupied[0]), int(occupied[-1]) + 1
    return Histogram(counts[:, low:high].long().contiguous(), first + low, mantissa_bits, dtype)


def add(a: Histogram, b: Histogram, sign: int = 1) -> Histogram:
    """The exact sum of `a` and `b`, or with `sign` = -1 their difference.

    Raises:
        ValueError: buckets, dtype or number of channels differ, or a count would be negative.
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

    Accurate within 2^-(m+1) relative for 2^-20 <= |x| < 2^20 (exact for m = 7 and bfloat16). Smaller magnitudes give 0,
    larger ones infinity: `sketch.quantile` clamps them to the observed extremes.

    Args:
        q: 0 (the smallest value) to 1 (the largest).
        per_channel: one value per channel, or one over all.
        absolute: quantile of |x| instead of x.

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
    columns = torch.searchsorted(counts.cumsum(dim=1), ranks).flatten()
    chosen = values[columns + first]
    return chosen if per_channel else chosen[0]


def midpoints(mantissa_bits: int, dtype: str) -> Tensor:
    """Midpoint of every bucket, (n_buckets,) float64: 0 for the middle bucket, infinite for the open ends."""
    window, drop = OCTAVES << mantissa_bits, 7 - mantissa_bits
    codes = torch.arange(window, dtype=torch.int32) + ((127 + LOWEST_EXPONENT) << mantissa_bits)
    low = _value(codes << drop)
    # Largest value of a bucket: in bfloat16 the one before the next bucket; wider types come arbitrarily near to it.
    last = _value(((codes + 1) << drop) - 1) if dtype == "bfloat16" else _value((codes + 1) << drop)
    middle = (low + last) / 2
    end = torch.tensor([torch.inf], dtype=torch.float64)
    return torch.cat([-end, -middle.flip(0), torch.zeros(1, dtype=torch.float64), middle, end])


def _value(bfloat16_bits: Tensor) -> Tensor:
    return (bfloat16_bits.to(torch.int32) << 16).view(torch.float32).double()
