"""The running totals of one site during a forward pass: each sample's activations go in once, in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from assets.activation_stats import histogram as histograms
from assets.activation_stats.params import StatisticsParams
from assets.activation_stats.sketch import NOBODY, SiteStats
from assets.base_model.inputs import require_finite

BLOCK = 16
"""Rows that are summed in float32 before float64 takes over: with 8 significant bits in a bfloat16, exact as long as
they are within a factor of 2^12 of each other."""
PRODUCT_ROWS = 2048
"""Rows of one matrix product, which accumulates in float32; the products are added up in float64."""


class RunningSite:
    """Totals on the device of the activations; `result` brings them to the CPU."""

    def __init__(
        self, name: str, width: int, dtype: torch.dtype, device: torch.device, settings: StatisticsParams, n: int
    ) -> None:
        if dtype not in (torch.bfloat16, torch.float16, torch.float32):
            raise ValueError(f"site {name!r}: activations in {dtype}; load the model in bfloat16, float16 or float32")
        self.name, self.width, self.dtype, self.settings = name, width, dtype, settings
        buckets = histograms.n_buckets(settings.mantissa_bits)
        self.counts = torch.zeros(width * buckets, dtype=torch.int64, device=device)
        self.channel_start = torch.arange(width, dtype=torch.int32, device=device) * buckets
        self.one = torch.ones(1, dtype=torch.int64, device=device)
        self.sums = torch.zeros(3, width, dtype=torch.float64, device=device)  # of x, |x|, x^2
        self.hessian = torch.zeros(width, width, dtype=torch.float64, device=device) if settings.hessian else None
        self.tokens = [0] * n
        self.min = torch.full((n, width), torch.inf, device=device)
        self.max = torch.full((n, width), -torch.inf, device=device)
        self.top_values = torch.zeros(n, settings.top_k, device=device)
        self.top_positions = torch.full((n, settings.top_k), NOBODY, dtype=torch.int32, device=device)
        self.top_channels = torch.full((n, settings.top_k), NOBODY, dtype=torch.int32, device=device)

    def add(self, x: Tensor, row: int, sample_id: str) -> None:
        """Add activations (tokens, width) of the sample with number `row`; a layer that runs twice adds twice.

        Raises:
            ValueError: one of them is not finite, or dtype or width changed.
        """
        if x.dtype != self.dtype or x.shape[1] != self.width:
            raise ValueError(
                f"site {self.name!r}: {x.dtype} {x.shape[1]} wide for sample {sample_id}, "
                f"{self.dtype} {self.width} wide before"
            )
        low, high = x.amin(dim=0).float(), x.amax(dim=0).float()
        require_finite(self.name, sample_id, low, high)
        self._add_largest(x, torch.maximum(-low, high), row)
        self.min[row] = torch.minimum(self.min[row], low)
        self.max[row] = torch.maximum(self.max[row], high)
        self.tokens[row] += len(x)

        # One channel after the other: its few kilobytes of counts stay in the nearest cache meanwhile.
        keys = histograms.bucket(x, self.settings.mantissa_bits).T.contiguous() + self.channel_start[:, None]
        self.counts.index_add_(0, keys.view(-1), self.one.expand(keys.numel()))

        wide = x.float()
        self.sums += torch.stack([_column_sums(wide), _column_sums(wide.abs()), _column_sums(wide.square())])
        if self.hessian is not None:
            for product in products(x):
                self.hessian += product

    def _add_largest(self, x: Tensor, peaks: Tensor, row: int) -> None:
        """Largest magnitudes of `x`, ties by position, then channel, among those that the row already holds."""
        k = min(self.settings.top_k, x.numel())
        # Only the k channels with the highest peaks (and whatever ties with the last) can hold one of the k largest.
        channels = (peaks >= peaks.topk(min(k, self.width)).values[-1]).nonzero().view(-1)
        part = x[:, channels].float()
        magnitude = part.abs()
        found = (magnitude >= magnitude.flatten().topk(k).values[-1]).nonzero()  # in order of position, then channel
        values = torch.cat([self.top_values[row], part[found[:, 0], found[:, 1]]])
        positions = torch.cat([self.top_positions[row], (found[:, 0] + self.tokens[row]).int()])
        channel = torch.cat([self.top_channels[row], channels[found[:, 1]].int()])
        rank = values.abs().masked_fill(positions == NOBODY, -1.0)
        order = torch.sort(rank, descending=True, stable=True).indices[: self.settings.top_k]
        self.top_values[row], self.top_positions[row], self.top_channels[row] = (
            values[order],
            positions[order],
            channel[order],
        )

    def result(self, members: tuple[str, ...]) -> SiteStats:
        hessian = None
        if self.hessian is not None:
            upper = self.hessian.cpu().triu()
            hessian = upper + upper.triu(1).T
        sums = self.sums.cpu()
        return SiteStats(
            members=members,
            sample_tokens=torch.tensor(self.tokens, dtype=torch.int64),
            sum=sums[0],
            sum_abs=sums[1],
            sum_sq=sums[2],
            histogram=histograms.trimmed(
                self.counts.cpu().view(self.width, -1),
                0,
                self.settings.mantissa_bits,
                str(self.dtype).removeprefix("torch."),
            ),
            hessian=hessian,
            sample_min=self.min.cpu(),
            sample_max=self.max.cpu(),
            top_values=self.top_values.cpu(),
            top_positions=self.top_positions.cpu(),
            top_channels=self.top_channels.cpu(),
        )


def products(x: Tensor) -> list[Tensor]:
    """x^T x of activations (tokens, width), in parts of PRODUCT_ROWS tokens, each (width, width) float64."""
    wide = x.float()
    with _exact_products(x.dtype):
        parts = [wide[start : start + PRODUCT_ROWS] for start in range(0, len(wide), PRODUCT_ROWS)]
        return [(rows.T @ rows).double() for rows in parts]


def _column_sums(x: Tensor) -> Tensor:
    """(width,) float64 sums of the columns of a float32 matrix."""
    whole = len(x) // BLOCK * BLOCK
    blocks = x[:whole].view(-1, BLOCK, x.shape[1]).sum(dim=1)
    return blocks.double().sum(dim=0) + x[whole:].double().sum(dim=0)


@contextmanager
def _exact_products(dtype: torch.dtype) -> Iterator[None]:
    """Let float32 matrix products read their operands as `dtype`, which is what they were made from.

    Converting back loses nothing, products are exact and are summed in float32, at the speed of the 16-bit units where
    there are any. (A product of bfloat16 matrices would round every sum to 8 bits.) TF32 holds bfloat16 and float16
    alike.
    """
    cpu: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made at run time
    cuda = torch.backends.cuda.matmul
    before = cpu.fp32_precision, cuda.fp32_precision
    cpu.fp32_precision = "bf16" if dtype == torch.bfloat16 else "ieee"
    cuda.fp32_precision = "ieee" if dtype == torch.float32 else "tf32"
    try:
        yield
    finally:
        cpu.fp32_precision, cuda.fp32_precision = before
