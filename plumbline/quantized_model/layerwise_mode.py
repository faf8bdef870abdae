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
from plumbline.quantized_model.params import SchemeParams

log = logging.getLogger(__name__)
Mode = Literal["whole", "layerwise"]

COPIES_WHOLE = 3
"""Models in memory at the end of quantizing whole: the base model, its simulation, and the one that is loaded again."""
COPIES = 2
"""The same of a decoder layer: its weights, and codes and simulated weights, or kept ones while they are written."""
FOLDED = 6
"""Copies of a decoder layer while its scales are folded: in float64, in which a fold is checked, and in float32."""
MATRICES = 3
"""Matrices as large as a site's Hessian while the site is solved: as it is read, the Hessian, and its factor."""


@dataclass(frozen=True)
class Needed:
    """Bytes of memory that quantizing takes at most.

    Attributes:
        whole: with the whole model in memory, beside `REST`.
        layer: of the largest decoder layer, or of what is outside the layers.
        statistics: of the sites that are solved at a time.
        folded: of the largest decoder layer while a transform folds its scales.
    """

    whole: int
    layer: int
    statistics: int
    folded: int = 0

    @property
    def layerwise(self) -> int:
        """Layer by layer, beside `REST`."""
        return COPIES * self.layer + self.statistics + self.folded


def mode_of(execution: ExecutionParams, base: BaseCheckpoint, scheme: SchemeParams, header: Mapping[str, Any]) -> Mode:
    """The mode that `execution` says; `auto` is layerwise where the whole would not fit. Both give the same bytes.

    Args:
        header: of the statistics.

    Raises:
        ValueError: `layerwise` is asked for, and the scheme or the model needs the whole model.
    """
    if execution.mode == "whole":
        return "whole"
    reason = whole_only(scheme)
    if reason is not None and execution.mode == "layerwise":
        log.warning("the whole model is loaded, although execution.mode is layerwise: %s", reason)
        return "whole"
    model = outline_of(execution, base)
    if model is None:
        return "whole"
    needed = needed_bytes(model, header, scheme)
    free = free_bytes(torch_device(base.device))
    mode: Mode = "layerwise"
    if execution.mode == "auto" and (reason is not None or needed.whole <= SHARE * free):
        mode = "whole"
    if mode == "whole" and needed.whole > SHARE * free:
        log.warning(
            "quantizing may need %s, and %s are free; it cannot go layer by layer: %s",
            gib(needed.whole),
            gib(free),
            reason,
        )
    most = needed.whole if mode == "whole" else needed.layerwise
    log.info("mode: %s, at most %s of memory, %s are free", mode, gib(most + REST), gib(free))
    return mode


def whole_only(scheme: SchemeParams) -> str | None:
    """Why a scheme is not applied layer by layer; None: it is."""
    if scheme.propagate == "quantized":
        return "propagate: quantized runs the samples again, which is not done layer by layer yet"
    return None


def needed_bytes(model: PreTrainedModel, header: Mapping[str, Any], scheme: SchemeParams) -> Needed:
    """What quantizing a model takes at most.

    Args:
        model: weights may be on the meta device.
        header: of the statistics.

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
    folded = 0 if scheme.transform is None else FOLDED * max(sizes)
    return Needed(whole, max([*sizes, rest]), MATRICES * solved, folded)


def _hessians(header: Mapping[str, Any], prefix: str) -> list[int]:
    """Bytes of the Hessians of the sites whose names begin so."""
    sites = header["sites"].items()
    return [8 * site["width"] ** 2 for name, site in sites if site["hessian"] and name.startswith(prefix)]
