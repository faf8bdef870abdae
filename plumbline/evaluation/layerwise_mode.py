"""Whether an evaluation holds both models in memory or one decoder layer at a time, said before it starts."""

from __future__ import annotations

import logging
from pathlib import Path

from transformers import PreTrainedModel

from plumbline.activation_stats.memory import SHARE, free_bytes
from plumbline.activation_stats.params import ExecutionParams
from plumbline.base_model.checkpoint import BaseCheckpoint
from plumbline.base_model.decoder import Decoder, decoder_layers
from plumbline.base_model.device import torch_device
from plumbline.base_model.language import text_config
from plumbline.base_model.names import Names, outside, within
from plumbline.evaluation.evaluate import Layerwise
from plumbline.evaluation.params import EvaluationParams

log = logging.getLogger(__name__)
REST = 1 << 30
"""Bytes of the process itself: libraries, buffers, activations of a batch."""
LOGITS = 256 << 20
"""Layer by layer: bytes of base logits in memory; one batch in any case."""
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
    try:
        model = base.streamed("cpu").model
        Decoder(model)  # refuses a model whose layers need more than hidden states
    except ValueError:  # if the model is broken, loading it whole reports why
        if execution.mode == "layerwise":
            raise
        return None
    free, whole = free_bytes(torch_device(base.device)), needed_whole(model, params, tokens)
    hidden = int(execution.hidden_gib * 2**30)
    layerwise = needed_layerwise(model, params, hidden)
    if execution.mode == "auto" and whole <= SHARE * free:
        log.info("mode: whole, at most %s of memory, %s are free", _gib(whole + REST), _gib(free))
        return None
    log.info("mode: layerwise, at most %s of memory, %s are free", _gib(layerwise + REST), _gib(free))
    return Layerwise(scratch, hidden, LOGITS)


def needed_whole(model: PreTrainedModel, params: EvaluationParams, tokens: int) -> int:
    """Bytes of both models and of the base logits that stay; weights may be on the meta device."""
    kept = min(params.base_logits_bytes, _logits(model, tokens))
    at_a_time = AT_A_TIME * _logits(model, min(tokens, params.batch_tokens))
    return 2 * _bytes(model, lambda name: True) + kept + at_a_time


def needed_layerwise(model: PreTrainedModel, params: EvaluationParams, hidden: int) -> int:
    """Bytes that an evaluation layer by layer takes at most, beside `REST`.

    Args:
        model: weights may be on the meta device.
        hidden: bytes of hidden states in memory.
    """
    prefix, layers = decoder_layers(model)
    largest = max(_bytes(model, within(f"{prefix}.{number}")) for number in range(len(layers)))
    head = _bytes(model, outside(prefix)) + AT_A_TIME * _logits(model, params.batch_tokens) + LOGITS
    return max(2 * largest, head) + hidden


def _logits(model: PreTrainedModel, tokens: int) -> int:
    """Bytes of the logits of so many tokens."""
    return int(tokens * text_config(model).vocab_size * model.dtype.itemsize)


def _bytes(model: PreTrainedModel, wanted: Names) -> int:
    weights = {id(x): x.numel() * x.element_size() for name, x in model.named_parameters() if wanted(name)}
    return sum(weights.values())


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
