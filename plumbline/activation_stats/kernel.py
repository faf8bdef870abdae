"""The arithmetic of the statistics: products x^T x and column statistics of activations.

There are two implementations of one definition. `kernel.c`, compiled when Plumbline is installed, handles bfloat16 and
float32 on a CPU with AVX2 (bfloat16 also with AVX512-BF16). PyTorch handles all else, and everything where there was no
compiler. Extremes and counts are identical either way. Sums differ in the rounding of a float64 sum, Hessians in that
of float32 sums.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from plumbline import histogram as histograms
from plumbline import kernels

VERSION = 3
"""Version of the interface of kernel.c."""
SEGMENT = 256
"""Tokens of a sample whose products kernel.c sums in float32 before it adds the sum in float64. This keeps a product
within 1e-6 of sqrt(S_ii S_jj)."""
PRODUCT_ROWS = 2048
"""The same for PyTorch, which sums in another order and is as accurate with longer segments."""
BUFFERED = 2048
"""Packed tokens of a site that are buffered before their product: S is read and written once for all of them. At most
4 * BUFFERED * (width + 47) bytes, a small part of the 8 * width^2 of S where memory matters."""
WITH_AVX2, WITH_AVX512 = 1, 2
"""Levels of kernel.c: the instruction sets that it uses."""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled `kernel.c`, or None without it or without AVX2; logs once which implementation is used."""
    log = logging.getLogger(__name__)
    loaded = kernels.load("activation_stats/kernel.c", VERSION)
    if loaded is None:
        return None
    if not loaded.plumbline_level():
        log.info("activation statistics: this processor has no AVX2, PyTorch does the arithmetic")
        return None
    log.info("activation statistics: bfloat16 and float32 on the CPU are summed up by the compiled kernel")
    address, number, integer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    loaded.plumbline_pack.argtypes = [address, number, number, address, number, number, integer, integer, integer]
    loaded.plumbline_hessian.argtypes = [address, number, address, number, *[address] * 3, number, integer, integer]
    loaded.plumbline_columns.argtypes = [address, number, number, *[address] * 4, integer, address, *[integer] * 3]
    loaded.plumbline_largest.argtypes = [address, number, number, address, address, number, *[address] * 3, integer]
    loaded.plumbline_mirror.argtypes = [address, number, integer]
    for name in ("pack", "hessian", "columns", "largest", "mirror"):
        getattr(loaded, f"plumbline_{name}").restype = None
    return loaded


def level() -> int:
    """The highest level of kernel.c on this processor: WITH_AVX2, WITH_AVX512 or, without the library, 0."""
    loaded = library()
    return 0 if loaded is None else int(loaded.plumbline_level())


def level_for(dtype: torch.dtype) -> int:
    """The level of kernel.c for this dtype: AVX512-BF16 helps bfloat16 alone."""
    return level() if dtype == torch.bfloat16 else min(level(), WITH_AVX2)


def compiled(dtype: torch.dtype, device: torch.device) -> ctypes.CDLL | None:
    """The library, if it handles activations of this dtype on this device; else None."""
    return library() if dtype in (torch.bfloat16, torch.float32) and device.type == "cpu" else None


# ---------------------------------------------------------------------------------------------------------- Hessian


