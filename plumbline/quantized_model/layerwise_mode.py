"""Whether a scheme is applied to the whole model in memory or to one decoder layer at a time, and what either needs.

What is said here is said before the work.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from plumbline.activation_stats.memory import REST, SHARE, free_bytes, gib, outline_of, weight_bytes
from plumbline.activation_stats.params import ExecutionParams
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.decoder import decoder_layers
from plumbline.base_model.device import torch_device
from plumbline.base_model.names import outside, within
from plumbline.quantized_model.paired_streams import RECORDED_BYTES
from plumbline.quantized_model.params import SchemeParams

log = logging.getLogger(__name__)
Mode = Literal["whole", "layerwise"]

COPIES_WHOLE = 3
"""Models in memory at the end of quantizing whole: the base model, its simulation, and the one that is loaded again."""
COPIES = 2
"""The same of a decoder layer: its weights, and codes and simulated weights, or kept ones while they are written."""
FOLDED = 6
"""Copies of a decoder layer while its scales are folded: in float64, in which a fold is checked, and in float32."""
AGAIN = 2
"""Copies of a decoder layer while the samples are run again: the one that is being quantized, and one more for what
that gains."""
JOINT = 4
"""Size of the moments of a site in both streams to that of its Hessian, at most."""
MATRICES = 3
"""Matrices as large as a site's Hessian while the site is solved: as it is read, the Hessian, and its factor."""


@dataclass(frozen=True)
class Needed:
    """Bytes of memory that quantizing takes at most.

    Attributes:
        whole: with the whole model in memory, beside `REST`.
        layer: of the largest decoder layer, or of what is outside the layers.
        statistics: of the sites that are solved at a time.
        further: while a transform folds scales, or the samples are run again.
    """

    whole: int
    layer: int
    statistics: int
    further: int = 0

    @property
    def layerwise(self) -> int:
        """Layer by layer, beside `REST`."""
        return COPIES * self.layer + self.statistics + self.further


def mode_of(execution: ExecutionParams, base: BaseCheckpoint, scheme: SchemeParams, header: Mapping[str, Any]) -> Mode:
    """The mode that `execution` says; `auto` is layerwise where the whole would not fit. Both give the same bytes.

    Args:
        header: of the statistics.

    Raises:
        ValueError: `layerwise` is asked for, and the model cannot be run so.
    """
    if execution.mode == "whole":
        return "whole"
    model = outline_of(execution, base)
    if model is None:
        return "whole"
    needed = needed_bytes(model, header, scheme, int(execution.hidden_gib * 2**30))
    free = free_bytes(torch_device(base.device))
    fits = execution.mode == "auto" and needed.whole <= SHARE * free
    mode: Mode = "whole" if fits else "layerwise"
    most = needed.whole if mode == "whole" else needed.layerwise
    log.info("mode: %s, at most %s of memory, %s are free", mode, gib(most + REST), gib(free))
    return mode


def needed_bytes(model: PreTrainedModel, header: Mapping[str, Any], scheme: SchemeParams, hidden: int) -> Needed:
    """What quantizing a model takes at most.

    Args:
        model: weights may be on the meta device.
        header: of the statistics.
        hidden: bytes of hidden states that a scheme keeps in memory that runs the samples again.

    Raises:
        ValueError: the model has no decoder layers.
    """
    prefix, layers = decoder_layers(model)
    sizes = [weight_bytes(model, within(f"{prefix}.{number}")) for number in range(len(layers))]
    rest = weight_bytes(model, outside(prefix))
    whole = COPIES_WHOLE * (sum(sizes) + rest) + sum(_hessians(header, ""))
    side_by_side = torch.get_num_threads()
    parts = [_hessians(header, f"{prefix}.{number}.") for number in range(len(layers))]
    solved = max((sum(sorted(part, reverse=True)[:side_by_side]) for part in parts), default=0)
    further = 0 if scheme.transform is None else FOLDED * max(sizes)
    if scheme.propagate == "quantized":
        further = AGAIN * max(sizes) + hidden + (RECORDED_BYTES if scheme.correction else 0)
        largest = max((max(part, default=0) for part in parts), default=0)
        solved = max(solved, (JOINT if scheme.correction else 1) * largest)
    return Needed(whole, max([*sizes, rest]), MATRICES * solved, further)


def _hessians(header: Mapping[str, Any], prefix: str) -> list[int]:
    """Bytes of the Hessians of the sites whose names begin so."""
    sites = header["sites"].items()
    return [8 * site["width"] ** 2 for name, site in sites if site["hessian"] and name.startswith(prefix)]
