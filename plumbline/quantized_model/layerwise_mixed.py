"""Bits per layer of a model that does not fit into memory: the sensitivity of one decoder layer after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from torch import Tensor

from plumbline.activation_stats.pieces import Pieces
from plumbline.activation_stats.stored import StoredStatistics
from plumbline.base_model.decoder import Decoder
from plumbline.base_model.matrices import WeightMatrix, matrix_of
from plumbline.base_model.streamed import StreamedModel
from plumbline.quantized_model.layerwise_parts import parts_of, selected
from plumbline.quantized_model.mixed import Allocation, Sensitivity, allocation, sensitivity
from plumbline.quantized_model.params import SchemeParams


def mixed_layer_by_layer(
    streamed: StreamedModel,
    decoder: Decoder,
    matrices: Mapping[str, WeightMatrix],
    stats: StoredStatistics,
    scheme: SchemeParams,
    pieces: Pieces,
) -> Allocation:
    """What `mixed.allocate` returns; the sensitivity of a part that is on disk is not measured again.

    Args:
        decoder: of the streamed model.
        matrices: all that the scheme quantizes, without weights.
    """
    outline, whole = stats.outline(), Sensitivity({}, {})

    def weight(name: str) -> Tensor:
        return matrix_of(streamed.model, name).weight

    for part in parts_of(decoder):
        name, inside = f"{part}.sensitivity", selected(decoder, part)
        facts = pieces.facts(name)
        if facts is None:
            with streamed.present(inside):
                measured = sensitivity(matrices, outline, stats, scheme, weight, inside)
            pieces.write(name, [], facts := asdict(measured))
        whole.energy.update(facts["energy"])
        whole.errors.update(facts["errors"])
    return allocation(matrices, outline, scheme, whole)
