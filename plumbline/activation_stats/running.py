"""The running totals of one site during a forward pass: each sample's activations go in once, in order."""

from __future__ import annotations

import torch
from torch import Tensor

from plumbline import histogram as histograms
from plumbline.activation_stats import kernel
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import NOBODY, SiteStats
from plumbline.base_model.inputs import UNKNOWN, require_finite


class RunningSite:
    """Totals on the device of the activations; `result` brings them to the CPU."""

    def __init__(
        self,
        name: str,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        settings: StatisticsParams,
        n: int,
        hessian: bool | None = None,
    ) -> None:
        """Totals of `n` samples.

        Args:
            hessian: whether there is one; None: as the settings say. The outputs of layers have none.
        """
        if dtype not in (torch.bfloat16, torch.float16, torch.float32):
            raise ValueError(f"site {name!r}: activations in {dtype}; load the model in bfloat16, float16 or float32")
        self.name, self.width, self.dtype, self.settings = name, width, dtype, settings
        buckets = histograms.n_buckets(settings.mantissa_bits)
        self.counts = torch.zeros(width, buckets, dtype=torch.int32, device=device)
        self.sums = torch.zeros(3, width, dtype=torch.float64, device=device)  # of x, |x|, x^2
        wanted = settings.hessian if hessian is None else hessian
        self.hessian = kernel.HessianSums(width, dtype, device) if wanted else None
        self.tokens = [0] * n
        self.min = torch.full((n, width), torch.inf, device=device)
        self.max = torch.full((n, width), -torch.inf, device=device)
        self.top_values = torch.zeros(n, settings.top_k, device=device)
        self.top_positions = torch.full((n, settings.top_k), NOBODY, dtype=torch.int32, device=device)
        self.top_channels = torch.full((n, settings.top_k), NOBODY, dtype=torch.int32, device=device)

    def add(self, x: Tensor, row: int, sample_id: str, positions: Tensor | None = None) -> None:
        """Add activations (tokens, width) of the sample with number `row`; a layer that runs twice adds twice.

        Args:
            positions: (tokens,) int64: the token of the sample that each row belongs to, or UNKNOWN; None: they
                follow those that the site has seen of this sample.

        Raises:
            ValueError: one of them is not finite, or dtype or width changed.
        """
        if x.dtype != self.dtype or x.shape[1] != self.width:
            raise ValueError(
                f"site {self.name!r}: {x.dtype} {x.shape[1]} wide for sample {sample_id}, "
                f"{self.dtype} {self.width} wide before"
            )
        if not len(x):
            return
        if sum(self.tokens) + len(x) > torch.iinfo(self.counts.dtype).max:
            raise ValueError(
                f"site {self.name!r}: more than {torch.iinfo(self.counts.dtype).max} tokens in one shard, its counts "
                "have 32 bits; raise statistics.shards in params.yaml"
            )
        if positions is None:
            positions = torch.arange(self.tokens[row], self.tokens[row] + len(x), device=x.device)
        place = torch.where(positions == UNKNOWN, torch.arange(len(x), device=x.device), positions)
        counted = histograms.counted(sample_id, place, self.settings.histogram_share)
        found = kernel.columns(x, self.counts, self.settings.mantissa_bits, counted)
        require_finite(self.name, sample_id, found.low, found.high)
        self.sums += found.sums
        places = kernel.Largest(self.top_values[row], self.top_positions[row], self.top_channels[row])
        kernel.add_largest(places, x, torch.maximum(-found.low, found.high), positions)
        torch.minimum(self.min[row], found.low, out=self.min[row])
        torch.maximum(self.max[row], found.high, out=self.max[row])
        self.tokens[row] += len(x)
        if self.hessian is not None:
            self.hessian.add(x, 1 / len(x) if self.settings.normalization == "sequence" else 1.0)

    def result(self, members: tuple[str, ...]) -> SiteStats:
        """The statistics; nothing can be added afterwards."""
        sums = self.sums.cpu()
        return SiteStats(
            members=members,
            sample_tokens=torch.tensor(self.tokens, dtype=torch.int64),
            sum=sums[0],
            sum_abs=sums[1],
            sum_sq=sums[2],
            histogram=histograms.trimmed(
                self.counts.cpu(), 0, self.settings.mantissa_bits, str(self.dtype).removeprefix("torch.")
            ),
            hessian=None if self.hessian is None else self.hessian.result(),
            sample_min=self.min.cpu(),
            sample_max=self.max.cpu(),
            top_values=self.top_values.cpu(),
            top_positions=self.top_positions.cpu(),
            top_channels=self.top_channels.cpu(),
        )
