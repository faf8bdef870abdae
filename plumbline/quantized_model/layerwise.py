"""Quantizing a model that does not fit into memory: one decoder layer after the other, each written before the next.

Memory holds the weights of one layer, what they become, and the statistics of the sites that are being solved. The
bytes are those of the whole model: every site is solved by itself, by the same functions. Of large experts, some are in
memory at a time.

The parts are the decoder layers and, last, what is outside them. A part that is on disk is not made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor

from plumbline.activation_stats.pieces import Pieces
from plumbline.activation_stats.resumable import states_after
from plumbline.activation_stats.stored import StoredStatistics
from plumbline.base_model.decoder_calls import DecoderCalls
from plumbline.base_model.streamed import StreamedModel
from plumbline.quantized_model.fold_search import FoldCheck
from plumbline.quantized_model.layerwise_folder import write_folder
from plumbline.quantized_model.layerwise_model import LayerwiseModel
from plumbline.quantized_model.layerwise_part import PartWriter
from plumbline.quantized_model.layerwise_parts import COMPUTED, computed_by
from plumbline.quantized_model.layerwise_propagate import Propagation, SetAgain
from plumbline.quantized_model.load_check import TOKENS
from plumbline.quantized_model.outcome import Outcome
from plumbline.quantized_model.params import SchemeParams


@torch.no_grad()
def quantized_layer_by_layer(
    streamed: StreamedModel,
    stats: StoredStatistics,
    scheme: SchemeParams,
    out: Path,
    pieces: Pieces,
    ids: Sequence[int],
    again: SetAgain,
    trust_remote_code: bool = False,
    done: Callable[[str], object] = lambda part: None,
) -> Outcome:
    """Quantize the base model and write a folder, with the bytes that quantizing it whole gives.

    Args:
        streamed: the base model.
        stats: of the calibration set.
        out: an existing folder.
        pieces: where the parts wait until all are there.
        ids: tokens of a sample, with which the result is held against its simulation.
        again: read if the scheme runs the calibration set again (`propagate: quantized`).
        done: called with the name of each part that is on disk.

    Raises:
        ValueError: the scheme does not suit the model or the statistics, the model cannot be run layer by layer, or
            what was written does not load as it was simulated.
    """
    ids = ids[:TOKENS]
    whole = LayerwiseModel.of(streamed, stats, scheme, pieces)
    check = None if scheme.transform is None else FoldCheck.of(streamed.model, whole.around)
    propagation = None
    if scheme.propagate == "quantized":
        propagation = Propagation.of(whole.decoder, whole.around, scheme, stats.settings, again, streamed.device)
    writer = PartWriter(whole, ids, pieces, DecoderCalls(whole.decoder, whole.around), check, propagation)
    hidden: Tensor | None = None
    parts, ready = whole.parts, _ready(whole, pieces)
    if propagation is not None and ready < len(parts):
        propagation.begin(pieces, parts[ready - 1] if ready else None)
    for number, name in enumerate(parts):
        if number >= ready:
            hidden = writer.write(name, hidden)
            if number:
                pieces.remove(states_after(parts[number - 1]))
        else:
            hidden = pieces.tensor(computed_by(name), COMPUTED).to(streamed.device)
        done(name)
    return write_folder(whole, ids, pieces, out, trust_remote_code)


def _ready(whole: LayerwiseModel, pieces: Pieces) -> int:
    """Number of the parts, from the first, that are on disk with all that the next one needs."""

    def complete(part: str) -> bool:
        return pieces.facts(part) is not None and pieces.facts(computed_by(part)) is not None

    parts = whole.parts
    number = len(list(takewhile(complete, parts)))
    lost = number and pieces.facts(states_after(parts[number - 1])) is None
    return 0 if whole.scheme.propagate == "quantized" and number < len(parts) and lost else number
