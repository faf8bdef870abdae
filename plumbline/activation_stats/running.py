"""The running totals of one site during forward passes: each sample's activations are added once, in order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plumbline import histogram as histograms
from plumbline.activation_stats import kernel
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import NOBODY, SiteStats
from plumbline.base_model.inputs import UNKNOWN, require_finite


class RunningSite:
    """Totals of one set of samples, or of several sets that share samples, on the device of the activations.

    A sample's activations are read once, whatever the number of sets that hold it.
    """

    def __init__(
        self,
        name: str,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        settings: StatisticsParams,
        n: int,
        hessian: bool | None = None,
        histogram: bool = True,
    ) -> None:
        """
        Args:
            n: rows of each set. Extremes and token counts are stored by row: one sample, or all samples of a set.
            hessian: whether to sum a Hessian; None: as in the settings. The outputs of layers have none.
            histogram: whether to count a histogram.
        """
        if dtype not in (torch.bfloat16, torch.float16, torch.float32):
            raise ValueError(f"site {name!r}: activations in {dtype}; load the model in bfloat16, float16 or float32")
        self.name, self.width, self.dtype, self.device = name, width, dtype, device
        self.settings, self.n, self.histogram = settings, n, histogram
        self.sets: dict[int, _SetSums] = {}
        """By number; only sets that a token has reached."""
        self._apart: Tensor | None = None
        """Counts of one sample that several sets hold."""
        wanted = settings.hessian if hessian is None else hessian
        self.hessian = kernel.HessianSums(width, dtype, device) if wanted else None

    def add(
        self, x: Tensor, row: int, sample_id: str, positions: Tensor | None = None, sets: Sequence[int] = (0,)
    ) -> None:
        """Add activations (tokens, width) of a sample; a layer that runs twice adds twice.

        Args:
            row: row of the sample in each of `sets`.
            positions: (tokens,) int64: the token of the sample that each row of `x` belongs to, or UNKNOWN; None: the
                rows follow those that were added to this row before.
            sets: numbers of the sets that hold the sample.

        Raises:
            ValueError: an activation is not finite, or dtype or width changed.
        """
        if x.dtype != self.dtype or x.shape[1] != self.width:
            raise ValueError(
                f"site {self.name!r}: {x.dtype} {x.shape[1]} wide for sample {sample_id}, "
                f"{self.dtype} {self.width} wide before"
            )
        if not len(x):
            return
        holders = [self._set(number, len(x)) for number in sets]
        if positions is None:
            start = holders[0].tokens[row]
            positions = torch.arange(start, start + len(x), device=x.device)
        counts = self._counts(holders)
        place = torch.where(positions == UNKNOWN, torch.arange(len(x), device=x.device), positions)
        counted = histograms.counted(sample_id, place, self.settings.histogram_share)
        columns = kernel.columns(x, counts, self.settings.mantissa_bits, counted)
        require_finite(self.name, sample_id, columns.low, columns.high)
        for holder in holders:
            holder.add(x, row, columns, positions)
            if counts is not None and holder.counts is not None and holder.counts is not counts:
                holder.counts += counts
        if self.hessian is not None:
            self.hessian.add(x, 1 / len(x) if self.settings.normalization == "sequence" else 1.0, sets)

    def result(self, members: tuple[str, ...], number: int = 0) -> SiteStats:
        """The statistics of a set; nothing can be added to the set afterwards."""
        totals = self.sets[number]
        sums = totals.sums.cpu()
        histogram = None
        if totals.counts is not None:
            dtype = str(self.dtype).removeprefix("torch.")
            histogram = histograms.trimmed(totals.counts.cpu(), 0, self.settings.mantissa_bits, dtype)
            totals.counts = None  # frees the largest part
        return SiteStats(
            members=members,
            sample_tokens=torch.tensor(totals.tokens, dtype=torch.int64),
            sum=sums[0],
            sum_abs=sums[1],
            sum_sq=sums[2],
            histogram=histogram,
            hessian=None if self.hessian is None else self.hessian.result(number),
            sample_min=totals.min.cpu(),
            sample_max=totals.max.cpu(),
            top_values=totals.top_values.cpu(),
            top_positions=totals.top_positions.cpu(),
            top_channels=totals.top_channels.cpu(),
        )

    def _set(self, number: int, tokens: int) -> _SetSums:
        """The sums of a set, after a check that its counts can take `tokens` more."""
        if number not in self.sets:
            counts = self._no_counts() if self.histogram else None
            self.sets[number] = _SetSums(self.width, self.n, self.settings.top_k, counts, self.device)
        largest = torch.iinfo(torch.int32).max
        if sum(self.sets[number].tokens) + tokens > largest:
            raise ValueError(
                f"site {self.name!r}: more than {largest} tokens in one shard, its counts have 32 bits; raise "
                "statistics.shards in params.yaml"
            )
        return self.sets[number]

    def _counts(self, holders: Sequence[_SetSums]) -> Tensor | None:
        """The counts to add a sample to: those of its set, or separate ones where several sets hold it."""
        if not self.histogram:
            return None
        if len(holders) == 1:
            return holders[0].counts
        self._apart = self._no_counts() if self._apart is None else self._apart.zero_()
        return self._apart

    def _no_counts(self) -> Tensor:
        buckets = histograms.n_buckets(self.settings.mantissa_bits)
        return torch.zeros(self.width, buckets, dtype=torch.int32, device=self.device)


class _SetSums:
    """The running totals of one set."""

    def __init__(self, width: int, n: int, top_k: int, counts: Tensor | None, device: torch.device) -> None:
        self.counts = counts
        self.tokens = [0] * n
        self.sums = torch.zeros(3, width, dtype=torch.float64, device=device)  # of x, |x|, x^2
        self.min = torch.full((n, width), torch.inf, device=device)
        self.max = torch.full((n, width), -torch.inf, device=device)
        self.top_values = torch.zeros(n, top_k, device=device)
        self.top_positions = torch.full((n, top_k), NOBODY, dtype=torch.int32, device=device)
        self.top_channels = torch.full((n, top_k), NOBODY, dtype=torch.int32, device=device)

    def add(self, x: Tensor, row: int, columns: kernel.Columns, positions: Tensor) -> None:
        """Add activations (tokens, width) with extremes and sums `columns` to all totals except the counts."""
        self.sums += columns.sums
        if self.top_values.shape[1]:
            places = kernel.Largest(self.top_values[row], self.top_positions[row], self.top_channels[row])
            kernel.add_largest(places, x, torch.maximum(-columns.low, columns.high), positions)
        torch.minimum(self.min[row], columns.low, out=self.min[row])
        torch.maximum(self.max[row], columns.high, out=self.max[row])
        self.tokens[row] += len(x)
