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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import SiteStats
from plumbline.activation_stats.totals import Masks, Sample, Totals, in_order
from plumbline.base_model.decoder import Decoder
from plumbline.base_model.decoder_calls import DecoderCalls
from plumbline.base_model.inputs import EXPERT, LinearInputs
from plumbline.base_model.one_thread import one_thread
from plumbline.base_model.own_modules import with_own_modules
from plumbline.quantized_model.correction import CrossMoments
from plumbline.quantized_model.input_statistics import Statistics
from plumbline.quantized_model.layer import Layer, Quantized
from plumbline.quantized_model.paired_streams import PairedSite, Streams
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.partial_pass import observe, sites_of, writers_of
from plumbline.quantized_model.propagation_gain import Gain
from plumbline.quantized_model.quantize import quantize_model
from plumbline.quantized_model.quantize_site import quantize_site
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
) -> Quantized:
    """Quantize layer by layer, each from statistics that are collected behind the quantized layers before it.

    Linears outside the decoder layers are quantized from the stored statistics. Memory beside the model: the hidden
    states of the samples (twice with a correction), a copy of one decoder layer, and the cross moments of a site.

    Args:
        model: the base model; not changed.
        samples: the calibration set; their order does not matter.
        scheme: with `propagate: quantized`.
        stats: of the calibration set and the base model; their settings are used here, too.
        masks: the tokens that count, if not all tokens of the samples do.

    Returns:
        The model. `notes["propagate"]` holds the gain: mean KL (nats per token) and relative error of the last layer's
        output on some of the calibration samples, with stored and with propagated statistics; and, with a correction,
        the sites that it left out.

    Raises:
        ValueError: the model cannot be run layer by layer, or masks are missing.
    """
    began = time.perf_counter()
    settings = stats.settings
    if settings.tokens != "all" and masks is None:
        raise ValueError(
            "propagate: quantized with statistics.tokens: assistant needs the mask of every sample, and there "
            "is none; remove propagate from the scheme, or set statistics.tokens: all"
        )
    if "histogram" not in scheme.reads:
        settings = settings.model_copy(update={"histogram_share": UNREAD})
    stored = quantize_model(model, stats, scheme.model_copy(update={"propagate": "full_precision"}))
    weights = {name: model.get_submodule(name).get_parameter("weight").detach() for name in stored.layers}

    def solve(site: SiteStats | None, names: tuple[str, ...], cross: CrossMoments | None) -> Mapping[str, Layer]:
        members = {name: weights[name] for name in names}
        return quantize_site(members, site, stored.layers[names[0]].weight.grid, scheme, cross=cross)

    ordered = in_order(model, samples)
    gain = Gain(Decoder(with_own_modules(model)), ordered, stored, scheme)
    layers, uncorrected = dict(stored.layers), dict[str, str]()
    for part in walk(gain.decoder, ordered, list(weights), settings, solve, scheme, masks):
        layers |= part.layers
        uncorrected |= part.uncorrected
        gain.through(part.number, part.layers)
    facts = gain.result() | ({"uncorrected": uncorrected} if uncorrected else {})
    log.info("propagate: quantized took %.1f s", time.perf_counter() - began)
    return replace(stored, layers=layers, notes=dict(stored.notes) | {"propagate": facts})


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
    """Quantize the Linears `names` one decoder layer after the other.

    Args:
        ordered: samples in order of their id.
    """
    calls = DecoderCalls(decoder)
    streams = Streams([calls.begin(ids) for _, ids in ordered], scheme.correction > 0)
    for number, prefix in enumerate(decoder.names):
        streams.enter(decoder.layers[number])
        local = {name: name.removeprefix(f"{prefix}.") for name in names if name.startswith(f"{prefix}.")}
        call = calls.call(number, ordered[0][1])
        sites = sites_of(streams.layer, local, streams.hidden[0], call)
        part = PropagatedLayer(number, {}, {})
        if streams.paired:
            writers, reason = writers_of(streams.original, local, sites, streams.base[0], call)
            part.uncorrected.update({prefix: reason} if reason else {})
            firsts = [local[members[0]] for members, visits in sites.items() if visits]
            streams.record(firsts, [local[name] for name in writers], (calls.call(number, ids) for _, ids in ordered))
        else:
            writers = ()
        for members, visits in sites.items():
            first = members[0]
            pair = None
            if streams.paired and (visits != 1 or EXPERT.search(first)):
                part.uncorrected[first] = "its rows are not the tokens in order"
            elif streams.paired:
                earlier = [local[name] for name in writers if name in part.layers]
                pair = PairedSite(streams, local, members, first in writers, earlier)
            totals = Totals(ordered, settings.model_copy(update={"hessian": pair is None}), "", "", masks)
            inputs = LinearInputs({first: streams.layer.get_submodule(local[first])}, totals.add)
            with inputs.hooked():
                for row, (sample_id, ids) in enumerate(totals.samples()):
                    inputs.begin(sample_id, len(ids))
                    call = calls.call(number, ids)
                    if pair is None:
                        stop_at = local[first] if visits == 1 else None
                        observe(streams.layer, streams.hidden[row], call, stop_at=stop_at)
                    else:
                        pair.add(row, call, None if masks is None else masks.get(sample_id), settings.normalization)
            with one_thread():
                site = totals.result({first: members}, members).sites.get(first)
                cross = None if pair is None or site is None else pair.sums.result()
                if site is not None and cross is not None:
                    site = replace(site, hessian=cross.hessian)
                solved = solve(site, members, cross)
            part.layers.update(solved)
            for name, quantized in solved.items():
                put(streams.layer.get_submodule(local[name]), quantized, scheme)
        yield part
        streams.advance([calls.call(number, ids) for _, ids in ordered])
