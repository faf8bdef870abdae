"""Statistics of many calibration sets in one pass: a sample is run once for all the sets that hold it.

Sets drawn repeatedly from one pool share most of their samples, and the forward pass dominates the cost. Only what
quantization reads is collected. The totals of a set are, bit by bit, those that `collect` gives for it alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from plumbline.activation_stats.params import ExpertTokens, StatisticsParams
from plumbline.activation_stats.running import RunningSite
from plumbline.activation_stats.sketch import SiteStats
from plumbline.base_model.as_quantized import called_as_quantized
from plumbline.base_model.bfloat16 import wide_products
from plumbline.base_model.cache import caching_modules
from plumbline.base_model.inputs import NO_INPUT, LinearInputs, network_of, require_readable, watched_layers
from plumbline.base_model.threads import settle_threads


@dataclass(frozen=True, eq=False)
class SetTotals:
    """All sites of one model over one set, without rows per sample: these totals neither merge nor retract."""

    sites: Mapping[str, SiteStats]
    """By name, sorted; only sites that received a token."""
    unreached: tuple[str, ...]
    """Modules that no token reached, sorted."""
    settings: StatisticsParams
    """The settings under which `collect` gives the same totals."""


@torch.no_grad()
def collect_together(
    model: PreTrainedModel,
    samples: Mapping[str, Sequence[int]],
    sets: Sequence[Sequence[str]],
    ignore: Sequence[str],
    progress: Callable[[int], object] | None = None,
    *,
    normalization: Literal["token", "sequence"] = "token",
    experts: Literal["routed", "all"] | ExpertTokens = "routed",
    mantissa_bits: int | None = None,
    cache: bool = False,
) -> list[SetTotals]:
    """Run the full-precision model once over the samples of all sets and return the totals of each set.

    Args:
        model: in evaluation mode; weights and hooks are left as they were.
        samples: token ids by sample id.
        sets: sample ids of each set; their order does not matter.
        ignore: Linears that are not observed, as in `StatisticsParams`.
        progress: called after each sample with the number of sets that hold it.
        normalization: normalization of the Hessian, as in `StatisticsParams`.
        experts: which tokens experts see, as in `StatisticsParams`.
        mantissa_bits: resolution of the histogram; None: no histogram. A histogram costs 4 * width * buckets bytes per
            site and set (1283 buckets at 4 bits) and an addition of as many counts per sample and set.
        cache: whether keys and values are described, too.

    Returns:
        The totals of every set. All are in memory at once: one Hessian per site and set.

    Raises:
        ValueError: a set is empty or names a sample twice, or as `collect` for model and samples.
    """
    settings = StatisticsParams(ignore=tuple(ignore), normalization=normalization, experts=experts, cache=cache)
    if mantissa_bits is not None:
        settings = settings.model_copy(update={"mantissa_bits": mantissa_bits})
    settle_threads()
    holders = _holders(sets)
    layers = watched_layers(model, ignore)
    network, device = network_of(model, layers), next(model.parameters()).device
    running = _RunningSets(settings, histogram=mantissa_bits is not None)
    caching = caching_modules(model) if cache else {}
    inputs = LinearInputs(layers, running.add, expert_tokens=settings.expert_tokens, caching=caching)
    with wide_products(model), called_as_quantized(model), inputs.hooked():
        for name in sorted(holders):  # the order in which `collect` sums
            ids = samples[name]
            require_readable(model, name, ids)
            running.begin(name, holders[name])
            inputs.begin(name)
            network(input_ids=torch.tensor([list(ids)], device=device), use_cache=False)
            if progress is not None:
                progress(len(holders[name]))
    members = inputs.members()
    return [running.result(number, members, list(layers)) for number in range(len(sets))]


def _holders(sets: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    """Sample id -> numbers of the sets that hold it."""
    holders: dict[str, list[int]] = {}
    for number, names in enumerate(sets):
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f"set {number}: expected samples, each once; found {len(names)}, {len(set(names))} distinct"
            )
        for name in names:
            holders.setdefault(name, []).append(number)
    return holders


class _RunningSets:
    """Adds the activations that `LinearInputs` visits to every set that holds the current sample."""

    def __init__(self, settings: StatisticsParams, histogram: bool) -> None:
        self.settings, self.histogram = settings, histogram
        self._without_places = settings.model_copy(update={"top_k": 0})
        self._sites: dict[str, RunningSite] = {}
        self._sample_id, self._sets = "", list[int]()

    def begin(self, sample_id: str, sets: list[int]) -> None:
        self._sample_id, self._sets = sample_id, sets

    def add(self, site: str, x: Tensor, positions: Tensor | None) -> None:
        x = x.reshape(-1, x.shape[-1])
        if site not in self._sites:
            hessian = not site.endswith(NO_INPUT)
            self._sites[site] = RunningSite(
                site, x.shape[1], x.dtype, x.device, self._without_places, 1, hessian=hessian, histogram=self.histogram
            )
        self._sites[site].add(x, 0, self._sample_id, sets=self._sets)

    def result(self, number: int, members: Mapping[str, tuple[str, ...]], layers: Sequence[str]) -> SetTotals:
        sites = {
            name: site.result(members[name], number)
            for name, site in sorted(self._sites.items())
            if number in site.sets
        }
        reached = {member for name in sites for member in members[name]}
        return SetTotals(sites, tuple(sorted(set(layers) - reached)), self.settings)
