"""The running totals of many sites over many samples, shard after shard, in the one order that fixes every sum.

Samples are read in order of their id. Their number is cut into `statistics.shards` runs; each run is summed by itself,
and the sums are merged in order. So the bits depend on the number of shards and on nothing else: not on who sums up a
shard, and not on whether all layers run for a sample or all samples through a layer.
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
from plumbline.base_model.inputs import OUTPUT, UNKNOWN, require_readable

Sample = tuple[str, Sequence[int]]
"""(sample id, token ids)."""
Masks = Mapping[str, Tensor]
"""Sample id -> bool (tokens,): the tokens that count; all, where a sample is not in it."""


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
    """`number` runs of as equal a length as possible; those that would be empty are left out."""
    n = len(ordered)
    runs = [ordered[n * k // number : n * (k + 1) // number] for k in range(number)]
    return [run for run in runs if run]


class Totals:
    """What `LinearInputs` visits is added up here while `samples` is gone through."""

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
        """Every sample in order; what is added until the next one is asked for is the sample's."""
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
            positions: as of `Visit`.

        Raises:
            ValueError: some tokens are masked, and which of them these rows are is not known.
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
                kept = mask[positions.to(x.device)]
                x, positions = x[kept], positions.to(x.device)[kept]
        if not len(x):
            return
        if site not in self._sites:
            wanted = False if site.endswith(OUTPUT) else None  # nothing is multiplied with an output here
            self._sites[site] = RunningSite(site, x.shape[-1], x.dtype, x.device, self.settings, self._n, wanted)
        if positions is None:
            self._sites[site].add(x, self._row, self._sample_id)
        else:
            self._sites[site].add(x, self._row, self._sample_id, positions)

    def result(self, members: Mapping[str, tuple[str, ...]], layers: Collection[str]) -> ActivationStats:
        """The statistics, once `samples` has come to its end.

        Args:
            members: site -> the layers that read it.
            layers: every layer that was watched.
        """
        assert self._merged is not None
        sites = {name: replace(site, members=members[name]) for name, site in self._merged.sites.items()}
        reached = {member for name in sites for member in members[name]}
        return replace(self._merged, sites=sites, unreached=tuple(sorted(set(layers) - reached)))

    def _shard(self, run: Sequence[Sample]) -> ActivationStats:
        # Members are known when the last sample has been read. Each site's totals go as its result comes.
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
