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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from plumbline.activation_stats.params import StatisticsParams
from plumbline.activation_stats.sketch import SiteStats
from plumbline.activation_stats.totals import Masks, Sample, in_order
from plumbline.base_model.decoder import Call, Decoder
from plumbline.base_model.decoder_calls import DecoderCalls
from plumbline.base_model.matrices import Matrix, matrix_of
from plumbline.base_model.own_modules import with_own_modules
from plumbline.progress import Bar
from plumbline.quantized_model.correction import CrossMoments
from plumbline.quantized_model.grid import Grid
from plumbline.quantized_model.input_statistics import Statistics
from plumbline.quantized_model.layer import Layer, Quantized
from plumbline.quantized_model.layer_walk import LayerWalk, PropagatedLayer, Solve
from plumbline.quantized_model.paired_streams import Streams
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.propagation_gain import Gain
from plumbline.quantized_model.quantize import quantize_model
from plumbline.quantized_model.quantize_site import quantize_site
from plumbline.quantized_model.scheme import scheme_of

UNREAD = 1e-9
"""Share of the tokens in the histogram if the scheme does not read it."""

log = logging.getLogger(__name__)


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
    layer = LayerWalk(ordered, settings, solve, scheme, masks, streams, calls, local)
    return layer.quantized(number, prefix)
