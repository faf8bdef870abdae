"""Whether an evaluation holds both models in memory or one decoder layer at a time, said before it starts."""

from __future__ import annotations

import logging
from pathlib import Path

from transformers import PreTrainedModel

from plumbline.activation_stats.memory import REST, SHARE, free_bytes, gib, outline_of, weight_bytes
from plumbline.activation_stats.params import ExecutionParams
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.decoder import decoder_layers, layer_names
from plumbline.base_model.device import torch_device
from plumbline.base_model.language import text_config
from plumbline.base_model.large_mixture import large_mixture
from plumbline.base_model.names import outside, within
from plumbline.base_model.streamed import StreamedModel
from plumbline.evaluation.evaluate import Layerwise
from plumbline.evaluation.params import EvaluationParams

log = logging.getLogger(__name__)
LOGITS = 256 << 20
"""Layer by layer: bytes of base logits in memory; one batch in any case."""
COPIES = 2
"""Copies of a decoder layer while it is loaded: as it is stored, and decompressed."""
AT_A_TIME = 3
"""Logits of a batch in memory at a time: all of them, those that predict, and the base model's."""


def layerwise_of(
    execution: ExecutionParams, params: EvaluationParams, tokens: int, base: BaseCheckpoint, scratch: Path
) -> Layerwise | None:
    """How the models are run layer by layer; None: whole. `auto` is layerwise where both would not fit.

    Args:
        tokens: that are evaluated.
        scratch: an existing folder.

    Raises:
        ValueError: layer by layer is asked for, and the model cannot be run so.
    """
    if execution.mode == "whole":
        return None
    outline = outline_of(execution, base)
    if outline is None:
        return None
    free, whole = free_bytes(torch_device(base.device)), needed_whole(outline.model, params, tokens)
    hidden = int(execution.hidden_gib * 2**30)
    layerwise = needed_layerwise(outline, params, tokens, hidden)
    if execution.mode == "auto" and whole <= SHARE * free:
        log.info("mode: whole, at most %s of memory, %s are free", gib(whole + REST), gib(free))
        return None
    log.info("mode: layerwise, at most %s of memory, %s are free", gib(layerwise + REST), gib(free))
    return Layerwise(scratch, hidden, LOGITS)


def needed_whole(model: PreTrainedModel, params: EvaluationParams, tokens: int) -> int:
    """Bytes of both models and of the base logits that stay; weights may be on the meta device."""
    return 2 * weight_bytes(model) + _logits_in_memory(model, params, tokens, params.base_logits_bytes)


def needed_layerwise(streamed: StreamedModel, params: EvaluationParams, tokens: int, hidden: int) -> int:
    """Bytes that an evaluation layer by layer takes at most, beside `REST`.

    Args:
        streamed: the base model.
        tokens: that are evaluated.
        hidden: bytes of hidden states in memory.
    """
    model, needed = streamed.model, list[int]()
    for name in layer_names(model):
        weights, mixture = weight_bytes(model, within(name)), large_mixture(streamed, name)
        if mixture is None:
            needed.append(COPIES * weights)
        else:
            needed.append(max(COPIES * (weights - mixture.bytes), mixture.loaded_bytes))
    prefix, _ = decoder_layers(model)
    head = weight_bytes(model, outside(prefix)) + _logits_in_memory(model, params, tokens, LOGITS)
    return max(*needed, head) + hidden


def _logits_in_memory(model: PreTrainedModel, params: EvaluationParams, tokens: int, kept: int) -> int:
    """Bytes of the base logits that stay, `kept` at most, and of those of a batch."""
    batch = AT_A_TIME * _logits(model, min(tokens, params.batch_tokens))
    return min(kept, _logits(model, tokens)) + batch


def _logits(model: PreTrainedModel, tokens: int) -> int:
    """Bytes of the logits of so many tokens."""
    return int(tokens * text_config(model).vocab_size * model.dtype.itemsize)
