"""Whether a scheme is applied to the whole model in memory or to one decoder layer at a time, and what either needs.

What is said here is said before the work.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from plumbline.activation_stats.memory import (
    REST,
    SHARE,
    at_a_time,
    free_bytes,
    gib,
    outline_of,
    site_bytes,
    weight_bytes,
)
from plumbline.activation_stats.params import ExecutionParams, StatisticsParams
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.decoder import decoder_layers, layer_names
from plumbline.base_model.device import torch_device
from plumbline.base_model.inputs import EXPERT
from plumbline.base_model.large_mixture import LargeMixture, large_mixture
from plumbline.base_model.names import Names, outside, within
from plumbline.base_model.streamed import StreamedModel
from plumbline.quantized_model.layerwise_experts import solved_apart
from plumbline.quantized_model.paired_streams import RECORDED_BYTES
from plumbline.quantized_model.params import SchemeParams
from plumbline.quantized_model.suits import suited

log = logging.getLogger(__name__)
Mode = Literal["whole", "layerwise"]

COPIES_WHOLE = 3
"""Models in memory at the end of quantizing whole: the base model, its simulation, and the one that is loaded again."""
COPIES = 2
"""The same of a decoder layer: its weights, and codes and simulated weights, or kept ones while they are written."""
CODES = 1.25
"""Bytes per weight of what experts become: codes, and scales and zero points."""
FOLDED = 6
"""Copies of a decoder layer while its scales are folded: in float64, in which a fold is checked, and in float32."""
AGAIN = 2
"""Copies of a decoder layer while the samples are run again: the one that is being quantized, and one more for what
that gains."""
JOINT = 4
"""Size of the moments of a site in both streams to that of its Hessian, at most; they are there beside it."""
MATRICES = 3
"""Matrices as large as a site's Hessian while the site is solved, at most: as it is read, its factor, and with a
transform the one between the two."""


@dataclass(frozen=True)
class Needed:
    """Bytes of memory that quantizing takes at most, beside `REST`: with the whole model in memory, or by layers."""

    whole: int
    layerwise: int


def mode_of(execution: ExecutionParams, base: BaseCheckpoint, scheme: SchemeParams, header: Mapping[str, Any]) -> Mode:
    """The mode that `execution` says; `auto` is layerwise where the whole would not fit. Both give the same bytes.

    Args:
        header: of the statistics.

    Raises:
        ValueError: `layerwise` is asked for, and the model cannot be run so.
    """
    if execution.mode == "whole":
        return "whole"
    outline = outline_of(execution, base)
    if outline is None:
        return "whole"
    needed = needed_bytes(outline, header, scheme, int(execution.hidden_gib * 2**30))
    free = free_bytes(torch_device(base.device))
    fits = execution.mode == "auto" and needed.whole <= SHARE * free
    mode: Mode = "whole" if fits else "layerwise"
    most = needed.whole if mode == "whole" else needed.layerwise
    log.info("mode: %s, at most %s of memory, %s are free", mode, gib(most + REST), gib(free))
    return mode


def needed_bytes(streamed: StreamedModel, header: Mapping[str, Any], scheme: SchemeParams, hidden: int) -> Needed:
    """What quantizing a model takes at most.

    Args:
        header: of the statistics.
        hidden: bytes of hidden states that a scheme keeps in memory that runs the samples again.

    Raises:
        ValueError: the model has no decoder layers.
    """
    model = streamed.model
    prefix, _ = decoder_layers(model)
    parts = {name: (weight_bytes(model, within(name)), _hessians(header, within(name))) for name in layer_names(model)}
    around = weight_bytes(model, outside(prefix)), _hessians(header, outside(prefix))
    whole = sum(size + sum(hessians) for size, hessians in (*parts.values(), around))
    whole += (COPIES_WHOLE - 1) * sum(size for size, _ in (*parts.values(), around))
    layerwise = [_part_bytes(*around)]
    any_large = any(large_mixture(streamed, name) is not None for name in parts)
    matrices = suited(model, scheme).matrices if any_large else {}
    for name, (size, hessians) in parts.items():
        layerwise.append(_part_bytes(size, hessians, solved_apart(streamed, name, scheme, matrices)))
        if scheme.transform is not None:
            layerwise[-1] += FOLDED * size
        if scheme.propagate == "quantized":
            moments = (MATRICES + (JOINT if scheme.correction else 0)) * max(hessians, default=0)
            records = RECORDED_BYTES if scheme.correction else 0
            collected = _experts_bytes(header, within(name))
            layerwise[-1] = max(layerwise[-1], COPIES * size + moments + collected) + AGAIN * size + hidden + records
    return Needed(whole, max(layerwise))


def _part_bytes(weights: int, hessians: list[int], mixture: LargeMixture | None = None) -> int:
    """Of a part and the sites of it that are solved at a time.

    Args:
        mixture: experts of the part that are solved some at a time.
    """
    solved = MATRICES * sum(sorted(hessians, reverse=True)[: torch.get_num_threads()])
    if mixture is None:
        return COPIES * weights + solved
    codes = int(CODES * mixture.numel)
    return max(COPIES * (weights - mixture.bytes), mixture.loaded_bytes) + codes + solved


def _hessians(header: Mapping[str, Any], wanted: Names) -> list[int]:
    """Bytes of the Hessians of some sites."""
    sites = header["sites"].items()
    return [8 * site["width"] ** 2 for name, site in sites if site["hessian"] and wanted(name)]


def _experts_bytes(header: Mapping[str, Any], wanted: Names) -> int:
    """Of the experts' sites that are collected at a time behind quantized layers: one part of some experts."""
    settings = StatisticsParams.model_validate(header["settings"])
    parts: dict[str, list[int]] = {}
    for name, site in header["sites"].items():
        if wanted(name) and EXPERT.search(name):
            parts.setdefault(name.rpartition(".")[2], []).append(site_bytes(site["width"], settings))
    return max((at_a_time(sizes, 1) for sizes in parts.values()), default=0)
