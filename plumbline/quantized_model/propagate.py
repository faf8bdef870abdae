"""`propagate: quantized`: quantize each layer from its inputs behind the quantized layers before it.

As in Frantar et al. (GPTQ, arXiv 2210.17323, section 4), the samples stream through one decoder layer after the other;
within a layer, one site after the other is quantized (q, k, v, then o, then gate and up, then down; GPTQ's
`--true-sequential`). A pass for a site ends at that site.

GPTQ alone keeps the output of the full-precision weight for the current input, so it does not see the error of that
input. `correction` does (correction.py): the samples stream through the base model as well, and the weights are rounded
towards what undoes the error. benchmarks/rounders.py measures what both are worth.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import SiteStats
from plumbline.activation_stats.totals import Masks, Sample, Totals, in_order
from plumbline.base_model.decoder import Call, Decoder
from plumbline.base_model.decoder_calls import DecoderCalls
from plumbline.base_model.inputs import EXPERT, LinearInputs
from plumbline.base_model.matrices import Matrix, holder, matrix_of
from plumbline.base_model.one_thread import one_thread
from plumbline.base_model.own_modules import with_own_modules
from plumbline.progress import Bar
from plumbline.quantized_model.correction import CrossMoments
from plumbline.quantized_model.grid import Grid
from plumbline.quantized_model.input_statistics import Statistics
from plumbline.quantized_model.layer import Layer, Quantized
from plumbline.quantized_model.paired_streams import PairedSite, Streams
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.partial_pass import observe, sites_of, writers_of
from plumbline.quantized_model.propagation_gain import Gain
from plumbline.quantized_model.quantize import quantize_model
from plumbline.quantized_model.quantize_site import quantize_site
from plumbline.quantized_model.scheme import scheme_of
from plumbline.quantized_model.simulate import put

UNREAD = 1e-9
"""Share of the tokens in the histogram if the scheme does not read it."""

log = logging.getLogger(__name__)
Solve = Callable[[SiteStats | None, tuple[str, ...], CrossMoments | None], Mapping[str, Layer]]
"""From the statistics of a site (None: no tokens) and its cross moments (None: no correction) to its members,
quantized."""


@torch.no_grad()
def propagated(
    model: PreTrainedModel,
    samples: Sequence[Sample],
    scheme: SchemeParams,
    stats: Statistics,
    masks: Masks | None = None,
    *,
    progress: bool = False,
) -> Quantized:
    """Quantize layer by layer, each from statistics that are collected behind the quantized layers before it.

    Matrices outside the decoder layers are quantized from the stored statistics. Memory beside the model: the hidden
    states of the samples (twice with a correction), a copy of one decoder layer, and the cross moments of a site.

    Args:
        model: the base model; not changed.
        samples: the calibration set; their order does not matter.
        scheme: with `propagate: quantized`.
        stats: of the calibration set and the base model; their settings are used here, too.
        masks: the tokens that count, if not all tokens of the samples do.
        progress: say how far it is.

    Returns:
        The model. `notes["propagate"]` holds the gain: mean KL (nats per token) and relative error of the last layer's
        output on some of the calibration samples, with stored and with propagated statistics; and, with a correction,
        the sites that it left out.

    Raises:
        ValueError: the model cannot be run layer by layer, or masks are missing.
    """
    began = time.perf_counter()
    settings = settings_of(stats.settings, scheme, masks)
    full_precision = scheme.model_copy(update={"propagate": "full_precision"})
    stored = quantize_model(model, stats, full_precision, progress=progress)
    matrices = {name: matrix_of(model, name) for name in stored.layers}

    solve = solver(stored.layers, matrices, scheme)
    ordered = in_order(model, samples)
    gain = Gain(Decoder(with_own_modules(model)), ordered, scheme)
    layers, uncorrected = dict(stored.layers), dict[str, str]()
    parts = walk(gain.decoder, ordered, list(matrices), settings, solve, scheme, masks)
    quiet = None if progress else True
    for part in Bar(parts, desc="propagation", total=len(gain.decoder.names), unit="layer", disable=quiet):
        layers |= part.layers
        uncorrected |= part.uncorrected
        calls = [gain.decoder.start(ids).calls[part.number] for ids in gain.samples]
        gain.through(part.number, stored.layers, part.layers, calls)
    facts = gain.result() | ({"uncorrected": uncorrected} if uncorrected else {})
    log.info("propagate: quantized took %.1f s", time.perf_counter() - began)
    return replace(stored, layers=layers, notes=dict(stored.notes) | {"propagate": facts})


def settings_of(settings: StatisticsParams, scheme: SchemeParams, masks: Masks | None) -> StatisticsParams:
    """The settings under which a scheme collects behind quantized layers.

    Args:
        settings: of the stored statistics.

    Raises:
        ValueError: masks are missing.
    """
    if settings.tokens != "all" and masks is None:
        raise ValueError(
            "propagate: quantized with statistics.tokens: assistant needs the mask of every sample, and there "
            "is none; remove propagate from the scheme, or set statistics.tokens: all"
        )
    return settings if "histogram" in scheme.reads else settings.model_copy(update={"histogram_share": UNREAD})


def solver(stored: Mapping[str, Layer], matrices: Mapping[str, Matrix], scheme: SchemeParams) -> Solve:
    """Quantizes matrices on the grids that they have in `stored`."""

    def solve(site: SiteStats | None, names: tuple[str, ...], cross: CrossMoments | None) -> Mapping[str, Layer]:
        by_grid: dict[Grid, list[str]] = {}
        for name in names:
            by_grid.setdefault(stored[name].weight.grid, []).append(name)
        layers: dict[str, Layer] = {}
        for grid, alike in by_grid.items():
            members = {name: matrices[name].weight.contiguous() for name in alike}
            own = scheme_of(alike[0], matrices[alike[0]], scheme)
            layers |= quantize_site(members, site, grid, own, cross=cross)
        return layers

    return solve


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


@torch.no_grad()
def walk(
    decoder: Decoder,
    ordered: Sequence[Sample],
    names: Sequence[str],
    settings: StatisticsParams,
    solve: Solve,
    scheme: SchemeParams,
    masks: Masks | None = None,
) -> Iterator[PropagatedLayer]:
    """Quantize the matrices `names` one decoder layer after the other.

    Args:
        ordered: samples in order of their id.
    """
    calls = DecoderCalls(decoder)
    starts = [calls.begin(ids) for _, ids in ordered]
    streams = Streams(list(starts), list(starts), scheme.correction > 0)
    for number in range(len(decoder.names)):
        layer_calls = [calls.call(number, ids) for _, ids in ordered]
        yield through(decoder, number, ordered, names, settings, solve, scheme, masks, streams, layer_calls)
        streams.advance(layer_calls)


def through(
    decoder: Decoder,
    number: int,
    ordered: Sequence[Sample],
    names: Sequence[str],
    settings: StatisticsParams,
    solve: Solve,
    scheme: SchemeParams,
    masks: Masks | None,
    streams: Streams,
    calls: Sequence[Call],
) -> PropagatedLayer:
    """Quantize the matrices of one decoder layer; the streams are before it, and advance afterwards.

    Args:
        names: of matrices, among them those of the layer.
        calls: the arguments of the layer for each of `ordered`.
    """
    prefix = decoder.names[number]
    streams.enter(decoder.layers[number])
    local = {name: name.removeprefix(f"{prefix}.") for name in names if name.startswith(f"{prefix}.")}
    layer = _LayerWalk(ordered, settings, solve, scheme, masks, streams, calls, local)
    return layer.quantized(number, prefix)


@dataclass(frozen=True, eq=False)
class _LayerWalk:
    """One decoder layer, quantized site by site. The experts of a layer are one step: their inputs come at once."""

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
            found = self._statistics(step, pair, self.local[first] if visits == 1 and not is_expert(first) else None)
            for members in step:
                with one_thread():
                    site = found.get(members[0])
                    cross = None if pair is None or site is None else pair.sums.result()
                    if site is not None and cross is not None:
                        site = replace(site, hessian=cross.hessian)
                    solved = self.solve(site, members, cross)
                part.layers.update(solved)
                for name, layer in solved.items():
                    put(streams.layer, self.local[name], layer, self.scheme)
        return part

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
