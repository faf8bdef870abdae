"""One decoder layer of `propagate: quantized`: its sites are quantized in the order of the forward pass."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from plumbline.activation_stats.expert_calls import ExpertCalls, groups_of, layer_name
from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import SiteStats
from plumbline.activation_stats.totals import Masks, Sample, Totals
from plumbline.base_model.decoder import Call
from plumbline.base_model.experts import are_fused_experts
from plumbline.base_model.inputs import EXPERT, LinearInputs
from plumbline.base_model.matrices import holder
from plumbline.base_model.one_thread import one_thread
from plumbline.quantized_model.correction import CrossMoments
from plumbline.quantized_model.layer import Layer
from plumbline.quantized_model.paired_streams import PairedSite, Streams
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.partial_pass import observe, sites_of, writers_of
from plumbline.quantized_model.simulate import put

Solve = Callable[[SiteStats | None, tuple[str, ...], CrossMoments | None], Mapping[str, Layer]]
"""From the statistics of a site (None: no tokens) and its cross moments (None: no correction) to its members,
quantized."""


@dataclass(frozen=True, eq=False)
class PropagatedLayer:
    """A decoder layer whose Linears are quantized.

    Attributes:
        number: of the layer.
        layers: its Linears.
        uncorrected: first Linear of each site that a correction left out, or corrected for its input alone -> reason.
    """

    number: int
    layers: dict[str, Layer]
    uncorrected: dict[str, str]


@dataclass(frozen=True, eq=False)
class LayerWalk:
    """One decoder layer, quantized site by site. The experts of a layer are one step: their inputs come together."""

    ordered: Sequence[Sample]
    settings: StatisticsParams
    solve: Solve
    scheme: SchemeParams
    masks: Masks | None
    streams: Streams
    calls: Sequence[Call]
    local: Mapping[str, str]
    """Full name of a matrix -> name within the layer."""

    def quantized(self, number: int, prefix: str) -> PropagatedLayer:
        """Quantize the layer in place; returns what it became."""
        streams, part = self.streams, PropagatedLayer(number, {}, {})
        sites = sites_of(streams.layer, self.local, streams.hidden[0], self.calls[0])
        writers: tuple[str, ...] = ()
        if streams.paired:
            single = {members: visits for members, visits in sites.items() if not is_expert(members[0])}
            writers, reason = writers_of(streams.original, self.local, single, streams.base[0], self.calls[0])
            part.uncorrected.update({prefix: reason} if reason else {})
            firsts = [self.local[members[0]] for members, visits in single.items() if visits]
            streams.record(firsts, [self.local[name] for name in writers], self.calls)
        for step in steps_of(sites):
            pair = None
            first, visits = step[0][0], sites[step[0]]
            if streams.paired and (visits != 1 or is_expert(first)):
                part.uncorrected[experts_module(first)] = "its rows are not the tokens in order"
            elif streams.paired:
                earlier = [self.local[name] for name in writers if name in part.layers]
                pair = PairedSite(streams, self.local, step[0], first in writers, earlier)
            stop_at = self.local[first] if visits == 1 and not is_expert(first) else None
            for group, found in self._collected(step, pair, stop_at):
                for members in group:
                    part.layers.update(self._solved(members, found.get(members[0]), pair))
        return part

    def _solved(self, members: tuple[str, ...], site: SiteStats | None, pair: PairedSite | None) -> Mapping[str, Layer]:
        """Quantize the members of a site, and put them into the layer."""
        with one_thread():
            cross = None if pair is None or site is None else pair.sums.result()
            if site is not None and cross is not None:
                site = replace(site, hessian=cross.hessian)
            solved = self.solve(site, members, cross)
        for name, layer in solved.items():
            put(self.streams.layer, self.local[name], layer, self.scheme)
        return solved

    def _collected(
        self, step: list[tuple[str, ...]], pair: PairedSite | None, stop_at: str | None
    ) -> Iterator[tuple[list[tuple[str, ...]], Mapping[str, SiteStats]]]:
        """Yield sites of a step with their statistics: all, or experts whose totals fit into memory together.

        No expert of a step reads what another one wrote, so the bits are those of all at once. Fused experts take
        one pass of the samples, others one per group.
        """
        by_first = {members[0]: members for members in step}
        holders = {first: holder(self.streams.layer, self.local[first]) for first in by_first}
        groups = groups_of(holders, self.settings)
        if len(groups) == 1:
            yield step, self._statistics(step, pair, stop_at)
            return
        named = [[by_first[first] for first in group] for group in groups]
        first, module = next(iter(holders.items()))
        if not are_fused_experts(module):
            yield from ((group, self._statistics(group, None, None)) for group in named)
            return
        with self._called({layer_name(first): module}) as called:
            for group in named:
                totals = Totals(self.ordered, self.settings, "", "", self.masks)
                firsts = [members[0] for members in group]
                members = called.add(totals, firsts, self.settings.expert_tokens)
                with one_thread():
                    found = totals.result(members, firsts).sites
                yield group, found

    @contextmanager
    def _called(self, modules: Mapping[str, nn.Module]) -> Iterator[ExpertCalls]:
        """What modules of fused experts are called with, for every sample."""
        streams = self.streams
        scratch, in_memory = streams.scratch or Path(tempfile.gettempdir()), 0 if streams.scratch else sys.maxsize
        with ExpertCalls(modules, scratch, in_memory) as called:
            for row in range(len(self.ordered)):
                with called.noted(row):
                    observe(streams.layer, streams.hidden[row], self.calls[row])
            yield called

    def _statistics(
        self, step: Sequence[tuple[str, ...]], pair: PairedSite | None, stop_at: str | None
    ) -> Mapping[str, SiteStats]:
        """Statistics of the sites of a step by their first members, behind what is quantized already.

        Args:
            pair: collects the cross moments instead of the Hessian.
            stop_at: name within the layer of the Linear whose input ends a pass; None: the whole layer.
        """
        layer, hidden = self.streams.layer, self.streams.hidden
        totals = Totals(self.ordered, self.settings.model_copy(update={"hessian": pair is None}), "", "", self.masks)
        firsts = {members[0]: members for members in step}
        holders = {first: holder(layer, self.local[first]) for first in firsts}
        inputs = LinearInputs(holders, totals.add, expert_tokens=self.settings.expert_tokens)
        with inputs.hooked():
            for row, (sample_id, ids) in enumerate(totals.samples()):
                inputs.begin(sample_id, len(ids))
                if pair is None:
                    observe(layer, hidden[row], self.calls[row], stop_at=stop_at)
                else:
                    mask = None if self.masks is None else self.masks.get(sample_id)
                    pair.add(row, self.calls[row], mask, self.settings.normalization)
        with one_thread():
            return totals.result(firsts, [name for members in step for name in members]).sites


def steps_of(sites: Iterable[tuple[str, ...]]) -> list[list[tuple[str, ...]]]:
    """The sites in the order in which they are quantized, those of one step together.

    A step is a site, or the same part of all experts of a layer, such as every down_proj.
    """
    steps: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for members in sites:
        first = members[0]
        key = (experts_module(first), first.rpartition(".")[2]) if is_expert(first) else (first, "")
        steps.setdefault(key, []).append(members)
    return list(steps.values())


def is_expert(name: str) -> bool:
    """Whether a matrix belongs to one of several experts."""
    return EXPERT.search(name) is not None


def experts_module(name: str) -> str:
    """Name of the module that holds the experts of a matrix; the name itself if it is none of an expert."""
    match = EXPERT.search(name)
    return name if match is None else name[: match.start()] + "experts"