class HessianSums:
    """Totals S = sum of weight * x^T x, by segment in float64: the bits do not depend on when they are read.

    There may be many totals, by number. Activations are packed once and added to some of the totals (those of the sets
    that hold the sample).
    """

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.width, self.device, self.wide = width, device, dtype == torch.float32
        self.library, self.level = compiled(dtype, device), level_for(dtype)
        self.totals: dict[int, Tensor] = {}
        self.panels: Tensor | None = None
        self.waiting: list[tuple[int, int, float, Sequence[int]]] = []
        """Segments: first pair of tokens, number of pairs, weight, totals to add to."""

    def add(self, x: Tensor, weight: float = 1.0, into: Sequence[int] = (0,)) -> None:
        """Add weight * x^T x of activations (tokens, width), all finite."""
        for number in into:
            if number not in self.totals:
                self.totals[number] = torch.zeros(self.width, self.width, dtype=torch.float64, device=self.device)
        if self.library is None:
            for product in products(x):
                for number in into:
                    self.totals[number].add_(product, alpha=weight)
            return
        x = x.contiguous()
        for start in range(0, len(x), BUFFERED):
            self._pack(self.library, x[start : start + BUFFERED], weight, into)

    def _pack(self, library: ctypes.CDLL, x: Tensor, weight: float, into: Sequence[int]) -> None:
        panel, room, pairs = library.plumbline_panel(), BUFFERED // 2, (len(x) + 1) // 2
        if self.panels is None:
            words = panel * library.plumbline_words(self.level)
            self.panels = torch.empty(-(-self.width // panel), room, words, dtype=torch.int32)
        filled = self.waiting[-1][0] + self.waiting[-1][1] if self.waiting else 0
        if filled + pairs > room:
            self._flush()
            filled = 0
        library.plumbline_pack(
            x.data_ptr(),
            len(x),
            self.width,
            self.panels.data_ptr(),
            room,
            filled,
            torch.get_num_threads(),
            self.level,
            self.wide,
        )
        for start in range(0, pairs, SEGMENT // 2):
            self.waiting.append((filled + start, min(SEGMENT // 2, pairs - start), weight, into))

    def _flush(self) -> None:
        if self.library is None or self.panels is None:
            return
        for number in {number for *_, into in self.waiting for number in into}:
            segments = [row for row in self.waiting if number in row[3]]
            starts, pairs = (torch.tensor([row[i] for row in segments], dtype=torch.int64) for i in (0, 1))
            weights = torch.tensor([row[2] for row in segments], dtype=torch.float64)
            self.library.plumbline_hessian(
                self.totals[number].data_ptr(),
                self.width,
                self.panels.data_ptr(),
                BUFFERED // 2,
                starts.data_ptr(),
                pairs.data_ptr(),
                weights.data_ptr(),
                len(segments),
                torch.get_num_threads(),
                self.level,
            )
        self.waiting.clear()

    def result(self, number: int = 0) -> Tensor:
        """The total (width, width), float64 on the CPU, exactly symmetric; it is removed here and starts anew."""
        self._flush()
        return mirrored(self.totals.pop(number).cpu())


def products(x: Tensor) -> list[Tensor]:
    """x^T x of activations (tokens, width), in parts of PRODUCT_ROWS tokens, each (width, width) float64."""
    wide = x.float()
    with _exact_products(x.dtype):
        parts = [wide[start : start + PRODUCT_ROWS] for start in range(0, len(wide), PRODUCT_ROWS)]
        return [(rows.T @ rows).double() for rows in parts]


_exact_lock = Lock()
_exact_now: list[tuple[str, str]] = []
"""Settings before each active `_exact_products`; the first are the ones to restore."""


@contextmanager
def _exact_products(dtype: torch.dtype) -> Iterator[None]:
    """Within the context, let float32 matrix products read their operands as `dtype`, from which they were converted.

    Converting back loses nothing. Products are exact and summed in float32, at the speed of the 16-bit units where
    there are any. (A product of bfloat16 matrices would round every sum to 8 bits.) TF32 represents both bfloat16 and
    float16 exactly.
    """
    cpu: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made at run time
    cuda = torch.backends.cuda.matmul
    with _exact_lock:  # the settings are process-wide: the last of several threads restores them
        _exact_now.append((cpu.fp32_precision, cuda.fp32_precision))
        cpu.fp32_precision = "bf16" if dtype == torch.bfloat16 else "ieee"
        cuda.fp32_precision = "ieee" if dtype == torch.float32 else "tf32"
    try:
        yield
    finally:
        with _exact_lock:
            if len(_exact_now) == 1:
                cpu.fp32_precision, cuda.fp32_precision = _exact_now[0]
                _exact_now.clear()
            else:
                _exact_now.pop()


def mirrored(S: Tensor) -> Tensor:
    """S (width, width), contiguous float64 on the CPU, with its upper triangle copied over the lower one in place."""
    if (loaded := library()) is not None:
        loaded.plumbline_mirror(S.data_ptr(), len(S), torch.get_num_threads())
        return S
    upper = S.triu()
    return torch.add(upper, upper.triu(1).T, out=S)


# ---------------------------------------------------------------------------------------------------------- columns


@dataclass(frozen=True, eq=False)
class Columns:
    """Extremes and sums of activations (tokens, width), from one pass."""

    low: Tensor
    """(width,) float32: minimum; not finite where a value is not."""
    high: Tensor
    sums: Tensor
    """(3, width) float64: sums of x, |x| and x^2."""


def columns(x: Tensor, counts: Tensor | None = None, mantissa_bits: int = 0, counted: Tensor | None = None) -> Columns:
    """Extremes and sums of every channel of activations (tokens, width).

    Args:
        counts: (width, buckets) int32, changed in place: counts of values per bucket (see histogram.py).
        counted: (tokens,) bool: the tokens to count; None: all.
    """
    loaded = compiled(x.dtype, x.device)
    if loaded is None:
        return _columns(x, counts, mantissa_bits, counted)
    x = x.contiguous()
    tokens, width = x.shape
    result = Columns(torch.empty(width), torch.empty(width), torch.empty(3, width, dtype=torch.float64))
    loaded.plumbline_columns(
        x.data_ptr(),
        tokens,
        width,
        result.low.data_ptr(),
        result.high.data_ptr(),
        result.sums.data_ptr(),
        None if counts is None else counts.data_ptr(),
        mantissa_bits,
        None if counted is None else counted.data_ptr(),
        torch.get_num_threads(),
        level_for(x.dtype),
        x.dtype == torch.float32,
    )
    return result


def _columns(x: Tensor, counts: Tensor | None, mantissa_bits: int, counted: Tensor | None) -> Columns:
    wide = x.double()
    sums = torch.stack([wide.sum(dim=0), wide.abs().sum(dim=0), wide.square().sum(dim=0)])
    result = Columns(x.amin(dim=0).float() + 0.0, x.amax(dim=0).float() + 0.0, sums)  # no negative zero
    if counts is not None and bool(result.low.isfinite().all()) and bool(result.high.isfinite().all()):
        read = x if counted is None else x[counted]
        # Channel by channel, so that the few kilobytes of a channel's counts stay in the L1 cache.
        start = torch.arange(x.shape[1], dtype=torch.int32, device=x.device)[:, None] * counts.shape[1]
        keys = (histograms.bucket(read, mantissa_bits).T.contiguous() + start).view(-1)
        counts.view(-1).index_add_(0, keys, torch.ones(1, dtype=counts.dtype, device=x.device).expand(len(keys)))
    return result


# ---------------------------------------------------------------------------------------------------------- largest


@dataclass(eq=False)
class Largest:
    """The largest magnitudes of a sample at a site, largest first; ties by position, then channel."""

    values: Tensor
    """(k,) float32."""
    positions: Tensor
    """(k,) int32; -1: an empty place."""
    channels: Tensor
    """(k,) int32."""


def add_largest(into: Largest, x: Tensor, peaks: Tensor, positions: Tensor) -> None:
    """Merge the largest magnitudes of activations (tokens, width) into `into`, in place.

    Args:
        peaks: (width,) float32: the largest magnitude of each channel of `x`.
        positions: (tokens,) int64: the token of the sample that each row belongs to.
    """
    loaded = compiled(x.dtype, x.device)
    if loaded is not None:
        x = x.contiguous()
        loaded.plumbline_largest(
            x.data_ptr(),
            len(x),
            x.shape[1],
            peaks.data_ptr(),
            positions.contiguous().data_ptr(),
            len(into.values),
            into.values.data_ptr(),
            into.positions.data_ptr(),
            into.channels.data_ptr(),
            x.dtype == torch.float32,
        )
        return
    places = len(into.values)
    k = min(places, x.numel())
    # Only the k channels with the highest peaks (and ties with the last) can hold one of the k largest.
    channels = (peaks >= peaks.topk(min(k, x.shape[1])).values[-1]).nonzero().view(-1)
    part = x[:, channels].float()
    magnitude = part.abs()
    rows, columns = (magnitude >= magnitude.flatten().topk(k).values[-1]).nonzero().unbind(1)
    value = torch.cat([into.values, part[rows, columns]])
    position = torch.cat([into.positions, positions[rows].int()])
    channel = torch.cat([into.channels, channels[columns].int()])
    order = torch.arange(len(value), device=x.device)
    for key in (channel, position, -value.abs().masked_fill(position < 0, -1.0)):  # least important first
        order = order[torch.sort(key[order], stable=True).indices]
    order = order[:places]
    into.values.copy_(value[order])
    into.positions.copy_(position[order])
    into.channels.copy_(channel[order])
