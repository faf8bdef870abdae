"""The running totals of many sites over many samples, shard by shard, in a fixed order of summation.

Samples are read in order of their id. They are divided into `statistics.shards` runs; each run is summed by itself, and
the sums are merged in order. So the bits depend only on the number of shards: not on which process sums a shard, and
not on whether each sample runs through all layers or all samples through each layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.running import RunningSite
from plumbline.activation_stats.sketch import ActivationStats, merge
from plumbline.base_model.inputs import NO_INPUT, UNKNOWN, require_readable

Sample = tuple[str, Sequence[int]]
"""(sample id, token ids)."""
Masks = Mapping[str, Tensor]
"""Sample id -> bool (tokens,): the tokens that count; all tokens of a sample without a mask."""


def in_order(model: PreTrainedModel, samples: Sequence[Sample]) -> list[Sample]:
    """The samples in order of their id.

    Raises:
        ValueError: no samples, an id that occurs twice, or a sample that the model cannot read.
    """
    if not samples:
        raise ValueError("no samples: a calibration set holds at least one")
    ordered = sorted(samples, key=lambda sample: sample[0])
    previous = None
    for sample_id, ids in ordered:
        if sample_id == previous:
            raise ValueError(f"sample {sample_id} occurs twice and would count twice; a calibration set names it once")
        previous = sample_id
        require_readable(model, sample_id, ids)
    return ordered


def shards(ordered: Sequence[Sample], number: int) -> list[Sequence[Sample]]:
    """Divide the samples into `number` runs of nearly equal length; empty runs are left out."""
    n = len(ordered)
    runs = [ordered[n * k // number : n * (k + 1) // number] for k in range(number)]
    return [run for run in runs if run]


class Totals:
    """Sums the activations that `LinearInputs` visits while the caller iterates over `samples`."""

    def __init__(
        self,
        ordered: Sequence[Sample],
        settings: StatisticsParams,
        base_model_digest: str,
        fingerprint: str,
        masks: Masks | None = None,
    ) -> None:
        self.ordered, self.settings, self.masks = ordered, settings, masks or {}
        self.base_model_digest, self.fingerprint = base_model_digest, fingerprint
        self._sites: dict[str, RunningSite] = {}
        self._row, self._sample_id, self._n = 0, "", 0
        self._mask: Tensor | None = None
        self._merged: ActivationStats | None = None

    def samples(self) -> Iterator[Sample]:
        """Yield every sample in order; activations added before the next sample belong to this one."""
        self._merged = None
        for run in shards(self.ordered, self.settings.shards):
            self._n = len(run)
            for self._row, (self._sample_id, ids) in enumerate(run):
                self._mask = self.masks.get(self._sample_id)
                yield self._sample_id, ids
            part = self._shard(run)
            self._merged = part if self._merged is None else merge(self._merged, part)

    def add(self, site: str, x: Tensor, positions: Tensor | None = None) -> None:
        """Add activations (..., width) of the current sample.

        Args:
            positions: as in `Visit`.

        Raises:
            ValueError: some tokens are masked, and it is unknown which tokens these rows are.
        """
        x = x.reshape(-1, x.shape[-1])
        if self._mask is not None:
            mask = self._mask.to(x.device)
            if positions is None or bool((positions == UNKNOWN).any()):
                if positions is not None or len(x) != len(mask):
                    raise ValueError(
                        f"site {site!r}: {len(x)} rows for the {len(mask)} tokens of sample {self._sample_id}, so "
                        "which of them count is not known; add the layer to statistics.ignore in params.yaml, or say "
                        "`tokens: all` there"
                    )
                positions = mask.nonzero().view(-1)
                x = x[positions]
            else:
                unmasked = mask[positions.to(x.device)]
                x, positions = x[unmasked], positions.to(x.device)[unmasked]
        if not len(x):
            return
        if site not in self._sites:
            wanted = False if site.endswith(NO_INPUT) else None
            self._sites[site] = RunningSite(site, x.shape[-1], x.dtype, x.device, self.settings, self._n, wanted)
        if positions is None:
            self._sites[site].add(x, self._row, self._sample_id)
        else:
            self._sites[site].add(x, self._row, self._sample_id, positions)

    def result(self, members: Mapping[str, tuple[str, ...]], layers: Collection[str]) -> ActivationStats:
        """The statistics, once `samples` is exhausted.

        Args:
            members: site -> the layers that read it.
            layers: every observed layer.
        """
        assert self._merged is not None
        sites = {name: replace(site, members=members[name]) for name, site in self._merged.sites.items()}
        reached = {member for name in sites for member in members[name]}
        return replace(self._merged, sites=sites, unreached=tuple(sorted(set(layers) - reached)))

    def _shard(self, run: Sequence[Sample]) -> ActivationStats:
        # Members are known only after the last sample. Each site's totals are freed as its result is made.
        sites = {name: self._sites.pop(name).result(()) for name in sorted(self._sites)}
        return ActivationStats(
            self.base_model_digest,
            self.fingerprint,
            self.settings,
            tuple(sample_id for sample_id, _ in run),
            torch.tensor([self._counted(*sample) for sample in run], dtype=torch.int64),
            sites,
            (),
        )

    def _counted(self, sample_id: str, ids: Sequence[int]) -> int:
        mask = self.masks.get(sample_id)
        return len(ids) if mask is None else int(mask.sum())
